//! Changing what is there: `protect`, `advise`; `residency`.

use pagoda_addr::VirtAddr;
use pagoda_paging::{Entry, FlushBatch, Format, PageFlags};

use crate::fault::FaultDone;
use crate::region::{Object, Region, Window};
use crate::space::{ANONYMOUS, Inner, leaf_flags, may_be_written, number, page_count, pages};
use crate::tree::Entry as Interval;
use crate::{Access, AddressSpace, Advice, FaultError, MapFlags, Prot, VmError, VmPlatform};

impl<F: Format, P: VmPlatform> AddressSpace<F, P> {
    /// Changes the protection. Where the range has a hole, the part before the hole is changed and
    /// [`VmError::NotMapped`] returned, as on Linux.
    pub fn protect(&self, addr: VirtAddr, len: u64, prot: Prot) -> Result<(), VmError> {
        if addr.page_offset() != 0 {
            return Err(VmError::Invalid);
        }
        if len == 0 {
            return Ok(());
        }
        let (window, beyond) = self.clamped(addr, len).ok_or(VmError::NotMapped)?;
        let mut guard = self.change();
        let inner = &mut *guard;
        let end = inner.regions.run(window).ok_or(VmError::NotMapped)?;
        self.protect_run(inner, (window.0, end), prot)?;
        if end < window.1 || beyond { Err(VmError::NotMapped) } else { Ok(()) }
    }

    fn protect_run(&self, inner: &mut Inner<P>, window: Window, prot: Prot) -> Result<(), VmError> {
        // A part that may never be written ends the call, as on Linux; what lies before is changed.
        let never = |entry: &&Interval<Region<P>>| {
            prot.contains(Prot::WRITE) && entry.value.flags.contains(MapFlags::NEVER_WRITE)
        };
        let stop = inner.regions.within(window).find(never).map(|entry| entry.start);
        if let Some(at) = stop {
            if at > window.0 {
                self.protect_run(inner, (window.0, at), prot)?;
            }
            return Err(VmError::Denied);
        }
        let alone = inner.regions.covering(window.0);
        let alone = alone.filter(|entry| (entry.start, entry.end) == window);
        if let Some(entry) = alone {
            if entry.value.prot == prot {
                return Ok(());
            }
        }
        self.may_become(inner, window, prot)?;
        let adds = inner.regions.change_adds(window, |region| region.prot != prot);
        if adds != 0 && inner.regions.len() + adds > inner.limits.regions {
            return Err(VmError::TooManyRegions);
        }
        inner.regions.reserve(&[window])?;
        let mut batch = self.table.batch();
        let mut result = Ok(());
        let mut now_writable: Option<Window> = None;
        for entry in inner.regions.within(window) {
            let region = &entry.value;
            let part = (entry.start.max(window.0), entry.end.min(window.1));
            if entry.value.prot != prot && result.is_ok() {
                result = self.protect_leaves(region, part, prot, &mut batch);
            }
            let locked = !region.is_shared() && region.flags.contains(MapFlags::LOCKED);
            if locked && prot.contains(Prot::WRITE) && !region.prot.contains(Prot::WRITE) {
                now_writable = Some((now_writable.map_or(part.0, |before| before.0), part.1));
            }
        }
        batch.flush_now();
        result?;
        inner.count_out(window);
        inner.regions.change(window, |region| region.protect(prot));
        inner.count_in(window);
        if let Some(part) = now_writable {
            self.populate_locked(inner, part);
        }
        Ok(())
    }

    /// Limits and commit for private memory that becomes writable.
    fn may_become(&self, inner: &mut Inner<P>, window: Window, prot: Prot) -> Result<(), VmError> {
        let (mut data, mut counted) = (0, 0);
        for entry in inner.regions.within(window) {
            let part = entry.end.min(window.1) - entry.start.max(window.0);
            let region = &entry.value;
            if region.is_data_with(prot) && !region.is_data() {
                data += part;
            }
            if region.counts_with(prot) && !region.is_counted() {
                counted += part;
            }
        }
        if data != 0 && inner.stats.data.saturating_add(data) > inner.limits.data >> 12 {
            return Err(VmError::Limit);
        }
        if self.charge(inner, counted) { Ok(()) } else { Err(VmError::OutOfMemory) }
    }

