//! # The life of a medium and of a large block
//!
//! `take`: the thread's recents, then the thread's arena, then the other arenas, then a mapping.
//! `free`: the cell (or the header) confirms the block, the recents may keep it, else the arena (or the
//! system) gets it back.
#![allow(unsafe_code)] // hands out and takes back memory of the arenas

use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering::{Acquire, Relaxed};

use crate::allocator::{Allocator, rarely};
use crate::arena::{
    ARENAS, CELL_BYTES, Cell, FREED, GRANULE, Ground, KEPT, LIVE, MEDIUM_MAX, SAMPLED,
};
use crate::classes::{SMALL_MAX, UNIT_BYTES};
use crate::heap::Heap;
use crate::idle::Part;
use crate::large::{self, Block, Large};
use crate::recent::{Kept, Key, LARGEST_KEPT, Offer, TIED, TIES};
use crate::sample::calls::Calls;
use crate::system::{Local, Misuse, PAGE_BYTES, System};

/// Memory handed out.
#[derive(Clone, Copy)]
pub struct Given {
    /// The block, or null.
    pub at: *mut u8,
    /// Whether it reads as zeroes.
    pub zeroed: bool,
}

impl Given {
    /// There was no memory.
    pub const NOTHING: Self = Self { at: ptr::null_mut(), zeroed: false };
}

/// A medium block that its cell has confirmed.
struct Place {
    arena: usize,
    granule: u32,
    size: u32,
    sampled: bool,
}

fn granules(bytes: usize) -> u32 {
    (bytes.max(SMALL_MAX + 1).div_ceil(GRANULE)) as u32
}

impl<S: System, L: Local> Allocator<S, L> {
    /// A block above the small sizes, or with an alignment that slabs do not have.
    pub(crate) fn take_medium(&self, heap: Option<&Heap>, bytes: usize, align: usize) -> Given {
        if bytes > MEDIUM_MAX || align > UNIT_BYTES {
            return self.take_large(heap, bytes, align);
        }
        let size = granules(bytes);
        if let (Some(heap), true) = (heap, align <= GRANULE) {
            let key = Key::medium(size);
            // What is at hand is not sampled.
            if let Some(at) = heap.recents.take(key, !self.is_sampling()) {
                if let Some((_, cell)) = self.cell(at) {
                    cell.state.store(LIVE, Relaxed);
                    return Given { at, zeroed: false };
                }
            }
            if let Some(others) = heap.recents.give_way(key) {
                self.dismiss(others);
            }
        }
        let first = heap.map_or(0, |heap| heap.number.load(Relaxed) as usize);
        for offset in 0..if self.window.is_open() { ARENAS } else { 0 } {
            let ground = Ground::enter(&self.window, &self.system, (first + offset) % ARENAS);
            if let Some(found) = ground.take(size, align.div_ceil(GRANULE).max(1) as u32) {
                return Given { at: ground.address(found.start), zeroed: found.zeroed };
            }
        }
        self.take_large(heap, bytes, align)
    }

    fn take_large(&self, heap: Option<&Heap>, bytes: usize, align: usize) -> Given {
        if bytes > isize::MAX as usize - 2 * PAGE_BYTES || align > isize::MAX as usize / 2 {
            return Given::NOTHING;
        }
        let pages = Large::mapping_for(bytes).map_or(0, |mapping| mapping / PAGE_BYTES);
        if let (Some(heap), Some(key), true) = (heap, Key::large(pages), align <= large::HEADER) {
            if let Some(at) = heap.recents.take(key, !self.is_sampling()) {
                // SAFETY: what the recents keep under a large key was kept by `free_large`.
                return Given { at: unsafe { large::find_kept(at) }.at, zeroed: false };
            }
            while let Some(others) = heap.recents.shed() {
                self.dismiss(others);
            }
        }
        match self.large.map(&self.system, bytes, align) {
            Some(block) => Given { at: block.at, zeroed: true },
            None => Given::NOTHING,
        }
    }

