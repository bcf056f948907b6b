//! The same for many pages: what a range needs when nothing depends on the single page.
//!
//! Most pages of a range have the same flags. The loops here decide by flags alone, remember the
//! last decision beside the bits of the word that are not the frame ([`Format::frame_bits`]), and
//! so cost a load, a comparison and a store for each page, budget 16 instructions; what is to be
//! flushed is noted by runs. Words into which hardware may still write are exchanged, others
//! ([`Format::is_settled`]) are stored to: everybody else who writes needs the lock that we hold.

use core::sync::atomic::{AtomicU64, Ordering};

use pagoda_addr::{Frame, Page, PageRange};

use super::Cursor;
use super::change::must_flush;
use crate::slot::{index, next_nonzero, page, span, used_pieces};
use crate::stack::StackVec;
use crate::{
    Decoded, ENTRIES, Entry, FlushBatch, Format, MapError, PageFlags, Platform, Remembers, Rewrite,
};

/// Frames that a copy reports at once.
const REPORT: usize = 64;

/// What was decided about the leaves whose words have these bits.
///
/// The default is about words of nothing but frame bits, which are no leaves: to be left alone.
#[derive(Clone, Copy, Default)]
pub(super) struct Memo {
    /// The word without the frame.
    key: u64,
    /// What takes its place.
    bits: u64,
    leaf: bool,
    flush: bool,
    global: bool,
    settled: bool,
    flags: PageFlags,
}

/// A run of pages to flush that is not in the batch yet: from `start` to `end`.
#[derive(Clone, Copy, Default)]
struct Run {
    start: u64,
    end: u64,
    global: bool,
}

impl Run {
    /// The pages from `start` to `end` turned from or into what `memo` says.
    #[inline]
    fn add<P: Platform>(&mut self, start: u64, end: u64, memo: &Memo, to: &mut FlushBatch<'_, P>) {
        if !memo.flush {
            return;
        }
        if self.end != start || self.global != memo.global {
            self.note(to);
            (self.start, self.global) = (start, memo.global);
        }
        self.end = end;
    }

    /// Hands the run to the batch.
    #[cold]
    #[inline(never)]
    fn note<P: Platform>(&mut self, batch: &mut FlushBatch<'_, P>) {
        if let Some(range) = PageRange::new(page(self.start), self.end - self.start) {
            if !range.is_empty() {
                batch.changed(range, self.global);
            }
        }
        *self = Self::default();
    }
}

impl<'a, F: Format, P: Platform> Cursor<'a, F, P> {
    /// As [`change`](Self::change), where the new flags depend on the old ones alone: `decide` is
    /// asked at least once for each kind of leaf in the range, not for each leaf.
    pub fn change_flags(
        &mut self,
        range: PageRange,
        batch: &mut FlushBatch<'_, P>,
        mut decide: impl FnMut(PageFlags) -> PageFlags,
    ) -> Result<(), MapError> {
        let format = self.format();
        if format.remembers() != Remembers::Nothing || format.breaks_for(Rewrite::Target) {
            return self.change(range, batch, |_, leaf| decide(leaf.flags));
        }
        self.check_batch(batch)?;
        let (start, end) = self.bounds(range)?;
        self.check_sealed(start, end)?;
        self.split_edges(start, end, batch)?;
        let mut at = start;
        while at < end {
            let place = self.walk(at, 1);
            if place.level == 1 {
                let next = table_end(at).min(end);
                self.edit_leaves(place.table, at, next, batch, &mut decide);
                at = next;
                continue;
            }
            if matches!(format.decode(place.word, place.level), Decoded::Leaf(..)) {
                let next = ((at | (span(place.level) - 1)) + 1).min(end);
                let (table, level) = (place.table, place.level);
                self.change_in(table, level, at, next, batch, &mut |_, leaf| decide(leaf.flags));
                at = next;
                continue;
            }
            at = self.next_nonzero(at, place, end);
        }
        Ok(())
    }

