//! The finished map.

use core::error::Error;
use core::fmt;

use pagoda_addr::{PhysAddr, PhysRange};

use crate::build::{self, Regions};
use crate::{MemoryEntry, Region, RegionKind};

/// What physical memory there is and who sits in it.
///
/// Invariants "map-sorted": the regions ascend, do not overlap, are not empty and begin and end on
/// 4 KiB boundaries; two that meet are of different kinds. Space that no region covers is not RAM.
/// "map-ram": a region of a [taken](RegionKind::is_taken) kind is whole frames of RAM that the
/// firmware calls usable.
pub struct MemoryMap<'s> {
    pub(crate) regions: Regions<'s>,
}

/// Why there is no map. All of these are for the caller to mend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum MapError {
    /// The caller's storage has `given` places; `needed` are always enough for this input.
    StorageTooSmall {
        /// Regions that the storage must hold.
        needed: usize,
        /// Regions that it holds.
        given: usize,
    },
    /// The caller listed a range as taken, and its kind as usable.
    TakenAsUsable {
        /// The range.
        range: PhysRange,
    },
}

/// A range that somebody sits in, and that the map would nevertheless hand out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Untaken {
    /// The occupied range.
    pub range: PhysRange,
    /// Who sits in it.
    pub kind: RegionKind,
    /// The region of usable memory that reaches into it.
    pub usable: PhysRange,
}

impl<'s> MemoryMap<'s> {
    /// Builds the map from the firmware's entries, in any order and however contradictory, less the
    /// ranges that are taken.
    ///
    /// * Empty entries are dropped, wrapping ones end with the address space.
    /// * Where entries overlap, the most [severe](RegionKind) wins; usable entries that meet are
    ///   one before anything is rounded.
    /// * Usable memory is rounded inwards to 4 KiB, all else outwards. Gaps are not RAM.
    /// * A taken range claims every frame that it touches, where that frame is RAM.
    ///
    /// `storage` may be of any size; places for twice the entries and taken ranges always suffice.
    ///
    /// # Errors
    /// [`MapError::StorageTooSmall`] says how many regions the storage must hold.
    pub fn build(
        entries: impl IntoIterator<Item = MemoryEntry>,
        taken: impl IntoIterator<Item = (PhysRange, RegionKind)>,
        storage: &'s mut [Region],
    ) -> Result<Self, MapError> {
        let len = build::build(entries.into_iter(), taken.into_iter(), storage)?;
        Ok(Self { regions: Regions { storage, len } })
    }

    /// All regions, lowest first.
    pub fn regions(&self) -> &[Region] {
        self.regions.as_slice()
    }

    /// The usable ranges, lowest first.
    pub fn usable(&self) -> impl DoubleEndedIterator<Item = PhysRange> + Clone + '_ {
        self.regions().iter().filter(|region| region.kind.is_usable()).map(|region| region.range)
    }

    /// The ranges of RAM, lowest first, as long as they are without a break, whoever sits in them:
    /// what a direct map and a frame table must cover. Memory [out of
    /// reach](RegionKind::Unreachable) is not among it.
    pub fn ram(&self) -> impl Iterator<Item = PhysRange> + Clone + '_ {
        Ram { regions: self.regions() }
    }

    /// The region that holds `address`.
    pub fn find(&self, address: PhysAddr) -> Option<Region> {
        let place = self.regions.first_above(address.as_u64());
        self.regions().get(place).copied().filter(|region| region.range.contains(address))
    }

    /// Bytes in all regions of the kinds that `wanted` picks.
    pub fn bytes(&self, wanted: impl Fn(RegionKind) -> bool) -> u64 {
        let picked = self.regions().iter().filter(|region| wanted(region.kind));
        picked.map(|region| region.range.len()).sum()
    }

    /// Usable bytes.
    pub fn usable_bytes(&self) -> u64 {
        self.bytes(RegionKind::is_usable)
    }

    /// The end of the highest RAM that is usable or taken: a frame table that reaches this far is
    /// long enough. Reserved windows above it, however high, do not count. Zero without RAM.
    pub fn ram_end(&self) -> PhysAddr {
        self.ram().last().map_or(PhysAddr::ZERO, PhysRange::end)
    }

    /// Declares all usable memory from `limit` (rounded down to 4 KiB) upwards
    /// [out of reach](RegionKind::Unreachable): more than the CPU has address lines for, or than the
    /// kernel's direct map can hold. Taken ranges stay what they are.
    ///
    /// # Errors
    /// [`MapError::StorageTooSmall`]; the map is then unchanged.
    pub fn clip(&mut self, limit: PhysAddr) -> Result<(), MapError> {
        let given = self.regions.storage.len();
        let above = PhysRange::clamped(limit, u64::MAX);
        // Only the first region met can be cut, and only a cut needs a place: all or nothing.
        let carved = self.regions.carve(above, RegionKind::Unreachable);
        carved.map_err(|full| MapError::StorageTooSmall { needed: full.needed, given })
    }

    /// Does the map keep its hands off everything in `taken`? Run it with
    /// [`BootInfo::taken`](crate::BootInfo::taken) on a map that was not made by
    /// [`BootInfo::memory_map`](crate::BootInfo::memory_map): it finds the module that somebody
    /// forgot.
    ///
    /// # Errors
    /// The first range of `taken` that usable memory reaches into.
    pub fn check_taken(
        &self,
        taken: impl IntoIterator<Item = (PhysRange, RegionKind)>,
    ) -> Result<(), Untaken> {
        for (range, kind) in taken {
            let place = self.regions.first_above(range.start().as_u64());
            let rest = self.regions().get(place..).unwrap_or_default();
            let near = rest.iter().take_while(|region| region.range.overlaps(range));
            if let Some(region) = near.into_iter().find(|region| region.kind.is_usable()) {
                return Err(Untaken { range, kind, usable: region.range });
            }
        }
        Ok(())
    }
}

/// The regions of a map that are RAM, joined where they meet.
#[derive(Clone)]
struct Ram<'a> {
    regions: &'a [Region],
}

impl Iterator for Ram<'_> {
    type Item = PhysRange;

    fn next(&mut self) -> Option<PhysRange> {
        let wanted = |region: &Region| region.kind.is_ram();
        let first = loop {
            let (region, rest) = self.regions.split_first()?;
            self.regions = rest;
            if wanted(region) {
                break region.range;
            }
        };
        let mut end = first.end();
        while let Some((region, rest)) = self.regions.split_first() {
            if !wanted(region) || region.range.start() != end {
                break;
            }
            end = region.range.end();
            self.regions = rest;
        }
        PhysRange::new(first.start(), end)
    }
}

impl fmt::Debug for MemoryMap<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.regions()).finish()
    }
}

/// A table with a line for each region, and a last one for the sums.
impl fmt::Display for MemoryMap<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for region in self.regions() {
            writeln!(f, "{region}")?;
        }
        let taken = self.bytes(RegionKind::is_taken);
        write!(f, "{} KiB usable, {} KiB taken", self.usable_bytes() >> 10, taken >> 10)
    }
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StorageTooSmall { needed, given } => {
                write!(f, "the memory map needs storage for {needed} regions, {given} are given")
            }
            Self::TakenAsUsable { range } => {
                write!(f, "{range:?} is listed as taken, and as usable")
            }
        }
    }
}

impl fmt::Display for Untaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { range, kind, usable } = self;
        write!(f, "{kind} sits in {range:?}, but {usable:?} counts as usable")
    }
}

impl Error for MapError {}
impl Error for Untaken {}
