//! How short memory is, and who is asked to do something about it.
//!
//! Two ways: a host's reclaimer asks from time to time ([`FrameAllocator::pressure`]), and whoever
//! needs frames now brings somebody along who can free some
//! ([`FrameAllocator::alloc_reclaiming`]). Nobody is called from within an allocation, or with a lock
//! held.

use lock_api::RawMutex;
use pagoda_addr::PhysMap;
use pagoda_sync::Cpus;

use crate::shim::Ordering::Relaxed;
use crate::{
    AllocError, Blame, FrameAllocator, OwnedFrames, Pressure, Request, Shortage, Watermarks,
};

/// So often a request is tried again before it is refused although frames were freed.
const TRIES: u32 = 16;

impl<C: Cpus, M: PhysMap, R: RawMutex> FrameAllocator<'_, C, M, R> {
    /// As [`alloc`](Self::alloc); where that would be refused for want of memory, `reclaim` is told,
    /// with no lock held and the CPU not pinned, frees what it can, and returns how many frames that
    /// were. It may free by this allocator and allocate with
    /// [`Class::Reserve`](crate::Class::Reserve).
    ///
    /// # Errors
    /// As `alloc`, when `reclaim` returned 0, or has been called sixteen times.
    pub fn alloc_reclaiming(
        &self,
        request: Request,
        mut reclaim: impl FnMut(Shortage) -> u64,
    ) -> Result<OwnedFrames, AllocError> {
        let mut tries = 0;
        loop {
            let error = match self.alloc(request) {
                Err(error) if error.blame() == Blame::Exhaustion && tries < TRIES => error,
                done => return done,
            };
            let marks = self.watermarks();
            let goal = marks.high.max(marks.low).max(marks.min).saturating_add(request.count);
            let stats = self.stats();
            let wanted = goal.saturating_sub(stats.free + stats.cached).max(1);
            if reclaim(Shortage { error, wanted, tries }) == 0 {
                return Err(error);
            }
            tries += 1;
        }
    }

    /// Sets the levels; `min` is the reserve as well.
    pub fn set_watermarks(&self, marks: Watermarks) {
        self.set_reserve(marks.min);
        self.low.store(marks.low, Relaxed);
        self.high.store(marks.high, Relaxed);
    }

    /// The levels.
    pub fn watermarks(&self) -> Watermarks {
        let [min, low, high] =
            [&self.reserve, &self.low, &self.high].map(|mark| mark.load(Relaxed));
        Watermarks { min, low, high }
    }

    /// How short memory is. Frames in caches count as free: they can be had. For a host's reclaimer
    /// to ask, after a refill or from time to time; nobody is called from within an allocation.
    pub fn pressure(&self) -> Pressure {
        let stats = self.stats();
        let (free, marks) = (stats.free + stats.cached, self.watermarks());
        if free >= marks.low.max(marks.min) {
            return Pressure::None;
        }
        let wanted = marks.high.max(marks.low).max(marks.min) - free;
        if free <= marks.min { Pressure::Critical { wanted } } else { Pressure::Low { wanted } }
    }
}
