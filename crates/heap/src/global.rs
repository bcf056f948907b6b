//! The heap as Rust's global allocator.
#![allow(unsafe_code)] // implements the unsafe trait `GlobalAlloc`

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{NonNull, null_mut};

use lock_api::RawMutex;
use pagoda_sync::Cpus;

use crate::{Heap, PageSource, Report};

// SAFETY: blocks are as large and as aligned as their layout asks, belong to one owner until freed,
// and nothing here unwinds unless the host's `Report` does.
unsafe impl<S: PageSource, C: Cpus, R: RawMutex, P: Report> GlobalAlloc for Heap<S, C, R, P> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.kalloc(layout).map_or(null_mut(), NonNull::as_ptr)
    }

    #[inline]
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        if let Some(ptr) = NonNull::new(ptr) {
            // The misuse, if any, has been reported; there is nobody here to tell.
            // SAFETY: the caller's promise is the one that `kfree_sized` asks for.
            let _ = unsafe { self.kfree_sized(ptr, layout) };
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.kalloc_zeroed(layout).map_or(null_mut(), NonNull::as_ptr)
    }

    #[inline]
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let Some(ptr) = NonNull::new(ptr) else { return null_mut() };
        // SAFETY: the caller's promise is the one that `krealloc` asks for.
        unsafe { self.krealloc(ptr, layout, new_size) }.map_or(null_mut(), NonNull::as_ptr)
    }
}
