//! A snapshot of all zones, and the same as Linux's `/proc` would say it.
//!
//! Formats: `mm/vmstat.c` and proc_pid_buddyinfo(5), by what they print. Linux knows blocks up to
//! 4 MiB (order 10); larger ones are shown as so many of those. Each node has a snapshot of its own,
//! and its text stands behind that of the node before, as in Linux. Of `zoneinfo`, the lines that an
//! allocator of frames can answer.

use core::fmt::{self, Write};

use lock_api::RawMutex;
use pagoda_addr::PhysMap;
use pagoda_sync::Cpus;

use crate::{BlockCounts, BlockOwners, FrameAllocator, Mobility, Node, Watermarks, Zone};

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

/// All zones of a node at one moment. O(chunks) to take, nothing to print.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// Of this node.
    pub node: Node,
    /// Lowest first.
    pub zones: [ZoneSnapshot; Zone::ALL.len()],
    /// The levels of all memory together.
    pub watermarks: Watermarks,
    /// Frames under management in all nodes.
    pub total: u64,
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
            write!(out, "Node {}, zone {:>8} ", self.node.0, zone.name())?;
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
                let (node, name) = (self.node.0, zone.name());
                write!(out, "Node {node:4}, zone {name:>8}, type {kind:>12} ")?;
                columns(out, &[*counts])?;
            }
        }
        writeln!(out, "\n{:<23}{:>12} {:>12} ", "Number of blocks type", "Unmovable", "Movable")?;
        for zone in self.used_zones() {
            let BlockOwners { free, unmovable, movable } = zone.owners;
            let (name, movable) = (zone.name(), movable + free);
            let node = self.node.0;
            writeln!(out, "Node {node}, zone {name:>8} {unmovable:12} {movable:12} ")?;
        }
        Ok(())
    }

    /// `/proc/zoneinfo`: the first lines of each zone.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn zoneinfo(&self, out: &mut dyn Write) -> fmt::Result {
        let Watermarks { min, low, high } = self.watermarks;
        for zone in self.used_zones() {
            writeln!(out, "Node {}, zone {:>8}", self.node.0, zone.name())?;
            writeln!(out, "  pages free     {}", zone.free_frames())?;
            for (name, mark) in [("boost", 0), ("min", min), ("low", low), ("high", high)] {
                writeln!(out, "        {name:<8} {}", zone.part(mark, self.total))?;
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
    /// What is free where in the first node, which may be the only one. O(chunks).
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot_of(Node(0))
    }

    /// What is free where in a node, at one moment for each zone. O(chunks).
    pub fn snapshot_of(&self, node: Node) -> Snapshot {
        let zones = Zone::ALL.map(|zone| self.zone_snapshot(node, zone));
        Snapshot { node, zones, watermarks: self.watermarks(), total: self.stats().total }
    }

    fn zone_snapshot(&self, node: Node, zone: Zone) -> ZoneSnapshot {
        let mut sum = ZoneSnapshot {
            zone,
            total: 0,
            spanned: 0,
            free: [BlockCounts::default(); 2],
            owners: BlockOwners::default(),
        };
        let (mut first, mut after) = (u64::MAX, 0);
        for area in self.areas_of(node, zone) {
            sum.total += self.area_stats(&area).total;
            let core = self.core.lock();
            for (&mobility, counts) in Mobility::ALL.iter().zip(&mut sum.free) {
                core.count_blocks_of(area.window, mobility, &mut counts.blocks);
            }
            let owners = core.count_owners(area.window);
            sum.owners.free += owners.free;
            sum.owners.unmovable += owners.unmovable;
            sum.owners.movable += owners.movable;
            for range in core.directory.ranges() {
                let start = range.start().number().max(area.start);
                let end = range.end_number().min(area.end);
                if start < end {
                    (first, after) = (first.min(start), after.max(end));
                }
            }
        }
        sum.spanned = after.saturating_sub(first);
        sum
    }
}
