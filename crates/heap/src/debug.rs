//! Switching debug modes on, quarantine, and the leak report. What a mode does is in `guard`.
#![allow(unsafe_code)] // walks the list of caches

use core::alloc::Layout;
use core::ptr::{NonNull, with_exposed_provenance_mut};
use core::sync::atomic::Ordering;

use lock_api::RawMutex;
use pagoda_addr::Order;
use pagoda_sync::Cpus;

use crate::cache::CacheShelf;
use crate::classes::{ALIGN_MASK, CLASSES, NAMES, SIZES};
use crate::guard::{BadOption, DebugFlags, Harm, Track, flags_for};
use crate::heap::State;
use crate::inspect::{Found, What};
use crate::magazine::Area;
use crate::shelf::{Destroy, Shelf};
use crate::slab::Slab;
use crate::{Heap, HeapError, Misuse, MisuseKind, PageSource, Report};

/// Freed objects that wait before they are used again.
const QUARANTINE: usize = 64;

/// First in, first out. The objects are out of their slabs, and in nobody's hands.
pub(crate) struct Quarantine {
    objects: [(usize, usize); QUARANTINE],
    next: usize,
}

impl Quarantine {
    pub(crate) const fn new() -> Self {
        Self { objects: [(0, 0); QUARANTINE], next: 0 }
    }

    /// Bytes inside.
    pub(crate) fn bytes(&self) -> usize {
        self.objects.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Puts an object in; the one that has waited longest comes out.
    fn swap(&mut self, object: usize, bytes: usize) -> Option<usize> {
        let slot = &mut self.objects[self.next % QUARANTINE];
        self.next = (self.next + 1) % QUARANTINE;
        let (oldest, _) = core::mem::replace(slot, (object, bytes));
        (oldest != 0).then_some(oldest)
    }
}

/// An empty slab of a cache on its way back to the source.
pub(crate) type Leaving = (Slab, Order, Option<Destroy>);

/// An object of a cache, or of a size class in a debug mode, that is out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LiveObject {
    /// The cache or size class.
    pub cache: &'static str,
    /// The object's address.
    pub address: usize,
    /// Bytes, as asked for where that is known.
    pub size: usize,
    /// Who allocated it, where that is kept.
    pub allocated: Option<Track>,
}

impl<S: PageSource, C: Cpus, R: RawMutex, P: Report> Heap<S, C, R, P> {
    /// Switches debug modes on, in the words of Linux's `slab_debug`: letters, then names of size
    /// classes and caches (a trailing `*` matches the rest), groups separated by `;`. For example
    /// `FZPU` for everything, `ZP,kmalloc-64,names*;U,inodes`. The letters are those of
    /// [`DebugFlags::parse`].
    ///
    /// For size classes from now on (blocks already out stay as they are), for caches when they are
    /// made. To be called before other CPUs use the heap, or the first blocks there may still go the
    /// fast way. What has no class (above 8 KiB, or oddly aligned) has no debug modes.
    pub fn set_debug(&self, option: &'static str) -> Result<(), DebugError> {
        flags_for(option, "").map_err(DebugError::BadOption)?;
        self.state.lock().option = option;
        self.debugging.store(true, Ordering::Relaxed);
        for class in 0..CLASSES {
            let flags = self.flags_for(NAMES[class]);
            if flags.is_empty() || self.guarded_shelf(class as u8).is_some() {
                continue;
            }
            let (size, align) = (usize::from(SIZES[class]), usize::from(ALIGN_MASK[class]) + 1);
            let layout =
                Layout::from_size_align(size, align).map_err(|_| DebugError::OutOfMemory)?;
            let shelf = self
                .new_shelf(NAMES[class], layout, flags, false)
                .and_then(|shelf| self.list_shelf(shelf, Some(class as u8)))
                .map_err(|_: HeapError| DebugError::OutOfMemory)?;
            self.guarded[class].store(shelf.as_ptr(), Ordering::Release);
        }
        self.wanted.fetch_add(1, Ordering::Relaxed);
        self.honour();
        Ok(())
    }

    /// What the debug option says about a cache.
    pub(crate) fn flags_for(&self, name: &str) -> DebugFlags {
        let option = self.state.lock().option;
        flags_for(option, name).unwrap_or_default()
    }

    /// The shelf that serves a class in a debug mode.
    pub(crate) fn guarded_shelf(&self, class: u8) -> Option<NonNull<CacheShelf>> {
        NonNull::new(self.guarded.get(usize::from(class))?.load(Ordering::Acquire))
    }

    /// Closes the magazines of classes in a debug mode, so that every call goes the slow way.
    pub(crate) fn close_guarded(&self, area: &Area) {
        for (class, shelf) in (0..).zip(&self.guarded) {
            if !shelf.load(Ordering::Relaxed).is_null() {
                area.of(class).close();
            }
        }
    }

    /// Who is calling, if anybody wants to know.
    pub(crate) fn track(&self) -> Track {
        if !self.debugging.load(Ordering::Relaxed) {
            return Track::default();
        }
        let mut track = Track { cpu: self.cpus.pin().cpu().index() as u16, ..Track::default() };
        track.time = self.report.track(&mut track.frames);
        track
    }

