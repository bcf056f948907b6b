//! Resizing and moving mappings.
//!
//! A move takes the leaves out of one place and puts the same frames into another, O(present). The
//! tables at the new place are made first, so that the move cannot stop half way; the old place is
//! flushed before the lock of the regions is given up.
//!
//! Left out: moving several mappings by one call (Linux 6.17).

use pagoda_addr::{PageRange, VirtAddr};
use pagoda_paging::{Cursor, Fate, Format};

use crate::map::address;
use crate::region::{Region, Window};
use crate::space::{Inner, number, page_count_wrapping, pages};
use crate::touched::Touched;
use crate::tree::PageNumber;
use crate::{
    AddressSpace, Locking, MapFlags, Place, RemapPlace, RemapRequest, VmError, VmPlatform,
};

impl<F: Format, P: VmPlatform> AddressSpace<F, P> {
    /// Resizes or moves a mapping; returns where it is. Checks in the order of
    /// Linux 6.17 and later (arguments before the mapping).
    pub fn remap(&self, request: RemapRequest) -> Result<VirtAddr, VmError> {
        let RemapRequest { addr, place, keep_old, .. } = request;
        let (old_len, new_len) =
            (page_count_wrapping(request.old_len), page_count_wrapping(request.new_len));
        let movable = place != RemapPlace::InPlace;
        let limit = number(self.layout.limit);
        if addr.page_offset() != 0 || new_len == 0 || new_len > limit {
            return Err(VmError::Invalid);
        }
        if keep_old && (!movable || old_len != new_len) {
            return Err(VmError::Invalid);
        }
        let start = number(addr);
        let target = match place {
            RemapPlace::Fixed(to) => Some(self.target(to, new_len, (start, old_len))?),
            _ => None,
        };
        let mut guard = self.change();
        let inner = &mut *guard;
        if inner.regions.covering(start).is_none() {
            return Err(VmError::Fault);
        }
        if let Some(to) = target {
            return self.remap_to(inner, start, old_len, to, keep_old);
        }
        if keep_old {
            let region = self.resizable(inner, start, old_len, new_len, true)?;
            let (to, _) = self.place(inner, Place::Anywhere, new_len, MapFlags::empty())?;
            return self.relocate(inner, (start, start + old_len), to, region, true);
        }
        if new_len <= old_len {
            if new_len < old_len {
                let end = start.checked_add(old_len).ok_or(VmError::Invalid)?;
                if end > limit {
                    return Err(VmError::Invalid);
                }
                self.unmap_window(inner, (start + new_len, end))?;
            }
            return Ok(addr);
        }
        let region = self.resizable(inner, start, old_len, new_len, false)?;
        if self.grow(inner, start, old_len, new_len, &region)? {
            return Ok(addr);
        }
        if !movable {
            return Err(VmError::NoSpace);
        }
        let (to, _) = self.place(inner, Place::Anywhere, new_len, MapFlags::empty())?;
        self.relocate(inner, (start, start + old_len), to, region, false)
    }

    /// A fixed place: in the program's half, and apart from the old one.
    fn target(&self, to: VirtAddr, new_len: u64, old: (u64, u64)) -> Result<Window, VmError> {
        let limit = number(self.layout.limit);
        if to.page_offset() != 0 || number(to) > limit - new_len {
            return Err(VmError::Invalid);
        }
        let to = (number(to), number(to) + new_len);
        // An old length that wraps is found out when the mapping is looked at.
        let old_end = address(old.0).as_u64().wrapping_add(old.1 << 12) >> 12;
        if old.0 < to.1 && to.0 < old_end {
            return Err(VmError::Invalid);
        }
        if address(to.0) < self.layout.lowest { Err(VmError::TooLow) } else { Ok(to) }
    }

    fn remap_to(
        &self,
        inner: &mut Inner<P>,
        start: PageNumber,
        mut old_len: u64,
        to: Window,
        keep_old: bool,
    ) -> Result<VirtAddr, VmError> {
        let new_len = to.1 - to.0;
        // A second mapping of nothing, over the first one's own page: Linux empties the place, and
        // then finds no mapping. We say so at once.
        if (to.0..to.1).contains(&start) {
            return Err(VmError::Fault);
        }
        // What is cut off may reach over the end of the region.
        let kept = old_len.min(new_len);
        let region = self.resizable(inner, start, kept, new_len, keep_old)?;
        let old_end = start.checked_add(old_len).ok_or(VmError::Invalid)?;
        if old_end > number(self.layout.limit) {
            return Err(VmError::Invalid);
        }
        self.unmap_window(inner, to)?;
        if old_len > new_len {
            self.unmap_window(inner, (start + new_len, old_end))?;
            old_len = new_len;
        }
        self.relocate(inner, (start, start + old_len), to, region, keep_old)
    }

