//! Free lists that say nothing to whoever reads free memory, and obey nobody who writes to it.
//!
//! Without it, too, nothing of the heap's lies in a free small block, and the links in a larger one
//! are under a checksum: accidents are found. An attacker could compute that checksum, and could know
//! beforehand which block comes next. With a secret ([`Heap::harden`]) the links are encoded with it
//! and with their own address, and objects come out of their slabs in a random order. (What a CPU has
//! freed it gets again first: magazines are not shuffled.)

use core::sync::atomic::Ordering;

use lock_api::RawMutex;
use pagoda_sync::Cpus;

use crate::{Heap, PageSource, Report};

/// Random numbers, or none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// None for ever.
    pub(crate) const fn none() -> Self {
        Self(0)
    }

    /// The next number, if there are any. (Xorshift, Marsaglia 2003.)
    #[inline]
    pub(crate) fn throw(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Some(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) as usize >> 8)
    }
}

impl<S: PageSource, C: Cpus, R: RawMutex, P: Report> Heap<S, C, R, P> {
    /// Hardens the free lists with a secret: a random number that nobody else knows. Blocks that are
    /// out stay as they are. At any time; once is enough.
    pub fn harden(&self, secret: u64) {
        let key = secret.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) as usize;
        let mut state = self.state.lock();
        state.pool.set_key(key);
        // Never zero.
        state.dice = Dice(secret ^ self.taken.load(Ordering::Relaxed) as u64 | 1 << 63);
    }
}