    /// Gives the leaves the rights that `prot` allows now: writing to a private page only if it is
    /// the program's own and nobody else's for certain, and wanted (*copy-on-write*, *lazy*; others
    /// get it at the next fault).
    fn protect_leaves(
        &self,
        region: &Region<P>,
        part: Window,
        prot: Prot,
        batch: &mut FlushBatch<'_, P>,
    ) -> Result<(), VmError> {
        let Some(range) = pages(region.touched.within(part)).filter(|range| !range.is_empty())
        else {
            return Ok(());
        };
        let mut cursor = self.table.cursor(range).map_err(|_| VmError::OutOfRange)?;
        let (rights, writable) = (leaf_flags(prot), prot.contains(Prot::WRITE));
        let decide = |old: PageFlags| {
            let mut flags = rights | (old & PageFlags::KEPT);
            if writable && (region.is_shared() || may_be_written(old)) {
                flags |= PageFlags::WRITE;
            }
            flags
        };
        cursor.change_flags(range, batch, decide).map_err(|_| VmError::OutOfMemory)
    }

    /// Acts on what a program says about the use of a range. Holes are passed over and reported at
    /// the end ([`VmError::NotMapped`]), as on Linux.
    pub fn advise(&self, addr: VirtAddr, len: u64, advice: Advice) -> Result<(), VmError> {
        if addr.page_offset() != 0 {
            return Err(VmError::Invalid);
        }
        if len == 0 {
            return Ok(());
        }
        // Wrapping is the caller's mistake; what lies above the program's half is a hole.
        let (window, beyond) = self.clamped(addr, len).ok_or(VmError::Invalid)?;
        let mut guard = self.change();
        let inner = &mut *guard;
        let mut hole = beyond;
        let mut at = window.0;
        while at < window.1 {
            let Some(entry) = inner.regions.find(at).filter(|entry| entry.start < window.1) else {
                hole = true;
                break;
            };
            hole |= entry.start > at;
            let part = (entry.start.max(at), entry.end.min(window.1));
            at = part.1;
            if hole && matches!(advice, Advice::PopulateRead | Advice::PopulateWrite) {
                break;
            }
            self.advise_part(inner, part, advice)?;
        }
        if hole { Err(VmError::NotMapped) } else { Ok(()) }
    }

    /// `part` lies within one region.
    fn advise_part(
        &self,
        inner: &mut Inner<P>,
        part: Window,
        advice: Advice,
    ) -> Result<(), VmError> {
        let region = &inner.regions.covering(part.0).ok_or(VmError::NotMapped)?.value;
        let anonymous = matches!(region.object, Object::Anonymous);
        let locked = region.flags.contains(MapFlags::LOCKED);
        match advice {
            Advice::Hint | Advice::WillNeed => Ok(()),
            Advice::DontNeed
            | Advice::Free
            | Advice::Cold
            | Advice::PageOut
            | Advice::GuardInstall
                if locked =>
            {
                Err(VmError::Invalid)
            }
            Advice::Free if !anonymous => Err(VmError::Invalid),
            Advice::Free => self.free_lazily(inner, part),
            Advice::Cold => self.cool(inner, part),
            Advice::PageOut => self.page_out(inner, part),
            Advice::GuardInstall => self.install_guards(inner, part),
            Advice::GuardRemove if !region.touched.has_guards() => Ok(()),
            Advice::GuardRemove => self.remove_guards(part),
            Advice::DontNeed | Advice::DontNeedLocked if region.touched.has_guards() => {
                self.drop_between_guards(inner, part)
            }
            Advice::DontNeed | Advice::DontNeedLocked => self.drop_pages(inner, part),
            Advice::PopulateRead => self.populate(inner, part, Access::Read),
            Advice::PopulateWrite => self.populate(inner, part, Access::Write),
            Advice::Fork { inherit } => self.set(inner, part, MapFlags::DONT_FORK, !inherit),
            Advice::WipeOnFork { wipe: true } if !anonymous => Err(VmError::Invalid),
            Advice::WipeOnFork { wipe } => self.set(inner, part, MapFlags::WIPE_ON_FORK, wipe),
            Advice::Dump { include } => self.set(inner, part, MapFlags::DONT_DUMP, !include),
        }
    }

