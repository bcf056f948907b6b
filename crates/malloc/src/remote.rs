//! # How does a block come home that another thread frees?
//!
//! Each slab has one word to which any thread may push a chain of freed blocks. Whoever pushes to an
//! empty word *announces* the slab: puts it on the stack of its owner, who empties the word when it
//! takes the slab from the stack, and at no other time. So the owner may list and forget its slabs as it
//! likes, without an atomic step: all it must look at is its stack.
//!
//! The word packs: the chain's first block (number + 1, 0 = none), the chain's length, the next slab on
//! the stack (unit number + 1, 0 = none), and the fork generation.
//!
//! Invariant *one-announcer*: only the push that finds the word empty puts the slab on the stack. Whoever
//! takes the stack (its owner, or who sweeps for it: [`crate::sweep`]) has all slabs on it for itself, and
//! empties the word of each or puts it back.
//!
//! Invariant *own-generation*: a chain of an older generation was pushed before a fork by threads that
//! the child does not have; the links inside its blocks may not have been copied. It counts as empty
//! (its blocks are lost to the child), and the stack that it was on is gone.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};

#[cfg(not(loom))]
use core::sync::atomic::{AtomicU64, Ordering};

/// What was pushed: first block (number + 1, 0 = none) and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Number of the first block + 1; 0 = none.
    pub first: u32,
    /// Blocks in the chain.
    pub count: u32,
}

impl Chain {
    /// No blocks.
    pub const NONE: Self = Self { first: 0, count: 0 };
}

/// What a push came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The caller must now announce the slab to its owner, whose stack began with the `top` that it gave.
    pub announce: bool,
    /// Blocks in the word now.
    pub count: u32,
}

/// The word.
pub struct Remote(AtomicU64);

/// Bits of a block's number, and of a count: a slab has at most 1024 blocks.
const BLOCK_BITS: u32 = 11;
/// Bits of a unit's number.
pub const UNIT_BITS: u32 = 26;
const NEXT: u32 = 2 * BLOCK_BITS;
const GENERATION: u32 = NEXT + UNIT_BITS;

const _: () = assert!(GENERATION + 16 == u64::BITS);

const fn low(word: u64, from: u32, bits: u32) -> u32 {
    (word >> from) as u32 & ((1 << bits) - 1)
}

fn pack(chain: Chain, next: u32, generation: u16) -> u64 {
    u64::from(chain.first)
        | u64::from(chain.count) << BLOCK_BITS
        | u64::from(next) << NEXT
        | u64::from(generation) << GENERATION
}

fn unpack(word: u64, generation: u16) -> (Chain, u32) {
    if (word >> GENERATION) as u16 != generation {
        return (Chain::NONE, 0);
    }
    let chain = Chain { first: low(word, 0, BLOCK_BITS), count: low(word, BLOCK_BITS, BLOCK_BITS) };
    (chain, low(word, NEXT, UNIT_BITS))
}

impl Remote {
    /// An empty word of generation 0.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// An empty word of generation 0.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Empties the word of a slab that nobody else knows.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Pushes a chain. `link` is told, possibly several times, what must follow the chain's last
    /// block.
    pub fn push(
        &self,
        chain: Chain,
        generation: u16,
        top: u32,
        mut link: impl FnMut(u32),
    ) -> Pushed {
        let mut old = self.0.load(Ordering::Relaxed);
        loop {
            let (behind, next) = unpack(old, generation);
            link(behind.first);
            let announce = behind.count == 0;
            let all = Chain { first: chain.first, count: behind.count + chain.count };
            let word = pack(all, if announce { top } else { next }, generation);
            // Release: the links must be seen by the owner, through whoever announced the slab.
            match self.0.compare_exchange_weak(old, word, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Pushed { announce, count: all.count },
                Err(now) => old = now,
            }
        }
    }

    /// How many blocks are there, and the next slab of the stack. Only whoever took the stack that this
    /// one is on.
    pub fn look(&self, generation: u16) -> (u32, u32) {
        let (chain, next) = unpack(self.0.load(Ordering::Acquire), generation);
        (chain.count, next)
    }

    /// Says what follows the slab on its owner's stack. Only whoever must announce it.
    pub fn set_next(&self, next: u32, generation: u16) {
        let mut old = self.0.load(Ordering::Relaxed);
        loop {
            let word = pack(unpack(old, generation).0, next, generation);
            match self.0.compare_exchange_weak(old, word, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => old = now,
            }
        }
    }

    /// Takes everything, and the next slab of the stack. Only whoever just took this one from it.
    pub fn take(&self, generation: u16) -> (Chain, u32) {
        unpack(self.0.swap(pack(Chain::NONE, 0, generation), Ordering::Acquire), generation)
    }
}
