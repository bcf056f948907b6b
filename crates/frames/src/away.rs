//! Memory that comes and goes: hot-added ranges, and ranges that are taken off line.
//!
//! All memory that may ever be there is named at setup. What is not there yet is taken off line at
//! once, before anybody asks for frames, which touches neither it nor its part of the frame table;
//! when it arrives, it is brought on line. A range that is to leave is taken off line step by step:
//! each call takes what is free, so that nobody else gets it, and names what is not; the owner moves
//! that, and calls again, until nothing is left. What is freed meanwhile is not used again: while a
//! range is *leaving*, every freed frame goes by way of the basket, and what reaches the core of the
//! range is taken there.
//!
//! *captured*: a frame that is off line is taken in the bitmap and neither cached nor part of an
//! allocation in the table; it counts as neither free nor used, nor to the total.

use lock_api::RawMutex;
use pagoda_addr::{Frame, FrameRange, PhysMap};
use pagoda_sync::Cpus;

use crate::bitmap::Core;
use crate::places::{CHUNK, CHUNK_SHIFT};
use crate::{AllocError, Allocation, FrameAllocator, Mobility, OfflineError};

/// So many ranges can be off line, or on their way, at once.
pub const MAX_OFFLINE: usize = 16;

/// A range that is off line or on its way.
#[derive(Clone, Copy)]
struct Gone {
    range: FrameRange,
    captured: u64,
}

/// All of them.
#[derive(Default)]
pub(crate) struct Away {
    list: [Option<Gone>; MAX_OFFLINE],
    /// Some are not captured entirely.
    pub(crate) leaving: bool,
}

impl Away {
    /// The place of exactly this range, or an empty one.
    fn place(&self, range: FrameRange) -> Result<usize, OfflineError> {
        let mut others = self.list.iter().flatten().map(|gone| gone.range);
        if let Some(other) = others.find(|other| *other != range && other.overlaps(range)) {
            return Err(OfflineError::Overlaps(other));
        }
        let known = self.list.iter().position(|slot| slot.is_some_and(|gone| gone.range == range));
        let place = known.or_else(|| self.list.iter().position(Option::is_none));
        place.ok_or(OfflineError::TooMany)
    }

    fn set(&mut self, place: usize, gone: Option<Gone>) {
        if let Some(slot) = self.list.get_mut(place) {
            *slot = gone;
        }
        let leaving = |gone: &Gone| gone.captured < gone.range.count();
        self.leaving = self.list.iter().flatten().any(leaving);
    }
}

impl Core<'_> {
    /// Takes every free frame of `start..end`, which lies in managed memory; returns how many.
    fn capture(&mut self, start: usize, end: usize) -> u64 {
        let before = self.free_frames();
        for chunk in start >> CHUNK_SHIFT..end.div_ceil(CHUNK) {
            let (base, mobility) = (chunk << CHUNK_SHIFT, self.mobility(chunk));
            let (mut next, after) = (start.max(base), end.min(base + CHUNK));
            while let Some(free) = self.first_other(next, after, false) {
                next = self.first_other(free, after, true).unwrap_or(after);
                self.take(free, next - free, mobility);
            }
        }
        let captured = before - self.free_frames();
        self.total_frames -= captured;
        captured
    }

    /// Frames of `start..end` just came back: takes those that are to leave.
    #[inline]
    pub(crate) fn recapture(&mut self, start: usize, end: usize) {
        if self.away.leaving {
            self.recapture_now(start, end);
        }
    }

    #[cold]
    fn recapture_now(&mut self, start: usize, end: usize) {
        for place in 0..MAX_OFFLINE {
            let Some(gone) = self.away.list[place] else { continue };
            let Some(first) = self.directory.index(gone.range.start().number()) else { continue };
            let after = first + gone.range.count() as usize;
            let (first, after) = (first.max(start), after.min(end));
            if first < after {
                let captured = gone.captured + self.capture(first, after);
                self.away.set(place, Some(Gone { captured, ..gone }));
            }
        }
    }
}

