//! Runs of 4 KiB pages in one leaf table: what a fault does for its page and a few behind it.
//!
//! One walk, then a load and a store for each page. Budget beside the walk: 15 instructions for each
//! page, the caller's closure not counted.

use core::sync::atomic::Ordering;

use pagoda_addr::{Frame, Page, PageRange};

use super::change::{must_flush, note};
use super::{Cursor, whole};
use crate::slot::{index, page};
use crate::{
    Decoded, ENTRIES, FlushBatch, Format, Gain, Leaf, MapError, PageFlags, PageSize, Platform,
    Released, Rewrite,
};

/// What becomes of a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rewritten {
    /// It has these flags, and history at least, from now on.
    Flags(PageFlags),
    /// It stands for another frame, with these flags; the reference to the old one is released.
    Frame(Frame, PageFlags),
}

impl<F: Format, P: Platform> Cursor<'_, F, P> {
    /// Maps one page after another from the first of `range` on, while nothing at all stands at the
    /// page, `next` has a frame for it, and the leaf table goes on. Returns how many were mapped.
    /// `next` is not asked for a frame that is not used; when it fails, no table was made.
    ///
    /// # Errors
    /// Nothing was mapped then, and a frame that `next` gave was released.
    pub fn fill_run(
        &mut self,
        range: PageRange,
        flags: PageFlags,
        mut next: impl FnMut() -> Option<Frame>,
    ) -> Result<u64, MapError> {
        let (start, end) = self.bounds(range)?;
        let place = self.walk(start, 1);
        if place.word != 0 || start == end {
            return Ok(0);
        }
        let Some(mut frame) = next() else { return Err(MapError::OutOfFrames) };
        let flags = self.format().grants(flags);
        let made = place.level != 1;
        let entries = match self.leaf_table(start) {
            Ok(entries) => entries,
            Err(error) => {
                self.unused(frame);
                return Err(error);
            }
        };
        let format = self.format();
        let first = index(start, 1);
        let last = ENTRIES.min(first.saturating_add((end - start) as usize));
        let mut at = first;
        loop {
            if !format.frame_fits(frame, PageSize::K4) {
                self.unused(frame);
                if at == first {
                    return Err(MapError::FrameTooHigh);
                }
                break;
            }
            entries[at].store(format.leaf(frame, PageSize::K4, flags), Ordering::Release);
            at += 1;
            if at >= last || entries[at].load(Ordering::Relaxed) != 0 {
                break;
            }
            match next() {
                Some(more) => frame = more,
                None => break,
            }
        }
        let count = (at - first) as u64;
        self.came(at - first);
        self.gained(start, start + count, Gain::Present, made);
        Ok(count)
    }

    #[cold]
    fn unused(&self, frame: Frame) {
        self.platform().release(Released::Page { frame, size: PageSize::K4 });
    }

    /// Lets `decide` rewrite one leaf after another from the first page of `range` on, while there
    /// is one (of 4 KiB), `decide` wants to go on, and the leaf table does. Returns how many were
    /// rewritten. New flags have to contain the history that hardware may write meanwhile
    /// (`ACCESSED`, and `DIRTY` where the old flags allowed writing).
    pub fn rewrite_run(
        &mut self,
        range: PageRange,
        batch: &mut FlushBatch<'_, P>,
        mut decide: impl FnMut(Page, Leaf) -> Option<Rewritten>,
    ) -> Result<u64, MapError> {
        self.check_batch(batch)?;
        let (start, end) = self.bounds(range)?;
        let place = self.walk(start, 1);
        if place.level != 1 {
            return Ok(0);
        }
        let (format, entries) = (self.format(), self.entries(place.table));
        let first = index(start, 1);
        let mut at = start;
        for slot in entries[first..].iter().take((end - start) as usize) {
            let Decoded::Leaf(old, flags) = format.decode(slot.load(Ordering::Relaxed), 1) else {
                break;
            };
            let leaf = whole(old, 1, flags);
            let Some(wanted) = decide(page(at), leaf) else { break };
            let (frame, wanted) = match wanted {
                Rewritten::Flags(flags) => (old, flags),
                Rewritten::Frame(frame, flags) => (frame, flags),
            };
            let granted = format.grants(wanted);
            let word = format.leaf(frame, PageSize::K4, granted);
            let breaks = if frame == old {
                self.breaks_for(flags, granted)
            } else {
                format.breaks_for(Rewrite::Target)
            };
            slot.swap(if breaks { 0 } else { word }, Ordering::AcqRel);
            if frame != old || breaks || must_flush(flags, granted) {
                note(batch, at, leaf);
            }
            if breaks {
                batch.flush_now();
                slot.store(word, Ordering::Release);
            }
            self.note_gain(at, leaf, granted);
            if frame != old {
                batch.release_also(Released::Page { frame: old, size: PageSize::K4 });
            }
            at += 1;
        }
        Ok(at - start)
    }

    /// Moves every 4 KiB leaf and every absent word of `from` to the pages from `to` on, where
    /// nothing stands and tables for them do ([`prepare`](Self::prepare)), and gives back the tables
    /// that become empty. The frames stay what they are. To be flushed before anybody relies on it.
    pub fn shift(
        &mut self,
        from: PageRange,
        to: Page,
        batch: &mut FlushBatch<'_, P>,
    ) -> Result<(), MapError> {
        self.check_batch(batch)?;
        let (start, end) = self.bounds(from)?;
        let target = PageRange::new(to, from.count()).ok_or(MapError::Range)?;
        let (target, _) = self.bounds(target)?;
        let mut at = start;
        while at < end {
            let place = self.walk(at, 1);
            if place.level != 1 && place.word != 0 {
                return Err(MapError::Size);
            }
            if place.level != 1 {
                // No table, so nothing, up to the end of the entry's span.
                let span = crate::slot::span(place.level);
                at = ((at | (span - 1)) + 1).min(end);
                continue;
            }
            let into = target + (at - start);
            let (first, other) = (index(at, 1), index(into, 1));
            let count = (ENTRIES - first.max(other)).min((end - at) as usize);
            let source = &self.entries(place.table)[first..first + count];
            if source.iter().any(|slot| slot.load(Ordering::Relaxed) != 0) {
                let there = self.walk(into, 1);
                if there.level != 1 {
                    return Err(MapError::NotMapped);
                }
                let into = &self.entries(there.table)[other..other + count];
                for ((slot, into), at) in source.iter().zip(into).zip(at..) {
                    if slot.load(Ordering::Relaxed) == 0 {
                        continue;
                    }
                    let word = slot.swap(0, Ordering::AcqRel);
                    into.store(word, Ordering::Release);
                    if let Decoded::Leaf(frame, flags) = self.format().decode(word, 1) {
                        note(batch, at, whole(frame, 1, flags));
                    }
                }
            }
            at += count as u64;
        }
        self.gained(target, target + (end - start), Gain::Present, false);
        // What is left are tables.
        self.take_all(from, batch, |_, _| {})
    }
}
