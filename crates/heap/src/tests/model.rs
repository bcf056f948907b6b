//! The naive model: a list of live blocks, each byte of which is known.

use core::alloc::Layout;
use core::ptr::NonNull;
use std::vec::Vec;

use proptest::prelude::*;

use super::{TestHeap, heap, layout};
use crate::HeapError;
use crate::testing::{Arena, Ledger};

/// Under Miri not every byte of a block is filled and compared.
const STRIDE: usize = if cfg!(miri) { 61 } else { 1 };

/// A live block as the model knows it: every byte is derived from the seed.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub(super) ptr: NonNull<u8>,
    pub(super) layout: Layout,
    pub(super) seed: u8,
}

impl Block {
    fn byte(&self, index: usize) -> u8 {
        self.seed.wrapping_mul(31).wrapping_add((index ^ (index >> 8)) as u8)
    }

    pub(super) fn fill(&self) {
        for index in (0..self.layout.size()).step_by(STRIDE) {
            // SAFETY: the block is live and this large.
            unsafe { self.ptr.add(index).write(self.byte(index)) };
        }
    }

    pub(super) fn check(&self, upto: usize) {
        for index in (0..upto).step_by(STRIDE) {
            // SAFETY: the block is live and this large.
            assert_eq!(unsafe { self.ptr.add(index).read() }, self.byte(index), "byte {index}");
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Alloc { size: usize, shift: u32, zeroed: bool },
    Free { which: usize, sized: bool },
    Resize { which: usize, size: usize },
    Shrink,
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 0..=64usize,
        4 => 0..=1100usize,
        3 => 1000..=9000usize,
        1 => 9000..=70_000usize,
    ]
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let shift = prop_oneof![8 => 0..=4u32, 2 => 5..=10u32, 1 => 11..=14u32];
    prop_oneof![
        5 => (size(), shift, any::<bool>())
            .prop_map(|(size, shift, zeroed)| Step::Alloc { size, shift, zeroed }),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(which, sized)| Step::Free { which, sized }),
        2 => (any::<usize>(), size()).prop_map(|(which, size)| Step::Resize { which, size }),
        1 => Just(Step::Shrink),
    ]
}

/// The naive model: a list of live blocks.
pub(super) struct Model<'a> {
    pub(super) arena: &'a Arena,
    pub(super) heap: TestHeap<'a>,
    pub(super) live: Vec<Block>,
    seed: u8,
}

impl<'a> Model<'a> {
    pub(super) fn new(arena: &'a Arena, ledger: &'a Ledger) -> Self {
        Self { arena, heap: heap(arena, ledger), live: Vec::new(), seed: 0 }
    }

    pub(super) fn adopt(&mut self, ptr: NonNull<u8>, layout: Layout) {
        let (start, end) = (ptr.as_ptr() as usize, ptr.as_ptr() as usize + layout.size().max(1));
        assert_eq!(start % layout.align(), 0);
        for other in &self.live {
            let from = other.ptr.as_ptr() as usize;
            assert!(end <= from || from + other.layout.size().max(1) <= start, "blocks overlap");
        }
        self.seed = self.seed.wrapping_add(1);
        let block = Block { ptr, layout, seed: self.seed };
        block.fill();
        self.live.push(block);
    }

    pub(super) fn apply(&mut self, step: &Step) -> Result<(), HeapError> {
        match *step {
            Step::Alloc { size, shift, zeroed } => {
                let layout = layout(size, 1 << shift);
                let ptr = match zeroed {
                    true => self.heap.kalloc_zeroed(layout)?,
                    false => self.heap.kalloc(layout)?,
                };
                // SAFETY: live and this large.
                let byte = |index| unsafe { ptr.add(index).read() };
                assert!(!zeroed || (0..size).step_by(STRIDE).all(|index| byte(index) == 0));
                assert!(self.heap.usable_size(ptr).unwrap() >= size);
                self.adopt(ptr, layout);
            }
            Step::Free { which, sized } if !self.live.is_empty() => {
                let block = self.live.swap_remove(which % self.live.len());
                block.check(block.layout.size());
                // SAFETY: live, and forgotten by the model.
                let freed = unsafe {
                    match sized {
                        true => self.heap.kfree_sized(block.ptr, block.layout),
                        false => self.heap.kfree(block.ptr),
                    }
                };
                freed.unwrap();
            }
            Step::Resize { which, size } if !self.live.is_empty() => {
                let which = which % self.live.len();
                let old = self.live[which];
                // SAFETY: live, with this layout.
                let ptr = unsafe { self.heap.krealloc(old.ptr, old.layout, size)? };
                self.live.swap_remove(which);
                Block { ptr, ..old }.check(size.min(old.layout.size()));
                self.adopt(ptr, layout(size, old.layout.align()));
            }
            Step::Shrink => {
                let before = self.arena.pages_out();
                let pages = self.heap.shrink();
                assert_eq!(before - pages, self.arena.pages_out());
            }
            _ => {}
        }
        Ok(())
    }

    /// heap-conservation, and nothing of the model's is lost.
    pub(super) fn check(&self) {
        let stats = self.heap.check().unwrap();
        assert_eq!(stats.accounted(), stats.taken, "{stats:?}");
        assert_eq!(stats.taken, self.arena.pages_out() * 4096);
        let wanted: usize = self.live.iter().map(|block| block.layout.size()).sum();
        assert!(stats.live + stats.runs >= wanted);
    }

    pub(super) fn finish(mut self) {
        for block in core::mem::take(&mut self.live) {
            block.check(block.layout.size());
            // SAFETY: live, and forgotten by the model.
            unsafe { self.heap.kfree(block.ptr) }.unwrap();
        }
        self.check();
        // SAFETY: no other thread knows the heap.
        unsafe { self.heap.drain_stopped() };
        self.check();
        assert_eq!(self.heap.stats().live, 0);
        self.heap.shrink();
        assert_eq!(self.arena.pages_out(), 0, "{:?}", self.heap.stats());
    }
}