    fn set(
        &self,
        inner: &mut Inner<P>,
        part: Window,
        flag: MapFlags,
        on: bool,
    ) -> Result<(), VmError> {
        let to = if on { flag } else { MapFlags::empty() };
        self.mark(inner, part, flag, to)
    }

    fn populate(&self, inner: &mut Inner<P>, part: Window, access: Access) -> Result<(), VmError> {
        for page in part.0..part.1 {
            match self.fault_in(inner, page, access) {
                Ok(FaultDone::Mapped | FaultDone::Copied | FaultDone::Spurious) => {}
                Err(FaultError::Protection) => return Err(VmError::Invalid),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Lets go of the pages of the file with this [`key`](crate::FileObject::key) from index `from`
    /// up to `to`, wherever they are mapped here: the file has no such pages any more. With `own`,
    /// what the program wrote to private mappings goes as well. The next touch asks the file again.
    pub fn forget_object(&self, key: usize, (from, to): (u64, u64), own: bool) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let mut at = 0;
        while let Some(entry) = inner.regions.find(at) {
            at = entry.end;
            let region = &entry.value;
            if region.file().is_none_or(|file| file.key() != key) {
                continue;
            }
            // The region's pages by index: contiguous, by *anchor*.
            let first = region.index(entry.start);
            let low = from.max(first);
            let high = to.min(first.saturating_add(entry.pages()));
            if low >= high {
                continue;
            }
            let part = (entry.start + (low - first), entry.start + (high - first));
            if own {
                let guards = region.touched.has_guards();
                let dropped = if guards {
                    self.drop_between_guards(inner, part)
                } else {
                    self.drop_pages(inner, part)
                };
                debug_assert!(dropped.is_ok(), "nothing to split");
                continue;
            }
            let mut next = part.0;
            let of_file =
                |entry| matches!(entry, Entry::Mapped { flags, .. } if !flags.contains(ANONYMOUS));
            while let Some(page) = self.next_entry((next, part.1), of_file) {
                let dropped = self.drop_run(&mut inner.stats, (page, page + 1), false);
                debug_assert!(dropped.is_ok(), "nothing to split");
                next = page + 1;
            }
        }
    }

    /// Tells `each`, page by page from the first, whether the page is present. All of the range has
    /// to be mapped.
    pub fn residency(
        &self,
        addr: VirtAddr,
        len: u64,
        mut each: impl FnMut(bool),
    ) -> Result<(), VmError> {
        if addr.page_offset() != 0 {
            return Err(VmError::Invalid);
        }
        if len == 0 && addr <= self.layout.limit {
            return Ok(());
        }
        let window = self.checked(addr, len).ok_or(VmError::NotMapped)?;
        let inner = self.lock();
        if inner.regions.run(window) != Some(window.1) {
            return Err(VmError::NotMapped);
        }
        let range = pages(window).ok_or(VmError::NotMapped)?;
        let mut cursor = self.table.cursor(range).map_err(|_| VmError::NotMapped)?;
        for page in range.iter() {
            each(matches!(cursor.query(page), Entry::Mapped { .. }));
        }
        Ok(())
    }

    /// The pages of `len` bytes at `addr`, as far as they lie in the program's half, and whether
    /// there are others; none if they wrap.
    pub(crate) fn clamped(&self, addr: VirtAddr, len: u64) -> Option<(Window, bool)> {
        let rounded = len.checked_next_multiple_of(4096)?;
        let limit = number(self.layout.limit);
        let end = number(addr.align_down(4096).checked_add(rounded)?);
        Some(((number(addr).min(limit), end.min(limit)), end > limit))
    }

    /// The pages of `len` bytes at `addr`, if they do not wrap and lie in the program's half.
    pub(crate) fn checked(&self, addr: VirtAddr, len: u64) -> Option<Window> {
        let limit = number(self.layout.limit);
        let end = number(addr).checked_add(page_count(len))?;
        (end <= limit).then_some((number(addr), end))
    }
}
