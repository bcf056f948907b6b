//! Where freed blocks wait: two rings for each thread, of small blocks and of others, in the pages behind
//! its heap.
#![allow(unsafe_code)] // reads and writes freed blocks

use core::cell::Cell;
use core::ptr;

use super::{
    BYTES, Found, HEADER, Header, LOW, MEDIUM_PLACES, PLACES, Standing, epitaph, header, low_of,
    pattern,
};
use crate::allocator::Allocator;
use crate::classes::SMALL_MAX;
use crate::heap::{HEAP_STRIDE, Heap};
use crate::story::{Site, Trouble};
use crate::system::{Local, PAGE_BYTES, System};
use crate::unit::Block;

/// All zero is an empty one.
#[repr(C)]
struct Rings {
    small: Ring<PLACES>,
    medium: Ring<MEDIUM_PLACES>,
    /// Blocks in the second, and their bytes.
    count: Cell<usize>,
    bytes: Cell<usize>,
}

/// Blocks in the order in which they were freed.
#[repr(C)]
struct Ring<const N: usize> {
    /// The place that is used next: the block in it, if there is one, waits longest.
    next: Cell<usize>,
    /// Each block, and what must still be at its start.
    waiting: [Cell<(*mut u8, Site)>; N],
    /// The marks of the blocks in the places, folded.
    marks: [Cell<u32>; N],
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

const NOTHING: Place = Place { at: ptr::null_mut(), freed: Site::NOBODY, mark: 0 };

const _: () = assert!(size_of::<Rings>() <= HEAP_STRIDE - PAGE_BYTES);

fn rings(heap: &Heap) -> &Rings {
    // SAFETY: behind each heap lie committed pages up to the next, which nothing else uses.
    unsafe { &*ptr::from_ref(heap).wrapping_byte_add(PAGE_BYTES).cast() }
}

impl<const N: usize> Ring<N> {
    #[inline]
    fn place(&self, index: usize) -> Place {
        match (self.waiting.get(index % N), self.marks.get(index % N)) {
            (Some(waiting), Some(mark)) => {
                let (at, freed) = waiting.get();
                Place { at, freed, mark: mark.get() }
            }
            _ => NOTHING,
        }
    }

    /// Puts a block where another was, which is given.
    #[inline]
    fn replace(&self, index: usize, new: Place) -> Place {
        let old = self.place(index);
        if let (Some(waiting), Some(mark)) =
            (self.waiting.get(index % N), self.marks.get(index % N))
        {
            waiting.set((new.at, new.freed));
            mark.set(new.mark);
        }
        old
    }

    /// Puts a block behind all others; the one that waited longest is given.
    #[inline]
    fn turn(&self, new: Place) -> Place {
        let next = self.next.get() % N;
        self.next.set(next + 1);
        self.replace(next, new)
    }
}

impl<S: System, L: Local> Allocator<S, L> {
    /// Lets a freed block wait, whose mark is given; the one that waits longest leaves.
    #[inline]
    pub(super) fn quarantine(
        &self,
        heap: &Heap,
        at: *mut u8,
        mark: u64,
        freed: Site,
        bytes: usize,
    ) {
        let (rings, place) = (rings(heap), Place { at, freed, mark: fold(mark) });
        if bytes > SMALL_MAX {
            return self.quarantine_medium(rings, place, bytes);
        }
        let left = rings.small.turn(place);
        // Most have not been looked at for a while.
        let soon = rings.small.place(rings.small.next.get()).at;
        pattern::fetch(soon.wrapping_sub(HEADER));
        pattern::fetch(soon.wrapping_add(64 - HEADER));
        if !self.leave(heap, &left) {
            self.leave_rest(&left);
        }
    }

    #[cold]
    #[inline(never)]
    fn quarantine_medium(&self, rings: &Rings, place: Place, bytes: usize) {
        while rings.count.get() == MEDIUM_PLACES
            || (rings.count.get() > 0 && rings.bytes.get() + bytes > BYTES)
        {
            let oldest = rings.medium.next.get() + MEDIUM_PLACES - rings.count.get();
            let left = self.leave_rest(&rings.medium.replace(oldest, NOTHING));
            rings.count.set(rings.count.get() - 1);
            rings.bytes.set(rings.bytes.get() - left);
        }
        rings.medium.turn(place);
        rings.count.set(rings.count.get() + 1);
        rings.bytes.set(rings.bytes.get() + bytes);
    }

    /// The short way of a block that leaves: a small one of a slab of this thread's, in order. False:
    /// nothing has happened.
    #[inline]
    fn leave(&self, heap: &Heap, place: &Place) -> bool {
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
                || !pattern::is_junk_whole(at, bytes, place.freed.bits())
            {
                return false;
            }
            (*header(at)).mark = mark ^ Standing::Freed as u64 ^ Standing::Gone as u64;
            (*epitaph(at))[1] = allocated;
            self.free_own(heap, unit, inner.cast::<Block>());
        }
        true
    }

    /// A block leaves: its junk is checked, then the inner block is free. Its bytes.
    #[cold]
    #[inline(never)]
    fn leave_rest(&self, place: &Place) -> usize {
        let at = place.at;
        if at.is_null() {
            return 0;
        }
        let found = self.check_freed(place);
        // SAFETY: its mark was just confirmed, and nobody uses the block.
        unsafe {
            (*header(at)).mark ^= Standing::Freed as u64 ^ Standing::Gone as u64;
            (*epitaph(at))[1] = found.allocated;
            self.free_rest(at.wrapping_sub(found.lead));
        }
        found.bytes
    }

    fn check_freed(&self, place: &Place) -> Found {
        let found = self.read_header(place.at);
        if let Some(found) = found.filter(Found::is_freed) {
            // SAFETY: a freed block has its junk.
            if unsafe { pattern::is_junk_whole(place.at, found.bytes, place.freed.bits()) } {
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
        let rings = rings(heap);
        for _ in 0..PLACES {
            self.leave_rest(&rings.small.turn(NOTHING));
        }
        for _ in 0..MEDIUM_PLACES {
            self.leave_rest(&rings.medium.turn(NOTHING));
        }
        rings.count.set(0);
        rings.bytes.set(0);
    }

    /// Checks everything that this thread freed, and leaves it where it is.
    pub(super) fn check_quarantine(&self, heap: &Heap) {
        let rings = rings(heap);
        let small = (0..PLACES).map(|index| rings.small.place(index));
        let medium = (0..MEDIUM_PLACES).map(|index| rings.medium.place(index));
        for place in small.chain(medium).filter(|place| !place.at.is_null()) {
            self.check_freed(&place);
        }
    }
}

#[inline]
fn bytes_of(mark: u64) -> usize {
    (mark & LOW) as usize >> 8
}
