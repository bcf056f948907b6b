//! The way home: from a full magazine to the depot, from there to the slab or the pool, checked.
#![allow(unsafe_code)] // moves raw blocks about

use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use lock_api::RawMutex;
use pagoda_sync::Cpus;

use crate::chunk::{CHUNK, Chunk, GRANULE};
use crate::classes::{Place, SIZES, SLAB_CLASSES, Tag};
use crate::depot::{self, array_bytes};
use crate::heap::{State, own};
use crate::inspect::{Found, What};
use crate::magazine::{Batch, Refused, UNIT, batch as batch_of};
use crate::{Heap, Misuse, MisuseKind, PageSource, Report};

/// Bytes that all depots together may hold, whatever the heap's size; and the part of the heap that
/// they may hold beyond. They are as good as free: when the source has no more, they come home before
/// anybody hears no. What they save is the search and the coalescing when blocks of many sizes come
/// and go at random: ten thousand live blocks of eighty classes keep a fifth of their bytes in motion,
/// and with room for a quarter not one call in a thousand goes further than a depot.
const DEPOTS_LEAST: usize = 256 << 10;
const DEPOTS_PART: usize = 4;

impl<S: PageSource, C: Cpus, R: RawMutex, P: Report> Heap<S, C, R, P> {
    /// Frees a block of a class whose magazine did not take it: full, or not there yet. None: to be
    /// freed one by one.
    pub(crate) fn free_full(&self, ptr: NonNull<u8>, class: u8) -> Option<Result<(), MisuseKind>> {
        let at = usize::from(class);
        if ptr.as_ptr() as usize & usize::from(crate::classes::ALIGN_MASK[at]) != 0 {
            return None;
        }
        if self.make_room(ptr, class) {
            return Some(Ok(()));
        }
        self.free_full_slow(ptr, class)
    }

    /// Takes a block in after handing the older half of this CPU's magazine to the depot, where that
    /// is all there is to do: nobody holds the depot, it has room, and no drain is due. Budget: a
    /// hundred instructions for sixteen blocks.
    #[inline]
    fn make_room(&self, ptr: NonNull<u8>, class: u8) -> bool {
        let at = usize::from(class);
        let (count, bytes) = (batch_of(at), batch_of(at) * usize::from(SIZES[at]));
        let pin = self.cpus.pin();
        let Some(area) = self.area(&pin).filter(|area| self.is_drained(area)) else { return false };
        let magazine = area.of(class);
        if !(magazine.is_full() && self.depots_have_room(bytes)) {
            return false;
        }
        // Tried, not waited for, while pinned.
        let free = self.depots[at].try_lock().filter(|_| !self.failing.now());
        let Some(mut depot) = free else { return false };
        if !magazine.send_oldest(count, &mut depot) {
            return false;
        }
        self.in_depots.fetch_add(bytes, Ordering::Relaxed);
        drop(depot);
        magazine.push(own(ptr)).is_ok()
    }

    /// May the depots take so many more bytes?
    fn depots_have_room(&self, bytes: usize) -> bool {
        let most = DEPOTS_LEAST.max(self.taken.load(Ordering::Relaxed) / DEPOTS_PART);
        self.in_depots.load(Ordering::Relaxed) + bytes <= most
    }

