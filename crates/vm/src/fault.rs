//! Faults: making promised pages present.
//!
//! Budget: a first touch of anonymous memory is one search in the regions, one walk of the table,
//! one frame. A private page that was shared by a fork is copied by whoever writes first and kept
//! by whoever writes last.

use pagoda_addr::{Frame, Page, PageRange, VirtAddr};
use pagoda_paging::{Cursor, Entry, Fate, Format, Leaf, MapError, PageFlags, PageSize, Released};

use crate::memory::{self, PAGE};
use crate::object::ReadError;
use crate::region::{Object, Region, Regions};
use crate::space::{ANONYMOUS, Inner, SHARED, SpaceStats, leaf_flags, number};
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
        let entry = inner.regions.find(page).ok_or(FaultError::Unmapped)?;
        if entry.start > page {
            let start = entry.start;
            self.grow_stack(inner, start, page)?;
        }
        let Inner { regions, stats, .. } = inner;
        let region = region_at(regions, page)?;
        if !permits(region.prot, access) {
            return Err(FaultError::Protection);
        }
        let range = PageRange::single(Page::new(page).ok_or(FaultError::Unmapped)?);
        let mut cursor = self.table.cursor(range).map_err(|_| FaultError::Unmapped)?;
        match cursor.query(range.start()) {
            Entry::Mapped { frame, size, flags } => {
                let leaf = Leaf { frame, size, flags };
                self.fault_present(stats, region, &mut cursor, leaf, access)
            }
            Entry::Absent(_) => match &region.object {
                Object::Anonymous => {
                    let frame = self.page(true)?;
                    let writable = region.prot.contains(Prot::WRITE);
                    let mark = if writable { ANONYMOUS | PageFlags::WRITE } else { ANONYMOUS };
                    self.enter(stats, region, &mut cursor, frame, mark, access)
                }
                // The lock of the table is not held while an object is asked.
                Object::File(file) => {
                    drop(cursor);
                    let frame = self.file_page(&**file, region.index(page))?;
                    let write = access == Access::Write;
                    let mark =
                        if write { ANONYMOUS | PageFlags::WRITE } else { PageFlags::empty() };
                    let mut cursor = self.reopen(range, frame)?;
                    self.enter(stats, region, &mut cursor, frame, mark, access)
                }
                Object::Shared(object) => {
                    drop(cursor);
                    let frame = object.frame(region.index(page))?;
                    let writable = region.prot.contains(Prot::WRITE);
                    let mark = if writable { SHARED | PageFlags::WRITE } else { SHARED };
                    let mut cursor = self.reopen(range, frame)?;
                    self.enter(stats, region, &mut cursor, frame, mark, access)
                }
            },
        }
    }

    /// The page is there: spurious, or a write to a page that may not be written yet.
    fn fault_present(
        &self,
        stats: &mut SpaceStats,
        region: &Region<P>,
        cursor: &mut Cursor<'_, F, P>,
        leaf: Leaf,
        access: Access,
    ) -> Result<FaultDone, FaultError> {
        if access != Access::Write || leaf.flags.contains(PageFlags::WRITE) {
            return Ok(FaultDone::Spurious);
        }
        let range = cursor.range();
        let touched = PageFlags::ACCESSED | PageFlags::DIRTY | PageFlags::WRITE;
        let mark = if region.is_shared() { SHARED } else { ANONYMOUS };
        let flags = leaf_flags(region.prot) | touched | mark;
        let mut batch = self.table.batch();
        let done = if region.is_shared() || self.platform().refs(leaf.frame) == 1 {
            cursor.change(range, &mut batch, |_, _| flags)
        } else {
            let Ok(fresh) = self.page(false) else {
                batch.finish();
                return Err(FaultError::OutOfMemory);
            };
            memory::copy(self.platform(), leaf.frame, fresh);
            let replaced =
                cursor.replace(range.start(), fresh, flags, Fate::Release, &mut batch).map(|_| ());
            if replaced.is_err() {
                self.give_back(fresh);
            }
            replaced
        };
        batch.finish();
        done.map_err(|_| FaultError::OutOfMemory)?;
        stats.page_went(leaf.flags);
        stats.page_came(flags);
        Ok(FaultDone::Copied)
    }

    /// Maps `frame`, whose reference becomes the table's, or is given back on failure.
    fn enter(
        &self,
        stats: &mut SpaceStats,
        region: &Region<P>,
        cursor: &mut Cursor<'_, F, P>,
        frame: Frame,
        mark: PageFlags,
        access: Access,
    ) -> Result<FaultDone, FaultError> {
        let mut flags = leaf_flags(region.prot) | mark | PageFlags::ACCESSED;
        if access == Access::Write {
            flags |= PageFlags::DIRTY;
        }
        match cursor.map(cursor.range().start(), frame, PageSize::K4, flags) {
            Ok(()) => {
                stats.page_came(flags);
                Ok(FaultDone::Mapped)
            }
            Err(error) => {
                self.give_back(frame);
                debug_assert_eq!(error, MapError::OutOfFrames);
                Err(FaultError::OutOfMemory)
            }
        }
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

fn region_at<P: VmPlatform>(
    regions: &Regions<P>,
    page: PageNumber,
) -> Result<&Region<P>, FaultError> {
    regions.covering(page).map(|entry| &entry.value).ok_or(FaultError::Unmapped)
}

/// Does the protection permit the access? Anything that may be done implies reading, as on x86-64.
fn permits(prot: Prot, access: Access) -> bool {
    match access {
        Access::Read => !prot.is_empty(),
        Access::Write => prot.contains(Prot::WRITE),
        Access::Exec => prot.contains(Prot::EXEC),
    }
}
