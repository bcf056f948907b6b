//! The magazines of object caches: for each cache and CPU an array of free objects, made when the CPU
//! first misses it.
//!
//! As with the classes (`magazine`), a CPU's magazine is its own while it is pinned; others may only
//! count. There is no depot: batches of up to [`UNIT`] go to and come from the slabs under the
//! central lock. A cache in a debug mode, one with a limit and one whose objects can be moved have
//! none, for they need to know of each object where it is.
//!
//! *local-own*: a CPU's entry is set and used by that CPU while pinned; another uses it only where
//! nobody else can reach the cache (it is being dropped) or all CPUs stand still.
#![allow(unsafe_code)] // arrays behind raw pointers

use core::alloc::Layout;
use core::cell::Cell;
use core::mem::size_of;
use core::ptr::{NonNull, null_mut};

use lock_api::RawMutex;
use pagoda_sync::{Cpus, Pinned};

use crate::cache::CacheShelf;
use crate::debug::Leaving;
use crate::heap::{State, own};
use crate::inspect::What;
use crate::magazine::{Batch, Magazine, Refused, UNIT};
use crate::sync::{AtomicPtr, Ordering, PLACES, observe, publish};
use crate::{Heap, HeapError, Misuse, MisuseKind, PageSource, Report};

/// The most objects in a magazine.
const SLOTS_MOST: usize = 32;
/// Bytes that a magazine may hold, if that is not less than four objects.
const BYTES_MOST: usize = 16 << 10;

/// One CPU's magazine of one cache; its slots follow.
pub(crate) struct Local {
    magazine: Magazine,
    /// The last request to drain that this CPU has honoured for this cache.
    honoured: Cell<usize>,
}

/// A cache's magazines, by CPU; null where there is none yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Locals {
    first: NonNull<AtomicPtr<Local>>,
    cpus: usize,
    slots: usize,
}

impl Locals {
    #[inline]
    fn slot(&self, cpu: usize) -> Option<&AtomicPtr<Local>> {
        // SAFETY: below the number of entries; they live as long as the cache.
        (cpu < self.cpus).then(|| unsafe { self.first.add(cpu).as_ref() })
    }

    #[inline]
    fn local<'p, C: Cpus>(&self, pin: &'p Pinned<'_, C>) -> Option<&'p Local> {
        // SAFETY: null or what this CPU stored; given back only when nobody can reach it.
        unsafe { self.slot(pin.cpu().index())?.load(Ordering::Relaxed).as_ref() }
    }

    /// A CPU's magazine, from another.
    fn at<'p>(&self, cpu: usize) -> Option<&'p Local> {
        // SAFETY: null or what `open_local` stored; given back only when nobody can reach it.
        unsafe { self.slot(cpu)?.load(observe()).as_ref() }
    }

    /// Objects in all magazines. Anybody may ask.
    pub(crate) fn len(&self) -> usize {
        (0..self.cpus).filter_map(|cpu| self.at(cpu)).map(|local| local.magazine.len()).sum()
    }

    fn layout(slots: usize) -> Layout {
        // Small numbers: no overflow.
        let bytes = size_of::<Local>() + (slots + 1) * size_of::<*mut u8>();
        Layout::from_size_align(bytes, 8).unwrap_or(Layout::new::<Local>())
    }
}

impl<S: PageSource, C: Cpus, R: RawMutex, P: Report> Heap<S, C, R, P> {
    /// The table of a cache's magazines, none of which exist yet.
    pub(crate) fn new_locals(&self, stride: usize) -> Result<Locals, HeapError> {
        let cpus = self.cpus.limit().min(PLACES);
        let layout = Layout::array::<AtomicPtr<Local>>(cpus).map_err(|_| HeapError::TooLarge)?;
        let first: NonNull<AtomicPtr<Local>> = self.record(layout)?.cast();
        for cpu in 0..cpus {
            // SAFETY: fresh memory for so many.
            unsafe { first.add(cpu).write(AtomicPtr::new(null_mut())) };
        }
        let slots = (BYTES_MOST / stride).clamp(4, SLOTS_MOST);
        Ok(Locals { first, cpus, slots })
    }

