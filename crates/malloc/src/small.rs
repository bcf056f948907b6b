//! # The life of a small block
//!
//! `alloc` takes the first block of the free list of the class's head slab; `free` finds the header,
//! checks owner and place, and puts the block back: see [`crate::Allocator::alloc`]. Everything else is
//! here: the head ran out, the slab is somebody else's, a slab became empty or was full.
//!
//! A head slab that runs out tries in turn: what other threads announced, blocks never carved (at most
//! one page's worth at a time, so that a slab's pages are touched only when needed), the next slab on
//! the list, a unit of the pool.
#![allow(unsafe_code)] // free lists inside free blocks

use core::ptr;
use core::sync::atomic::Ordering;

use crate::allocator::{Allocator, fetch};
use crate::classes::{self, UNIT_BYTES};
use crate::heap::{BUSY, DEAD, Heap};
use crate::idle::Part;
use crate::remote::Chain;
use crate::system::{Corruption, Local, Misuse, PAGE_BYTES, System};
use crate::unit::{Block, Place, Unit};

/// At most so many blocks are carved at once.
const CARVE: usize = 32;
/// So many slabs of a class that came home whole stay when a block of it is wanted: 64 KiB.
const KEPT: u32 = 4;

impl<S: System, L: Local> Allocator<S, L> {
    /// A block of a class; null when there is no memory.
    ///
    /// # Safety
    /// The heap is this thread's (*heap-exclusive*).
    #[cold]
    #[inline(never)]
    pub(crate) unsafe fn take_small(&self, heap: &Heap, class: usize) -> *mut u8 {
        loop {
            let Some(unit) = self.head(heap, class) else {
                self.send_all(heap);
                if self.drain_for(heap, class) || self.new_slab(heap, class) {
                    continue;
                }
                return ptr::null_mut();
            };
            let block = unit.free.get();
            if block != unit.end() {
                // SAFETY: a block on the free list of a slab of ours.
                let next = unsafe { self.next(block) };
                if next == block {
                    self.misuse(Misuse::DoubleFree, block as usize);
                }
                if self.is_hardened()
                    && next != unit.end()
                    && !unit.spans(self.distance(unit, next.cast()))
                {
                    self.corrupt(Corruption::FreeList, block as usize);
                }
                unit.free.set(next);
                unit.countdown.set(unit.countdown.get().wrapping_add(1));
                return block.cast();
            }
            if self.drain_for(heap, class) || self.carve(unit) {
                continue;
            }
            match unit.next.get() {
                0 => self.unlink(heap, unit),
                next => self.replace_head(heap, class, self.unit(next - 1)),
            }
            unit.set_place(Place::Full, 0);
        }
    }

    /// Makes the second slab of a class the head; the first is on no list then, nor found by requests.
    fn replace_head(&self, heap: &Heap, class: usize, second: &Unit) {
        if let Some(queue) = heap.queues.get(class) {
            queue.set(self.window.number_of(second) + 1);
        }
        second.previous.set(0);
        second.set_place(Place::Head, second.used());
        heap.set_direct(self.is_watched(), class, second);
        let third = second.next.get();
        if third != 0 {
            // What it begins with was freed long ago.
            fetch(self.unit(third - 1).free.get().cast());
        }
    }

