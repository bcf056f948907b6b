//! The heap: `kalloc`, `kfree` and their kin, and the paths that are hot.
#![allow(unsafe_code)] // hands out and takes back raw memory

use core::alloc::Layout;
use core::ptr::{NonNull, null_mut, with_exposed_provenance_mut};
use core::sync::atomic;

use lock_api::RawMutex;
use pagoda_sync::{Cpus, Pinned};

use crate::cache::CacheShelf;
use crate::classes::{CLASSES, Place, SLAB_CLASSES, TAGS, Tag, class_of, place};
use crate::debug::Quarantine;
use crate::depot::Depot;
use crate::failing::Failing;
use crate::hardening::Dice;
use crate::magazine::{Area, no_area, some_area};
use crate::mapped::MappedList;
use crate::pool::Pool;
use crate::shelf::Shelf;
use crate::shrink::{SHRINKERS, Shrinkers};
use crate::sync::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, PLACES, constructor, each};
use crate::{HeapError, Misuse, MisuseKind, PageSource, PanicReport, Report};

/// A kernel heap over the pages of `S`, for the CPUs of `C`, locked by `R`, telling `P` about
/// misuse.
///
/// Constructible in a `static`: [`new`](Self::new) is `const` and allocates nothing. Dropping a
/// heap returns nothing to the source; [`shrink`](Self::shrink) does, for what is not live.
pub struct Heap<S, C, R, P = PanicReport> {
    pub(crate) source: S,
    pub(crate) cpus: C,
    pub(crate) report: P,
    /// Each CPU's magazines; [`no_area`] until it first misses them.
    pub(crate) areas: [AtomicPtr<Area>; PLACES],
    /// How often all CPUs were asked to drain their magazines.
    pub(crate) wanted: AtomicUsize,
    pub(crate) depots: [lock_api::Mutex<R, Depot>; CLASSES],
    /// Bytes in depots.
    pub(crate) in_depots: atomic::AtomicUsize,
    pub(crate) state: lock_api::Mutex<R, State>,
    /// The shelf of each class that is in a debug mode; null for the others.
    pub(crate) guarded: [atomic::AtomicPtr<CacheShelf>; CLASSES],
    /// Every how many refills there is a sample; 0: never. And refills so far, while there are.
    pub(crate) sampling: atomic::AtomicUsize,
    pub(crate) refills: atomic::AtomicUsize,
    /// Internal failures, in tests.
    pub(crate) failing: Failing,
    /// Is a shrinker at work?
    pub(crate) shrinking: AtomicBool,
    /// Is any debug mode on?
    pub(crate) debugging: atomic::AtomicBool,
    /// Bytes taken from the source and not given back.
    pub(crate) taken: atomic::AtomicUsize,
    /// Bytes ever given back to the source.
    pub(crate) given: atomic::AtomicUsize,
}

/// What the central lock guards.
pub(crate) struct State {
    pub(crate) pool: Pool,
    pub(crate) shelves: [Shelf; SLAB_CLASSES],
    /// Blocks of each middle class that are out of the pool.
    pub(crate) middle: [usize; CLASSES - SLAB_CLASSES],
    /// Bytes of live blocks of the pool without a class.
    pub(crate) unclassed: usize,
    /// Bytes of the pool in the heap's own records.
    pub(crate) own: usize,
    /// Bytes in live runs.
    pub(crate) runs: usize,
    /// All object caches, newest first.
    pub(crate) caches: Option<NonNull<CacheShelf>>,
    /// The debug option for caches to come.
    pub(crate) option: &'static str,
    pub(crate) quarantine: Quarantine,
    pub(crate) shrinkers: Shrinkers,
    pub(crate) mapped: MappedList,
    pub(crate) dice: Dice,
}

// SAFETY: the pointers inside lead to memory that only the holder of the state uses.
unsafe impl Send for State {}

impl State {
    const fn new() -> Self {
        let mut shelves = [const { Shelf::of_class(0) }; SLAB_CLASSES];
        let mut class = 1;
        while class < SLAB_CLASSES {
            shelves[class] = Shelf::of_class(class);
            class += 1;
        }
        Self {
            pool: Pool::new(),
            shelves,
            middle: [0; CLASSES - SLAB_CLASSES],
            unclassed: 0,
            own: 0,
            runs: 0,
            caches: None,
            option: "",
            quarantine: Quarantine::new(),
            shrinkers: [(0, None); SHRINKERS],
            mapped: MappedList::new(),
            dice: Dice::none(),
        }
    }
}

impl<S: PageSource, C: Cpus, R: RawMutex> Heap<S, C, R> {
    constructor! {
        /// An empty heap that panics on misuse. Allocates nothing.
        pub fn new(source: S, cpus: C) -> Self {
            Self::with_report(source, cpus, PanicReport)
        }
    }
}

