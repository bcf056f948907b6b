//! Where freed blocks wait: two rings for each thread, of blocks in slabs and of others, in the pages
//! behind its heap. There is also what the thread knows of places in the program.
//!
//! Blocks in slabs leave some at a time, in a loop of their own, whose turns do not wait for each other.
#![allow(unsafe_code)] // reads and writes freed blocks

use core::cell::Cell;
use core::ptr;

use super::{
    BYTES, Found, GONE, Known, LINE, MARK, MEDIUM_PLACES, PLACES, SMALL_BYTES, TOLL, bytes_of,
    epitaph, is_plain, mark_of, pattern,
};
use crate::allocator::{Allocator, fetch};
use crate::heap::{HEAP_STRIDE, Heap};
use crate::story::{Site, Trouble};
use crate::system::{Local, PAGE_BYTES, System};
use crate::unit::Block;

/// All zero is empty.
#[repr(C)]
pub(super) struct Behind {
    small: Ring<PLACES>,
    medium: Ring<MEDIUM_PLACES>,
    pub(super) known: Known,
}

/// Blocks in the order in which they were freed.
#[repr(C)]
struct Ring<const N: usize> {
    /// How many have ever come, and how many of them have left.
    came: Cell<usize>,
    left: Cell<usize>,
    /// Bytes of those that wait, as the ring counts them.
    bytes: Cell<usize>,
    waiting: [Cell<Place>; N],
}

/// A block that waits.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Place {
    /// What must still be at the block's start: its mark, and who freed it.
    pub(super) start: [u64; 2],
    pub(super) at: *mut u8,
}

impl Place {
    const NOTHING: Self = Self { start: [0; 2], at: ptr::null_mut() };

    fn freed(&self) -> Site {
        Site::from_bits(self.start[1])
    }
}

const _: () = assert!(size_of::<Behind>() <= HEAP_STRIDE - PAGE_BYTES);
// What waits has a place: one more comes before some leave.
const _: () = assert!(SMALL_BYTES / TOLL < PLACES && PLACES.is_power_of_two());

/// When there is no room: until so many bytes are left.
const SMALL_KEPT: usize = SMALL_BYTES - SMALL_BYTES / 8;

/// A block that will leave soon is asked for so many turns before.
const SOON: usize = 3;

#[inline(always)]
pub(super) fn behind(heap: &Heap) -> &Behind {
    let behind = ptr::from_ref(heap).addr() + PAGE_BYTES;
    // SAFETY: behind each heap lie committed pages up to the next, which nothing else uses. A reference to a
    // heap does not reach there; the window does, which is exposed.
    unsafe { &*ptr::with_exposed_provenance(behind) }
}

impl<const N: usize> Ring<N> {
    #[inline]
    fn place(&self, index: usize) -> Place {
        self.waiting.get(index % N).map_or(Place::NOTHING, Cell::get)
    }

    fn count(&self) -> usize {
        self.came.get() - self.left.get()
    }

    /// Puts a block behind all others. Bytes that wait now.
    #[inline]
    fn put(&self, new: Place, bytes: usize) -> usize {
        let came = self.came.get();
        if let Some(place) = self.waiting.get(came % N) {
            place.set(new);
        }
        self.came.set(came + 1);
        let bytes = self.bytes.get() + bytes;
        self.bytes.set(bytes);
        bytes
    }

    /// The one that has waited longest leaves.
    #[inline]
    fn take(&self) -> Place {
        let left = self.left.get();
        self.left.set(left + 1);
        self.place(left)
    }

    fn all(&self) -> impl Iterator<Item = Place> {
        (self.left.get()..self.came.get()).map(|index| self.place(index))
    }
}

impl<S: System, L: Local> Allocator<S, L> {
    /// Lets a freed block wait that lies in a slab. If too much waits, those that wait longest leave.
    #[inline]
    pub(super) fn quarantine(&self, heap: &Heap, place: Place, bytes: usize) {
        if behind(heap).small.put(place, bytes + TOLL) > SMALL_BYTES {
            self.make_room(heap);
        }
    }

