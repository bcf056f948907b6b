//! Where things are: the directory of gigs, and the metadata carved out of the caller's storage.
//!
//! Only gigs that contain managed memory have metadata. They are numbered densely, lowest first; a
//! frame's *index* is its gig's dense number times 2^18 plus its place in the gig. Indices therefore
//! rise with addresses, and frames that follow each other physically have indices that do so too
//! (the reverse is not true: see [`Directory::joined`]).
#![allow(unsafe_code)] // turns the caller's bytes into slices of plain integers

use core::alloc::Layout;
use core::mem::{self, MaybeUninit};
use core::slice;

use pagoda_addr::{Frame, FrameRange};
use pagoda_sync::CachePadded;

use crate::SetupError;
use crate::line::{LINE_BITS, Line};
use crate::magazine::{BATCH, Stock};
use crate::shim::{AtomicU64, Ordering::*};

/// log2 of the frames in a chunk.
pub(crate) const CHUNK_SHIFT: u32 = 9;
/// Frames in a chunk.
pub(crate) const CHUNK: usize = 1 << CHUNK_SHIFT;
/// log2 of the frames in a gig.
pub(crate) const GIG_SHIFT: u32 = 18;
/// Chunks in a gig.
pub(crate) const GIG_CHUNKS: usize = LINE_BITS;
/// Words with one bit for each chunk of a gig.
const GIG_WORDS: usize = GIG_CHUNKS / 64;
/// log2 of the frames whose chunks share such a word.
const WORD_SHIFT: u32 = CHUNK_SHIFT + 6;
/// Orders that have a summary, 0 to 18.
pub(crate) const ORDERS: usize = 19;
/// Rows of the summary: the orders, and those below a chunk once more for movable frames.
pub(crate) const ROWS: usize = ORDERS + 9;
/// Lines of a gig: as the rows, with one line for all orders from a chunk on.
pub(crate) const LEVELS: usize = 19;
/// Frame numbers end here: 52 bits of physical address.
const FRAME_LIMIT: u64 = 1 << 40;
const NO_GIG: u32 = u32::MAX;

/// How many of everything the ranges need.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) ranges: usize,
    pub(crate) directory: usize,
    pub(crate) gigs: usize,
    pub(crate) cpus: usize,
}

impl Plan {
    pub(crate) fn new(ranges: &[FrameRange], cpus: usize) -> Result<Self, SetupError> {
        let mut plan = Self { ranges: ranges.len(), directory: 0, gigs: 0, cpus };
        let mut end = 0;
        for range in ranges {
            if range.start().number() < end {
                return Err(SetupError::Unsorted(*range));
            }
            if range.end_number() > FRAME_LIMIT {
                return Err(SetupError::TooHigh(*range));
            }
            if range.is_empty() {
                continue;
            }
            end = range.end_number();
            let first = (range.start().number() >> GIG_SHIFT) as usize;
            let after = ((end - 1) >> GIG_SHIFT) as usize + 1;
            plan.gigs += after - first.max(plan.directory);
            plan.directory = after;
        }
        Ok(plan)
    }

    /// 64-bit words that hold one bit for each gig.
    pub(crate) fn summary_words(&self) -> usize {
        self.gigs.div_ceil(64)
    }

    /// Batches that the depot has room for.
    fn batches(&self) -> usize {
        8 * self.cpus
    }

    pub(crate) fn layout(&self) -> Result<Layout, SetupError> {
        let mut layout = Layout::new::<()>();
        self.extend(&mut layout).ok_or(SetupError::TooLarge)?;
        Ok(layout.pad_to_align())
    }

    /// The same order as in [`Places::carve`].
    fn extend(&self, layout: &mut Layout) -> Option<()> {
        let chunks = self.gigs.checked_mul(GIG_CHUNKS)?;
        let arrays = [
            Layout::array::<CachePadded<Stock>>(self.cpus),
            Layout::array::<Line>(chunks),
            Layout::array::<[Line; LEVELS]>(self.gigs),
            Layout::array::<Marks>(chunks / 64),
            Layout::array::<u64>(ROWS.checked_mul(self.summary_words())?),
            Layout::array::<FrameRange>(self.ranges),
            Layout::array::<u32>(self.directory),
            Layout::array::<u32>(self.gigs),
            Layout::array::<u16>(chunks),
            Layout::array::<u8>(chunks),
            Layout::array::<u8>(self.gigs),
            Layout::array::<[u64; BATCH]>(self.batches()),
        ];
        for array in arrays {
            *layout = layout.extend(array.ok()?).ok()?.0;
        }
        Some(())
    }
}

/// Frame numbers to dense indices and back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Directory<'m> {
    /// Dense number by gig, or `NO_GIG`.
    dense: &'m [u32],
    /// Gig by dense number.
    gigs: &'m [u32],
    ranges: &'m [FrameRange],
    marks: &'m [Marks],
    near: Near<'m>,
}

