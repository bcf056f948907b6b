#![doc = include_str!("../README.md")]
//!
//! # Inside
//!
//! The nouns:
//!
//! - [`PhysArena`]: host memory at a pretended physical address, cut into frames, each with a
//!   reference count. It is a [`PhysMap`](pagoda_addr::PhysMap).
//! - [`Machine`]: an arena and some simulated CPUs of one [`Mmu`], each with a TLB and paging-structure
//!   caches that keep what they once read until they are told to forget. It is a
//!   [`Platform`](pagoda_paging::Platform), so page tables are built on it, and it reads, writes
//!   and fetches through them as a CPU does.
//!
//! It stops (panics) when a CPU uses a translation that the tables no longer grant, and when a
//! frame or table is released that some CPU still knows; the message names page, frame and CPU.
//! Its walker decodes entries by itself, from the manual, and shares no code with the formats.
#![deny(unsafe_code)]

mod any;
mod arena;
mod bits;
mod check;
mod config;
mod machine;
mod tlb;
mod walk;

pub use any::AnyFormat;
pub use arena::PhysArena;
pub use config::{Access, Config, Counters, Mmu, Mode, PageFault};
pub use machine::Machine;
