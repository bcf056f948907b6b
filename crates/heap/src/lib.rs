//! Kernel heap: size-class slabs behind kalloc and kfree, object caches, large blocks
//!
//! Left out so far: everything but the interface.
#![no_std]
#![deny(unsafe_code)]

#[cfg(test)]
extern crate std;

mod error;
mod global;
mod heap;
mod source;
mod stats;

pub use error::{HeapError, Misuse, MisuseKind, PanicReport, Report};
pub use heap::Heap;
pub use source::{OutOfPages, PageSource, PageTags, TAG_SHIFT};
pub use stats::Stats;