    fn edit_leaves(
        &self,
        table: Frame,
        start: u64,
        end: u64,
        batch: &mut FlushBatch<'_, P>,
        decide: &mut impl FnMut(PageFlags) -> PageFlags,
    ) {
        let frame = self.format().frame_bits();
        let (mut memo, mut run) = (Memo::default(), Run::default());
        let (first, count) = (index(start, 1), (end - start) as usize);
        let entries = &self.entries(table)[first..first + count];
        let mut at = 0;
        while let Some(slot) = entries.get(at) {
            let begin = at;
            let word = slot.load(Ordering::Relaxed);
            if word == 0 {
                at += 1;
                continue;
            }
            if word & !frame != memo.key {
                memo = self.decision(word, decide);
            }
            if memo.settled {
                at += rewrite_alike(&entries[at..], frame, &memo);
            } else if exchange(slot, word, (word & frame) | memo.bits) {
                at += 1;
            }
            run.add(start + begin as u64, start + at as u64, &memo, batch);
        }
        run.note(batch);
    }

    #[cold]
    fn decision(&self, word: u64, decide: &mut impl FnMut(PageFlags) -> PageFlags) -> Memo {
        let format = self.format();
        let key = word & !format.frame_bits();
        let Decoded::Leaf(frame, flags) = format.decode(word, 1) else {
            return Memo { key, bits: key, settled: true, ..Memo::default() };
        };
        let new = format.grants(decide(flags));
        let bits = format.leaf(frame, crate::PageSize::K4, new) & !format.frame_bits();
        let (flush, settled) = (must_flush(flags, new), format.is_settled(word));
        let global = flags.contains(PageFlags::GLOBAL);
        Memo { key, bits, leaf: true, flush, global, settled, flags }
    }

    /// As [`take`](Self::take) where every page is released: `gone` hears how many pages with the
    /// same flags went, in any number of calls. Absent words are dropped.
    pub fn take_all(
        &mut self,
        range: PageRange,
        batch: &mut FlushBatch<'_, P>,
        mut gone: impl FnMut(PageFlags, u64),
    ) -> Result<(), MapError> {
        self.check_batch(batch)?;
        let (start, end) = self.bounds(range)?;
        if start == end {
            return Ok(());
        }
        // All in one table, in which something else is left: most of the calls.
        if (start ^ (end - 1)) < ENTRIES as u64 {
            let place = self.walk(start, 1);
            if place.level == 1 {
                self.drain_leaves(
                    place.table,
                    (start, end),
                    &mut Memo::default(),
                    batch,
                    &mut gone,
                );
                if !self.is_empty(place.table, 2, start, end) {
                    return Ok(());
                }
            } else if place.word == 0 {
                return Ok(());
            }
        }
        self.check_sealed(start, end)?;
        self.split_edges(start, end, batch)?;
        let (root, level) = (self.table.root(), self.format().levels());
        self.drain_in(root, level, start, end, batch, &mut gone);
        self.forget_path();
        Ok(())
    }

    fn drain_in(
        &mut self,
        table: Frame,
        level: u32,
        start: u64,
        end: u64,
        batch: &mut FlushBatch<'_, P>,
        gone: &mut impl FnMut(PageFlags, u64),
    ) {
        let entries = self.entries(table);
        for (index, start, end, word) in used_pieces(entries, level, start, end) {
            let Decoded::Table(child) = self.format().decode(word, level) else {
                self.take_in(table, level, start, end, batch, &mut |_: Page, entry| {
                    if let Entry::Mapped { size, flags, .. } = entry {
                        gone(flags, size.pages());
                    }
                    super::Fate::Release
                });
                continue;
            };
            if level == 2 {
                self.drain_leaves(child, (start, end), &mut Memo::default(), batch, gone);
            } else {
                self.drain_in(child, level - 1, start, end, batch, gone);
            }
            if !self.table.keeps_top(start, level) && self.is_empty(child, level, start, end) {
                entries[index % ENTRIES].store(0, Ordering::Release);
                self.guard.tables -= 1;
                batch.unlinked(page(start), child);
            }
        }
    }

