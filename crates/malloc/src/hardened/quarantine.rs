//! Where freed blocks wait: a ring for each thread, in the pages behind its heap.
#![allow(unsafe_code)] // reads and writes freed blocks

use core::cell::Cell;
use core::ptr;

use super::{
    BYTES, Found, HEADER, Header, LOW, PLACES, Standing, epitaph, header, low_of, pattern,
};
use crate::allocator::Allocator;
use crate::heap::{HEAP_STRIDE, Heap};
use crate::story::{Site, Trouble};
use crate::system::{Local, PAGE_BYTES, System};
use crate::unit::Block;

/// All zero is an empty one.
#[repr(C)]
struct Ring {
    first: Cell<usize>,
    count: Cell<usize>,
    bytes: Cell<usize>,
    /// Each block, and what must still be at its start.
    waiting: [Cell<(*mut u8, Site)>; PLACES],
    /// The marks of the blocks in the places, folded.
    marks: [Cell<u32>; PLACES],
}

/// A block that waits.
#[derive(Clone, Copy)]
struct Place {
    at: *mut u8,
    /// What must still be at the block's start.
    freed: Site,
    /// What its mark must still fold to.
    mark: u32,
}

/// A mark in half the bits: whatever changes in one half shows.
#[inline]
fn fold(mark: u64) -> u32 {
    (mark ^ mark >> 32) as u32
}

const _: () = assert!(size_of::<Ring>() <= HEAP_STRIDE - PAGE_BYTES);

fn ring(heap: &Heap) -> &Ring {
    // SAFETY: behind each heap lie committed pages up to the next, which nothing else uses.
    unsafe { &*ptr::from_ref(heap).wrapping_byte_add(PAGE_BYTES).cast() }
}

impl<S: System, L: Local> Allocator<S, L> {
    /// Lets a freed block wait, whose mark is given; others leave.
    #[inline]
    pub(super) fn quarantine(&self, heap: &Heap, at: *mut u8, mark: u64, freed: Site) {
        let (ring, bytes) = (ring(heap), bytes_of(mark));
        while ring.count.get() >= PLACES
            || (ring.count.get() > 0 && ring.bytes.get() + bytes > BYTES)
        {
            let place = pop(ring);
            if !self.leave(heap, ring, &place) {
                self.leave_rest(ring, &place);
            }
        }
        let last = (ring.first.get() + ring.count.get()) % PLACES;
        if let (Some(waiting), Some(folded)) = (ring.waiting.get(last), ring.marks.get(last)) {
            waiting.set((at, freed));
            folded.set(fold(mark));
            ring.count.set(ring.count.get() + 1);
            ring.bytes.set(ring.bytes.get() + bytes);
        }
    }

    /// The short way of a block that leaves: a small one of a slab of this thread's, in order. False:
    /// nothing has happened.
    #[inline]
    fn leave(&self, heap: &Heap, ring: &Ring, place: &Place) -> bool {
        let (at, inner) = (place.at, place.at.wrapping_sub(HEADER));
        // SAFETY: *every-header-readable*.
        let unit = unsafe { &*self.window.unit_of(inner as usize) };
        if !self.window.is_small(inner as usize) || !unit.is_of(heap) {
            return false;
        }
        // SAFETY: what waits is a block with a header, and has its junk unless somebody wrote there.
        unsafe {
            let Header { allocated, mark } = header(at).read();
            let bytes = bytes_of(mark);
            if fold(mark) != place.mark
                || mark & LOW != low_of(bytes, HEADER) | Standing::Freed as u64
                || epitaph(at).cast::<Site>().read() != place.freed
                || !pattern::is_junk_whole(at, bytes)
            {
                return false;
            }
            ring.bytes.set(ring.bytes.get() - bytes);
            (*header(at)).mark = mark ^ Standing::Freed as u64 ^ Standing::Gone as u64;
            (*epitaph(at))[1] = allocated;
            self.free_own(heap, unit, inner.cast::<Block>());
        }
        true
    }

    /// A block leaves: its junk is checked, then the inner block is free.
    #[cold]
    #[inline(never)]
    fn leave_rest(&self, ring: &Ring, place: &Place) {
        let at = place.at;
        if at.is_null() {
            return;
        }
        let found = self.check_freed(place);
        ring.bytes.set(ring.bytes.get() - found.bytes);
        // SAFETY: its mark was just confirmed, and nobody uses the block.
        unsafe {
            (*header(at)).mark ^= Standing::Freed as u64 ^ Standing::Gone as u64;
            (*epitaph(at))[1] = found.allocated;
            self.free_rest(at.wrapping_sub(found.lead));
        }
    }

    fn check_freed(&self, place: &Place) -> Found {
        let found = self.read_header(place.at);
        if let Some(found) = found.filter(|found| found.freed == place.freed && found.is_freed()) {
            // SAFETY: a freed block has its junk.
            if unsafe { pattern::is_junk_whole(place.at, found.bytes) } {
                return found;
            }
        }
        self.accuse_freed(place)
    }

    /// Somebody wrote into a freed block, or before it.
    #[cold]
    #[inline(never)]
    fn accuse_freed(&self, place: &Place) -> ! {
        let at = place.at;
        let Some(found) = self.read_header(at).filter(Found::is_freed) else {
            self.stop(&crate::Stop::Trouble(Trouble::Before, at as usize, None));
        };
        let found = Found { freed: place.freed, ..found };
        // SAFETY: a freed block has its junk.
        let first = unsafe { pattern::first_written(at, found.bytes) }.unwrap_or(0);
        self.tell(Trouble::AfterFree, at.wrapping_add(first), at, &found)
    }

    /// Lets everything go that this thread freed.
    pub(crate) fn empty_quarantine(&self, heap: &Heap) {
        let ring = ring(heap);
        while ring.count.get() > 0 {
            self.leave_rest(ring, &pop(ring));
        }
    }

    /// Checks everything that this thread freed, and leaves it where it is.
    pub(super) fn check_quarantine(&self, heap: &Heap) {
        let ring = ring(heap);
        for index in 0..ring.count.get() {
            self.check_freed(&ring.place(ring.first.get() + index));
        }
    }
}

impl Ring {
    #[inline]
    fn place(&self, index: usize) -> Place {
        let index = index % PLACES;
        let (at, freed) =
            self.waiting.get(index).map_or((ptr::null_mut(), Site::NOBODY), Cell::get);
        Place { at, freed, mark: self.marks.get(index).map_or(0, Cell::get) }
    }
}

/// Takes the block out that waits longest; its bytes are still counted.
#[inline]
fn pop(ring: &Ring) -> Place {
    let first = ring.first.get();
    let place = ring.place(first);
    ring.first.set((first + 1) % PLACES);
    ring.count.set(ring.count.get() - 1);
    // Most have not been looked at for a while.
    let next = ring.place(first + 1).at;
    pattern::fetch(next.wrapping_sub(HEADER));
    pattern::fetch(next.wrapping_add(64 - HEADER));
    place
}

#[inline]
fn bytes_of(mark: u64) -> usize {
    (mark & LOW) as usize >> 8
}
