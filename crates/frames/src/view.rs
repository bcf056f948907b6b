//! What an allocator shows of itself.

use lock_api::RawMutex;
use pagoda_addr::{Frame, FrameRange, Order, PhysMap};
use pagoda_sync::Cpus;

use crate::allocator::frame_at;
use crate::nodes::Area;
use crate::search::Window;
use crate::shim::Ordering;
use crate::{
    Allocation, BlockCounts, BlockOwners, FrameAllocator, Mobility, Node, Stats, Zone, ZoneStats,
};

impl<C: Cpus, M: PhysMap, R: RawMutex> FrameAllocator<'_, C, M, R> {
    /// How many frames are where.
    pub fn stats(&self) -> Stats {
        let core = self.core.lock();
        let (total, free) = (core.total_frames(), core.free_frames());
        let reserve = self.reserve.load(Ordering::Relaxed).min(free);
        // Exact while nobody else allocates; else off by what moved meanwhile.
        let cached = self.caches.count().min(total - free);
        Stats { total, free, cached, used: total - free - cached, reserve }
    }

    /// The free blocks of a zone, or of all memory. O(chunks).
    pub fn block_counts(&self, zone: Option<Zone>) -> BlockCounts {
        let core = self.core.lock();
        let mut counts = BlockCounts::default();
        let window = match zone {
            Some(zone) => self.zones[zone as usize],
            None => Window::new(0, core.end()),
        };
        core.count_blocks(window, &mut counts.blocks);
        counts
    }

    /// Free blocks of `order` that could be allocated one after the other. O(chunks).
    pub fn available(&self, order: Order) -> u64 {
        let counts = self.block_counts(None).blocks;
        (order.get()..=Order::MAX.get())
            .map(|larger| counts[usize::from(larger)] << (larger - order.get()))
            .sum()
    }

    /// The frames of a zone. O(chunks).
    pub fn zone_stats(&self, zone: Zone) -> ZoneStats {
        let mut sum = ZoneStats::default();
        for area in self.nodes().flat_map(|node| self.areas_of(node, zone)) {
            let part = self.area_stats(&area);
            sum.total += part.total;
            sum.free += part.free;
        }
        sum
    }

    pub(crate) fn areas_of(&self, node: Node, zone: Zone) -> impl Iterator<Item = Area> {
        self.caches.nodes.areas(node, zone, self.zones[zone as usize])
    }

    pub(crate) fn area_stats(&self, area: &Area) -> ZoneStats {
        let core = self.core.lock();
        let part = |range: &FrameRange| {
            let start = range.start().number().max(area.start);
            range.end_number().min(area.end).saturating_sub(start)
        };
        let total = core.directory.ranges().iter().map(part).sum();
        ZoneStats { total, free: core.count_frames(area.window) }
    }

    /// The 2 MiB block that is closest to being entirely free, and how many of its frames are not:
    /// whoever can move what stands in it gains a large block. None if there is none in between.
    /// O(chunks).
    pub fn nearly_free_block(&self) -> Option<(FrameRange, u64)> {
        let core = self.core.lock();
        let (index, used) = core.emptiest_chunk(|_| true)?;
        let range = FrameRange::new(frame_at(&core, index), Order::LARGE.count())?;
        Some((range, used))
    }

    /// As [`nearly_free_block`](Self::nearly_free_block), among the blocks whose frames were given to
    /// [`Mobility::Movable`] requests: the one to empty next. What stands in it is told by
    /// [`obstacles`](Self::obstacles).
    pub fn block_to_empty(&self) -> Option<(FrameRange, u64)> {
        let core = self.core.lock();
        let movable = |chunk| core.mobility(chunk) == Mobility::Movable;
        let (index, used) = core.emptiest_chunk(movable)?;
        let range = FrameRange::new(frame_at(&core, index), Order::LARGE.count())?;
        Some((range, used))
    }

    /// Names the allocations that touch `block`, lowest first: whoever moves them elsewhere and frees
    /// them gains the block. Needs the frame table; without one nothing is named. What others
    /// allocate or free meanwhile may or may not be seen. O(frames).
    pub fn obstacles(&self, block: FrameRange, mut each: impl FnMut(Allocation)) {
        let mut next = block.start();
        let mut found = self.table.find(next);
        while next.number() < block.end_number() {
            let after = found.map_or(next.number() + 1, |one| one.range.end_number());
            if let Some(one) = found {
                each(one);
            }
            let Some(frame) = Frame::new(after) else { return };
            next = frame;
            found = self.table.begins(next);
        }
    }

    /// How many 2 MiB blocks are entirely free, and how many belong to unmovable and to movable
    /// frames. O(chunks).
    pub fn owners_of_blocks(&self, zone: Option<Zone>) -> BlockOwners {
        let core = self.core.lock();
        let window = match zone {
            Some(zone) => self.zones[zone as usize],
            None => Window::new(0, core.end()),
        };
        core.count_owners(window)
    }
}
