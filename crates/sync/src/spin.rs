//! A spinning raw lock.
#![allow(unsafe_code)] // implements the unsafe trait `lock_api::RawMutex`

use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, Ordering};

/// A test-and-test-and-set lock. Unfair; one byte; two instructions when nobody contends.
#[derive(Debug, Default)]
pub struct RawSpin(AtomicBool);

// SAFETY: `lock` and a successful `try_lock` set the flag from clear to set with acquire ordering,
// and only the holder clears it, with release ordering: at most one holder at a time.
unsafe impl lock_api::RawMutex for RawSpin {
    #[allow(clippy::declare_interior_mutable_const)] // the trait asks for exactly this
    const INIT: Self = Self(AtomicBool::new(false));
    type GuardMarker = lock_api::GuardNoSend;

    #[inline]
    fn lock(&self) {
        while !self.try_lock() {
            while self.0.load(Ordering::Relaxed) {
                spin_loop();
            }
        }
    }

    #[inline]
    fn try_lock(&self) -> bool {
        self.0.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[inline]
    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Release);
    }

    #[inline]
    fn is_locked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
