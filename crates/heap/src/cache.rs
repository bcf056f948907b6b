//! Object caches: objects of one type that stay constructed while they are free.
//!
//! *cache-listed*: a cache's shelf is a block of the heap itself; it is on the heap's list, and at
//! its address, for as long as any slab names it as owner.
//!
//! Left out so far: limits, colouring, bulk operations, and a "move this object" callback.
#![allow(unsafe_code)] // hands out typed pointers into raw slabs

use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::mem::{ManuallyDrop, size_of};
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use lock_api::RawMutex;
use pagoda_addr::Order;
use pagoda_sync::Cpus;

use crate::classes::{Tag, class_of};
use crate::guard::{DebugFlags, Guard};
use crate::inspect::What;
use crate::shelf::{Destroy, Shelf};
use crate::slab::{Slab, capacity};
use crate::{Heap, HeapError, Misuse, MisuseKind, PageSource, PanicReport, Report};

/// The part of a cache that the heap knows.
pub(crate) struct CacheShelf {
    pub(crate) shelf: Shelf,
    /// The size class that it serves, in a debug mode; none for a typed cache.
    pub(crate) class: Option<u8>,
    pub(crate) next: Option<NonNull<CacheShelf>>,
}

/// Objects of type `T` with a constructor that runs once for each piece of memory, not once for
/// each allocation.
///
/// What [`alloc`](Self::alloc) gives is constructed; whoever frees it leaves it in a state that the
/// next owner can start from. `T` is dropped when the slab that holds it goes back to the page
/// source.
pub struct Cache<'h, T, S: PageSource, C: Cpus, R: RawMutex, P: Report = PanicReport> {
    heap: &'h Heap<S, C, R, P>,
    shelf: NonNull<CacheShelf>,
    construct: fn() -> T,
}

// SAFETY: the shelf is used under the heap's lock; objects move between threads one owner at a time.
unsafe impl<T: Send, S: PageSource + Sync, C: Cpus + Sync, R: RawMutex + Sync, P: Report + Sync>
    Send for Cache<'_, T, S, C, R, P>
{
}
// SAFETY: as above.
unsafe impl<T: Send, S: PageSource + Sync, C: Cpus + Sync, R: RawMutex + Sync, P: Report + Sync>
    Sync for Cache<'_, T, S, C, R, P>
{
}

impl<S: PageSource, C: Cpus, R: RawMutex, P: Report> Heap<S, C, R, P> {
    /// An object cache, listed as `name` (for `slabtop`: no blanks). Fails for objects that no slab
    /// can hold, and when there is no memory for the cache's own record.
    ///
    /// A panic in `construct` leaks the slab that was being filled.
    pub fn cache<T>(
        &self,
        name: &'static str,
        construct: fn() -> T,
    ) -> Result<Cache<'_, T, S, C, R, P>, HeapError> {
        let flags = self.flags_for(name);
        let mut shelf = self.new_shelf(name, Layout::new::<T>(), flags, true)?;
        shelf.destroy = destroy_of::<T>();
        Ok(Cache { heap: self, shelf: self.list_shelf(shelf, None)?, construct })
    }

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
        // Not through `kalloc`: the heap's own records are not to be guarded, nor seen as leaks.
        let class = class_of(Layout::new::<CacheShelf>()).ok_or(HeapError::TooLarge)?;
        let memory: NonNull<CacheShelf> = self.refill(class)?.cast();
        memory.as_ptr().expose_provenance();
        let mut state = self.state.lock();
        // SAFETY: fresh memory of this layout.
        unsafe { memory.write(CacheShelf { shelf, class: serves, next: state.caches }) };
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
                let _state = self.state.lock();
                // SAFETY: *cache-listed*; the lock is held, so this is the only reference.
                let shelf = unsafe { &mut (*cache.as_ptr()).shelf };
                if let Some(slab) = fresh.take() {
                    shelf.add(slab);
                }
                match (shelf.take(), shelf.guard) {
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
        let (order, stride, tag, guard) = {
            let _state = self.state.lock();
            // SAFETY: *cache-listed*; the lock is held.
            let shelf = unsafe { &(*cache.as_ptr()).shelf };
            (shelf.order(), shelf.stride, shelf.tag, shelf.guard)
        };
        let base = self.take_pages_hard(order, false)?;
        let span = order.bytes() as usize;
        // SAFETY: fresh pages; the order was chosen so that the stride fits.
        let slab = unsafe { Slab::create(base, span, stride) };
        slab.owner.set(cache.as_ptr() as usize);
        slab.set_lead(guard.map_or(0, |guard| guard.lead));
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

fn destroy_of<T>() -> Option<Destroy> {
    /// # Safety
    /// A constructed `T` lies there, and nobody uses it any more.
    unsafe fn destroy<T>(object: NonNull<u8>) {
        // SAFETY: the caller's promise.
        unsafe { object.cast::<T>().drop_in_place() };
    }
    core::mem::needs_drop::<T>().then_some(destroy::<T>)
}

impl<T, S: PageSource, C: Cpus, R: RawMutex, P: Report> Cache<'_, T, S, C, R, P> {
    /// A constructed object, given back when dropped (and not destroyed by that).
    pub fn alloc(&self) -> Result<Object<'_, T, S, C, R, P>, HeapError> {
        let object = self.alloc_raw()?;
        Ok(Object { cache: self, object, _owns: PhantomData })
    }

    /// A constructed object as a bare pointer; free it with [`free_raw`](Self::free_raw).
    pub fn alloc_raw(&self) -> Result<NonNull<T>, HeapError> {
        let construct = |object: NonNull<u8>| {
            // SAFETY: fresh memory of the size and alignment of T.
            unsafe { object.cast::<T>().write((self.construct)()) };
        };
        self.heap.take_object(self.shelf, size_of::<T>(), Some(&construct)).map(NonNull::cast)
    }

    /// Gives an object back. Checked like `kfree`: only a live object of this very cache goes.
    ///
    /// # Safety
    /// Nobody uses the object any more, and it is a valid `T` from which the next owner can start.
    pub unsafe fn free_raw(&self, object: NonNull<T>) -> Result<(), MisuseKind> {
        self.heap.free_checked(object.cast(), None, |found| match found.what {
            What::Cache(owner, ..) if owner == self.shelf => None,
            _ => Some(MisuseKind::WrongCache),
        })
    }

    /// Objects in their owners' hands.
    pub fn live(&self) -> usize {
        self.with(|shelf| shelf.live)
    }

    fn with<U>(&self, change: impl FnOnce(&mut Shelf) -> U) -> U {
        let _state = self.heap.state.lock();
        // SAFETY: *cache-listed*; the lock is held, so this is the only reference.
        change(unsafe { &mut (*self.shelf.as_ptr()).shelf })
    }
}

