//! Which CPUs take part in something that changes, so that those who change it know whom to tell.
//!
//! The one use so far is an address space: a CPU that loads its page table is a member, may remember
//! what it read in it, and has to be told what to forget.
//!
//! # Invariants
//!
//! *one-sees-the-other*: a change is written first, then [`advance`](Members::advance)d, then the set
//! is read; a CPU first [`join`](Members::join)s, and then reads. Of the two, either the one who
//! changes finds the CPU in the set (and tells it), or the CPU finds the change. And a CPU that
//! kept something from an earlier time finds the generation advanced, or is found.
//!
//! These are stores before reads of other locations, so there is a fence in between on each side.

use crate::shim::{AtomicU64, Ordering, fence};
use crate::{CpuId, CpuSet};

/// A set of CPUs and a count of the changes that they had to be told.
#[derive(Debug, Default)]
pub struct Members {
    cpus: CpuSet,
    generation: AtomicU64,
}

impl Members {
    /// No member.
    #[cfg(not(all(loom, test)))]
    pub const fn new() -> Self {
        Self { cpus: CpuSet::new(), generation: AtomicU64::new(0) }
    }

    /// The members. To be read after the change was written and the generation advanced.
    #[inline]
    pub fn cpus(&self) -> &CpuSet {
        &self.cpus
    }

    /// `cpu` is a member, and may read what others change, from now on. Returns the generation: all
    /// changes up to it are seen by what `cpu` reads afterwards.
    #[inline]
    pub fn join(&self, cpu: CpuId) -> u64 {
        self.cpus.insert(cpu);
        fence(Ordering::SeqCst);
        self.generation.load(Ordering::Acquire)
    }

    /// `cpu` remembers nothing any more, or keeps it only until it compares the generation at its
    /// next [`join`](Self::join).
    #[inline]
    pub fn leave(&self, cpu: CpuId) {
        self.cpus.remove(cpu);
    }

    /// Counts the changes.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Between writing a change and reading the set: the new generation.
    #[inline]
    pub fn advance(&self) -> u64 {
        fence(Ordering::SeqCst);
        let generation = self.generation.fetch_add(1, Ordering::SeqCst) + 1;
        fence(Ordering::SeqCst);
        generation
    }
}
