//! Giving memory back to the system.
#![allow(unsafe_code)] // ends the memory of free blocks

use core::ptr::NonNull;

use super::bins::bin_of;
use super::{BINS, GRANULE, Ground, Own, PAGE_GRANULES, WORTH};
use crate::huge;
use crate::system::System;

impl<S: System> Ground<'_, S> {
    /// Granules that are free and may have memory behind them.
    pub(super) fn dirty(&self) -> u32 {
        self.arena.dirty.get() + (self.arena.high.get() - self.arena.top.get())
    }

    /// Gives memory back to the system until at most `keep` granules are dirty, or nothing is worth it.
    pub fn purge(&self, keep: u32) -> usize {
        let before = self.dirty();
        let top = self.arena.top.get().next_multiple_of(PAGE_GRANULES);
        let high = self.arena.high.get().next_multiple_of(PAGE_GRANULES);
        let beyond = huge::end_of_region(self.huge_from, high as usize * GRANULE);
        let beyond = (beyond / GRANULE) as u32;
        let mut lowest = top.min(beyond);
        self.decommit(top, beyond);
        self.arena.high.set(self.arena.high.get().min(top));
        for bin in (bin_of(WORTH)..BINS).rev() {
            let mut next = self.arena.bins.get(bin).map_or(0, Own::get);
            while next != 0 && self.dirty() > keep {
                let start = next - 1;
                let mut node = self.node(start);
                next = node.next;
                if node.dirty >= PAGE_GRANULES {
                    let first = (start + 1).next_multiple_of(PAGE_GRANULES);
                    let end = start + node.size - 1;
                    lowest = lowest.min(first);
                    self.decommit(first, end - end % PAGE_GRANULES);
                    self.arena.dirty.set(self.arena.dirty.get() - node.dirty);
                    node.dirty = 0;
                    self.set_node(start, node);
                }
            }
        }
        let touched = lowest as usize * GRANULE..beyond as usize * GRANULE;
        // SAFETY: all that was ever committed is the arena's to advise about.
        unsafe { huge::forbid(self.system, self.memory, self.huge_from, touched) };
        before.saturating_sub(self.dirty()) as usize * GRANULE
    }

    fn decommit(&self, first: u32, end: u32) {
        if let (true, Some(start)) = (first < end, NonNull::new(self.address(first))) {
            // SAFETY: pages inside a free block, between its node and its footer, or beyond the top.
            unsafe { self.system.decommit(start, (end - first) as usize * GRANULE) };
        }
    }
}