impl<S: PageSource, C: Cpus, R: RawMutex, P: Report> Heap<S, C, R, P> {
    constructor! {
        /// An empty heap that tells `report` about misuse. Allocates nothing.
        pub fn with_report(source: S, cpus: C, report: P) -> Self {
            Self {
                source,
                cpus,
                report,
                areas: each![AtomicPtr::new(no_area()); PLACES],
                wanted: AtomicUsize::new(0),
                depots: [const { lock_api::Mutex::const_new(R::INIT, Depot::new()) }; CLASSES],
                in_depots: atomic::AtomicUsize::new(0),
                state: lock_api::Mutex::const_new(R::INIT, State::new()),
                guarded: [const { atomic::AtomicPtr::new(null_mut()) }; CLASSES],
                sampling: atomic::AtomicUsize::new(0),
                refills: atomic::AtomicUsize::new(0),
                failing: Failing::new(),
                shrinking: AtomicBool::new(false),
                debugging: atomic::AtomicBool::new(false),
                taken: atomic::AtomicUsize::new(0),
                given: atomic::AtomicUsize::new(0),
            }
        }
    }

    /// The page source.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// A block of `layout`, contents arbitrary. Size 0 is served as size 1: a block of its own.
    #[inline]
    pub fn kalloc(&self, layout: Layout) -> Result<NonNull<u8>, HeapError> {
        match class_of(layout) {
            Some(class) => self
                .pop(class)
                .or_else(|| self.alloc_slow(class, layout))
                .ok_or(HeapError::OutOfPages),
            None => self.alloc_odd(layout, false),
        }
    }

    /// A block of `layout`, its first `layout.size()` bytes zero. What is known to be zero already is
    /// not cleared again: the pages of blocks above 32 KiB, which come zeroed from the source, and what
    /// nobody has used yet of a chunk that came so, for blocks between 8 and 32 KiB.
    pub fn kalloc_zeroed(&self, layout: Layout) -> Result<NonNull<u8>, HeapError> {
        if class_of(layout).is_none() {
            return self.alloc_odd(layout, true);
        }
        let block = self.kalloc(layout)?;
        // SAFETY: the block is the caller's, and holds the layout.
        unsafe { block.write_bytes(0, layout.size()) };
        Ok(block)
    }

    /// Frees a block whose size the caller does not know.
    ///
    /// What is not a live block of this heap goes to the report hook and changes nothing; the call
    /// returns it as the error when it is found at once. A block that goes into a magazine is
    /// checked in full only when it leaves it for its slab or the pool.
    ///
    /// # Safety
    /// Nobody uses the block any more.
    #[inline]
    pub unsafe fn kfree(&self, ptr: NonNull<u8>) -> Result<(), MisuseKind> {
        if let Some(tag) = self.source.tag(ptr.as_ptr() as usize) {
            if self.push(usize::from(tag.load(Ordering::Relaxed)) % TAGS, ptr) {
                return Ok(());
            }
        }
        self.free_slow(ptr, None)
    }

    /// Frees a block that was allocated with `layout`: the fast way.
    ///
    /// Checked as in [`kfree`](Self::kfree).
    ///
    /// # Safety
    /// Nobody uses the block any more.
    #[inline]
    pub unsafe fn kfree_sized(&self, ptr: NonNull<u8>, layout: Layout) -> Result<(), MisuseKind> {
        if let Some(class) = class_of(layout) {
            if self.push(usize::from(Tag::Class(class).encode()), ptr) {
                return Ok(());
            }
        }
        self.free_slow(ptr, Some(layout))
    }

    /// Makes a block of `old` layout `new_size` bytes large, in place where it can; contents are
    /// kept up to the smaller size. On an error the old block is untouched.
    ///
    /// # Safety
    /// `ptr` was allocated with `old`; on success nobody uses `ptr` any more.
    pub unsafe fn krealloc(
        &self,
        ptr: NonNull<u8>,
        old: Layout,
        new_size: usize,
    ) -> Result<NonNull<u8>, HeapError> {
        let new =
            Layout::from_size_align(new_size, old.align()).map_err(|_| HeapError::TooLarge)?;
        let new_place = place(new).ok_or(HeapError::TooLarge)?;
        if place(old) == Some(new_place) {
            match new_place {
                Place::Class(class) if self.tag(ptr.as_ptr() as usize) == Tag::Class(class) => {
                    return Ok(ptr);
                }
                // In a debug mode a block knows its size to the byte; or it is none at all.
                Place::Class(_) => {}
                _ if self.usable_size(ptr).map_err(HeapError::Misuse)? >= new_size => {
                    return Ok(ptr);
                }
                _ => {}
            }
        }
        // A block that is not live is found out before anything is copied from it.
        self.usable_size(ptr).map_err(HeapError::Misuse)?;
        if self.resize(ptr, new_place) {
            return Ok(ptr);
        }
        let block = self.kalloc(new)?;
        let kept = old.size().min(new_size);
        // SAFETY: both blocks are live and hold `kept` bytes; the new one is nobody else's.
        unsafe { block.copy_from_nonoverlapping(ptr, kept) };
        // SAFETY: the caller gives the old block up.
        if let Err(misuse) = unsafe { self.kfree_sized(ptr, old) } {
            // SAFETY: the new block has not left this function.
            let _ = unsafe { self.kfree(block) };
            return Err(HeapError::Misuse(misuse));
        }
        Ok(block)
    }

