//! Regions: what a program was promised, and the map of them.
//!
//! A [`Region`] is a run of pages that are alike in everything: protection, flags, what stands
//! behind them. Two regions that touch and are alike are always one (*maximal*): every change ends
//! by merging. A region keeps no offset that splitting would have to adjust: it keeps the *anchor*, the
//! difference between the page's index in the object and its page number, which is the same for
//! all parts of one mapping, so that parts are alike exactly when they can be merged.

use alloc::sync::Arc;

use crate::fallible::NoMemory;
use crate::space::SpaceStats;
use crate::touched::Touched;
use crate::tree::{Entry, PageNumber, Tree, Value};
use crate::{FileObject, MapFlags, Prot, SharedObject, VmPlatform};

/// What stands behind a region.
pub(crate) enum Object<P: VmPlatform> {
    /// Zeroes, private.
    Anonymous,
    /// A file, privately.
    File(Arc<dyn FileObject>),
    /// A file itself.
    SharedFile(Arc<dyn FileObject>),
    /// Shared memory.
    Shared(Arc<SharedObject<P>>),
}

impl<P: VmPlatform> Clone for Object<P> {
    fn clone(&self) -> Self {
        match self {
            Self::Anonymous => Self::Anonymous,
            Self::File(file) => Self::File(file.clone()),
            Self::SharedFile(file) => Self::SharedFile(file.clone()),
            Self::Shared(object) => Self::Shared(object.clone()),
        }
    }
}

