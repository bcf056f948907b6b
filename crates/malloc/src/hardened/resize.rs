//! A block gets another size.
#![allow(unsafe_code)] // copies blocks, writes headers and tails

use core::ptr;

use super::{MARK, bytes_of, mark_of, pattern, said_of};
use crate::allocator::Allocator;
use crate::heap::Heap;
use crate::story::{Site, Trouble};
use crate::system::{Local, System};

impl<S: System, L: Local> Allocator<S, L> {
    /// Changes a block's size: in place if its inner block is right for it, a large block by moving its
    /// pages, else by a copy.
    pub(crate) fn hard_realloc(&self, at: *mut u8, bytes: usize, pc: usize) -> *mut u8 {
        if at.is_null() {
            return self.hard_alloc(bytes, 1, false, pc);
        }
        if let (Some(mark), Some(heap)) = (self.small_in_order(at), self.own_heap()) {
            return self.resize_small(heap, at, mark, bytes, pc);
        }
        let (mut found, capacity) = self.must_be_live(at, Trouble::Resized);
        self.check_tail(at, &found, capacity);
        let heap = self.heap();
        if found.is_fenced() {
            found.freed = Site::new(pc, Self::who(heap));
            if let Some(fence) = self.move_fenced(at, &found, bytes) {
                return self.dress_fenced(heap, &fence, bytes, pc);
            }
        } else {
            let room = pattern::most(capacity);
            if bytes <= room && bytes >= room / 2 {
                self.redress(heap, at, bytes, found.lead, pc);
                return at;
            }
        }
        let new = self.hard_alloc(bytes, 1, false, pc);
        if !new.is_null() {
            // SAFETY: two blocks, of at least that many bytes.
            unsafe { ptr::copy_nonoverlapping(at, new, found.bytes.min(bytes)) };
            self.hard_free(at, usize::MAX, pc);
        }
        new
    }

    /// The short way of [`Allocator::hard_realloc`]: a small block in order, whose mark is given.
    fn resize_small(
        &self,
        heap: &Heap,
        at: *mut u8,
        mark: u64,
        bytes: usize,
        pc: usize,
    ) -> *mut u8 {
        // SAFETY: *every-header-readable*; the block lies in a slab.
        let unit = unsafe { &*self.window.unit_of(at as usize) };
        let room = pattern::most(unit.class().bytes as usize - MARK);
        if bytes <= room && bytes >= room / 2 {
            self.redress(Some(heap), at, bytes, 0, pc);
            return at;
        }
        let new = self.hard_alloc(bytes, 1, false, pc);
        if !new.is_null() {
            // SAFETY: two blocks, of at least that many bytes.
            unsafe { ptr::copy_nonoverlapping(at, new, bytes_of(mark).min(bytes)) };
            self.retire_longer(heap, at, mark, pc);
        }
        new
    }

    /// Writes header and tail of a block that gets another size where it is.
    fn redress(&self, heap: Option<&Heap>, at: *mut u8, bytes: usize, lead: usize, pc: usize) {
        // SAFETY: inside the inner block.
        unsafe {
            if self.window.is_small(at as usize) {
                let said = said_of(bytes, lead, self.named(heap, pc));
                mark_of(at).write(self.mark(at, said));
            } else {
                self.sign(heap, at, bytes, lead, pc);
            }
            pattern::fill(at.add(bytes), pattern::tail(bytes));
        }
    }
}
