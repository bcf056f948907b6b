//! Bytes as calls of the heap: `cargo +nightly fuzz run heap`.
//!
//! One thread plays four CPUs, so that a run can be repeated. Beside the heap stands a naive model:
//! a list of live blocks, each filled with its own pattern. After every step the books must add up
//! (*heap-conservation*), now and then all records are walked; at the end everything is freed and
//! every page must be back. The page source fails where the input says so, and is small enough to be
//! empty without that. Frees of what is no block must be refused and change nothing.
#![no_main]

use std::alloc::Layout;
use std::cell::Cell;
use std::ptr::NonNull;

use libfuzzer_sys::fuzz_target;
use pagoda_heap::Report;
use pagoda_heap::{Cache, Heap, HeapError, Misuse, MisuseKind, OutOfPages, PageSource, PageTags};
use pagoda_sync::{CpuId, Cpus, RawSpin};

// The crate's own test equipment: pages of a host allocation, with a budget and a grudge.
#[allow(dead_code)]
#[path = "../../crates/heap/src/testing.rs"]
mod testing;

use testing::{Arena, Ledger};

/// CPUs that the one thread plays, one at a time.
struct Stage(Cell<usize>);

// SAFETY: one thread; it never changes CPU while pinned.
unsafe impl Cpus for &Stage {
    fn limit(&self) -> usize {
        4
    }
    fn enter(&self) -> CpuId {
        CpuId::new(self.0.get()).unwrap_or(CpuId::BOOT)
    }
    unsafe fn leave(&self) {}
}

type TestHeap<'a> = Heap<&'a Arena, &'a Stage, RawSpin, &'a Ledger>;
/// An object that knows itself.
type Thing = [u64; 11];
type Things<'a> = Cache<'a, Thing, &'a Arena, &'a Stage, RawSpin, &'a Ledger>;

const MARK: Thing = [0x7419_7419_7419_7419; 11];

/// The input, byte by byte; none when it is used up.
struct Input<'d>(&'d [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn word(&mut self) -> Option<usize> {
        Some(usize::from(self.byte()?) << 8 | usize::from(self.byte()?))
    }

    /// Sizes of every kind: about as many of each octave.
    fn size(&mut self) -> Option<usize> {
        let word = self.word()?;
        Some((word & 0xfff) >> (word >> 12 & 11) << (if word >> 12 == 15 { 5 } else { 0 }))
    }
}

#[derive(Clone, Copy)]
struct Block {
    ptr: NonNull<u8>,
    layout: Layout,
    seed: u8,
}

impl Block {
    fn byte(&self, index: usize) -> u8 {
        self.seed.wrapping_add((index as u8).wrapping_mul(37))
    }

    /// A block is filled at both ends: it is the neighbours that bugs write to.
    fn spots(size: usize) -> impl Iterator<Item = usize> {
        (0..size.min(64)).chain(size.saturating_sub(64).max(64)..size)
    }

    fn fill(&self) {
        for index in Self::spots(self.layout.size()) {
            // SAFETY: live, and so large.
            unsafe { self.ptr.add(index).write(self.byte(index)) };
        }
    }

    fn check(&self, upto: usize) {
        for index in Self::spots(self.layout.size()).filter(|&index| index < upto) {
            // SAFETY: live, and so large.
            let found = unsafe { self.ptr.add(index).read() };
            assert_eq!(found, self.byte(index), "byte {index} of {:?}", self.layout);
        }
    }
}

struct Model<'a> {
    arena: &'a Arena,
    ledger: &'a Ledger,
    stage: &'a Stage,
    heap: &'a TestHeap<'a>,
    things: Option<Things<'a>>,
    live: Vec<Block>,
    objects: Vec<NonNull<Thing>>,
    seed: u8,
}

