//! References of many frames at once: what unmapping a range and forking do.
//!
//! Both calls go through the slice once. Frames of one chunk share the look-up of their entries.
//! Frames whose caller was the only owner go to the CPU's magazine under one pin, by the rule of
//! `caches.rs`, decided once for each *run*: frames of one chunk in rising order without a gap, which
//! are compared four or eight at a time.
//!
//! Longer runs that the rule would send back to the core go there at once, a line at a time.
//!
//! Budgets, in instructions for each page of a run of 64: 8 for one more owner, 20 for one less of
//! two, 20 for the last one, until the frame lies in the magazine or in the core.

use lock_api::RawMutex;
use pagoda_addr::{Frame, FrameRange, PhysMap};
use pagoda_sync::Cpus;

use crate::entry::{CACHED, HEAD, may_all_share, may_share, others, single};
use crate::magazine::{Room, Stock, Way};
use crate::shim::{AtomicU32, Ordering::*};
use crate::{FrameAllocator, FrameTable, FreeError, TableError};

/// From so many frames on, a run is worth the core's lock.
const DIRECT: usize = 8;
const EIGHT: usize = 8;

impl FrameTable<'_> {
    /// One more owner for each allocation that begins at one of `frames`, as
    /// [`share`](Self::share).
    ///
    /// # Errors
    /// The first frame that cannot have one; all counts are as they were then.
    pub fn share_many(&self, frames: &[Frame]) -> Result<(), TableError> {
        let mut rest = frames;
        while let Some(first) = rest.first() {
            // Eight that look like a run are one in most cases.
            let eighth =
                rest.get(EIGHT - 1).map(|frame| frame.number().wrapping_sub(first.number()));
            let run = if eighth == Some(EIGHT as u64 - 1) { self.share_run(rest) } else { 0 };
            let done = if run == 0 { self.share_some(rest) } else { run };
            if done == 0 {
                if let Err(error) = self.share(*first) {
                    self.unshare(frames, frames.len() - rest.len());
                    return Err(error);
                }
            }
            rest = rest.get(done.max(1)..).unwrap_or_default();
        }
        Ok(())
    }

    /// As many of the first `frames` as follow each other in one chunk, by eights.
    #[inline(never)] // needs all registers
    fn share_run(&self, frames: &[Frame]) -> usize {
        let Some(mut next) = frames.first().map(|frame| frame.number()) else { return 0 };
        let Some((first, entries)) = self.chunk(next) else { return 0 };
        let entries = entries.get((next - first) as usize..).unwrap_or_default();
        let start = next;
        for (frames, entries) in frames.chunks_exact(EIGHT).zip(entries.chunks_exact(EIGHT)) {
            let (Ok(frames), Ok(entries)) =
                (<&[Frame; EIGHT]>::try_from(frames), <&[AtomicU32; EIGHT]>::try_from(entries))
            else {
                break;
            };
            let follows = |place: usize| frames[place].number() == next + place as u64;
            // One question for all eight.
            let states = entries.iter().map(|state| state.load(Relaxed));
            if !(0..EIGHT).all(follows) || !may_all_share(states) {
                break;
            }
            for entry in entries {
                entry.fetch_add(1, Relaxed);
            }
            next += EIGHT as u64;
        }
        (next - start) as usize
    }

    /// As many of the first `frames` as lie in one chunk, in any order.
    #[inline(never)] // needs all registers
    fn share_some(&self, frames: &[Frame]) -> usize {
        let chunk = frames.first().and_then(|frame| self.chunk(frame.number()));
        let Some((first, entries)) = chunk else { return 0 };
        let share = |frame: &Frame| {
            let entry = entries.get(frame.number().wrapping_sub(first) as usize);
            let may = |entry: &&AtomicU32| may_share(entry.load(Relaxed));
            entry.filter(may).map(|entry| entry.fetch_add(1, Relaxed)).is_some()
        };
        frames.iter().position(|frame| !share(frame)).unwrap_or(frames.len())
    }

    /// Takes back what was given to the first `count` frames. Nobody becomes the last owner by
    /// that: whoever asked for a share holds one.
    #[cold]
    fn unshare(&self, frames: &[Frame], count: usize) {
        for frame in frames.iter().take(count) {
            let _ = self.release(*frame);
        }
    }
}

