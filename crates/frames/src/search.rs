//! The search for the right place, through the summaries.
//!
//! Placement: small blocks lowest first, out of broken chunks before whole ones; large blocks
//! highest first; gigs that are entirely free are broken last.

use crate::bitmap::{Core, GIG_ORDER, level, row};
use crate::line::{LINE_ORDER, Line, word_mask};
use crate::places::{CHUNK, CHUNK_SHIFT, GIG_CHUNKS, ORDERS};
use crate::{BlockOwners, Mobility};

impl Core<'_> {
    /// The gigs of `sums[level]`, or of those the ones that are (`whole`) or are not entirely free,
    /// in the window; lowest first, or highest first.
    #[inline]
    fn gigs(&self, level: usize, whole: bool, window: &Window, up: bool) -> GigScan<'_> {
        let words = self.words();
        let of = |order: usize| &self.sums[order * words..(order + 1) * words];
        let (lo, hi) = (window.first / GIG_CHUNKS, window.after.div_ceil(GIG_CHUNKS));
        GigScan { row: of(level), huge: of(GIG_ORDER), whole, lo, hi, up }
    }

    /// Looks at the chunks of `has[gig][level]` in the window.
    #[inline]
    fn chunks<T>(&self, gig: usize, level: usize, window: &Window, look: impl Fn(&Line) -> T) -> T {
        let line = &self.has[gig][level];
        let base = gig * GIG_CHUNKS;
        if window.first <= base && base + GIG_CHUNKS <= window.after {
            return look(line);
        }
        let first = window.first.saturating_sub(base);
        let after = window.after.saturating_sub(base).min(GIG_CHUNKS);
        look(&line.masked(first, after))
    }

    /// A free block of 2^`order` in the window, by the rules of placement.
    pub(crate) fn find_block(
        &self,
        order: u8,
        window: Window,
        mobility: Mobility,
    ) -> Option<usize> {
        if order >= LINE_ORDER {
            return self.find_large(order, &window);
        }
        self.find_small(order, &window, mobility).or_else(|| {
            let cut = self.line_before_cut(&window)?;
            cut.lowest(order).map(|bit| (window.after << CHUNK_SHIFT) + bit)
        })
    }

    /// The chunk from which the next single frame comes.
    pub(crate) fn find_chunk(&self, window: &Window, mobility: Mobility) -> Option<usize> {
        self.find_broken(0, window, mobility)
            .or_else(|| self.find_whole(window))
            .or_else(|| self.find_broken(0, window, mobility.other()))
    }

    /// What the window has of its last, incomplete chunk.
    fn line_before_cut(&self, window: &Window) -> Option<Line> {
        (window.cut > 0).then(|| self.line(window.after).masked(0, window.cut))
    }

    /// The lowest broken chunk for `mobility` that has a block of this order.
    fn find_broken(&self, order: u8, window: &Window, mobility: Mobility) -> Option<usize> {
        let level = level(order, mobility);
        self.gigs(row(level), false, window, true).find_map(|gig| {
            Some(gig * GIG_CHUNKS + self.chunks(gig, level, window, |line| line.lowest(0))?)
        })
    }

    /// The lowest entirely free chunk, of a broken gig before a whole one.
    fn find_whole(&self, window: &Window) -> Option<usize> {
        let level = usize::from(LINE_ORDER);
        let broken = self.gigs(level, false, window, true);
        let whole = self.gigs(level, true, window, true);
        broken.chain(whole).find_map(|gig| {
            Some(gig * GIG_CHUNKS + self.chunks(gig, level, window, |line| line.lowest(0))?)
        })
    }

    /// Lowest first, broken chunks before whole ones, those of the others last.
    fn find_small(&self, order: u8, window: &Window, mobility: Mobility) -> Option<usize> {
        let inside =
            |chunk: usize| self.line(chunk).lowest(order).map(|bit| (chunk << CHUNK_SHIFT) + bit);
        if let Some(chunk) = self.find_broken(order, window, mobility) {
            return inside(chunk);
        }
        if let Some(chunk) = self.find_whole(window) {
            return Some(chunk << CHUNK_SHIFT);
        }
        inside(self.find_broken(order, window, mobility.other())?)
    }

    /// Highest first, broken gigs before whole ones.
    #[inline]
    fn find_large(&self, order: u8, window: &Window) -> Option<usize> {
        let level = usize::from(LINE_ORDER);
        let inside = |gig: usize| {
            let find = |line: &Line| line.highest(order - LINE_ORDER);
            let bit = self.chunks(gig, level, window, find)?;
            Some((gig * GIG_CHUNKS + bit) << CHUNK_SHIFT)
        };
        if let Some(found) = self.only_word(order, window).and_then(inside) {
            return Some(found);
        }
        let gigs = |whole| self.gigs(usize::from(order), whole, window, false);
        gigs(false).chain(gigs(true)).find_map(inside)
    }

    /// The gig that [`find_large`](Self::find_large) looks at first, where one word knows all gigs: up
    /// to 64 GiB.
    #[inline]
    fn only_word(&self, order: u8, window: &Window) -> Option<usize> {
        if self.words() != 1 {
            return None;
        }
        let mask = word_mask(0, window.first / GIG_CHUNKS, window.after.div_ceil(GIG_CHUNKS));
        let bits = self.sums.get(usize::from(order))? & mask;
        let broken = bits & !self.sums.get(GIG_ORDER)?;
        let bits = if broken != 0 { broken } else { bits };
        (bits != 0).then(|| 63 - bits.leading_zeros() as usize)
    }

    /// Takes an aligned block of 2^`order` (at least 9).
    pub(crate) fn take_large(
        &mut self,
        order: u8,
        window: &Window,
        mobility: Mobility,
    ) -> Option<usize> {
        let index = self.find_large(order, window)?;
        let chunk = index >> CHUNK_SHIFT;
        self.mark_whole(chunk, chunk + (1 << (order - LINE_ORDER)), false, mobility);
        self.free_frames -= 1 << order;
        Some(index)
    }

    /// Free frames in the window. O(chunks).
    pub(crate) fn count_frames(&self, window: Window) -> u64 {
        (window.first..window.after).map(|chunk| self.count(chunk) as u64).sum()
    }

    /// For whom the chunks of the window are. O(chunks).
    pub(crate) fn count_owners(&self, window: Window) -> BlockOwners {
        let mut owners = BlockOwners::default();
        for chunk in window.first..window.after {
            match (self.count(chunk), self.mobility(chunk)) {
                (CHUNK, _) => owners.free += 1,
                (0, _) if self.is_holey(chunk) => (),
                (_, Mobility::Unmovable) => owners.unmovable += 1,
                (_, Mobility::Movable) => owners.movable += 1,
            }
        }
        owners
    }

    /// The chunk with the most free frames of those for which `of` holds and that are neither entirely free nor entirely
    /// taken, and have no holes; with its number of taken frames.
    pub(crate) fn emptiest_chunk(&self, of: impl Fn(usize) -> bool) -> Option<(usize, u64)> {
        let chunks = 0..self.end() >> CHUNK_SHIFT;
        let broken = chunks.filter(|&chunk| {
            (1..CHUNK).contains(&self.count(chunk)) && !self.is_holey(chunk) && of(chunk)
        });
        let chunk = broken.max_by_key(|&chunk| self.count(chunk))?;
        Some((chunk << CHUNK_SHIFT, (CHUNK - self.count(chunk)) as u64))
    }

    /// Free blocks by order in chunks for `mobility`; entirely free chunks are movable. O(chunks).
    pub(crate) fn count_blocks_of(
        &self,
        window: Window,
        mobility: Mobility,
        counts: &mut [u64; ORDERS],
    ) {
        if mobility == Mobility::Movable {
            self.count_blocks(window, counts);
            let mut others = [0; ORDERS];
            self.count_blocks_of(window, Mobility::Unmovable, &mut others);
            counts.iter_mut().zip(others).for_each(|(count, other)| *count -= other);
            return;
        }
        let mut small = [0; 10];
        for chunk in (window.first..window.after).filter(|&chunk| self.mobility(chunk) == mobility)
        {
            if (1..CHUNK).contains(&self.count(chunk)) {
                self.line(chunk).count_blocks(&mut small);
            }
        }
        counts.iter_mut().zip(small).for_each(|(count, small)| *count += small);
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
            let line = self.chunks(gig, usize::from(LINE_ORDER), &window, |line| *line);
            line.count_blocks(&mut large);
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
    pub(crate) const EMPTY: Self = Self { first: 0, after: 0, cut: 0 };

    /// The indices `start..end`; a `start` inside a chunk is rounded up.
    pub(crate) fn new(start: usize, end: usize) -> Self {
        let first = start.div_ceil(CHUNK);
        let after = end >> CHUNK_SHIFT;
        if first > after {
            return Self { first, after: first, cut: 0 };
        }
        Self { first, after, cut: end % CHUNK }
    }

    /// The part below an index.
    #[inline]
    pub(crate) fn below(&self, limit: usize) -> Self {
        if (self.after << CHUNK_SHIFT) + self.cut <= limit {
            return *self;
        }
        Self::new(self.first << CHUNK_SHIFT, limit)
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

    #[inline]
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
