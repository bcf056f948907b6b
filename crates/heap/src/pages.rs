//! Whole pages: runs, chunks on their way back, and the heap's own records.
#![allow(unsafe_code)] // takes and gives raw pages

use core::ptr::{NonNull, with_exposed_provenance_mut};
use core::sync::atomic::Ordering;

use lock_api::RawMutex;
use pagoda_addr::Order;
use pagoda_sync::Cpus;

use crate::chunk::{CHUNK, CHUNK_ORDER, Chunk, GRANULE};
use crate::classes::Tag;
use crate::source::TAG_SHIFT;
use crate::{Heap, HeapError, OutOfPages, PageSource, Report};

impl<S: PageSource, C: Cpus, R: RawMutex, P: Report> Heap<S, C, R, P> {
    pub(crate) fn alloc_run(&self, order: Order, zeroed: bool) -> Result<NonNull<u8>, HeapError> {
        let base = self.take_pages_hard(order, zeroed)?;
        let start = base.as_ptr() as usize;
        let mut state = self.state.lock();
        self.tag_run(start, order);
        state.runs += order.bytes() as usize;
        Ok(base)
    }

    /// Under the lock.
    pub(crate) fn tag_run(&self, start: usize, order: Order) {
        self.tag_all(start, order.bytes() as usize, Tag::RunInside);
        self.set_tag(start, Tag::Run);
        self.set_tag(start + (1 << TAG_SHIFT), Tag::RunOrder(order));
    }

    /// Pages from the source, after giving back what can be given back if that must be.
    pub(crate) fn take_pages_hard(
        &self,
        order: Order,
        zeroed: bool,
    ) -> Result<NonNull<u8>, HeapError> {
        let mut step = 0;
        loop {
            match self.take_pages(order, zeroed) {
                Err(_) if self.reclaim(step, order.bytes() as usize) => {
                    step += 1;
                    self.state.lock().pool.shrink();
                    self.give_retired();
                }
                outcome => return outcome,
            }
        }
    }

    pub(crate) fn take_pages(&self, order: Order, zeroed: bool) -> Result<NonNull<u8>, HeapError> {
        let pages = self.ask(order, || match zeroed {
            true => self.source.alloc_zeroed_pages(order).map(|pages| (pages, true)),
            false => self.source.alloc_pages(order).map(|pages| (pages, false)),
        });
        pages.map(|(base, _)| base)
    }

    /// Pages for a chunk, and whether they are known to be zero.
    pub(crate) fn take_chunk(&self) -> Result<(NonNull<u8>, bool), HeapError> {
        self.ask(CHUNK_ORDER, || self.source.alloc_known_pages(CHUNK_ORDER))
    }

    fn ask(
        &self,
        order: Order,
        source: impl FnOnce() -> Result<(NonNull<u8>, bool), OutOfPages>,
    ) -> Result<(NonNull<u8>, bool), HeapError> {
        let pages = if self.failing.now() { Err(OutOfPages) } else { source() };
        let (base, zero) = pages.map_err(|_| HeapError::OutOfPages)?;
        base.as_ptr().expose_provenance();
        self.taken.fetch_add(order.bytes() as usize, Ordering::Relaxed);
        Ok((base, zero))
    }

    pub(crate) fn give_pages(&self, base: NonNull<u8>, order: Order) {
        self.taken.fetch_sub(order.bytes() as usize, Ordering::Relaxed);
        self.given.fetch_add(order.bytes() as usize, Ordering::Relaxed);
        // SAFETY: taken with this order; the heap holds no block in it and has cleared its tags.
        unsafe { self.source.free_pages(base, order) };
    }

    /// Gives retired chunks back.
    pub(crate) fn give_retired(&self) {
        loop {
            let chunk = {
                let mut state = self.state.lock();
                state.pool.pop_retired()
            };
            let Some(chunk) = chunk else { return };
            self.give_pages(chunk.base(), CHUNK_ORDER);
        }
    }

    /// A block of the pool (*slab-end*: of at least a KiB) for the heap's own records. Does not ask
    /// the source.
    pub(crate) fn take_own(&self, bytes: usize) -> Option<NonNull<u8>> {
        if self.failing.now() {
            return None;
        }
        let granules = bytes.max(1 << TAG_SHIFT).div_ceil(GRANULE);
        let mut state = self.state.lock();
        let (chunk, from) = state.pool.alloc(granules, 1)?;
        let start = chunk.address(from);
        self.set_tag(start, Tag::Own);
        state.own += granules * GRANULE;
        NonNull::new(with_exposed_provenance_mut(start))
    }

    pub(crate) fn give_own(&self, place: NonNull<u8>) {
        let start = place.as_ptr() as usize;
        let mut state = self.state.lock();
        // SAFETY: records lie in a chunk; the lock is held.
        if let Some(chunk) = unsafe { Chunk::holding(start) } {
            let from = start % CHUNK / GRANULE;
            state.own -= (chunk.end_of(from) - from) * GRANULE;
            self.set_tag(start, Tag::Chunk);
            state.pool.free(chunk, from);
        }
    }
}
