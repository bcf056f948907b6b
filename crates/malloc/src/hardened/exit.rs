//! At the end: what was written after it was freed, what was written behind, what was never freed.
#![allow(unsafe_code)] // looks at all blocks

use core::ptr;
use core::sync::atomic::Ordering;

use super::{FAR_HEADER, Found};
use crate::allocator::Allocator;
use crate::arena::{ARENAS, Ground};
use crate::heap::{DEAD, Heap};
use crate::system::{Local, System};

/// Places in a report; a power of two.
const PLACES: usize = 1024;

/// Blocks that one place in the program allocated and nobody freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leak {
    /// The place; 0 = unknown.
    pub pc: usize,
    /// Blocks.
    pub blocks: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// Leaks by place: a hash table. When it is full, what else there is counts as of a place unknown.
#[derive(Clone, Copy, Debug)]
pub struct Leaks {
    places: [Leak; PLACES],
    others: Leak,
}

impl Leaks {
    /// None.
    pub const fn new() -> Self {
        const NONE: Leak = Leak { pc: 0, blocks: 0, bytes: 0 };
        Self { places: [NONE; PLACES], others: NONE }
    }

    fn add(&mut self, found: &Found) {
        let pc = found.allocated.pc();
        let start = pc.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let fits = |leak: &Leak| leak.blocks == 0 || leak.pc == pc;
        let mut turns = (0..PLACES).map(|turn| (start + turn) % PLACES);
        let index = turns.find(|&index| self.places.get(index).is_some_and(fits));
        let leak = match index.and_then(|index| self.places.get_mut(index)) {
            Some(leak) => {
                leak.pc = pc;
                leak
            }
            None => &mut self.others,
        };
        leak.blocks += 1;
        leak.bytes += found.bytes;
    }

    /// The largest first; those without a place last.
    pub fn sorted(&mut self) -> impl Iterator<Item = &Leak> {
        self.places.sort_unstable_by_key(|leak| core::cmp::Reverse(leak.bytes));
        self.places.iter().chain([&self.others]).filter(|leak| leak.blocks > 0)
    }
}

impl Default for Leaks {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: System, L: Local> Allocator<S, L> {
    /// Whether no other thread has a heap.
    pub(crate) fn is_alone(&self) -> bool {
        let own = self.local.get();
        (0..self.threads.count.load(Ordering::Acquire) as usize).all(|number| {
            // SAFETY: places below the count have been written.
            let heap: &Heap = unsafe { &*self.window.heap(number) };
            ptr::eq(heap, own) || heap.state.load(Ordering::Relaxed) == DEAD || self.is_stale(heap)
        })
    }

    /// In hardened mode: checks what waits in this thread's quarantine and, if no other thread is left,
    /// the tails of all live blocks, which are counted by the place that allocated them. Stops the
    /// program at the first that was written over. Nothing: not hardened, or not alone.
    pub fn check_all(&self) -> Option<Leaks> {
        let heap = self.own_heap().filter(|_| self.is_hardened())?;
        self.check_quarantine(heap);
        if !self.is_alone() {
            return None;
        }
        let mut leaks = Leaks::new();
        self.each_live(|at, found, capacity| {
            self.check_tail(at, found, capacity);
            leaks.add(found);
        });
        Some(leaks)
    }

    fn each_live(&self, mut each: impl FnMut(*mut u8, &Found, usize)) {
        for number in 0..self.pool.stats(&self.system).frontier {
            let unit = self.unit(number);
            let class = unit.class();
            if unit.owner.load(Ordering::Relaxed).is_null() {
                continue;
            }
            for index in 0..usize::from(unit.carved.get()) {
                let block = self.base(unit).wrapping_add(index * class.bytes as usize);
                let aligned = (0..7).map(|shift| (16 << shift) - 16);
                self.look(block, class.bytes as usize, aligned, &mut each);
            }
        }
        for number in 0..ARENAS {
            let ground = Ground::enter(&self.window, &self.system, number);
            ground.each_block(|inner, bytes| {
                let aligned = (FAR_HEADER.trailing_zeros()..18).map(|shift| 1 << shift);
                self.look(inner, bytes, aligned, &mut each);
            });
        }
        for block in self.fences.all() {
            let at = ptr::with_exposed_provenance_mut(block);
            if let Some((found, capacity)) = self.find_live(at) {
                each(at, &found, capacity);
            }
        }
    }

    /// The live block in an inner block, if there is one: its start depends on its alignment.
    fn look(
        &self,
        inner: *mut u8,
        bytes: usize,
        leads: impl Iterator<Item = usize>,
        each: &mut impl FnMut(*mut u8, &Found, usize),
    ) {
        for lead in leads.take_while(|&lead| lead < bytes) {
            let at = inner.wrapping_add(lead);
            if let Some(found) = self.read_header(at).filter(Found::is_live) {
                if found.lead == lead {
                    return each(at, &found, bytes - lead);
                }
            }
        }
    }
}
