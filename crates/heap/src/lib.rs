#![doc = include_str!("../README.md")]
//!
//! # How it is built
//!
//! The nouns, each in its own file:
//!
//! - *block*: what `kalloc` gives. Small blocks (up to 1 KiB) are objects of a slab; larger ones are
//!   *runs* of whole pages.
//! - *class*: one of 32 sizes of small blocks.
//! - *slab*: a span of pages cut into objects of one size. Its records are a header and a bitmap in
//!   front of the objects, none inside them.
//! - *shelf*: all slabs of one size, sorted into full, partly used and empty.
//! - [`Cache`]: a shelf of typed objects that stay constructed while they are free.
//! - *tag*: a byte for each KiB of the source's memory; it says what lies there, so that `kfree(ptr)`
//!   finds the slab or the run by one load.
//!
//! # The life of a block
//!
//! `kalloc(40)`: the class by a table; its shelf takes the lowest free object of a partly used slab.
//! No slab has one: the lock is dropped, the source gives pages, they become a slab. `kfree(ptr)`:
//! the tag says "slab", the address rounded down is its header, the offset divided by the object
//! size is a bit in the bitmap. The second slab of a shelf to fall empty goes back to the source.
//!
//! # Invariants
//!
//! *heap-conservation*: every byte taken from the source is in exactly one column of [`Stats`];
//! [`Heap::check`] compares. *slab-valid*, *slab-locked*, *slab-count*, *shelf-count*,
//! *cache-listed*: in the modules that keep them. *tag-true*: a tag that names a slab or a run is
//! written after its records and cleared, under the lock, before its pages go back.
//!
//! # Locks
//!
//! One, of the host's type. It is never held while the source gives or takes pages, while an object
//! is constructed or destroyed, or while the report hook or a text sink runs.
//!
//! # Left out so far
//!
//! Caches for each CPU, dense packing above 1 KiB, debug modes (red zones, poison, tracks), and
//! growth of runs in place.
#![no_std]
#![deny(unsafe_code)]

#[cfg(test)]
extern crate std;

mod cache;
mod classes;
mod error;
mod global;
mod heap;
mod shelf;
mod slab;
mod source;
mod stats;

pub use cache::{Cache, Object};
pub use error::{HeapError, Misuse, MisuseKind, PanicReport, Report};
pub use heap::Heap;
pub use pagoda_addr::Order;
pub use source::{OutOfPages, PageSource, PageTags, TAG_SHIFT};
pub use stats::Stats;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