    #[inline(never)]
    fn make_room(&self, heap: &Heap) {
        let ring = &behind(heap).small;
        let (mut left, mut bytes) = (ring.left.get(), ring.bytes.get());
        while bytes > SMALL_KEPT {
            let place = ring.place(left);
            left += 1;
            // Most have not been looked at for a while.
            let soon = ring.place(left + SOON).at;
            fetch(soon.wrapping_sub(MARK));
            fetch(soon.wrapping_add(LINE - MARK));
            bytes -= bytes_of(place.start[0]) + TOLL;
            if !self.leave(heap, &place) {
                // It may be the end of the program: the block has left.
                ring.left.set(left);
                ring.bytes.set(bytes);
                self.leave_rest(&place);
            }
        }
        ring.left.set(left);
        ring.bytes.set(bytes);
    }

    /// Lets a freed block wait that lies in no slab.
    #[cold]
    #[inline(never)]
    pub(super) fn quarantine_medium(&self, heap: &Heap, place: Place, bytes: usize) {
        let ring = &behind(heap).medium;
        while ring.count() == MEDIUM_PLACES
            || (ring.count() > 0 && ring.bytes.get() + bytes > BYTES)
        {
            let left = self.leave_rest(&ring.take());
            ring.bytes.set(ring.bytes.get() - left);
        }
        ring.put(place, bytes);
    }

    /// The short way of a block that leaves: one of a slab of this thread's, in order. False: nothing has
    /// happened.
    #[inline(always)]
    fn leave(&self, heap: &Heap, place: &Place) -> bool {
        let &Place { at, start: [mark, _] } = place;
        // SAFETY: *every-header-readable*; the block lies in the small window.
        let unit = unsafe { &*self.window.unit_of(at as usize) };
        // SAFETY: what waits is a block with a header, and has its junk unless somebody wrote there.
        unsafe {
            if !is_plain(mark)
                || !pattern::is_junk_whole(at, bytes_of(mark), &place.start)
                || !unit.is_of(heap)
            {
                return false;
            }
            mark_of(at).write(mark ^ GONE);
            (*epitaph(at))[1] = place.freed();
            self.free_own(heap, unit, at.cast::<Block>());
        }
        true
    }

    /// A block leaves: its junk is checked, then the inner block is free. Its bytes.
    #[cold]
    #[inline(never)]
    fn leave_rest(&self, place: &Place) -> usize {
        let at = place.at;
        let found = self.check_freed(place);
        // SAFETY: its mark was just confirmed, and nobody uses the block.
        unsafe {
            *mark_of(at) ^= GONE;
            let small = self.window.is_small(at as usize);
            (*epitaph(at))[1] = if small { place.freed() } else { found.allocated };
            self.free_rest(at.wrapping_sub(found.lead));
        }
        found.bytes
    }

    fn check_freed(&self, place: &Place) -> Found {
        let found = self.read_header(place.at);
        if let Some(found) = found.filter(Found::is_freed) {
            // SAFETY: a freed block has its junk.
            if unsafe { pattern::is_junk_whole(place.at, found.bytes, &place.start) } {
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
        let found = Found { freed: place.freed(), ..found };
        // SAFETY: a freed block has its junk.
        let first = unsafe { pattern::first_written(at, found.bytes) }.unwrap_or(0);
        self.tell(Trouble::AfterFree, at.wrapping_add(first), at, &found)
    }

    /// Lets everything go that this thread freed.
    pub(crate) fn empty_quarantine(&self, heap: &Heap) {
        let Behind { small, medium, .. } = behind(heap);
        while small.count() > 0 {
            self.leave_rest(&small.take());
        }
        while medium.count() > 0 {
            self.leave_rest(&medium.take());
        }
        small.bytes.set(0);
        medium.bytes.set(0);
    }

    /// Checks everything that this thread freed, and leaves it where it is.
    pub(super) fn check_quarantine(&self, heap: &Heap) {
        let Behind { small, medium, .. } = behind(heap);
        for place in small.all().chain(medium.all()) {
            self.check_freed(&place);
        }
    }
}
