//! # What if the owner sleeps?
//!
//! What other threads free into a slab its owner fetches when it next runs out of blocks. A thread that
//! waits for work does not, and all that it ever allocated would stay with it. So whoever pushes the last
//! block of a slab counts it in the owner's books ([`Heap::whole`]), and when there are enough of them, it
//! *sweeps*: it takes the owner's stack, gives the slabs that are wholly free to the pool, and puts the
//! others back. From then on the pool's budget says what goes back to the system, and other threads may use
//! what the sleeper does not.
//!
//! Taking a heap over whole would need a word from its owner on each fast path, and a thread that is seen
//! asleep may sleep in a signal handler that interrupted `malloc`. One slab needs nothing of the kind:
//!
//! Invariant *nobody-in-it*: when all blocks of a slab are in its remote word, the program has none of them
//! and the free list is empty, so that the owner neither allocates from it nor frees into it. When it is
//! also [`Place::Full`], it is on no list of the owner's. Only its place on the stack is left, and whoever
//! took the stack has that. Neither can change meanwhile: it would take one of the blocks.
//!
//! A sweep costs some steps for each slab on the stack: it waits until an eighth of those that the last one
//! put back would go, and always for [`WORTH`]. The owner is not asked, nor slowed down: a stack that it
//! finds empty meanwhile sends it to its next slab.
//!
//! Left out: heads of the owner's lists (a slab for each size in use), up to four whole slabs of a size that it
//! wanted just before, and slabs of which the owner itself freed some blocks before it went to sleep: its free
//! lists are its own. So are the parcels and the recent blocks of threads that sleep.

use core::sync::atomic::Ordering;

use crate::allocator::Allocator;
use crate::classes::UNIT_BYTES;
use crate::heap::{DEAD, Heap};
use crate::idle::Part;
use crate::system::{Corruption, Local, System};
use crate::unit::Place;

/// So many slabs are worth a sweep: 512 KiB, as much as waits in the pool.
const WORTH: u32 = 32;

impl<S: System, L: Local> Allocator<S, L> {
    /// The last block of a slab was pushed.
    #[cold]
    #[inline(never)]
    pub(crate) fn is_whole(&self, owner: &Heap) {
        let whole = owner.whole.fetch_add(1, Ordering::Relaxed) + 1;
        if whole >= owner.sweep_at.load(Ordering::Relaxed).max(WORTH) {
            self.sweep(owner, WORTH);
        } else {
            self.note(Part::HEAPS, whole as usize * UNIT_BYTES);
        }
    }

    /// Gives the wholly free slabs of a heap to the pool, if there may be so many.
    pub(crate) fn sweep(&self, owner: &Heap, worth: u32) {
        let held = self.threads.sweep.take(&self.system);
        if owner.whole.load(Ordering::Relaxed) < worth || self.is_stale(owner) {
            return;
        }
        owner.whole.store(0, Ordering::Relaxed);
        let (generation, mut kept) = (self.word_generation(), 0);
        let mut number = owner.announced.swap(0, Ordering::Acquire);
        while number != 0 {
            let unit = self.unit(number - 1);
            let (count, next) = unit.remote.look(generation);
            if count == self.blocks(unit.class()) && unit.place() == Place::Full {
                unit.remote.take(generation);
                if unit.used() != count {
                    self.corrupt(Corruption::Count, self.base(unit) as usize);
                }
                self.release(owner, unit);
            } else {
                kept += 1;
                let top = owner.announced.load(Ordering::Relaxed);
                unit.remote.set_next(top, generation);
                self.announce(owner, unit, number, top);
            }
            number = next;
        }
        owner.sweep_at.store(kept / 8, Ordering::Relaxed);
        drop(held);
        // It may have ended meanwhile, and found nothing of what was put back.
        if kept > 0 && owner.state.load(Ordering::Relaxed) == DEAD {
            self.tidy(owner, false);
        }
    }
}
