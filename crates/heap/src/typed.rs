//! Object caches: objects of one type that stay constructed while they are free.
//!
//! An object comes from this CPU's magazine (`local`), that from slabs of the cache's own (`cache`);
//! an object that is freed goes the same way back. Freeing looks at once whether the slab that holds
//! the object is this cache's; the rest is checked when it leaves the magazine.
#![allow(unsafe_code)] // hands out typed pointers into raw slabs

use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::mem::{ManuallyDrop, size_of};
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use lock_api::RawMutex;
use pagoda_sync::Cpus;

use crate::cache::CacheShelf;
use crate::inspect::What;
use crate::local::Locals;
use crate::magazine::Refused;
use crate::shelf::Destroy;
use crate::slab::owner_at;
use crate::{Heap, HeapError, Misuse, MisuseKind, PageSource, PanicReport, Report};

/// How a cache is to be; the default is what [`Heap::cache`] makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CacheOptions {
    /// Objects begin at multiples of this, if the type does not ask for more. A power of two; 64
    /// keeps two objects from sharing a cache line.
    pub align: usize,
    /// Objects that may be live at once.
    pub limit: Option<usize>,
    /// Objects of different slabs begin at different offsets, where a slab has room to spare, so
    /// that their first bytes do not all fall on the same lines of a processor's cache.
    pub colour: bool,
    /// Objects can be moved ([`Cache::compact`]).
    pub movable: bool,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self { align: 1, limit: None, colour: true, movable: false }
    }
}

/// What a cache holds, in objects and bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheStats {
    /// Objects in their owners' hands.
    pub live: usize,
    /// Constructed objects in the magazines of CPUs, or in quarantine.
    pub cached: usize,
    /// Constructed objects in slabs.
    pub free: usize,
    /// Slabs, and bytes of them.
    pub slabs: usize,
    /// Bytes taken from the page source.
    pub bytes: usize,
    /// Bytes from one object to the next.
    pub stride: usize,
}