/// One bit each for 64 chunks that follow each other.
#[derive(Debug)]
pub(crate) struct Marks {
    /// For whom the chunk is: the core's, which alone writes it.
    pub(crate) movable: AtomicU64,
    /// Its entries of the frame table are initialised: the table's.
    pub(crate) started: AtomicU64,
}

/// The longest row of gigs without a hole: most frames of most machines, and no need to look up
/// where they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Near<'m> {
    /// The first frame's number, in units of what has one [`Marks`].
    first: u64,
    marks: &'m [Marks],
}

impl<'m> Near<'m> {
    /// No frame at all.
    pub(crate) const NONE: Self = Self { first: 0, marks: &[] };

    /// Of the gigs that have metadata, by dense number.
    fn longest(gigs: &[u32], marks: &'m [Marks]) -> Self {
        let mut longest = Self::NONE;
        let mut begin = 0;
        for (dense, gig) in gigs.iter().enumerate() {
            if dense > 0 && gigs[dense - 1] + 1 != *gig {
                begin = dense;
            }
            let row = marks.get(begin * GIG_WORDS..(dense + 1) * GIG_WORDS).unwrap_or_default();
            if row.len() > longest.marks.len() {
                longest = Self { first: u64::from(gigs[begin]) * GIG_WORDS as u64, marks: row };
            }
        }
        longest
    }

    /// As [`Directory::bit`], for frames in this row.
    #[inline]
    pub(crate) fn bit(&self, frame: u64) -> Option<ChunkBit<'m>> {
        let marks = self.marks.get((frame >> WORD_SHIFT).wrapping_sub(self.first) as usize)?;
        Some(ChunkBit { marks: Some(marks), bit: chunk_bit(frame) })
    }
}

impl<'m> Directory<'m> {
    /// The index of a frame in a gig that has metadata.
    #[inline]
    pub(crate) fn index(&self, frame: u64) -> Option<usize> {
        match self.dense.get((frame >> GIG_SHIFT) as usize) {
            Some(&dense) if dense != NO_GIG => {
                Some(((dense as usize) << GIG_SHIFT) | (frame as usize & ((1 << GIG_SHIFT) - 1)))
            }
            _ => None,
        }
    }

    /// Where a frame's chunk has its bits.
    #[inline]
    pub(crate) fn bit(&self, frame: u64) -> ChunkBit<'m> {
        self.near.bit(frame).unwrap_or_else(|| self.far_bit(frame))
    }

    #[inline(never)]
    fn far_bit(&self, frame: u64) -> ChunkBit<'m> {
        let marks = self.index(frame).and_then(|index| self.marks.get(index >> WORD_SHIFT));
        ChunkBit { marks, bit: chunk_bit(frame) }
    }

    /// The bits of all chunks, by index.
    pub(crate) fn marks(&self) -> &'m [Marks] {
        self.marks
    }

    pub(crate) fn near(&self) -> Near<'m> {
        self.near
    }

    /// The index of the first frame at or above `frame` that has one, or the end of all.
    pub(crate) fn index_from(&self, frame: u64) -> usize {
        if let Some(index) = self.index(frame) {
            return index;
        }
        let gig = frame >> GIG_SHIFT;
        self.gigs.partition_point(|&has| u64::from(has) < gig) << GIG_SHIFT
    }

    /// The number of the frame with this index.
    #[inline]
    pub(crate) fn frame(&self, index: usize) -> u64 {
        let gig = self.gigs.get(index >> GIG_SHIFT).copied().unwrap_or(NO_GIG);
        (u64::from(gig) << GIG_SHIFT) | (index as u64 & ((1 << GIG_SHIFT) - 1))
    }

    /// Does the gig with this dense number follow the one before it without a gap?
    pub(crate) fn joined(&self, dense: usize) -> bool {
        dense > 0
            && matches!((self.gigs.get(dense - 1), self.gigs.get(dense)), (Some(a), Some(b)) if a + 1 == *b)
    }

    pub(crate) fn ranges(&self) -> &'m [FrameRange] {
        self.ranges
    }

    /// The first frame of `range` that is not managed.
    pub(crate) fn first_foreign(&self, range: FrameRange) -> Option<Frame> {
        let mut next = range.start().number();
        while next < range.end_number() {
            let after = self.ranges.partition_point(|has| has.end_number() <= next);
            match self.ranges.get(after) {
                Some(has) if has.start().number() <= next => next = has.end_number(),
                _ => return Frame::new(next),
            }
        }
        None
    }
}

/// Where a chunk has its bits; nowhere if it has no metadata, and they are clear then.
#[derive(Clone, Copy)]
pub(crate) struct ChunkBit<'m> {
    marks: Option<&'m Marks>,
    /// Its lowest six bits say which one.
    bit: u32,
}

#[inline]
fn chunk_bit(frame: u64) -> u32 {
    (frame >> CHUNK_SHIFT) as u32
}

