//! Making and removing mappings: `map`, `unmap`, the heap.

use pagoda_addr::VirtAddr;
use pagoda_paging::Format;

use crate::region::{Object, Region, Window};
use crate::space::{Inner, number, page_count};
use crate::touched::Touched;
use crate::tree::PageNumber;
use crate::{
    Access, AddressSpace, Backing, MapFlags, MapRequest, Overcommit, Place, Prot, SharedObject,
    VmError, VmPlatform,
};

impl<F: Format, P: VmPlatform> AddressSpace<F, P> {
    /// Makes a mapping; returns its first address.
    ///
    /// Checks in Linux's order: length, number of regions, place, locked memory, offset, limits,
    /// commit.
    pub fn map(&self, request: MapRequest<P>) -> Result<VirtAddr, VmError>
    where
        P: Clone,
    {
        let MapRequest { place, len, prot, mut flags, backing } = request;
        if len == 0 {
            return Err(VmError::Invalid);
        }
        let len = page_count(len);
        let offset = match &backing {
            Backing::Anonymous | Backing::SharedAnonymous => 0,
            Backing::File { offset, .. }
            | Backing::SharedFile { offset, .. }
            | Backing::Shared { offset, .. } => *offset,
        };
        if offset % 4096 != 0 {
            return Err(VmError::Invalid);
        }
        let mut guard = self.change();
        let inner = &mut *guard;
        if inner.regions.len() > inner.limits.regions {
            return Err(VmError::TooManyRegions);
        }
        let (window, free) = self.place(inner, place, len, flags)?;
        flags |= inner.future.flags();
        if flags.contains(MapFlags::LOCKED) {
            inner.may_lock(len, request.flags)?;
        }
        // Who wants to keep every promise makes no exceptions.
        if self.platform().commit().is_some_and(|books| books.mode() == Overcommit::Never) {
            flags -= MapFlags::NO_RESERVE;
        }
        // No file is longer than offsets are positive.
        if (offset >> 12).saturating_add(len) > i64::MAX as u64 >> 12 {
            return Err(VmError::Overflow);
        }
        let (object, anchor) = match backing {
            Backing::Anonymous => (Object::Anonymous, 0),
            Backing::SharedAnonymous => {
                let counted = !flags.contains(MapFlags::NO_RESERVE);
                if counted && !inner.may_charge(self.platform(), len) {
                    return Err(VmError::OutOfMemory);
                }
                let object = SharedObject::charged(self.platform().clone(), len, counted)?;
                (Object::Shared(object), 0u64.wrapping_sub(window.0))
            }
            Backing::File { object, offset } => {
                (Object::File(object), (offset >> 12).wrapping_sub(window.0))
            }
            Backing::SharedFile { object, offset } => {
                (Object::SharedFile(object), (offset >> 12).wrapping_sub(window.0))
            }
            Backing::Shared { object, offset } => {
                (Object::Shared(object), (offset >> 12).wrapping_sub(window.0))
            }
        };
        let grows = flags.contains(MapFlags::GROWS_DOWN);
        let guard_pages = if grows { self.layout.guard_pages as u32 } else { 0 };
        let flags_kept = flags & Region::<P>::KEPT;
        let region = Region {
            prot,
            flags: flags_kept,
            guard: guard_pages,
            anchor,
            object,
            touched: Touched::nothing(),
        };
        self.install(inner, window, free, region)?;
        let fetch = flags.intersects(MapFlags::POPULATE | MapFlags::LOCKED)
            && !flags.contains(MapFlags::LOCK_ON_FAULT);
        if fetch && !prot.is_empty() {
            // What cannot be made present now will be, or will fail, when it is touched.
            let access = if prot.contains(Prot::WRITE) { Access::Write } else { Access::Read };
            for page in window.0..window.1 {
                if self.fault_in(inner, page, access).is_err() {
                    break;
                }
            }
        }
        Ok(address(window.0))
    }

