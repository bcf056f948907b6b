//! CPUs, sets of them, and staying on one.
#![allow(unsafe_code)] // declares and implements the unsafe trait `Cpus`

use core::fmt;
use core::marker::PhantomData;

use crate::shim::{AtomicU64, Ordering};

/// The most CPUs that any structure here is prepared for.
pub const MAX_CPUS: usize = 256;

/// The number of a CPU, dense from 0. Below [`MAX_CPUS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CpuId(u16);

impl CpuId {
    /// The CPU that booted.
    pub const BOOT: Self = Self(0);

    /// CPU `index`, if that is below [`MAX_CPUS`].
    #[inline]
    pub const fn new(index: usize) -> Option<Self> {
        if index < MAX_CPUS { Some(Self(index as u16)) } else { None }
    }

    /// The number as an index.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Debug for CpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cpu{}", self.0)
    }
}

/// A set of CPUs that several CPUs read and change at once.
///
/// Every operation is sequentially consistent, because the protocol for TLB shootdown needs it:
/// write the page-table entry, advance the generation, *then* read the set; while a CPU that
/// switches to an address space first joins the set and then reads the generation and the tables.
#[derive(Debug, Default)]
pub struct CpuSet([AtomicU64; MAX_CPUS / 64]);

impl CpuSet {
    /// The empty set.
    #[cfg(not(all(loom, test)))]
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; MAX_CPUS / 64])
    }

    /// Adds `cpu`.
    pub fn insert(&self, cpu: CpuId) {
        self.0[cpu.index() / 64].fetch_or(1 << (cpu.index() % 64), Ordering::SeqCst);
    }

    /// Removes `cpu`.
    pub fn remove(&self, cpu: CpuId) {
        self.0[cpu.index() / 64].fetch_and(!(1 << (cpu.index() % 64)), Ordering::SeqCst);
    }

    /// Is `cpu` in the set?
    pub fn contains(&self, cpu: CpuId) -> bool {
        self.0[cpu.index() / 64].load(Ordering::SeqCst) & (1 << (cpu.index() % 64)) != 0
    }

    /// The CPUs in the set, lowest first, each word of 64 read at one moment.
    pub fn iter(&self) -> impl Iterator<Item = CpuId> + '_ {
        self.0.iter().enumerate().flat_map(|(word, bits)| {
            let mut rest = bits.load(Ordering::SeqCst);
            core::iter::from_fn(move || {
                if rest == 0 {
                    return None;
                }
                let bit = rest.trailing_zeros() as usize;
                rest &= rest - 1;
                Some(CpuId((word * 64 + bit) as u16))
            })
        })
    }
}

/// The host kernel's answer to "which CPU runs me, and keep me there".
///
/// Budget: `enter` and `leave` lie on every allocation fast path; two or three plain instructions
/// each, no atomic read-modify-write, no interrupt flag.
///
/// # Safety
/// `enter` returns the number of the executing CPU, below [`limit`](Self::limit); until the
/// matching `leave` the caller stays on that CPU and no other context on the same CPU calls
/// `enter` (*pin-exclusive* in the crate's head). Calls nest.
pub unsafe trait Cpus {
    /// One more than the highest [`CpuId::index`] that `enter` ever returns; constant.
    fn limit(&self) -> usize;

    /// Stay on this CPU from now on. Use [`pin`](Self::pin).
    fn enter(&self) -> CpuId;

    /// The end of the matching [`enter`](Self::enter).
    ///
    /// # Safety
    /// Called once for each `enter`, on the same CPU, by the same context.
    unsafe fn leave(&self);

    /// Stay on this CPU while the guard lives.
    #[inline]
    fn pin(&self) -> Pinned<'_, Self> {
        Pinned { id: self.enter(), cpus: self, _not_send: PhantomData }
    }
}

// SAFETY: a reference forwards to an implementer that keeps the contract.
unsafe impl<C: Cpus + ?Sized> Cpus for &C {
    #[inline]
    fn limit(&self) -> usize {
        (**self).limit()
    }
    #[inline]
    fn enter(&self) -> CpuId {
        (**self).enter()
    }
    #[inline]
    unsafe fn leave(&self) {
        // SAFETY: the caller's promise, handed on.
        unsafe { (**self).leave() }
    }
}

/// Proof that the holder stays on one CPU, pin-exclusively. Neither `Send` nor `Sync`.
#[must_use = "the pin ends when the guard is dropped"]
pub struct Pinned<'a, C: Cpus + ?Sized> {
    cpus: &'a C,
    id: CpuId,
    _not_send: PhantomData<*mut ()>,
}

impl<C: Cpus + ?Sized> Pinned<'_, C> {
    /// The CPU that the holder stays on.
    #[inline]
    pub fn cpu(&self) -> CpuId {
        self.id
    }
}

impl<C: Cpus + ?Sized> Drop for Pinned<'_, C> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: this guard came from one `enter`, and cannot leave its context (not `Send`).
        unsafe { self.cpus.leave() }
    }
}

/// A machine with one CPU and a kernel that is never pre-empted: pinning costs nothing.
///
/// A type for early boot and for hosts that use a structure from one thread only.
#[derive(Clone, Copy, Debug)]
pub struct Uniprocessor(());

impl Uniprocessor {
    /// Claims that the structure this is given to will only ever be used from one context at a
    /// time.
    ///
    /// # Safety
    /// All uses of every structure that holds this value come from one thread or one CPU, never
    /// from interrupt handlers, and are never pre-empted by another user of the structure.
    pub const unsafe fn new() -> Self {
        Self(())
    }
}

// SAFETY: one context only, promised by whoever called `Uniprocessor::new`.
unsafe impl Cpus for Uniprocessor {
    #[inline]
    fn limit(&self) -> usize {
        1
    }
    #[inline]
    fn enter(&self) -> CpuId {
        CpuId::BOOT
    }
    #[inline]
    unsafe fn leave(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn a_cpu_set_lists_what_was_inserted() {
        let set = CpuSet::default();
        for index in [0, 5, 63, 64, 255] {
            set.insert(CpuId::new(index).unwrap());
        }
        set.remove(CpuId::new(5).unwrap());
        assert_eq!(set.iter().map(CpuId::index).collect::<Vec<_>>(), [0, 63, 64, 255]);
        assert!(set.contains(CpuId::new(64).unwrap()) && !set.contains(CpuId::new(5).unwrap()));
        assert!(CpuId::new(MAX_CPUS).is_none());
    }
}
