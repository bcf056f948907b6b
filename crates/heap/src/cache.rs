//! The shelves of object caches, and of size classes in a debug mode: how they come to be, and how
//! objects and slabs come and go. What a user sees of it is in `typed`, magazines are in `local`.
//!
//! *cache-listed*: a cache's shelf is a block of the heap itself; it is on the heap's list, and at
//! its address, for as long as any slab names it as owner.
#![allow(unsafe_code)] // follows raw pointers to shelves

use core::alloc::Layout;
use core::ptr::NonNull;

use lock_api::RawMutex;
use pagoda_addr::Order;
use pagoda_sync::Cpus;

use crate::classes::Tag;
use crate::guard::{DebugFlags, Guard};
use crate::local::Locals;
use crate::shelf::{Destroy, Shelf};
use crate::slab::{Slab, capacity};
use crate::{Heap, HeapError, PageSource, Report};

/// The part of a cache that the heap knows.
pub(crate) struct CacheShelf {
    pub(crate) shelf: Shelf,
    /// The size class that it serves, in a debug mode; none for a typed cache.
    pub(crate) class: Option<u8>,
    /// The CPUs' magazines, for a typed cache that has some.
    pub(crate) locals: Option<Locals>,
    /// Objects that may be live at once.
    pub(crate) limit: usize,
    /// Objects that are out of their slabs, but in quarantine.
    pub(crate) waiting: usize,
    pub(crate) next: Option<NonNull<CacheShelf>>,
}

impl<S: PageSource, C: Cpus, R: RawMutex, P: Report> Heap<S, C, R, P> {
    /// A shelf for objects of this layout.
    pub(crate) fn new_shelf(
        &self,
        name: &'static str,
        layout: Layout,
        flags: DebugFlags,
        constructed: bool,
    ) -> Result<Shelf, HeapError> {
        let (size, align) = (layout.size(), layout.align().max(8));
        let (guard, stride) = match flags.is_empty() {
            true => (None, size.max(8).checked_next_multiple_of(align)),
            false => Guard::new(flags, size, align, constructed)
                .map_or((None, None), |(guard, stride)| (Some(guard), Some(stride))),
        };
        let stride = stride.ok_or(HeapError::TooLarge)?;
        let order = slab_order(stride).ok_or(HeapError::TooLarge)?;
        let mut shelf = Shelf::new(name, size, stride, 1, Tag::Cache(order), None);
        shelf.guard = guard;
        Ok(shelf)
    }

    /// Gives a shelf its place on the list. `serves`: which class it serves, in a debug mode.
    pub(crate) fn list_shelf(
        &self,
        shelf: Shelf,
        serves: Option<u8>,
    ) -> Result<NonNull<CacheShelf>, HeapError> {
        let memory: NonNull<CacheShelf> = self.record(Layout::new::<CacheShelf>())?.cast();
        let mut state = self.state.lock();
        // SAFETY: fresh memory of this layout.
        unsafe {
            memory.write(CacheShelf {
                shelf,
                class: serves,
                locals: None,
                limit: usize::MAX,
                waiting: 0,
                next: state.caches,
            });
        }
        state.caches = Some(memory);
        Ok(memory)
    }

    /// An object of the shelf, for an owner who asked for `size` bytes.
    pub(crate) fn take_object(
        &self,
        cache: NonNull<CacheShelf>,
        size: usize,
        construct: Option<&dyn Fn(NonNull<u8>)>,
    ) -> Result<NonNull<u8>, HeapError> {
        let track = self.track();
        let mut fresh = None;
        loop {
            let harmed = {
                let mut state = self.state.lock();
                // SAFETY: *cache-listed*; the lock is held, so this is the only reference.
                let CacheShelf { shelf, limit, waiting, .. } = unsafe { &mut *cache.as_ptr() };
                if let Some(slab) = fresh.take() {
                    shelf.add(slab);
                }
                if shelf.live - *waiting >= *limit {
                    return Err(HeapError::Limit);
                }
                match (shelf.take(&mut state.dice), shelf.guard) {
                    (None, _) => None,
                    (Some(object), None) => return Ok(object),
                    (Some(object), Some(guard)) => {
                        // SAFETY: *guard-locked*; a free object, just taken.
                        match unsafe { guard.hand_out(object, size.min(shelf.object), track) } {
                            Ok(()) => return Ok(object),
                            Err((kind, harm)) => Some((object, kind, harm)),
                        }
                    }
                }
            };
            match harmed {
                // What was written over stays as it is, and is never handed out again.
                Some((object, kind, harm)) => self.tell_harm(object, kind, harm),
                None => fresh = Some(self.take_slab(cache, construct)?),
            }
        }
    }

    /// The empty slabs of all caches go back.
    pub(crate) fn shrink_caches(&self) {
        loop {
            let state = self.state.lock();
            let mut found = None;
            let mut next = state.caches;
            while let Some(cache) = next {
                // SAFETY: *cache-listed*; the lock is held.
                let cache = unsafe { &mut *cache.as_ptr() };
                if let Some(slab) = cache.shelf.pop_empty() {
                    found = Some((slab, cache.shelf.order(), cache.shelf.destroy));
                    break;
                }
                next = cache.next;
            }
            drop(state);
            let Some((slab, order, destroy)) = found else { return };
            self.give_slab(slab, order, destroy);
        }
    }
}

impl<S: PageSource, C: Cpus, R: RawMutex, P: Report> Heap<S, C, R, P> {
    /// A fresh slab for a cache, tagged, its objects constructed and laid down, on no shelf yet.
    fn take_slab(
        &self,
        cache: NonNull<CacheShelf>,
        construct: Option<&dyn Fn(NonNull<u8>)>,
    ) -> Result<Slab, HeapError> {
        let (order, stride, tag, guard, colour) = {
            let _state = self.state.lock();
            // SAFETY: *cache-listed*; the lock is held, so this is the only reference.
            let shelf = unsafe { &mut (*cache.as_ptr()).shelf };
            (shelf.order(), shelf.stride, shelf.tag, shelf.guard, shelf.next_colour())
        };
        let base = self.take_pages_hard(order, false)?;
        let span = order.bytes() as usize;
        // SAFETY: fresh pages; the order was chosen so that the stride fits.
        let slab = unsafe { Slab::create(base, span, stride) };
        slab.owner.set(cache.as_ptr() as usize);
        slab.set_lead(guard.map_or(0, |guard| guard.lead));
        slab.set_colour(colour);
        for object in (0..slab.count()).map(|index| slab.object(index)) {
            if let Some(construct) = construct {
                construct(object);
            }
            if let Some(guard) = guard {
                // SAFETY: a fresh object, constructed if it is of that sort, and nobody's.
                unsafe { guard.init(object) };
            }
        }
        let _state = self.state.lock();
        self.tag_all(base.as_ptr() as usize, span, tag);
        Ok(slab)
    }

    /// Gives a cache's slab back that is on no shelf any more.
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
}

/// The pages of a slab of such objects: room for eight if 32 KiB can, else for one.
fn slab_order(stride: usize) -> Option<Order> {
    let holds = |least: usize| {
        move |order: &Order| {
            capacity(order.bytes() as usize, stride).min(usize::from(u16::MAX)) >= least
        }
    };
    Order::all().take(4).find(holds(8)).or_else(|| Order::all().find(holds(1)))
}
