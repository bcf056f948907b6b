//! How the allocator stands: read from counters that the slow paths keep.

use core::fmt;
use core::sync::atomic::Ordering;

use crate::allocator::Allocator;
use crate::arena::{ARENAS, ArenaStats, Ground};
use crate::classes::{CLASSES, UNIT_BYTES};
use crate::pool::PoolStats;
use crate::system::{Local, System};

/// A snapshot. Threads that allocate meanwhile may make its parts disagree by a few blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Slabs of each class, over all threads.
    pub slabs: [u32; CLASSES],
    /// The units of the small window.
    pub pool: PoolStats,
    /// The arenas together.
    pub medium: ArenaStats,
    /// Bytes of large mappings.
    pub large_bytes: usize,
    /// Large mappings.
    pub large_count: usize,
    /// Heaps ever used: the most threads at a time that allocated.
    pub heaps: u32,
    /// Bytes that the helper thread gave back; nothing if there is none.
    pub helper: Option<usize>,
}

impl Stats {
    /// Bytes of addresses that may have memory behind them.
    pub fn footprint(&self) -> usize {
        let units = self.pool.frontier - self.pool.clean;
        units as usize * UNIT_BYTES + self.medium.live + self.medium.dirty + self.large_bytes
    }
}

impl Stats {
    /// Bytes of slabs that hold blocks.
    pub fn slab_bytes(&self) -> usize {
        self.slabs.iter().map(|&count| count as usize * UNIT_BYTES).sum()
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = |bytes: usize| bytes.div_ceil(1024);
        writeln!(f, "heaps of threads        {:>10}", self.heaps)?;
        writeln!(f, "small: slabs in use     {:>10} KiB", kib(self.slab_bytes()))?;
        writeln!(
            f,
            "small: slabs waiting    {:>10} KiB",
            kib(self.pool.dirty as usize * UNIT_BYTES)
        )?;
        writeln!(f, "medium: blocks          {:>10} KiB", kib(self.medium.live))?;
        writeln!(f, "medium: free, not given back {:>5} KiB", kib(self.medium.dirty))?;
        writeln!(f, "large: {:>6} mappings  {:>10} KiB", self.large_count, kib(self.large_bytes))?;
        writeln!(f, "in all                  {:>10} KiB", kib(self.footprint()))?;
        match self.helper {
            Some(given) => writeln!(f, "given back while idle   {:>10} KiB", kib(given)),
            None => Ok(()),
        }
    }
}

impl<S: System, L: Local> Allocator<S, L> {
    /// How the allocator stands.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        if !self.window.is_open() {
            return stats;
        }
        stats.heaps = self.threads.count.load(Ordering::Acquire);
        for number in 0..stats.heaps as usize {
            for (total, count) in stats.slabs.iter_mut().zip(self.slab_counts(number)) {
                *total = total.saturating_add(count);
            }
        }
        stats.helper = self.idle.given();
        stats.pool = self.pool.stats(&self.system);
        for number in 0..ARENAS {
            let arena = Ground::enter(&self.window, &self.system, number).stats();
            stats.medium.bytes += arena.bytes;
            stats.medium.live += arena.live;
            stats.medium.dirty += arena.dirty;
            stats.medium.looks += arena.looks;
        }
        stats.large_bytes = self.large.bytes.load(Ordering::Relaxed);
        stats.large_count = self.large.count.load(Ordering::Relaxed);
        stats
    }

    #[allow(unsafe_code)] // one look into the table of heaps
    fn slab_counts(&self, number: usize) -> impl Iterator<Item = u32> {
        // SAFETY: places below the count have been written; the counts are atomics.
        let heap = unsafe { &*self.window.heap(number) };
        heap.slabs.iter().map(|count| count.load(Ordering::Relaxed))
    }
}
