//! Behind the magazines: refill and flush, chunks and runs, drain and shrink.
//!
//! Every function here takes the central lock or a depot's, never both, and holds none while the
//! source gives or takes pages or the report hook runs.
#![allow(unsafe_code)] // moves raw blocks about

use core::alloc::Layout;
use core::ptr::{NonNull, null_mut, with_exposed_provenance_mut};
use core::sync::atomic::Ordering;

use lock_api::RawMutex;
use pagoda_addr::{Order, PAGE_SHIFT};
use pagoda_sync::{Cpus, MAX_CPUS};

use crate::classes::{CLASSES, Place, SIZES, SLAB_CLASSES, Tag, place};
use crate::depot::{self, DEPOT};
use crate::heap::{State, own};
use crate::inspect::{Found, What};
use crate::magazine::{AREA, Area, BATCH, Batch, Refused, batch as batch_of};
use crate::pool::{CHUNK, CHUNK_ORDER, Chunk, GRANULE};
use crate::slab::{Slab, capacity, span_for};
use crate::source::TAG_SHIFT;
use crate::{Heap, HeapError, Misuse, MisuseKind, PageSource, Report};

/// Blocks of a middle class that a refill takes: each costs a search, and they are large.
const MIDDLE_REFILL: usize = 4;
/// Bytes that all depots together may hold, whatever the heap's size; and the part of the heap that
/// they may hold beyond.
const DEPOTS_LEAST: usize = 256 << 10;
const DEPOTS_PART: usize = 32;

impl<S: PageSource, C: Cpus, R: RawMutex, P: Report> Heap<S, C, R, P> {
    /// A block of a class whose magazine is empty.
    #[cold]
    #[inline(never)]
    pub(crate) fn alloc_slow(&self, class: u8) -> Result<NonNull<u8>, HeapError> {
        self.honour();
        let at = usize::from(class);
        let mut blocks = Batch::new();
        self.depots[at].lock().pop(batch_of(at), &mut blocks);
        if blocks.len() != 0 {
            self.in_depots.fetch_sub(blocks.len() * usize::from(SIZES[at]), Ordering::Relaxed);
        } else {
            self.obtain(|state, squeezed| self.gather(state, at, squeezed, &mut blocks))?;
        }
        let block = blocks.pop().ok_or(HeapError::OutOfPages)?;
        if blocks.len() != 0 {
            self.load(class, blocks);
        }
        Ok(block)
    }