    /// A medium or large block that this thread has at hand; null if there is none. The shortest way: a
    /// thread without a heap, and hardened mode, have nothing at hand, nor have sizes that slabs serve.
    #[inline(always)]
    pub(crate) fn take_at_hand(&self, bytes: usize) -> *mut u8 {
        if bytes > MEDIUM_MAX {
            rarely();
            return self.take_large_at_hand(bytes);
        }
        let key = Key::medium(bytes.div_ceil(GRANULE) as u32);
        // SAFETY: the heap is this thread's or the one that is never written.
        let at_hand = unsafe { (*self.local.get()).recents.take_at_hand(key) };
        // Its cell says that it is tied, before and after.
        at_hand.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    #[inline(always)]
    fn take_large_at_hand(&self, bytes: usize) -> *mut u8 {
        if bytes > LARGEST_KEPT {
            return ptr::null_mut();
        }
        let Some(key) = Key::large((bytes + large::HEADER).div_ceil(PAGE_BYTES)) else {
            return ptr::null_mut();
        };
        // SAFETY: the heap is as for `take_at_hand`; what is at hand under a large size was put aside.
        unsafe {
            let Some(at) = (*self.local.get()).recents.take_at_hand(key) else {
                return ptr::null_mut();
            };
            large::hand_out(at.as_ptr());
            at.as_ptr()
        }
    }

    /// Puts a large block at hand if there is room for its size. False: free it, right or wrong. The address
    /// lies in neither window.
    #[inline(always)]
    pub(crate) fn put_large_at_hand(&self, at: *mut u8) -> bool {
        if self.is_hardened() {
            return false;
        }
        // SAFETY: a block has its header before it; a wild pointer faults, which names the caller. The heap
        // is as for `take_at_hand`.
        unsafe {
            let Some(key) = large::plain_pages(at).and_then(Key::large) else { return false };
            let put = (*self.local.get()).recents.put_at_hand(key, at);
            if put {
                large::put_aside(at);
            }
            put
        }
    }

    /// Puts a medium block at hand if there is room for its size. False: free it, right or wrong. `offset` is
    /// the address's place in the medium window.
    #[inline(always)]
    pub(crate) fn put_at_hand(&self, at: *mut u8, offset: usize) -> bool {
        // SAFETY: there is a cell for each KiB of the window, and all zero is a valid one. The heap is as
        // for `take_at_hand`.
        unsafe {
            let cell = &*self.window.cells().wrapping_add(offset / CELL_BYTES);
            let Some(size) = cell.block_of(offset) else { return false };
            let (recents, state) = (&(*self.local.get()).recents, cell.state.load(Relaxed));
            // What is tied to this thread and not in the room that there is is the program's.
            if state != recents.tie() {
                if state != LIVE || !recents.put_at_hand(Key::medium(size), at) {
                    return false;
                }
                cell.state.store(recents.tie(), Relaxed);
                return true;
            }
            recents.put_at_hand(Key::medium(size), at)
        }
    }

    /// A medium or large block that this thread kept; null if there is none. The short way of
    /// `take_medium`.
    #[inline(always)]
    pub(crate) fn take_kept(&self, heap: &Heap, bytes: usize) -> *mut u8 {
        if bytes <= MEDIUM_MAX {
            let at = heap.recents.take_kept(Key::medium(granules(bytes)));
            if let Some((_, cell)) = self.cell(at) {
                cell.state.store(LIVE, Relaxed);
            }
            return at;
        }
        let Some(key) = Key::large(bytes.saturating_add(large::HEADER).div_ceil(PAGE_BYTES)) else {
            return ptr::null_mut();
        };
        let at = heap.recents.take_kept(key);
        if !at.is_null() {
            // SAFETY: what the recents keep under a large key was kept by `keep` or `free_large`.
            unsafe { large::hand_out(at) };
        }
        at
    }

    /// Keeps a block that is wanted again. False: `free_medium` it, right or wrong.
    pub(crate) fn keep(&self, heap: &Heap, at: *mut u8) -> bool {
        let Some((offset, cell)) = self.cell(at) else { return self.keep_large(heap, at) };
        let Some(size) = cell.block_at((offset / GRANULE) as u32) else { return false };
        let (key, state) = (Key::medium(size), cell.state.load(Relaxed));
        if offset % GRANULE != 0 || !(state == LIVE || self.is_tied_out(state, key, at)) {
            return false;
        }
        let kept = heap.recents.keep(key, at);
        if let Some(state) = kept {
            cell.state.store(state, Relaxed);
        }
        kept.is_some()
    }

    fn keep_large(&self, heap: &Heap, at: *mut u8) -> bool {
        if at.is_null() || self.window.is_small(at as usize) {
            return false;
        }
        // SAFETY: a block has its header before it; a wild pointer faults, which names the caller.
        let Some(pages) = (unsafe { large::plain_pages(at) }) else { return false };
        let Some(key) = Key::large(pages) else { return false };
        let kept = heap.recents.keep(key, at).is_some();
        if kept {
            // SAFETY: its header was just read.
            unsafe { large::put_aside(at) };
        }
        kept
    }

    /// The cell of an address in the medium window, and its distance from the window's start.
    #[inline(always)]
    fn cell(&self, at: *mut u8) -> Option<(usize, &Cell)> {
        let offset = self.window.medium_offset(at as usize)?;
        // SAFETY: there is a cell for each KiB of the window, and all zero is a valid one.
        let cell = unsafe { &*self.window.cells().wrapping_add(offset / CELL_BYTES) };
        Some((offset, cell))
    }

    /// Confirms a medium block, or stops the program.
    fn confirm(&self, offset: usize, cell: &Cell, at: *mut u8) -> Place {
        let bytes = self.window.medium_bytes() / ARENAS;
        let granule = (offset % bytes / GRANULE) as u32;
        let size = if offset % GRANULE == 0 { cell.block_at(granule) } else { None };
        match (size, cell.state.load(Relaxed)) {
            (Some(size), state @ (LIVE | SAMPLED)) => {
                Place { arena: offset / bytes, granule, size, sampled: state == SAMPLED }
            }
            (Some(size), state) if self.is_tied_out(state, Key::medium(size), at) => {
                Place { arena: offset / bytes, granule, size, sampled: false }
            }
            (Some(_), KEPT | TIED..) => self.misuse(Misuse::DoubleFree, at as usize),
            (None, FREED) if offset % GRANULE == 0 => self.misuse(Misuse::DoubleFree, at as usize),
            _ => self.misuse(Misuse::Interior, at as usize),
        }
    }

    /// Whether a block's cell says that it is tied to a thread, and the thread has it not at hand.
    fn is_tied_out(&self, state: u8, key: Key, at: *mut u8) -> bool {
        let count = self.threads.count.load(Acquire) as usize;
        let mut heaps = (usize::from(state & !TIED)..count).step_by(TIES);
        // SAFETY: places below the count have been written.
        state >= TIED
            && !heaps.any(|number| unsafe { (*self.window.heap(number)).recents.has(key, at) })
    }

    /// Frees a block that is not small.
    ///
    /// # Safety
    /// The block was allocated here and is used by nobody any more, or is wrong in a way that shows.
    pub(crate) unsafe fn free_medium(&self, heap: Option<&Heap>, at: *mut u8) {
        let Some((offset, cell)) = self.cell(at) else {
            // SAFETY: the caller's promise is ours.
            return unsafe { self.free_large(heap, at) };
        };
        let place = self.confirm(offset, cell, at);
        let heap = if place.sampled { self.retire_sample(heap, at) } else { heap };
        if let Some(heap) = heap {
            match heap.recents.offer(Key::medium(place.size), at) {
                Offer::Kept(state) => return cell.state.store(state, Relaxed),
                Offer::Refused(others) => self.dismiss(others),
            }
        }
        self.give_medium(&place);
    }

    fn give_medium(&self, place: &Place) {
        let ground = Ground::enter(&self.window, &self.system, place.arena);
        let dirty = ground.give(place.granule, place.size);
        drop(ground);
        self.note(Part::arena(place.arena), dirty);
    }

    unsafe fn free_large(&self, heap: Option<&Heap>, at: *mut u8) {
        let block = self.confirm_large(at);
        let heap = if block.sampled { self.retire_sample(heap, at) } else { heap };
        let key = block.plain_pages().and_then(Key::large);
        if let (Some(heap), Some(key)) = (heap, key) {
            match heap.recents.offer(key, at) {
                Offer::Kept(_) => return block.set_kept(true),
                Offer::Refused(others) => self.dismiss(others),
            }
        }
        // SAFETY: as the caller promised.
        unsafe { self.large.unmap(&self.system, block) };
    }

    /// A sample is freed. The heap that may keep it: small ones have not been taken from any.
    #[cold]
    #[inline(never)]
    fn retire_sample<'h>(&self, heap: Option<&'h Heap>, at: *mut u8) -> Option<&'h Heap> {
        let small = self.forget(at).is_some_and(|(bytes, _)| bytes <= SMALL_MAX);
        heap.filter(|_| !small)
    }

    /// Says of a medium or large block of the caller's that it is a sample.
    pub(crate) fn mark_sampled(&self, at: *mut u8) {
        match self.cell(at) {
            Some((_, cell)) => cell.state.store(SAMPLED, Relaxed),
            None => self.confirm_large(at).set_sampled(true),
        }
    }

    /// Whether a live block is a sample.
    #[cfg(test)]
    pub(crate) fn is_sample(&self, at: *mut u8) -> bool {
        match self.cell(at) {
            Some((offset, cell)) => self.confirm(offset, cell, at).sampled,
            None => !self.window.is_small(at as usize) && self.confirm_large(at).sampled,
        }
    }

    /// Makes an ordinary block of a sample, if it is one: its bytes and its place.
    pub(crate) fn unmark(&self, at: *mut u8) -> Option<(usize, Calls)> {
        if self.window.is_small(at as usize) {
            return None;
        }
        match self.cell(at) {
            Some((offset, cell)) if self.confirm(offset, cell, at).sampled => {
                cell.state.store(LIVE, Relaxed);
            }
            None if self.confirm_large(at).sampled => self.confirm_large(at).set_sampled(false),
            _ => return None,
        }
        self.forget(at)
    }

    fn confirm_large(&self, at: *mut u8) -> Block {
        // SAFETY: a block has its header before it; a wild pointer faults, which names the caller.
        match unsafe { large::find(at) } {
            Ok(block) => block,
            Err(what) => self.misuse(what, at as usize),
        }
    }

    /// Frees blocks that the recents no longer keep.
    fn dismiss(&self, mut kept: Kept) {
        while let Some(at) = kept.pop() {
            if kept.key().is_large() {
                // SAFETY: kept by `free_large`; nobody uses it.
                unsafe { self.large.unmap(&self.system, large::find_kept(at)) };
            } else if let Some((offset, cell)) = self.cell(at) {
                cell.state.store(LIVE, Relaxed);
                let place = self.confirm(offset, cell, at);
                self.give_medium(&place);
            }
        }
    }

    /// Frees everything that a heap's recents keep.
    pub(crate) fn dismiss_all(&self, heap: &Heap) {
        for kept in heap.recents.drain() {
            self.dismiss(kept);
        }
    }

    /// Bytes that the caller may use of a block that is not small.
    pub(crate) fn usable_medium(&self, at: *mut u8) -> usize {
        match self.cell(at) {
            Some((offset, cell)) => self.confirm(offset, cell, at).size as usize * GRANULE,
            None => self.confirm_large(at).usable(),
        }
    }

    /// Changes the size of a block that is not small where it lies, or by moving its pages. Nothing: it
    /// must be copied.
    ///
    /// # Safety
    /// The block is the caller's; if it moves, nobody uses the old address.
    #[inline(always)]
    pub(crate) unsafe fn resize_medium(&self, at: *mut u8, bytes: usize) -> Option<NonNull<u8>> {
        if bytes <= SMALL_MAX {
            return None;
        }
        let Some((offset, cell)) = self.cell(at) else {
            if bytes <= MEDIUM_MAX || bytes > isize::MAX as usize - 2 * PAGE_BYTES {
                return None;
            }
            let block = self.confirm_large(at);
            // SAFETY: as the caller promised.
            let moved = unsafe { self.large.resize(&self.system, block, bytes)? };
            return NonNull::new(moved.at);
        };
        let place = self.confirm(offset, cell, at);
        let size = granules(bytes);
        if bytes > MEDIUM_MAX {
            return None;
        }
        if size == place.size {
            return NonNull::new(at);
        }
        let ground = Ground::enter(&self.window, &self.system, place.arena);
        if ground.resize(place.granule, place.size, size) { NonNull::new(at) } else { None }
    }
}