    /// The bytes that may be used behind a live block's pointer. Takes the lock.
    pub fn usable_size(&self, ptr: NonNull<u8>) -> Result<usize, MisuseKind> {
        let address = ptr.as_ptr() as usize;
        let size = {
            let state = self.state.lock();
            self.inspect(&state, address).and_then(|found| {
                found.asked().ok_or_else(|| found.misuse(MisuseKind::DoubleFree, address))
            })
        };
        size.map_err(|misuse| self.tell(misuse))
    }

    /// Tells the host; returns what the caller is told.
    #[cold]
    pub(crate) fn tell(&self, misuse: Misuse) -> MisuseKind {
        self.report.misuse(&misuse);
        misuse.kind
    }

    /// A block of the class from this CPU's magazine.
    #[inline]
    pub(crate) fn pop(&self, class: u8) -> Option<NonNull<u8>> {
        let pin = self.cpus.pin();
        match self.magazines(&pin).of(class).pop() {
            Some(block) => Some(block),
            None => {
                unpin(pin);
                None
            }
        }
    }

    /// A block into this CPU's magazine for the class of the tag; false when it does not go in, for
    /// whatever reason.
    #[inline]
    fn push(&self, tag: usize, ptr: NonNull<u8>) -> bool {
        let pin = self.cpus.pin();
        match self.magazines(&pin).at(tag).push(own(ptr)) {
            Ok(()) => true,
            Err(_) => {
                unpin(pin);
                false
            }
        }
    }

    /// This CPU's magazines; closed ones when it has none.
    #[inline]
    fn magazines<'p>(&self, pin: &'p Pinned<'_, C>) -> &'p Area {
        // SAFETY: *magazine-own*: this CPU made the area, and only it (or somebody who has stopped
        // it) gives the area back; or it is the closed one, which is for good.
        unsafe { &*self.area_slot(pin).load(Ordering::Relaxed) }
    }

    #[inline]
    pub(crate) fn area_slot(&self, pin: &Pinned<'_, C>) -> &AtomicPtr<Area> {
        let cpu = pin.cpu().index();
        debug_assert!(cpu < PLACES);
        // SAFETY: there is an entry for each number that a `CpuId` can be.
        unsafe { self.areas.get_unchecked(cpu) }
    }

    /// This CPU's magazines, if it has any.
    #[inline]
    pub(crate) fn area<'p>(&self, pin: &'p Pinned<'_, C>) -> Option<&'p Area> {
        // SAFETY: as in `magazine`.
        some_area(self.area_slot(pin).load(Ordering::Relaxed)).map(|area| unsafe { area.as_ref() })
    }

    /// Frees what the fast path did not take.
    #[cold]
    #[inline(never)]
    fn free_slow(&self, ptr: NonNull<u8>, layout: Option<Layout>) -> Result<(), MisuseKind> {
        drop(self.cpus.pin());
        let expected = layout.map(place);
        let class = match (expected, self.tag(ptr.as_ptr() as usize)) {
            (Some(Some(Place::Class(class))), Tag::Class(tag)) if class == tag => Some(class),
            (None, Tag::Class(class)) => Some(class),
            _ => None,
        };
        if let Some(class) = class {
            if let Some(done) = self.free_full(ptr, class) {
                return done;
            }
        }
        let size = layout.map(|layout| layout.size());
        self.free_checked(ptr, size, |found| match expected {
            _ if found.is_typed() => Some(MisuseKind::WrongCache),
            Some(place) if !found.is_served_as(place) => Some(MisuseKind::WrongLayout),
            _ => None,
        })
    }
}

/// The end of a pin where a magazine said no. Not in line: so the fast path has its own end, and need
/// not carry its answer past that of the others.
#[cold]
#[inline(never)]
fn unpin<C: Cpus>(pin: Pinned<'_, C>) {
    drop(pin);
}

/// The pointer with the heap's own provenance, whatever its last owner did with it.
#[inline]
pub(crate) fn own(ptr: NonNull<u8>) -> NonNull<u8> {
    let address = ptr.as_ptr() as usize;
    // SAFETY: not null, as `ptr` is not.
    unsafe { NonNull::new_unchecked(with_exposed_provenance_mut(address)) }
}
