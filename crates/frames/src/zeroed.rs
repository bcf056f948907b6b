//! Zeroed frames ahead of time.
//!
//! A CPU with nothing to do fills the pool, batch by batch ([`FrameAllocator::fill_zeroed`]); a
//! request for one zeroed frame is served from the CPU's clean stack, which takes its batches from
//! the pool. When there are none, the frame is zeroed on the spot. Zeroed frames are stock like any
//! other: when memory is short they go back to the core, and are ordinary frames again.
#![allow(unsafe_code)] // writes zeroes through the `PhysMap`

use core::ptr;

use lock_api::RawMutex;
use pagoda_addr::{Frame, FrameRange, PhysMap};
use pagoda_sync::Cpus;

use crate::magazine::{BATCH, Magazine, Shelf};
use crate::shim::Ordering::Relaxed;
use crate::{
    AllocError, Class, Corruption, FrameAllocator, Kind, Mobility, OwnedFrames, ZeroStats,
};

/// Batches that must be free above the reserve before any are kept zeroed.
const PLENTY: u64 = 16;

impl<C: Cpus, M: PhysMap, R: RawMutex> FrameAllocator<'_, C, M, R> {
    /// One frame full of zeroes.
    pub(crate) fn alloc_clean(
        &self,
        kind: Kind,
        class: Class,
        mobility: Mobility,
    ) -> Result<OwnedFrames, AllocError> {
        let pin = self.cpus.pin();
        if let Some(stock) = self.stock(&pin) {
            let magazine = stock.of(mobility);
            if stock.wanted.load(Relaxed) == 0 {
                let pool = self.caches.pool(mobility);
                if let Some(frame) = magazine.pop_clean().or_else(|| load_clean(magazine, pool)) {
                    magazine.served.store(magazine.served.load(Relaxed) + 1, Relaxed);
                    let number = self.hand_out(frame, kind)?;
                    let frame = Frame::new(number).unwrap_or_default();
                    return Ok(OwnedFrames::new(FrameRange::single(frame)));
                }
            }
            magazine.missed.store(magazine.missed.load(Relaxed) + 1, Relaxed);
        }
        drop(pin);
        let owned = self.alloc_single(kind, class, mobility)?;
        self.zero(owned.range());
        Ok(owned)
    }

    pub(crate) fn zero(&self, range: FrameRange) {
        let first = self.map().ptr(range.start().start());
        // SAFETY: the frames are managed memory that was taken from the core and has no owner but
        // the caller; `PhysMap` gives consecutive pointers for consecutive managed frames.
        unsafe { ptr::write_bytes(first, 0, range.bytes() as usize) };
    }

    /// Zeroes one batch of frames for the pool; to be called again and again while there is nothing
    /// better to do. False when the pool is full, or memory is not plentiful.
    ///
    /// # Errors
    /// [`Corruption`]: a frame in the stock was tampered with.
    pub fn fill_zeroed(&self) -> Result<bool, Corruption> {
        // For those who waited for zeroes more often.
        let [unmovable, movable] = Mobility::ALL.map(|mobility| self.missed(mobility));
        let first = if movable > unmovable { Mobility::Movable } else { Mobility::Unmovable };
        let wanted = |mobility| mobility == first || self.missed(mobility) > 0;
        let with_room =
            |&mobility: &Mobility| wanted(mobility) && self.caches.pool(mobility).has_room();
        match [first, first.other()].into_iter().find(with_room) {
            Some(mobility) => self.fill_pool(mobility),
            None => Ok(false),
        }
    }

    fn missed(&self, mobility: Mobility) -> u64 {
        self.caches.used().map(|stock| stock.of(mobility).missed.load(Relaxed)).sum()
    }

    fn fill_pool(&self, mobility: Mobility) -> Result<bool, Corruption> {
        let pool = self.caches.pool(mobility);
        let mut batch = [0; BATCH];
        let mut count = 0;
        {
            let mut core = self.core.lock();
            let least = self.reserve.load(Relaxed).saturating_add(PLENTY * BATCH as u64);
            if core.free_frames() < least || self.caches.failing.now() {
                return Ok(false);
            }
            pool.announce();
            let node = self.here();
            let claimed = self.claim_lowest(&mut core, BATCH, node, mobility, |frame| {
                batch[count] = frame;
                count += 1;
            });
            claimed.inspect_err(|_| pool.renounce())?;
        }
        let full = count == BATCH;
        if full {
            let frames = batch.iter().filter_map(|&number| Frame::new(number));
            frames.for_each(|frame| self.zero(FrameRange::single(frame)));
        }
        if full && !self.caches.failing.now() && pool.put_announced(&batch) {
            return Ok(true);
        }
        pool.renounce();
        let back = batch.into_iter().take(count);
        self.bring_back(&mut self.core.lock(), back).map(|()| false)
    }

    /// How well the pool of zeroed frames serves.
    pub fn zero_stats(&self) -> ZeroStats {
        let pooled = Mobility::ALL.map(|mobility| self.caches.pool(mobility).count());
        let mut stats = ZeroStats { pooled: pooled.iter().sum(), ..ZeroStats::default() };
        for magazine in self.caches.used().flat_map(|stock| stock.both()) {
            stats.pooled += magazine.clean_count();
            stats.served += magazine.served.load(Relaxed);
            stats.missed += magazine.missed.load(Relaxed);
        }
        stats
    }
}

#[cold]
fn load_clean<R: RawMutex>(magazine: &Magazine, pool: &Shelf<'_, R>) -> Option<u64> {
    let batch = pool.take()?;
    magazine.load_clean(&batch);
    magazine.pop_clean()
}
