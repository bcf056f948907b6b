//! The core: the bitmap, its summaries, and the search for the right place. One owner at a time; it
//! knows nothing of CPUs, locks or the frame table.
//!
//! Three levels. A chunk has a [`Line`] of 512 bits, a count of free frames and a *tallness*: one
//! more than the largest order of which it has a free block. A gig has ten lines that say which of
//! its chunks can serve which order; the tenth, of entirely free chunks, is itself searched for
//! blocks of chunks, orders 9 to 18. Above, one bit for each order and gig.
//!
//! ```text
//! sums[order]        1 bit per gig      "this gig has a block of that order"
//! has[gig][0..=8]    1 bit per chunk    "broken, and has a block of that order"
//! has[gig][9]        1 bit per chunk    "entirely free"
//! lines[chunk]       1 bit per frame    "free" (*bit-truth*)
//! ```
//!
//! Invariants, checked by [`Core::audit`] in tests:
//! - *lazy-line*: a chunk whose count carries `LAZY` is entirely free or entirely taken, and its
//!   line may be uninitialised; every other line is initialised. So a huge machine boots, and a
//!   1 GiB block is taken, without touching any line.
//! - *summaries*: tallness, `has` and `sums` follow from counts and lines.
#![allow(unsafe_code)] // reads lines that are initialised by *lazy-line*

use core::mem::MaybeUninit;

use crate::line::{LINE_ORDER, Line};
use crate::places::{CHUNK, CHUNK_SHIFT, Directory, GIG_CHUNKS, GIG_SHIFT, ORDERS, Places};

/// The line is implied by the count.
const LAZY: u16 = 1 << 15;
/// Some frames of the chunk are not managed.
const HOLEY: u16 = 1 << 14;
const COUNT: u16 = (1 << 10) - 1;
/// The tallness of an entirely free chunk.
const WHOLE: u8 = LINE_ORDER + 1;
const GIG_ORDER: usize = GIG_SHIFT as usize;

pub(crate) struct Core<'m> {
    pub(crate) directory: Directory<'m>,
    lines: &'m mut [MaybeUninit<Line>],
    has: &'m mut [[Line; 10]],
    sums: &'m mut [u64],
    free: &'m mut [u16],
    tall: &'m mut [u8],
    free_frames: u64,
    total_frames: u64,
}

/// Indices `start..end`, chunk by chunk: (chunk, first bit, bit after the last).
fn pieces(start: usize, end: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (start >> CHUNK_SHIFT..end.div_ceil(CHUNK)).map(move |chunk| {
        let base = chunk << CHUNK_SHIFT;
        (chunk, start.max(base) - base, (end - base).min(CHUNK))
    })
}

/// The `has` lines on which a chunk of this tallness stands, as bits.
fn levels(tall: u8) -> u16 {
    if tall == WHOLE { 1 << LINE_ORDER } else { (1 << tall) - 1 }
}

