#![doc = include_str!("../README.md")]
#![no_std]
#![deny(unsafe_code)]

//! # Inside
//!
//! Nouns: an *area* is a run of pages that somebody was given, its *body*, between two *guards*,
//! one page each that is never mapped. The *window* is the range of kernel space that all areas
//! come from.
//!
//! There is no list of areas: the page table is the list. A guard is an absent entry whose word
//! says what it guards and how long that is ([`Guard`]), so finding a gap hops from area to area,
//! and a trap handler finds out what was overrun by one query.
//!
//! # Invariants
//!
//! *area-guarded*: in the window, every used entry belongs to exactly one area: lower guard, body,
//! upper guard, and both guards name the length of the body.
//!
//! *flushed-before-reuse*: an area is flushed before the table's lock is dropped, so that no CPU
//! remembers it when the pages are given out again.
//!
//! # Lock order
//!
//! The kernel table's lock is the only one, held for a whole allocation; below it only what the
//! host's `alloc_page` and `alloc_table` take.
//!
//! # Left out
//!
//! Per-CPU caches of stacks; large pages for blocks; lazily backed areas; best fit (the search goes
//! on from where the last one ended, and wraps around once).

#[cfg(test)]
extern crate std;

mod area;
mod kva;
#[cfg(test)]
mod tests;

pub use area::{Block, Guard, Kind, Side, Stack, Window};
pub use kva::{Caching, KernelPages, Kva, KvaError, Lookup};
