//! Atomics and cells: the machine's, or loom's when interleavings are explored (`--cfg loom`).
//!
//! Loom's cannot be made in constants; what has to be one under loom too (a raw lock) takes its
//! flag as a type parameter instead ([`crate::spin::Flag`]).

#[cfg(not(all(loom, test)))]
pub(crate) use core::cell::Cell;
#[cfg(not(all(loom, test)))]
pub(crate) use core::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(all(loom, test))]
pub(crate) use loom::cell::Cell;
#[cfg(all(loom, test))]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
