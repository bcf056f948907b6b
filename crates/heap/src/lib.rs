#![doc = include_str!("../README.md")]
//!
//! # How it is built
//!
//! ```text
//! kalloc, kfree      each CPU:  magazines, an array of free blocks for each class
//!                               |  batches of up to 32
//! one lock each      shared:    depots, for each class
//!                               |
//! one lock           shared:    shelves (slabs of small blocks) --spans--> pool --> page source
//!                               middle blocks ----------------------------> pool
//!                               larger blocks: runs -----------------------------> page source
//! ```
//!
//! The nouns, each in its own file:
//!
//! - *block*: what `kalloc` gives. *Small* blocks (up to 1 KiB) are objects of a slab; *middle* ones
//!   (up to 8 KiB) and those without a class (up to 32 KiB, or oddly aligned) are cut from the pool;
//!   larger ones are *runs* of whole pages.
//! - *class*: one of 80 sizes of small and middle blocks.
//! - *magazine*: free blocks of one class that one CPU alone touches.
//! - *depot*: batches of free blocks of one class between the CPUs.
//! - *slab*: a span cut into objects of one size. Its records are a header and a bitmap in front of
//!   the objects, none inside them. A *shelf* is all slabs of one size.
//! - *pool*: 64 KiB *chunks* from the page source, cut into blocks of 64-byte *granules*, best fit,
//!   coalescing.
//! - [`Cache`]: a shelf of typed objects that stay constructed while they are free, with magazines
//!   of its own.
//! - *shrinker*: what the host can give up when memory is short ([`Shrink`]).
//! - *tag*: a byte for each KiB of the source's memory; it says what begins there, so that
//!   `kfree(ptr)` learns the class by one load.
//!
//! # The life of a block
//!
//! `kalloc(40)`: the class by a table, the top of this CPU's magazine. It is empty: a batch from the
//! depot; that is empty too: under the central lock, the lowest free objects of a partly used slab;
//! there is none: a span from the pool becomes a slab; there is no room: the lock is dropped, the
//! source gives a chunk. `kfree(ptr)`: the tag says the class; the block goes on top of the magazine.
//! That is full: the older half goes to the depot; that is full: under the central lock each block is
//! checked and goes home; an empty slab's span goes back to the pool; chunks that fall empty, but for
//! a few, go back to the source. When the source has no more, all caches are emptied and the host's
//! shrinkers are asked before the caller hears no.
//!
//! # Invariants
//!
//! *heap-conservation*: every byte taken from the source is in exactly one column of [`Stats`];
//! [`Heap::check`] compares. *tag-true*: a tag is written after the records that it vouches for, and
//! cleared before they go, under the central lock. *slab-valid*, *slab-locked*, *slab-count*,
//! *shelf-count*, *pool-locked*, *pool-coalesced*, *pool-count*, *chunk-clean*, *slab-end*, *magazine-own*,
//! *magazine-range*, *cache-listed*: in the modules that keep them.
//!
//! # What is checked, and when
//!
//! Every block that comes home passes a full inspection: is it a block, is it out, is it of the
//! class it was freed as? In a debug mode (see `guard`) that happens at every free. Else, what a magazine takes in has only been looked at: its alignment, and that
//! it is not the block freed just before. So some misuse is named late, when the magazine is emptied,
//! and the block may meanwhile have been handed out again. [`Heap::drain`] brings that moment about.
//!
//! # Locks
//!
//! The central lock, and one for each depot, all of the host's type; never two at once. While pinned a
//! depot's is tried, and not waited for. None is held
//! while the source gives or takes pages, while an object is constructed or destroyed, or while the
//! report hook or a text sink runs.
//!
//! # How it is tested
//!
//! Against a naive model, with the conservation law after each step (`tests`); with every internal step
//! failing once at every place of a long life, and for stretches (`failing`); in every interleaving of
//! two CPUs, with orderings weakened to see that it is noticed (`interleavings`); by a corpus of crimes,
//! each of which must be named (`crimes`); under Miri; by a fuzz target; and the fast path by counting
//! its instructions.
//!
//! # Left out so far
//!
//! Debug modes for blocks without a class, borrowing from larger classes when memory is short, page
//! runs that are not a power of two, depots for object caches, chunks smaller than 64 KiB when the
//! source has only those, and nodes: all CPUs are equally far from all memory.
#![no_std]
#![deny(unsafe_code)]
#![allow(clippy::result_large_err)] // evidence of misuse cannot be boxed: by whom?

#[cfg(test)]
extern crate std;

#[cfg(feature = "allocator-api2")]
mod allocator;
mod cache;
mod chunk;
mod classes;
mod debug;
mod depot;
mod drain;
mod error;
mod failing;
mod global;
mod guard;
mod hardening;
mod heap;
mod home;
mod inspect;
mod local;
mod magazine;
mod mapped;
mod pages;
mod pool;
mod refill;
mod shelf;
mod shrink;
mod slab;
mod source;
mod stats;
mod sync;
mod typed;

pub use chunk::CHUNK_ORDER;
pub use debug::{DebugError, LiveObject};
pub use error::{HeapError, Misuse, MisuseKind, PanicReport, Report};
pub use guard::{BadOption, DebugFlags, Harm, TRACK_FRAMES, Track};
pub use heap::Heap;
pub use pagoda_addr::Order;
pub use shrink::Shrink;
pub use source::{OutOfPages, PageSource, PageTags, TAG_SHIFT};
pub use stats::Stats;
pub use typed::{Cache, CacheOptions, CacheStats, Object};
#[cfg(all(test, not(loom)))]
mod crimes;
#[cfg(all(test, loom))]
mod interleavings;
#[cfg(test)]
#[cfg_attr(loom, allow(dead_code))]
mod testing;
#[cfg(all(test, not(loom)))]
mod tests;
