//! What there is to see.

use pagoda_addr::Order;

/// Counts of frames. *conservation*: `free + cached + used == total`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Frames under management.
    pub total: u64,
    /// Frames in the shared core, ready to be handed out.
    pub free: u64,
    /// Frames in the caches of CPUs: free as well, but not in one piece.
    pub cached: u64,
    /// Frames in somebody's hands.
    pub used: u64,
    /// Frames of `free` that only [`Class::Reserve`](crate::Class::Reserve) may have.
    pub reserve: u64,
}

/// How requests for one zeroed frame were served.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ZeroStats {
    /// Zeroed frames in stock; part of [`Stats::cached`].
    pub pooled: u64,
    /// Requests served from stock.
    pub served: u64,
    /// Requests whose frame was zeroed on the spot.
    pub missed: u64,
}

/// A part of physical memory by what can reach it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Zone {
    /// Below 16 MiB: devices with 24 address lines.
    Dma,
    /// Below 4 GiB: devices with 32 address lines.
    Dma32,
    /// The rest.
    Normal,
}

impl Zone {
    /// All zones, lowest first.
    pub const ALL: [Self; 3] = [Self::Dma, Self::Dma32, Self::Normal];

    /// The first frame number above the zone; `u64::MAX` for the last one.
    pub const fn end(self) -> u64 {
        match self {
            Self::Dma => 1 << 12,
            Self::Dma32 => 1 << 20,
            Self::Normal => u64::MAX,
        }
    }
}

/// Counts of frames in one zone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ZoneStats {
    /// Frames under management.
    pub total: u64,
    /// Frames in the shared core.
    pub free: u64,
}

/// Free memory as the largest naturally aligned blocks: what Linux prints as `/proc/buddyinfo`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BlockCounts {
    /// How many free blocks of each order are not part of a larger one.
    pub blocks: [u64; Order::MAX.get() as usize + 1],
}

impl BlockCounts {
    /// All frames counted.
    pub fn frames(&self) -> u64 {
        self.blocks.iter().enumerate().map(|(order, count)| count << order).sum()
    }
}

/// 2 MiB blocks by whom their frames are for. Not counted: those that lie partly outside the managed
/// memory and have no free frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BlockOwners {
    /// Entirely free.
    pub free: u64,
    /// For frames that cannot be moved.
    pub unmovable: u64,
    /// For frames that can be moved.
    pub movable: u64,
}

/// Levels of free memory, in frames. `min <= low <= high`, else the larger one counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Watermarks {
    /// The reserve: ordinary requests are refused here.
    pub min: u64,
    /// Below this the host should reclaim.
    pub low: u64,
    /// And go on until this is free.
    pub high: u64,
}

/// How short memory is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pressure {
    /// At least the low mark is free.
    None,
    /// Below the low mark.
    Low {
        /// Frames missing to the high mark.
        wanted: u64,
    },
    /// At or below the lowest mark: ordinary requests are refused.
    Critical {
        /// Frames missing to the high mark.
        wanted: u64,
    },
}

/// What whoever reclaims is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shortage {
    /// Why the request would be refused.
    pub error: crate::AllocError,
    /// Frames missing to the high mark and the request, at least 1. More may be needed if free memory
    /// is not in one piece.
    pub wanted: u64,
    /// How often the same request has asked before.
    pub tries: u32,
}
