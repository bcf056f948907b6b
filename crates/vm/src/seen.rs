//! What is present, for those who look: counts of a region, page by page.

use pagoda_addr::{Frame, Page, VirtAddr};
use pagoda_paging::{Entry, Format, PageFlags};

use crate::guard::is_guard;
use crate::space::{ANONYMOUS, is_lazy, number, pages};
use crate::{AddressSpace, VmPlatform};

/// What stands behind a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageState {
    /// Nothing yet.
    Nothing,
    /// A guard page.
    Guard,
    /// A frame.
    Present {
        /// Which.
        frame: Frame,
        /// The program's own memory, no file's and not shared.
        own: bool,
        /// Mapped by nobody else.
        sole: bool,
    },
}

/// Present pages of one region.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Residency {
    /// Pages present.
    pub present: u64,
    /// Of these, mapped by nobody else.
    pub sole: u64,
    /// Of these, written to since they came.
    pub dirty: u64,
    /// Of these, dirty and mapped by nobody else.
    pub sole_dirty: u64,
    /// Of these, memory of the program alone (not a file's, not shared).
    pub anonymous: u64,
    /// Of these, accessed since that was last forgotten.
    pub accessed: u64,
    /// Of these, freed lazily: they go when frames are short.
    pub lazy: u64,
    /// Sum over the present pages of 4096 divided by the number of references: bytes.
    pub proportional: u64,
}

impl<F: Format, P: VmPlatform> AddressSpace<F, P> {
    /// Tells `each` what stands behind `count` pages from `first` on, one after another.
    pub fn page_states(&self, first: VirtAddr, count: u64, mut each: impl FnMut(PageState)) {
        let inner = self.lock();
        let limit = number(self.layout.limit);
        let start = number(first);
        let mut cursor = pages((start.min(limit), start.saturating_add(count).min(limit)))
            .filter(|range| !range.is_empty())
            .and_then(|range| self.table.cursor(range).ok());
        let zero = self.platform().zero_page();
        for number in start..start.saturating_add(count) {
            let entry = match (&mut cursor, Page::new(number).filter(|_| number < limit)) {
                (Some(cursor), Some(page)) => cursor.query(page),
                _ => Entry::NOTHING,
            };
            each(match entry {
                Entry::Mapped { frame, flags, .. } => {
                    let own = flags.contains(ANONYMOUS) || Some(frame) == zero;
                    let refs = self.platform().refs(frame);
                    let sole = refs == if own { 1 } else { 2 };
                    PageState::Present { frame, own, sole }
                }
                entry if is_guard(entry) => PageState::Guard,
                Entry::Absent(_) => PageState::Nothing,
            });
        }
        drop(cursor);
        drop(inner);
    }

    /// Counts the present pages of the region at `addr`.
    pub fn resident(&self, addr: VirtAddr) -> Residency {
        let inner = self.lock();
        let mut sum = Residency::default();
        let Some(entry) = inner.regions.covering(addr.block().number()) else { return sum };
        let zero = self.platform().zero_page().filter(|_| entry.value.is_anonymous());
        let Some(range) = pages(entry.value.touched.within((entry.start, entry.end))) else {
            return sum;
        };
        let Ok(mut cursor) = self.table.cursor(range) else { return sum };
        let mut next = Some(range.start());
        while let Some((page, Entry::Mapped { frame, flags, .. })) =
            next.and_then(|from| cursor.next_used(from))
        {
            next = page.checked_add(1).filter(|&page| range.contains(page));
            if Some(frame) == zero {
                continue;
            }
            let refs = u64::from(self.platform().refs(frame)).max(1);
            // A shared object, or a file, holds one reference besides those of the mappings.
            let own = flags.contains(ANONYMOUS);
            let users = if own { refs } else { (refs - 1).max(1) };
            sum.present += 1;
            sum.sole += u64::from(users == 1);
            sum.dirty += u64::from(flags.contains(PageFlags::DIRTY));
            sum.sole_dirty += u64::from(users == 1 && flags.contains(PageFlags::DIRTY));
            sum.anonymous += u64::from(flags.contains(ANONYMOUS));
            sum.accessed += u64::from(flags.contains(PageFlags::ACCESSED));
            sum.lazy += u64::from(is_lazy(flags));
            sum.proportional += 4096 / users;
        }
        sum
    }
}
