//! # What is known about a slab?
//!
//! One 64-byte header for each 16 KiB of the small window, in an array of their own, so that a
//! program that writes behind its blocks does not hit them.
//!
//! Who may touch what: *o* the owning thread alone; *p* written while the unit belongs to the pool or
//! by the owner, read by anybody who holds a block of the slab; *r* anybody, by the protocol of
//! [`crate::remote`]. A slab that nobody is in belongs to who sweeps it away ([`crate::sweep`]).
//!
//! Invariant *conservation*: `carved = used + free list + chain in the remote word`, where `used` is
//! what the program (or another thread's outgoing cache) holds.
//!
//! Invariant *list*: the free list ends at the header itself, whose first word is the list's first link. So
//! the end links to itself exactly when the list is empty, as a block does that was freed twice in a row: one
//! comparison sends both to the slow path.
//!
//! Invariant *countdown*: the number of frees by the owner until somebody must look: `used` when
//! `Listed`, `used + 1` when `Head` (never zero: an empty head is kept), *patience* when `Full` (when an eighth
//! is free, the slab goes back to its list).
//!
//! Invariant *one-compare*: `key` is the sum of the addresses of the first block and of the owning
//! heap. Heaps stand at least a unit apart, from each other and from the one that is never written,
//! and all of them closer together than a window is long. So `at + heap - key` is a distance inside
//! the unit only when `at` lies in the unit *and* `heap` owns it, and *exact-block* rejects every other
//! distance: one comparison answers both questions. Units without an owner have a limit of zero.

use core::cell::Cell;
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use crate::classes::{self, Class};
use crate::heap::Heap;
use crate::remote::Remote;

/// A free block: its first word links to the next.
#[repr(C)]
pub struct Block {
    /// The next free block, or its slab's header.
    pub next: Cell<*mut Block>,
}

/// Where the owner keeps the slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On its class's list, behind the head.
    Listed = 0,
    /// First of its class's list: allocations come from here.
    Head = 1,
    /// On no list; every block was handed out.
    Full = 2,
}

/// A slab's header.
#[repr(C, align(64))]
pub struct Unit {
    /// o: the free list.
    pub free: Cell<*mut Block>,
    /// p: the owning heap, null when the unit is no slab.
    pub owner: AtomicPtr<Heap>,
    /// p: see *one-compare*.
    pub key: AtomicUsize,
    /// p: see *exact-block*.
    pub multiplier: AtomicU64,
    /// p: see *exact-block*: grows with `carved`.
    pub limit: AtomicU64,
    /// o: see *countdown*.
    pub countdown: Cell<u32>,
    /// p: the size class.
    pub class: AtomicU8,
    /// p: where the owner keeps it; changed by the owner alone, see [`crate::sweep`].
    place: AtomicU8,
    /// o: blocks ever handed to the free list since the unit became a slab.
    pub carved: Cell<u16>,
    /// r: what other threads freed.
    pub remote: Remote,
    /// o: unit number + 1 of the next.
    pub next: Cell<u32>,
    /// o: unit number + 1 of the one before.
    pub previous: Cell<u32>,
}

const _: () = assert!(size_of::<Unit>() == 64);
const _: () = assert!(offset_of!(Unit, free) == 0 && offset_of!(Block, next) == 0);

/// The header that stands for "no slab": its free list is empty for ever (*list*), its owner nobody.
pub static NONE: Nobody = Nobody(Unit {
    free: Cell::new((&raw const NONE).cast_mut().cast()),
    owner: AtomicPtr::new(ptr::null_mut()),
    key: AtomicUsize::new(0),
    multiplier: AtomicU64::new(0),
    limit: AtomicU64::new(0),
    countdown: Cell::new(0),
    class: AtomicU8::new(0),
    place: AtomicU8::new(Place::Listed as u8),
    carved: Cell::new(0),
    remote: Remote::new(),
    next: Cell::new(0),
    previous: Cell::new(0),
});

/// A header that may be shared because nobody writes it.
pub struct Nobody(pub Unit);

#[allow(unsafe_code)] // one promise about one static
// SAFETY: the cells are never written: an empty free list sends every allocation to the slow path,
// and a null owner every free.
unsafe impl Sync for Nobody {}

impl Unit {
    /// The description of the slab's class.
    #[inline]
    pub fn class(&self) -> &'static Class {
        classes::of(usize::from(self.class.load(Ordering::Relaxed)))
    }

    /// Whether this heap owns the slab and `at` is the start of a block that was carved
    /// (*one-compare*).
    #[inline(always)]
    pub fn holds_for(&self, heap: usize, at: usize) -> bool {
        let distance = at.wrapping_add(heap).wrapping_sub(self.key.load(Ordering::Relaxed)) as u64;
        distance.wrapping_mul(self.multiplier.load(Ordering::Relaxed))
            < self.limit.load(Ordering::Relaxed)
    }

    /// Where the free list ends (*list*).
    #[inline(always)]
    pub fn end(&self) -> *mut Block {
        ptr::from_ref(self).cast_mut().cast()
    }

    /// Whether this heap owns the slab.
    #[inline]
    pub fn is_of(&self, heap: &Heap) -> bool {
        ptr::eq(self.owner.load(Ordering::Relaxed), heap)
    }

    /// Whether a distance from the first block leads to the start of a block that was carved.
    pub fn holds(&self, distance: usize) -> bool {
        self.scaled(distance) < self.limit.load(Ordering::Relaxed)
    }

    /// Whether a distance from the first block leads to the start of a block, carved or not.
    pub fn spans(&self, distance: usize) -> bool {
        let class = self.class();
        self.scaled(distance) < u64::from(class.blocks) * class.step
    }

    fn scaled(&self, distance: usize) -> u64 {
        (distance as u64).wrapping_mul(self.multiplier.load(Ordering::Relaxed))
    }

    /// How many blocks of a full slab must be free before it goes back to its list: an eighth and two, so
    /// that the way there and back, which waits for a cold block or two, is paid once for several blocks.
    pub fn patience(&self) -> u32 {
        self.class().blocks / 8 + 2
    }

    /// Blocks that the program holds, as the owner knows it.
    pub fn used(&self) -> u32 {
        let countdown = self.countdown.get();
        match self.place() {
            Place::Listed => countdown,
            Place::Head => countdown.wrapping_sub(1),
            Place::Full => u32::from(self.carved.get()) + countdown - self.patience(),
        }
    }

    /// Where the owner keeps the slab. Who reads [`Place::Full`] sees all that the owner did before.
    #[inline]
    pub fn place(&self) -> Place {
        match self.place.load(Ordering::Acquire) {
            0 => Place::Listed,
            1 => Place::Head,
            _ => Place::Full,
        }
    }

    /// Puts the slab elsewhere in the owner's books. The last thing that the owner does with a full one,
    /// until a block of it comes back: another thread may take it away ([`crate::sweep`]).
    pub fn set_place(&self, place: Place, used: u32) {
        self.countdown.set(match place {
            Place::Listed => used,
            Place::Head => used.wrapping_add(1),
            Place::Full => self.patience(),
        });
        self.place.store(place as u8, Ordering::Release);
    }
}
