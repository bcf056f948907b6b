#![doc = include_str!("../README.md")]
//!
//! # Inside
//!
//! Which frame is behind this page, and which CPUs remember? The nouns:
//!
//! - [`Format`]: how an entry is written down: [`X86_64`] with four or five levels, [`Aarch64`]
//!   with 4 KiB pages, [`RiscV`] with three, four or five levels; the number is a run-time value.
//!   What each machine needs beyond its encoding stands in the head of its file.
//! - [`Platform`]: what the host kernel supplies: memory for tables, a lock, and the flush.
//! - [`PageTable`]: a tree, its lock, and the record of who may remember it ([`SpaceTlb`]).
//! - [`Cursor`]: a locked range of a tree. All reading and changing goes through it; it remembers
//!   the way down, so that many operations cost one walk.
//! - [`FlushBatch`]: the duty to flush, and then to release. A frame that leaves a tree goes
//!   through a batch and reaches [`Platform::release`] only after every CPU has forgotten it.
//! - [`Entry`]: what stands behind one page: a leaf, or an absent word that the caller owns.
//!
//! # Invariants
//!
//! *entries-are-atomics*: hardware walks and writes this memory at any moment (accessed and dirty
//! bits), so an entry is reached as an atomic word through the [`PhysMap`](pagoda_addr::PhysMap),
//! and nothing here ever makes a reference to a table. A change that must not lose a bit that the
//! hardware sets meanwhile is an exchange, never a read and a write.
//!
//! *flush-before-release*: a frame or table that was reachable is released only by a batch, after
//! its flush. Order of a flush: write the entry, advance the generation, then read the set of CPUs;
//! a CPU that switches to the space joins the set first and reads the tables afterwards, so one of
//! the two always sees the other.
//!
//! *no-hole*: a large page is split by filling a table that nobody can reach yet and exchanging one
//! entry; there is no moment in which a translation is missing. Where the format demands
//! break-before-make, there is such a moment, with the lock held.
//!
//! *gains-are-told*: what appears in the tables, or allows more than before, needs no flush on
//! machines where a fault forgets. On the others the cursor collects it, and tells it to
//! [`Platform::gained`] when it is dropped.
//!
//! *prepare-commit*: an operation first allocates every table that it may need, aside, and then
//! cannot fail. An error leaves the tree as it was.
//!
//! *upper-half-shared*: the top-level entries of the kernel half are made before the first table
//! that shares them, and never change afterwards.
//!
//! # Lock order
//!
//! One lock for each tree ([`Platform::Lock`]), taken by [`PageTable::cursor`]; below it only what
//! [`Platform::alloc_table`] takes. A batch flushes early when it is full, hence possibly with the
//! lock held: see the duties of [`Platform`].
//!
//! # Left out
//!
//! Several cursors in one tree at a time; process-context identifiers (the generation is there for
//! them); changing the size of a live mapping upwards; policy of any kind.
#![no_std]
#![deny(unsafe_code)]

mod aarch64;
mod batch;
mod cursor;
mod entry;
mod error;
mod flags;
mod format;
mod gains;
mod platform;
mod riscv;
mod size;
mod slot;
mod spare;
mod stack;
mod table;
mod x86_64;

pub use aarch64::Aarch64;
pub use batch::FlushBatch;
pub use cursor::{Cursor, Fate, Rewritten};
pub use entry::{AbsentWord, Entry, Leaf};
pub use error::{MapError, OutOfFrames};
pub use flags::PageFlags;
pub use format::{Decoded, Format, Remembers, Rewrite};
pub use platform::{FlushRange, Gain, Platform, Released, SpaceTlb};
pub use riscv::RiscV;
pub use size::PageSize;
pub use table::PageTable;
pub use x86_64::X86_64;

/// Entries in a table: every format here has 9 bits of index for each level.
pub const ENTRIES: usize = 512;
/// The most levels that any format has.
pub const MAX_LEVELS: usize = 5;