impl<C: Cpus, M: PhysMap, R: RawMutex> FrameAllocator<'_, C, M, R> {
    /// Takes what is free of `range` off line, and tells `each` which allocations are in the way,
    /// and whether they asked for movable frames: whoever moves them elsewhere and frees them calls
    /// again. Returns how many frames are still in use; at 0 the range is off line. Some of them
    /// may be in the magazines of other CPUs, which were asked to give them back.
    ///
    /// `each` is called with no lock held. O(frames) while something is in the way, else O(chunks).
    ///
    /// # Errors
    /// [`OfflineError`]; nothing has changed then.
    pub fn offline(
        &self,
        range: FrameRange,
        mut each: impl FnMut(Allocation, Mobility),
    ) -> Result<u64, OfflineError> {
        if range.is_empty() {
            return Err(OfflineError::Empty);
        }
        if !self.table.is_present() {
            return Err(OfflineError::NoTable);
        }
        // Evidence of corruption is left to whoever allocates next.
        let _ = self.drain_all(&self.cpus.pin());
        let left = {
            let mut core = self.core.lock();
            if let Some(frame) = core.directory.first_foreign(range) {
                return Err(OfflineError::NotManaged(frame));
            }
            let start = range.start();
            let index = core.directory.index(start.number());
            let index = index.ok_or(OfflineError::NotManaged(start))?;
            let place = core.away.place(range)?;
            if self.caches.failing.now() {
                return Err(OfflineError::TooMany);
            }
            let captured = core.capture(index, index + range.count() as usize);
            let captured = core.away.list[place].map_or(0, |gone| gone.captured) + captured;
            core.away.set(place, Some(Gone { range, captured }));
            // What leaves is not recycled; refills leave the hints alone from now on.
            self.caches.forget_hints();
            range.count() - captured
        };
        if left > 0 {
            self.obstacles(range, |allocation| {
                each(allocation, self.mobility(allocation.range.start().number()));
            });
        }
        Ok(left)
    }

    /// Brings a range back that was taken off line, or was on its way; returns how many frames are
    /// free again. For a hot-added range: its memory and its part of the table are there now.
    ///
    /// # Errors
    /// [`OfflineError::NotOffline`]; nothing has changed then.
    pub fn online(&self, range: FrameRange) -> Result<u64, OfflineError> {
        let mut core = self.core.lock();
        let places = 0..MAX_OFFLINE;
        let known = places.into_iter().find_map(|place| {
            core.away.list[place]
                .filter(|gone| gone.range == range)
                .map(|gone| (place, gone.captured))
        });
        let Some((place, captured)) = known else { return Err(OfflineError::NotOffline(range)) };
        core.away.set(place, None);
        if captured == range.count() {
            self.bring_online(&mut core, range);
        } else {
            let mut next = range.start();
            let mut block = self.table.find(next);
            while next.number() < range.end_number() {
                let after = match block {
                    Some(block) => block.range.end_number(),
                    None => next.number() + 1,
                };
                if block.is_none() && !self.table.is_cached(next) {
                    self.bring_online(&mut core, FrameRange::single(next));
                }
                let Some(frame) = Frame::new(after) else { break };
                next = frame;
                block = self.table.begins(next);
            }
        }
        core.total_frames += captured;
        Ok(captured)
    }

    /// Captured frames are free again; free ones stay what they are.
    fn bring_online(&self, core: &mut Core<'_>, range: FrameRange) {
        let Some(index) = core.directory.index(range.start().number()) else { return };
        let count = range.count() as usize;
        if core.first_other(index, index + count, false).is_none() {
            core.give(index, count);
            let mobility = core.mobility(index >> CHUNK_SHIFT);
            self.caches.lower_hint(mobility, range.start().number());
        }
    }

    /// Empties a 2 MiB block of movable frames: takes what is free of it, so that nobody moves in, and
    /// tells `mover` of each allocation that stands in it. Whoever holds that one allocates
    /// elsewhere, copies, changes what points to it, frees it, and says true; or says false, and the
    /// block stays as it is. `mover` is called with no lock held. Without a table nobody can be
    /// named, and nothing is done.
    ///
    /// Returns the block's frames, which are free again afterwards, in one piece unless somebody else
    /// was quicker.
    ///
    /// # Errors
    /// [`AllocError::Fragmented`]: no block is broken, or somebody in it did not move.
    pub fn empty_block(
        &self,
        mut mover: impl FnMut(Allocation) -> bool,
    ) -> Result<FrameRange, AllocError> {
        let Some((block, _)) = self.block_to_empty().filter(|_| self.table.is_present()) else {
            return Err(AllocError::Fragmented);
        };
        let refused = |_| AllocError::Fragmented;
        let mut stays = false;
        self.offline(block, |allocation, _| stays = stays || !mover(allocation))
            .map_err(refused)?;
        let left = self.offline(block, |_, _| ());
        self.online(block).map_err(refused)?;
        if left == Ok(0) { Ok(block) } else { Err(AllocError::Fragmented) }
    }
}
