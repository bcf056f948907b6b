//! What is this address? The full check that every block passes on its way home.
#![allow(unsafe_code)] // follows tags to headers in raw pages

use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use lock_api::RawMutex;
use pagoda_addr::Order;
use pagoda_sync::Cpus;

use crate::cache::CacheShelf;
use crate::chunk::{CHUNK, Chunk, GRANULE};
use crate::classes::{NAMES, Place, SIZES, SLAB_CLASSES, Tag};
use crate::guard::Guard;
use crate::heap::State;
use crate::mapped::Mapped;
use crate::slab::{Slab, Spot};
use crate::source::TAG_SHIFT;
use crate::{Heap, Misuse, MisuseKind, PageSource, Report};

/// A block that is out, and its evidence.
pub(crate) struct Found {
    pub(crate) what: What,
    pub(crate) start: usize,
    pub(crate) size: usize,
    pub(crate) name: &'static str,
}

/// A block that is out: in an owner's hands, or in a magazine or depot.
#[derive(Clone, Copy)]
pub(crate) enum What {
    /// An object of a slab of a class.
    Small(u8, Slab, usize),
    /// A block of the pool with a class.
    Middle(u8, Chunk, usize),
    /// A block of the pool without one, of so many granules.
    Pool(Chunk, usize, usize),
    Cache(NonNull<CacheShelf>, Slab, usize),
    Run(Order),
    /// A block with pages of its own.
    Mapped(NonNull<Mapped>),
}

impl Found {
    pub(crate) fn misuse(&self, kind: MisuseKind, address: usize) -> Misuse {
        let mut misuse = Misuse {
            cache: self.name,
            block: self.start,
            size: self.size,
            ..Misuse::at(kind, address)
        };
        if let (Some(guard), Some(object)) = (self.guard(), NonNull::new(self.pointer())) {
            // SAFETY: an object of the guarded shelf; evidence is gathered under the lock.
            let (size, [allocated, freed]) = unsafe { guard.story(object) };
            misuse.size = size.unwrap_or(self.size);
            (misuse.allocated, misuse.freed) = (allocated, freed);
        }
        misuse
    }

    /// Bytes that the owner may use; none when the block is in quarantine.
    pub(crate) fn asked(&self) -> Option<usize> {
        match (self.guard(), NonNull::new(self.pointer())) {
            // SAFETY: an object of the guarded shelf; under the lock.
            (Some(guard), Some(object)) => unsafe { guard.story(object) }.0,
            _ => Some(self.size),
        }
    }

    /// The block's first byte.
    fn pointer(&self) -> *mut u8 {
        core::ptr::with_exposed_provenance_mut(self.start)
    }

    /// How the block is guarded, if it is in a debug mode. Under the lock.
    pub(crate) fn guard(&self) -> Option<Guard> {
        let What::Cache(owner, ..) = self.what else { return None };
        // SAFETY: *cache-listed*, and the lock is held.
        unsafe { (*owner.as_ptr()).shelf.guard }
    }

    /// Is it what a layout with this place gets?
    pub(crate) fn is_served_as(&self, place: Option<Place>) -> bool {
        match (self.what, place) {
            (What::Small(class, ..) | What::Middle(class, ..), Some(Place::Class(wanted))) => {
                class == wanted
            }
            (What::Cache(owner, ..), Some(Place::Class(wanted))) => {
                // SAFETY: *cache-listed*, and the lock is held.
                unsafe { (*owner.as_ptr()).class == Some(wanted) }
            }
            (What::Pool(.., granules), Some(Place::Pool(wanted, _))) => granules == wanted,
            (What::Run(order), Some(Place::Run(wanted))) => order == wanted,
            // SAFETY: *mapped-listed*, and the lock is held.
            (What::Mapped(record), wanted) => unsafe { record.as_ref() }.is_served_as(wanted),
            _ => false,
        }
    }

    /// Is it an object of a typed cache, and so none of `kfree`'s business?
    pub(crate) fn is_typed(&self) -> bool {
        let What::Cache(owner, ..) = self.what else { return false };
        // SAFETY: *cache-listed*, and the lock is held.
        unsafe { (*owner.as_ptr()).class.is_none() }
    }
}

impl<S: PageSource, C: Cpus, R: RawMutex, P: Report> Heap<S, C, R, P> {
    pub(crate) fn tag(&self, address: usize) -> Tag {
        self.source.tag(address).map_or(Tag::None, |tag| Tag::decode(tag.load(Ordering::Relaxed)))
    }

    pub(crate) fn set_tag(&self, address: usize, tag: Tag) {
        if let Some(slot) = self.source.tag(address) {
            slot.store(tag.encode(), Ordering::Relaxed);
        }
    }

