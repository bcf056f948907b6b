#![doc = include_str!("../README.md")]
//!
//! # The code
//!
//! The way from the loader's bytes to frames for everybody:
//!
//! ```text
//! Multiboot 1 --+
//! Multiboot 2 --+--> BootInfo --memory(), taken()--> MemoryMap --> EarlyAllocator --> MemoryMap
//! PVH ----------+     ^                                ^                                |
//!                     BootMemory (the caller's)        storage (the caller's)           v
//!                                                                             a frame allocator
//! ```
//!
//! | noun | what it is |
//! |---|---|
//! | [`BootMemory`] | how to read physical memory while there is no memory management yet |
//! | [`BootInfo`] | what the loader said: read once, found sound, whatever the protocol |
//! | [`MemoryEntry`] | one claim of the firmware about memory, untrusted |
//! | [`RegionKind`] | what a piece of memory is, ordered by severity |
//! | [`Region`], [`MemoryMap`] | the truth: sorted, disjoint, page-aligned |
//! | [`EarlyAllocator`] | carves the first frames out of the map and hands the rest over |
//!
//! Everything here is a function of its arguments: no statics, no allocation, no unsafe code. No
//! input makes it panic or read what [`BootMemory`] does not give.
//!
//! Left out: parsing ACPI's tables (the root pointer is found, and where the tables lie in memory
//! that the firmware calls usable the caller adds them to the taken ranges), NUMA, Linux's own boot
//! protocol, device trees, and giving early memory back before a frame allocator stands.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod build;
mod bytes;
mod early;
mod entries;
mod error;
mod firmware;
mod framebuffer;
mod info;
mod kind;
mod map;
mod modules;
mod multiboot1;
mod multiboot2;
mod pvh;
mod region;
mod sections;
mod tags;

pub use bytes::BootMemory;
pub use early::{EarlyAllocator, EarlyError, Placement};
pub use entries::MemoryEntries;
pub use error::{BootInfoError, Field};
pub use firmware::{find_rsdp, firmware_taken, is_rsdp};
pub use framebuffer::{Channel, Framebuffer, PixelFormat};
pub use info::{BootInfo, Protocol};
pub use kind::RegionKind;
pub use map::{MapError, MemoryMap, Untaken};
pub use modules::{Module, Modules};
pub use region::{MemoryEntry, Region};
