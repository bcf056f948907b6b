//! # What does a thread own?
//!
//! A heap: for each class a list of slabs that have room, the caches of medium and large blocks, and
//! what the thread freed for others. Heaps stand in a table in the window and never go away; a heap
//! whose thread ended (*dead*) is taken over whole by the next thread that needs one.
//!
//! Invariant *heap-exclusive*: only the thread that [`Local`](crate::Local) points to the heap, or
//! whoever changed `state` from [`DEAD`] to [`BUSY`], touches anything but the atomics. Its slabs are part
//! of that, but for those that nobody is in ([`crate::sweep`]).
//!
//! Invariant *generation*: a heap with another generation than the process belongs to a thread that a
//! fork left behind. Nothing in it is read; its slabs are taken over one by one, as if all their
//! blocks were in use, when one of them is freed.

use core::cell::Cell;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::classes::{CLASSES, UNIT_BYTES, WORDS};
use crate::outgoing::Outgoing;
use crate::recent::Recents;
use crate::sample::chance::Luck;
use crate::system::PAGE_BYTES;
use crate::unit::{NONE, Unit};

/// Distance between heaps: what *one-compare* in [`crate::unit`] demands. Only the first page is ever
/// touched, so that a new thread costs one.
pub const HEAP_STRIDE: usize = UNIT_BYTES;

/// `state`: never used.
pub const FRESH: u32 = 0;
/// `state`: a thread has it.
pub const LIVE: u32 = 1;
/// `state`: its thread ended.
pub const DEAD: u32 = 2;
/// `state`: dead, and somebody is tidying it.
pub const BUSY: u32 = 3;

/// A thread's heap.
#[repr(C)]
pub struct Heap {
    /// For each request size in 16-byte words: the slab to take a block from.
    pub(crate) direct: [Cell<*const Unit>; WORDS],
    /// The same in hardened mode and while allocations are sampled, which have ways of their own.
    pub(crate) sealed: [Cell<*const Unit>; WORDS],
    /// Bytes until the next sample ([`crate::sample`]), and where it comes from.
    pub(crate) until: Cell<usize>,
    pub(crate) luck: Cell<Luck>,
    /// Medium and large blocks freed lately. What is looked at before there is a heap ends here: it shares a page
    /// with what the first block writes to.
    pub(crate) recents: Recents,
    /// For each class: unit number + 1 of the first slab with room.
    pub(crate) queues: [Cell<u32>; CLASSES],
    /// Blocks freed for other heaps.
    pub(crate) outgoing: Outgoing,
    /// Unit number + 1 of the first slab that somebody announced.
    pub(crate) announced: AtomicU32,
    /// Slabs that became wholly free since somebody last looked at the announced ones.
    pub(crate) whole: AtomicU32,
    /// So many of them are swept away by others.
    pub(crate) sweep_at: AtomicU32,
    /// Whose it is.
    pub(crate) state: AtomicU32,
    /// The owner's thread number.
    pub(crate) thread: AtomicU32,
    /// The process in which the thread got it: numbers of threads mean nothing in another.
    pub(crate) process: AtomicU32,
    /// See *generation*.
    pub(crate) generation: AtomicU32,
    /// Its place in the table.
    pub(crate) number: AtomicU32,
    /// Slabs by class; read by the statistics.
    pub(crate) slabs: [AtomicU32; CLASSES],
}

const _: () = assert!(size_of::<Heap>() <= PAGE_BYTES);

pub(crate) struct Nobody(pub(crate) Heap);

#[allow(unsafe_code)] // one promise about one static
// SAFETY: nobody writes to it: it owns no slab, and every slow path looks for it first.
unsafe impl Sync for Nobody {}

pub(crate) static NO_HEAP: Nobody = Nobody(Heap::new());

impl Heap {
    /// The heap of a thread that has none: every list is empty. Never written.
    #[inline]
    pub const fn none() -> *const Self {
        // A reference to a static in a constant would need a newer compiler than we promise.
        &raw const NO_HEAP.0
    }

    pub(crate) const fn new() -> Self {
        Self {
            direct: [const { Cell::new(ptr::from_ref(&NONE.0)) }; WORDS],
            sealed: [const { Cell::new(ptr::from_ref(&NONE.0)) }; WORDS],
            until: Cell::new(0),
            luck: Cell::new(Luck::NONE),
            queues: [const { Cell::new(0) }; CLASSES],
            outgoing: Outgoing::new(),
            recents: Recents::new(),
            announced: AtomicU32::new(0),
            whole: AtomicU32::new(0),
            sweep_at: AtomicU32::new(0),
            state: AtomicU32::new(FRESH),
            thread: AtomicU32::new(0),
            process: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            number: AtomicU32::new(0),
            slabs: [const { AtomicU32::new(0) }; CLASSES],
        }
    }

    /// Points the requests that a class serves to a slab.
    pub(crate) fn set_direct(&self, watched: bool, class: usize, unit: *const Unit) {
        let direct = if watched { &self.sealed } else { &self.direct };
        let first = if class == 0 { 0 } else { words_of(class - 1) + 1 };
        for entry in direct.get(first..=words_of(class)).into_iter().flatten() {
            entry.set(unit);
        }
    }

    /// Counts slabs for the statistics.
    pub(crate) fn count_slab(&self, class: usize, more: bool) {
        if let Some(count) = self.slabs.get(class) {
            count.fetch_add(if more { 1 } else { u32::MAX }, Ordering::Relaxed);
        }
    }
}

fn words_of(class: usize) -> usize {
    crate::classes::of(class).bytes as usize / 16
}