    /// Tags every KiB that `bytes` from `start` touch.
    pub(crate) fn tag_all(&self, start: usize, bytes: usize, tag: Tag) {
        let first = start >> TAG_SHIFT;
        let end = (start + bytes).div_ceil(1 << TAG_SHIFT);
        (first..end).for_each(|kib| self.set_tag(kib << TAG_SHIFT, tag));
    }

    /// What the block at `address` is; a misuse when none that is out starts there. The state is
    /// the proof that the lock is held: tags and records change under it.
    pub(crate) fn inspect(&self, state: &State, address: usize) -> Result<Found, Misuse> {
        match self.tag(address) {
            Tag::None => self.inspect_mapped(state, address),
            Tag::Gone => Err(Misuse::at(MisuseKind::DoubleFree, address)),
            Tag::Class(_) | Tag::Chunk | Tag::Pool | Tag::Own => self.inspect_chunk(address),
            Tag::Cache(order) => self.inspect_cache(order, address),
            Tag::Run | Tag::RunOrder(_) | Tag::RunInside => self.inspect_run(address),
        }
    }

    fn inspect_chunk(&self, address: usize) -> Result<Found, Misuse> {
        let base = address & !(CHUNK - 1);
        let damaged = Misuse { block: base, ..Misuse::at(MisuseKind::Damaged, address) };
        // SAFETY: the tag says that this is a chunk; the lock is held.
        let chunk = unsafe { Chunk::holding(address) }.ok_or(damaged)?;
        let from = chunk.start_of((address - base) / GRANULE);
        if from == 0 {
            return Err(Misuse::at(MisuseKind::Interior, address));
        }
        if chunk.is_free(from) {
            return Err(Misuse::at(MisuseKind::DoubleFree, address));
        }
        let start = chunk.address(from);
        let granules = chunk.end_of(from) - from;
        let found = match self.tag(start) {
            Tag::Class(class) if usize::from(class) < SLAB_CLASSES => {
                return inspect_slab(start, address, |slab, index| {
                    let class_at = usize::from(class);
                    let size = usize::from(SIZES[class_at]);
                    Some((What::Small(class, slab, index), size, NAMES[class_at]))
                });
            }
            Tag::Class(class) if usize::from(SIZES[usize::from(class)]) == granules * GRANULE => {
                let what = What::Middle(class, chunk, from);
                let size = granules * GRANULE;
                Found { what, start, size, name: NAMES[usize::from(class)] }
            }
            Tag::Pool => {
                let what = What::Pool(chunk, from, granules);
                Found { what, start, size: granules * GRANULE, name: "kmalloc-pool" }
            }
            Tag::Own => return Err(Misuse::at(MisuseKind::Interior, address)),
            _ => return Err(Misuse { block: start, ..damaged }),
        };
        match address == start {
            true => Ok(found),
            false => Err(found.misuse(MisuseKind::Interior, address)),
        }
    }

    fn inspect_cache(&self, order: Order, address: usize) -> Result<Found, Misuse> {
        let base = address & !(order.bytes() as usize - 1);
        inspect_slab(base, address, |slab, index| {
            let owner = core::ptr::with_exposed_provenance_mut::<CacheShelf>(slab.owner.get());
            let owner = NonNull::new(owner)?;
            // SAFETY: *cache-listed*, and the lock is held.
            let shelf = unsafe { &(*owner.as_ptr()).shelf };
            Some((What::Cache(owner, slab, index), shelf.object, shelf.name))
        })
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
            return Err(Misuse { block: start, ..Misuse::at(MisuseKind::Damaged, address) });
        };
        let size = order.bytes() as usize;
        let found = Found { what: What::Run(order), start, size, name: "kmalloc-pages" };
        match address == start {
            true => Ok(found),
            false => Err(found.misuse(MisuseKind::Interior, address)),
        }
    }
}

/// The object at `address` in the slab at `base`, which a tag vouches for; the lock is held.
fn inspect_slab(
    base: usize,
    address: usize,
    describe: impl FnOnce(Slab, usize) -> Option<(What, usize, &'static str)>,
) -> Result<Found, Misuse> {
    let damaged = Misuse { block: base, ..Misuse::at(MisuseKind::Damaged, address) };
    // SAFETY: the tag says that a slab lies here; the lock is held.
    let slab = unsafe { Slab::at(base) }.ok_or(damaged)?;
    let (index, kind) = match slab.locate(address) {
        Spot::Start(index) if slab.is_free(index) => (index, Some(MisuseKind::DoubleFree)),
        Spot::Start(index) => (index, None),
        Spot::Inside(index) => (index, Some(MisuseKind::Interior)),
        Spot::Outside => return Err(Misuse::at(MisuseKind::Interior, address)),
    };
    let (what, size, name) = describe(slab, index).ok_or(damaged)?;
    let found = Found { what, start: slab.object(index).as_ptr() as usize, size, name };
    match kind {
        Some(kind) => Err(found.misuse(kind, address)),
        None => Ok(found),
    }
}
