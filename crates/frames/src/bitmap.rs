//! The core: the bitmap and its summaries (the search is in `search.rs`). One owner at a time; it
//! knows nothing of CPUs, locks or the frame table.
//!
//! Three levels. A chunk has a [`Line`] of 512 bits, a count of free frames and a *tallness*: one
//! more than the largest order of which it has a free block. A broken chunk belongs to either movable or
//! unmovable frames (*apart*). A gig has nineteen lines that say which of its chunks can serve which
//! order, for both kinds; the tenth, of entirely free chunks, is itself searched for blocks of
//! chunks, orders 9 to 18. Above, one bit for each order and gig.
//!
//! ```text
//! sums[order]        1 bit per gig      "this gig has a block of that order"
//! has[gig][0..=8]    1 bit per chunk    "broken, for unmovable, and has a block of that order"
//! has[gig][10..]     1 bit per chunk    "broken, for movable, and has a block of that order"
//! has[gig][9]        1 bit per chunk    "entirely free"
//! lines[chunk]       1 bit per frame    "free" (*bit-truth*)
//! ```
//!
//! Invariants, checked by `audit` in tests:
//! - *lazy-line*: a chunk whose count carries `LAZY` is entirely free or entirely taken, and its
//!   line may be uninitialised; every other line is initialised. So a huge machine boots, and a
//!   1 GiB block is taken, without touching any line.
//! - *summaries*: tallness (of chunks, and of a gig's line of entirely free chunks), `has` and `sums` follow from counts and lines.
#![allow(unsafe_code)] // reads lines that are initialised by *lazy-line*

use core::mem::MaybeUninit;

use crate::Mobility;
use crate::away::Away;
use crate::line::{LINE_ORDER, Line, word_mask};
use crate::places::{CHUNK, CHUNK_SHIFT, Directory, GIG_CHUNKS, GIG_SHIFT, LEVELS, Places, ROWS};
use crate::search::Window;
use crate::shim::Ordering::Relaxed;

#[cfg(all(test, not(loom)))]
mod audit;
mod levels;

/// The line is implied by the count.
const LAZY: u16 = 1 << 15;
/// Some frames of the chunk are not managed.
const HOLEY: u16 = 1 << 14;
const COUNT: u16 = (1 << 10) - 1;
/// The tallness of an entirely free chunk.
const WHOLE: u8 = LINE_ORDER + 1;
pub(crate) const GIG_ORDER: usize = GIG_SHIFT as usize;

pub(crate) struct Core<'m> {
    pub(crate) directory: Directory<'m>,
    lines: &'m mut [MaybeUninit<Line>],
    pub(crate) has: &'m mut [[Line; LEVELS]],
    pub(crate) sums: &'m mut [u64],
    free: &'m mut [u16],
    tall: &'m mut [u8],
    big: &'m mut [u8],
    pub(crate) free_frames: u64,
    pub(crate) total_frames: u64,
    pub(crate) away: Away,
}

/// Indices `start..end`, chunk by chunk: (chunk, first bit, bit after the last).
fn pieces(start: usize, end: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (start >> CHUNK_SHIFT..end.div_ceil(CHUNK)).map(move |chunk| {
        let base = chunk << CHUNK_SHIFT;
        (chunk, start.max(base) - base, (end - base).min(CHUNK))
    })
}

/// `bits` without its `count` lowest ones.
#[inline]
fn without_lowest(mut bits: u64, count: usize) -> u64 {
    if bits.count_ones() as usize <= count {
        return 0;
    }
    for _ in 0..count {
        bits &= bits - 1;
    }
    bits
}

/// The `has` line (and row of the summary) of broken chunks with a block of this order.
#[inline]
pub(crate) const fn level(order: u8, mobility: Mobility) -> usize {
    order as usize
        + match mobility {
            Mobility::Unmovable => 0,
            Mobility::Movable => LINE_ORDER as usize + 1,
        }
}

/// The row of the summary for a `has` line of broken chunks.
#[inline]
pub(crate) const fn row(level: usize) -> usize {
    if level < LINE_ORDER as usize { level } else { level + ROWS - LEVELS }
}

