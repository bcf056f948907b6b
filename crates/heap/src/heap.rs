//! The heap: `kalloc`, `kfree` and their kin.
//!
//! One lock guards the shelves. It is never held while the source is asked for pages or given some
//! back, nor while the host's report hook runs.
#![allow(unsafe_code)] // hands out and takes back raw memory

use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use lock_api::RawMutex;
use pagoda_addr::Order;
use pagoda_sync::Cpus;

use crate::cache::CacheShelf;
use crate::classes::{CLASSES, NAMES, Place, SIZES, Tag, place};
use crate::shelf::{Destroy, Shelf};
use crate::slab::{Slab, Spot};
use crate::source::TAG_SHIFT;
use crate::{HeapError, Misuse, MisuseKind, PageSource, PanicReport, Report};

/// A kernel heap over the pages of `S`, for the CPUs of `C`, locked by `R`, telling `P` about
/// misuse.
///
/// Constructible in a `static`: [`new`](Self::new) is `const` and allocates nothing. Dropping a
/// heap returns nothing to the source; [`shrink`](Self::shrink) does, for what is not live.
pub struct Heap<S, C, R, P = PanicReport> {
    pub(crate) source: S,
    #[allow(dead_code)] // every CPU goes to the shelves so far
    cpus: C,
    pub(crate) report: P,
    pub(crate) state: lock_api::Mutex<R, State>,
    /// Bytes taken from the source and not given back.
    pub(crate) taken: AtomicUsize,
}

/// What the lock guards.
pub(crate) struct State {
    pub(crate) classes: [Shelf; CLASSES],
    /// All object caches, newest first.
    pub(crate) caches: Option<NonNull<CacheShelf>>,
    /// Bytes in live runs.
    pub(crate) runs: usize,
}

// SAFETY: the pointers inside lead to memory that only the holder of the state uses.
unsafe impl Send for State {}

/// What `kfree` found behind a pointer.
pub(crate) struct Found {
    pub(crate) what: What,
    pub(crate) start: usize,
    pub(crate) size: usize,
    pub(crate) name: &'static str,
}

/// A live block.
#[derive(Clone, Copy)]
pub(crate) enum What {
    Class(u8, Slab, usize),
    Cache(NonNull<CacheShelf>, Slab, usize),
    Run(Order),
}

impl<S: PageSource, C: Cpus, R: RawMutex> Heap<S, C, R> {
    /// An empty heap that panics on misuse. Allocates nothing.
    pub const fn new(source: S, cpus: C) -> Self {
        Self::with_report(source, cpus, PanicReport)
    }
}

impl<S: PageSource, C: Cpus, R: RawMutex, P: Report> Heap<S, C, R, P> {
    /// An empty heap that tells `report` about misuse. Allocates nothing.
    pub const fn with_report(source: S, cpus: C, report: P) -> Self {
        let mut classes = [const { Shelf::of_class(0) }; CLASSES];
        let mut class = 1;
        while class < CLASSES {
            classes[class] = Shelf::of_class(class);
            class += 1;
        }
        let state = State { classes, caches: None, runs: 0 };
        Self {
            source,
            cpus,
            report,
            state: lock_api::Mutex::const_new(R::INIT, state),
            taken: AtomicUsize::new(0),
        }
    }

    /// The page source.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// A block of `layout`, contents arbitrary. Size 0 is served as size 1: a block of its own.
    pub fn kalloc(&self, layout: Layout) -> Result<NonNull<u8>, HeapError> {
        match place(layout).ok_or(HeapError::TooLarge)? {
            Place::Class(class) => self.alloc_small(class),
            Place::Run(order) => self.alloc_run(order, false),
        }
    }

    /// A block of `layout`, its first `layout.size()` bytes zero.
    pub fn kalloc_zeroed(&self, layout: Layout) -> Result<NonNull<u8>, HeapError> {
        match place(layout).ok_or(HeapError::TooLarge)? {
            Place::Class(class) => {
                let block = self.alloc_small(class)?;
                // SAFETY: the block is the caller's, and holds the layout.
                unsafe { block.write_bytes(0, layout.size()) };
                Ok(block)
            }
            Place::Run(order) => self.alloc_run(order, true),
        }
    }

    /// Frees a block whose size the caller does not know.
    ///
    /// That the pointer is a live block of this heap is checked, not trusted; whatever else it is
    /// goes to the report hook, comes back as the error, and changes nothing.
    ///
    /// # Safety
    /// Nobody uses the block any more.
    pub unsafe fn kfree(&self, ptr: NonNull<u8>) -> Result<(), Misuse> {
        self.free(ptr, |found| match found.what {
            What::Cache(..) => Some(MisuseKind::WrongCache),
            _ => None,
        })
    }