    /// Gives the table and all magazines back, which are empty.
    pub(crate) fn give_locals(&self, locals: Locals) {
        for cpu in 0..locals.cpus {
            let slot = locals.slot(cpu).map_or(null_mut(), |slot| slot.load(Ordering::Relaxed));
            if let Some(local) = NonNull::new(slot) {
                // SAFETY: a record of the heap's, which nobody uses any more.
                let _ = unsafe { self.kfree(local.cast()) };
            }
        }
        // SAFETY: as above.
        let _ = unsafe { self.kfree(locals.first.cast()) };
    }

    /// An object from this CPU's magazine. Budget: as for a block of a class.
    #[inline]
    pub(crate) fn pop_local(&self, locals: &Locals) -> Option<NonNull<u8>> {
        let pin = self.cpus.pin();
        locals.local(&pin)?.magazine.pop()
    }

    /// An object into this CPU's magazine.
    #[inline]
    pub(crate) fn push_local(&self, locals: &Locals, object: NonNull<u8>) -> Result<(), Refused> {
        let pin = self.cpus.pin();
        let local = locals.local(&pin).ok_or(Refused::Full)?;
        local.magazine.push(own(object))
    }

    /// Makes this CPU's magazine of the cache, if there is memory for it.
    fn open_local(&self, locals: &Locals, mask: usize) {
        let is_open = || locals.local(&self.cpus.pin()).is_some();
        if is_open() {
            return;
        }
        let Ok(place) = self.record(Locals::layout(locals.slots)) else { return };
        let pin = self.cpus.pin();
        let spare = match locals.slot(pin.cpu().index()) {
            Some(slot) if slot.load(Ordering::Relaxed).is_null() => {
                let local: NonNull<Local> = place.cast();
                // SAFETY: fresh memory of this layout: the record, a slot below the bottom, the slots.
                unsafe {
                    let magazine = Magazine::over(local.add(1).cast(), locals.slots, mask);
                    let honoured = Cell::new(self.wanted.load(Ordering::Relaxed));
                    local.write(Local { magazine, honoured });
                }
                slot.store(local.as_ptr(), publish());
                None
            }
            _ => Some(place),
        };
        drop(pin);
        if let Some(spare) = spare {
            // SAFETY: just received.
            let _ = unsafe { self.kfree(spare) };
        }
    }

    /// An object of a cache whose magazine is empty, and a few more for it, from slabs that there
    /// are; none when there are none with a free object.
    #[cold]
    #[inline(never)]
    pub(crate) fn refill_local(
        &self,
        cache: NonNull<CacheShelf>,
        locals: &Locals,
        mask: usize,
    ) -> Option<NonNull<u8>> {
        self.honour_local(cache, locals);
        self.open_local(locals, mask);
        let mut objects = Batch::new();
        {
            let mut state = self.state.lock();
            // SAFETY: *cache-listed*; the lock is held, so this is the only reference.
            let shelf = unsafe { &mut (*cache.as_ptr()).shelf };
            for _ in 0..UNIT.min(locals.slots / 2) {
                let Some(object) = shelf.take(&mut state.dice) else { break };
                objects.push(object.as_ptr());
            }
        }
        let object = objects.pop()?;
        {
            let pin = self.cpus.pin();
            if let Some(local) = locals.local(&pin) {
                while let Some(object) = objects.pop() {
                    if self.failing.now() || local.magazine.push(object).is_err() {
                        objects.push(object.as_ptr());
                        break;
                    }
                }
            }
        }
        self.put_back(cache, objects);
        Some(object)
    }

    /// An object of a cache whose magazine did not take it for want of room: the oldest go home.
    #[cold]
    #[inline(never)]
    pub(crate) fn free_local(
        &self,
        cache: NonNull<CacheShelf>,
        locals: &Locals,
        mask: usize,
        object: NonNull<u8>,
    ) -> Result<(), Refused> {
        self.honour_local(cache, locals);
        self.open_local(locals, mask);
        let mut oldest = Batch::new();
        let done = {
            let pin = self.cpus.pin();
            let local = locals.local(&pin).ok_or(Refused::Full)?;
            if local.magazine.is_full() {
                local.magazine.take_oldest(UNIT.min(locals.slots / 2), &mut oldest);
            }
            local.magazine.push(own(object))
        };
        self.put_back(cache, oldest);
        done
    }

