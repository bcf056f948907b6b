//! Bytes as calls of malloc: `cargo +nightly fuzz run -s none malloc`.
//!
//! One allocator after the other, each with a window and a thread-local pointer of its own; one thread
//! plays up to four by changing the pointer. Beside it a model: a list of live blocks, each filled at both
//! ends with its own pattern. Every second input runs in hardened mode, of the others every second one samples,
//! often. Requests fail where the input says so. At the end all is freed, and nothing may be left.
#![no_main]

use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use libfuzzer_sys::fuzz_target;
use pagoda_malloc::{Allocator, Heap, Local, Options, Stop, System, linux::Linux};

/// Linux, with a budget, as the thread that is played.
struct Stage {
    budget: Cell<u32>,
    options: Options,
    playing: Cell<usize>,
}

// SAFETY: one thread.
unsafe impl Sync for Stage {}

impl Stage {
    fn allowed(&self) -> bool {
        match self.budget.get() {
            0 => true,
            1 => false,
            left => {
                self.budget.set(left - 1);
                true
            }
        }
    }
}

// SAFETY: all but refusals is Linux's.
unsafe impl System for Stage {
    fn reserve(&self, bytes: usize) -> Option<NonNull<u8>> {
        // The smallest window, so that it can be full.
        if bytes > 80 << 20 || !self.allowed() {
            return None;
        }
        Linux.reserve(bytes)
    }
    unsafe fn commit(&self, start: NonNull<u8>, bytes: usize) -> bool {
        // SAFETY: the caller's promise.
        self.allowed() && unsafe { Linux.commit(start, bytes) }
    }
    unsafe fn decommit(&self, start: NonNull<u8>, bytes: usize) {
        // SAFETY: the caller's promise.
        unsafe { Linux.decommit(start, bytes) }
    }
    fn map(&self, bytes: usize) -> Option<NonNull<u8>> {
        if bytes > 64 << 20 || !self.allowed() { None } else { Linux.map(bytes) }
    }
    unsafe fn unmap(&self, start: NonNull<u8>, bytes: usize) {
        // SAFETY: the caller's promise.
        unsafe { Linux.unmap(start, bytes) }
    }
    unsafe fn remap(&self, start: NonNull<u8>, old: usize, new: usize) -> Option<NonNull<u8>> {
        // SAFETY: the caller's promise.
        if self.allowed() { unsafe { Linux.remap(start, old, new) } } else { None }
    }
    fn wait(&self, _: &AtomicU32, _: u32) {
        panic!("somebody waits for a lock in a program with one thread");
    }
    fn wake(&self, _: &AtomicU32) {}
    fn pause(&self, _milliseconds: u32) {}
    fn thread(&self) -> u32 {
        self.playing.get() as u32 + 1
    }
    fn process(&self) -> u32 {
        1
    }
    fn is_gone(&self, _: u32) -> bool {
        false
    }
    fn options(&self) -> Options {
        self.options
    }
    fn stop(&self, why: &Stop) -> ! {
        panic!("{why}");
    }
}

/// The pointers of four threads.
struct Slots<'s>(&'s Cell<usize>, [Cell<*const Heap>; 4]);

// SAFETY: one thread.
unsafe impl Sync for Slots<'_> {}

// SAFETY: each played thread has a place of its own.
unsafe impl Local for Slots<'_> {
    fn get(&self) -> *const Heap {
        self.1[self.0.get() % 4].get()
    }
    fn set(&self, heap: *const Heap) {
        self.1[self.0.get() % 4].set(heap);
    }
    fn arm(&self, _: *const Heap) {}
}

struct Block {
    at: *mut u8,
    bytes: usize,
    mark: u8,
}

