//! Spinning raw locks.
#![allow(unsafe_code)] // implements the unsafe trait `lock_api::RawMutex`

use core::hint::spin_loop;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, Ordering};

use lock_api::RawMutex;

/// The word of a lock: the machine's, or loom's in a test.
pub(crate) trait Flag {
    fn exchange(&self, from: bool, to: bool, done: Ordering, not: Ordering) -> bool;
    fn load(&self, order: Ordering) -> bool;
    fn store(&self, value: bool, order: Ordering);
    /// Something else may run meanwhile.
    fn relax();
}

impl Flag for AtomicBool {
    #[inline]
    fn exchange(&self, from: bool, to: bool, done: Ordering, not: Ordering) -> bool {
        self.compare_exchange(from, to, done, not).is_ok()
    }
    #[inline]
    fn load(&self, order: Ordering) -> bool {
        self.load(order)
    }
    #[inline]
    fn store(&self, value: bool, order: Ordering) {
        self.store(value, order);
    }
    #[inline]
    fn relax() {
        spin_loop();
    }
}

/// Test and set, and while it is set, only test.
#[inline]
pub(crate) fn lock<F: Flag>(flag: &F) {
    while !try_lock(flag) {
        while flag.load(Ordering::Relaxed) {
            F::relax();
        }
    }
}

#[inline]
pub(crate) fn try_lock<F: Flag>(flag: &F) -> bool {
    flag.exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
}

#[inline]
pub(crate) fn unlock<F: Flag>(flag: &F) {
    flag.store(false, Ordering::Release);
}

/// A test-and-test-and-set lock. Unfair; one byte; two instructions when nobody contends.
#[derive(Debug, Default)]
pub struct RawSpin(AtomicBool);

// SAFETY: `lock` and a successful `try_lock` set the flag from clear to set with acquire ordering,
// and only the holder clears it, with release ordering: at most one holder at a time.
unsafe impl RawMutex for RawSpin {
    #[allow(clippy::declare_interior_mutable_const)] // the trait asks for exactly this
    const INIT: Self = Self(AtomicBool::new(false));
    type GuardMarker = lock_api::GuardNoSend;

    #[inline]
    fn lock(&self) {
        lock(&self.0);
    }

    #[inline]
    fn try_lock(&self) -> bool {
        try_lock(&self.0)
    }

    #[inline]
    unsafe fn unlock(&self) {
        unlock(&self.0);
    }

    #[inline]
    fn is_locked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a CPU does for others while it waits for a lock. A static function, so that a lock stays as
/// small as it was.
pub trait SpinHook {
    /// Called again and again while the caller waits, at least once before it waits longer. It
    /// holds whatever the caller holds besides: it takes no lock (other than by `try_lock`),
    /// allocates nothing, and touches nothing that the caller may be in the middle of changing.
    fn spin();
}

/// The raw lock `R`, whose waiters serve others meanwhile (`H`).
///
/// For a lock that its holder may keep while it waits for other CPUs: a page table's, that of a full
/// flush batch. If A holds it and waits until B has flushed, and B waits for the lock with
/// interrupts off, both wait for ever, unless B looks into its queue of requests as it spins.
///
/// Under `H::spin` the waiter owns nothing of this lock. As unfair as `R`: who serves long gets the
/// lock later.
#[derive(Debug)]
pub struct Serving<R, H>(R, PhantomData<fn() -> H>);

/// [`Serving`] over [`RawSpin`]: one byte.
pub type ServingSpin<H> = Serving<RawSpin, H>;

// SAFETY: mutual exclusion is `R`'s: the lock is held only after its `try_lock` succeeded.
unsafe impl<R: RawMutex, H: SpinHook> RawMutex for Serving<R, H> {
    #[allow(clippy::declare_interior_mutable_const)] // the trait asks for exactly this
    const INIT: Self = Self(R::INIT, PhantomData);
    type GuardMarker = R::GuardMarker;

    #[inline]
    fn lock(&self) {
        while !self.0.try_lock() {
            // At least once for each failure: an `R` that fails by chance must not starve others.
            loop {
                H::spin();
                spin_loop();
                if !self.0.is_locked() {
                    break;
                }
            }
        }
    }

    #[inline]
    fn try_lock(&self) -> bool {
        self.0.try_lock()
    }

    #[inline]
    unsafe fn unlock(&self) {
        // SAFETY: the caller holds the lock, as this function demands too.
        unsafe { self.0.unlock() };
    }

    #[inline]
    fn is_locked(&self) -> bool {
        self.0.is_locked()
    }
}
