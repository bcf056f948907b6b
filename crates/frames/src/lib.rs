//! # Which 4 KiB of RAM are free, and who owns the others?
//!
//! The nouns:
//!
//! - [`FrameAllocator`]: hands out [`OwnedFrames`], any order from 4 KiB to 1 GiB or any contiguous
//!   count, and takes them back.
//! - [`Request`]: what is wanted: how many, how aligned, below which address, zeroed, how urgent.
//! - [`FrameTable`]: 16 bytes ([`FrameInfo`]) for each frame; the truth about ownership. Four of
//!   them are all that a single frame needs; those of a chunk stand together.
//! - *magazine*: frames that a CPU keeps for itself; *depot*: batches that CPUs hand to each other.
//! - *chunk*: 512 frames, 2 MiB: one 64-byte line of the bitmap. *gig*: 512 chunks, 1 GiB.
//!   Frames are looked up through a directory of gigs, so holes between them cost four bytes per
//!   GiB and nothing else.
//!
//! # Invariants
//!
//! - *conservation*: `free + cached + used = total`, always; see [`Stats`].
//! - *bit-truth*: a frame's bit in the bitmap is set exactly if the core may hand it out.
//! - *head-truth*: an entry of the frame table says "head" exactly if an allocation that is in
//!   somebody's hands begins at that frame.
//! - *one-owner*: a frame is inside at most one allocation. Follows from the two before; checked at
//!   each hand-out.
//!
//! Placement: single frames and small blocks come from the lowest address, out of chunks that are
//! already broken; entirely free chunks are broken last; 2 MiB and more come from the other end.
//! Zones are tried from the top down, so that the low memory that old devices need goes last.
//!
//! Movable and unmovable frames come out of different chunks (*apart*, `bitmap.rs`), so that one
//! page table does not stand between a program's pages and a 2 MiB block. Whoever finds no chunk of
//! its own and no entirely free one is given frames of the others, and the chunk with them if at
//! least half of it is free.
//!
//! Speed: single frames come from and go to a magazine of the CPU's own, by a rule that keeps free
//! memory in one piece (`caches.rs`; their way back: `keeping.rs`).
//!
//! On machines with several nodes a request is served from the closest one that can (`nodes.rs`).
//! Memory may come later and leave again (`away.rs`).
//!
//! Left out: a lock-free core. It has one lock, taken once for 64 single frames.
#![no_std]
#![deny(unsafe_code)]

#[cfg(test)]
extern crate std;

mod allocation;
mod allocator;
mod away;
mod bitmap;
mod caches;
mod drain;
mod entry;
mod error;
mod failing;
mod giving;
#[cfg(all(test, loom))]
mod interleavings;
mod keeping;
mod line;
mod magazine;
mod many;
mod nodes;
mod owned;
mod owners;
mod places;
mod poison;
mod pressure;
mod request;
mod runs;
mod search;
mod shim;
mod stats;
mod table;
#[cfg(all(test, not(loom)))]
mod tests;
mod text;
mod view;
mod zeroed;

pub use allocation::{Allocation, backing};
pub use allocator::{FrameAllocator, Setup, required};
pub use away::MAX_OFFLINE;
pub use entry::FrameInfo;
pub use error::{AllocError, Blame, Corruption, FreeError, OfflineError, SetupError, TableError};
pub use nodes::{Area, MAX_NODES, Node, Topology};
pub use owned::OwnedFrames;
pub use request::{Class, Kind, Mobility, Request};
pub use stats::{
    BlockCounts, BlockOwners, Pressure, Shortage, Stats, Watermarks, ZeroStats, Zone, ZoneStats,
};
pub use table::FrameTable;
pub use text::{Snapshot, ZoneSnapshot};

/// The README's example is a test.
#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
