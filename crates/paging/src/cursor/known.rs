//! Taking everything out of a table when it is known where something is: the end of an address space.
//!
//! Looking for what is left costs more there than taking it out: a table of 512 entries holds a dozen
//! pages, and there are three tables of higher levels over each. So nobody looks. Who knows where
//! entries may be says so, and the counts of the tree, of tables and of words in them
//! (*words-counted*), tell whether that was all; if not, it is looked for.

use core::sync::atomic::Ordering;

use pagoda_addr::{Frame, PageRange};

use super::Cursor;
use super::bulk::Memo;
use crate::slot::{index, span};
use crate::stack::StackVec;
use crate::{FlushBatch, Format, MapError, PageFlags, Platform};

/// Pages between windows that are looked through rather than jumped over.
const NEAR: u64 = 32;
/// Tables to remember.
const SEEN: usize = 64;

/// A table, and the entry by which it hangs.
#[derive(Clone, Copy)]
struct Seen {
    table: Frame,
    parent: Frame,
    index: usize,
}

impl<F: Format, P: Platform> Cursor<'_, F, P> {
    /// As [`take_all`](Self::take_all) for all of the cursor's range. `windows`, rising and apart from
    /// each other, say where entries are. What lies elsewhere is found too, but must be looked for,
    /// as must everything if the tree has entries outside of the cursor's range.
    pub fn take_known(
        &mut self,
        windows: impl Iterator<Item = PageRange>,
        batch: &mut FlushBatch<'_, P>,
        mut gone: impl FnMut(PageFlags, u64),
    ) -> Result<(), MapError> {
        self.check_batch(batch)?;
        if self.guard.words == 0 && self.guard.tables == 1 {
            return Ok(());
        }
        let levels = self.format().levels();
        let mut seen = StackVec::<Seen, SEEN>::new();
        // Where there are too many, what is taken page by page is looked at twice.
        let few = self.guard.tables <= SEEN as u64 + 1;
        let mut room = few;
        let mut windows = windows.take_while(|_| few).peekable();
        let (mut last, mut before) = (None, 0);
        let mut memo = Memo::default();
        // Everything goes: which pages that were is of no interest.
        batch.flush_all();
        while let Some(window) = windows.next() {
            let (mut at, mut end) = self.bounds(window)?;
            // What is almost one is gone through as one.
            let near = |next: &PageRange, end: u64| {
                next.start().number().wrapping_sub(end) < NEAR && self.bounds(*next).is_ok()
            };
            while let Some(next) = windows.next_if(|next| near(next, end)) {
                end = next.end_number();
            }
            // What was said is not relied on: a table seen twice would stand for one not seen.
            room &= at >= before && !self.table.keeps_top(at, levels);
            before = end;
            while at < end {
                let place = self.walk(at, 1);
                for level in place.level..levels {
                    let other = |last: u64| (at ^ last) >> (9 * level) != 0;
                    if last.is_none_or(other) {
                        let [table, parent] = [level - 1, level].map(|l| self.path[l as usize]);
                        room &= seen.push(Seen { table, parent, index: index(at, level + 1) });
                    }
                }
                last = Some(at);
                if place.level == 1 {
                    let next = (at - at % span(2) + span(2)).min(end);
                    self.drain_leaves(place.table, (at, next), &mut memo, batch, &mut gone);
                    at = next;
                } else {
                    at = self.next_nonzero(at, place, end);
                }
            }
        }
        let tables = seen.as_slice().len() as u64 + 1;
        if room && self.guard.words == 0 && self.guard.tables == tables {
            self.unlink_all(seen.as_slice(), batch);
            return Ok(());
        }
        let all = self.range();
        self.take_all(all, batch, gone)
    }

    /// Gives back all tables but the root, which are these: they are empty but for each other.
    fn unlink_all(&mut self, tables: &[Seen], batch: &mut FlushBatch<'_, P>) {
        for seen in tables {
            self.slot(seen.parent, seen.index).store(0, Ordering::Release);
        }
        batch.flush_all();
        for seen in tables {
            debug_assert!(self.entries(seen.table).iter().all(|e| e.load(Ordering::Relaxed) == 0));
            batch.unlinked_one(seen.table);
        }
        self.guard.tables = 1;
        self.forget_path();
    }
}
