//! Free blocks: how they are written down, found, and taken apart.
//!
//! Bins: one for each size to 4 KiB, sixteen for each octave above. A link that does not come back, a
//! size that the block's end does not confirm: somebody wrote into free memory, and the program is
//! stopped before more is lost.
#![allow(unsafe_code)] // free blocks carry their own books

use core::sync::atomic::Ordering;

use super::{BINS, EXACT, Ground};
use crate::system::{Corruption, Stop, System};

/// A free block, at its start. All in granules.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Node {
    pub size: u32,
    /// How much of it may have memory behind it.
    pub dirty: u32,
    pub next: u32,
    pub previous: u32,
}

/// The bin of a size.
pub fn bin_of(size: u32) -> usize {
    if size <= EXACT {
        return size as usize - 1;
    }
    let octave = size.ilog2();
    let bin = 64 + (octave as usize - 6) * 16 + (size >> (octave - 4)) as usize % 16;
    bin.min(BINS - 1)
}

impl<S: System> Ground<'_, S> {
    pub(super) fn node(&self, granule: u32) -> Node {
        // SAFETY: only called for free blocks below the top, which hold a node at their start.
        unsafe { self.address(granule).cast::<Node>().read() }
    }

    pub(super) fn set_node(&self, granule: u32, node: Node) {
        // SAFETY: as for `node`; free blocks are the arena's.
        unsafe { self.address(granule).cast::<Node>().write(node) };
    }

    pub(super) fn footer(&self, end: u32) -> *mut u32 {
        self.address(end).wrapping_sub(4).cast()
    }

    /// The best free block of at least so many granules.
    pub(super) fn search(&self, size: u32) -> Option<u32> {
        let first = bin_of(size);
        let mut map = first / 64;
        let mut bits = self.arena.maps.get(map)?.get() & (u64::MAX << (first % 64));
        loop {
            while bits != 0 {
                let bin = map * 64 + bits.trailing_zeros() as usize;
                if let Some(start) = self.best_of(bin, size) {
                    return Some(start);
                }
                bits &= bits - 1;
            }
            map += 1;
            bits = self.arena.maps.get(map)?.get();
        }
    }

    fn best_of(&self, bin: usize, size: u32) -> Option<u32> {
        let mut next = self.arena.bins.get(bin)?.get();
        let mut best: Option<(u32, u32)> = None;
        let mut looks = if bin < EXACT as usize { 4 } else { 32 };
        while next != 0 && looks > 0 {
            let start = next - 1;
            let node = self.node(start);
            if node.size >= size && best.is_none_or(|best| (node.size, start) < best) {
                best = Some((node.size, start));
            }
            next = node.next;
            // Beyond the limit, the first that fits will do.
            looks -= u32::from(looks > 1 || best.is_some());
        }
        best.map(|(_, start)| start)
    }

    /// Tells the block that starts at `granule` about the one before.
    pub(super) fn set_before(&self, granule: u32, free: bool) {
        if granule < self.arena.top.get() {
            self.cell(granule).before_is_free.store(u8::from(free), Ordering::Relaxed);
        }
    }

    /// Puts a free block into its bin.
    pub(super) fn insert(&self, start: u32, size: u32, dirty: u32) {
        let bin = bin_of(size);
        let (Some(head), Some(map)) = (self.arena.bins.get(bin), self.arena.maps.get(bin / 64))
        else {
            return;
        };
        let next = head.get();
        self.set_node(start, Node { size, dirty, next, previous: 0 });
        // SAFETY: the last word of the free block.
        unsafe { self.footer(start + size).write(size) };
        if next != 0 {
            let mut node = self.node(next - 1);
            node.previous = start + 1;
            self.set_node(next - 1, node);
        }
        head.set(start + 1);
        map.set(map.get() | 1 << (bin % 64));
        self.arena.dirty.set(self.arena.dirty.get() + dirty);
        self.set_before(start + size, true);
    }

    /// Takes a free block out of its bin.
    pub(super) fn remove(&self, start: u32) -> Node {
        let node = self.node(start);
        let top = self.arena.top.get();
        let sane = node.size != 0 && node.size <= top - start && node.dirty <= node.size;
        if !sane || node.next > top || node.previous > top {
            self.corrupt(start);
        }
        // SAFETY: the last word of the free block, which lies below the top.
        if unsafe { self.footer(start + node.size).read() } != node.size {
            self.corrupt(start);
        }
        let bin = bin_of(node.size);
        if node.next != 0 {
            let mut next = self.node(node.next - 1);
            if next.previous != start + 1 {
                self.corrupt(start);
            }
            next.previous = node.previous;
            self.set_node(node.next - 1, next);
        }
        if node.previous != 0 {
            let mut previous = self.node(node.previous - 1);
            if previous.next != start + 1 {
                self.corrupt(start);
            }
            previous.next = node.next;
            self.set_node(node.previous - 1, previous);
        } else if let (Some(head), Some(map)) =
            (self.arena.bins.get(bin), self.arena.maps.get(bin / 64))
        {
            if head.get() != start + 1 {
                self.corrupt(start);
            }
            head.set(node.next);
            if node.next == 0 {
                map.set(map.get() & !(1 << (bin % 64)));
            }
        }
        self.arena.dirty.set(self.arena.dirty.get() - node.dirty);
        node
    }

    #[cold]
    pub(super) fn corrupt(&self, granule: u32) -> ! {
        self.system.stop(&Stop::Corruption(Corruption::FreeBlock, self.address(granule) as usize))
    }

    /// Each allocated block, and its bytes.
    pub fn each_block(&self, mut each: impl FnMut(*mut u8, usize)) {
        let mut at = 0;
        while at < self.arena.top.get() {
            let live = self.cell(at).block_at(at);
            if let Some(size) = live {
                each(self.address(at), size as usize * super::GRANULE);
            }
            at += live.unwrap_or_else(|| self.node(at).size.max(1));
        }
    }

    /// Walks the arena and checks *no-gap*, *merged*, *before-is-free* and *live*. For tests.
    #[cfg(test)]
    pub fn check(&self) -> bool {
        let (mut at, mut live, mut dirty, mut after_free) = (0, 0, 0, false);
        while at < self.arena.top.get() {
            if let Some(size) = self.cell(at).block_at(at) {
                let told = self.cell(at).before_is_free.load(Ordering::Relaxed) != 0;
                if told != after_free {
                    return false;
                }
                live += size;
                at += size;
                after_free = false;
            } else {
                let node = self.node(at);
                // SAFETY: a free block's last word.
                let footer = unsafe { self.footer(at + node.size).read() };
                if after_free || node.size == 0 || footer != node.size {
                    return false;
                }
                dirty += node.dirty;
                at += node.size;
                after_free = true;
            }
        }
        let arena = self.arena;
        at == arena.top.get()
            && !after_free
            && live == arena.live.get()
            && dirty == arena.dirty.get()
    }
}
