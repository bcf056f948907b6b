//! # How does a block come home that another thread frees?
//!
//! Each slab has one word to which any thread may push a chain of freed blocks, and which the owner
//! empties. The word packs: the chain's first block (number + 1, 0 = none), the chain's length,
//! whether the owner still looks at the slab by itself, and the fork generation.
//!
//! | standing | the owner | who pushes |
//! |---|---|---|
//! | `Listed` | comes by when it needs blocks | only pushes |
//! | `Full` | has forgotten the slab | changes to `Announced`, then tells the owner |
//! | `Announced` | will find the slab on its stack | only pushes |
//!
//! Invariant *one-announcer*: only the push that changes `Full` to `Announced` may put the slab on the
//! owner's stack, and only the owner changes it back, after it took the slab from the stack.
//!
//! Invariant *own-generation*: a chain of an older generation was pushed before a fork by threads that
//! the child does not have; the links inside its blocks may not have been copied. It counts as empty
//! (its blocks are lost to the child), and `Announced` of an older generation counts as `Full`.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};

#[cfg(not(loom))]
use core::sync::atomic::{AtomicU64, Ordering};

/// Who looks after the slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The owner looks at it by itself.
    Listed,
    /// The owner must be told.
    Full,
    /// The owner has been told, or is just being told.
    Announced,
}

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

/// The word.
pub struct Remote(AtomicU64);

const fn pack(chain: Chain, standing: Standing, generation: u16) -> u64 {
    let standing = match standing {
        Standing::Listed => 0,
        Standing::Full => 1,
        Standing::Announced => 2,
    };
    (chain.first & 0xffff) as u64
        | ((chain.count & 0xffff) as u64) << 16
        | standing << 32
        | (generation as u64) << 48
}

fn unpack(word: u64, generation: u16) -> (Chain, Standing) {
    let chain = Chain { first: word as u32 & 0xffff, count: (word >> 16) as u32 & 0xffff };
    let current = (word >> 48) as u16 == generation;
    let standing = match (word >> 32) & 3 {
        0 => Standing::Listed,
        2 if current => Standing::Announced,
        _ => Standing::Full,
    };
    (if current { chain } else { Chain::NONE }, standing)
}

impl Remote {
    /// An empty, listed word of generation 0.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// An empty, listed word of generation 0.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Sets the word of a slab that nobody else knows.
    pub fn reset(&self, standing: Standing, generation: u16) {
        self.0.store(pack(Chain::NONE, standing, generation), Ordering::Relaxed);
    }

    /// Pushes a chain. `link` is told, possibly several times, what must follow the chain's last
    /// block. True: the caller must now announce the slab to its owner.
    pub fn push(&self, chain: Chain, generation: u16, mut link: impl FnMut(u32)) -> bool {
        let mut old = self.0.load(Ordering::Relaxed);
        loop {
            let (behind, standing) = unpack(old, generation);
            link(behind.first);
            let count = behind.count + chain.count;
            let (new, announce) = match standing {
                Standing::Full => (Standing::Announced, true),
                other => (other, false),
            };
            let word = pack(Chain { first: chain.first, count }, new, generation);
            // Release: the links must be seen by the owner. Acquire on success orders a later
            // announcement after what made the slab `Full`.
            match self.0.compare_exchange_weak(old, word, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return announce,
                Err(now) => old = now,
            }
        }
    }

    /// Takes everything; the slab is `Listed` from here on. Only the owner, and not while the slab is
    /// `Announced` and still on the way.
    pub fn take(&self, generation: u16) -> Chain {
        if self.0.load(Ordering::Relaxed) == pack(Chain::NONE, Standing::Listed, generation) {
            return Chain::NONE;
        }
        let none = pack(Chain::NONE, Standing::Listed, generation);
        unpack(self.0.swap(none, Ordering::Acquire), generation).0
    }

    /// Changes an empty word from `Listed` to `Full`. False: something was pushed.
    pub fn fill(&self, generation: u16) -> bool {
        let old = self.0.load(Ordering::Relaxed);
        let (chain, standing) = unpack(old, generation);
        if chain.count != 0 || standing != Standing::Listed {
            return false;
        }
        let full = pack(Chain::NONE, Standing::Full, generation);
        self.0.compare_exchange(old, full, Ordering::Release, Ordering::Relaxed).is_ok()
    }

    /// Changes the word from `Full` to `Listed`. False: somebody is announcing it.
    pub fn reopen(&self, generation: u16) -> bool {
        let old = self.0.load(Ordering::Relaxed);
        if unpack(old, generation).1 != Standing::Full {
            return false;
        }
        let listed = pack(Chain::NONE, Standing::Listed, generation);
        self.0.compare_exchange(old, listed, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }
}