impl<'m> Core<'m> {
    /// Everything in the directory's ranges is free.
    pub(crate) fn new(places: Places<'m>) -> Self {
        let Places { directory, lines, has, sums, free, tall, .. } = places;
        let (free_frames, total_frames) = (0, 0);
        let mut core = Self { directory, lines, has, sums, free, tall, free_frames, total_frames };
        core.free.fill(LAZY | HOLEY);
        for (start, end) in core.index_ranges() {
            for (chunk, first, after) in pieces(start, end) {
                if after - first == CHUNK {
                    core.free[chunk] = LAZY;
                }
            }
        }
        for (start, end) in core.index_ranges() {
            core.mark(start, end, true);
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

    fn words(&self) -> usize {
        self.sums.len() / ORDERS
    }

    fn count(&self, chunk: usize) -> usize {
        usize::from(self.free[chunk] & COUNT)
    }

    pub(crate) fn line(&self, chunk: usize) -> Line {
        if self.free[chunk] & LAZY != 0 {
            return if self.count(chunk) == 0 { Line::EMPTY } else { Line::FULL };
        }
        // SAFETY: *lazy-line*: the count does not carry `LAZY`.
        unsafe { self.lines[chunk].assume_init() }
    }

    /// The first index in `start..end` whose bit is not `free`.
    pub(crate) fn first_other(&self, start: usize, end: usize, free: bool) -> Option<usize> {
        pieces(start, end).find_map(|(chunk, first, after)| {
            let same = if free { CHUNK } else { 0 };
            if self.count(chunk) == same {
                return None;
            }
            self.line(chunk).first_other(first, after, free).map(|bit| (chunk << CHUNK_SHIFT) + bit)
        })
    }

    /// Does the chunk have a free block of 2^`order` (at most 9)?
    pub(crate) fn is_tall(&self, chunk: usize, order: u8) -> bool {
        self.tall.get(chunk).is_some_and(|&tall| tall > order)
    }

    /// Takes free frames out.
    pub(crate) fn take(&mut self, start: usize, count: usize) {
        debug_assert_eq!(self.first_other(start, start + count, true), None);
        self.mark(start, start + count, false);
    }

    /// Puts taken frames back.
    pub(crate) fn give(&mut self, start: usize, count: usize) {
        debug_assert_eq!(self.first_other(start, start + count, false), None);
        self.mark(start, start + count, true);
    }

    /// Puts one frame back; false (and no change) if it was not taken.
    pub(crate) fn give_one(&mut self, index: usize) -> bool {
        let (chunk, bit) = (index >> CHUNK_SHIFT, index % CHUNK);
        let mut line = self.line(chunk);
        if line.get(bit) {
            return false;
        }
        line.fill(bit, bit + 1, true);
        self.lines[chunk].write(line);
        self.free[chunk] = (self.free[chunk] & !LAZY) + 1;
        self.free_frames += 1;
        let tall = line.tallness_at(bit).max(self.tall[chunk]);
        self.set_tall(chunk, tall);
        true
    }

    /// Takes at most `room` of the lowest free frames of the window, words and chunks as a whole as
    /// far as possible, and tells `each` their indices, rising within a chunk. An entirely free
    /// chunk is broken only for the first frame. May find fewer than there are.
    pub(crate) fn claim(&mut self, window: Window, room: usize, mut each: impl FnMut(usize)) {
        let mut left = room;
        while left > 0 {
            let Some(chunk) = self.find_chunk(&window) else { return };
            if left < room && self.tall[chunk] == WHOLE {
                return;
            }
            let base = chunk << CHUNK_SHIFT;
            let mut line = self.line(chunk);
            let before = left;
            for (word, bits) in line.0.iter_mut().enumerate() {
                while *bits != 0 && left > 0 {
                    each(base + word * 64 + bits.trailing_zeros() as usize);
                    *bits &= *bits - 1;
                    left -= 1;
                }
            }
            self.lines[chunk].write(line);
            let taken = (before - left) as u16;
            self.free[chunk] = (self.free[chunk] & !LAZY) - taken;
            self.free_frames -= u64::from(taken);
            let tall = if self.count(chunk) == 0 { 0 } else { line.tallness() };
            self.set_tall(chunk, tall);
        }
    }

    /// The chunk from which the next single frame comes.
    fn find_chunk(&self, window: &Window) -> Option<usize> {
        let broken = self
            .gigs(0, false, window, true)
            .find_map(|gig| Some(gig * GIG_CHUNKS + self.chunks(gig, 0, window).lowest(0)?));
        broken.or_else(|| Some(self.find_small(0, window)? >> CHUNK_SHIFT))
    }

    /// Sets all bits of `start..end`, which all have the other value, to `free`.
    fn mark(&mut self, start: usize, end: usize, free: bool) {
        let mut next = start;
        while next < end {
            let chunk = next >> CHUNK_SHIFT;
            let stop = end.min((chunk + 1) << CHUNK_SHIFT);
            if stop - next == CHUNK && self.free[chunk] & HOLEY == 0 {
                // As many whole chunks as follow in the same gig.
                let gig_end = ((next >> GIG_SHIFT) + 1) << GIG_SHIFT;
                let last = (end.min(gig_end)) >> CHUNK_SHIFT;
                let after = (chunk..last).find(|&c| self.free[c] & HOLEY != 0).unwrap_or(last);
                self.mark_whole(chunk, after, free);
                next = after << CHUNK_SHIFT;
            } else {
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
        let mut line = self.line(chunk);
        line.fill(first, after, free);
        self.lines[chunk].write(line);
        let change = (after - first) as u16;
        let old = self.free[chunk] & !LAZY;
        self.free[chunk] = if free { old + change } else { old - change };
        let tall = match self.count(chunk) {
            0 => 0,
            CHUNK => WHOLE,
            _ => line.tallness(),
        };
        self.set_tall(chunk, tall);
    }

    /// Moves a chunk between the lines of its gig.
    fn set_tall(&mut self, chunk: usize, tall: u8) {
        let old = core::mem::replace(&mut self.tall[chunk], tall);
        let mut changed = levels(old) ^ levels(tall);
        let (gig, bit) = (chunk / GIG_CHUNKS, chunk % GIG_CHUNKS);
        let new = levels(tall);
        while changed != 0 {
            let level = changed.trailing_zeros() as usize;
            changed &= changed - 1;
            self.has[gig][level].fill(bit, bit + 1, new & (1 << level) != 0);
            if level < usize::from(LINE_ORDER) {
                let any = !self.has[gig][level].is_empty();
                self.set_sum(level, gig, any);
            } else {
                self.sum_whole(gig);
            }
        }
    }

    /// Marks chunks of one gig that are entirely free or entirely taken as the other.
    fn mark_whole(&mut self, first: usize, after: usize, free: bool) {
        let (slot, tall) = if free { (LAZY | CHUNK as u16, WHOLE) } else { (LAZY, 0) };
        self.free[first..after].fill(slot);
        self.tall[first..after].fill(tall);
        let gig = first / GIG_CHUNKS;
        let base = gig * GIG_CHUNKS;
        self.has[gig][usize::from(LINE_ORDER)].fill(first - base, after - base, free);
        self.sum_whole(gig);
    }

    fn sum_whole(&mut self, gig: usize) {
        let tall = usize::from(self.has[gig][usize::from(LINE_ORDER)].tallness());
        for order in 0..=usize::from(LINE_ORDER) {
            self.set_sum(usize::from(LINE_ORDER) + order, gig, order < tall);
        }
    }

    fn set_sum(&mut self, order: usize, gig: usize, any: bool) {
        let words = self.words();
        let word = &mut self.sums[order * words + gig / 64];
        let bit = 1 << (gig % 64);
        *word = if any { *word | bit } else { *word & !bit };
    }

    /// The gigs of `sums[order]`, or of those the ones that are (`whole`) or are not entirely free,
    /// in the window; lowest first, or highest first.
    fn gigs(&self, order: usize, whole: bool, window: &Window, up: bool) -> GigScan<'_> {
        let words = self.words();
        let row = |order: usize| &self.sums[order * words..(order + 1) * words];
        let (lo, hi) = (window.first / GIG_CHUNKS, window.after.div_ceil(GIG_CHUNKS));
        GigScan { row: row(order), huge: row(GIG_ORDER), whole, lo, hi, up }
    }

    /// The chunks of `has[gig][level]` in the window.
    fn chunks(&self, gig: usize, level: usize, window: &Window) -> Line {
        let base = gig * GIG_CHUNKS;
        let first = window.first.saturating_sub(base);
        let after = window.after.saturating_sub(base).min(GIG_CHUNKS);
        self.has[gig][level].masked(first, after)
    }

    /// A free block of 2^`order` in the window, by the rules of placement.
    pub(crate) fn find_block(&self, order: u8, window: Window) -> Option<usize> {
        if order >= LINE_ORDER {
            return self.find_large(order, &window);
        }
        self.find_small(order, &window).or_else(|| {
            let cut = self.line_before_cut(&window)?;
            cut.lowest(order).map(|bit| (window.after << CHUNK_SHIFT) + bit)
        })
    }

    /// What the window has of its last, incomplete chunk.
    fn line_before_cut(&self, window: &Window) -> Option<Line> {
        (window.cut > 0).then(|| self.line(window.after).masked(0, window.cut))
    }

    /// Lowest first, broken chunks before whole ones, broken gigs before whole ones.
    fn find_small(&self, order: u8, window: &Window) -> Option<usize> {
        let level = usize::from(order);
        for gig in self.gigs(level, false, window, true) {
            if let Some(bit) = self.chunks(gig, level, window).lowest(0) {
                let chunk = gig * GIG_CHUNKS + bit;
                return self.line(chunk).lowest(order).map(|bit| (chunk << CHUNK_SHIFT) + bit);
            }
        }
        let whole_level = usize::from(LINE_ORDER);
        let broken = self.gigs(whole_level, false, window, true);
        let whole = self.gigs(whole_level, true, window, true);
        broken.chain(whole).find_map(|gig| {
            let bit = self.chunks(gig, whole_level, window).lowest(0)?;
            Some((gig * GIG_CHUNKS + bit) << CHUNK_SHIFT)
        })
    }

    /// Highest first, broken gigs before whole ones.
    fn find_large(&self, order: u8, window: &Window) -> Option<usize> {
        let broken = self.gigs(usize::from(order), false, window, false);
        let whole = self.gigs(usize::from(order), true, window, false);
        broken.chain(whole).find_map(|gig| {
            let chunks = self.chunks(gig, usize::from(LINE_ORDER), window);
            let bit = chunks.highest(order - LINE_ORDER)?;
            Some((gig * GIG_CHUNKS + bit) << CHUNK_SHIFT)
        })
    }

    /// Free blocks by order in the window, the largest possible blocks. O(chunks).
    pub(crate) fn count_blocks(&self, window: Window, counts: &mut [u64; ORDERS]) {
        let (mut small, mut large) = ([0; 10], [0; 10]);
        for chunk in window.first..window.after {
            if (1..CHUNK).contains(&self.count(chunk)) {
                self.line(chunk).count_blocks(&mut small);
            }
        }
        for gig in window.first / GIG_CHUNKS..window.after.div_ceil(GIG_CHUNKS) {
            self.chunks(gig, usize::from(LINE_ORDER), &window).count_blocks(&mut large);
        }
        for order in 0..10 {
            counts[order] += small[order];
            counts[order + 9] += large[order];
        }
    }
}

/// Where to look: chunks `first..after`, and of chunk `after` the frames below bit `cut`.
/// `first <= after`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Window {
    pub(crate) first: usize,
    pub(crate) after: usize,
    pub(crate) cut: usize,
}

impl Window {
    /// The indices `start..end`; a `start` inside a chunk is rounded up.
    pub(crate) fn new(start: usize, end: usize) -> Self {
        let first = start.div_ceil(CHUNK);
        let after = end >> CHUNK_SHIFT;
        if first > after {
            return Self { first, after: first, cut: 0 };
        }
        Self { first, after, cut: end % CHUNK }
    }

    /// The index at which the window ends.
    pub(crate) fn end(&self) -> usize {
        (self.after << CHUNK_SHIFT) + self.cut
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first == self.after && self.cut == 0
    }
}

/// Gigs whose bit is set in a row of the summary.
struct GigScan<'c> {
    row: &'c [u64],
    huge: &'c [u64],
    whole: bool,
    lo: usize,
    hi: usize,
    up: bool,
}

impl Iterator for GigScan<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        while self.lo < self.hi {
            let word = if self.up { self.lo / 64 } else { (self.hi - 1) / 64 };
            let huge = self.huge[word];
            let mut bits = self.row[word] & if self.whole { huge } else { !huge };
            let base = word * 64;
            if self.lo > base {
                bits &= !0 << (self.lo - base);
            }
            if self.hi < base + 64 {
                bits &= (1 << (self.hi - base)) - 1;
            }
            if self.up {
                if bits != 0 {
                    let gig = base + bits.trailing_zeros() as usize;
                    self.lo = gig + 1;
                    return Some(gig);
                }
                self.lo = base + 64;
            } else {
                if bits != 0 {
                    let gig = base + 63 - bits.leading_zeros() as usize;
                    self.hi = gig;
                    return Some(gig);
                }
                self.hi = base;
            }
        }
        None
    }
}

