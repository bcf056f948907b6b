//! The allocator as a value: what it owns, and the way in.
#![allow(unsafe_code)] // the fast paths

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::arena::{ARENAS, Ground};
use crate::classes::{self, SMALL_MAX, UNIT_BYTES};
use crate::hardened::{Fences, Sites};
use crate::heap::Heap;
use crate::idle::Idle;
use crate::large::Large;
use crate::medium::Given;
use crate::pool::Pool;
use crate::sample::Samples;
use crate::system::{Corruption, Local, Misuse, Stop, System};
use crate::threads::Threads;
use crate::unit::Unit;
use crate::window::Window;

/// Every block is aligned to this many bytes.
pub const MIN_ALIGN: usize = 16;

/// What the short way of `free` came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Short {
    /// The block is free.
    Done,
    /// The block is free, and its slab must be looked at.
    Look,
    /// Nothing happened: the block is not a small one of this thread's.
    Other,
}

/// Puts a block on its slab's free list.
///
/// # Safety
/// The slab is this thread's, and the block one of its blocks that nobody uses.
#[inline(always)]
pub(crate) unsafe fn push(unit: *const Unit, at: *mut u8) -> Short {
    let block = at.cast::<crate::unit::Block>();
    // SAFETY: as promised.
    unsafe {
        (*block).next.set((*unit).free.get());
        (*unit).free.set(block);
        let countdown = (*unit).countdown.get().wrapping_sub(1);
        (*unit).countdown.set(countdown);
        if countdown == 0 { Short::Look } else { Short::Done }
    }
}

/// Takes the first block of a slab's free list, and counts it. Null when it is its own successor: the header
/// at the list's end (*list*), or a block that was freed twice in a row.
///
/// # Safety
/// The slab is this thread's, or the one that is never written.
#[inline(always)]
pub(crate) unsafe fn pop(unit: *const Unit) -> *mut u8 {
    // SAFETY: as promised; what is on the list is a free block or the header.
    unsafe {
        let block = (*unit).free.get();
        let next = (*block).next.get();
        if next != block {
            (*unit).free.set(next);
            // The next request finds it in the cache, and its link.
            fetch(next.cast());
            (*unit).countdown.set((*unit).countdown.get().wrapping_add(1));
            return block.cast();
        }
    }
    ptr::null_mut()
}

