//! The heap: `kalloc`, `kfree` and their kin.
#![allow(unsafe_code)] // hands out and takes back raw memory

use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;

use lock_api::RawMutex;
use pagoda_sync::Cpus;

use crate::{HeapError, Misuse, PageSource, PanicReport, Report, Stats};

/// A kernel heap over the pages of `S`, for the CPUs of `C`, locked by `R`, telling `P` about
/// misuse.
///
/// Constructible in a `static`: [`new`](Self::new) is `const` and allocates nothing.
pub struct Heap<S, C, R, P = PanicReport> {
    source: S,
    #[allow(dead_code)]
    cpus: C,
    #[allow(dead_code)]
    report: P,
    _lock: PhantomData<R>,
}

impl<S: PageSource, C: Cpus, R: RawMutex> Heap<S, C, R> {
    /// An empty heap that panics on misuse. Allocates nothing.
    pub const fn new(source: S, cpus: C) -> Self {
        Self::with_report(source, cpus, PanicReport)
    }
}

impl<S: PageSource, C: Cpus, R: RawMutex, P: Report> Heap<S, C, R, P> {
    /// An empty heap that tells `report` about misuse. Allocates nothing.
    pub const fn with_report(source: S, cpus: C, report: P) -> Self {
        Self { source, cpus, report, _lock: PhantomData }
    }

    /// The page source.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// A block of `layout`, contents arbitrary. Size 0 gives a block of its own, too.
    pub fn kalloc(&self, layout: Layout) -> Result<NonNull<u8>, HeapError> {
        let _ = layout;
        Err(HeapError::OutOfPages)
    }

    /// A block of `layout`, contents zero.
    pub fn kalloc_zeroed(&self, layout: Layout) -> Result<NonNull<u8>, HeapError> {
        let _ = layout;
        Err(HeapError::OutOfPages)
    }

    /// Frees a block whose size the caller does not know.
    ///
    /// # Safety
    /// Nobody uses the block any more. (That the pointer is a live block is checked, not trusted.)
    pub unsafe fn kfree(&self, ptr: NonNull<u8>) -> Result<(), Misuse> {
        let _ = ptr;
        Ok(())
    }

    /// Frees a block that was allocated with `layout`: the fast way.
    ///
    /// # Safety
    /// Nobody uses the block any more.
    pub unsafe fn kfree_sized(&self, ptr: NonNull<u8>, layout: Layout) -> Result<(), Misuse> {
        let _ = (ptr, layout);
        Ok(())
    }

    /// Makes a block of `old` layout `new_size` bytes large, in place where it can; contents are
    /// kept up to the smaller size. On an error the old block is untouched.
    ///
    /// # Safety
    /// `ptr` was allocated with `old`; on success nobody uses `ptr` any more.
    pub unsafe fn krealloc(
        &self,
        ptr: NonNull<u8>,
        old: Layout,
        new_size: usize,
    ) -> Result<NonNull<u8>, HeapError> {
        let _ = (ptr, old, new_size);
        Err(HeapError::OutOfPages)
    }

    /// The bytes that may be used behind a live block's pointer.
    pub fn usable_size(&self, ptr: NonNull<u8>) -> Result<usize, Misuse> {
        let _ = ptr;
        Ok(0)
    }

    /// Where every byte is.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    /// Writes the text of Linux's `/proc/slabinfo` (version 2.1).
    pub fn slabinfo(&self, out: &mut impl fmt::Write) -> fmt::Result {
        writeln!(out, "slabinfo - version: 2.1")
    }

    /// Gives every page without a live block back to the source. Returns the number of pages.
    pub fn shrink(&self) -> usize {
        0
    }
}
