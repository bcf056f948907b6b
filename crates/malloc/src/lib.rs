#![doc = include_str!("../README.md")]
//! # How does a program get 40 bytes?
//!
//! From the outside in:
//!
//! - [`Malloc`], [`mod@process`]: the process's allocator as Rust's `#[global_allocator]`, on Linux x86-64.
//! - [`Allocator`]: the core as a value, over a [`System`] (pages) and a [`Local`] (one pointer for each
//!   thread).
//! - `heap`: what a thread owns; `threads`: who has which heap, and fork.
//! - `small`, `unit`, `remote`, `outgoing`, `delivery`, `sweep`, `pool`: to 1 KiB. Slabs of one class, owned
//!   by one thread.
//! - `medium`, `arena`, `recent`: to 128 KiB. Best fit with merging.
//! - `large`: above. Mappings. `resize`: from one to the other.
//! - [`hardened`], `story`: a mode that says who wrote where, and who freed twice. `options`: how it is
//!   asked for.
//! - `sample`: a profile in normal mode, from few blocks.
//! - `pprof`, `picture`, `report`: heap profiles and pictures of the memory, as files.
//! - `window`: where everything lies. `huge`: where huge pages may stand. `regret`: how much may wait before
//!   it goes back. `idle`, `helper`: what goes back while nobody calls.
//!
//! # Lock order
//!
//! The table of heaps, the sweep, the pool, the arenas by number, the table of fenced blocks, the books of
//! samples. The fast paths take none.
//!
//! # Left out
//!
//! Huge pages for large blocks; giving back what sleeping threads keep for themselves (see `idle`); being
//! called from signal handlers.
#![cfg_attr(not(test), no_std)]
#![cfg(not(loom))]
#![deny(unsafe_code)]

mod allocator;
mod arena;
mod classes;
mod delivery;
pub mod hardened;
mod heap;
#[cfg(all(target_os = "linux", target_arch = "x86_64", not(miri)))]
mod helper;
mod huge;
mod idle;
mod large;
#[cfg(all(target_os = "linux", target_arch = "x86_64", not(miri)))]
pub mod linux;
mod lock;
mod medium;
mod options;
mod outgoing;
mod picture;
mod pool;
#[cfg(any(test, all(target_os = "linux", target_arch = "x86_64", not(miri))))]
mod pprof;
mod probe;
#[cfg(all(target_os = "linux", target_arch = "x86_64", not(miri)))]
pub mod process;
mod recent;
mod regret;
mod remote;
#[cfg(all(target_os = "linux", target_arch = "x86_64", not(miri)))]
mod report;
mod resize;
mod sample;
mod small;
mod stats;
mod story;
mod sweep;
mod system;
#[cfg(test)]
mod tests;
mod threads;
mod unit;
mod window;

pub use allocator::{Allocator, MIN_ALIGN};
pub use arena::{ArenaStats, MEDIUM_MAX};
pub use classes::{CLASSES, SMALL_MAX, UNIT_BYTES};
pub use heap::Heap;
pub use options::Options;
pub use pool::PoolStats;
#[cfg(all(target_os = "linux", target_arch = "x86_64", not(miri)))]
pub use process::{Malloc, PROCESS, Slot};
pub use stats::Stats;
pub use story::{Site, Story, Trouble};
pub use system::{Corruption, Local, Misuse, PAGE_BYTES, Stop, System};
