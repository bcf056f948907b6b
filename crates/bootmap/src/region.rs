//! Claims about physical memory: what the firmware said, and what a finished map says.

use core::fmt;

use pagoda_addr::{FrameRange, PhysAddr, PhysRange};

use crate::RegionKind;

/// One entry of the firmware's map, as it stands there: possibly empty, wrapping, unaligned, or at
/// odds with another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MemoryEntry {
    /// The first byte.
    pub start: PhysAddr,
    /// Claimed bytes.
    pub len: u64,
    /// What is claimed.
    pub kind: RegionKind,
}

impl MemoryEntry {
    /// An entry with an e820 type; see [`RegionKind::from_e820`].
    pub const fn from_e820(start: u64, len: u64, number: u32) -> Self {
        Self { start: PhysAddr::new(start), len, kind: RegionKind::from_e820(number) }
    }
}

/// A piece of a finished map.
///
/// Invariant "region-aligned", inside a map: the range is not empty, and both ends are multiples of
/// 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Region {
    /// The bytes.
    pub range: PhysRange,
    /// What they are.
    pub kind: RegionKind,
}

impl Region {
    /// A placeholder to fill storage with: `[Region::EMPTY; 256]`.
    pub const EMPTY: Self =
        Self { range: PhysRange::clamped(PhysAddr::ZERO, 0), kind: RegionKind::Reserved };

    /// The frames touched; in a map these are exactly the bytes.
    pub const fn frames(self) -> FrameRange {
        self.range.blocks_touched()
    }

    /// A region from raw bounds; `start <= end` is the caller's knowledge and a mix-up gives an
    /// empty region.
    pub(crate) fn between(start: u64, end: u64, kind: RegionKind) -> Self {
        let range = PhysRange::clamped(PhysAddr::new(start), end.saturating_sub(start));
        Self { range, kind }
    }

    pub(crate) fn start(self) -> u64 {
        self.range.start().as_u64()
    }

    pub(crate) fn end(self) -> u64 {
        self.range.end().as_u64()
    }
}

impl Default for Region {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.range, self.kind)
    }
}

/// A line of a table: first byte, end, size in KiB, kind.
impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = self.range.len() >> 10;
        write!(f, "{:#014x}..{:#014x} {:>12} KiB  {}", self.start(), self.end(), kib, self.kind)
    }
}
