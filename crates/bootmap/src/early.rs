//! The early allocator: frames for what must exist before the frame allocator does, its own
//! metadata first of all.

use core::error::Error;
use core::fmt;

use pagoda_addr::{PAGE_SIZE, PhysAddr, PhysRange};

use crate::{MemoryMap, RegionKind};

/// Carves memory out of a [`MemoryMap`] and hands the rest over.
///
/// There is no free: what is carved stands in the map as
/// [`EarlyKernel`](RegionKind::EarlyKernel), so that usable plus taken bytes never change and
/// nothing is lost.
#[derive(Debug)]
pub struct EarlyAllocator<'s> {
    map: MemoryMap<'s>,
}

/// Which end of memory to take from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Placement {
    /// As high as the request allows: low memory is scarce and others need it.
    #[default]
    Highest,
    /// As low as the request allows.
    Lowest,
}

/// Why an early allocation failed. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum EarlyError {
    /// The caller asked for no bytes at all.
    NoBytes,
    /// The caller's alignment is not a power of two.
    BadAlignment {
        /// What was asked for.
        align: u64,
    },
    /// The caller wants the memory entered as something else than taken.
    NotATakenKind {
        /// What was asked for.
        kind: RegionKind,
    },
    /// No usable range is large enough.
    OutOfMemory {
        /// What was asked for.
        bytes: u64,
        /// What was asked for.
        align: u64,
        /// What was asked for.
        below: Option<PhysAddr>,
    },
    /// Memory is there, but the caller's storage has no place for the regions that would result.
    StorageTooSmall {
        /// Regions that the storage must hold.
        needed: usize,
        /// Regions that it holds.
        given: usize,
    },
}

impl<'s> EarlyAllocator<'s> {
    /// An allocator over the usable part of `map`.
    pub const fn new(map: MemoryMap<'s>) -> Self {
        Self { map }
    }

    /// The map as it stands.
    pub const fn map(&self) -> &MemoryMap<'s> {
        &self.map
    }

    /// Takes at least `bytes` bytes, rounded up to whole frames, aligned to `align` (a power of two
    /// of bytes; at least a frame is used), that end at or below `below`, from as high as possible.
    /// The memory is not cleared.
    ///
    /// # Errors
    /// See [`EarlyError`]; nothing is changed then.
    pub fn alloc(
        &mut self,
        bytes: u64,
        align: u64,
        below: Option<PhysAddr>,
    ) -> Result<PhysRange, EarlyError> {
        self.alloc_as(bytes, align, below, Placement::Highest, RegionKind::EarlyKernel)
    }

    /// As [`alloc`](Self::alloc), from the end that `placement` names, entered in the map as `kind`
    /// (for instance as [`Trampoline`](RegionKind::Trampoline)), which must be a
    /// [taken](RegionKind::is_taken) one.
    ///
    /// # Errors
    /// See [`EarlyError`]; nothing is changed then.
    pub fn alloc_as(
        &mut self,
        bytes: u64,
        align: u64,
        below: Option<PhysAddr>,
        placement: Placement,
        kind: RegionKind,
    ) -> Result<PhysRange, EarlyError> {
        if bytes == 0 {
            return Err(EarlyError::NoBytes);
        }
        if !align.is_power_of_two() {
            return Err(EarlyError::BadAlignment { align });
        }
        if !kind.is_taken() {
            return Err(EarlyError::NotATakenKind { kind });
        }
        let none = EarlyError::OutOfMemory { bytes, align, below };
        let size = bytes.checked_next_multiple_of(PAGE_SIZE).ok_or(none)?;
        let step = align.max(PAGE_SIZE);
        let limit = below.unwrap_or(PhysAddr::new(u64::MAX));
        let fit = |range: PhysRange| place(range, size, step, limit, placement);
        let found = match placement {
            Placement::Lowest => self.map.usable().find_map(fit),
            Placement::Highest => self.map.usable().rev().find_map(fit),
        };
        let range = found.ok_or(none)?;
        let given = self.map.regions.storage.len();
        // The range lies in one region: it is carved whole or not at all.
        match self.map.regions.carve(range, kind) {
            Ok(()) => Ok(range),
            Err(full) => Err(EarlyError::StorageTooSmall { needed: full.needed, given }),
        }
    }

    /// The map, in which the usable ranges are what is left.
    pub fn finish(self) -> MemoryMap<'s> {
        self.map
    }
}

/// Where `size` bytes fit into `range` below `limit` on a multiple of `step`.
fn place(
    range: PhysRange,
    size: u64,
    step: u64,
    limit: PhysAddr,
    placement: Placement,
) -> Option<PhysRange> {
    let window = PhysRange::new(range.start(), range.end().min(limit))?;
    let start = match placement {
        Placement::Lowest => window.start().align_up(step)?,
        Placement::Highest => window.end().checked_sub(size)?.align_down(step),
    };
    let found = PhysRange::checked(start, size)?;
    window.contains_range(found).then_some(found)
}

impl<'s> From<EarlyAllocator<'s>> for MemoryMap<'s> {
    fn from(early: EarlyAllocator<'s>) -> Self {
        early.finish()
    }
}

impl fmt::Display for EarlyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoBytes => write!(f, "an early allocation of no bytes"),
            Self::BadAlignment { align } => {
                write!(f, "an early allocation aligned to {align:#x}, not a power of two")
            }
            Self::NotATakenKind { kind } => {
                write!(f, "an early allocation entered as {kind}, which is not a taken kind")
            }
            Self::OutOfMemory { bytes, align, below: None } => {
                write!(f, "no {bytes} bytes of usable memory aligned to {align:#x}")
            }
            Self::OutOfMemory { bytes, align, below: Some(limit) } => {
                write!(f, "no {bytes} bytes of usable memory aligned to {align:#x} below {limit}")
            }
            Self::StorageTooSmall { needed, given } => {
                write!(f, "the memory map needs storage for {needed} regions, {given} are given")
            }
        }
    }
}

impl Error for EarlyError {}