    /// A block of unusual size or alignment.
    #[cold]
    #[inline(never)]
    pub(crate) fn alloc_odd(&self, layout: Layout, zeroed: bool) -> Result<NonNull<u8>, HeapError> {
        let block = match place(layout).ok_or(HeapError::TooLarge)? {
            Place::Run(order) => return self.alloc_run(order, zeroed),
            Place::Class(class) => match self.pop(class) {
                Some(block) => block,
                None => self.alloc_slow(class)?,
            },
            Place::Pool(granules, align) => {
                let mut block = None;
                self.obtain(|state, _| {
                    let Some((chunk, from)) = state.pool.alloc(granules, align) else {
                        return false;
                    };
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
            unsafe { block.write_bytes(0, layout.size()) };
        }
        Ok(block)
    }

    /// Tries `attempt` under the lock until it succeeds: with what there is, with more chunks while
    /// the source has some, and with what all caches give back (`attempt` hears of it).
    fn obtain(&self, mut attempt: impl FnMut(&mut State, bool) -> bool) -> Result<(), HeapError> {
        let mut squeezed = false;
        loop {
            let (done, damage) = {
                let mut state = self.state.lock();
                (attempt(&mut state, squeezed), state.pool.damage.take())
            };
            if let Some(damage) = damage {
                let (kind, address) = (MisuseKind::Damaged, damage.0);
                self.report.misuse(&Misuse { kind, address, cache: "", block: address, size: 0 });
            }
            if done {
                return Ok(());
            }
            match self.take_pages(CHUNK_ORDER, false) {
                Ok(base) => {
                    let mut state = self.state.lock();
                    self.tag_all(base.as_ptr() as usize, CHUNK, Tag::Chunk);
                    // SAFETY: fresh pages of the right size, exposed.
                    unsafe { state.pool.add(base) };
                }
                Err(error) if squeezed => return Err(error),
                Err(_) => {
                    self.squeeze();
                    squeezed = true;
                }
            }
        }
    }

    /// Moves free blocks of a class from its shelf or the pool into `blocks`; true when there is at
    /// least one.
    fn gather(&self, state: &mut State, class: usize, squeezed: bool, blocks: &mut Batch) -> bool {
        if class >= SLAB_CLASSES {
            let granules = usize::from(SIZES[class]) / GRANULE;
            for _ in 0..batch_of(class).min(MIDDLE_REFILL) {
                let Some((chunk, from)) = state.pool.alloc(granules, 1) else { break };
                let start = chunk.address(from);
                self.set_tag(start, Tag::Class(class as u8));
                state.middle[class - SLAB_CLASSES] += 1;
                blocks.push(with_exposed_provenance_mut(start));
            }
            return blocks.len() != 0;
        }
        for _ in 0..batch_of(class).min(BATCH) {
            match state.shelves[class].take() {
                Some(object) => blocks.push(object.as_ptr()),
                None if blocks.len() != 0 => break,
                None if self.add_slab(state, class, squeezed) => {}
                None => return false,
            }
        }
        // The first round may have gone into making the slab.
        if blocks.len() == 0 {
            if let Some(object) = state.shelves[class].take() {
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
            if let Some(magazine) = self.magazine(&pin, class) {
                while let Some(block) = blocks.pop() {
                    if magazine.push(block).is_err() {
                        blocks.push(block.as_ptr());
                        break;
                    }
                }
            }
        }
        self.flush(class, blocks);
    }

    /// Frees a block of a class whose magazine did not take it: full, or not there yet. None: to be
    /// freed one by one.
    pub(crate) fn free_full(&self, ptr: NonNull<u8>, class: u8) -> Option<Result<(), MisuseKind>> {
        let at = usize::from(class);
        if ptr.as_ptr() as usize & usize::from(crate::classes::ALIGN_MASK[at]) != 0 {
            return None;
        }
        self.honour();
        self.open_area();
        let mut blocks = Batch::new();
        let pushed = {
            let pin = self.cpus.pin();
            let magazine = self.magazine(&pin, class)?;
            match magazine.push(own(ptr)) {
                Err(Refused::Full) => {
                    magazine.take_oldest(batch_of(at), &mut blocks);
                    magazine.push(own(ptr))
                }
                other => other,
            }
        };
        match pushed {
            Ok(()) => {
                self.stow(class, blocks);
                Some(Ok(()))
            }
            Err(Refused::Full) => None,
            Err(Refused::Twice) => {
                Some(self.refuse(ptr, |found| {
                    found.misuse(MisuseKind::DoubleFree, ptr.as_ptr() as usize)
                }))
            }
        }
    }

    /// Reports a block that shall not be freed.
    fn refuse(
        &self,
        ptr: NonNull<u8>,
        why: impl FnOnce(Found) -> Misuse,
    ) -> Result<(), MisuseKind> {
        let found = {
            let state = self.state.lock();
            self.inspect(&state, ptr.as_ptr() as usize)
        };
        Err(self.tell(found.map_or_else(|misuse| misuse, why)))
    }

    /// A batch on its way out of a magazine: to the depot if there is room, else home.
    fn stow(&self, class: u8, blocks: Batch) {
        if blocks.len() == 0 {
            return;
        }
        let at = usize::from(class);
        let bytes = blocks.len() * usize::from(SIZES[at]);
        let most = DEPOTS_LEAST.max(self.taken.load(Ordering::Relaxed) / DEPOTS_PART);
        let fits = self.in_depots.load(Ordering::Relaxed) + bytes <= most;
        if !(fits && self.stow_in_depot(at, &blocks)) {
            self.flush(class, blocks);
        }
    }

    fn stow_in_depot(&self, class: usize, blocks: &Batch) -> bool {
        let mut depot = self.depots[class].lock();
        if !depot.is_open() {
            drop(depot);
            let Some(array) = self.take_own(DEPOT) else { return false };
            depot = self.depots[class].lock();
            // SAFETY: fresh records of this size.
            if let Some(spare) = unsafe { depot.open(array) } {
                drop(depot);
                self.give_own(spare);
                depot = self.depots[class].lock();
            }
        }
        let pushed = depot.push(blocks, depot::capacity(class));
        drop(depot);
        if pushed {
            let bytes = blocks.len() * usize::from(SIZES[class]);
            self.in_depots.fetch_add(bytes, Ordering::Relaxed);
        }
        pushed
    }

    /// Brings blocks of a class home, checking each.
    fn flush(&self, class: u8, mut blocks: Batch) {
        while blocks.len() != 0 {
            let mut misuse = None;
            let retired = {
                let mut state = self.state.lock();
                while let (None, Some(block)) = (misuse, blocks.pop()) {
                    let address = block.as_ptr() as usize;
                    misuse = match self.inspect(&state, address) {
                        Ok(found) if found.what.is_served_as(Some(Place::Class(class))) => {
                            self.put_home(&mut state, found.what, address);
                            None
                        }
                        Ok(found) => Some(found.misuse(MisuseKind::WrongLayout, address)),
                        Err(misuse) => Some(misuse),
                    };
                }
                state.pool.has_retired()
            };
            if let Some(misuse) = misuse {
                self.report.misuse(&misuse);
            }
            if retired {
                self.give_retired();
            }
        }
    }

    /// Makes a block free in its slab or the pool. (Runs and cache objects go other ways.)
    fn put_home(&self, state: &mut State, what: What, start: usize) {
        match what {
            What::Small(class, slab, index) => {
                let empty = state.shelves[usize::from(class)].put(slab, index).flatten();
                let Some(slab) = empty else { return };
                let base = slab.base().as_ptr() as usize;
                self.tag_all(base, slab.span(), Tag::Chunk);
                // SAFETY: the slab lies in a chunk; the lock is held.
                if let Some(chunk) = unsafe { Chunk::holding(base) } {
                    state.pool.free(chunk, base % CHUNK / GRANULE);
                }
            }
            What::Middle(class, chunk, from) => {
                state.middle[usize::from(class) - SLAB_CLASSES] -= 1;
                self.set_tag(start, Tag::Chunk);
                state.pool.free(chunk, from);
            }
            What::Pool(chunk, from, granules) => {
                state.unclassed -= granules * GRANULE;
                self.set_tag(start, Tag::Chunk);
                state.pool.free(chunk, from);
            }
            What::Cache(..) | What::Run(_) => {}
        }
        self.tag_retired(state);
    }

    /// Chunks on their way to the source lose their tags under the lock that took them off.
    fn tag_retired(&self, state: &mut State) {
        if let Some(chunk) = state.pool.newly_retired() {
            self.tag_all(chunk.base().as_ptr() as usize, CHUNK, Tag::Gone);
        }
    }

    /// Frees the block at `ptr` under the central lock unless `refuse` names a reason against it.
    pub(crate) fn free_checked(
        &self,
        ptr: NonNull<u8>,
        refuse: impl FnOnce(&Found) -> Option<MisuseKind>,
    ) -> Result<(), MisuseKind> {
        let address = ptr.as_ptr() as usize;
        let mut state = self.state.lock();
        let outcome = self.inspect(&state, address).and_then(|found| match refuse(&found) {
            Some(kind) => Err(found.misuse(kind, address)),
            None => Ok(found.what),
        });
        match outcome {
            Ok(What::Cache(cache, slab, index)) => {
                // SAFETY: *cache-listed*: the shelf lives as long as a slab names it.
                let shelf = unsafe { &mut (*cache.as_ptr()).shelf };
                let (empty, order, destroy) =
                    (shelf.put(slab, index).flatten(), shelf.order(), shelf.destroy);
                drop(state);
                if let Some(slab) = empty {
                    self.give_slab(slab, order, destroy);
                }
            }
            Ok(What::Run(order)) => {
                state.runs -= order.bytes() as usize;
                self.tag_all(address, order.bytes() as usize, Tag::Gone);
                drop(state);
                self.give_pages(own(ptr), order);
            }
            Ok(what) => {
                self.put_home(&mut state, what, address);
                drop(state);
                self.give_retired();
            }
            Err(misuse) => {
                drop(state);
                return Err(self.tell(misuse));
            }
        }
        Ok(())
    }

    fn alloc_run(&self, order: Order, zeroed: bool) -> Result<NonNull<u8>, HeapError> {
        let base = self.take_pages_hard(order, zeroed)?;
        let start = base.as_ptr() as usize;
        let mut state = self.state.lock();
        self.tag_all(start, order.bytes() as usize, Tag::RunInside);
        self.set_tag(start, Tag::Run);
        self.set_tag(start + (1 << TAG_SHIFT), Tag::RunOrder(order));
        state.runs += order.bytes() as usize;
        Ok(base)
    }

    /// Pages from the source, after giving back what can be given back if that must be.
    pub(crate) fn take_pages_hard(
        &self,
        order: Order,
        zeroed: bool,
    ) -> Result<NonNull<u8>, HeapError> {
        self.take_pages(order, zeroed).or_else(|_| {
            self.squeeze();
            self.state.lock().pool.shrink();
            self.give_retired();
            self.take_pages(order, zeroed)
        })
    }

    fn take_pages(&self, order: Order, zeroed: bool) -> Result<NonNull<u8>, HeapError> {
        let pages = match zeroed {
            true => self.source.alloc_zeroed_pages(order),
            false => self.source.alloc_pages(order),
        };
        let base = pages.map_err(|_| HeapError::OutOfPages)?;
        base.as_ptr().expose_provenance();
        self.taken.fetch_add(order.bytes() as usize, Ordering::Relaxed);
        Ok(base)
    }

    pub(crate) fn give_pages(&self, base: NonNull<u8>, order: Order) {
        self.taken.fetch_sub(order.bytes() as usize, Ordering::Relaxed);
        self.given.fetch_add(order.bytes() as usize, Ordering::Relaxed);
        // SAFETY: taken with this order; the heap holds no block in it and has cleared its tags.
        unsafe { self.source.free_pages(base, order) };
    }

    /// Gives retired chunks back.
    fn give_retired(&self) {
        loop {
            let chunk = {
                let mut state = self.state.lock();
                self.tag_retired(&mut state);
                state.pool.pop_retired()
            };
            let Some(chunk) = chunk else { return };
            self.give_pages(chunk.base(), CHUNK_ORDER);
        }
    }

    /// A block of the pool for the heap's own records. Does not ask the source.
    fn take_own(&self, bytes: usize) -> Option<NonNull<u8>> {
        let granules = bytes.div_ceil(GRANULE);
        let mut state = self.state.lock();
        let (chunk, from) = state.pool.alloc(granules, 1)?;
        let start = chunk.address(from);
        self.set_tag(start, Tag::Own);
        state.own += granules * GRANULE;
        NonNull::new(with_exposed_provenance_mut(start))
    }

    fn give_own(&self, place: NonNull<u8>) {
        let start = place.as_ptr() as usize;
        let mut state = self.state.lock();
        // SAFETY: records lie in a chunk; the lock is held.
        if let Some(chunk) = unsafe { Chunk::holding(start) } {
            let from = start % CHUNK / GRANULE;
            state.own -= (chunk.end_of(from) - from) * GRANULE;
            self.set_tag(start, Tag::Chunk);
            state.pool.free(chunk, from);
            self.tag_retired(&mut state);
        }
    }

    /// Makes this CPU's magazines if it has none and there is room in the pool.
    fn open_area(&self) {
        let is_open = || {
            let pin = self.cpus.pin();
            self.area(&pin).is_some()
        };
        if is_open() {
            return;
        }
        let Some(place) = self.take_own(AREA) else { return };
        let spare = {
            let pin = self.cpus.pin();
            match self.areas.get(pin.cpu().index()) {
                Some(slot) if slot.load(Ordering::Relaxed).is_null() => {
                    // SAFETY: fresh records of this size.
                    let area = unsafe { Area::create(place, self.wanted.load(Ordering::Relaxed)) };
                    slot.store(area.as_ptr(), Ordering::Release);
                    None
                }
                _ => Some(place),
            }
        };
        if let Some(spare) = spare {
            self.give_own(spare);
        }
    }

    /// Drains this CPU's magazines if somebody has asked for that.
    fn honour(&self) {
        let wanted = self.wanted.load(Ordering::Relaxed);
        let due = {
            let pin = self.cpus.pin();
            self.area(&pin).is_some_and(|area| area.honoured.replace(wanted) != wanted)
        };
        if due {
            self.drain();
        }
    }

    /// Brings home every block in the executing CPU's magazines. To be called before the CPU idles,
    /// so that no memory lies where nobody looks.
    pub fn drain(&self) {
        for class in 0..CLASSES as u8 {
            loop {
                let mut blocks = Batch::new();
                {
                    let pin = self.cpus.pin();
                    let Some(magazine) = self.magazine(&pin, class) else { return };
                    magazine.take_oldest(BATCH, &mut blocks);
                }
                if blocks.len() == 0 {
                    break;
                }
                self.flush(class, blocks);
            }
        }
    }

    /// Brings home what lies in depots, and their arrays.
    fn drain_depots(&self) {
        for (class, &size) in SIZES.iter().enumerate() {
            loop {
                let mut blocks = Batch::new();
                let array = {
                    let mut depot = self.depots[class].lock();
                    depot.pop(BATCH, &mut blocks);
                    depot.close()
                };
                let bytes = blocks.len() * usize::from(size);
                self.in_depots.fetch_sub(bytes, Ordering::Relaxed);
                let done = blocks.len() == 0;
                self.flush(class as u8, blocks);
                if let Some(array) = array {
                    self.give_own(array);
                }
                if done {
                    break;
                }
            }
        }
    }

    /// Memory is short: everything free comes home, and the other CPUs are asked to do the same.
    #[cold]
    fn squeeze(&self) {
        self.wanted.fetch_add(1, Ordering::Relaxed);
        self.honour();
        self.drain_depots();
        self.shrink_caches();
    }

    /// Gives every page without a live block back to the source, and asks the other CPUs to bring
    /// home what is in their magazines (which they do when they next miss them). Returns the number
    /// of pages given back meanwhile.
    pub fn shrink(&self) -> usize {
        let before = self.given.load(Ordering::Relaxed);
        self.wanted.fetch_add(1, Ordering::Relaxed);
        self.drain();
        self.drain_depots();
        let area = {
            let pin = self.cpus.pin();
            self.areas
                .get(pin.cpu().index())
                .map_or(null_mut(), |slot| slot.swap(null_mut(), Ordering::Relaxed))
        };
        if let Some(area) = NonNull::new(area) {
            self.close_area(area);
        }
        self.shrink_caches();
        self.state.lock().pool.shrink();
        self.give_retired();
        self.given.load(Ordering::Relaxed).wrapping_sub(before) >> PAGE_SHIFT
    }

    /// Brings home every block in the magazines of all CPUs, and the magazines.
    ///
    /// # Safety
    /// No other CPU is in a call of this heap, nor enters one, until this returns.
    pub unsafe fn drain_stopped(&self) {
        for cpu in 0..MAX_CPUS {
            let area = self.areas[cpu].swap(null_mut(), Ordering::Acquire);
            if let Some(area) = NonNull::new(area) {
                self.close_area(area);
            }
        }
    }

    /// Brings home what is in an area that no CPU can reach any more, and the area.
    fn close_area(&self, area: NonNull<Area>) {
        for class in 0..CLASSES {
            loop {
                let mut blocks = Batch::new();
                // SAFETY: *magazine-own*: taken off its slot by the one who may.
                unsafe { area.as_ref() }.magazines[class].take_oldest(BATCH, &mut blocks);
                if blocks.len() == 0 {
                    break;
                }
                self.flush(class as u8, blocks);
            }
        }
        self.give_own(area.cast());
        self.give_retired();
    }
}