#[cfg(test)]
impl Core<'_> {
    /// Panics unless *summaries* and the counts follow from the lines.
    pub(crate) fn audit(&self) {
        let mut total = 0;
        for gig in 0..self.has.len() {
            let mut has = [Line::EMPTY; 10];
            for bit in 0..GIG_CHUNKS {
                let chunk = gig * GIG_CHUNKS + bit;
                let line = self.line(chunk);
                assert_eq!(line.count() as usize, self.count(chunk), "count of chunk {chunk}");
                assert_eq!(line.tallness(), self.tall[chunk], "tallness of chunk {chunk}");
                total += u64::from(line.count());
                for (level, line) in has.iter_mut().enumerate() {
                    line.fill(bit, bit + 1, levels(self.tall[chunk]) & (1 << level) != 0);
                }
            }
            assert_eq!(has, self.has[gig], "lines of gig {gig}");
            for order in 0..ORDERS {
                let any = if order < 9 {
                    !has[order].is_empty()
                } else {
                    has[9].lowest(order as u8 - 9).is_some()
                };
                let bit = self.sums[order * self.words() + gig / 64] >> (gig % 64) & 1;
                assert_eq!(bit == 1, any, "summary of order {order}, gig {gig}");
            }
        }
        assert_eq!(total, self.free_frames, "conservation: free frames");
    }
}
