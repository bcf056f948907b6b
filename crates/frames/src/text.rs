//! A snapshot of all zones, and the same as Linux's `/proc` would say it.
//!
//! Formats: `mm/vmstat.c` and proc_pid_buddyinfo(5), by what they print. Linux knows blocks up to
//! 4 MiB (order 10); larger ones are shown as so many of those. There is one node. Of `zoneinfo`, the
//! lines that an allocator of frames can answer.

use core::fmt::{self, Write};

use lock_api::RawMutex;
use pagoda_addr::PhysMap;
use pagoda_sync::Cpus;

use crate::shim::Ordering::Relaxed;
use crate::{BlockCounts, BlockOwners, FrameAllocator, Mobility, Pressure, Watermarks, Zone};

/// The largest order that Linux shows.
const SHOWN: usize = 10;

/// A zone at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ZoneSnapshot {
    /// Which one.
    pub zone: Zone,
    /// Frames under management.
    pub total: u64,
    /// From its first managed frame to its last, in frames, holes included.
    pub spanned: u64,
    /// Free blocks in chunks for unmovable and in chunks for movable frames; entirely free chunks
    /// count with the latter.
    pub free: [BlockCounts; 2],
    /// 2 MiB blocks by whom they are for.
    pub owners: BlockOwners,
}

/// All zones at one moment. O(chunks) to take, nothing to print.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// Lowest first.
    pub zones: [ZoneSnapshot; Zone::ALL.len()],
    /// The levels of all memory together.
    pub watermarks: Watermarks,
}

impl ZoneSnapshot {
    /// Free frames.
    pub fn free_frames(&self) -> u64 {
        self.free.iter().map(BlockCounts::frames).sum()
    }

    fn name(&self) -> &'static str {
        match self.zone {
            Zone::Dma => "DMA",
            Zone::Dma32 => "DMA32",
            Zone::Normal => "Normal",
        }
    }

    /// This zone's part of a number of frames.
    fn part(&self, frames: u64, all: u64) -> u64 {
        (u128::from(frames) * u128::from(self.total) / u128::from(all.max(1))) as u64
    }
}

/// Blocks by order as Linux counts them.
fn columns(out: &mut dyn Write, counts: &[BlockCounts]) -> fmt::Result {
    let of = |order: usize| counts.iter().map(move |counts| counts.blocks[order]).sum::<u64>();
    for order in 0..SHOWN {
        write!(out, "{:6} ", of(order))?;
    }
    let large =
        (SHOWN..BlockCounts::default().blocks.len()).map(|order| of(order) << (order - SHOWN));
    writeln!(out, "{:6} ", large.sum::<u64>())
}

impl Snapshot {
    fn used_zones(&self) -> impl Iterator<Item = &ZoneSnapshot> {
        self.zones.iter().filter(|zone| zone.total > 0)
    }

    /// `/proc/buddyinfo`.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn buddyinfo(&self, out: &mut dyn Write) -> fmt::Result {
        for zone in self.used_zones() {
            write!(out, "Node 0, zone {:>8} ", zone.name())?;
            columns(out, &zone.free)?;
        }
        Ok(())
    }

    /// `/proc/pagetypeinfo`.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn pagetypeinfo(&self, out: &mut dyn Write) -> fmt::Result {
        writeln!(out, "Page block order: 9\nPages per block:  512\n")?;
        write!(out, "{:<43}", "Free pages count per migrate type at order")?;
        for order in 0..=SHOWN {
            write!(out, "{order:6} ")?;
        }
        writeln!(out)?;
        for zone in self.used_zones() {
            for (counts, kind) in zone.free.iter().zip(["Unmovable", "Movable"]) {
                write!(out, "Node {:4}, zone {:>8}, type {kind:>12} ", 0, zone.name())?;
                columns(out, &[*counts])?;
            }
        }
        writeln!(out, "\n{:<23}{:>12} {:>12} ", "Number of blocks type", "Unmovable", "Movable")?;
        for zone in self.used_zones() {
            let BlockOwners { free, unmovable, movable } = zone.owners;
            let (name, movable) = (zone.name(), movable + free);
            writeln!(out, "Node 0, zone {name:>8} {unmovable:12} {movable:12} ")?;
        }
        Ok(())
    }

    /// `/proc/zoneinfo`: the first lines of each zone.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn zoneinfo(&self, out: &mut dyn Write) -> fmt::Result {
        let all = self.zones.iter().map(|zone| zone.total).sum();
        let Watermarks { min, low, high } = self.watermarks;
        for zone in self.used_zones() {
            writeln!(out, "Node 0, zone {:>8}", zone.name())?;
            writeln!(out, "  pages free     {}", zone.free_frames())?;
            for (name, mark) in [("boost", 0), ("min", min), ("low", low), ("high", high)] {
                writeln!(out, "        {name:<8} {}", zone.part(mark, all))?;
            }
            let frames =
                [("spanned", zone.spanned), ("present", zone.total), ("managed", zone.total)];
            for (name, count) in frames {
                writeln!(out, "        {name:<8} {count}")?;
            }
        }
        Ok(())
    }
}

impl<C: Cpus, M: PhysMap, R: RawMutex> FrameAllocator<'_, C, M, R> {
    /// What is free where, at one moment for each zone. O(chunks).
    pub fn snapshot(&self) -> Snapshot {
        let watermarks = self.watermarks();
        let zones = Zone::ALL.map(|zone| {
            let total = self.zone_stats(zone).total;
            let below = if zone == Zone::Dma { 0 } else { Zone::ALL[zone as usize - 1].end() };
            let core = self.core.lock();
            let window = self.zones[zone as usize];
            let free = Mobility::ALL.map(|mobility| {
                let mut counts = BlockCounts::default();
                core.count_blocks_of(window, mobility, &mut counts.blocks);
                counts
            });
            let ranges = core.directory.ranges().iter();
            let inside = ranges.filter(|range| {
                range.start().number() < zone.end()
                    && range.end_number() > below
                    && !range.is_empty()
            });
            let (mut first, mut after) = (u64::MAX, 0);
            for range in inside {
                first = first.min(range.start().number().max(below));
                after = after.max(range.end_number().min(zone.end()));
            }
            let spanned = after.saturating_sub(first);
            ZoneSnapshot { zone, total, spanned, free, owners: core.count_owners(window) }
        });
        Snapshot { zones, watermarks }
    }

    /// Sets the levels; `min` is the reserve as well.
    pub fn set_watermarks(&self, marks: Watermarks) {
        self.set_reserve(marks.min);
        self.low.store(marks.low, Relaxed);
        self.high.store(marks.high, Relaxed);
    }

    /// The levels.
    pub fn watermarks(&self) -> Watermarks {
        let [min, low, high] =
            [&self.reserve, &self.low, &self.high].map(|mark| mark.load(Relaxed));
        Watermarks { min, low, high }
    }

    /// How short memory is. Frames in caches count as free: they can be had. For a host's reclaimer
    /// to ask, after a refill or from time to time; nobody is called from within an allocation.
    pub fn pressure(&self) -> Pressure {
        let stats = self.stats();
        let (free, marks) = (stats.free + stats.cached, self.watermarks());
        if free >= marks.low.max(marks.min) {
            return Pressure::None;
        }
        let wanted = marks.high.max(marks.low).max(marks.min) - free;
        if free <= marks.min { Pressure::Critical { wanted } } else { Pressure::Low { wanted } }
    }
}