    /// The first slab of a class, made the head.
    fn head<'a>(&'a self, heap: &Heap, class: usize) -> Option<&'a Unit> {
        let number = heap.queues.get(class)?.get();
        if number == 0 {
            return None;
        }
        let unit = self.unit(number - 1);
        if unit.place() != Place::Head {
            unit.set_place(Place::Head, unit.used());
            heap.set_direct(self.is_watched(), class, unit);
        }
        Some(unit)
    }

    /// The header of a unit number.
    pub(crate) fn unit(&self, number: u32) -> &Unit {
        // SAFETY: every number that is written anywhere is below the number of units, and headers are
        // never taken away while the allocator lives.
        unsafe { &*self.window.unit(number) }
    }

    /// The link of a free block. The short ways read it plainly: without a secret it is plain.
    ///
    /// # Safety
    /// The block is free, and the caller's to look at.
    pub(crate) unsafe fn next(&self, block: *mut Block) -> *mut Block {
        // SAFETY: as promised.
        self.mixed(unsafe { (*block).next.get() })
    }

    /// Links a free block to another.
    ///
    /// # Safety
    /// As for `next`.
    pub(crate) unsafe fn set_next(&self, block: *mut Block, next: *mut Block) {
        // SAFETY: as promised.
        unsafe { (*block).next.set(self.mixed(next)) };
    }

    fn mixed(&self, link: *mut Block) -> *mut Block {
        let secret = self.secret.load(Ordering::Relaxed);
        link.cast::<u8>().map_addr(|address| address ^ secret).cast()
    }

    /// The first block of a slab: its memory's start, or so far behind it as hardened mode's headers need.
    #[inline]
    pub(crate) fn base(&self, unit: &Unit) -> *mut u8 {
        let before = if self.is_hardened() { crate::hardened::FIRST } else { 0 };
        self.window.memory(self.window.number_of(unit)).wrapping_add(before)
    }

    /// Blocks of a slab of a class.
    pub(crate) fn blocks(&self, class: &classes::Class) -> u32 {
        // What starts later must end in the slab.
        if self.is_hardened() { crate::hardened::blocks(class) } else { class.blocks }
    }

    /// How far an address lies behind a slab's first block.
    #[inline]
    pub(crate) fn distance(&self, unit: &Unit, at: *mut u8) -> usize {
        (at as usize).wrapping_sub(self.base(unit) as usize)
    }

    fn set_owner(&self, unit: &Unit, heap: &Heap) {
        let heap = ptr::from_ref(heap).cast_mut();
        // In hardened mode no address fits.
        let far = if self.is_hardened() { 1 << 46 } else { 0 };
        let key = (self.base(unit) as usize).wrapping_add(heap as usize).wrapping_add(far);
        unit.key.store(key, Ordering::Relaxed);
        unit.owner.store(heap, Ordering::Relaxed);
    }

    /// Puts a fetched chain on the free list.
    fn append(&self, unit: &Unit, chain: Chain) {
        let first = self.block(unit, chain.first);
        let old = unit.free.get();
        if old != unit.end() {
            let mut last = first;
            for _ in 1..chain.count {
                // SAFETY: the chain has `count` blocks, linked before they were pushed.
                last = unsafe { self.next(last) };
                if !unit.spans(self.distance(unit, last.cast())) {
                    self.corrupt(Corruption::FreeList, first as usize);
                }
            }
            // SAFETY: the last block of the chain, now ours.
            unsafe { self.set_next(last, old) };
        }
        unit.free.set(first);
    }

    /// The address of a block number + 1; 0 gives the end of the list.
    pub(crate) fn block(&self, unit: &Unit, number: u32) -> *mut Block {
        if number == 0 {
            return unit.end();
        }
        self.base(unit).wrapping_add((number as usize - 1) * unit.class().bytes as usize).cast()
    }

    /// Makes blocks out of memory never used. Only when the free list is empty. False: none is left.
    fn carve(&self, unit: &Unit) -> bool {
        let class = unit.class();
        let (bytes, carved) = (class.bytes as usize, usize::from(unit.carved.get()));
        let left = self.blocks(class) as usize - carved;
        if left == 0 {
            return false;
        }
        let start = carved * bytes;
        let page_end = (start + 1).next_multiple_of(PAGE_BYTES);
        let count = ((page_end - start) / bytes).clamp(1, CARVE).min(left);
        let memory = self.base(unit).wrapping_add(start);
        let mut next = unit.end();
        for index in (0..count).rev() {
            let block: *mut Block = memory.wrapping_add(index * bytes).cast();
            // SAFETY: inside a slab of ours, beyond the blocks ever handed out.
            unsafe { self.set_next(block, next) };
            next = block;
        }
        unit.free.set(next);
        unit.carved.set((carved + count) as u16);
        unit.limit.store((carved + count) as u64 * class.step, Ordering::Relaxed);
        true
    }

    /// Takes a unit of the pool as the class's only slab. False: there is none.
    fn new_slab(&self, heap: &Heap, class: usize) -> bool {
        let same = heap.slabs.get(class).map_or(0, |count| count.load(Ordering::Relaxed));
        let unit = self.pool.take(&self.window, &self.system, same >= crate::huge::SAME);
        let Some(number) = unit else { return false };
        let unit = self.unit(number);
        let described = classes::of(class);
        unit.free.set(unit.end());
        unit.multiplier.store(described.multiplier, Ordering::Relaxed);
        unit.limit.store(0, Ordering::Relaxed);
        unit.class.store(class as u8, Ordering::Relaxed);
        unit.carved.set(0);
        unit.remote.reset();
        self.set_owner(unit, heap);
        heap.count_slab(class, true);
        self.link(heap, unit, 0);
        true
    }

    /// Puts a slab on its class's list: second, so that the head stays.
    fn link(&self, heap: &Heap, unit: &Unit, used: u32) {
        let me = self.window.number_of(unit) + 1;
        let Some(queue) = heap.queues.get(usize::from(unit.class.load(Ordering::Relaxed))) else {
            return;
        };
        let head = queue.get();
        unit.set_place(Place::Listed, used);
        if head == 0 {
            unit.previous.set(0);
            unit.next.set(0);
            queue.set(me);
            return;
        }
        let first = self.unit(head - 1);
        let after = first.next.get();
        unit.previous.set(head);
        unit.next.set(after);
        first.next.set(me);
        if after != 0 {
            self.unit(after - 1).previous.set(me);
        }
    }

    /// Takes a slab from its class's list.
    fn unlink(&self, heap: &Heap, unit: &Unit) {
        let class = usize::from(unit.class.load(Ordering::Relaxed));
        let (before, after) = (unit.previous.get(), unit.next.get());
        if after != 0 {
            self.unit(after - 1).previous.set(before);
        }
        if before != 0 {
            self.unit(before - 1).next.set(after);
        } else if let Some(queue) = heap.queues.get(class) {
            queue.set(after);
        }
        if unit.place() == Place::Head {
            heap.set_direct(self.is_watched(), class, &raw const crate::unit::NONE.0);
        }
    }

    /// Gives an empty slab, which is on no list, back to the pool.
    pub(crate) fn release(&self, heap: &Heap, unit: &Unit) {
        heap.count_slab(usize::from(unit.class.load(Ordering::Relaxed)), false);
        let number = self.window.number_of(unit);
        let dirty = self.pool.give(&self.window, &self.system, number);
        self.note(Part::POOL, dirty as usize * UNIT_BYTES);
    }

    /// Looks at a slab of this heap whose countdown reached zero.
    ///
    /// # Safety
    /// The heap is this thread's and owns the slab.
    #[cold]
    #[inline(never)]
    pub(crate) unsafe fn counted_down(&self, heap: &Heap, unit: &Unit) {
        let place = unit.place();
        if place == Place::Full {
            // Nobody waits here for the block that was just freed, which may be in no cache: freed twice in a
            // row, it is found when it is allocated.
            return self.link(heap, unit, u32::from(unit.carved.get()) - unit.patience());
        }
        let last = unit.free.get();
        // SAFETY: a block was just freed: it is the first of the list.
        if unsafe { self.next(last) } == last {
            self.misuse(Misuse::DoubleFree, last as usize);
        }
        if place == Place::Head {
            self.corrupt(Corruption::Count, self.base(unit) as usize);
        }
        self.unlink(heap, unit);
        self.release(heap, unit);
    }

    /// Fetches what other threads pushed to slabs of a heap. False: nothing.
    #[inline]
    pub(crate) fn drain_announced(&self, heap: &Heap) -> bool {
        heap.announced.load(Ordering::Relaxed) != 0 && self.drain(heap, 0, 0)
    }

    /// The same when a block of a class is wanted: some slabs of it stay, though nothing in them is used.
    #[inline]
    fn drain_for(&self, heap: &Heap, class: usize) -> bool {
        heap.announced.load(Ordering::Relaxed) != 0 && self.drain(heap, class as u8, KEPT)
    }

    #[inline(never)]
    fn drain(&self, heap: &Heap, class: u8, mut keep: u32) -> bool {
        let mut number = heap.announced.swap(0, Ordering::Acquire);
        heap.whole.store(0, Ordering::Relaxed);
        while number != 0 {
            let unit = self.unit(number - 1);
            let (chain, next) = unit.remote.take(self.word_generation());
            number = next;
            let wanted = keep > 0 && unit.class.load(Ordering::Relaxed) == class;
            if self.bring_home(heap, unit, chain, wanted) {
                keep -= 1;
            }
        }
        true
    }

    /// Takes a chain back. True: nothing in the slab is used, and it stays, as wanted.
    fn bring_home(&self, heap: &Heap, unit: &Unit, chain: Chain, wanted: bool) -> bool {
        let (used, place) = (unit.used(), unit.place());
        if chain.count == 0 || chain.count > used {
            self.corrupt(Corruption::Count, self.base(unit) as usize);
        }
        self.append(unit, chain);
        let used = used - chain.count;
        match place {
            Place::Full if used == 0 && !wanted => self.release(heap, unit),
            Place::Full => self.link(heap, unit, used),
            Place::Listed if used == 0 && !wanted => {
                self.unlink(heap, unit);
                self.release(heap, unit);
            }
            Place::Listed | Place::Head => unit.set_place(place, used),
        }
        wanted && used == 0 && place != Place::Head
    }

    /// Frees a small block that the fast path did not: another heap's, or wrong.
    ///
    /// # Safety
    /// The block was allocated here, is used by nobody any more, or is wrong in a way that shows.
    #[cold]
    #[inline(never)]
    pub(crate) unsafe fn free_small(&self, at: *mut u8) {
        // SAFETY: *every-header-readable*.
        let unit = unsafe { &*self.window.unit_of(at as usize) };
        let owner = unit.owner.load(Ordering::Relaxed);
        if owner.is_null() {
            // After a fork, a header may be older than the pointer: then the block is lost.
            if self.generation.load(Ordering::Relaxed) == 0 {
                self.misuse(Misuse::DoubleFree, at as usize);
            }
            return;
        }
        // SAFETY: owners are heaps of the table, which never go away.
        let owner = unsafe { &*owner };
        let mine = self.local.get();
        if self.is_stale(owner) {
            // SAFETY: the caller's promise is ours.
            return unsafe { self.free_stale(unit, at) };
        }
        if !unit.holds(self.distance(unit, at)) {
            self.misuse(Misuse::Interior, at as usize);
        }
        if ptr::eq(owner, mine) {
            // Never by the fast path; a mode that has none comes here.
            // SAFETY: the slab is ours.
            return unsafe { self.free_own(owner, unit, at.cast()) };
        }
        // A thread that only frees has a heap too: to collect what it sends.
        match self.heap() {
            // SAFETY: the heap is this thread's; the block is the slab's, and the caller's to free.
            Some(heap) => unsafe { self.free_remote(heap, unit, at.cast()) },
            // SAFETY: as above.
            None => unsafe { self.free_alone(unit, at.cast()) },
        }
    }

    /// Frees a block of a slab of this heap.
    ///
    /// # Safety
    /// The heap is this thread's and owns the slab; the block is one of its blocks.
    pub(crate) unsafe fn free_own(&self, heap: &Heap, unit: &Unit, block: *mut Block) {
        let first = unit.free.get();
        if first == block {
            self.misuse(Misuse::DoubleFree, block as usize);
        }
        // SAFETY: nobody uses the block.
        unsafe { self.set_next(block, first) };
        unit.free.set(block);
        let countdown = unit.countdown.get().wrapping_sub(1);
        unit.countdown.set(countdown);
        if countdown == 0 {
            // SAFETY: as promised.
            unsafe { self.counted_down(heap, unit) };
        }
    }

    /// Does for a dead heap what its thread would do: fetch what was pushed, and, if it is to do all, give
    /// empty slabs back.
    pub(crate) fn tidy(&self, heap: &Heap, all: bool) {
        if heap.state.compare_exchange(DEAD, BUSY, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return;
        }
        self.drain_announced(heap);
        if all {
            self.tidy_queues(heap);
        }
        heap.state.store(DEAD, Ordering::Release);
    }

    fn release_if_empty(&self, heap: &Heap, unit: &Unit) {
        if unit.used() == 0 {
            self.unlink(heap, unit);
            self.release(heap, unit);
        }
    }

    /// Fetches everything that belongs to this heap and gives every empty slab back.
    ///
    /// # Safety
    /// The heap is this thread's.
    pub(crate) unsafe fn tidy_own(&self, heap: &Heap) {
        self.send_all(heap);
        self.drain_announced(heap);
        self.tidy_queues(heap);
    }

    /// Gives the empty slabs back, heads too.
    fn tidy_queues(&self, heap: &Heap) {
        for (class, queue) in heap.queues.iter().enumerate() {
            let mut number = queue.get();
            while number != 0 {
                let unit = self.unit(number - 1);
                number = unit.next.get();
                if unit.place() == Place::Head {
                    heap.set_direct(self.is_watched(), class, &raw const crate::unit::NONE.0);
                    unit.set_place(Place::Listed, unit.used());
                }
                self.release_if_empty(heap, unit);
            }
        }
    }

    /// Frees a block of a slab that a fork left behind (*generation*): the slab becomes ours, as if all
    /// its other blocks were in use.
    pub(crate) unsafe fn free_stale(&self, unit: &Unit, at: *mut u8) {
        let Some(heap) = self.heap() else { return };
        if !unit.spans(self.distance(unit, at)) {
            self.misuse(Misuse::Interior, at as usize);
        }
        let held = self.threads.lock.take(&self.system);
        // SAFETY: owners are heaps of the table.
        let stale = self.is_stale(unsafe { &*unit.owner.load(Ordering::Relaxed) });
        if stale {
            let class = unit.class();
            unit.free.set(unit.end());
            let blocks = self.blocks(class);
            unit.carved.set(blocks as u16);
            unit.limit.store(u64::from(blocks) * class.step, Ordering::Relaxed);
            unit.set_place(Place::Full, 0);
            unit.remote.reset();
            self.set_owner(unit, heap);
            heap.count_slab(usize::from(unit.class.load(Ordering::Relaxed)), true);
        }
        drop(held);
        // SAFETY: the slab has an owner of this generation now; the block is the caller's.
        unsafe { self.free_small(at) };
    }
}