impl<C: Cpus, M: PhysMap, R: RawMutex> FrameAllocator<'_, C, M, R> {
    /// One owner less for the allocation that begins at `frame`; frees it when the caller was the
    /// only one, and says whether it did.
    ///
    /// # Errors
    /// [`FreeError`]; nothing has changed then.
    #[inline]
    pub fn release(&self, frame: Frame) -> Result<bool, FreeError> {
        if self.table.is_single(frame) {
            return self.free_single(frame).map(|()| true);
        }
        self.release_slow(frame)
    }

    fn release_slow(&self, frame: Frame) -> Result<bool, FreeError> {
        match self.table.release(frame) {
            Ok(false) => Ok(false),
            Ok(true) => match self.table.begins(frame) {
                Some(block) => self.free_range(block.range).map(|()| true),
                None => Err(FreeError::DoubleFree(frame)),
            },
            Err(TableError::NotManaged(frame)) => Err(FreeError::NotManaged(frame)),
            Err(TableError::NoTable) => self.free_range(FrameRange::single(frame)).map(|()| true),
            Err(_) => Err(self.explain(&self.core.lock(), frame)),
        }
    }

    /// One owner less for each allocation that begins at one of `frames`; frees those whose only
    /// owner the caller was, and returns how many that were. What an address space calls for the
    /// pages that it no longer shows: any order, any mixture of shared and private ones; rising
    /// runs are fastest.
    ///
    /// ```text
    /// // pagoda_paging::Platform
    /// fn release_pages(&self, pages: &[Frame]) {
    ///     self.frames.release_many(pages).unwrap_or_else(|(place, error)| panic!("{place}: {error}"));
    /// }
    /// // pagoda_vm::VmPlatform
    /// fn share_many(&self, pages: &[Frame]) {
    ///     self.frames.table().share_many(pages).unwrap_or_else(|error| panic!("{error}"));
    /// }
    /// ```
    ///
    /// # Errors
    /// The place in `frames` of the first one that is wrong, and why. Those before it are done,
    /// it and those after it are untouched.
    pub fn release_many(&self, frames: &[Frame]) -> Result<usize, (usize, FreeError)> {
        let pin = self.cpus.pin();
        let stock = self.stock(&pin);
        let (mut freed, mut next) = (0, 0);
        while let Some(rest) = frames.get(next..).filter(|rest| !rest.is_empty()) {
            let ours = |error| (next, error);
            let (shared, kept) = self.release_some(stock, rest).map_err(ours)?;
            freed += kept;
            next += shared + kept;
            // A full magazine, a larger block, or a mistake.
            if let Some(&frame) = rest.first().filter(|_| shared + kept == 0) {
                freed += usize::from(self.release(frame).map_err(|error| (next, error))?);
                next += 1;
            }
        }
        Ok(freed)
    }

    /// Lets go of the run that `frames` begins with, as far as it is alike: frames that have other
    /// owners, or frames that have none and find room. Returns how many of the former and of the
    /// latter that were; none if the first frame is neither.
    #[inline]
    fn release_some(
        &self,
        stock: Option<&Stock>,
        frames: &[Frame],
    ) -> Result<(usize, usize), FreeError> {
        let Some(&frame) = frames.first() else { return Ok((0, 0)) };
        let Some((first, entries)) = self.table.chunk(frame.number()) else { return Ok((0, 0)) };
        let run = entries.get((frame.number() - first) as usize..).unwrap_or_default();
        let alone = alone(run, frames);
        if alone == 0 {
            return Ok((leave(first, entries, frames), 0));
        }
        let entries = run.get(..alone).unwrap_or_default();
        let Some(stock) = stock else { return Ok((0, 0)) };
        let mobility = self.mobility(frame.number());
        let way = self.caches.way(stock, mobility, frame.number());
        if way == Way::Basket && alone >= DIRECT {
            return self.give_run(frame, entries).map(|()| (0, alone));
        }
        Ok((0, self.keep_run(stock, stock.of(mobility).all_room(way), frame, entries)))
    }

    /// The frames from `first` on, whose entries these are, go to the magazine, as far as there is
    /// room; the lowest one last. Returns how many did.
    #[inline]
    fn keep_run(
        &self,
        stock: &Stock,
        room: Room<'_>,
        first: Frame,
        entries: &[AtomicU32],
    ) -> usize {
        let count = entries.len().min(room.len());
        if count == 0 || stock.wanted.load(Relaxed) != 0 {
            return 0;
        }
        self.poison(FrameRange::new(first, count as u64).unwrap_or_default());
        let first = first.number();
        room.fill(entries.iter().take(count).rev().zip((first..first + count as u64).rev()).map(
            |(entry, number)| {
                entry.store(CACHED, Release);
                number
            },
        ));
        count
    }

    /// The frames from `first` on, whose entries these are, go to the core.
    fn give_run(&self, first: Frame, entries: &[AtomicU32]) -> Result<(), FreeError> {
        let range = FrameRange::new(first, entries.len() as u64).unwrap_or_default();
        self.give_checked(&mut self.core.lock(), range, |_| {
            entries.iter().for_each(|entry| entry.store(0, Release));
            Ok(())
        })
    }
}

/// How many of the first `frames` follow each other, as `entries` do, and have one owner, the
/// caller, and no mapping.
#[inline]
fn alone(entries: &[AtomicU32], frames: &[Frame]) -> usize {
    let Some(first) = frames.first().map(|frame| frame.number()) else { return 0 };
    // Acquire: the last owner sees what the others did before they left.
    let alone = |entry: &AtomicU32| single(entry.load(Acquire));
    let mut next = first;
    for (frames, entries) in frames.chunks_exact(4).zip(entries.chunks_exact(4)) {
        let ([f0, f1, f2, f3], [e0, e1, e2, e3]) = (frames, entries) else { break };
        let follow = f0.number() == next
            && f1.number() == next + 1
            && f2.number() == next + 2
            && f3.number() == next + 3;
        if !(follow && alone(e0) && alone(e1) && alone(e2) && alone(e3)) {
            break;
        }
        next += 4;
    }
    let done = (next - first) as usize;
    let rest = frames.iter().zip(entries).skip(done);
    done + rest.zip(next..).take_while(|((f, e), next)| f.number() == *next && alone(e)).count()
}

/// One owner less for as many of the first `frames` as lie in the chunk of `entries`, which begins at
/// frame `first`, and have other owners; returns how many.
#[inline(never)] // needs all registers
fn leave(first: u64, entries: &[AtomicU32], frames: &[Frame]) -> usize {
    let leave = |frame: &Frame| {
        let entry = entries.get(frame.number().wrapping_sub(first) as usize);
        entry.is_some_and(leave_one)
    };
    frames.iter().position(|frame| !leave(frame)).unwrap_or(frames.len())
}

/// One owner less, if there are others.
#[inline]
fn leave_one(entry: &AtomicU32) -> bool {
    let mut state = entry.load(Acquire);
    while state & HEAD != 0 && others(state) != 0 {
        match entry.compare_exchange_weak(state, state - 1, AcqRel, Acquire) {
            Ok(_) => return true,
            Err(now) => state = now,
        }
    }
    false
}