/// Objects of type `T` with a constructor that runs once for each piece of memory, not once for
/// each allocation.
///
/// What [`alloc`](Self::alloc) gives is constructed; whoever frees it leaves it in a state that the
/// next owner can start from. `T` is dropped when the slab that holds it goes back to the page
/// source. A cache with a limit, with movable objects or in a debug mode takes the central lock with
/// each call; others keep a few objects for each CPU.
pub struct Cache<'h, T, S: PageSource, C: Cpus, R: RawMutex, P: Report = PanicReport> {
    heap: &'h Heap<S, C, R, P>,
    shelf: NonNull<CacheShelf>,
    locals: Option<Locals>,
    /// What stands in the tags of its slabs, and the bytes of a slab.
    tag: u8,
    span: usize,
    /// The alignment of objects, less one.
    mask: usize,
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
        self.cache_with(name, construct, CacheOptions::default())
    }

    /// As [`cache`](Self::cache), with options. An alignment that is no power of two is too large.
    pub fn cache_with<T>(
        &self,
        name: &'static str,
        construct: fn() -> T,
        options: CacheOptions,
    ) -> Result<Cache<'_, T, S, C, R, P>, HeapError> {
        let flags = self.flags_for(name);
        let layout = Layout::new::<T>().align_to(options.align).map_err(|_| HeapError::TooLarge)?;
        let mut shelf = self.new_shelf(name, layout, flags, true)?;
        shelf.destroy = destroy_of::<T>();
        let mask = layout.align().max(8) - 1;
        if options.colour && flags.is_empty() {
            shelf.set_coloured(mask + 1);
        }
        let (tag, span, stride) =
            (shelf.tag.encode(), shelf.order().bytes() as usize, shelf.stride);
        let exact = options.limit.is_some() || options.movable || !flags.is_empty();
        let locals = if exact { None } else { self.new_locals(stride).ok() };
        let shelf = match self.list_shelf(shelf, None) {
            Ok(shelf) => shelf,
            Err(error) => {
                if let Some(locals) = locals {
                    self.give_locals(locals);
                }
                return Err(error);
            }
        };
        let cache = Cache { heap: self, shelf, locals, tag, span, mask, construct };
        cache.with(|record| {
            record.locals = locals;
            record.limit = options.limit.unwrap_or(usize::MAX);
        });
        Ok(cache)
    }
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
    #[inline]
    pub fn alloc(&self) -> Result<Object<'_, T, S, C, R, P>, HeapError> {
        let object = self.alloc_raw()?;
        Ok(Object { cache: self, object, _owns: PhantomData })
    }

    /// A constructed object as a bare pointer; free it with [`free_raw`](Self::free_raw).
    #[inline]
    pub fn alloc_raw(&self) -> Result<NonNull<T>, HeapError> {
        if let Some(locals) = &self.locals {
            if let Some(object) = self.heap.pop_local(locals) {
                return Ok(object.cast());
            }
        }
        self.alloc_slow()
    }

    #[cold]
    #[inline(never)]
    fn alloc_slow(&self) -> Result<NonNull<T>, HeapError> {
        if let Some(locals) = &self.locals {
            if let Some(object) = self.heap.refill_local(self.shelf, locals, self.mask) {
                return Ok(object.cast());
            }
        }
        let construct = |object: NonNull<u8>| {
            // SAFETY: fresh memory of the size and alignment of T.
            unsafe { object.cast::<T>().write((self.construct)()) };
        };
        self.heap.take_object(self.shelf, size_of::<T>(), Some(&construct)).map(NonNull::cast)
    }

    /// Fills `objects` with constructed objects, or leaves them all `None` and gives back what it
    /// had. What was in them is overwritten.
    pub fn alloc_bulk(&self, objects: &mut [Option<NonNull<T>>]) -> Result<(), HeapError> {
        objects.fill(None);
        for index in 0..objects.len() {
            match self.alloc_raw() {
                Ok(object) => objects[index] = Some(object),
                Err(error) => {
                    for object in objects.iter_mut().filter_map(Option::take) {
                        // SAFETY: received above, and nobody's since.
                        let _ = unsafe { self.free_raw(object) };
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Gives many objects back. Goes on after a misuse, and returns the first one.
    ///
    /// # Safety
    /// As for [`free_raw`](Self::free_raw), for each of them.
    pub unsafe fn free_bulk(
        &self,
        objects: impl IntoIterator<Item = NonNull<T>>,
    ) -> Result<(), MisuseKind> {
        let mut outcome = Ok(());
        for object in objects {
            // SAFETY: the caller's promise.
            outcome = outcome.and(unsafe { self.free_raw(object) });
        }
        outcome
    }

    /// Gives an object back. Only an object of this very cache goes; what else is wrong with it is
    /// found out now, or when it leaves the CPU's magazine.
    ///
    /// # Safety
    /// Nobody uses the object any more, and it is a valid `T` from which the next owner can start.
    #[inline]
    pub unsafe fn free_raw(&self, object: NonNull<T>) -> Result<(), MisuseKind> {
        let object = object.cast();
        match &self.locals {
            Some(locals) if self.owns(object) => match self.heap.push_local(locals, object) {
                Ok(()) => Ok(()),
                Err(refused) => self.free_slow(object, Some(refused)),
            },
            _ => self.free_slow(object, None),
        }
    }

    /// Does the object lie in a slab of this cache?
    #[inline]
    fn owns(&self, object: NonNull<u8>) -> bool {
        let address = object.as_ptr() as usize;
        let tag = self.heap.source.tag(address).map(|tag| tag.load(Ordering::Relaxed));
        // SAFETY: the tag says that slabs of this size lie here (*tag-true*).
        tag == Some(self.tag)
            && unsafe { owner_at(address & !(self.span - 1)) } == self.shelf.as_ptr() as usize
    }

    #[cold]
    #[inline(never)]
    fn free_slow(&self, object: NonNull<u8>, refused: Option<Refused>) -> Result<(), MisuseKind> {
        let mut refused = refused;
        if let (Some(Refused::Full), Some(locals)) = (refused, &self.locals) {
            match self.heap.free_local(self.shelf, locals, self.mask, object) {
                Ok(()) => return Ok(()),
                Err(why) => refused = Some(why),
            }
        }
        let twice = refused == Some(Refused::Twice);
        self.heap.free_checked(object, None, |found| match found.what {
            What::Cache(owner, ..) if owner == self.shelf => {
                twice.then_some(MisuseKind::DoubleFree)
            }
            _ => Some(MisuseKind::WrongCache),
        })
    }

    /// Moves objects out of slabs that are mostly free, so that these can go back to the source;
    /// returns how many were moved. For caches made with [`CacheOptions::movable`]; others move none.
    ///
    /// `mover(from, to)` is called without any lock held, for a live object and a constructed free
    /// one. It moves the contents over, tells everybody who knows of `from`, and returns true; then
    /// `from` is free and `to` is live. Or it returns false, and all stays as it was: because the
    /// object is in use, or was freed since.
    ///
    /// # Safety
    /// When `mover` returns true, `from` was live until then, nobody uses or frees it any more, it is
    /// a valid `T` from which the next owner can start, and `to` is freed in its place one day.
    pub unsafe fn compact(&self, mut mover: impl FnMut(NonNull<T>, NonNull<T>) -> bool) -> usize {
        let (mut moved, mut refusals) = (0, 0);
        // Slabs whose objects did not want to move.
        let mut passed_over = [0; 16];
        while refusals < passed_over.len() {
            let pair = self.with(|record| {
                if record.locals.is_some() || record.shelf.guard.is_some() {
                    return None;
                }
                let shelf = &mut record.shelf;
                let (sparse, dense) = shelf.extremes(|slab| {
                    passed_over[..refusals].contains(&(slab.base().as_ptr() as usize))
                })?;
                let index = (0..sparse.count()).find(|&index| !sparse.is_free(index))?;
                let from = sparse.object(index);
                Some((from, shelf.take_from(dense)?, sparse.base().as_ptr() as usize))
            });
            let Some((from, to, slab)) = pair else { break };
            let gone = match mover(from.cast(), to.cast()) {
                true => {
                    moved += 1;
                    from
                }
                false => {
                    passed_over[refusals] = slab;
                    refusals += 1;
                    to
                }
            };
            // SAFETY: the caller's promise, or just taken and nobody's.
            let _ = unsafe { self.free_raw(gone.cast()) };
        }
        moved
    }

    /// Objects in their owners' hands.
    pub fn live(&self) -> usize {
        self.stats().live
    }

    /// What the cache holds. Exact when no other CPU uses it at the same time.
    pub fn stats(&self) -> CacheStats {
        self.with(|record| {
            let shelf = &record.shelf;
            let cached = record.locals.map_or(record.waiting, |locals| locals.len());
            CacheStats {
                live: shelf.live.saturating_sub(cached),
                cached,
                free: shelf.objects - shelf.live,
                slabs: shelf.slabs,
                bytes: shelf.slabs * self.span,
                stride: shelf.stride,
            }
        })
    }

    /// Another limit from now on (objects beyond it stay live). Only for a cache that was made with
    /// one; false for others, whose magazines do not count.
    pub fn set_limit(&self, limit: usize) -> bool {
        self.with(|record| {
            let may = record.locals.is_none();
            if may {
                record.limit = limit;
            }
            may
        })
    }

    fn with<U>(&self, change: impl FnOnce(&mut CacheShelf) -> U) -> U {
        let _state = self.heap.state.lock();
        // SAFETY: *cache-listed*; the lock is held, so this is the only reference.
        change(unsafe { &mut *self.shelf.as_ptr() })
    }

    /// Evidence of objects that are still live.
    fn leak(&self) -> Option<Misuse> {
        let live = self.with(|record| record.shelf.live);
        let mut misuse = Misuse::at(MisuseKind::Leak, self.shelf.as_ptr() as usize);
        self.heap.live_objects_of(self.shelf, |object| {
            if misuse.block == 0 {
                (misuse.block, misuse.allocated) = (object.address, object.allocated);
                misuse.cache = object.cache;
            }
        });
        (live != 0).then_some(Misuse { size: live, ..misuse })
    }
}

impl<T, S: PageSource, C: Cpus, R: RawMutex, P: Report> Drop for Cache<'_, T, S, C, R, P> {
    /// Gives all memory back. Objects that are still live are reported, and keep their slabs and
    /// the cache's record.
    fn drop(&mut self) {
        if let Some(locals) = self.with(|record| record.locals.take()) {
            self.heap.empty_locals(self.shelf, &locals);
            self.heap.give_locals(locals);
        }
        self.heap.release_quarantine();
        while let (Some(slab), order, destroy) = self.with(|record| {
            let shelf = &mut record.shelf;
            (shelf.pop_empty(), shelf.order(), shelf.destroy)
        }) {
            self.heap.give_slab(slab, order, destroy);
        }
        if let Some(misuse) = self.leak() {
            self.heap.tell(misuse);
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