    /// Chooses the place of `len` pages, or checks the one asked for. Is it free for certain?
    pub(crate) fn place(
        &self,
        inner: &Inner<P>,
        place: Place,
        len: u64,
        flags: MapFlags,
    ) -> Result<(Window, bool), VmError> {
        let limit = number(self.layout.limit);
        if len > limit {
            return Err(VmError::NoSpace);
        }
        let (addr, replace) = match place {
            Place::Anywhere => return Ok((self.free_place(inner, None, len, flags)?, true)),
            Place::Hint(hint) => {
                return Ok((self.free_place(inner, Some(hint), len, flags)?, true));
            }
            Place::Fixed(addr) => (addr, true),
            Place::FixedNoReplace(addr) => (addr, false),
        };
        if addr.as_u64() > (limit - len) << 12 {
            return Err(VmError::OutOfRange);
        }
        if addr.page_offset() != 0 {
            return Err(VmError::Invalid);
        }
        if addr < self.layout.lowest {
            return Err(VmError::TooLow);
        }
        let window = (number(addr), number(addr) + len);
        if !replace && !inner.regions.is_free(window) {
            return Err(VmError::Exists);
        }
        Ok((window, !replace))
    }

    /// A hole: at the hint; else the highest below the base; else the lowest above a third of the
    /// space.
    fn free_place(
        &self,
        inner: &Inner<P>,
        hint: Option<VirtAddr>,
        len: u64,
        flags: MapFlags,
    ) -> Result<Window, VmError> {
        let lowest = number(self.layout.lowest);
        let limit = number(self.layout.limit);
        if let Some(hint) = hint.map(number).filter(|&hint| hint != 0) {
            let start = hint.max(lowest);
            if let Some(end) = start.checked_add(len).filter(|&end| end <= limit) {
                let above_guarded = inner.regions.is_hole((start, end));
                if above_guarded && inner.regions.is_free((start, end)) {
                    return Ok((start, end));
                }
            }
        }
        let (base, floor, ceiling) = if flags.contains(MapFlags::LOW) {
            (0x8_0000.min(limit), 0x4_0000, 0x8_0000.min(limit))
        } else {
            (number(self.layout.mmap_base), limit / 3 + 1, limit)
        };
        let hole = if flags.contains(MapFlags::LOW) {
            inner.regions.lowest_hole((floor, ceiling), len)
        } else {
            inner.regions.highest_hole((lowest, base), len)
        };
        hole.or_else(|| inner.regions.lowest_hole((floor, ceiling), len))
            .map(|start| (start, start + len))
            .ok_or(VmError::NoSpace)
    }

    /// Puts `region` at `window`, replacing what is there unless it is `free`. All or nothing.
    pub(crate) fn install(
        &self,
        inner: &mut Inner<P>,
        window: Window,
        free: bool,
        mut region: Region<P>,
    ) -> Result<(), VmError> {
        let pages = window.1 - window.0;
        if !inner.may_expand(&region, pages, 0) {
            let replaced = inner.regions.mapped(window, |_| true);
            if !inner.may_expand(&region, pages, replaced) {
                return Err(VmError::Limit);
            }
        }
        if region.counts_with(region.prot) {
            region.flags |= MapFlags::COUNTED;
            let counted = if free { 0 } else { inner.regions.mapped(window, Region::is_counted) };
            if !self.charge(inner, pages - counted) {
                return Err(VmError::OutOfMemory);
            }
        }
        inner.regions.reserve(&[window])?;
        if !free {
            self.remove(inner, window)?;
        }
        inner.stats.promise(&region, pages, true);
        inner.regions.insert(window, region);
        Ok(())
    }

    /// Empties `window`. Reserved before.
    pub(crate) fn remove(&self, inner: &mut Inner<P>, window: Window) -> Result<(), VmError> {
        if inner.regions.is_free(window) {
            return Ok(());
        }
        let adds = inner.regions.carve_adds(window);
        if adds != 0 && adds + inner.regions.len() > inner.limits.regions {
            return Err(VmError::TooManyRegions);
        }
        self.drop_pages(inner, window)?;
        inner.count_out(window);
        inner.regions.carve(window);
        Ok(())
    }