/// Asks for the memory at an address, which need not be one.
#[inline(always)]
pub(crate) fn fetch(at: *mut u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint; no memory is touched.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

/// An allocator over a system and a thread-local pointer. Costs nothing until its first use.
pub struct Allocator<S: System, L: Local> {
    pub(crate) window: Window,
    pub(crate) local: L,
    pub(crate) system: S,
    pub(crate) generation: AtomicU32,
    pub(crate) threads: Threads,
    pub(crate) pool: Pool,
    pub(crate) large: Large,
    pub(crate) options: AtomicU64,
    /// Mixed into links and seals in hardened mode; else zero.
    pub(crate) secret: AtomicUsize,
    pub(crate) fences: Fences,
    pub(crate) sites: Sites,
    pub(crate) idle: Idle,
    pub(crate) samples: Samples,
}

/// Says that where it is called is not the way that must be straight: each jump that is taken on the shortest
/// ways costs as much as several instructions.
#[cold]
pub(crate) fn rarely() {}

impl<S: System, L: Local> Allocator<S, L> {
    /// An allocator that owns nothing yet.
    ///
    /// `local` must be of its own: two allocators that share one would mix up their heaps.
    pub const fn new(system: S, local: L) -> Self {
        Self {
            window: Window::new(),
            local,
            system,
            generation: AtomicU32::new(0),
            threads: Threads::new(),
            pool: Pool::new(),
            large: Large::new(),
            options: AtomicU64::new(0),
            secret: AtomicUsize::new(0),
            fences: Fences::new(),
            sites: Sites::new(),
            idle: Idle::new(),
            samples: Samples::new(),
        }
    }

    /// At least `bytes` bytes, aligned to [`MIN_ALIGN`]; null when there is no memory. Zero bytes give a
    /// block of its own, too.
    ///
    /// Small blocks have a short way, when the thread has a slab with room.
    #[inline(always)]
    pub fn alloc(&self, bytes: usize) -> *mut u8 {
        let block = self.alloc_short(bytes);
        if block.is_null() { self.alloc_slow(bytes, 0) } else { block }
    }

    /// A small block from the head slab of the request's class: the first of its free list, and one
    /// more in the count; null when there is none. Checked: the block is not its own successor, as it
    /// would be if it had been freed twice in a row.
    ///
    /// Budget: 15 instructions.
    #[inline(always)]
    pub(crate) fn alloc_short(&self, bytes: usize) -> *mut u8 {
        if bytes <= SMALL_MAX {
            let heap = self.local.get();
            // SAFETY: the heap is this thread's or the one that is never written; requests of up to
            // SMALL_MAX bytes have an entry; entries point to headers; a header's free list is the
            // owner's.
            unsafe {
                let direct = (&raw const (*heap).direct).cast::<*const Unit>();
                return pop(*direct.add((bytes + 15) >> 4));
            }
        }
        ptr::null_mut()
    }

    #[cold]
    #[inline(never)]
    fn alloc_slow(&self, bytes: usize, pc: usize) -> *mut u8 {
        if self.is_watched() {
            return self.watched_alloc(bytes, pc);
        }
        self.alloc_long(bytes, pc)
    }

    /// The way of [`Allocator::alloc`] when there is no short one.
    #[inline(always)]
    pub(crate) fn alloc_long(&self, bytes: usize, pc: usize) -> *mut u8 {
        match NonNull::new(self.take_at_hand(bytes)) {
            Some(block) => block.as_ptr(),
            None => self.alloc_kept(bytes, pc),
        }
    }

    #[cold]
    #[inline(never)]
    fn alloc_kept(&self, bytes: usize, pc: usize) -> *mut u8 {
        if self.is_hardened() {
            return self.hard_alloc(bytes, 1, false, pc);
        }
        if let (Some(heap), true) = (self.own_heap(), bytes > SMALL_MAX) {
            let block = self.take_kept(heap, bytes);
            if !block.is_null() {
                return block;
            }
        }
        self.alloc_anew(bytes, pc)
    }

    #[cold]
    #[inline(never)]
    fn alloc_anew(&self, bytes: usize, pc: usize) -> *mut u8 {
        let heap = self.heap();
        if self.is_watched() {
            return self.watched_alloc(bytes, pc);
        }
        self.take_anew(heap, bytes)
    }

    #[inline(always)]
    pub(crate) fn take_anew(&self, heap: Option<&Heap>, bytes: usize) -> *mut u8 {
        if let (Some(heap), true) = (heap, bytes <= SMALL_MAX) {
            // SAFETY: it is this thread's.
            let block = unsafe { self.take_small(heap, classes::class_of(bytes)) };
            if !block.is_null() {
                return block;
            }
        }
        self.take_medium(heap, bytes, 1).at
    }

    /// Like [`Allocator::alloc`], full of zeroes. Memory fresh from the system is not cleared again.
    #[inline]
    pub fn alloc_zeroed(&self, bytes: usize) -> *mut u8 {
        self.alloc_zeroed_from(bytes, 0)
    }

    pub(crate) fn alloc_zeroed_from(&self, bytes: usize, pc: usize) -> *mut u8 {
        let heap = self.heap();
        if self.is_watched() {
            return self.watched_zeroed(bytes, pc);
        }
        let given = if bytes <= SMALL_MAX {
            Given { at: self.alloc(bytes), zeroed: false }
        } else {
            self.take_medium(heap, bytes, 1)
        };
        self.clear(given, bytes)
    }

    pub(crate) fn clear(&self, given: Given, bytes: usize) -> *mut u8 {
        if !given.zeroed && !given.at.is_null() {
            // SAFETY: a fresh block of at least that many bytes.
            unsafe { given.at.write_bytes(0, bytes) };
        }
        given.at
    }

    /// Like [`Allocator::alloc`], aligned to a power of two; null for anything else.
    pub fn alloc_aligned(&self, bytes: usize, align: usize) -> *mut u8 {
        self.given_aligned(bytes, align, 0).at
    }

    pub(crate) fn alloc_aligned_from(&self, bytes: usize, align: usize, pc: usize) -> *mut u8 {
        self.given_aligned(bytes, align, pc).at
    }

    /// Like [`Allocator::alloc_aligned`], full of zeroes.
    pub fn alloc_aligned_zeroed(&self, bytes: usize, align: usize) -> *mut u8 {
        self.clear(self.given_aligned(bytes, align, 0), bytes)
    }

    fn given_aligned(&self, bytes: usize, align: usize, pc: usize) -> Given {
        if !align.is_power_of_two() {
            return Given::NOTHING;
        }
        if self.is_watched() {
            return self.watched_aligned(bytes, align, pc);
        }
        if align <= MIN_ALIGN && bytes <= SMALL_MAX {
            return Given { at: self.alloc(bytes), zeroed: false };
        }
        let heap = self.heap();
        if self.is_watched() {
            return self.watched_aligned(bytes, align, pc);
        }
        self.plain_aligned(heap, bytes, align)
    }

    #[inline(always)]
    pub(crate) fn plain_aligned(&self, heap: Option<&Heap>, bytes: usize, align: usize) -> Given {
        if let (Some(heap), Some(class)) = (heap, classes::aligned_class_of(bytes, align)) {
            // SAFETY: it is this thread's.
            let block = unsafe { self.take_small(heap, class) };
            if !block.is_null() {
                return Given { at: block, zeroed: false };
            }
        }
        self.take_medium(heap, bytes, align)
    }

    /// Frees a block; null is ignored.
    ///
    /// Small blocks of this thread have a short way. Anything else goes the slow way, which sorts out the
    /// rest or stops the program.
    ///
    /// # Safety
    /// The block came from this allocator and nobody uses it any more.
    #[inline(always)]
    pub unsafe fn free(&self, at: *mut u8) {
        // SAFETY: the caller's promise is ours.
        unsafe {
            match self.free_short(at) {
                Short::Done => {}
                Short::Look => self.free_look(at),
                Short::Other => self.free_slow(at),
            }
        }
    }

    /// Frees a small block of this thread's. Checked: the block belongs to a slab of this thread, starts
    /// where a block starts, and was handed out at some time.
    ///
    /// Budget: 18 instructions ([`crate::process::free`]; what a compiler makes of this is 21).
    ///
    /// # Safety
    /// As for [`Allocator::free`].
    #[inline(always)]
    pub(crate) unsafe fn free_short(&self, at: *mut u8) -> Short {
        // SAFETY: *every-header-readable*; the free list is touched only when the slab is ours, and the
        // block only when it is a block of ours (*one-compare*).
        unsafe {
            let unit = self.window.unit_of(at as usize);
            if !(*unit).holds_for(self.local.get() as usize, at as usize) {
                return Short::Other;
            }
            push(unit, at)
        }
    }

    /// # Safety
    /// [`Allocator::free_short`] has said [`Short::Look`], just now, of this block.
    #[cold]
    #[inline(never)]
    pub(crate) unsafe fn free_look(&self, at: *mut u8) {
        // SAFETY: the slab is this thread's, and so there is a heap.
        unsafe { self.counted_down(&*self.local.get(), &*self.window.unit_of(at as usize)) }
    }

    /// # Safety
    /// As for [`Allocator::free`].
    #[cold]
    #[inline(never)]
    unsafe fn free_slow(&self, at: *mut u8) {
        // SAFETY: the caller's promise is ours.
        unsafe { self.free_long(at, usize::MAX, 0) }
    }

    /// Puts a medium or large block at hand if there is room for its size. False: free it, right or wrong.
    #[inline(always)]
    pub(crate) fn give_at_hand(&self, at: *mut u8) -> bool {
        match self.window.medium_offset(at as usize) {
            Some(offset) => self.put_at_hand(at, offset),
            None => !self.window.is_small(at as usize) && self.put_large_at_hand(at),
        }
    }

    /// The way of [`Allocator::free`] when there is no short one; `claimed` size: the largest number is none.
    ///
    /// # Safety
    /// As for [`Allocator::free`].
    #[inline(always)]
    pub(crate) unsafe fn free_long(&self, at: *mut u8, claimed: usize, pc: usize) {
        let done = match self.window.medium_offset(at as usize) {
            Some(offset) => self.put_at_hand(at, offset),
            // SAFETY: the caller's promise is ours.
            None if self.window.is_small(at as usize) => unsafe {
                return self.free_others(at, claimed, pc);
            },
            None => self.put_large_at_hand(at),
        };
        if !done {
            // SAFETY: the caller's promise is ours.
            unsafe { self.free_kept(at, claimed, pc) }
        }
    }

    /// Frees a small block that is another thread's, or wrong. By itself, because it wants more registers than
    /// what else there is to do.
    ///
    /// # Safety
    /// As for [`Allocator::free`].
    #[inline(never)]
    unsafe fn free_others(&self, at: *mut u8, claimed: usize, pc: usize) {
        if !self.put_in_parcel(at) {
            // SAFETY: the caller's promise is ours.
            unsafe { self.free_kept(at, claimed, pc) }
        }
    }

    /// # Safety
    /// As for [`Allocator::free`].
    #[cold]
    #[inline(never)]
    unsafe fn free_kept(&self, at: *mut u8, claimed: usize, pc: usize) {
        if self.is_hardened() {
            return self.hard_free(at, claimed, pc);
        }
        if self.own_heap().is_some_and(|heap| self.keep(heap, at)) {
            return;
        }
        // SAFETY: the caller's promise is ours.
        unsafe { self.free_rest(at) }
    }

    /// # Safety
    /// As for [`Allocator::free`].
    #[cold]
    #[inline(never)]
    pub(crate) unsafe fn free_rest(&self, at: *mut u8) {
        if at.is_null() {
            return;
        }
        // SAFETY: the caller's promise is ours.
        unsafe {
            if self.window.is_small(at as usize) {
                self.free_small(at);
            } else {
                // Hardened mode keeps nothing aside: its quarantine does that.
                let heap = if self.is_hardened() { None } else { self.own_heap() };
                self.free_medium(heap, at);
            }
        }
    }

    /// Bytes that may be used of a block: at least what was asked for.
    ///
    /// # Safety
    /// The block came from this allocator.
    pub unsafe fn usable(&self, at: *mut u8) -> usize {
        if at.is_null() {
            return 0;
        }
        if self.is_hardened() {
            return self.hard_usable(at);
        }
        self.usable_inner(at)
    }

    /// Bytes of a block without a header of its own.
    pub(crate) fn usable_inner(&self, at: *mut u8) -> usize {
        if !self.window.is_small(at as usize) {
            return self.usable_medium(at);
        }
        // SAFETY: *every-header-readable*.
        let unit = unsafe { &*self.window.unit_of(at as usize) };
        // Slabs start at multiples of their size.
        if !unit.spans(at as usize % UNIT_BYTES) {
            self.misuse(Misuse::Interior, at as usize);
        }
        unit.class().bytes as usize
    }

    /// Gives back to the system what this thread and the shared parts keep unused, but for `keep`
    /// bytes. Bytes given back.
    pub fn trim(&self, keep: usize) -> usize {
        if !self.window.is_open() {
            return 0;
        }
        let before = self.large.bytes.load(Ordering::Relaxed);
        if let Some(heap) = self.own_heap() {
            if self.is_hardened() {
                self.empty_quarantine(heap);
            }
            // SAFETY: it is this thread's.
            unsafe { self.tidy_own(heap) };
            self.dismiss_all(heap);
        }
        self.dismiss_mappings();
        for number in 0..self.threads.count.load(Ordering::Acquire) as usize {
            // SAFETY: places below the count have been written.
            let heap = unsafe { &*self.window.heap(number) };
            if !self.is_stale(heap) {
                self.tidy(heap, true);
            }
        }
        let mut freed = before.saturating_sub(self.large.bytes.load(Ordering::Relaxed));
        let units = u32::try_from(keep / 2 / UNIT_BYTES).unwrap_or(u32::MAX);
        freed += self.pool.trim(&self.window, &self.system, units);
        for number in 0..ARENAS {
            let granules = keep / 2 / ARENAS / crate::arena::GRANULE;
            let ground = Ground::enter(&self.window, &self.system, number);
            freed += ground.purge(u32::try_from(granules).unwrap_or(u32::MAX));
        }
        freed
    }

    /// Ends the allocator at once, with every small and medium block. Large blocks that were not freed
    /// stay mapped.
    ///
    /// # Safety
    /// Nobody uses any of its blocks, no thread still points to a heap of it, and it is not used again.
    pub unsafe fn destroy(&self) {
        if let Some(heap) = self.own_heap() {
            self.dismiss_all(heap);
            self.local.set(Heap::none());
        }
        self.dismiss_mappings();
        self.samples.end(&self.system);
        // SAFETY: as the caller promised.
        unsafe {
            self.sites.end(&self.system);
            self.fences.end(&self.system);
            self.window.close(&self.system);
        }
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn misuse(&self, what: Misuse, at: usize) -> ! {
        self.stop(&Stop::Misuse(what, at))
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn corrupt(&self, what: Corruption, at: usize) -> ! {
        self.stop(&Stop::Corruption(what, at))
    }

    #[cold]
    pub(crate) fn stop(&self, why: &Stop) -> ! {
        self.system.stop(why)
    }

    /// A block for a layout of Rust's, or nothing.
    pub fn alloc_layout(&self, layout: core::alloc::Layout) -> Option<NonNull<u8>> {
        NonNull::new(if layout.align() <= MIN_ALIGN {
            self.alloc(layout.size())
        } else {
            self.alloc_aligned(layout.size(), layout.align())
        })
    }
}