impl Block {
    fn ends(&self) -> impl Iterator<Item = usize> {
        let (bytes, end) = (self.bytes, self.bytes.min(64));
        (0..end).chain(bytes - end..bytes)
    }
    fn fill(&self) {
        // SAFETY: the block's own bytes.
        self.ends().for_each(|index| unsafe { self.at.add(index).write(self.mark) });
    }
    fn check(&self, bytes: usize) {
        for index in self.ends().filter(|&index| index < bytes) {
            // SAFETY: the block's own bytes.
            assert_eq!(unsafe { self.at.add(index).read() }, self.mark, "at {index}");
        }
    }
}

struct Input<'d>(&'d [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<usize> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first.into())
    }
    /// About as many of each octave to 512 KiB.
    fn size(&mut self) -> Option<usize> {
        let (first, second) = (self.byte()?, self.byte()?);
        Some(
            ((1 << 16 | second << 8 | first) >> (16 - (first & 15)))
                * if first > 250 { 8 } else { 1 },
        )
    }
}

fn play(data: &[u8]) -> Option<()> {
    let mut input = Input(data);
    let options = match input.byte()? % 4 {
        1 | 3 => Options::HARDENED,
        2 => Options::sampling(500),
        _ => Options::NONE,
    };
    let stage = Stage { budget: Cell::new(0), options, playing: Cell::new(0) };
    let playing = Cell::new(0);
    let slots = Slots(&playing, [const { Cell::new(Heap::none()) }; 4]);
    let heap = Allocator::new(stage, slots);
    let mut live: Vec<Block> = Vec::new();
    let mut mark = 0_u8;
    while let Some(what) = input.byte() {
        mark = mark.wrapping_add(1).max(1);
        // SAFETY: blocks are freed once, by the list of live ones.
        unsafe {
            match what % 16 {
                0..=5 => {
                    let Some(bytes) = input.size() else { break };
                    let align = if what & 16 == 0 { 1 } else { 1 << (what >> 5 << 1) };
                    let zeroed = what % 16 == 5;
                    let at = if zeroed {
                        heap.alloc_aligned_zeroed(bytes, align)
                    } else {
                        heap.alloc_aligned(bytes, align)
                    };
                    if !at.is_null() {
                        assert_eq!(at as usize % align.max(16), 0);
                        assert!(heap.usable(at) >= bytes);
                        let block = Block { at, bytes, mark: if zeroed { 0 } else { mark } };
                        if zeroed {
                            block.check(bytes);
                        }
                        block.fill();
                        live.push(block);
                    }
                }
                6..=10 if !live.is_empty() => {
                    let Some(which) = input.byte() else { break };
                    let block = live.swap_remove(which % live.len());
                    block.check(block.bytes);
                    heap.free(block.at);
                }
                11 | 12 if !live.is_empty() => {
                    let (Some(which), Some(bytes)) = (input.byte(), input.size()) else { break };
                    let which = which % live.len();
                    let block = &mut live[which];
                    let at = heap.realloc(block.at, bytes);
                    if !at.is_null() {
                        // The ends moved: only the common start can be compared.
                        let old = Block { at, bytes: block.bytes.min(64), mark: block.mark };
                        old.check(bytes);
                        *block = Block { at, bytes, mark };
                        block.fill();
                    }
                }
                13 => playing.set(what >> 4 & 3),
                14 => {
                    heap.trim(what << 8);
                }
                15 if what & 32 == 0 => heap.thread_ends(),
                _ => heap.system().budget.set((what >> 4) as u32),
            }
        }
    }
    heap.system().budget.set(0);
    for block in live {
        block.check(block.bytes);
        // SAFETY: live, and freed once.
        unsafe { heap.free(block.at) };
    }
    for thread in 0..4 {
        playing.set(thread);
        heap.thread_ends();
    }
    heap.trim(0);
    let stats = heap.stats();
    assert_eq!(stats.slab_bytes(), 0, "{stats}");
    assert_eq!((stats.medium.live, stats.large_count), (0, 0), "{stats}");
    // SAFETY: everything was freed.
    unsafe { heap.destroy() };
    Some(())
}

fuzz_target!(|data: &[u8]| {
    play(data);
});
