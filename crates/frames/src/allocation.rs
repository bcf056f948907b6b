//! What the frame table tells, and where it needs memory.

use pagoda_addr::FrameRange;

use crate::places::{CHUNK, CHUNK_SHIFT};
use crate::{FrameInfo, Kind};

/// An allocation, as the table knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allocation {
    /// Its frames.
    pub range: FrameRange,
    /// What the owner uses it for.
    pub kind: Kind,
    /// The owner's flags.
    pub flags: u8,
    /// Owners.
    pub refs: u32,
    /// Page-table entries that show it.
    pub maps: u32,
}

/// The parts of the table's array that must be backed by memory for these ranges: byte offsets from
/// its start, as (offset, length), multiples of 8 KiB, in rising order and not touching.
pub fn backing(ranges: &[FrameRange]) -> impl Iterator<Item = (u64, u64)> + '_ {
    let mut rest = ranges.iter().filter(|range| !range.is_empty()).peekable();
    core::iter::from_fn(move || {
        let chunks = |range: &FrameRange| {
            (range.start().number() >> CHUNK_SHIFT, ((range.end_number() - 1) >> CHUNK_SHIFT) + 1)
        };
        let (first, mut after) = chunks(rest.next()?);
        while let Some(next) = rest.next_if(|next| chunks(next).0 <= after) {
            after = chunks(next).1;
        }
        let bytes = (CHUNK * size_of::<FrameInfo>()) as u64;
        Some((first * bytes, (after - first) * bytes))
    })
}