    /// Takes an object of a cache back; perhaps a slab is now to go.
    pub(crate) fn put_object(
        &self,
        state: &mut State,
        found: Found,
        size: Option<usize>,
        track: Track,
    ) -> Result<Option<Leaving>, Misuse> {
        let What::Cache(cache, slab, index) = found.what else { return Ok(None) };
        let Some(guard) = found.guard() else {
            return Ok(self.shelve(cache, slab, index));
        };
        let object = slab.object(index);
        // SAFETY: *guard-locked*: the state is the proof; an object of this shelf.
        if let Err((kind, harm)) = unsafe { guard.take_back(object, size, track) } {
            return Err(Misuse { harm, ..found.misuse(kind, found.start) });
        }
        if !guard.flags.quarantine {
            return Ok(self.shelve(cache, slab, index));
        }
        // SAFETY: *cache-listed*; the lock is held.
        let stride = unsafe {
            (*cache.as_ptr()).waiting += 1;
            (*cache.as_ptr()).shelf.stride
        };
        match state.quarantine.swap(found.start, stride) {
            Some(oldest) => self.leave_quarantine(state, oldest),
            None => Ok(None),
        }
    }

    /// Makes an object of a cache free in its slab. Under the lock.
    pub(crate) fn shelve(
        &self,
        cache: NonNull<CacheShelf>,
        slab: Slab,
        index: usize,
    ) -> Option<Leaving> {
        // SAFETY: *cache-listed*: the shelf lives as long as a slab names it; the lock is held.
        let shelf = unsafe { &mut (*cache.as_ptr()).shelf };
        let slab = shelf.put(slab, index).flatten()?;
        Some((slab, shelf.order(), shelf.destroy))
    }

    /// An object that has waited long enough: was it left alone meanwhile?
    fn leave_quarantine(&self, state: &State, address: usize) -> Result<Option<Leaving>, Misuse> {
        let found = self.inspect(state, address)?;
        let What::Cache(cache, slab, index) = found.what else { return Ok(None) };
        // SAFETY: *cache-listed*; the lock is held.
        unsafe { (*cache.as_ptr()).waiting -= 1 };
        if let Some(guard) = found.guard() {
            // SAFETY: *guard-locked*; a free object of this shelf.
            if let Err((kind, harm)) = unsafe { guard.check_free(slab.object(index)) } {
                return Err(Misuse { harm: Some(harm), ..found.misuse(kind, address) });
            }
        }
        Ok(self.shelve(cache, slab, index))
    }

    /// Everything in quarantine goes home.
    pub(crate) fn release_quarantine(&self) {
        for slot in 0..QUARANTINE {
            let outcome = {
                let mut state = self.state.lock();
                let (object, _) = core::mem::take(&mut state.quarantine.objects[slot]);
                match object {
                    0 => Ok(None),
                    _ => self.leave_quarantine(&state, object),
                }
            };
            match outcome {
                Ok(None) => {}
                Ok(Some((slab, order, destroy))) => self.give_slab(slab, order, destroy),
                Err(misuse) => {
                    self.tell(misuse);
                }
            }
        }
    }

    /// Reports damage to a free object.
    #[cold]
    pub(crate) fn tell_harm(&self, object: NonNull<u8>, kind: MisuseKind, harm: Harm) {
        let address = object.as_ptr() as usize;
        let misuse = {
            let state = self.state.lock();
            match self.inspect(&state, address) {
                Ok(found) => found.misuse(kind, address),
                Err(misuse) => misuse,
            }
        };
        self.tell(Misuse { harm: Some(harm), ..misuse });
    }

    /// Calls `each` for every object of the caches, and of the size classes in a debug mode, that is
    /// out: the leak report, when nothing should be. The central lock is held: `each` must not use
    /// the heap. What lies in the executing CPU's magazines goes home first; what lies in those of
    /// other CPUs is not told apart from what is live, unless they have drained theirs.
    pub fn live_objects(&self, mut each: impl FnMut(&LiveObject)) {
        self.drain();
        let state = self.state.lock();
        let mut next = state.caches;
        while let Some(cache) = next {
            // SAFETY: *cache-listed*; the lock is held.
            let cache = unsafe { cache.as_ref() };
            live_on(&cache.shelf, &mut each);
            next = cache.next;
        }
    }

    /// The same for one cache, whose magazines are empty.
    pub(crate) fn live_objects_of(
        &self,
        cache: NonNull<CacheShelf>,
        mut each: impl FnMut(&LiveObject),
    ) {
        let _state = self.state.lock();
        // SAFETY: *cache-listed*; the lock is held.
        live_on(unsafe { &cache.as_ref().shelf }, &mut each);
    }
}

/// Under the lock.
fn live_on(shelf: &Shelf, each: &mut impl FnMut(&LiveObject)) {
    for (slab, index) in shelf.iter().flat_map(|slab| (0..slab.count()).map(move |i| (slab, i))) {
        let object = slab.object(index);
        let address = object.as_ptr() as usize;
        let mut live =
            LiveObject { cache: shelf.name, address, size: shelf.object, allocated: None };
        if slab.is_free(index) {
            continue;
        }
        if let Some(guard) = shelf.guard {
            let object = with_exposed_provenance_mut(address);
            let Some(object) = NonNull::new(object) else { continue };
            // SAFETY: *guard-locked*; an object of this shelf.
            let (size, [allocated, _]) = unsafe { guard.story(object) };
            let Some(size) = size else { continue };
            (live.size, live.allocated) = (size, allocated);
        }
        each(&live);
    }
}

/// Why debug modes could not be switched on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DebugError {
    /// The option is not understood.
    BadOption(BadOption),
    /// No memory for the records of a class; the classes before it are in their modes.
    OutOfMemory,
}

impl core::fmt::Display for DebugError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::BadOption(bad) => bad.fmt(f),
            Self::OutOfMemory => f.write_str("no memory for the records of a debug mode"),
        }
    }
}

impl core::error::Error for DebugError {}
