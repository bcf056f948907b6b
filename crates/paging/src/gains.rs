//! What was allowed since a cursor began, for formats in which CPUs have to be told.

use pagoda_addr::PageRange;

use crate::slot::page;
use crate::{FlushRange, Gain, Platform, SpaceTlb};

/// One range around all gains.
#[derive(Clone, Copy)]
pub(crate) struct Gains {
    start: u64,
    end: u64,
    gain: Gain,
    tables: bool,
}

impl Gains {
    pub(crate) const NONE: Self =
        Self { start: u64::MAX, end: 0, gain: Gain::Present, tables: false };

    #[inline]
    pub(crate) fn add(&mut self, start: u64, end: u64, gain: Gain, tables: bool) {
        self.start = self.start.min(start);
        self.end = self.end.max(end);
        self.gain = self.gain.max(gain);
        self.tables |= tables;
    }

    /// After the entries were written.
    pub(crate) fn tell<P: Platform>(&self, platform: &P, space: &SpaceTlb) {
        let count = self.end.saturating_sub(self.start);
        let Some(range) = PageRange::new(page(self.start), count) else { return };
        if count == 0 || platform.unwinding() {
            return;
        }
        let what = FlushRange {
            spans: &[range],
            everything: false,
            tables: self.tables,
            // What was absent, or refused, may be a global page as well as not.
            global: true,
            generation: space.advance(),
        };
        platform.gained(space, what, self.gain);
    }
}
