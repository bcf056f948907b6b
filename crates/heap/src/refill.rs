//! When a magazine is empty: from the depot, from the shelf, from the pool, from the source.
//!
//! Here and in `home`, `pages` and `drain`, functions take the central lock or a depot's, never
//! both, and hold none while the source gives or takes pages or the report hook runs.
#![allow(unsafe_code)] // moves raw blocks about

use core::alloc::Layout;
use core::ptr::{NonNull, with_exposed_provenance_mut};
use core::sync::atomic::Ordering;

use lock_api::RawMutex;
use pagoda_sync::Cpus;

use crate::chunk::{CHUNK, GRANULE};
use crate::classes::{Place, SIZES, SLAB_CLASSES, Tag, class_of, place};
use crate::heap::State;
use crate::magazine::{Batch, UNIT, batch as batch_of};
use crate::slab::{Slab, capacity, span_for};
use crate::{Heap, HeapError, Misuse, MisuseKind, PageSource, Report};

/// Blocks of a middle class that a refill takes: each costs a search, and they are large.
const MIDDLE_REFILL: usize = 4;

impl<S: PageSource, C: Cpus, R: RawMutex, P: Report> Heap<S, C, R, P> {
    /// A block of a class whose magazine is empty.
    #[cold]
    #[inline(never)]
    pub(crate) fn alloc_slow(&self, class: u8, layout: Layout) -> Option<NonNull<u8>> {
        // A pointer and nothing else, so that the fast path's answer stays in a register; memory is
        // all that can be wanting here.
        match self.guarded_shelf(class) {
            Some(shelf) => {
                self.honour();
                self.take_object(shelf, layout.size(), None).ok()
            }
            None => self.sample(class, layout).or_else(|| self.receive(class)).or_else(|| {
                self.honour();
                self.refill(class).ok()
            }),
        }
    }

    /// A block, and more for this CPU's magazine, from the depot, where that is all there is to do:
    /// nobody holds the depot, it has blocks, and no drain is due. Budget: as on the way back.
    #[inline]
    fn receive(&self, class: u8) -> Option<NonNull<u8>> {
        let at = usize::from(class);
        let pin = self.cpus.pin();
        let area = self.area(&pin).filter(|area| self.is_drained(area))?;
        let magazine = area.of(class);
        // Tried, not waited for, while pinned.
        let mut depot = self.depots[at].try_lock().filter(|_| !self.failing.now())?;
        let count = magazine.receive(batch_of(at), &mut depot);
        if count == 0 {
            return None;
        }
        self.in_depots.fetch_sub(count * usize::from(SIZES[at]), Ordering::Relaxed);
        drop(depot);
        magazine.pop()
    }

    /// A block of a class, whatever its debug mode; a few more for the magazine.
    pub(crate) fn refill(&self, class: u8) -> Result<NonNull<u8>, HeapError> {
        let at = usize::from(class);
        let mut blocks = Batch::new();
        {
            let mut depot = self.depots[at].lock();
            let count = if self.failing.now() { 0 } else { batch_of(at) };
            blocks.extend(depot.pop(count));
            self.in_depots.fetch_sub(blocks.len() * usize::from(SIZES[at]), Ordering::Relaxed);
        }
        if blocks.len() == 0 {
            let most = batch_of(at).min(if at < SLAB_CLASSES { UNIT } else { MIDDLE_REFILL });
            self.obtain(|state, squeezed| self.gather(state, at, squeezed, most, &mut blocks))?;
        }
        let block = blocks.pop().ok_or(HeapError::OutOfPages)?;
        if blocks.len() != 0 {
            self.load(class, blocks);
        }
        Ok(block)
    }

    /// A block for records that nobody guards and nobody takes for a leak: one, and none for the
    /// magazine.
    pub(crate) fn record(&self, layout: Layout) -> Result<NonNull<u8>, HeapError> {
        let at = usize::from(class_of(layout).ok_or(HeapError::TooLarge)?);
        if self.failing.now() {
            return Err(HeapError::OutOfPages);
        }
        let mut block = Batch::new();
        self.obtain(|state, squeezed| self.gather(state, at, squeezed, 1, &mut block))?;
        block.pop().ok_or(HeapError::OutOfPages)
    }

