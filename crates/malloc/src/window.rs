//! # Where does everything lie?
//!
//! One reservation of addresses, most of it never touched:
//!
//! ```text
//! | gap | heaps | arenas | unit bitmaps | unit headers | cells |   small window   |   medium window   |
//! ```
//!
//! A unit header describes 16 KiB of the small window, a cell 1 KiB of the medium window. Both windows
//! start at multiples of 2 MiB and are equally large, a power of two; when the system refuses, half of it is tried, down to 16 MiB.
//!
//! Invariant *every-header-readable*: a header is found by masking the address, so that every address
//! whatsoever leads to some readable header. Whether the address belongs to it, *exact-block* says.
#![allow(unsafe_code)] // address arithmetic inside one reservation

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use crate::arena::{ARENAS, Arena, CELL_BYTES, Cell};
use crate::classes::{UNIT_BYTES, UNIT_SHIFT};
use crate::heap::{HEAP_STRIDE, Heap};
use crate::huge::{FROM, REGION};
use crate::lock::Lock;
use crate::system::System;
use crate::unit::{NONE, Unit};

/// Bytes of each window that are asked for first: 512 GiB.
#[cfg(target_pointer_width = "64")]
const LARGEST: usize = 1 << 39;
const _: () = assert!(LARGEST / UNIT_BYTES < 1 << crate::remote::UNIT_BITS);
/// Below this nothing is worth the trouble: 16 MiB.
const SMALLEST: usize = 1 << 24;
/// How many heaps there may be, with the largest window.
const HEAPS: usize = 1 << 15;
/// Bytes kept for an arena's books.
pub const ARENA_STRIDE: usize = 4096;
/// Small and medium memory is made usable in steps of this many bytes.
pub const STEP: usize = 4 << 20;

/// The reservation. All zero until [`Window::open`].
pub struct Window {
    headers: AtomicPtr<Unit>,
    mask: AtomicUsize,
    start: AtomicPtr<u8>,
    bytes: AtomicUsize,
    /// Bytes of the small window, and of the medium one.
    half: AtomicUsize,
    small: AtomicPtr<u8>,
    /// Bytes of the small window that can be read: from its start, never fewer.
    readable: AtomicUsize,
    medium: AtomicPtr<u8>,
    cells: AtomicPtr<Cell>,
    /// Where huge pages begin in the small window and in each arena: [`FROM`],
    /// [`crate::huge::FROM_HARDENED`] or nowhere.
    huge_from: AtomicUsize,
    /// How many times the usual the pool and the arenas may keep.
    patience: AtomicU32,
    locks: [ArenaLock; ARENAS],
}

/// An arena's lock, on a cache line of its own. The locks stand apart from the arenas' books, so that a
/// fork, which takes them all, touches no arena that was never used.
#[repr(align(64))]
struct ArenaLock(Lock);

/// Byte offsets of the parts.
struct Layout {
    bitmaps: usize,
    headers: usize,
    cells: usize,
    small: usize,
    total: usize,
}

fn heaps(half: usize) -> usize {
    HEAPS.min(half / (1 << 20))
}

/// Offset of the arenas. Before the heaps lies a gap, so that no heap is near what lies before the
/// reservation (*one-compare* in [`crate::unit`]).
fn arenas(half: usize) -> usize {
    HEAP_STRIDE + heaps(half) * HEAP_STRIDE
}

fn layout(half: usize) -> Layout {
    let arenas = arenas(half);
    let bitmaps = arenas + ARENAS * ARENA_STRIDE;
    let units = half / UNIT_BYTES;
    let headers = bitmaps + (units / 4).next_multiple_of(UNIT_BYTES);
    let cells = headers + units * size_of::<Unit>();
    let small = (cells + half / CELL_BYTES * size_of::<Cell>()).next_multiple_of(UNIT_BYTES);
    // The windows begin at the next region's start.
    Layout { bitmaps, headers, cells, small, total: small + REGION - UNIT_BYTES + 2 * half }
}

impl Window {
    /// No reservation yet.
    pub const fn new() -> Self {
        Self {
            headers: AtomicPtr::new(ptr::from_ref(&NONE.0).cast_mut()),
            mask: AtomicUsize::new(0),
            start: AtomicPtr::new(ptr::null_mut()),
            bytes: AtomicUsize::new(0),
            half: AtomicUsize::new(0),
            small: AtomicPtr::new(ptr::null_mut()),
            readable: AtomicUsize::new(0),
            medium: AtomicPtr::new(ptr::null_mut()),
            cells: AtomicPtr::new(ptr::null_mut()),
            huge_from: AtomicUsize::new(FROM),
            patience: AtomicU32::new(1),
            locks: [const { ArenaLock(Lock::new()) }; ARENAS],
        }
    }

