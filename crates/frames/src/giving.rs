//! What comes back to the core directly: several frames at once, parts of allocations, and the
//! question whether the caller is right. Single frames go by way of the magazines (`caches.rs`).
//!
//! Invariant: nothing has changed when an error is returned.

use lock_api::RawMutex;
use pagoda_addr::{Frame, FrameRange, PhysMap};
use pagoda_sync::Cpus;

use crate::allocator::frame_at;
use crate::bitmap::Core;
use crate::places::{CHUNK, CHUNK_SHIFT};
use crate::{Corruption, FrameAllocator, FreeError, OwnedFrames};

impl<'m, C: Cpus, M: PhysMap, R: RawMutex> FrameAllocator<'m, C, M, R> {
    /// Takes back what an allocation returned.
    ///
    /// # Errors
    /// As [`free_range`](Self::free_range); the frames stay as they are then.
    #[inline(always)]
    pub fn free(&self, owned: OwnedFrames) -> Result<(), FreeError> {
        let range = owned.into_range();
        if range.count() == 1 { self.free_single(range.start()) } else { self.free_several(range) }
    }

    /// Takes back every allocation in `places`.
    ///
    /// # Errors
    /// The first error; that allocation's place is empty, those after it are untouched.
    pub fn free_bulk(&self, places: &mut [Option<OwnedFrames>]) -> Result<(), FreeError> {
        places.iter_mut().filter_map(Option::take).try_for_each(|owned| self.free(owned))
    }

    /// Takes back the frames of one or several adjacent whole allocations. For owners that remember
    /// frames by number; the range is checked against bitmap and table.
    ///
    /// # Errors
    /// [`FreeError`], which names the first frame that is wrong and why; nothing has changed then.
    pub fn free_range(&self, range: FrameRange) -> Result<(), FreeError> {
        // Without a table only the bitmap can tell whether the caller is right.
        if range.count() == 1 && self.table.is_present() {
            return self.free_single(range.start());
        }
        self.free_several(range)
    }

    #[inline(never)]
    fn free_several(&self, range: FrameRange) -> Result<(), FreeError> {
        self.give(&mut self.core.lock(), range)
    }

    /// Takes back some frames of an allocation; the rest stays with its owner, as one or two
    /// allocations that know the same owner, kind and flags.
    ///
    /// # Errors
    /// As [`free_range`](Self::free_range).
    pub fn free_part(&self, range: FrameRange) -> Result<(), FreeError> {
        let mut core = self.core.lock();
        if range.is_empty() {
            return Err(FreeError::Empty);
        }
        if self.table.is_present() {
            self.carve_out(&core, range)?;
        }
        self.give(&mut core, range)
    }

    /// Makes `range`, which lies in one allocation, an allocation of its own.
    fn carve_out(&self, core: &Core<'m>, range: FrameRange) -> Result<(), FreeError> {
        let found = self.table.find(range.start());
        let mut block = found.ok_or_else(|| self.explain(core, range.start()))?;
        if range.end_number() > block.range.end_number() {
            return Err(FreeError::PartOf { frame: range.start(), block: block.range });
        }
        if let Some(Err(error)) = self.table.check_free(block.range.start()) {
            return Err(error);
        }
        if block.range.start() < range.start() {
            let before = range.start().number() - block.range.start().number();
            self.table.cut(&block, before).map_err(FreeError::Corrupt)?;
            let second = self.table.begins(range.start());
            block = second.ok_or_else(|| self.explain(core, range.start()))?;
        }
        if range.count() < block.range.count() {
            self.table.cut(&block, range.count()).map_err(FreeError::Corrupt)?;
        }
        Ok(())
    }

    /// Cuts an allocation in two: the first `at` frames, and the rest.
    ///
    /// # Errors
    /// The allocation itself, unchanged, when one part would be empty.
    pub fn split(
        &self,
        owned: OwnedFrames,
        at: u64,
    ) -> Result<(OwnedFrames, OwnedFrames), OwnedFrames> {
        let range = owned.range();
        let low = FrameRange::new(range.start(), at);
        let high = range.start().checked_add(at);
        let high = high.and_then(|start| FrameRange::new(start, range.count().checked_sub(at)?));
        let (Some(low), Some(high)) = (low, high) else { return Err(owned) };
        if low.is_empty() || high.is_empty() {
            return Err(owned);
        }
        let _core = self.core.lock();
        if let Some(block) = self.table.begins(range.start()) {
            if self.table.cut(&block, at).is_err() {
                return Err(owned);
            }
        }
        let _ = owned.into_range();
        Ok((OwnedFrames::new(low), OwnedFrames::new(high)))
    }

