//! The summaries above the lines, brought up to date (*summaries*).

use super::{CHUNK, Core, GIG_CHUNKS, LAZY, WHOLE, levels, row};
use crate::Mobility;
use crate::line::LINE_ORDER;

impl Core<'_> {
    /// Moves a chunk between the lines of its gig.
    pub(super) fn set_tall(&mut self, chunk: usize, tall: u8) {
        let old = core::mem::replace(&mut self.tall[chunk], tall);
        if old == tall {
            return;
        }
        let mobility = self.mobility(chunk);
        self.move_lines(chunk, levels(old, mobility) ^ levels(tall, mobility), tall == WHOLE);
    }

    /// Puts the chunk on, or takes it off, the lines of its gig in `changed`.
    pub(super) fn move_lines(&mut self, chunk: usize, mut changed: u32, whole: bool) {
        let (gig, bit) = (chunk / GIG_CHUNKS, chunk % GIG_CHUNKS);
        let (word, mask) = (bit / 64, 1 << (bit % 64));
        while changed != 0 {
            let level = changed.trailing_zeros() as usize;
            changed &= changed - 1;
            if level == usize::from(LINE_ORDER) {
                self.mark_in_gig(gig, bit, whole);
                continue;
            }
            let line = &mut self.has[gig][level];
            let before = line.0[word];
            line.0[word] = before ^ mask;
            if before & mask == 0 {
                if before == 0 {
                    self.set_sum(row(level), gig, true);
                }
            } else if line.is_empty() {
                self.set_sum(row(level), gig, false);
            }
        }
    }

    /// Marks chunks of one gig that are entirely free or entirely taken as the other.
    pub(crate) fn mark_whole(
        &mut self,
        first: usize,
        after: usize,
        free: bool,
        mobility: Mobility,
    ) {
        if !free {
            self.set_mobility(first, after, mobility);
        }
        let (slot, tall) = if free { (LAZY | CHUNK as u16, WHOLE) } else { (LAZY, 0) };
        let gig = first / GIG_CHUNKS;
        if after - first == 1 {
            self.free[first] = slot;
            self.tall[first] = tall;
            return self.mark_in_gig(gig, first % GIG_CHUNKS, free);
        }
        self.free[first..after].fill(slot);
        self.tall[first..after].fill(tall);
        let base = gig * GIG_CHUNKS;
        self.has[gig][usize::from(LINE_ORDER)].fill(first - base, after - base, free);
        self.sum_whole(gig);
    }

    /// Changes the bit of one chunk in its gig's line of entirely free chunks. The line is searched
    /// for its largest block only if the chunk was part of one that large.
    #[inline]
    fn mark_in_gig(&mut self, gig: usize, bit: usize, free: bool) {
        let tall = self.big[gig];
        let line = &mut self.has[gig][usize::from(LINE_ORDER)];
        let new = if free {
            line.set(bit);
            if !line.has_block_at(bit, tall) {
                return;
            }
            line.tallness_at(bit)
        } else {
            let largest = line.has_block_at(bit, tall.saturating_sub(1));
            line.clear(bit);
            if !largest {
                return;
            }
            line.tallness_below(tall)
        };
        self.set_big(gig, new);
    }

    fn sum_whole(&mut self, gig: usize) {
        let new = self.has[gig][usize::from(LINE_ORDER)].tallness();
        self.set_big(gig, new);
    }

    #[inline]
    fn set_big(&mut self, gig: usize, new: u8) {
        let old = core::mem::replace(&mut self.big[gig], new);
        for order in old.min(new)..old.max(new) {
            self.set_sum(usize::from(LINE_ORDER + order), gig, order < new);
        }
    }

    fn set_sum(&mut self, order: usize, gig: usize, any: bool) {
        let words = self.words();
        let word = &mut self.sums[order * words + gig / 64];
        let bit = 1 << (gig % 64);
        *word = if any { *word | bit } else { *word & !bit };
    }
}
