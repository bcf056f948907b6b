//! A lock of one word that sleeps in the system when it must wait.
//!
//! States: 0 free, 1 held, 2 held and somebody may sleep (Drepper, "Futexes are tricky", 2011).
//! Left out: fairness, and poisoning: whoever stops inside, stops the program.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::system::System;

/// Held while it lives.
pub struct Held<'a, S: System>(&'a Lock, &'a S);

/// The lock.
#[derive(Default)]
pub struct Lock(AtomicU32);

impl Lock {
    /// A free lock.
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Takes the lock, waiting as long as it takes.
    #[inline]
    pub fn take<'a, S: System>(&'a self, system: &'a S) -> Held<'a, S> {
        self.raw_take(system);
        Held(self, system)
    }

    /// Takes the lock without a guard: the fork handler holds it across the call.
    #[inline]
    pub fn raw_take<S: System>(&self, system: &S) {
        if self.0.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.wait(system);
        }
    }

    #[cold]
    fn wait<S: System>(&self, system: &S) {
        for _ in 0..100 {
            core::hint::spin_loop();
            if self.0.load(Ordering::Relaxed) == 0
                && self.0.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                return;
            }
        }
        while self.0.swap(2, Ordering::Acquire) != 0 {
            system.wait(&self.0, 2);
        }
    }

    /// Frees the lock that [`Lock::raw_take`] took.
    #[inline]
    pub fn raw_release<S: System>(&self, system: &S) {
        if self.0.swap(0, Ordering::Release) == 2 {
            system.wake(&self.0);
        }
    }

    /// Frees the lock in a child after fork, where nobody else can wait for it.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Release);
    }
}

impl<S: System> Drop for Held<'_, S> {
    #[inline]
    fn drop(&mut self) {
        self.0.raw_release(self.1);
    }
}