impl Model<'_> {
    fn adopt(&mut self, ptr: NonNull<u8>, layout: Layout) {
        let (start, end) = (ptr.as_ptr() as usize, ptr.as_ptr() as usize + layout.size().max(1));
        assert_eq!(start % layout.align(), 0, "{layout:?}");
        for other in &self.live {
            let from = other.ptr.as_ptr() as usize;
            assert!(end <= from || from + other.layout.size().max(1) <= start, "blocks overlap");
        }
        self.seed = self.seed.wrapping_add(1);
        let block = Block { ptr, layout, seed: self.seed };
        block.fill();
        self.live.push(block);
    }

    /// One step. None when the input is used up.
    fn step(&mut self, input: &mut Input<'_>) -> Option<Result<(), HeapError>> {
        match input.byte()? % 32 {
            0..=9 => {
                let (size, shape) = (input.size()?, input.byte()?);
                let shift =
                    if shape & 0x70 != 0 { u32::from(shape % 5) } else { u32::from(shape % 15) };
                let layout = Layout::from_size_align(size, 1 << shift).ok()?;
                Some(self.alloc(layout, shape & 0x80 != 0))
            }
            10..=17 if !self.live.is_empty() => {
                let which = input.word()? % self.live.len();
                let block = self.live.swap_remove(which);
                block.check(block.layout.size());
                // SAFETY: live, and forgotten by the model.
                let freed = unsafe {
                    match which & 1 {
                        0 => self.heap.kfree_sized(block.ptr, block.layout),
                        _ => self.heap.kfree(block.ptr),
                    }
                };
                freed.expect("a live block");
                Some(Ok(()))
            }
            18..=20 if !self.live.is_empty() => {
                let (which, size) = (input.word()? % self.live.len(), input.size()?);
                Some(self.resize(which, size))
            }
            21 if !self.live.is_empty() => {
                let block = self.live[input.word()? % self.live.len()];
                let inside = block.ptr.as_ptr().wrapping_add(1);
                // SAFETY: never null.
                let inside = unsafe { NonNull::new_unchecked(inside) };
                // SAFETY: refused, which is what is tested.
                let freed = unsafe { self.heap.kfree(inside) };
                assert_eq!(freed, Err(MisuseKind::Interior));
                assert_eq!(self.ledger.kind(), MisuseKind::Interior);
                Some(Ok(()))
            }
            22..=24 => Some(self.object()),
            25..=27 => {
                if let (Some(things), Some(object)) = (&self.things, self.objects.pop()) {
                    // SAFETY: live, and forgotten by the model.
                    unsafe {
                        assert_eq!(*object.as_ref(), MARK);
                        things.free_raw(object).expect("a live object");
                    }
                }
                Some(Ok(()))
            }
            28 => {
                self.arena.fail_at(usize::from(input.byte()? % 8));
                Some(Ok(()))
            }
            29 | 30 => {
                self.stage.0.set(usize::from(input.byte()? % 4));
                Some(Ok(()))
            }
            31 => {
                match input.byte()? % 4 {
                    0 => {
                        let (before, pages) = (self.arena.pages_out(), self.heap.shrink());
                        assert_eq!(before - pages, self.arena.pages_out());
                    }
                    _ => self.heap.drain(),
                }
                Some(Ok(()))
            }
            _ => Some(Ok(())),
        }
    }

    fn alloc(&mut self, layout: Layout, zeroed: bool) -> Result<(), HeapError> {
        let ptr = match zeroed {
            true => self.heap.kalloc_zeroed(layout)?,
            false => self.heap.kalloc(layout)?,
        };
        if zeroed {
            // SAFETY: live, so large, and initialised.
            let bytes = unsafe { std::slice::from_raw_parts(ptr.as_ptr(), layout.size()) };
            assert!(bytes.iter().all(|&byte| byte == 0), "not zero");
        }
        self.adopt(ptr, layout);
        Ok(())
    }

    fn resize(&mut self, which: usize, size: usize) -> Result<(), HeapError> {
        let old = self.live[which];
        // SAFETY: live, with this layout.
        let ptr = unsafe { self.heap.krealloc(old.ptr, old.layout, size)? };
        self.live.swap_remove(which);
        Block { ptr, ..old }.check(size.min(old.layout.size()));
        let layout = Layout::from_size_align(size, old.layout.align());
        self.adopt(ptr, layout.map_err(|_| HeapError::TooLarge)?);
        Ok(())
    }

    fn object(&mut self) -> Result<(), HeapError> {
        if self.things.is_none() {
            self.things = Some(self.heap.cache("things", || MARK)?);
        }
        let Some(things) = &self.things else { return Ok(()) };
        let object = things.alloc_raw()?;
        // SAFETY: a live object.
        assert_eq!(unsafe { *object.as_ref() }, MARK, "an object lost its state while it was free");
        assert!(!self.objects.contains(&object), "handed out twice");
        self.objects.push(object);
        Ok(())
    }

    /// *heap-conservation*.
    fn check(&self, thoroughly: bool) {
        let stats = match thoroughly {
            true => self.heap.check().expect("records that agree"),
            false => self.heap.stats(),
        };
        assert_eq!(stats.accounted(), stats.taken, "{stats:?}");
        assert_eq!(stats.taken, self.arena.pages_out() * 4096);
        let owned: usize = self.live.iter().map(|block| block.layout.size()).sum();
        assert!(stats.live + stats.runs >= owned, "{stats:?}");
    }

    fn finish(mut self) {
        for block in std::mem::take(&mut self.live) {
            block.check(block.layout.size());
            // SAFETY: live, and forgotten by the model.
            unsafe { self.heap.kfree(block.ptr) }.expect("a live block");
        }
        if let Some(things) = self.things.take() {
            for object in std::mem::take(&mut self.objects) {
                // SAFETY: as above.
                unsafe { things.free_raw(object) }.expect("a live object");
            }
        }
        self.check(true);
        // SAFETY: no other CPU is in a call.
        unsafe { self.heap.drain_stopped() };
        assert_eq!(self.heap.stats().live, 0);
        self.heap.shrink();
        assert_eq!(self.arena.pages_out(), 0, "{:?}", self.heap.stats());
        assert!(self.ledger.is_clean());
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    // From hardly anything to enough.
    let pages = 16 << (input.byte().unwrap_or(0) % 6);
    let (arena, ledger, stage) = (Arena::new(pages), Ledger::default(), Stage(Cell::new(0)));
    let heap: TestHeap<'_> = Heap::with_report(&arena, &stage, &ledger);
    // With and without pages that can be mapped, and samples in them.
    let mapping = input.byte().unwrap_or(0);
    arena.let_map(usize::from(mapping >> 4) * 16);
    heap.set_sampling(usize::from(mapping % 8));
    // With and without pages that are known to be zero, and a secret.
    if mapping & 8 != 0 {
        arena.let_know(0);
        heap.harden(u64::from(mapping) * 0x0101_0101_0101_0101);
    }
    let mut model = Model {
        arena: &arena,
        ledger: &ledger,
        stage: &stage,
        heap: &heap,
        things: None,
        live: Vec::new(),
        objects: Vec::new(),
        seed: 0,
    };
    let mut steps = 0;
    while let Some(outcome) = model.step(&mut input) {
        assert!(matches!(outcome, Ok(()) | Err(HeapError::OutOfPages)), "{outcome:?}");
        steps += 1;
        model.check(steps % 16 == 0);
    }
    model.finish();
});