    /// Makes the reservation. Called once, under a lock. False: the system refused even the smallest.
    pub fn open<S: System>(&self, system: &S) -> bool {
        let mut half = LARGEST;
        while half >= SMALLEST {
            if let Some(start) = Self::reserve(system, half) {
                self.publish(start, half);
                return true;
            }
            // Where room is short, others need some of it too.
            half /= if half == LARGEST { 4 } else { 2 };
        }
        false
    }

    fn reserve<S: System>(system: &S, half: usize) -> Option<NonNull<u8>> {
        let layout = layout(half);
        let start = system.reserve(layout.total)?;
        // SAFETY: the first part of a fresh reservation.
        if unsafe { system.commit(start, layout.small) } {
            return Some(start);
        }
        // SAFETY: ours, and nobody knows it.
        unsafe { system.unmap(start, layout.total) };
        None
    }

    fn publish(&self, start: NonNull<u8>, half: usize) {
        let layout = layout(half);
        let at = |offset| start.as_ptr().wrapping_add(offset);
        self.bytes.store(layout.total, Ordering::Relaxed);
        self.half.store(half, Ordering::Relaxed);
        self.start.store(start.as_ptr(), Ordering::Relaxed);
        // For what lies behind heaps.
        start.as_ptr().expose_provenance();
        // The header of address `a` stands at `(a >> 14) mod units`; the array is rotated so that no
        // subtraction is needed.
        self.headers.store(at(layout.headers).cast(), Ordering::Relaxed);
        self.mask.store((half / UNIT_BYTES - 1) * size_of::<Unit>(), Ordering::Relaxed);
        let small = at(layout.small);
        let small = small.wrapping_add((small as usize).wrapping_neg() % REGION);
        self.medium.store(small.wrapping_add(half), Ordering::Relaxed);
        self.cells.store(at(layout.cells).cast(), Ordering::Relaxed);
        self.small.store(small, Ordering::Release);
    }

    /// Locks of the arenas, by number: rank 4 of the locks.
    pub fn locks(&self) -> impl Iterator<Item = &Lock> {
        self.locks.iter().map(|lock| &lock.0)
    }

    /// The lock of an arena; numbers beyond the last mean the first again.
    pub fn lock(&self, number: usize) -> &Lock {
        &self.locks[number % ARENAS].0
    }

    /// Whether the reservation has been made.
    pub fn is_open(&self) -> bool {
        !self.small.load(Ordering::Acquire).is_null()
    }

    /// Ends the reservation.
    ///
    /// # Safety
    /// Nobody uses anything in it again.
    pub unsafe fn close<S: System>(&self, system: &S) {
        let start = self.start.swap(ptr::null_mut(), Ordering::Relaxed);
        self.small.store(ptr::null_mut(), Ordering::Relaxed);
        self.readable.store(0, Ordering::Relaxed);
        if let Some(start) = NonNull::new(start) {
            // SAFETY: as the caller promised.
            unsafe { system.unmap(start, self.bytes.load(Ordering::Relaxed)) };
        }
    }

    /// The header that an address leads to (*every-header-readable*).
    #[inline(always)]
    pub fn unit_of(&self, at: usize) -> *const Unit {
        let offset = (at >> (UNIT_SHIFT - 6)) & self.mask.load(Ordering::Relaxed);
        self.headers.load(Ordering::Relaxed).wrapping_byte_add(offset)
    }

    /// The headers, and the mask that [`Window::unit_of`] applies.
    pub fn headers(&self) -> (*const Unit, usize) {
        (self.headers.load(Ordering::Relaxed), self.mask.load(Ordering::Relaxed))
    }

    /// The number of a header, counted from the small window's first unit.
    #[inline]
    pub fn number_of(&self, unit: *const Unit) -> u32 {
        let place =
            (unit as usize - self.headers.load(Ordering::Relaxed) as usize) / size_of::<Unit>();
        (place.wrapping_sub(self.first()) & (self.units() - 1)) as u32
    }

