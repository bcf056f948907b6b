//! Depots: for each class, batches of free blocks between the CPUs.
//!
//! What one CPU allocates and another frees travels through here, thirty-two blocks for one lock.
//! A depot's array is a block of the pool, made when the first batch comes, given back when memory
//! is short.
#![allow(unsafe_code)] // an array behind a raw pointer

use core::ptr::NonNull;

use crate::classes::SIZES;
use crate::magazine::{BATCH, Batch, batch};

/// The most blocks in a depot.
const BLOCKS_MOST: usize = 4 * BATCH;
/// Bytes that a depot may hold, unless that is less than four batches.
const BYTES_MOST: usize = 512 << 10;
/// Bytes of a depot's array.
pub(crate) const DEPOT: usize = BLOCKS_MOST * size_of::<*mut u8>();

/// Blocks of a class that its depot may hold.
pub(crate) const fn capacity(class: usize) -> usize {
    let (count, least) = (BYTES_MOST / SIZES[class] as usize, 4 * batch(class));
    let count = if count > least { count } else { least };
    if count < BLOCKS_MOST { count } else { BLOCKS_MOST }
}

/// One class. Used under its own lock.
pub(crate) struct Depot {
    slots: Option<NonNull<*mut u8>>,
    len: usize,
}

// SAFETY: the array and the blocks are only used by the holder of the depot.
unsafe impl Send for Depot {}

impl Depot {
    pub(crate) const fn new() -> Self {
        Self { slots: None, len: 0 }
    }

    /// Blocks inside.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Has it an array?
    pub(crate) fn is_open(&self) -> bool {
        self.slots.is_some()
    }

    /// Gives the depot its array; gives back what it does not need.
    ///
    /// # Safety
    /// [`DEPOT`] bytes at `array` are the depot's until [`close`](Self::close).
    pub(crate) unsafe fn open(&mut self, array: NonNull<u8>) -> Option<NonNull<u8>> {
        if self.slots.is_some() {
            return Some(array);
        }
        self.slots = Some(array.cast());
        None
    }

    /// The array, of a depot that is empty.
    pub(crate) fn close(&mut self) -> Option<NonNull<u8>> {
        if self.len != 0 {
            return None;
        }
        self.slots.take().map(NonNull::cast)
    }

    /// Takes a whole batch in, of at most `most` blocks inside afterwards; false when there is no
    /// room.
    pub(crate) fn push(&mut self, batch: &Batch, most: usize) -> bool {
        let Some(slots) = self.slots else { return false };
        let blocks = batch.as_slice();
        if self.len + blocks.len() > most.min(BLOCKS_MOST) {
            return false;
        }
        // SAFETY: the array has room for as many slots as were just compared with.
        unsafe {
            slots
                .add(self.len)
                .copy_from_nonoverlapping(NonNull::from(blocks).cast(), blocks.len());
        }
        self.len += blocks.len();
        true
    }

    /// Moves up to `count` blocks into `batch`.
    pub(crate) fn pop(&mut self, count: usize, batch: &mut Batch) {
        let Some(slots) = self.slots else { return };
        for _ in 0..count.min(self.len).min(BATCH - batch.len()) {
            self.len -= 1;
            // SAFETY: below the length that was pushed.
            batch.push(unsafe { slots.add(self.len).read() });
        }
    }
}