impl<T, S: PageSource, C: Cpus, R: RawMutex, P: Report> Drop for Cache<'_, T, S, C, R, P> {
    /// Gives all memory back. Objects that are still live are reported, and keep their slabs and
    /// the cache's record.
    fn drop(&mut self) {
        self.heap.release_quarantine();
        while let (Some(slab), order, destroy) =
            self.with(|shelf| (shelf.pop_empty(), shelf.order(), shelf.destroy))
        {
            self.heap.give_slab(slab, order, destroy);
        }
        let (live, name) = self.with(|shelf| (shelf.live, shelf.name));
        if live != 0 {
            let misuse = Misuse::at(MisuseKind::Leak, self.shelf.as_ptr() as usize);
            self.heap.tell(Misuse { cache: name, size: live, ..misuse });
            return;
        }
        let mut state = self.heap.state.lock();
        let mut link: *mut Option<NonNull<CacheShelf>> = &mut state.caches;
        // SAFETY: *cache-listed*; the lock is held while the list is walked and changed.
        unsafe {
            while let Some(cache) = *link {
                if cache == self.shelf {
                    *link = (*cache.as_ptr()).next;
                    break;
                }
                link = &raw mut (*cache.as_ptr()).next;
            }
        }
        drop(state);
        // SAFETY: off the list, and no slab names it any more.
        let _ = unsafe { self.heap.kfree(self.shelf.cast()) };
    }
}

/// An object of a [`Cache`] in its owner's hands.
#[must_use = "dropping it gives it back at once"]
pub struct Object<'c, T, S: PageSource, C: Cpus, R: RawMutex, P: Report = PanicReport> {
    cache: &'c Cache<'c, T, S, C, R, P>,
    object: NonNull<T>,
    _owns: PhantomData<T>,
}

// SAFETY: an owner of a `T`, and a shared cache.
unsafe impl<T: Send, S: PageSource + Sync, C: Cpus + Sync, R: RawMutex + Sync, P: Report + Sync>
    Send for Object<'_, T, S, C, R, P>
{
}

impl<T, S: PageSource, C: Cpus, R: RawMutex, P: Report> Object<'_, T, S, C, R, P> {
    /// The bare pointer; the object is to be given back with [`Cache::free_raw`].
    pub fn into_raw(self) -> NonNull<T> {
        ManuallyDrop::new(self).object
    }
}

impl<T, S: PageSource, C: Cpus, R: RawMutex, P: Report> Deref for Object<'_, T, S, C, R, P> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: constructed, and this owner's alone.
        unsafe { self.object.as_ref() }
    }
}

impl<T, S: PageSource, C: Cpus, R: RawMutex, P: Report> DerefMut for Object<'_, T, S, C, R, P> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: constructed, and this owner's alone.
        unsafe { self.object.as_mut() }
    }
}

impl<T, S: PageSource, C: Cpus, R: RawMutex, P: Report> Drop for Object<'_, T, S, C, R, P> {
    fn drop(&mut self) {
        // A misuse has been reported; the object leaks.
        // SAFETY: the owner is gone, and a `T` behind `&mut` is always a valid `T`.
        let _ = unsafe { self.cache.free_raw(self.object) };
    }
}

impl<T: fmt::Debug, S: PageSource, C: Cpus, R: RawMutex, P: Report> fmt::Debug
    for Object<'_, T, S, C, R, P>
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
