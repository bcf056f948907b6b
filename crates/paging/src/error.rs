//! Who is to blame.

use core::fmt;

/// Exhaustion: no frame for a table (or a page) now. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfFrames;

/// Why an operation on a page table was refused. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// Exhaustion: no frame for a table.
    OutOfFrames,
    /// Caller: the pages lie outside the cursor's range, cross the hole between the halves, or
    /// belong to the half that this table only shares.
    Range,
    /// Caller: page or frame is not aligned to the size.
    Alignment,
    /// Caller: the machine has no pages of this size at this place, or the leaf there has another.
    Size,
    /// Caller: the frame lies beyond the machine's physical addresses.
    FrameTooHigh,
    /// Caller: something is mapped there already (or a table stands where a large page should go).
    Occupied,
    /// Caller: nothing is mapped there.
    NotMapped,
    /// Caller: a new top-level entry in the kernel half after other tables share it.
    Sealed,
    /// Caller: the batch belongs to another table.
    WrongBatch,
}

impl From<OutOfFrames> for MapError {
    fn from(_: OutOfFrames) -> Self {
        Self::OutOfFrames
    }
}

impl fmt::Display for OutOfFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no frame is free")
    }
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfFrames => "no frame for a page table",
            Self::Range => "the pages lie outside what may be changed here",
            Self::Alignment => "page or frame is not aligned to the page size",
            Self::Size => "no page of this size here",
            Self::FrameTooHigh => "the frame lies beyond the physical address width",
            Self::Occupied => "something is mapped there already",
            Self::NotMapped => "nothing is mapped there",
            Self::Sealed => "the kernel half is shared and can have no new top-level entry",
            Self::WrongBatch => "the flush batch belongs to another page table",
        })
    }
}

impl core::error::Error for OutOfFrames {}
impl core::error::Error for MapError {}