    /// The header of a unit.
    #[inline]
    pub fn unit(&self, number: u32) -> *const Unit {
        let place = (self.first() + number as usize) & (self.units() - 1);
        self.headers.load(Ordering::Relaxed).wrapping_add(place)
    }

    /// The memory of a unit.
    #[inline]
    pub fn memory(&self, number: u32) -> *mut u8 {
        self.small.load(Ordering::Relaxed).wrapping_add(number as usize * UNIT_BYTES)
    }

    /// The header's place of the small window's first unit.
    #[inline]
    fn first(&self) -> usize {
        (self.small.load(Ordering::Relaxed) as usize >> UNIT_SHIFT) & (self.units() - 1)
    }

    /// Units in the small window.
    #[inline]
    pub fn units(&self) -> usize {
        self.half.load(Ordering::Relaxed) / UNIT_BYTES
    }

    /// The distance of an address from the start of the small window; a large number if it lies before it.
    #[inline(always)]
    pub fn small_offset(&self, at: usize) -> usize {
        at.wrapping_sub(self.small.load(Ordering::Relaxed) as usize)
    }

    /// Whether the address lies in the small window.
    #[inline]
    pub fn is_small(&self, at: usize) -> bool {
        at.wrapping_sub(self.small.load(Ordering::Relaxed) as usize)
            < self.half.load(Ordering::Relaxed)
    }

    /// Whether the address lies in memory of the small window that can be read.
    #[inline(always)]
    pub fn is_readable(&self, at: usize) -> bool {
        self.small_offset(at) < self.readable.load(Ordering::Relaxed)
    }

    /// So many bytes of the small window can be read from now on.
    pub fn set_readable(&self, bytes: usize) {
        self.readable.store(bytes, Ordering::Relaxed);
    }

    /// The distance of an address from the start of the medium window, if it lies in it.
    #[inline]
    pub fn medium_offset(&self, at: usize) -> Option<usize> {
        let offset = at.wrapping_sub(self.medium.load(Ordering::Relaxed) as usize);
        (offset < self.half.load(Ordering::Relaxed)).then_some(offset)
    }

    /// The medium window.
    #[inline]
    pub fn medium(&self) -> *mut u8 {
        self.medium.load(Ordering::Relaxed)
    }

    /// Bytes of the medium window.
    #[inline]
    pub fn medium_bytes(&self) -> usize {
        self.half.load(Ordering::Relaxed)
    }

    /// The cells of the medium window.
    #[inline]
    pub fn cells(&self) -> *const Cell {
        self.cells.load(Ordering::Relaxed)
    }

    /// The two bitmaps of units in the pool, one after the other, a bit for each unit.
    pub fn bitmaps(&self) -> *mut u64 {
        let half = self.half.load(Ordering::Relaxed);
        self.start.load(Ordering::Relaxed).wrapping_add(layout(half).bitmaps).cast()
    }

    /// How far from the start of the small window, and of each arena, huge pages begin.
    pub fn huge_from(&self) -> usize {
        self.huge_from.load(Ordering::Relaxed)
    }

    /// From now on they begin at another distance; nowhere, at the largest number.
    pub fn set_huge_from(&self, bytes: usize) {
        self.huge_from.store(bytes, Ordering::Relaxed);
    }

    /// How many times the usual may wait in the pool and the arenas before it goes back.
    pub fn patience(&self) -> u32 {
        self.patience.load(Ordering::Relaxed)
    }

    /// From now on so many times the usual may wait.
    pub fn set_patience(&self, times: u32) {
        self.patience.store(times, Ordering::Relaxed);
    }

    /// How many heaps there is room for.
    pub fn heaps(&self) -> usize {
        heaps(self.half.load(Ordering::Relaxed))
    }

    /// The heap of a number below [`Window::heaps`]: zeroed memory until somebody sets it up.
    pub fn heap(&self, number: usize) -> *mut Heap {
        self.start.load(Ordering::Relaxed).wrapping_add((number + 1) * HEAP_STRIDE).cast()
    }

    /// The arena of a number below [`ARENAS`]: all zero at first, which is an empty one.
    #[inline]
    pub fn arena(&self, number: usize) -> *const Arena {
        let offset = arenas(self.half.load(Ordering::Relaxed)) + number * ARENA_STRIDE;
        self.start.load(Ordering::Relaxed).wrapping_add(offset).cast()
    }
}
