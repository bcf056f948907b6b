//! The invariants of the core, checked from scratch.

use super::*;

impl Core<'_> {
    /// Panics unless *summaries* and the counts follow from the lines.
    pub(crate) fn audit(&self) {
        if cfg!(miri) {
            return; // minutes
        }
        let mut total = 0;
        for gig in 0..self.has.len() {
            let mut has = [Line::EMPTY; LEVELS];
            for bit in 0..GIG_CHUNKS {
                let chunk = gig * GIG_CHUNKS + bit;
                let line = self.line(chunk);
                assert_eq!(line.count() as usize, self.count(chunk), "count of chunk {chunk}");
                assert_eq!(line.tallness(), self.tall[chunk], "tallness of chunk {chunk}");
                total += u64::from(line.count());
                for (level, line) in has.iter_mut().enumerate() {
                    let levels = levels(self.tall[chunk], self.mobility(chunk));
                    line.fill(bit, bit + 1, levels & (1 << level) != 0);
                }
            }
            assert_eq!(has, self.has[gig], "lines of gig {gig}");
            assert_eq!(has[9].tallness(), self.big[gig]);
            for order in 0..ROWS {
                let any = if order < 9 {
                    !has[order].is_empty()
                } else if order >= 19 {
                    !has[order - 9].is_empty()
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