    /// Makes every frame of the allocation `range` an allocation of its own, with the same kind,
    /// flags, owners and mappings: for a large page that is mapped as small ones from now on. O(frames).
    ///
    /// # Errors
    /// [`FreeError::DoubleFree`], [`FreeError::PartOf`] or [`FreeError::NotManaged`] when `range` is
    /// not exactly one allocation; nothing has changed then.
    pub fn shatter(&self, range: FrameRange) -> Result<(), FreeError> {
        let core = self.core.lock();
        match self.table.begins(range.start()) {
            Some(block) if block.range == range => {
                self.table.shatter(&block).map_err(FreeError::Corrupt)
            }
            Some(block) => Err(FreeError::PartOf { frame: range.start(), block: block.range }),
            None => Err(self.explain(&core, range.start())),
        }
    }

    pub(crate) fn give(&self, core: &mut Core<'m>, range: FrameRange) -> Result<(), FreeError> {
        if range.is_empty() {
            return Err(FreeError::Empty);
        }
        let (frame, count) = (range.start(), range.count() as usize);
        let index = core.directory.index(frame.number()).ok_or(FreeError::NotManaged(frame))?;
        let with_table = self.table.is_present();
        if with_table {
            self.each_head(core, range, |_| ())?;
        } else if core.is_taken_whole(index, count) {
            // Managed and taken, all of it.
        } else if let Some(frame) = core.directory.first_foreign(range) {
            return Err(FreeError::NotManaged(frame));
        } else if let Some(free) = core.first_other(index, index + count, false) {
            return Err(FreeError::DoubleFree(frame_at(core, free)));
        }
        self.give_checked(core, range, |core| {
            if with_table {
                self.each_head(core, range, |head| self.table.unclaim(head))?;
            }
            Ok(())
        })
    }

    /// Puts frames back that the table says may be; `unclaim` takes them out of it.
    #[inline]
    pub(crate) fn give_checked(
        &self,
        core: &mut Core<'m>,
        range: FrameRange,
        unclaim: impl FnOnce(&Core<'m>) -> Result<(), FreeError>,
    ) -> Result<(), FreeError> {
        let (frame, count) = (range.start(), range.count() as usize);
        let index = core.directory.index(frame.number()).ok_or(FreeError::NotManaged(frame))?;
        let whole = core.is_taken_whole(index, count);
        if !whole {
            if let Some(free) = core.first_other(index, index + count, false) {
                let frame = frame_at(core, free);
                return Err(FreeError::Corrupt(Corruption::OwnedButFree { frame }));
            }
        }
        unclaim(core)?;
        self.poison(range);
        if whole {
            core.give_whole(index, count);
        } else {
            core.give(index, count);
        }
        if count < CHUNK {
            let mobility = core.mobility(index >> CHUNK_SHIFT);
            self.caches.lower_hint(mobility, frame.number());
        }
        core.recapture(index, index + count);
        Ok(())
    }

    /// Calls `each` for the head of every allocation in `range`, which must be made of whole ones
    /// that may be given back.
    pub(crate) fn each_head(
        &self,
        core: &Core<'m>,
        range: FrameRange,
        mut each: impl FnMut(Frame),
    ) -> Result<(), FreeError> {
        let mut next = range.start();
        loop {
            let block = match self.table.check_free(next) {
                Some(block) => block?.range,
                None => return Err(self.explain(core, next)),
            };
            if block.end_number() > range.end_number() {
                return Err(FreeError::PartOf { frame: next, block });
            }
            each(next);
            match Frame::new(block.end_number()) {
                Some(after) if after.number() < range.end_number() => next = after,
                _ => return Ok(()),
            }
        }
    }

    /// Why no allocation begins at `frame`.
    #[cold]
    pub(crate) fn explain(&self, core: &Core<'m>, frame: Frame) -> FreeError {
        if core.directory.first_foreign(FrameRange::single(frame)).is_some() {
            return FreeError::NotManaged(frame);
        }
        match self.table.find(frame) {
            Some(block) => FreeError::PartOf { frame, block: block.range },
            None => FreeError::DoubleFree(frame),
        }
    }
}
