#![doc = include_str!("../README.md")]
//!
//! # Inside
//!
//! The nouns:
//!
//! - [`CpuId`], [`CpuSet`]: a CPU's number, and a set of CPUs that other CPUs may change.
//! - [`Cpus`]: the host kernel's answer to "which CPU runs me, and keep me there". A [`Pinned`]
//!   guard is the proof that a caller stays on its CPU.
//! - [`PerCpu`]: one cell for each CPU, reached only with a [`Pinned`] guard, and therefore
//!   without a lock and without an atomic read-modify-write.
//! - [`HandOver`]: asking another CPU to empty its cell, which it does at its next pin.
//! - [`Epochs`]: when nobody reads any more what was taken out of a structure without locks.
//! - [`Members`]: the CPUs that have to be told of changes (a TLB shootdown), and how many there
//!   were.
//! - [`RawSpin`]: a plain test-and-test-and-set lock for [`lock_api`].
//! - [`Serving`]: any raw lock whose waiters do something for others meanwhile.
//! - [`Ranked`]: any raw lock, plus a rank that a [`RankTracker`] checks.
//!
//! # Invariants
//!
//! *pin-exclusive*: between [`Cpus::enter`] and the matching [`Cpus::leave`] no other context on
//! the same CPU enters. It holds because of three rules that the host kernel keeps: kernel mode is
//! pre-empted only at explicit points and never while pinned; hard interrupt handlers never pin,
//! hence never allocate or free; only the owning CPU touches its cells. Pins nest on one CPU (a
//! heap that is pinned may refill itself from the frame allocator, which pins again), so a cell of
//! one structure must not be borrowed across a call that may come back to the same structure.
//!
//! *rank-ascending*: a context that holds a lock of rank r takes only locks of rank above r. Ranks
//! order the storeys from the top down (see [`rank`]): whoever calls downwards holds the lower
//! rank.
//!
//! The rules of each part stand in its head, are asserted in debug builds where one CPU can see
//! them, and are explored by loom where it takes two (`--cfg loom`, the tests whose names say so).
//!
//! Left out: queues, sleeping locks and wait queues (they belong to a scheduler).
#![no_std]
#![deny(unsafe_code)]

#[cfg(any(test, feature = "std"))]
extern crate std;

mod cpu;
mod epoch;
mod handover;
#[cfg(any(test, feature = "std"))]
pub mod host;
#[cfg(all(test, not(loom)))]
mod host_tests;
#[cfg(all(loom, test))]
mod loom_tests;
mod members;
mod percpu;
pub mod rank;
mod shim;
mod spin;

pub use cpu::{CpuId, CpuSet, Cpus, MAX_CPUS, Pinned, Uniprocessor};
pub use epoch::{Deferral, EpochCell, Epochs, Reading};
pub use handover::{HandOver, HandOverCell, Ticket};
pub use members::Members;
pub use percpu::{CachePadded, PerCpu};
pub use rank::{RankTracker, Ranked};
pub use spin::{RawSpin, Serving, ServingSpin, SpinHook};

/// A mutex over [`RawSpin`].
pub type SpinMutex<T> = lock_api::Mutex<RawSpin, T>;
/// The guard of a [`SpinMutex`].
pub type SpinMutexGuard<'a, T> = lock_api::MutexGuard<'a, RawSpin, T>;