    /// A block of unusual size or alignment.
    #[cold]
    #[inline(never)]
    pub(crate) fn alloc_odd(&self, layout: Layout, zeroed: bool) -> Result<NonNull<u8>, HeapError> {
        // What goes past the magazines is to be seen, too, by a host that asserts who may allocate.
        drop(self.cpus.pin());
        let mut soiled = usize::MAX;
        let block = match place(layout).ok_or(HeapError::TooLarge)? {
            Place::Run(order) => return self.alloc_large(layout, order, zeroed),
            Place::Class(class) => match self.pop(class) {
                Some(block) => block,
                None => self.alloc_slow(class, layout).ok_or(HeapError::OutOfPages)?,
            },
            Place::Pool(granules, align) => {
                let mut block = None;
                self.obtain(|state, _| {
                    let Some((chunk, from, bytes)) = state.pool.alloc_known(granules, align) else {
                        return false;
                    };
                    soiled = bytes;
                    let start = chunk.address(from);
                    self.set_tag(start, Tag::Pool);
                    state.unclassed += granules * GRANULE;
                    block = NonNull::new(with_exposed_provenance_mut(start));
                    true
                })?;
                block.ok_or(HeapError::OutOfPages)?
            }
        };
        if zeroed {
            // SAFETY: the block is the caller's, and holds the layout.
            unsafe { block.write_bytes(0, layout.size().min(soiled)) };
        }
        Ok(block)
    }

    /// Tries `attempt` under the lock until it succeeds: with what there is, with more chunks while
    /// the source has some, and with what all caches give back (`attempt` hears of it).
    fn obtain(&self, mut attempt: impl FnMut(&mut State, bool) -> bool) -> Result<(), HeapError> {
        let mut step = 0;
        loop {
            let (done, damage) = {
                let mut state = self.state.lock();
                let done = !self.failing.now() && attempt(&mut state, step != 0);
                (done, state.pool.damage.take())
            };
            if let Some(damage) = damage {
                let misuse = Misuse::at(MisuseKind::Damaged, damage.0);
                self.tell(Misuse { block: damage.0, ..misuse });
            }
            if done {
                return Ok(());
            }
            match self.take_chunk() {
                Ok((base, zero)) => {
                    let mut state = self.state.lock();
                    self.tag_all(base.as_ptr() as usize, CHUNK, Tag::Chunk);
                    // SAFETY: fresh pages of the right size, exposed.
                    unsafe { state.pool.add(base, zero) };
                }
                Err(_) if self.reclaim(step, CHUNK) => step += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Moves up to `most` free blocks of a class from its shelf or the pool into `blocks`; true when
    /// there is at least one.
    fn gather(
        &self,
        state: &mut State,
        class: usize,
        squeezed: bool,
        most: usize,
        blocks: &mut Batch,
    ) -> bool {
        if class >= SLAB_CLASSES {
            let granules = usize::from(SIZES[class]) / GRANULE;
            for _ in 0..most {
                let Some((chunk, from)) = state.pool.alloc(granules, 1) else { break };
                let start = chunk.address(from);
                self.set_tag(start, Tag::Class(class as u8));
                state.middle[class - SLAB_CLASSES] += 1;
                blocks.push(with_exposed_provenance_mut(start));
            }
            return blocks.len() != 0;
        }
        for _ in 0..most {
            match state.shelves[class].take(&mut state.dice) {
                Some(object) => blocks.push(object.as_ptr()),
                None if blocks.len() != 0 => break,
                None if self.add_slab(state, class, squeezed) => {}
                None => return false,
            }
        }
        // The first round may have gone into making the slab.
        if blocks.len() == 0 {
            if let Some(object) = state.shelves[class].take(&mut state.dice) {
                blocks.push(object.as_ptr());
            }
        }
        blocks.len() != 0
    }

    /// Makes a slab from the pool; false when the pool has no room.
    fn add_slab(&self, state: &mut State, class: usize, squeezed: bool) -> bool {
        let shelf = &mut state.shelves[class];
        let stride = shelf.stride;
        let used = |granules: usize| {
            span_for(capacity(granules * GRANULE, stride), stride).div_ceil(GRANULE).min(granules)
        };
        let want = shelf.span_wanted() / GRANULE;
        let least = if squeezed { span_for(1, stride).max(1024) } else { want * GRANULE / 2 };
        let found = state.pool.alloc_span(want, least.div_ceil(GRANULE), used);
        let Some((chunk, from, end)) = found else { return false };
        let (start, span) = (chunk.address(from), (end - from) * GRANULE);
        let Some(base) = NonNull::new(with_exposed_provenance_mut(start)) else { return false };
        self.tag_all(start, span, Tag::Class(class as u8));
        // SAFETY: the span is the pool's no more; it holds at least one object.
        let slab = unsafe { Slab::create(base, span, stride) };
        state.shelves[class].add(slab);
        true
    }

    /// Puts blocks into this CPU's magazine; what does not fit goes home.
    fn load(&self, class: u8, mut blocks: Batch) {
        self.open_area();
        {
            let pin = self.cpus.pin();
            if let Some(area) = self.area(&pin) {
                let magazine = area.of(class);
                while let Some(block) = blocks.pop() {
                    if self.failing.now() || magazine.push(block).is_err() {
                        blocks.push(block.as_ptr());
                        break;
                    }
                }
            }
        }
        self.flush(class, blocks);
    }
}
