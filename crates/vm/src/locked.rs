//! Locked memory: `mlock` and its kin.
//!
//! Nothing but lazily freed memory is ever reclaimed here, so locking fetches pages, counts them
//! against the limit, and keeps what it says: locked pages cannot be advised away.

use pagoda_addr::VirtAddr;
use pagoda_paging::Format;

use crate::region::{Region, Window};
use crate::space::Inner;
use crate::{Access, AddressSpace, FaultError, Locking, MapFlags, Prot, VmError, VmPlatform};

impl<F: Format, P: VmPlatform> AddressSpace<F, P> {
    /// Keeps the range in memory from now on, or not any more. Where the range has a hole, the part
    /// before the hole is only marked and [`VmError::NotMapped`] returned, as on Linux. More than the
    /// limit is [`VmError::OutOfMemory`], anything under a limit of zero [`VmError::LockDenied`].
    pub fn set_locked(&self, addr: VirtAddr, len: u64, locking: Locking) -> Result<(), VmError> {
        let len = len.checked_add(addr.page_offset()).ok_or(VmError::Invalid)?;
        let (window, beyond) = self.clamped(addr, len).ok_or(VmError::Invalid)?;
        let mut guard = self.change();
        let inner = &mut *guard;
        if locking != Locking::Off {
            inner.may_ask_to_lock()?;
            let again = inner.regions.mapped(window, Region::is_locked);
            let more = (window.1 - window.0).saturating_sub(again);
            inner.may_lock(more, MapFlags::empty()).map_err(|_| VmError::OutOfMemory)?;
        }
        if len == 0 {
            return Ok(());
        }
        let end = inner.regions.run(window).ok_or(VmError::NotMapped)?;
        let run = (window.0, end);
        self.mark(inner, run, Locking::FLAGS, locking.flags())?;
        if end < window.1 || beyond {
            return Err(VmError::NotMapped);
        }
        if locking == Locking::Now {
            for page in run.0..run.1 {
                let prot = inner.regions.covering(page).map(|entry| entry.value.prot);
                let prot = prot.unwrap_or_default();
                // What cannot be had counts as not mapped.
                let access = if prot.contains(Prot::WRITE) { Access::Write } else { Access::Read };
                match self.fault_in(inner, page, access) {
                    Ok(_) => {}
                    Err(FaultError::OutOfMemory) => return Err(VmError::OutOfMemory),
                    Err(_) => return Err(VmError::NotMapped),
                }
            }
        }
        Ok(())
    }

    /// Locks (or unlocks) all that is mapped, if `now` says so, and all that will be. What cannot be
    /// touched is passed over.
    pub fn set_all_locked(&self, now: Option<Locking>, future: Locking) -> Result<(), VmError> {
        let mut guard = self.change();
        let inner = &mut *guard;
        let now_locks = now.is_some_and(|now| now != Locking::Off);
        if now_locks || future != Locking::Off {
            inner.may_ask_to_lock()?;
        }
        if now_locks && inner.stats.mapped > inner.limits.locked >> 12 {
            return Err(VmError::OutOfMemory);
        }
        inner.future = future;
        let Some(now) = now else { return Ok(()) };
        let mut at = 0;
        while let Some(entry) = inner.regions.find(at) {
            let part = (entry.start, entry.end);
            at = entry.end;
            // Nothing is cut, so only records for merging could be missing.
            let marked = self.mark(inner, part, Locking::FLAGS, now.flags());
            if marked.is_ok() && now == Locking::Now {
                self.populate_locked(inner, part);
            }
        }
        Ok(())
    }

    /// Locked memory that is new, or may be written from now on, gets its pages at once, as on
    /// Linux: the first access shall not wait for one. What cannot be had, and what lies behind it in
    /// the same region, will be when it is touched.
    #[cold]
    pub(crate) fn populate_locked(&self, inner: &mut Inner<P>, part: Window) {
        let mut page = part.0;
        while page < part.1 {
            let Some(entry) = inner.regions.covering(page) else { return };
            let (region, end) = (&entry.value, entry.end);
            let write = region.prot.contains(Prot::WRITE);
            let access = if write { Access::Write } else { Access::Read };
            let fetch = region.flags & Locking::FLAGS == MapFlags::LOCKED;
            let passed = !fetch || self.fault_in(inner, page, access).is_err();
            page = if passed { end } else { page + 1 };
        }
    }

    /// Gives the regions of `part`, of the flags in `mask`, those in `to`.
    pub(crate) fn mark(
        &self,
        inner: &mut Inner<P>,
        part: Window,
        mask: MapFlags,
        to: MapFlags,
    ) -> Result<(), VmError> {
        let adds = inner.regions.change_adds(part, |region| region.flags & mask != to);
        if adds != 0 && inner.regions.len() + adds > inner.limits.regions {
            return Err(VmError::TooManyRegions);
        }
        inner.regions.reserve(&[part])?;
        inner.count_out(part);
        inner.regions.change(part, |region| {
            let differs = region.flags & mask != to;
            region.flags = (region.flags - mask) | to;
            differs
        });
        inner.count_in(part);
        Ok(())
    }
}

impl<P: VmPlatform> Region<P> {
    fn is_locked(&self) -> bool {
        self.flags.contains(MapFlags::LOCKED)
    }
}

impl<P: VmPlatform> Inner<P> {
    /// A limit of zero forbids to ask.
    fn may_ask_to_lock(&self) -> Result<(), VmError> {
        if self.limits.locked == 0 { Err(VmError::LockDenied) } else { Ok(()) }
    }

    /// May `pages` more be locked? `asked`: what the caller asked for by itself.
    pub(crate) fn may_lock(&self, pages: u64, asked: MapFlags) -> Result<(), VmError> {
        if asked.contains(MapFlags::LOCKED) {
            self.may_ask_to_lock()?;
        }
        let locked = self.stats.locked.saturating_add(pages);
        if locked > self.limits.locked >> 12 { Err(VmError::LockLimit) } else { Ok(()) }
    }
}