    /// Empties this CPU's magazine of the cache if somebody has asked for that.
    fn honour_local(&self, cache: NonNull<CacheShelf>, locals: &Locals) {
        let wanted = self.wanted.load(Ordering::Relaxed);
        let due = {
            let pin = self.cpus.pin();
            locals.local(&pin).is_some_and(|local| local.honoured.replace(wanted) != wanted)
        };
        if due {
            self.empty_local(cache, locals, None);
        }
    }

    /// Brings home what lies in the cache's magazine of the executing CPU, or of one that *local-own*
    /// allows.
    fn empty_local(&self, cache: NonNull<CacheShelf>, locals: &Locals, cpu: Option<usize>) {
        loop {
            let mut objects = Batch::new();
            {
                let pin = self.cpus.pin();
                let cpu = cpu.unwrap_or(pin.cpu().index());
                let Some(local) = locals.at(cpu) else { return };
                local.magazine.take_oldest(UNIT, &mut objects);
            }
            if objects.len() == 0 {
                return;
            }
            self.put_back(cache, objects);
        }
    }

    /// Brings home what lies in all magazines of a cache that nobody else can reach.
    pub(crate) fn empty_locals(&self, cache: NonNull<CacheShelf>, locals: &Locals) {
        (0..locals.cpus).for_each(|cpu| self.empty_local(cache, locals, Some(cpu)));
    }

    /// Objects of a cache go home, each checked.
    fn put_back(&self, cache: NonNull<CacheShelf>, mut objects: Batch) {
        while objects.len() != 0 {
            let (mut leaving, mut misuse) = (None, None);
            {
                let state = self.state.lock();
                while let (None, None) = (leaving, misuse) {
                    let Some(object) = objects.pop() else { break };
                    match self.put_one(&state, cache, object) {
                        Ok(empty) => leaving = empty,
                        Err(found) => misuse = Some(found),
                    }
                }
            }
            if let Some((slab, order, destroy)) = leaving {
                self.give_slab(slab, order, destroy);
            }
            if let Some(misuse) = misuse {
                self.tell(misuse);
            }
        }
    }

    fn put_one(
        &self,
        state: &State,
        cache: NonNull<CacheShelf>,
        object: NonNull<u8>,
    ) -> Result<Option<Leaving>, Misuse> {
        let address = object.as_ptr() as usize;
        let found = self.inspect(state, address)?;
        match found.what {
            What::Cache(owner, slab, index) if owner == cache => {
                Ok(self.shelve(cache, slab, index))
            }
            _ => Err(found.misuse(MisuseKind::WrongCache, address)),
        }
    }

    /// Brings home what lies in the executing CPU's magazines of all caches; of all CPUs' with
    /// `all`, which *local-own* must allow.
    pub(crate) fn drain_locals(&self, all: bool) {
        let mut again = true;
        while core::mem::take(&mut again) {
            let (mut leaving, mut misuse) = (None, None);
            let state = self.state.lock();
            // The list, and every cache on it, stay as they are while the lock is held: a cache may
            // be dropped by another CPU as soon as it is not.
            let mut next = state.caches;
            while let (Some(cache), None, None) = (next, leaving, misuse) {
                // SAFETY: *cache-listed*; the lock is held.
                let locals = unsafe { (*cache.as_ptr()).locals };
                let mut object = Batch::new();
                if let Some(locals) = locals {
                    let pin = self.cpus.pin();
                    let cpus = if all { 0..locals.cpus } else { one(pin.cpu().index()) };
                    let mut filled =
                        cpus.filter_map(|cpu| locals.at(cpu)).filter(|l| l.magazine.len() != 0);
                    if let Some(local) = filled.next() {
                        local.magazine.take_oldest(1, &mut object);
                    }
                }
                match object.pop().map(|object| self.put_one(&state, cache, object)) {
                    // SAFETY: as above.
                    None => next = unsafe { (*cache.as_ptr()).next },
                    Some(Ok(empty)) => leaving = empty,
                    Some(Err(found)) => misuse = Some(found),
                }
            }
            drop(state);
            if let Some((slab, order, destroy)) = leaving {
                self.give_slab(slab, order, destroy);
                again = true;
            }
            if let Some(misuse) = misuse {
                self.tell(misuse);
                again = true;
            }
        }
    }
}

fn one(cpu: usize) -> core::ops::Range<usize> {
    cpu..cpu + 1
}