    /// Frees a block that was allocated with `layout`.
    ///
    /// # Safety
    /// Nobody uses the block any more.
    pub unsafe fn kfree_sized(&self, ptr: NonNull<u8>, layout: Layout) -> Result<(), Misuse> {
        let expected = place(layout);
        self.free(ptr, |found| match found.what {
            What::Cache(..) => Some(MisuseKind::WrongCache),
            What::Class(class, ..) if expected == Some(Place::Class(class)) => None,
            What::Run(order) if expected == Some(Place::Run(order)) => None,
            _ => Some(MisuseKind::WrongLayout),
        })
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
            return self.usable_size(ptr).map(|_| ptr).map_err(HeapError::Misuse);
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

    /// The bytes that may be used behind a live block's pointer.
    pub fn usable_size(&self, ptr: NonNull<u8>) -> Result<usize, Misuse> {
        let found = {
            let state = self.state.lock();
            self.inspect(&state, ptr.as_ptr() as usize)
        };
        found.map(|found| found.size).inspect_err(|misuse| self.report.misuse(misuse))
    }

    /// Gives every page without a live block back to the source. Returns the number of pages.
    pub fn shrink(&self) -> usize {
        let mut pages = 0;
        for class in 0..CLASSES {
            loop {
                // The guard must not live on into the body.
                let slab = self.state.lock().classes[class].pop_empty();
                let Some(slab) = slab else { break };
                pages += slab.span() >> pagoda_addr::PAGE_SHIFT;
                self.give_slab(slab, crate::shelf::CLASS_ORDER, None);
            }
        }
        pages + self.shrink_caches()
    }

    fn alloc_small(&self, class: u8) -> Result<NonNull<u8>, HeapError> {
        let class = usize::from(class);
        if let Some(object) = self.state.lock().classes[class].take() {
            return Ok(object);
        }
        self.grow(class)
    }

    #[cold]
    fn grow(&self, class: usize) -> Result<NonNull<u8>, HeapError> {
        let order = crate::shelf::CLASS_ORDER;
        let slab = self.take_slab(order, usize::from(SIZES[class]), Tag::Slab(class as u8), 0)?;
        let mut state = self.state.lock();
        let shelf = &mut state.classes[class];
        shelf.add(slab);
        shelf.take().ok_or(HeapError::OutOfPages)
    }

    /// A fresh slab of 2^`order` pages, tagged, on no shelf yet.
    pub(crate) fn take_slab(
        &self,
        order: Order,
        stride: usize,
        tag: Tag,
        owner: usize,
    ) -> Result<Slab, HeapError> {
        let base = self.take_pages(order, false)?;
        let span = order.bytes() as usize;
        // SAFETY: fresh pages; every caller's stride fits (classes: by their table; caches: by
        // their choice of order).
        let slab = unsafe { Slab::create(base, span, stride) };
        slab.owner.set(owner);
        self.tag_all(base.as_ptr() as usize, span, tag);
        Ok(slab)
    }

    /// Gives a slab back that is on no shelf any more.
    pub(crate) fn give_slab(&self, slab: Slab, order: Order, destroy: Option<Destroy>) {
        {
            // Under the lock: whoever inspects an address reads its tag and then the header.
            let _state = self.state.lock();
            self.tag_all(slab.base().as_ptr() as usize, slab.span(), Tag::Gone);
        }
        if let Some(destroy) = destroy {
            for index in 0..slab.count() {
                // SAFETY: the cache constructed each object, and nobody can reach them any more.
                unsafe { destroy(slab.object(index)) };
            }
        }
        self.give_pages(slab.base(), order);
    }

    fn alloc_run(&self, order: Order, zeroed: bool) -> Result<NonNull<u8>, HeapError> {
        let base = self.take_pages(order, zeroed)?;
        let start = base.as_ptr() as usize;
        self.tag_all(start, order.bytes() as usize, Tag::RunInside);
        self.set_tag(start, Tag::Run);
        self.set_tag(start + (1 << TAG_SHIFT), Tag::RunOrder(order));
        self.state.lock().runs += order.bytes() as usize;
        Ok(base)
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

    fn give_pages(&self, base: NonNull<u8>, order: Order) {
        self.taken.fetch_sub(order.bytes() as usize, Ordering::Relaxed);
        // SAFETY: taken with this order; the heap holds no block in it and has cleared its tags.
        unsafe { self.source.free_pages(base, order) };
    }

    fn tag(&self, address: usize) -> Tag {
        self.source.tag(address).map_or(Tag::None, |tag| Tag::decode(tag.load(Ordering::Relaxed)))
    }

    fn set_tag(&self, address: usize, tag: Tag) {
        if let Some(slot) = self.source.tag(address) {
            slot.store(tag.encode(), Ordering::Relaxed);
        }
    }

    fn tag_all(&self, start: usize, bytes: usize, tag: Tag) {
        for offset in (0..bytes).step_by(1 << TAG_SHIFT) {
            self.set_tag(start + offset, tag);
        }
    }

    /// Frees the block at `ptr` unless `refuse` names a reason against it.
    pub(crate) fn free(
        &self,
        ptr: NonNull<u8>,
        refuse: impl FnOnce(&Found) -> Option<MisuseKind>,
    ) -> Result<(), Misuse> {
        let address = ptr.as_ptr() as usize;
        let mut state = self.state.lock();
        let outcome = self.inspect(&state, address).and_then(|found| match refuse(&found) {
            Some(kind) => Err(found.misuse(kind, address)),
            None => Ok(found.what),
        });
        let (slab, order, destroy) = match outcome {
            Ok(What::Class(class, slab, index)) => {
                let shelf = &mut state.classes[usize::from(class)];
                (shelf.put(slab, index).flatten(), shelf.order, None)
            }
            Ok(What::Cache(cache, slab, index)) => {
                // SAFETY: *cache-listed*: the shelf lives as long as a slab names it.
                let shelf = unsafe { &mut (*cache.as_ptr()).shelf };
                (shelf.put(slab, index).flatten(), shelf.order, shelf.destroy)
            }
            Ok(What::Run(order)) => {
                state.runs -= order.bytes() as usize;
                self.tag_all(address, order.bytes() as usize, Tag::Gone);
                drop(state);
                let base = core::ptr::with_exposed_provenance_mut(address);
                self.give_pages(NonNull::new(base).unwrap_or(ptr), order);
                return Ok(());
            }
            Err(misuse) => {
                drop(state);
                self.report.misuse(&misuse);
                return Err(misuse);
            }
        };
        drop(state);
        if let Some(slab) = slab {
            self.give_slab(slab, order, destroy);
        }
        Ok(())
    }

    /// What the block at `address` is; a misuse when no live block starts there. The state is the
    /// proof that the lock is held.
    pub(crate) fn inspect(&self, _state: &State, address: usize) -> Result<Found, Misuse> {
        let foreign = Misuse { kind: MisuseKind::Foreign, address, cache: "", block: 0, size: 0 };
        match self.tag(address) {
            Tag::None => Err(foreign),
            Tag::Gone => Err(Misuse { kind: MisuseKind::DoubleFree, ..foreign }),
            Tag::Slab(class) => self.inspect_slab(crate::shelf::CLASS_ORDER, Some(class), address),
            Tag::Cache(order) => self.inspect_slab(order, None, address),
            Tag::Run | Tag::RunOrder(_) | Tag::RunInside => self.inspect_run(address),
        }
    }

    fn inspect_slab(
        &self,
        order: Order,
        class: Option<u8>,
        address: usize,
    ) -> Result<Found, Misuse> {
        let base = address & !(order.bytes() as usize - 1);
        let damaged =
            Misuse { kind: MisuseKind::Damaged, address, cache: "", block: base, size: 0 };
        // SAFETY: the tag says that a slab of this order lies here; the lock is held.
        let slab = unsafe { Slab::at(base) }.ok_or(damaged)?;
        let owner = NonNull::new(core::ptr::with_exposed_provenance_mut(slab.owner.get()));
        let (name, size) = match (class, owner) {
            (Some(class), None) => {
                (NAMES[usize::from(class)], usize::from(SIZES[usize::from(class)]))
            }
            (None, Some(owner)) => {
                let cache: NonNull<CacheShelf> = owner;
                // SAFETY: *cache-listed*, and the lock is held.
                unsafe { ((*cache.as_ptr()).shelf.name, (*cache.as_ptr()).shelf.object) }
            }
            _ => return Err(damaged),
        };
        let (index, kind) = match slab.locate(address) {
            Spot::Start(index) if slab.is_free(index) => (index, Some(MisuseKind::DoubleFree)),
            Spot::Start(index) => (index, None),
            Spot::Inside(index) => (index, Some(MisuseKind::Interior)),
            Spot::Outside => {
                let kind = MisuseKind::Interior;
                return Err(Misuse { kind, address, cache: name, block: 0, size: 0 });
            }
        };
        let what = match (class, owner) {
            (Some(class), _) => What::Class(class, slab, index),
            (None, Some(owner)) => What::Cache(owner, slab, index),
            (None, None) => return Err(damaged),
        };
        let found = Found { what, start: slab.object(index).as_ptr() as usize, size, name };
        match kind {
            Some(kind) => Err(found.misuse(kind, address)),
            None => Ok(found),
        }
    }

    fn inspect_run(&self, address: usize) -> Result<Found, Misuse> {
        let step = 1 << TAG_SHIFT;
        let mut start = address & !(step - 1);
        // The first KiB is at most the largest order away; on the way there only tags of a run.
        for _ in 0..Order::MAX.bytes() >> TAG_SHIFT {
            match self.tag(start) {
                Tag::RunOrder(_) | Tag::RunInside => start = start.wrapping_sub(step),
                _ => break,
            }
        }
        let (Tag::Run, Tag::RunOrder(order)) = (self.tag(start), self.tag(start + step)) else {
            let kind = MisuseKind::Damaged;
            return Err(Misuse { kind, address, cache: "", block: start, size: 0 });
        };
        let size = order.bytes() as usize;
        let found = Found { what: What::Run(order), start, size, name: "kmalloc-pages" };
        match address == start {
            true => Ok(found),
            false => Err(found.misuse(MisuseKind::Interior, address)),
        }
    }
}

impl Found {
    pub(crate) fn misuse(&self, kind: MisuseKind, address: usize) -> Misuse {
        Misuse { kind, address, cache: self.name, block: self.start, size: self.size }
    }
}
