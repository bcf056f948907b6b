//! Faults: making promised pages present.
//!
//! Budget: a first touch of anonymous memory is one search in the regions, one walk of the table,
//! and for each page that it brings ([`Policy`](crate::Policy)) one frame and one store. Reading what was
//! never written maps the host's page of zeroes, if it has one. A private page that was shared by a fork is
//! copied by whoever writes first and kept by whoever writes last.

use pagoda_addr::{Frame, Page, PageRange, VirtAddr};
use pagoda_paging::{Cursor, Entry, Format, PageFlags, PageSize, Released, Rewritten};

use crate::memory::{self, PAGE};
use crate::object::ReadError;
use crate::region::{Object, Region, Window};
use crate::space::{ANONYMOUS, Inner, SHARED, SpaceStats, leaf_flags, number, pages};
use crate::tree::PageNumber;
use crate::{Access, AddressSpace, FaultError, FileObject, MapFlags, Prot, VmPlatform};

/// What a fault did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultDone {
    /// A page was made present.
    Mapped,
    /// A page shared by a fork was copied, or kept by its last owner.
    Copied,
    /// Nothing was to do: another CPU was faster.
    Spurious,
}

impl<F: Format, P: VmPlatform> AddressSpace<F, P> {
    /// Serves a page fault: afterwards the access can be tried again, or the error says which
    /// signal applies.
    pub fn fault(&self, addr: VirtAddr, access: Access) -> Result<FaultDone, FaultError> {
        if addr >= self.layout.limit {
            return Err(FaultError::Unmapped);
        }
        let mut inner = self.lock();
        self.fault_in(&mut inner, number(addr), access)
    }

    /// Makes `page` present for `access`.
    pub(crate) fn fault_in(
        &self,
        inner: &mut Inner<P>,
        page: PageNumber,
        access: Access,
    ) -> Result<FaultDone, FaultError> {
        let Inner { regions, stats, streams, .. } = inner;
        let entry = regions.find(page).ok_or(FaultError::Unmapped)?;
        if entry.start > page {
            let start = entry.start;
            self.grow_stack(inner, start, page)?;
            return self.fault_in(inner, page, access);
        }
        let region = &entry.value;
        if !permits(region.prot, access) {
            return Err(FaultError::Protection);
        }
        if region.is_anonymous() {
            let (stream, pages) = streams.at(page);
            let end = entry.end.min(page + pages);
            let done = self.fault_anonymous(stats, region, (page, end), access);
            streams.stopped(stream, done.as_ref().map_or(page, |&(_, count)| page + count));
            return done.map(|(done, _)| done);
        }
        self.fault_object(stats, region, page, access)
    }

    /// A fault at the first page of `window` in private memory without a file, which may bring the
    /// others too. What it did, and for how many pages.
    #[inline]
    fn fault_anonymous(
        &self,
        stats: &mut SpaceStats,
        region: &Region<P>,
        window: Window,
        access: Access,
    ) -> Result<(FaultDone, u64), FaultError> {
        let range = pages(window).ok_or(FaultError::Unmapped)?;
        let mut cursor = self.table.cursor(range).map_err(|_| FaultError::Unmapped)?;
        let mut flags = leaf_flags(region.prot) | PageFlags::ACCESSED;
        let zero = if access == Access::Write { None } else { self.platform().zero_page() };
        let filled = if let Some(zero) = zero {
            cursor.fill_run(range, flags, || Some(zero))
        } else {
            flags |= ANONYMOUS;
            if region.prot.contains(Prot::WRITE) {
                flags |= PageFlags::WRITE;
            }
            if access == Access::Write {
                flags |= PageFlags::DIRTY;
            }
            cursor.fill_run(range, flags, || self.platform().alloc_page(true).ok())
        };
        let count = filled.map_err(|_| FaultError::OutOfMemory)?;
        if count != 0 {
            region.touched.add((window.0, window.0 + count));
            stats.pages_came(true, flags, count);
            return Ok((FaultDone::Mapped, count));
        }
        if access != Access::Write {
            return Ok((FaultDone::Spurious, 1));
        }
        self.make_writable(stats, region, &mut cursor)
    }

    /// The first page of the cursor's range is there, and is written to. If it may not be written
    /// yet: copies it, or keeps it if it is ours alone; likewise the pages behind it that are the
    /// same case.
    fn make_writable(
        &self,
        stats: &mut SpaceStats,
        region: &Region<P>,
        cursor: &mut Cursor<'_, F, P>,
    ) -> Result<(FaultDone, u64), FaultError> {
        let range = cursor.range();
        let platform = self.platform();
        let (shared, anonymous) = (region.is_shared(), region.is_anonymous());
        let zero = platform.zero_page().filter(|_| anonymous);
        let mark = if shared { SHARED } else { ANONYMOUS };
        let flags = leaf_flags(region.prot)
            | PageFlags::ACCESSED
            | PageFlags::DIRTY
            | PageFlags::WRITE
            | mark;
        let mut refused = false;
        let mut batch = self.table.batch();
        let done = cursor.rewrite_run(range, &mut batch, |_, leaf| {
            if leaf.flags.contains(PageFlags::WRITE) {
                return None;
            }
            let is_zero = Some(leaf.frame) == zero;
            let rewritten = if shared || (!is_zero && platform.refs(leaf.frame) == 1) {
                Rewritten::Flags(flags)
            } else {
                let Ok(fresh) = platform.alloc_page(is_zero) else {
                    refused = true;
                    return None;
                };
                if !is_zero {
                    memory::copy(platform, leaf.frame, fresh);
                }
                Rewritten::Frame(fresh, flags)
            };
            stats.pages_went(anonymous, leaf.flags, 1);
            stats.pages_came(anonymous, flags, 1);
            Some(rewritten)
        });
        batch.flush_now();
        match done.map_err(|_| FaultError::Unmapped)? {
            0 if refused => Err(FaultError::OutOfMemory),
            0 => Ok((FaultDone::Spurious, 1)),
            count => Ok((FaultDone::Copied, count)),
        }
    }

