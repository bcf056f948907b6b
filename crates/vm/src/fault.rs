//! Faults: making promised pages present.
//!
//! Budget: a first touch of anonymous memory is one search in the regions, one walk of the table,
//! and for each page that it brings ([`Policy`](crate::Policy)) one frame and one store. Reading what was
//! never written maps the host's page of zeroes, if it has one. A private page that was shared by a fork is
//! copied by whoever writes first and kept by whoever writes last.

use pagoda_addr::{Frame, PageRange, VirtAddr};
use pagoda_paging::{Cursor, Entry, Format, PageFlags, PageSize, Released, Rewritten};

use crate::guard::is_guard;
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
        let pages = streams.at(page);
        let window = (page, entry.end.min(page + pages));
        let done = if region.is_anonymous() {
            self.fault_anonymous(stats, region, window, access)
        } else {
            self.fault_object(stats, region, window, entry.end, access)
        };
        streams.stopped(done.as_ref().map_or(page, |&(_, count)| page + count));
        match done {
            Ok((done, _)) => Ok(done),
            Err(FaultError::OutOfMemory) if inner.lazy => {
                // What was freed lazily is needed now; afterwards there is none.
                self.let_go_of_lazy(inner);
                self.fault_in(inner, page, access)
            }
            Err(error) => Err(error),
        }
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
        let range = pages_of_window(window)?;
        let mut cursor = self.table.cursor(range).map_err(|_| FaultError::Unmapped)?;
        let mut flags = leaf_flags(region.prot) | PageFlags::ACCESSED;
        let zero = if access == Access::Write { None } else { self.platform().zero_page() };
        let filled = if let Some(zero) = zero {
            cursor.fill_run(range, flags, || Some(zero))
        } else {
            // Counts as written even where it was only read, or it would be *lazy*.
            flags |= ANONYMOUS | PageFlags::DIRTY;
            if region.prot.contains(Prot::WRITE) {
                flags |= PageFlags::WRITE;
            }
            region.touched.note_own();
            cursor.fill_run(range, flags, || self.platform().alloc_page(true).ok())
        };
        let count = filled.map_err(|_| FaultError::OutOfMemory)?;
        if count != 0 {
            region.touched.add((window.0, window.0 + count));
            stats.pages_came(true, flags, count);
            return Ok((FaultDone::Mapped, count));
        }
        if region.touched.has_guards() && is_guard(cursor.query(range.start())) {
            return Err(FaultError::Unmapped);
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
        region.touched.note_own();
        batch.flush_now();
        match done.map_err(|_| FaultError::Unmapped)? {
            0 if refused => Err(FaultError::OutOfMemory),
            0 => Ok((FaultDone::Spurious, 1)),
            count => Ok((FaultDone::Copied, count)),
        }
    }

    /// A fault at the first page of `window` in a region with an object behind it, which may bring
    /// the others too.
    fn fault_object(
        &self,
        stats: &mut SpaceStats,
        region: &Region<P>,
        window: Window,
        region_end: PageNumber,
        access: Access,
    ) -> Result<(FaultDone, u64), FaultError> {
        let write = access == Access::Write;
        let private = !region.is_shared();
        // A store to a private page makes memory of our own: as many as asked for. All else is there
        // already, and costs no more than an entry.
        let pages = if write && private { (window.1 - window.0).min(AROUND) } else { AROUND };
        let end = region_end.min(window.0 + pages).min((window.0 | 511) + 1);
        let range = pages_of_window((window.0, end))?;
        {
            let mut cursor = self.table.cursor(range).map_err(|_| FaultError::Unmapped)?;
            match cursor.query(range.start()) {
                Entry::Mapped { .. } if write => {
                    return self.make_writable(stats, region, &mut cursor);
                }
                Entry::Mapped { .. } => return Ok((FaultDone::Spurious, 1)),
                entry if is_guard(entry) => return Err(FaultError::Unmapped),
                // The lock of the table is not held while an object is asked.
                Entry::Absent(_) => {}
            }
        }
        let mut mark = match (private, write) {
            (true, true) => ANONYMOUS | PageFlags::WRITE,
            (true, false) => PageFlags::empty(),
            (false, _) => SHARED,
        };
        if !private && region.prot.contains(Prot::WRITE) {
            mark |= PageFlags::WRITE;
        }
        let mut frames = Found::nothing();
        for page in window.0..end {
            let ahead = page != window.0;
            match self.object_page(region, region.index(page), write && private, ahead) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) if ahead => break,
                Err(error) => return Err(error),
            }
        }
        let mut flags = leaf_flags(region.prot) | mark | PageFlags::ACCESSED;
        if write {
            flags |= PageFlags::DIRTY;
        }
        let filled = match self.table.cursor(range) {
            Ok(mut cursor) => cursor.fill_run(range, flags, || frames.next()),
            Err(error) => Err(error),
        };
        while let Some(frame) = frames.next() {
            self.give_back(frame); // something stands there already
        }
        let count = filled.map_err(|_| FaultError::OutOfMemory)?;
        region.touched.add((window.0, window.0 + count));
        stats.pages_came(false, flags, count);
        Ok((if count == 0 { FaultDone::Spurious } else { FaultDone::Mapped }, count.max(1)))
    }

    /// The frame for page `index` of the object behind `region`, with a reference for us: the
    /// object's own, or a copy (`own`). None: not worth it for a page that was not asked for.
    fn object_page(
        &self,
        region: &Region<P>,
        index: u64,
        own: bool,
        ahead: bool,
    ) -> Result<Option<Frame>, FaultError> {
        match &region.object {
            Object::File(file) => {
                // What the file cannot keep in memory for all is copied for this one.
                let Ok(Some(frame)) = file.frame(index, ahead) else {
                    return if ahead { Ok(None) } else { self.file_page(&**file, index).map(Some) };
                };
                if !own {
                    return Ok(Some(frame));
                }
                let copy = self.page(false);
                if let Ok(copy) = copy {
                    memory::copy(self.platform(), frame, copy);
                }
                self.give_back(frame);
                copy.map(Some)
            }
            Object::SharedFile(file) => match file.frame(index, ahead) {
                Ok(None) if !ahead => Err(FaultError::Bus),
                Ok(frame) => Ok(frame),
                Err(ReadError::Bus) => Err(FaultError::Bus),
                Err(ReadError::OutOfMemory) => Err(FaultError::OutOfMemory),
            },
            Object::Shared(object) => object.frame(index, ahead),
            Object::Anonymous => Err(FaultError::Unmapped),
        }
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
        let region = region.clone();
        let locked = region.flags.contains(MapFlags::LOCKED);
        if too_close || locked && inner.may_lock(more, MapFlags::empty()).is_err() {
            return Err(FaultError::Unmapped);
        }
        if region.is_counted() && !self.charge(inner, more) {
            return Err(FaultError::Unmapped);
        }
        inner.stats.promise(&region, more, true);
        inner.regions.resize(start, (page, end));
        Ok(())
    }
}

/// Pages of an object that one fault may map because they are in memory anyway; as on Linux.
const AROUND: u64 = 16;

/// Frames found for a run of pages, each with a reference.
struct Found {
    frames: [Frame; AROUND as usize],
    next: usize,
    len: usize,
}

impl Found {
    fn nothing() -> Self {
        Self { frames: [Frame::default(); AROUND as usize], next: 0, len: 0 }
    }

    /// One more; at most as many as [`AROUND`] are asked for.
    fn push(&mut self, frame: Frame) {
        if let Some(slot) = self.frames.get_mut(self.len) {
            *slot = frame;
            self.len += 1;
        }
    }

    fn next(&mut self) -> Option<Frame> {
        let frame = self.frames[..self.len].get(self.next)?;
        self.next += 1;
        Some(*frame)
    }
}

fn pages_of_window(window: Window) -> Result<PageRange, FaultError> {
    pages(window).ok_or(FaultError::Unmapped)
}

/// Does the protection permit the access? Anything that may be done implies reading, as on x86-64.
fn permits(prot: Prot, access: Access) -> bool {
    match access {
        Access::Read => !prot.is_empty(),
        Access::Write => prot.contains(Prot::WRITE),
        Access::Exec => prot.contains(Prot::EXEC),
    }
}