impl<P: VmPlatform> Object<P> {
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Anonymous, Self::Anonymous) => true,
            // Addresses alone: two tables of methods for one type would not make two files.
            (Self::File(a), Self::File(b)) | (Self::SharedFile(a), Self::SharedFile(b)) => {
                core::ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b))
            }
            (Self::Shared(a), Self::Shared(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// A run of pages that are alike.
pub(crate) struct Region<P: VmPlatform> {
    pub(crate) prot: Prot,
    pub(crate) flags: MapFlags,
    /// Pages kept free below, if it grows down.
    pub(crate) guard: u32,
    /// Index in the object minus page number, wrapping; 0 for anonymous memory.
    pub(crate) anchor: u64,
    pub(crate) object: Object<P>,
    /// *touched*: no leaf of the region lies outside.
    pub(crate) touched: Touched,
}

impl<P: VmPlatform> Clone for Region<P> {
    fn clone(&self) -> Self {
        Self { object: self.object.clone(), touched: self.touched.clone(), ..*self }
    }
}

impl<P: VmPlatform> Value for Region<P> {
    #[inline]
    fn guard(&self) -> u64 {
        self.guard.into()
    }
}

impl<P: VmPlatform> Region<P> {
    /// Flags that a region remembers.
    pub(crate) const KEPT: MapFlags = MapFlags::GROWS_DOWN
        .union(MapFlags::NO_RESERVE)
        .union(MapFlags::LOCKED)
        .union(MapFlags::LOCK_ON_FAULT)
        .union(MapFlags::DONT_FORK)
        .union(MapFlags::WIPE_ON_FORK)
        .union(MapFlags::DONT_DUMP)
        .union(MapFlags::NEVER_WRITE);

    /// The file behind it.
    pub(crate) fn file(&self) -> Option<&Arc<dyn FileObject>> {
        match &self.object {
            Object::File(file) | Object::SharedFile(file) => Some(file),
            Object::Anonymous | Object::Shared(_) => None,
        }
    }

    /// Private memory with no file behind it.
    #[inline]
    pub(crate) fn is_anonymous(&self) -> bool {
        matches!(self.object, Object::Anonymous)
    }

    pub(crate) fn is_shared(&self) -> bool {
        matches!(self.object, Object::Shared(_) | Object::SharedFile(_))
    }

    /// Is it in the machine's books?
    pub(crate) fn is_counted(&self) -> bool {
        self.flags.contains(MapFlags::COUNTED)
    }

    /// Would it have to be, with this protection?
    pub(crate) fn counts_with(&self, prot: Prot) -> bool {
        !self.is_shared()
            && prot.contains(Prot::WRITE)
            && !self.flags.contains(MapFlags::NO_RESERVE)
    }

    /// Gives it another protection; says whether it had another. What becomes writable is counted
    /// (charged before); what nobody ever wrote to is not any more when it cannot be written.
    pub(crate) fn protect(&mut self, prot: Prot) -> bool {
        let differs = self.prot != prot;
        if differs {
            self.prot = prot;
            if self.counts_with(prot) {
                self.flags |= MapFlags::COUNTED;
            } else if self.is_anonymous() && !self.touched.has_own() {
                self.flags -= MapFlags::COUNTED;
            }
        }
        differs
    }

    /// Counted by the data limit.
    pub(crate) fn is_data(&self) -> bool {
        self.is_data_with(self.prot)
    }

    /// Would it be, with this protection?
    pub(crate) fn is_data_with(&self, prot: Prot) -> bool {
        !self.is_shared()
            && prot.contains(Prot::WRITE)
            && !self.flags.contains(MapFlags::GROWS_DOWN)
    }

    /// The page's index in the object.
    pub(crate) fn index(&self, page: PageNumber) -> u64 {
        page.wrapping_add(self.anchor)
    }

    /// The anchor after a move from page `from` to page `to`.
    pub(crate) fn moved(&self, from: PageNumber, to: PageNumber) -> Self {
        let anchor = match self.object {
            Object::Anonymous => 0,
            _ => self.anchor.wrapping_add(from).wrapping_sub(to),
        };
        Self { anchor, touched: self.touched.moved(from, to), ..self.clone() }
    }

    fn same(&self, other: &Self) -> bool {
        self.prot == other.prot
            && self.flags == other.flags
            && self.anchor == other.anchor
            && self.object.same(&other.object)
    }
}

/// The regions of one address space.
pub(crate) struct Regions<P: VmPlatform> {
    tree: Tree<Region<P>>,
}

/// A window of page numbers, from the first to one past the last.
pub(crate) type Window = (PageNumber, PageNumber);

impl<P: VmPlatform> Regions<P> {
    pub(crate) const fn new() -> Self {
        Self { tree: Tree::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.tree.len()
    }

    /// The region that covers `page`, or the next one.
    #[inline]
    pub(crate) fn find(&self, page: PageNumber) -> Option<&Entry<Region<P>>> {
        self.tree.find(page)
    }

    /// The region that covers `page`.
    #[inline]
    pub(crate) fn covering(&self, page: PageNumber) -> Option<&Entry<Region<P>>> {
        self.tree.covering(page)
    }

    /// The last region that starts below `page`.
    pub(crate) fn before(&self, page: PageNumber) -> Option<&Entry<Region<P>>> {
        self.tree.before(page)
    }

    /// The regions that reach into `window`, lowest first.
    pub(crate) fn within(&self, window: Window) -> impl Iterator<Item = &Entry<Region<P>>> {
        let mut next = window.0;
        core::iter::from_fn(move || {
            if next >= window.1 {
                return None;
            }
            let entry = self.tree.find(next).filter(|entry| entry.start < window.1)?;
            next = entry.end;
            Some(entry)
        })
    }

    /// All regions, in order.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Entry<Region<P>>> {
        self.tree.from(0)
    }

    /// Is nothing mapped in `window`?
    pub(crate) fn is_free(&self, window: Window) -> bool {
        self.tree.find(window.0).is_none_or(|entry| entry.start >= window.1)
    }

    /// Is `window` a hole, guard gaps counted?
    pub(crate) fn is_hole(&self, window: Window) -> bool {
        self.tree
            .find(window.0)
            .is_none_or(|entry| entry.start.saturating_sub(entry.value.guard()) >= window.1)
    }

    /// Pages of `window` that are mapped in regions of this kind.
    pub(crate) fn mapped(&self, window: Window, kind: impl Fn(&Region<P>) -> bool) -> u64 {
        let part = |e: &Entry<Region<P>>| e.end.min(window.1) - e.start.max(window.0);
        self.within(window).filter(|e| kind(&e.value)).map(part).sum()
    }

    /// One past the last page of the unbroken run of regions from `window.0`; none if that page is
    /// not mapped.
    pub(crate) fn run(&self, window: Window) -> Option<PageNumber> {
        let mut end = self.tree.covering(window.0)?.end;
        while end < window.1 {
            match self.tree.find(end).filter(|entry| entry.start == end) {
                Some(entry) => end = entry.end,
                None => break,
            }
        }
        Some(end.min(window.1))
    }

    pub(crate) fn highest_hole(&self, window: Window, len: u64) -> Option<PageNumber> {
        self.tree.highest_hole(window, len)
    }

    pub(crate) fn lowest_hole(&self, window: Window, len: u64) -> Option<PageNumber> {
        self.tree.lowest_hole(window, len)
    }

    /// A copy of what `keep` lets through, as `keep` alters it: regions that were not alike are not
    /// to become so.
    pub(crate) fn copy<E: From<NoMemory>>(
        &self,
        keep: impl FnMut(&Entry<Region<P>>) -> Result<Option<Region<P>>, E>,
    ) -> Result<Self, E> {
        Ok(Self { tree: self.tree.copy(keep)? })
    }

    /// Removes `part` of the region at `window`, which begins or ends where the region does, and counts
    /// it out.
    pub(crate) fn trim(&mut self, window: Window, part: Window, stats: &mut SpaceStats) {
        let pages = part.1 - part.0;
        if part == window {
            if let Some(entry) = self.tree.remove(window.0) {
                stats.promise(&entry.value, pages, false);
            }
            return;
        }
        self.tree.update(window.0, |entry| {
            stats.promise(&entry.value, pages, false);
            if part.0 == window.0 {
                entry.start = part.1;
            } else {
                entry.end = part.0;
            }
        });
    }

    /// Allocates ahead for any one of the changes below at the ends of each of `windows`.
    pub(crate) fn reserve(&mut self, windows: &[Window]) -> Result<(), NoMemory> {
        match *windows {
            [(a, b)] => self.tree.reserve(&[a, b], 2),
            [(a, b), (c, d)] => self.tree.reserve(&[a, b, c, d], 3),
            _ => Err(NoMemory),
        }
    }

    /// Regions that [`carve`](Self::carve) would add: one where it cuts a hole into a region.
    pub(crate) fn carve_adds(&self, window: Window) -> usize {
        let cut = self
            .tree
            .covering(window.0)
            .is_some_and(|entry| entry.start < window.0 && entry.end > window.1);
        cut.into()
    }

    /// Removes everything from `window`. Reserved before.
    pub(crate) fn carve(&mut self, window: Window) {
        let (low, high) = window;
        let mut next = low;
        while next < high {
            let Some(entry) = self.tree.find(low).filter(|entry| entry.start < high) else { break };
            let (start, end) = (entry.start, entry.end);
            next = end;
            if start >= low && end <= high {
                self.tree.remove(start);
            } else if start >= low {
                self.tree.update(start, |entry| entry.start = high);
            } else {
                let rest =
                    (end > high).then(|| Entry { start: high, end, value: entry.value.clone() });
                self.tree.update(start, |entry| entry.end = low);
                if let Some(rest) = rest {
                    self.tree.insert(rest);
                }
            }
        }
    }

    /// Puts a region where nothing is, merging it with its neighbours. Reserved before.
    pub(crate) fn insert(&mut self, window: Window, region: Region<P>) {
        let (start, end) = window;
        let (below, above) = self.tree.neighbours(start);
        let below = below.filter(|below| below.end == start && below.value.same(&region));
        let above = above.filter(|above| above.start == end && above.value.same(&region));
        if let Some(neighbour) = below.or(above) {
            neighbour.value.touched.join(&region.touched);
        }
        if let (Some(below), Some(above)) = (below, above) {
            below.value.touched.join(&above.value.touched);
        }
        match (below.is_some(), above.map(|above| above.end)) {
            (true, Some(far)) => {
                self.tree.remove(end);
                self.tree.update(start - 1, |below| below.end = far);
            }
            (true, None) => {
                self.tree.update(start - 1, |below| below.end = end);
            }
            (false, Some(_)) => {
                self.tree.update(end, |above| above.start = start);
            }
            (false, None) => self.tree.insert(Entry { start, end, value: region }),
        }
    }

    /// Moves the start or end of the region that covers `page`, within free space.
    pub(crate) fn resize(&mut self, page: PageNumber, window: Window) {
        self.tree.update(page, |entry| (entry.start, entry.end) = window);
        self.merge_at(window.1);
        self.merge_at(window.0);
    }

    /// Regions that [`change`](Self::change) would add, before merging.
    pub(crate) fn change_adds(
        &self,
        window: Window,
        differs: impl Fn(&Region<P>) -> bool,
    ) -> usize {
        let cuts = |page: PageNumber| {
            self.tree.covering(page).is_some_and(|e| e.start < page && differs(&e.value))
        };
        usize::from(cuts(window.0)) + usize::from(cuts(window.1))
    }

    /// Lets `change` alter every region in `window` (each part as a region of its own), then
    /// merges. `change` says whether it altered anything. Reserved before.
    pub(crate) fn change(&mut self, window: Window, change: impl Fn(&mut Region<P>) -> bool) {
        let (low, high) = window;
        let mut next = low;
        while next < high {
            let Some(entry) = self.tree.find(next).filter(|entry| entry.start < high) else {
                break;
            };
            let (start, end) = (entry.start, entry.end);
            next = end;
            let mut altered = entry.value.clone();
            if !change(&mut altered) {
                continue;
            }
            let (from, to) = (start.max(low), end.min(high));
            let rest = (to < end).then(|| Entry { start: to, end, value: entry.value.clone() });
            if from > start {
                self.tree.update(start, |entry| entry.end = from);
                self.tree.insert(Entry { start: from, end: to, value: altered });
            } else {
                self.tree.update(start, |entry| {
                    entry.end = to;
                    entry.value = altered;
                });
            }
            if let Some(rest) = rest {
                self.tree.insert(rest);
            }
        }
        // All the edges in the window, its own included.
        let mut edge = low;
        while edge < high {
            self.merge_at(edge);
            match self.tree.find(edge).filter(|entry| entry.end <= high) {
                Some(entry) => edge = entry.end,
                None => break,
            }
        }
        self.merge_at(high);
    }

    /// Makes one of the two regions that meet at `page`, if they are alike.
    fn merge_at(&mut self, page: PageNumber) {
        let Some(above) = self.tree.find(page).filter(|entry| entry.start == page) else { return };
        let Some(below) = self.tree.before(page).filter(|entry| entry.end == page) else { return };
        if below.value.same(&above.value) {
            below.value.touched.join(&above.value.touched);
            let (start, end) = (below.start, above.end);
            self.tree.remove(page);
            self.tree.update(start, |entry| entry.end = end);
        }
    }
}
