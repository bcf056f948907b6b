//! # How does a block get another size?
//!
//! A small one stays while it fills more than half of its room; a medium or large one where it lies, if there
//! is room behind it, or by moving its pages. Else the contents are copied.
#![allow(unsafe_code)] // copies contents

use core::ptr;

use crate::allocator::Allocator;
use crate::system::{Local, System};

impl<S: System, L: Local> Allocator<S, L> {
    /// Changes a block's size, moving it if need be; the contents up to the smaller size stay. Null
    /// when there is no memory: then the block is as before. Keeps [`MIN_ALIGN`](crate::MIN_ALIGN) only.
    ///
    /// # Safety
    /// The block came from this allocator; if it moves, nobody uses the old address.
    pub unsafe fn realloc(&self, at: *mut u8, bytes: usize) -> *mut u8 {
        // SAFETY: the caller's promise is ours.
        unsafe { self.realloc_from(at, bytes, 0) }
    }

    /// # Safety
    /// As for [`Allocator::realloc`].
    pub(crate) unsafe fn realloc_from(&self, at: *mut u8, bytes: usize, pc: usize) -> *mut u8 {
        if self.is_watched() {
            // SAFETY: the caller's promise is ours.
            return unsafe { self.watched_realloc(at, bytes, pc) };
        }
        if at.is_null() {
            return self.alloc(bytes);
        }
        // SAFETY: the caller's promise is ours.
        unsafe { self.plain_realloc(at, bytes, |bytes| self.alloc(bytes)) }
    }

    /// # Safety
    /// As for [`Allocator::realloc`]; the block is there.
    #[inline(always)]
    pub(crate) unsafe fn plain_realloc(
        &self,
        at: *mut u8,
        bytes: usize,
        alloc: impl FnOnce(usize) -> *mut u8,
    ) -> *mut u8 {
        // SAFETY: the caller's promises are ours; the two blocks are different ones.
        unsafe {
            let old = if self.window.is_small(at as usize) {
                let old = self.usable_inner(at);
                if bytes <= old && bytes > old / 2 {
                    return at;
                }
                old
            } else {
                if let Some(resized) = self.resize_medium(at, bytes) {
                    return resized.as_ptr();
                }
                self.usable_medium(at)
            };
            let new = alloc(bytes);
            if !new.is_null() {
                ptr::copy_nonoverlapping(at, new, old.min(bytes));
                self.free(at);
            }
            new
        }
    }
}