    #[cold]
    #[inline(never)]
    fn free_full_slow(&self, ptr: NonNull<u8>, class: u8) -> Option<Result<(), MisuseKind>> {
        let at = usize::from(class);
        self.honour();
        self.open_area();
        let mut blocks = Batch::new();
        let pushed = {
            let pin = self.cpus.pin();
            let magazine = self.area(&pin)?.of(class);
            match magazine.push(own(ptr)) {
                Err(Refused::Full) => {
                    magazine.take_oldest(batch_of(at).min(UNIT), &mut blocks);
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
            Err(Refused::Full | Refused::Askew) => None,
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
        if !(self.depots_have_room(bytes) && self.stow_in_depot(at, &blocks)) {
            self.flush(class, blocks);
        }
    }

    fn stow_in_depot(&self, class: usize, blocks: &Batch) -> bool {
        let mut depot = self.depots[class].lock();
        if let Some(room) = depot.wanted(blocks.len(), depot::capacity(class)) {
            drop(depot);
            let Some(array) = self.take_own(array_bytes(room)) else { return false };
            depot = self.depots[class].lock();
            // SAFETY: fresh records of this size.
            if let Some(spare) = unsafe { depot.open(array, room) } {
                drop(depot);
                self.give_own(spare);
                depot = self.depots[class].lock();
            }
        }
        let pushed = !self.failing.now() && depot.push(blocks.as_slice());
        if pushed {
            // Under the lock, so that nobody subtracts what has not been added.
            let bytes = blocks.len() * usize::from(SIZES[class]);
            self.in_depots.fetch_add(bytes, Ordering::Relaxed);
        }
        pushed
    }

    /// Brings blocks of a class home, checking each.
    pub(crate) fn flush(&self, class: u8, mut blocks: Batch) {
        while blocks.len() != 0 {
            let mut misuse = None;
            let mut guarded = None;
            let retired = {
                let mut state = self.state.lock();
                while let (None, None) = (misuse, guarded) {
                    let Some(block) = blocks.pop() else { break };
                    let address = block.as_ptr() as usize;
                    match self.inspect(&state, address) {
                        Ok(found) if !found.is_served_as(Some(Place::Class(class))) => {
                            misuse = Some(found.misuse(MisuseKind::WrongLayout, address));
                        }
                        Ok(Found { what: What::Cache(..) | What::Mapped(_), .. }) => {
                            guarded = Some(block);
                        }
                        Ok(found) => self.put_home(&mut state, found.what, address),
                        Err(found) => misuse = Some(found),
                    }
                }
                state.pool.has_retired()
            };
            if let Some(misuse) = misuse {
                self.tell(misuse);
            }
            if let Some(block) = guarded {
                // A sample that a magazine took, or freed on a CPU that did not know of the debug mode
                // yet. Told already if it fails.
                let _ = self.free_checked(block, None, |_| None);
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
            What::Cache(..) | What::Run(_) | What::Mapped(_) => {}
        }
    }

    /// Frees the block at `ptr` under the central lock unless `refuse` names a reason against it.
    /// `size`: what the owner thinks that he asked for.
    pub(crate) fn free_checked(
        &self,
        ptr: NonNull<u8>,
        size: Option<usize>,
        refuse: impl FnOnce(&Found) -> Option<MisuseKind>,
    ) -> Result<(), MisuseKind> {
        let address = ptr.as_ptr() as usize;
        let track = self.track();
        let mut state = self.state.lock();
        let outcome = self.inspect(&state, address).and_then(|found| match refuse(&found) {
            Some(kind) => Err(found.misuse(kind, address)),
            None => Ok(found),
        });
        let found = match outcome {
            Ok(found) => found,
            Err(misuse) => {
                drop(state);
                return Err(self.tell(misuse));
            }
        };
        match found.what {
            What::Cache(..) => match self.put_object(&mut state, found, size, track) {
                Ok(empty) => {
                    drop(state);
                    if let Some((slab, order, destroy)) = empty {
                        self.give_slab(slab, order, destroy);
                    }
                }
                Err(misuse) => {
                    drop(state);
                    return Err(self.tell(misuse));
                }
            },
            What::Mapped(record) => {
                let unmapped = Self::unlist_mapped(&mut state, record);
                drop(state);
                self.give_mapped(unmapped);
            }
            What::Run(order) => {
                state.runs -= order.bytes() as usize;
                self.tag_all(address, order.bytes() as usize, Tag::Gone);
                drop(state);
                self.give_pages(own(ptr), order);
            }
            what => {
                self.put_home(&mut state, what, address);
                drop(state);
                self.give_retired();
            }
        }
        Ok(())
    }

    /// Makes a block of the pool what `place` asks for, where it stands; false when that cannot be.
    pub(crate) fn resize(&self, ptr: NonNull<u8>, place: Place) -> bool {
        if self.failing.now() {
            return false;
        }
        let address = ptr.as_ptr() as usize;
        if let Place::Run(to) = place {
            let found = self.inspect(&self.state.lock(), address);
            let Ok(Found { what: What::Run(from), .. }) = found else { return false };
            return self.grow_run(ptr, from, to);
        }
        let (granules, align, tag) = match place {
            Place::Class(class) if usize::from(class) >= SLAB_CLASSES => {
                (usize::from(SIZES[usize::from(class)]) / GRANULE, 1, Tag::Class(class))
            }
            Place::Pool(granules, align) => (granules, align, Tag::Pool),
            _ => return false,
        };
        let mut state = self.state.lock();
        let Ok(found) = self.inspect(&state, address) else { return false };
        let (What::Middle(_, chunk, from) | What::Pool(chunk, from, _)) = found.what else {
            return false;
        };
        if address % (align * GRANULE) != 0 || !state.pool.resize(chunk, from, granules) {
            return false;
        }
        match found.what {
            What::Middle(class, ..) => state.middle[usize::from(class) - SLAB_CLASSES] -= 1,
            _ => state.unclassed -= found.size,
        }
        match place {
            Place::Class(class) => state.middle[usize::from(class) - SLAB_CLASSES] += 1,
            _ => state.unclassed += granules * GRANULE,
        }
        self.set_tag(address, tag);
        true
    }
}
