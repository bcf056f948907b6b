//! Bringing home what the CPUs keep: on request, before idling, and before anything is refused (see
//! *Draining* in `caches.rs`).

use core::hint::spin_loop;

use lock_api::RawMutex;
use pagoda_addr::PhysMap;
use pagoda_sync::{Cpus, Pinned};

use crate::magazine::{ASKED, Shelf, Stock, UNUSED};
use crate::shim::Ordering::*;
use crate::{AllocError, Blame, Corruption, FrameAllocator, OwnedFrames, Request};

/// How long to wait for other CPUs to drain: a few microseconds.
const PATIENCE: usize = if cfg!(any(loom, miri)) { 1 } else { 2000 };

impl<'m, C: Cpus, M: PhysMap, R: RawMutex> FrameAllocator<'m, C, M, R> {
    /// Empties the magazine if somebody asked for it.
    #[inline]
    pub(crate) fn honour(&self, stock: &Stock) -> Result<(), Corruption> {
        if stock.wanted.load(Relaxed) == 0 {
            return Ok(());
        }
        self.drain(stock)
    }

    /// Empties every CPU's stock into the core.
    ///
    /// # Safety
    /// No other CPU is in a call of this allocator, nor enters one, until this returns.
    #[allow(unsafe_code)] // a promise about the other CPUs
    pub unsafe fn drain_stopped(&self) -> Result<(), Corruption> {
        self.caches.stocks.iter().try_for_each(|stock| self.drain(stock))
    }

    fn drain(&self, stock: &Stock) -> Result<(), Corruption> {
        if stock.wanted.load(Relaxed) == UNUSED {
            self.caches.note(stock);
        }
        let mut found = Ok(());
        for magazine in stock.both().iter().filter(|magazine| magazine.count() > 0) {
            let mut core = self.core.lock();
            found = found.and(self.bring_back(&mut core, magazine.empty_basket()));
            found = found.and(self.bring_back(&mut core, magazine.empty_stacks()));
        }
        if stock.wanted.load(Relaxed) != 0 {
            // Release: who reads the zero finds the frames in the core.
            stock.wanted.store(0, Release);
        }
        found
    }

    /// Gives this CPU's stock back to all. To be called before the CPU goes idle or off line.
    ///
    /// # Errors
    /// [`Corruption`]: a frame in the stock was tampered with; it stays lost.
    pub fn drain_cpu(&self) -> Result<(), Corruption> {
        let pin = self.cpus.pin();
        let Some(stock) = self.stock(&pin) else { return Ok(()) };
        self.drain(stock)
    }

    /// Brings all stock back to the core that can be had; true if that was any.
    #[cold]
    pub(crate) fn drain_all(&self, pin: &Pinned<'_, C>) -> Result<bool, Corruption> {
        if self.caches.count() == 0 || self.caches.failing.now() {
            return Ok(false);
        }
        let mut found = Ok(());
        let own = self.stock(pin);
        if let Some(stock) = own {
            found = self.drain(stock);
        }
        while let Some(batch) = self.caches.shelves().find_map(Shelf::take) {
            found = found.and(self.bring_back(&mut self.core.lock(), batch));
        }
        let others =
            || self.caches.used().filter(|&other| own.is_none_or(|own| !core::ptr::eq(own, other)));
        others()
            .filter(|other| other.count() > 0)
            .for_each(|other| other.wanted.store(ASKED, Release));
        let mut patience = PATIENCE;
        for other in others() {
            while patience > 0 && other.wanted.load(Acquire) == ASKED {
                patience -= 1;
                spin_loop();
            }
        }
        found.map(|()| true)
    }

    /// Anything that does not come from a magazine.
    pub(crate) fn alloc_shared(&self, request: &Request) -> Result<OwnedFrames, AllocError> {
        let first = self.take(&mut self.core.lock(), request);
        match first {
            Err(error) if error.blame() == Blame::Exhaustion => {
                self.retry(&self.cpus.pin(), error, || self.take(&mut self.core.lock(), request))
            }
            done => done,
        }
    }

    pub(crate) fn alloc_shared_pinned(
        &self,
        pin: &Pinned<'_, C>,
        request: &Request,
    ) -> Result<OwnedFrames, AllocError> {
        let again = || self.take(&mut self.core.lock(), request);
        again().or_else(|error| self.retry(pin, error, again))
    }

    /// Once more after draining, if there was anything to drain.
    pub(crate) fn retry<T>(
        &self,
        pin: &Pinned<'_, C>,
        error: AllocError,
        again: impl FnOnce() -> Result<T, AllocError>,
    ) -> Result<T, AllocError> {
        // Under pressure nothing is recycled, until the next refill: freed frames go to the core.
        {
            let _core = self.core.lock();
            self.caches.forget_hints();
        }
        match self.drain_all(pin) {
            Ok(true) => again(),
            Ok(false) => Err(error),
            Err(found) => Err(AllocError::Corrupt(found)),
        }
    }
}