    /// Takes all out between two pages of one table. `memo` may be of an earlier call.
    pub(super) fn drain_leaves(
        &mut self,
        table: Frame,
        (start, end): (u64, u64),
        memo: &mut Memo,
        batch: &mut FlushBatch<'_, P>,
        gone: &mut impl FnMut(PageFlags, u64),
    ) {
        let format = *self.format();
        let frame_bits = format.frame_bits();
        let mut run = Run::default();
        let (first, count) = (index(start, 1), (end - start) as usize);
        let entries = &self.entries(table)[first..first + count];
        let (mut at, mut words) = (0, 0);
        while let Some(slot) = entries.get(at) {
            let begin = at;
            let mut word = slot.load(Ordering::Relaxed);
            if word == 0 {
                at = next_nonzero(self.entries(table), first + at, first + count) - first;
                continue;
            }
            if batch.pages_full() {
                // What is in the batch may be known to somebody; the run knows where.
                run.note(batch);
                batch.flush_now();
            }
            if word & !frame_bits != memo.key || !memo.settled || !memo.leaf {
                // From here on the entry is nobody's but ours, with all that hardware wrote there.
                word = slot.swap(0, Ordering::AcqRel);
                at += 1;
                if word & !frame_bits != memo.key {
                    *memo = self.decision(word, &mut |_| PageFlags::empty());
                }
                if !memo.leaf {
                    words += 1;
                    continue;
                }
                batch.push_page(format.leaf_frame(word));
            }
            if memo.settled && memo.leaf {
                at += batch.push_pages(clear_alike(&format, &entries[at..], memo.key));
            }
            words += at - begin;
            gone(memo.flags, (at - begin) as u64);
            run.add(start + begin as u64, start + at as u64, memo, batch);
        }
        run.note(batch);
        self.went(words);
    }

    /// Copies every 4 KiB leaf of `range` to the same page of `to`, a table that no CPU uses and
    /// that has nothing there: a fork, a table in one pass. `decide` says which flags both sides
    /// have afterwards; it may take rights away, and marks may change. `copied` hears of every
    /// frame copied, many at a time, with the new flags: a reference more to each is due before the
    /// cursors are dropped. On failure (no frame for a table, or a large leaf) what `copied` has
    /// heard of stays copied.
    pub fn copy_to(
        &mut self,
        range: PageRange,
        to: &mut Cursor<'_, F, P>,
        batch: &mut FlushBatch<'_, P>,
        mut decide: impl FnMut(PageFlags) -> PageFlags,
        mut copied: impl FnMut(PageFlags, &[Frame]),
    ) -> Result<(), MapError> {
        self.check_batch(batch)?;
        let (start, end) = self.bounds(range)?;
        to.bounds(range)?;
        self.check_sealed(start, end)?;
        let mut at = start;
        while at < end {
            let place = self.walk(at, 1);
            if place.level == 1 {
                let next = table_end(at).min(end);
                self.copy_leaves(place.table, (at, next), to, batch, &mut decide, &mut copied)?;
                at = next;
                continue;
            }
            if matches!(self.format().decode(place.word, place.level), Decoded::Leaf(..)) {
                return Err(MapError::Size);
            }
            at = self.next_nonzero(at, place, end);
        }
        Ok(())
    }

    fn copy_leaves(
        &mut self,
        table: Frame,
        (start, end): (u64, u64),
        to: &mut Cursor<'_, F, P>,
        batch: &mut FlushBatch<'_, P>,
        decide: &mut impl FnMut(PageFlags) -> PageFlags,
        copied: &mut impl FnMut(PageFlags, &[Frame]),
    ) -> Result<(), MapError> {
        let frame_bits = self.format().frame_bits();
        let (mut memo, mut run) = (Memo::default(), Run::default());
        let mut new_flags = PageFlags::empty();
        let (first, count) = (index(start, 1), (end - start) as usize);
        let entries = &self.entries(table)[first..first + count];
        let mut target: Option<&[AtomicU64]> = None;
        let mut at = 0;
        while let Some(slot) = entries.get(at) {
            let begin = at;
            let word = slot.load(Ordering::Relaxed);
            if word == 0 {
                at = next_nonzero(self.entries(table), first + at, first + count) - first;
                continue;
            }
            if word & !frame_bits != memo.key {
                memo = self.decision(word, &mut |flags| {
                    new_flags = decide(flags);
                    new_flags
                });
            }
            if !memo.leaf {
                at += 1;
                continue;
            }
            let into = match target {
                Some(into) => into,
                None => {
                    let made = to.leaf_table(start).inspect_err(|_| run.note(batch))?;
                    target.insert(&made[first..first + count])
                }
            };
            let mut frames = StackVec::<Frame, REPORT>::new();
            at += copy_alike(self.format(), &entries[at..], &into[at..], &memo, &mut frames);
            to.came(at - begin);
            copied(new_flags, frames.as_slice());
            run.add(start + begin as u64, start + at as u64, &memo, batch);
        }
        run.note(batch);
        Ok(())
    }
}

