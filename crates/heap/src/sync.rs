//! Atomics: the machine's, or loom's when interleavings are explored.

#[cfg(not(all(loom, test)))]
pub(crate) use core::sync::atomic::{AtomicPtr, Ordering};
#[cfg(all(loom, test))]
pub(crate) use loom::sync::atomic::{AtomicPtr, Ordering};