    /// A fault at `page` of a region with an object behind it.
    fn fault_object(
        &self,
        stats: &mut SpaceStats,
        region: &Region<P>,
        page: PageNumber,
        access: Access,
    ) -> Result<FaultDone, FaultError> {
        let range = PageRange::single(Page::new(page).ok_or(FaultError::Unmapped)?);
        let write = access == Access::Write;
        {
            let mut cursor = self.table.cursor(range).map_err(|_| FaultError::Unmapped)?;
            match cursor.query(range.start()) {
                Entry::Mapped { .. } if write => {
                    return self.make_writable(stats, region, &mut cursor).map(|(done, _)| done);
                }
                Entry::Mapped { .. } => return Ok(FaultDone::Spurious),
                // The lock of the table is not held while an object is asked.
                Entry::Absent(_) => {}
            }
        }
        let index = region.index(page);
        let (frame, mark) = match &region.object {
            Object::File(file) => {
                let own = ANONYMOUS | PageFlags::WRITE | PageFlags::DIRTY;
                let mark = if write { own } else { PageFlags::empty() };
                (self.file_page(&**file, index)?, mark)
            }
            Object::Shared(object) => {
                let writable = region.prot.contains(Prot::WRITE);
                let mark = if writable { SHARED | PageFlags::WRITE } else { SHARED };
                (object.frame(index)?, mark)
            }
            Object::Anonymous => return Err(FaultError::Unmapped),
        };
        let mut flags = leaf_flags(region.prot) | mark | PageFlags::ACCESSED;
        if write {
            flags |= PageFlags::DIRTY;
        }
        let mut cursor = self.reopen(range, frame)?;
        let mut once = Some(frame);
        let filled = cursor.fill_run(range, flags, || once.take());
        if let Some(frame) = once {
            self.give_back(frame); // not asked for: somebody was faster
        }
        let count = filled.map_err(|_| FaultError::OutOfMemory)?;
        region.touched.add((page, page + count));
        stats.pages_came(false, flags, count);
        Ok(if count == 0 { FaultDone::Spurious } else { FaultDone::Mapped })
    }

    fn reopen(&self, range: PageRange, frame: Frame) -> Result<Cursor<'_, F, P>, FaultError> {
        self.table.cursor(range).map_err(|_| {
            self.give_back(frame);
            FaultError::Unmapped
        })
    }

    fn page(&self, zeroed: bool) -> Result<Frame, FaultError> {
        self.platform().alloc_page(zeroed).map_err(|_| FaultError::OutOfMemory)
    }

    /// Gives back a reference that never reached the table.
    pub(crate) fn give_back(&self, frame: Frame) {
        self.platform().release(Released::Page { frame, size: PageSize::K4 });
    }

    /// A copy of page `index` of `file`, zero beyond the end of the file.
    fn file_page(&self, file: &dyn FileObject, index: u64) -> Result<Frame, FaultError> {
        let rest = index
            .checked_mul(PAGE as u64)
            .and_then(|start| file.size().checked_sub(start))
            .filter(|&rest| rest != 0)
            .ok_or(FaultError::Bus)?;
        let frame = self.page(false)?;
        let filled = memory::fresh(self.platform(), frame, |bytes| {
            let result = file.read_page(index, bytes);
            bytes.iter_mut().skip(usize::try_from(rest).unwrap_or(PAGE)).for_each(|b| *b = 0);
            result
        });
        filled.map(|()| frame).map_err(|error| {
            self.give_back(frame);
            match error {
                ReadError::Bus => FaultError::Bus,
                ReadError::OutOfMemory => FaultError::OutOfMemory,
            }
        })
    }

    /// Lets the region that starts at `start` grow down to `page`, if it is one that does.
    #[cold]
    fn grow_stack(
        &self,
        inner: &mut Inner<P>,
        start: PageNumber,
        page: PageNumber,
    ) -> Result<(), FaultError> {
        let entry = inner.regions.find(page).ok_or(FaultError::Unmapped)?;
        let region = &entry.value;
        if !region.flags.contains(MapFlags::GROWS_DOWN) || page < number(self.layout.lowest) {
            return Err(FaultError::Unmapped);
        }
        let (end, more) = (entry.end, start - page);
        let size = (end - page).saturating_mul(PAGE as u64);
        if size > inner.limits.stack || !inner.may_expand(region, more, 0) {
            return Err(FaultError::Unmapped);
        }
        let too_close = inner.regions.before(page).is_some_and(|below| {
            !below.value.flags.contains(MapFlags::GROWS_DOWN)
                && !below.value.prot.is_empty()
                && page.saturating_sub(below.end) < self.layout.guard_pages
        });
        if too_close || !self.platform().may_commit(more) {
            return Err(FaultError::Unmapped);
        }
        inner.stats.promise(region, more, true);
        inner.regions.resize(start, (page, end));
        Ok(())
    }
}

/// Does the protection permit the access? Anything that may be done implies reading, as on x86-64.
fn permits(prot: Prot, access: Access) -> bool {
    match access {
        Access::Read => !prot.is_empty(),
        Access::Write => prot.contains(Prot::WRITE),
        Access::Exec => prot.contains(Prot::EXEC),
    }
}
