//! The search for any number of frames in a row.
//!
//! A run of n frames lies in every free block of the next power of two, which the summaries find in
//! O(levels); that is tried first. Only when there is no such block, or a boundary forbids it, the
//! lines are searched: word by word, in those chunks alone that can hold part of such a run. For a
//! run of at least 2^(j+1) - 1 frames contains an aligned block of order j, so that one of the
//! chunks it touches has such a block, and the others are its neighbours or entirely free.

use pagoda_addr::Order;

use crate::Mobility;
use crate::bitmap::Core;
use crate::line::{LINE_BITS, LINE_ORDER};
use crate::places::{CHUNK, CHUNK_SHIFT, GIG_CHUNKS};
use crate::search::Window;

/// What is looked for, in frames. `1 <= count <= boundary`; `align` and `boundary` are powers of
/// two.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) count: u64,
    pub(crate) align: Order,
    pub(crate) boundary: Option<Order>,
}

impl Run {
    /// The order whose every block serves, if there is one.
    pub(crate) fn order(&self) -> Option<Order> {
        let order = Order::for_count(self.count)?.max(self.align);
        match self.boundary {
            Some(boundary) if boundary < order => None,
            _ => Some(order),
        }
    }

    /// The first frame number in `start..start + len` at which the run fits.
    fn fit(&self, start: u64, len: u64) -> Option<u64> {
        let mut first = start.next_multiple_of(self.align.count());
        if let Some(boundary) = self.boundary {
            let size = boundary.count();
            if first / size != (first + self.count - 1) / size {
                first = first.next_multiple_of(size).next_multiple_of(self.align.count());
            }
        }
        (first + self.count <= start + len).then_some(first)
    }
}

/// A stretch of free frames that may still grow.
struct Open {
    start: usize,
    len: usize,
}

impl Core<'_> {
    /// The index of the first frame of a run.
    pub(crate) fn find_run(&self, run: &Run, window: Window, mobility: Mobility) -> Option<usize> {
        if let Some(order) = run.order() {
            let found = self.find_block(order.get(), window, mobility);
            if found.is_some() || (run.count == order.count() && run.align == order) {
                return found;
            }
        }
        self.search_run(run, window)
    }

    #[cold]
    fn search_run(&self, run: &Run, window: Window) -> Option<usize> {
        let inside = (run.count.saturating_add(1) / 2).max(1).ilog2() as u8;
        let level = inside.min(LINE_ORDER);
        let mut open = Open { start: 0, len: 0 };
        let last = window.after + usize::from(window.cut > 0);
        for chunk in window.first..last {
            if chunk % GIG_CHUNKS == 0 && !self.directory.joined(chunk / GIG_CHUNKS) {
                open.len = 0;
            }
            if !self.near(chunk, level) {
                open.len = 0;
                continue;
            }
            let end = if chunk == window.after { window.cut } else { LINE_BITS };
            if let Some(found) = self.search_chunk(run, chunk, end, &mut open) {
                return Some(found);
            }
        }
        None
    }

    /// Does the chunk or a neighbour have a block of this order?
    fn near(&self, chunk: usize, level: u8) -> bool {
        (chunk.saturating_sub(1)..=chunk + 1).any(|chunk| self.is_tall(chunk, level))
    }

    fn search_chunk(&self, run: &Run, chunk: usize, end: usize, open: &mut Open) -> Option<usize> {
        let base = chunk << CHUNK_SHIFT;
        let line = self.line(chunk);
        let mut next = 0;
        while let Some(first) = (next < end).then(|| line.first_other(next, end, false)).flatten() {
            let after = line.first_other(first, end, true).unwrap_or(end);
            if open.len == 0 || open.start + open.len != base + first {
                *open = Open { start: base + first, len: 0 };
            }
            open.len += after - first;
            let frame = self.directory.frame(open.start);
            if let Some(fit) = run.fit(frame, open.len as u64) {
                return Some(open.start + (fit - frame) as usize);
            }
            next = after;
        }
        if !(end == CHUNK && line.get(CHUNK - 1)) {
            open.len = 0;
        }
        None
    }
}