/// The `has` lines on which a chunk of this tallness stands, as bits.
#[inline]
fn levels(tall: u8, mobility: Mobility) -> u32 {
    if tall == WHOLE { 1 << LINE_ORDER } else { ((1 << tall) - 1) << level(0, mobility) }
}

impl<'m> Core<'m> {
    /// Everything in the directory's ranges is free.
    pub(crate) fn new(places: Places<'m>) -> Self {
        let Places { directory, lines, has, sums, free, tall, big, .. } = places;
        let (free_frames, total_frames) = (0, 0);
        let mut core = Self {
            directory,
            lines,
            has,
            sums,
            free,
            tall,
            big,
            free_frames,
            total_frames,
            away: Away::default(),
        };
        core.free.fill(LAZY | HOLEY);
        for (start, end) in core.index_ranges() {
            for (chunk, first, after) in pieces(start, end) {
                if after - first == CHUNK {
                    core.free[chunk] = LAZY;
                }
            }
        }
        for (start, end) in core.index_ranges() {
            core.mark(start, end, true, Mobility::Unmovable);
        }
        // Ranges that meet inside a chunk may have left no hole.
        for slot in core.free.iter_mut().filter(|slot| **slot == HOLEY | CHUNK as u16) {
            *slot = CHUNK as u16;
        }
        core.total_frames = core.free_frames;
        core
    }