/// Rewrites the words at the beginning of `entries` that differ from each other in nothing but the
/// frame, as `memo` says; returns how many those are. Six instructions for each, and four for eight.
#[inline(never)] // needs the registers
fn rewrite_alike(entries: &[AtomicU64], frame: u64, memo: &Memo) -> usize {
    let (key, bits) = (memo.key, memo.bits);
    // Nothing but the frame is left of a word without its key.
    let rewrite = |slot: &AtomicU64| {
        let rest = slot.load(Ordering::Relaxed) ^ key;
        let alike = rest & !frame == 0;
        if alike {
            slot.store(rest | bits, Ordering::Release);
        }
        alike
    };
    let mut done = 0;
    let mut eights = entries.chunks_exact(8);
    for eight in &mut eights {
        if let Some(other) = eight.iter().position(|slot| !rewrite(slot)) {
            return done + other;
        }
        done += 8;
    }
    done + eights.remainder().iter().take_while(|slot| rewrite(slot)).count()
}

/// Takes the words at the beginning of `entries` that differ from each other in nothing but the frame
/// out, as they are asked for; all hardware has written there, it has.
#[inline(always)]
fn clear_alike<F: Format>(
    format: &F,
    entries: &[AtomicU64],
    key: u64,
) -> impl Iterator<Item = Frame> {
    let others = !format.frame_bits();
    entries.iter().map_while(move |slot| {
        let word = slot.load(Ordering::Relaxed);
        if (word ^ key) & others != 0 {
            return None;
        }
        slot.store(0, Ordering::Release);
        Some(format.leaf_frame(word))
    })
}

/// Copies the words at the beginning of `entries` that differ from each other in nothing but the
/// frame to `into`, changed on both sides as `memo` says; returns how many those are, as far as
/// `frames` has room for theirs.
#[inline(never)] // needs the registers
fn copy_alike<F: Format>(
    format: &F,
    entries: &[AtomicU64],
    into: &[AtomicU64],
    memo: &Memo,
    frames: &mut StackVec<Frame, REPORT>,
) -> usize {
    let (key, bits, others) = (memo.key, memo.bits, !format.frame_bits());
    let pairs = entries.iter().zip(into);
    let alike = |slot: &AtomicU64| {
        let word = slot.load(Ordering::Relaxed);
        ((word ^ key) & others == 0).then_some((word, (word ^ key) | bits))
    };
    if memo.settled {
        return frames.fill(pairs.map_while(|(slot, into)| {
            let (word, new) = alike(slot)?;
            slot.store(new, Ordering::Release);
            into.store(new, Ordering::Relaxed);
            Some(format.leaf_frame(word))
        }));
    }
    frames.fill(pairs.map_while(|(slot, into)| {
        let (word, new) = alike(slot)?;
        // Hardware may write there: then it is looked at once more.
        exchange(slot, word, new).then(|| into.store(new, Ordering::Relaxed))?;
        Some(format.leaf_frame(word))
    }))
}

/// The first page behind the lowest table over `page`.
#[inline]
fn table_end(page: u64) -> u64 {
    (page | (ENTRIES as u64 - 1)) + 1
}

/// Writes `new` where `word` stands, unless hardware has made something else of it.
#[inline]
fn exchange(slot: &AtomicU64, word: u64, new: u64) -> bool {
    slot.compare_exchange(word, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}