    /// The region that covers all of the old range, if it may be resized.
    fn resizable(
        &self,
        inner: &mut Inner<P>,
        start: PageNumber,
        old_len: u64,
        new_len: u64,
        keep_old: bool,
    ) -> Result<Region<P>, VmError> {
        let entry = inner.regions.covering(start).ok_or(VmError::Fault)?;
        let region = entry.value.clone();
        if old_len == 0 && !region.is_shared() {
            return Err(VmError::Invalid);
        }
        if old_len > entry.end - start {
            return Err(VmError::Fault);
        }
        if new_len > old_len || keep_old {
            let more = if keep_old { new_len } else { new_len - old_len };
            region.index(start).checked_add(new_len).ok_or(VmError::Invalid)?;
            if region.flags.contains(MapFlags::LOCKED) {
                inner.may_lock(more, MapFlags::empty())?;
            }
            if !inner.may_expand(&region, more, 0) {
                return Err(VmError::Limit);
            }
            if region.is_counted() && !self.charge(inner, more) {
                return Err(VmError::OutOfMemory);
            }
        }
        Ok(region)
    }

    /// Grows at the end, if the old range ends its region and there is room.
    fn grow(
        &self,
        inner: &mut Inner<P>,
        start: PageNumber,
        old_len: u64,
        new_len: u64,
        region: &Region<P>,
    ) -> Result<bool, VmError> {
        let (old_end, new_end) = (start + old_len, start.checked_add(new_len));
        let Some(entry) = inner.regions.covering(start) else { return Ok(false) };
        let from = entry.start;
        let room = new_end
            .filter(|&end| end <= number(self.layout.limit))
            .filter(|&end| inner.regions.is_free((old_end, end)));
        match room {
            Some(end) if entry.end == old_end && old_len != 0 => {
                inner.regions.resize(start, (from, end));
                inner.stats.promise(region, new_len - old_len, true);
                if region.flags.contains(MapFlags::LOCKED) {
                    self.populate_locked(inner, (old_end, end));
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Moves `from` (within one region) to the hole `to`.
    fn relocate(
        &self,
        inner: &mut Inner<P>,
        from: Window,
        to: Window,
        region: Region<P>,
        keep_old: bool,
    ) -> Result<VirtAddr, VmError> {
        // Linux wants this much room under its limit before it moves anything.
        if inner.regions.len() + 3 > inner.limits.regions {
            return Err(VmError::TooManyRegions);
        }
        let moved = region.moved(from.0, to.0);
        inner.regions.reserve(&[from, to])?;
        self.move_leaves(from, to, &region.touched)?;
        if !keep_old {
            inner.count_out(from);
            inner.regions.carve(from);
        }
        inner.stats.promise(&moved, to.1 - to.0, true);
        let locked = moved.flags.contains(MapFlags::LOCKED);
        inner.regions.insert(to, moved);
        if keep_old && locked {
            self.unlock_region(inner, from.0);
        }
        let new = (to.0 + (from.1 - from.0), to.1);
        if locked && new.0 < new.1 {
            self.populate_locked(inner, new);
        }
        Ok(address(to.0))
    }

    /// What is left behind is not locked any more: all of the region, as on Linux.
    #[cold]
    fn unlock_region(&self, inner: &mut Inner<P>, page: PageNumber) {
        let Some(entry) = inner.regions.covering(page) else { return };
        let all = (entry.start, entry.end);
        inner.count_out(all);
        inner.regions.change(all, |region| {
            region.flags.remove(Locking::FLAGS);
            true
        });
        inner.count_in(all);
    }

    fn move_leaves(&self, from: Window, to: Window, touched: &Touched) -> Result<(), VmError> {
        let (low, high) = touched.within(from);
        if low >= high {
            return Ok(());
        }
        let place = (to.0 + (low - from.0), to.0 + (high - from.0));
        let (Some(old), Some(new)) = (pages((low, high)), pages(place)) else { return Ok(()) };
        let all = pages((low.min(place.0), high.max(place.1))).ok_or(VmError::Invalid)?;
        let mut batch = self.table.batch();
        let moved = {
            let mut cursor = self.table.cursor(all).map_err(|_| VmError::OutOfRange)?;
            self.prepare_tables(&mut cursor, old, new)
                .inspect_err(|_| {
                    // Gives back the tables that were made for nothing.
                    let _ = cursor.take(new, &mut batch, |_, _| Fate::Keep);
                })
                // Cannot fail: the tables stand.
                .and_then(|()| {
                    cursor.shift(old, new.start(), &mut batch).map_err(|_| VmError::Fault)
                })
        };
        batch.flush_now();
        moved
    }

    /// Makes the tables for the pages of `new` that take over what stands in `old`.
    fn prepare_tables(
        &self,
        cursor: &mut Cursor<'_, F, P>,
        old: PageRange,
        new: PageRange,
    ) -> Result<(), VmError> {
        let mut next = Some(old.start());
        while let Some((page, _)) = next.and_then(|from| cursor.next_used(from)) {
            let Some(to) = new.start().checked_add(page.number() - old.start().number()) else {
                break;
            };
            if !new.contains(to) {
                break;
            }
            // All pages of the source's table up to the end of one of the two.
            let rest = (512 - (page.number() % 512).max(to.number() % 512))
                .min(new.end_number() - to.number());
            let part = PageRange::new(to, rest).ok_or(VmError::Invalid)?;
            cursor.prepare(part).map_err(|_| VmError::OutOfMemory)?;
            next = page.checked_add(rest).filter(|&page| old.contains(page));
        }
        Ok(())
    }
}