impl ChunkBit<'_> {
    #[inline]
    pub(crate) fn is_movable(self) -> bool {
        self.marks.is_some_and(|marks| marks.movable.load(Relaxed).wrapping_shr(self.bit) & 1 != 0)
    }

    #[inline]
    pub(crate) fn is_started(self) -> bool {
        self.marks.is_some_and(|marks| marks.started.load(Acquire).wrapping_shr(self.bit) & 1 != 0)
    }

    /// Whoever sees the bit sees what was written to the chunk's entries before.
    pub(crate) fn set_started(self) {
        if let Some(marks) = self.marks {
            marks.started.fetch_or(1 << (self.bit % 64), Release);
        }
    }
}

/// All metadata of the core, in the caller's storage.
pub(crate) struct Places<'m> {
    pub(crate) directory: Directory<'m>,
    /// The bitmap: uninitialised until a chunk is first broken.
    pub(crate) lines: &'m mut [MaybeUninit<Line>],
    pub(crate) has: &'m mut [[Line; LEVELS]],
    pub(crate) sums: &'m mut [u64],
    pub(crate) free: &'m mut [u16],
    pub(crate) tall: &'m mut [u8],
    pub(crate) big: &'m mut [u8],
    pub(crate) stocks: &'m [CachePadded<Stock>],
    pub(crate) batches: &'m mut [[u64; BATCH]],
}

impl<'m> Places<'m> {
    /// Lays the arrays out in `storage` and fills in the directory. O(chunks), three bytes each,
    /// plus nineteen lines for every gig.
    pub(crate) fn carve(
        ranges: &[FrameRange],
        cpus: usize,
        storage: &'m mut [MaybeUninit<u8>],
    ) -> Result<Self, SetupError> {
        let plan = Plan::new(ranges, cpus)?;
        let layout = plan.layout()?;
        if storage.len() < layout.size() || storage.as_ptr().align_offset(layout.align()) != 0 {
            return Err(SetupError::Storage(layout));
        }
        let chunks = plan.gigs * GIG_CHUNKS;
        let mut cut = Cut(storage);
        let stocks = fill(cut.take(cpus), |place| CachePadded(Stock::new(place)));
        let lines = cut.take::<Line>(chunks);
        let has = fill(cut.take(plan.gigs), |_| [Line::EMPTY; LEVELS]);
        let none = || AtomicU64::new(0);
        let marks = fill(cut.take(chunks / 64), |_| Marks { movable: none(), started: none() });
        let sums = fill(cut.take(ROWS * plan.summary_words()), |_| 0);
        let kept = fill(cut.take(plan.ranges), |place| ranges[place]);
        let dense = fill(cut.take(plan.directory), |_| NO_GIG);
        let gigs = fill(cut.take(plan.gigs), |_| NO_GIG);
        let free = fill(cut.take(chunks), |_| 0);
        let tall = fill(cut.take(chunks), |_| 0);
        let big = fill(cut.take(plan.gigs), |_| 0);
        let batches = fill(cut.take(plan.batches()), |_| [0; BATCH]);
        let mut next = 0;
        for range in kept.iter().filter(|range| !range.is_empty()) {
            let last = (range.end_number() - 1) >> GIG_SHIFT;
            for gig in range.start().number() >> GIG_SHIFT..=last {
                if dense[gig as usize] == NO_GIG {
                    dense[gig as usize] = next;
                    gigs[next as usize] = gig as u32;
                    next += 1;
                }
            }
        }
        let near = Near::longest(gigs, marks);
        let directory = Directory { dense, gigs, ranges: kept, marks, near };
        Ok(Self { directory, lines, has, sums, free, tall, big, stocks, batches })
    }
}

/// The rest of the storage.
struct Cut<'m>(&'m mut [MaybeUninit<u8>]);

impl<'m> Cut<'m> {
    /// The next `len` places for a `T`. The storage was measured before, so there is room.
    fn take<T>(&mut self, len: usize) -> &'m mut [MaybeUninit<T>] {
        let rest = mem::take(&mut self.0);
        let skip = rest.as_ptr().align_offset(mem::align_of::<T>());
        let (_, rest) = rest.split_at_mut(skip);
        let (bytes, rest) = rest.split_at_mut(len * mem::size_of::<T>());
        self.0 = rest;
        // SAFETY: the bytes are exclusively borrowed for `'m`, as many as `len` values take, and
        // aligned for them by the skip above; uninitialised values may stand anywhere.
        unsafe { slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), len) }
    }
}

fn fill<T>(places: &mut [MaybeUninit<T>], mut value: impl FnMut(usize) -> T) -> &mut [T] {
    for (place, slot) in places.iter_mut().enumerate() {
        slot.write(value(place));
    }
    // SAFETY: every element was written just now.
    unsafe { &mut *(places as *mut [MaybeUninit<T>] as *mut [T]) }
}