    /// Removes every mapping, and every part of one, from the range. Untouched memory costs
    /// nothing.
    pub fn unmap(&self, addr: VirtAddr, len: u64) -> Result<(), VmError> {
        let limit = self.layout.limit.as_u64();
        let room = limit.checked_sub(addr.as_u64()).ok_or(VmError::Invalid)?;
        if addr.page_offset() != 0 || len > room || len == 0 {
            return Err(VmError::Invalid);
        }
        let window = (number(addr), number(addr) + page_count(len));
        let mut inner = self.change();
        self.unmap_window(&mut inner, window)
    }

    pub(crate) fn unmap_window(&self, inner: &mut Inner<P>, window: Window) -> Result<(), VmError> {
        let Some(entry) = inner.regions.find(window.0) else { return Ok(()) };
        let (start, end) = (entry.start, entry.end);
        if start >= window.1 {
            return Ok(());
        }
        // The common case: a region, whole, or one end of it. Nothing is added, so nothing can fail.
        let (whole, upper) = (window.0 <= start, window.0 > start && window.1 == end);
        if whole && window.1 == end || window.0 == start && window.1 < end || upper {
            let part = (start.max(window.0), window.1);
            let (low, high) = entry.value.touched.within(part);
            if low < high {
                let anonymous = entry.value.is_anonymous();
                entry.value.touched.forget(part);
                self.drop_run(&mut inner.stats, (low, high), anonymous)?;
            }
            inner.regions.trim((start, end), part, &mut inner.stats);
            return Ok(());
        }
        inner.regions.reserve(&[window])?;
        self.remove(inner, window)
    }

    /// Says where the heap begins: the end of the program's data, once, by whoever loads it.
    pub fn start_brk(&self, start: VirtAddr) {
        self.lock().brk = (start.as_u64(), start.as_u64());
    }

    /// Start and end of the heap.
    pub fn brk(&self) -> (VirtAddr, VirtAddr) {
        let (start, end) = self.lock().brk;
        (VirtAddr::new(start), VirtAddr::new(end))
    }

    /// Moves the end of the heap; returns where it is afterwards: unchanged when it cannot be
    /// moved there.
    pub fn set_brk(&self, end: VirtAddr) -> VirtAddr {
        let mut guard = self.change();
        let inner = &mut *guard;
        let wanted = end.as_u64();
        if self.try_brk(inner, wanted).is_ok() {
            inner.brk.1 = wanted;
        }
        VirtAddr::new(inner.brk.1)
    }

    fn try_brk(&self, inner: &mut Inner<P>, wanted: u64) -> Result<(), VmError> {
        let (start, current) = inner.brk;
        if wanted < start || wanted > self.layout.limit.as_u64() {
            return Err(VmError::Invalid);
        }
        if wanted - start > inner.limits.data {
            return Err(VmError::Limit);
        }
        let (old, new) = (page_count(current), page_count(wanted));
        if new <= old {
            return if new == old { Ok(()) } else { self.unmap_window(inner, (new, old)) };
        }
        // One page more than the heap needs has to be free, guard gaps counted.
        if !inner.regions.is_hole((old, new + 1)) || new > number(self.layout.limit) {
            return Err(VmError::NoSpace);
        }
        if inner.regions.len() > inner.limits.regions {
            return Err(VmError::TooManyRegions);
        }
        let flags = inner.future.flags();
        if flags.contains(MapFlags::LOCKED) {
            inner.may_lock(new - old, MapFlags::empty())?;
        }
        let region = Region {
            prot: Prot::READ | Prot::WRITE,
            flags,
            guard: 0,
            anchor: 0,
            object: Object::Anonymous,
            touched: Touched::nothing(),
        };
        self.install(inner, (old, new), true, region)?;
        if flags.contains(MapFlags::LOCKED) {
            self.populate_locked(inner, (old, new));
        }
        Ok(())
    }
}

pub(crate) fn address(page: PageNumber) -> VirtAddr {
    VirtAddr::new(page << 12)
}