    fn index_ranges(&self) -> impl Iterator<Item = (usize, usize)> + use<'m> {
        let directory = self.directory;
        directory.ranges().iter().filter_map(move |range| {
            let start = directory.index(range.start().number())?;
            Some((start, start + range.count() as usize))
        })
    }

    pub(crate) fn free_frames(&self) -> u64 {
        self.free_frames
    }

    pub(crate) fn total_frames(&self) -> u64 {
        self.total_frames
    }

    /// One more than the highest index.
    pub(crate) fn end(&self) -> usize {
        self.free.len() << CHUNK_SHIFT
    }

    pub(crate) fn words(&self) -> usize {
        self.sums.len() / ROWS
    }

    pub(crate) fn count(&self, chunk: usize) -> usize {
        usize::from(self.free[chunk] & COUNT)
    }

    pub(crate) fn line(&self, chunk: usize) -> Line {
        if self.free[chunk] & LAZY != 0 {
            return if self.count(chunk) == 0 { Line::EMPTY } else { Line::FULL };
        }
        // SAFETY: *lazy-line*: the count does not carry `LAZY`.
        unsafe { self.lines[chunk].assume_init() }
    }

    /// The line to change; no longer implied by the count.
    #[inline]
    fn line_mut(&mut self, chunk: usize) -> &mut Line {
        if self.free[chunk] & LAZY != 0 {
            let line = self.line(chunk);
            self.lines[chunk].write(line);
            self.free[chunk] &= !LAZY;
        }
        // SAFETY: *lazy-line*: the count does not carry `LAZY`.
        unsafe { self.lines[chunk].assume_init_mut() }
    }

    /// The first index in `start..end` whose bit is not `free`.
    pub(crate) fn first_other(&self, start: usize, end: usize, free: bool) -> Option<usize> {
        let same = if free { CHUNK as u16 } else { 0 };
        if start % CHUNK == 0 && end % CHUNK == 0 {
            // Many at once, without a branch for each.
            let slots = self.free.get(start >> CHUNK_SHIFT..end >> CHUNK_SHIFT).unwrap_or_default();
            let same =
                |slots: &[u16]| slots.iter().fold(0, |sum, &slot| sum | (slot & COUNT) ^ same);
            if slots.len() == (end - start) >> CHUNK_SHIFT && same(slots) == 0 {
                return None;
            }
        }
        pieces(start, end).find_map(|(chunk, first, after)| {
            let same = if free { CHUNK } else { 0 };
            if self.count(chunk) == same {
                return None;
            }
            self.line(chunk).first_other(first, after, free).map(|bit| (chunk << CHUNK_SHIFT) + bit)
        })
    }

    /// Is any frame of the chunk outside the managed memory?
    pub(crate) fn is_holey(&self, chunk: usize) -> bool {
        self.free[chunk] & HOLEY != 0
    }

    /// Does the chunk have a free block of 2^`order` (at most 9)?
    pub(crate) fn is_tall(&self, chunk: usize, order: u8) -> bool {
        self.tall.get(chunk).is_some_and(|&tall| tall > order)
    }

    /// Takes free frames out.
    pub(crate) fn take(&mut self, start: usize, count: usize, mobility: Mobility) {
        debug_assert_eq!(self.first_other(start, start + count, true), None);
        self.mark(start, start + count, false, mobility);
    }

    /// Puts taken frames back.
    pub(crate) fn give(&mut self, start: usize, count: usize) {
        debug_assert_eq!(self.first_other(start, start + count, false), None);
        self.mark(start, start + count, true, Mobility::Unmovable);
    }

    /// Is this a row of whole chunks of one gig, all of them managed and taken?
    #[inline]
    pub(crate) fn is_taken_whole(&self, start: usize, count: usize) -> bool {
        if (start | count) % CHUNK != 0 || (start ^ (start + count - 1)) >> GIG_SHIFT != 0 {
            return false;
        }
        let chunks = self.free.get(start >> CHUNK_SHIFT..(start + count) >> CHUNK_SHIFT);
        let taken = |slots: &[u16]| slots.iter().fold(0, |sum, slot| sum | slot) & !LAZY == 0;
        chunks.is_some_and(taken)
    }

    /// Puts such a row back.
    pub(crate) fn give_whole(&mut self, start: usize, count: usize) {
        debug_assert!(self.is_taken_whole(start, count));
        let (first, after) = (start >> CHUNK_SHIFT, (start + count) >> CHUNK_SHIFT);
        self.mark_whole(first, after, true, Mobility::Unmovable);
        self.free_frames += count as u64;
    }

    /// Looks at the lines of frames that are about to come back, so that those that are far away
    /// come all at once and not one after the other.
    pub(crate) fn touch(&self, frames: impl Iterator<Item = u64>) {
        let look = |sum: u64, frame| {
            let index =
                self.directory.index(frame).filter(|index| index >> CHUNK_SHIFT < self.free.len());
            sum | index.map_or(0, |index| self.word(index))
        };
        core::hint::black_box(frames.fold(0, look));
    }

    /// The word of the bitmap in which this index has its bit.
    #[inline]
    fn word(&self, index: usize) -> u64 {
        let chunk = index >> CHUNK_SHIFT;
        if self.free[chunk] & LAZY != 0 {
            return 0;
        }
        // SAFETY: *lazy-line*: the count does not carry `LAZY`.
        unsafe { self.lines[chunk].assume_init_ref() }.0[index % CHUNK / 64]
    }

    /// Puts the frames of `bits` in the word that begins at `index` back; returns those that were
    /// not taken, which stay as they are.
    #[inline]
    pub(crate) fn give_word(&mut self, index: usize, bits: u64) -> u64 {
        let (chunk, place) = (index >> CHUNK_SHIFT, index % CHUNK / 64);
        let line = self.line_mut(chunk);
        let Some(word) = line.0.get_mut(place) else { return bits };
        let twice = *word & bits;
        let given = bits & !twice;
        *word |= given;
        let count = given.count_ones();
        let (bit, old) = (given.trailing_zeros() as usize, self.tall[chunk]);
        self.free[chunk] += count as u16;
        self.free_frames += u64::from(count);
        let line = self.line_mut(chunk);
        let tall = match count {
            0 => return twice,
            // One more frame can only make a block that it is part of.
            1 if !line.has_block_at(place * 64 + bit, old) => return twice,
            1 => line.tallness_at(place * 64 + bit),
            _ => line.tallness_of(place).max(old),
        };
        if tall != old {
            self.set_tall(chunk, tall);
        }
        twice
    }

    /// Takes at most `room` of the lowest free frames of the window, words and chunks as a whole as
    /// far as possible, and tells `each` the index and the bits of each word, rising within a chunk.
    /// An entirely free chunk is broken only for the first frame. May find fewer than there are.
    pub(crate) fn claim(
        &mut self,
        window: Window,
        room: usize,
        mobility: Mobility,
        mut each: impl FnMut(usize, u64),
    ) {
        let mut left = room;
        while left > 0 {
            let Some(chunk) = self.find_chunk(&window, mobility) else { return };
            let own = self.tall[chunk] != WHOLE && self.mobility(chunk) == mobility;
            if left < room && !own {
                return;
            }
            if !own {
                self.adopt(chunk, mobility);
            }
            let before = left;
            let line = self.line_mut(chunk);
            for (word, bits) in line.0.iter_mut().enumerate().filter(|(_, bits)| **bits != 0) {
                let rest = without_lowest(*bits, left);
                let taken = *bits & !rest;
                *bits = rest;
                left -= taken.count_ones() as usize;
                each((chunk << CHUNK_SHIFT) + word * 64, taken);
                if left == 0 {
                    break;
                }
            }
            let tall = if left > 0 { 0 } else { line.tallness() };
            let taken = (before - left) as u16;
            self.free[chunk] -= taken;
            self.free_frames -= u64::from(taken);
            self.set_tall(chunk, tall);
        }
    }

    /// For whom the frames of this chunk are, as long as it is broken.
    #[inline]
    pub(crate) fn mobility(&self, chunk: usize) -> Mobility {
        let marks = self.directory.marks().get(chunk / 64);
        Mobility::of(
            marks.is_some_and(|marks| marks.movable.load(Relaxed) >> (chunk % 64) & 1 != 0),
        )
    }

    #[inline]
    fn set_mobility(&mut self, first: usize, after: usize, mobility: Mobility) {
        if after - first == 1 && self.mobility(first) == mobility {
            return;
        }
        for place in first / 64..after.div_ceil(64) {
            let Some(marks) = self.directory.marks().get(place) else { return };
            let word = &marks.movable;
            let (old, bits) = (word.load(Relaxed), word_mask(place, first, after));
            let new = if mobility == Mobility::Movable { old | bits } else { old & !bits };
            if new != old {
                word.store(new, Relaxed);
            }
        }
    }

    /// Frames are about to be taken out of the chunk for `mobility`: an entirely free one is theirs
    /// from now on, and so is one of the others' of which at least half is free: better one chunk
    /// lost than some frames in each of several.
    #[inline]
    fn adopt(&mut self, chunk: usize, mobility: Mobility) {
        let (old, tall) = (self.mobility(chunk), self.tall[chunk]);
        if old == mobility || self.count(chunk) < CHUNK / 2 {
            return;
        }
        self.set_mobility(chunk, chunk + 1, mobility);
        if tall != WHOLE {
            self.move_lines(chunk, levels(tall, old) ^ levels(tall, mobility), false);
        }
    }

    /// Sets all bits of `start..end`, which all have the other value, to `free`.
    fn mark(&mut self, start: usize, end: usize, free: bool, mobility: Mobility) {
        let mut next = start;
        while next < end {
            let chunk = next >> CHUNK_SHIFT;
            let stop = end.min((chunk + 1) << CHUNK_SHIFT);
            // A chunk that lies entirely in managed memory is not holey.
            if stop - next == CHUNK {
                // As many whole chunks as follow in the same gig.
                let gig_end = ((next >> GIG_SHIFT) + 1) << GIG_SHIFT;
                let after = end.min(gig_end) >> CHUNK_SHIFT;
                self.mark_whole(chunk, after, free, mobility);
                next = after << CHUNK_SHIFT;
            } else {
                if !free {
                    self.adopt(chunk, mobility);
                }
                self.mark_part(
                    chunk,
                    next - (chunk << CHUNK_SHIFT),
                    stop - (chunk << CHUNK_SHIFT),
                    free,
                );
                next = stop;
            }
        }
        let count = (end - start) as u64;
        self.free_frames = if free { self.free_frames + count } else { self.free_frames - count };
    }

    fn mark_part(&mut self, chunk: usize, first: usize, after: usize, free: bool) {
        let line = self.line_mut(chunk);
        line.fill(first, after, free);
        let tall = line.tallness();
        let change = (after - first) as u16;
        self.free[chunk] = if free { self.free[chunk] + change } else { self.free[chunk] - change };
        self.set_tall(chunk, tall);
    }
}
