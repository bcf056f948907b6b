//! # The way of a block that another thread's heap owns
//!
//! It is put with others of its slab into a parcel ([`crate::outgoing`]); the parcel is pushed to the
//! slab ([`crate::remote`]), and the owner is told if it had forgotten the slab.
#![allow(unsafe_code)] // links inside free blocks

use core::ptr;
use core::sync::atomic::Ordering;

use crate::allocator::Allocator;
use crate::classes::UNIT_BYTES;
use crate::heap::{DEAD, Heap};
use crate::outgoing::Parcel;
use crate::remote::Chain;
use crate::system::{Local, Misuse, System};
use crate::unit::{Block, Unit};

/// How far a block lies behind the start of its slab.
#[inline(always)]
fn distance(at: *mut u8) -> u16 {
    // Slabs start at multiples of their size.
    (at as usize % UNIT_BYTES) as u16
}

impl<S: System, L: Local> Allocator<S, L> {
    /// The block at a distance from the start of a slab.
    fn block_in(&self, unit: u32, distance: u16) -> *mut Block {
        self.window.memory(unit - 1).wrapping_add(distance.into()).cast()
    }

    /// A parcel of one block.
    fn parcel(&self, unit: &Unit, block: *mut Block) -> Parcel {
        let room = unit.class().share - 1;
        let unit = self.window.number_of(unit) + 1;
        let place = distance(block.cast());
        Parcel { unit, first: place, last: place, room }
    }

    /// Puts a block to others of its slab, if this thread has a parcel for it that is not full. False:
    /// free it, right or wrong. A thread without a heap has none. The checks are those of `free_small`; the
    /// address lies in the small window.
    #[inline(always)]
    pub(crate) fn put_in_parcel(&self, at: *mut u8) -> bool {
        let number = self.window.small_offset(at as usize) / UNIT_BYTES;
        if self.secret.load(Ordering::Relaxed) != 0 {
            return false;
        }
        let block = distance(at);
        // SAFETY: *every-header-readable*; the heap is this thread's or the one that is never written,
        // whose parcels are nobody's. The block is one of its slab's, and nobody uses it.
        unsafe {
            let unit = &*self.window.unit_of(at as usize);
            let parcel = (*self.local.get())
                .outgoing
                .place(number as u32 + 1, unit.class.load(Ordering::Relaxed))
                .as_ptr();
            if (*parcel).unit != number as u32 + 1
                || (*parcel).room <= 1
                || (*parcel).first == block
                || !unit.holds(block.into())
            {
                return false;
            }
            let link = &(*at.cast::<Block>()).next;
            link.set(at.wrapping_sub(block.into()).wrapping_add((*parcel).first.into()).cast());
            (*parcel).first = block;
            (*parcel).room -= 1;
        }
        true
    }

    /// Frees a block of another heap's slab.
    ///
    /// # Safety
    /// The heap is this thread's; the block is the slab's, and nobody uses it.
    pub(crate) unsafe fn free_remote(&self, heap: &Heap, unit: &Unit, block: *mut Block) {
        let mut parcel = self.parcel(unit, block);
        let place = heap.outgoing.place(parcel.unit, unit.class.load(Ordering::Relaxed));
        let waiting = place.get();
        if waiting.unit == parcel.unit {
            if waiting.first == parcel.first {
                self.misuse(Misuse::DoubleFree, block as usize);
            }
            // SAFETY: nobody uses the block.
            unsafe { self.set_next(block, self.block_in(waiting.unit, waiting.first)) };
            parcel.last = waiting.last;
            parcel.room = waiting.room - 1;
        }
        let full = parcel.room == 0;
        place.set(if full { Parcel::EMPTY } else { parcel });
        // SAFETY: both hold blocks that nobody uses, and are in no place any more.
        unsafe {
            if waiting.unit != parcel.unit {
                self.dispatch(heap, waiting);
            }
            if full {
                self.dispatch(heap, parcel);
            }
        }
    }

    /// Sends a parcel of a heap, if it is one.
    unsafe fn dispatch(&self, heap: &Heap, parcel: Parcel) {
        if parcel.unit != 0 {
            // SAFETY: as promised.
            let count = unsafe { self.send(parcel) };
            if heap.outgoing.learn(count) {
                self.send_all(heap);
            }
        }
    }

    /// Frees a block of another heap's slab when this thread has no heap, nor can have one.
    ///
    /// # Safety
    /// The block is the slab's, and nobody uses it.
    pub(crate) unsafe fn free_alone(&self, unit: &Unit, block: *mut Block) {
        let parcel = self.parcel(unit, block);
        // SAFETY: as promised.
        unsafe { self.send(parcel) };
    }

    /// Sends every parcel of a heap.
    pub(crate) fn send_all(&self, heap: &Heap) {
        for place in heap.outgoing.places() {
            let parcel = place.replace(Parcel::EMPTY);
            if parcel.unit != 0 {
                // SAFETY: a parcel holds blocks of its slab that nobody uses.
                unsafe { self.send(parcel) };
            }
        }
    }

    /// Pushes a parcel to its slab; returns how many blocks it had.
    pub(crate) unsafe fn send(&self, parcel: Parcel) -> u16 {
        let unit = self.unit(parcel.unit - 1);
        let count = unit.class().share - parcel.room;
        // SAFETY: the slab has blocks that were not returned, so that it has an owner.
        let owner = unsafe { &*unit.owner.load(Ordering::Relaxed) };
        if self.is_stale(owner) {
            let mut block = self.block_in(parcel.unit, parcel.first);
            for index in 1..=count {
                let more = index < count;
                // SAFETY: linked by `free_remote`; the last link was never written, nor is it read.
                let next = if more { unsafe { self.next(block) } } else { ptr::null_mut() };
                // SAFETY: nobody uses the block.
                unsafe { self.free_stale(unit, block.cast()) };
                block = next;
            }
            return count;
        }
        let generation = self.word_generation();
        let top = owner.announced.load(Ordering::Relaxed);
        let class = unit.class();
        let [first, last] = [parcel.first, parcel.last].map(|at| self.block_in(parcel.unit, at));
        let first = self.distance(unit, first.cast()) as u32 / class.bytes + 1;
        let chain = Chain { first, count: count.into() };
        let pushed = unit.remote.push(chain, generation, top, |behind| {
            // SAFETY: the last block of the parcel, which nobody else knows yet.
            unsafe { self.set_next(last, self.block(unit, behind)) };
        });
        if pushed.announce {
            self.announce(owner, unit, parcel.unit, top);
        }
        if owner.state.load(Ordering::Relaxed) == DEAD {
            self.tidy(owner, false);
        } else if pushed.count == self.blocks(class) {
            self.is_whole(owner);
        }
        count
    }

    /// Puts a slab on its owner's stack (*one-announcer*), which began with `top` a moment ago.
    pub(crate) fn announce(&self, owner: &Heap, unit: &Unit, number: u32, mut top: u32) {
        let stack = &owner.announced;
        while let Err(now) =
            stack.compare_exchange(top, number, Ordering::Release, Ordering::Relaxed)
        {
            top = now;
            unit.remote.set_next(top, self.word_generation());
        }
    }
}
