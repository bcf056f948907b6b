//! Depots: for each class, batches of free blocks between the CPUs.
//!
//! What one CPU allocates and another frees travels through here, up to thirty-two blocks for one
//! lock, straight from one magazine's array into another's. A depot's array is a block of the pool,
//! made when the first batch comes, four times as large when that is full, up to a bound; given back
//! when memory is short.
#![allow(unsafe_code)] // an array behind a raw pointer

use core::mem::size_of;
use core::ptr::NonNull;

use crate::classes::SIZES;
use crate::magazine::{BATCH, batch};

/// Slots of a depot's first array.
const SLOTS_LEAST: usize = 4 * BATCH;
/// The most blocks in a depot: a CPU that frees what another allocates may be so far behind before
/// blocks travel by way of their slabs.
const BLOCKS_MOST: usize = 4096;
/// Bytes that a depot may hold, unless that is less than four batches.
const BYTES_MOST: usize = 512 << 10;

/// Blocks of a class that its depot may hold.
pub(crate) const fn capacity(class: usize) -> usize {
    let (count, least) = (BYTES_MOST / SIZES[class] as usize, 4 * batch(class));
    let count = if count > least { count } else { least };
    if count < BLOCKS_MOST { count } else { BLOCKS_MOST }
}

/// Bytes of an array for `slots` blocks: at least a KiB, as every block of the pool has.
pub(crate) const fn array_bytes(slots: usize) -> usize {
    let slots = if slots > SLOTS_LEAST { slots } else { SLOTS_LEAST };
    slots * size_of::<*mut u8>()
}

/// One class. Used under its own lock. `len <= room`; the array has at least `room` slots.
pub(crate) struct Depot {
    slots: Option<NonNull<*mut u8>>,
    len: usize,
    room: usize,
}

// SAFETY: the array and the blocks are only used by the holder of the depot.
unsafe impl Send for Depot {}

impl Depot {
    pub(crate) const fn new() -> Self {
        Self { slots: None, len: 0, room: 0 }
    }

    /// Blocks inside.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The room that the depot should be given if it is to take `more` blocks; none when it has
    /// room, or must not grow beyond `most`.
    pub(crate) fn wanted(&self, more: usize, most: usize) -> Option<usize> {
        let enough = self.len + more <= self.room || self.room >= most;
        (!enough).then(|| (self.room * 4).max(SLOTS_LEAST).min(most))
    }

    /// Gives the depot a larger array; gives back the one that is not needed any more.
    ///
    /// # Safety
    /// [`array_bytes`]`(room)` bytes at `array` are the depot's until it gives them back, here or in
    /// [`close`](Self::close).
    pub(crate) unsafe fn open(&mut self, array: NonNull<u8>, room: usize) -> Option<NonNull<u8>> {
        if room <= self.room {
            return Some(array);
        }
        let array = array.cast();
        if let Some(slots) = self.slots {
            // SAFETY: the new array is larger than the old one, which holds `len` blocks.
            unsafe { array.copy_from_nonoverlapping(slots, self.len) };
        }
        self.room = room;
        self.slots.replace(array).map(NonNull::cast)
    }

    /// The array, of a depot that is empty.
    pub(crate) fn close(&mut self) -> Option<NonNull<u8>> {
        if self.len != 0 {
            return None;
        }
        self.room = 0;
        self.slots.take().map(NonNull::cast)
    }

    /// Takes all these blocks in; false when there is no room.
    pub(crate) fn push(&mut self, blocks: &[*mut u8]) -> bool {
        let Some(slots) = self.slots else { return false };
        if self.len + blocks.len() > self.room {
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

    /// Takes up to `count` blocks out: those that came in last.
    pub(crate) fn pop(&mut self, count: usize) -> &[*mut u8] {
        let Some(slots) = self.slots else { return &[] };
        let count = count.min(self.len);
        self.len -= count;
        // SAFETY: below the length that was pushed; nobody writes there while the slice is borrowed.
        unsafe { core::slice::from_raw_parts(slots.add(self.len).as_ptr(), count) }
    }
}
