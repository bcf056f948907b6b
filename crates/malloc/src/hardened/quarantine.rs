//! Where freed blocks wait: a ring for each thread, in the pages behind its heap.
#![allow(unsafe_code)] // reads and writes freed blocks

use core::cell::Cell;
use core::ptr;

use super::{BYTES, Header, JUNK, JUNK_SPAN, PLACES, Standing, header, pattern};
use crate::allocator::Allocator;
use crate::heap::{HEAP_STRIDE, Heap};
use crate::story::Trouble;
use crate::system::{Local, PAGE_BYTES, System};

/// All zero is an empty one.
#[repr(C)]
struct Ring {
    first: Cell<usize>,
    count: Cell<usize>,
    bytes: Cell<usize>,
    places: [Cell<*mut u8>; PLACES],
}

const _: () = assert!(size_of::<Ring>() <= HEAP_STRIDE - PAGE_BYTES);

fn ring(heap: &Heap) -> &Ring {
    // SAFETY: behind each heap lie committed pages up to the next, which nothing else uses.
    unsafe { &*ptr::from_ref(heap).wrapping_byte_add(PAGE_BYTES).cast() }
}

/// The junk of a freed block: its start and its end.
fn junk(at: *mut u8, bytes: usize) -> [(*mut u8, usize); 2] {
    let span = bytes.min(JUNK_SPAN);
    let rest = (bytes - span).min(JUNK_SPAN);
    [(at, span), (at.wrapping_add(bytes - rest), rest)]
}

impl<S: System, L: Local> Allocator<S, L> {
    /// Fills a freed block with junk and lets it wait; others leave.
    pub(super) fn quarantine(&self, at: *mut u8, found: &Header) {
        for (start, bytes) in junk(at, found.bytes()) {
            // SAFETY: bytes of the freed block.
            unsafe { pattern::fill(start, bytes, JUNK) };
        }
        let Some(heap) = self.own_heap() else { return self.leave(at) };
        let ring = ring(heap);
        while ring.count.get() >= PLACES
            || (ring.count.get() > 0 && ring.bytes.get() + found.bytes() > BYTES)
        {
            self.leave(pop(ring));
        }
        if let Some(place) = ring.places.get((ring.first.get() + ring.count.get()) % PLACES) {
            place.set(at);
            ring.count.set(ring.count.get() + 1);
            ring.bytes.set(ring.bytes.get() + found.bytes());
        }
    }

    /// A block leaves: its junk is checked, then the inner block is free.
    fn leave(&self, at: *mut u8) {
        if at.is_null() {
            return;
        }
        self.check_freed(at);
        // SAFETY: its header was just confirmed; nobody uses the block.
        unsafe {
            let mut found = header(at).read();
            found.seal = self.seal(at, found.size, Standing::Gone);
            header(at).write(found);
            self.free_rest(at.wrapping_sub(found.lead()));
        }
    }

    fn check_freed(&self, at: *mut u8) {
        let Some((found, Standing::Freed)) = self.read_header(at) else {
            self.stop(&crate::Stop::Trouble(Trouble::Before, at as usize, None));
        };
        for (start, bytes) in junk(at, found.bytes()) {
            // SAFETY: bytes of a freed block.
            if let Some(first) = unsafe { pattern::first_other(start, bytes, JUNK) } {
                self.tell(Trouble::AfterFree, start.wrapping_add(first), at, &found);
            }
        }
    }

    /// Lets everything go that this thread freed.
    pub(crate) fn empty_quarantine(&self, heap: &Heap) {
        let ring = ring(heap);
        while ring.count.get() > 0 {
            self.leave(pop(ring));
        }
    }

    /// Checks everything that this thread freed, and leaves it where it is.
    pub(super) fn check_quarantine(&self, heap: &Heap) {
        let ring = ring(heap);
        for index in 0..ring.count.get() {
            if let Some(place) = ring.places.get((ring.first.get() + index) % PLACES) {
                self.check_freed(place.get());
            }
        }
    }
}

fn pop(ring: &Ring) -> *mut u8 {
    let Some(place) = ring.places.get(ring.first.get() % PLACES) else { return ptr::null_mut() };
    let at = place.replace(ptr::null_mut());
    ring.first.set((ring.first.get() + 1) % PLACES);
    ring.count.set(ring.count.get() - 1);
    // SAFETY: a block in quarantine has its header, whose size `quarantine` counted.
    let bytes = unsafe { header(at).read() }.bytes();
    ring.bytes.set(ring.bytes.get().saturating_sub(bytes));
    at
}
