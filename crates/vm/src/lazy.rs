//! Memory that a program can do without: `MADV_FREE`, `MADV_COLD`, `MADV_PAGEOUT`.
//!
//! `MADV_FREE` makes pages *lazy* (see [`AddressSpace`]): clean, and closed to writing. Whoever writes
//! to such a page again takes a fault, and the page is wanted again with what it holds. Until then it
//! goes when frames are short: when a fault of this space finds none, and when the host asks
//! ([`AddressSpace::let_go`]), of all spaces in turn. Pages that a fork shares are left alone, as
//! on Linux, which notices the write by the dirty bit and takes no fault.
//!
//! There is no swap: the only other pages that can leave are those of files mapped privately, which
//! stay in memory as the file's. `MADV_COLD` forgets that pages were accessed, which is what there is
//! to see of it (`Referenced` in `smaps`).

use pagoda_addr::PageRange;
use pagoda_paging::{Entry, Format, PageFlags};

use crate::region::Window;
use crate::space::{ANONYMOUS, Inner, is_lazy, may_be_written, pages};
use crate::tree::PageNumber;
use crate::{AddressSpace, MapFlags, VmError, VmPlatform};

impl<F: Format, P: VmPlatform> AddressSpace<F, P> {
    /// Lets go of everything that was freed lazily, because frames are short. Returns how many pages
    /// that was. Not to be called with a lock held that ranks with or above that of the regions.
    pub fn let_go(&self) -> u64 {
        let mut inner = self.lock();
        if inner.lazy { self.let_go_of_lazy(&mut inner) } else { 0 }
    }

    #[cold]
    pub(crate) fn let_go_of_lazy(&self, inner: &mut Inner<P>) -> u64 {
        inner.lazy = false;
        let (mut at, mut pages) = (0, 0);
        while let Some(entry) = inner.regions.find(at) {
            at = entry.end;
            let region = &entry.value;
            let window = region.touched.within((entry.start, entry.end));
            // What is locked stays, whatever was said before.
            if region.flags.contains(MapFlags::LOCKED) {
                inner.lazy = true;
            } else if region.is_anonymous() {
                pages += self.drop_leaves(inner, window, true, is_lazy);
            }
        }
        pages
    }

    /// The pages of `part`, which lies in one anonymous region, are not needed until they are written.
    pub(crate) fn free_lazily(&self, inner: &mut Inner<P>, part: Window) -> Result<(), VmError> {
        inner.lazy = true;
        self.change_touched(inner, part, |old| {
            if may_be_written(old) {
                old - (PageFlags::WRITE | PageFlags::DIRTY | PageFlags::ACCESSED)
            } else {
                old
            }
        })
    }

    /// The pages of `part`, which lies in one region, have not been used for a while.
    pub(crate) fn cool(&self, inner: &Inner<P>, part: Window) -> Result<(), VmError> {
        self.change_touched(inner, part, |old| old - PageFlags::ACCESSED)
    }

    /// Lets go of what in `part`, which lies in one region, can be had again.
    pub(crate) fn page_out(&self, inner: &mut Inner<P>, part: Window) -> Result<(), VmError> {
        self.cool(inner, part)?;
        let Some(entry) = inner.regions.covering(part.0) else { return Ok(()) };
        let window = entry.value.touched.within(part);
        if entry.value.is_anonymous() {
            self.drop_leaves(inner, window, true, is_lazy);
        } else if !entry.value.is_shared() {
            self.drop_leaves(inner, window, false, |flags| !flags.contains(ANONYMOUS));
        }
        Ok(())
    }

    fn change_touched(
        &self,
        inner: &Inner<P>,
        part: Window,
        decide: impl FnMut(PageFlags) -> PageFlags,
    ) -> Result<(), VmError> {
        let Some(entry) = inner.regions.covering(part.0) else { return Ok(()) };
        let window = entry.value.touched.within(part);
        let Some(range) = pages(window).filter(|range| !range.is_empty()) else { return Ok(()) };
        let mut batch = self.table.batch();
        let changed = match self.table.cursor(range) {
            Ok(mut cursor) => cursor.change_flags(range, &mut batch, decide),
            Err(error) => Err(error),
        };
        batch.flush_now();
        changed.map_err(|_| VmError::OutOfMemory)
    }

    /// Takes the leaves out that are `which`, run by run, in a window of one kind of region. Other
    /// leaves stay, and guard pages. Returns how many there were.
    pub(crate) fn drop_leaves(
        &self,
        inner: &mut Inner<P>,
        window: Window,
        anonymous: bool,
        which: impl Fn(PageFlags) -> bool,
    ) -> u64 {
        let (mut next, mut dropped) = (window.0, 0);
        let is = |entry| matches!(entry, Entry::Mapped { flags, .. } if which(flags));
        while let Some(first) = self.next_entry((next, window.1), is) {
            next = self.next_entry((first, window.1), |entry| !is(entry)).unwrap_or(window.1);
            let before = inner.stats.rss();
            let taken = self.drop_run(&mut inner.stats, (first, next), anonymous);
            debug_assert!(taken.is_ok(), "nothing to split");
            dropped += before - inner.stats.rss();
        }
        dropped
    }

    /// The first page of `part` with anything in the table (a leaf, a guard page) that is `which`.
    pub(crate) fn next_entry(
        &self,
        part: Window,
        which: impl Fn(Entry) -> bool,
    ) -> Option<PageNumber> {
        let range: PageRange = pages(part).filter(|range| !range.is_empty())?;
        let mut cursor = self.table.cursor(range).ok()?;
        let mut next = Some(range.start());
        while let Some((page, entry)) = next.and_then(|from| cursor.next_used(from)) {
            if which(entry) {
                return Some(page.number());
            }
            next = page.checked_add(1).filter(|&page| range.contains(page));
        }
        None
    }
}
