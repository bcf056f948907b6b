//! Large blocks: mappings that end at a page that faults, and a table of them.
//!
//! ```text
//! | a page and more: books, header | the program's bytes | up to 15 bytes of tail | a page that faults |
//! ```
//!
//! A large block that is resized moves with its pages into a mapping of the right length, and stays where
//! it was in its first page: then the tail is what is left of the last page.
//!
//! The table is a hash table of addresses in a mapping of its own, never more than three quarters full. It
//! neither grows nor moves, so that reports, which may not wait for its lock, can look into it.
#![allow(unsafe_code)] // mappings, and the table in one

use core::cell::Cell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use super::waiting::{Hidden, Waiting};
use super::{FAR_HEADER, Found, Standing};
use crate::allocator::Allocator;
use crate::arena::MEDIUM_MAX;
use crate::classes::UNIT_BYTES;
use crate::lock::Lock;
use crate::probe;
use crate::story::{Site, Trouble};
use crate::system::{Local, PAGE_BYTES, System};

/// Places in the table: more mappings than that Linux does not permit by default.
const PLACES: usize = 1 << 16;
const TABLE_BYTES: usize = PLACES * size_of::<usize>() + 2 * PAGE_BYTES;
/// So many freed blocks are remembered, in the page behind the table; the next has mappings that wait.
const REMEMBERED: usize = PAGE_BYTES / size_of::<Gone>();

/// The table of large blocks.
pub struct Fences {
    /// Rank 4 of the locks, the last.
    pub lock: Lock,
    table: AtomicPtr<Cell<usize>>,
    used: AtomicUsize,
    turns: AtomicUsize,
    pub(super) waiting: Waiting,
}

/// What is remembered of large blocks that were freed.
#[derive(Clone, Copy)]
struct Gone {
    at: usize,
    bytes: usize,
    allocated: Site,
    freed: Site,
}

impl Gone {
    fn found(&self) -> Found {
        let Self { bytes, allocated, freed, .. } = *self;
        Found { bytes, lead: super::FENCED, allocated, freed, standing: Standing::Gone }
    }
}

/// What stands before the header of a large block.
#[derive(Clone, Copy)]
#[repr(C)]
struct Books {
    /// Bytes of the mapping, the page that faults included.
    reserved: usize,
    /// Bytes of the mapping before its first readable page.
    before: usize,
    /// Bytes from there to the block.
    lead: usize,
    /// Bytes asked for.
    bytes: usize,
}

/// Bytes of books and header.
const FRONT: usize = FAR_HEADER + size_of::<Books>();

impl Books {
    /// # Safety
    /// A large block starts at `at`.
    unsafe fn of(at: *mut u8) -> Self {
        // SAFETY: as promised.
        unsafe { at.wrapping_sub(FRONT).cast::<Self>().read() }
    }

    fn mapping(&self, at: *mut u8) -> Hidden {
        let start = at.wrapping_sub(self.lead + self.before);
        Hidden { mapping: start.expose_provenance(), reserved: self.reserved, open: self.open() }
    }

    /// Readable bytes.
    fn open(&self) -> usize {
        self.reserved - self.before - PAGE_BYTES
    }
}

/// A large block, and the bytes from its start to the page that faults.
pub(super) struct Fence {
    pub at: *mut u8,
    pub capacity: usize,
    /// Whether the block is full of zeroes.
    pub zeroed: bool,
}

/// Bytes that were asked for.
pub(super) fn bytes(at: *mut u8) -> usize {
    // SAFETY: the header before `at` says that it is a large block.
    unsafe { Books::of(at) }.bytes
}

/// Bytes from the block's start to the page that faults.
pub(super) fn capacity(at: *mut u8) -> usize {
    // SAFETY: as above.
    let books = unsafe { Books::of(at) };
    books.open() - books.lead
}

impl Fences {
    /// Empty.
    pub const fn new() -> Self {
        Self {
            lock: Lock::new(),
            table: AtomicPtr::new(ptr::null_mut()),
            used: AtomicUsize::new(0),
            turns: AtomicUsize::new(0),
            waiting: Waiting::new(),
        }
    }

    fn place(&self, index: usize) -> Option<&Cell<usize>> {
        let table = self.table.load(Ordering::Relaxed);
        // SAFETY: the table has that many places; it is read and written under the lock.
        (!table.is_null()).then(|| unsafe { &*table.wrapping_add(index % PLACES) })
    }

    fn key_at(&self, index: usize) -> usize {
        self.place(index).map_or(0, Cell::get)
    }

    fn add<S: System>(&self, system: &S, at: usize) -> bool {
        let _held = self.lock.take(system);
        if self.table.load(Ordering::Relaxed).is_null() {
            let Some(table) = system.map(TABLE_BYTES) else { return false };
            self.table.store(table.as_ptr().cast(), Ordering::Relaxed);
        }
        if self.used.load(Ordering::Relaxed) >= PLACES / 4 * 3 {
            return false;
        }
        let free = probe::find(at, PLACES, |index| self.key_at(index));
        let Some(place) = self.place(free) else { return false };
        place.set(at);
        self.used.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Gives the table back.
    ///
    /// # Safety
    /// Nobody looks into it: the heap ends.
    pub(crate) unsafe fn end<S: System>(&self, system: &S) {
        let table = self.table.swap(ptr::null_mut(), Ordering::Relaxed);
        if let Some(table) = NonNull::new(table.cast()) {
            // SAFETY: a mapping of that length, and the caller's promise.
            unsafe { system.unmap(table, TABLE_BYTES) };
        }
    }

    /// The place of a block.
    fn search(&self, at: usize) -> Option<usize> {
        // Zero is an empty place's.
        if at == 0 {
            return None;
        }
        let index = probe::find(at, PLACES, |index| self.key_at(index));
        (self.key_at(index) == at).then_some(index)
    }

    fn has<S: System>(&self, system: &S, at: usize) -> bool {
        if self.used.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let _held = self.lock.take(system);
        self.search(at).is_some()
    }

    fn gone(&self, index: usize) -> Option<&Cell<Gone>> {
        let table = self.table.load(Ordering::Relaxed);
        let page = table.wrapping_add(PLACES).cast::<Cell<Gone>>();
        // SAFETY: a page behind the table; all zero is a valid value, of no block.
        (!table.is_null()).then(|| unsafe { &*page.wrapping_add(index % REMEMBERED) })
    }

    /// A place for a mapping that waits; to be used under the lock.
    pub(super) fn hidden(&self, index: usize) -> Option<&Cell<Hidden>> {
        let table = self.table.load(Ordering::Relaxed);
        let page = table.wrapping_add(PLACES).wrapping_byte_add(PAGE_BYTES).cast::<Cell<Hidden>>();
        let inside = (index + 1) * size_of::<Hidden>() <= PAGE_BYTES;
        // SAFETY: the second page behind the table; all zero is a valid value.
        (inside && !table.is_null()).then(|| unsafe { &*page.wrapping_add(index) })
    }

    /// What is remembered of a large block that was freed not long ago.
    pub fn remembered<S: System>(&self, system: &S, at: usize) -> Option<Found> {
        let _held = self.lock.take(system);
        (0..REMEMBERED)
            .filter_map(|index| self.gone(index))
            .map(Cell::get)
            .find(|gone| gone.at == at)
            .map(|gone| gone.found())
    }

    /// The large block, freed not long ago, in which an address lies.
    fn vanished<S: System>(&self, system: &S, at: usize) -> Option<(usize, Found)> {
        let _held = self.lock.take(system);
        (0..REMEMBERED)
            .filter_map(|index| self.gone(index))
            .map(Cell::get)
            .find(|gone| gone.at != 0 && (gone.at..gone.at + gone.bytes).contains(&at))
            .map(|gone| (gone.at, gone.found()))
    }

    /// Takes a block out of the table, and remembers it if it was freed.
    fn remove<S: System>(&self, system: &S, at: usize, freed: Option<&Found>) {
        let _held = self.lock.take(system);
        if let Some(&Found { bytes, allocated, freed, .. }) = freed {
            if let Some(place) = self.gone(self.turns.fetch_add(1, Ordering::Relaxed)) {
                place.set(Gone { at, bytes, allocated, freed });
            }
        }
        let Some(mut hole) = self.search(at) else { return };
        let set = |index, at| self.place(index).map_or((), |place| place.set(at));
        while let Some(from) = probe::filler(hole, PLACES, |index| self.key_at(index)) {
            set(hole, self.key_at(from));
            hole = from;
        }
        set(hole, 0);
        self.used.fetch_sub(1, Ordering::Relaxed);
    }

    /// All blocks, in no order. Somebody else may change the table meanwhile: then one may be missed
    /// or met twice.
    pub fn all(&self) -> impl Iterator<Item = usize> {
        (0..PLACES).map_while(|index| self.place(index)).map(Cell::get).filter(|&at| at != 0)
    }

    /// The last block that starts at or before `at`, less than 1 GiB away: for reports.
    pub fn around(&self, at: usize) -> Option<usize> {
        let near = self.all().filter(|&block| block <= at && at - block < 1 << 30);
        near.max().filter(|&block| {
            // The page of a block's books is mapped as long as the block is in the table.
            at - block < bytes(ptr::with_exposed_provenance_mut(block)) + 2 * PAGE_BYTES
        })
    }
}

impl<S: System, L: Local> Allocator<S, L> {
    /// To be called when the program touched an address without memory: stops it if a large block of
    /// ours is involved.
    pub fn blame_fault(&self, at: usize) {
        let block = |start| ptr::with_exposed_provenance_mut::<u8>(start);
        let passed = self.fences.around(at).and_then(|start| {
            self.read_header(block(start)).map(|found| (Trouble::Passed, start, found))
        });
        let gone = || self.fences.vanished(&self.system, at);
        let told = passed.or_else(|| gone().map(|(at, found)| (Trouble::Vanished, at, found)));
        if let Some((trouble, start, found)) = told {
            let at = block(start).wrapping_add(at.wrapping_sub(start));
            self.tell(trouble, at, block(start), &found);
        }
    }

    /// Whether a large block starts there.
    pub(super) fn is_fenced(&self, at: *mut u8) -> bool {
        !self.window.is_small(at as usize)
            && self.window.medium_offset(at as usize).is_none()
            && self.fences.has(&self.system, at as usize)
    }

    /// A large block.
    pub(super) fn fenced(&self, bytes: usize, align: usize) -> Option<Fence> {
        let align = align.max(16);
        let room = bytes.checked_next_multiple_of(align)?.checked_add(PAGE_BYTES + align)?;
        let room = room.checked_next_multiple_of(PAGE_BYTES)?;
        let reserved = (room + PAGE_BYTES).checked_next_multiple_of(UNIT_BYTES)?;
        // The end of the program's bytes lies as near to the page that faults as the alignment permits.
        let place = |mapping: usize| (mapping + reserved - PAGE_BYTES - bytes) & !(align - 1);
        let page = |at: usize| (at - FRONT) & !(PAGE_BYTES - 1);
        if align <= PAGE_BYTES {
            // Mappings start at pages: where they do makes no difference then.
            let open = reserved - PAGE_BYTES - (page(place(reserved)) - reserved);
            if let Some(old) = self.recall_mapping(reserved, open) {
                return self.settle(&old, place(old.mapping), bytes, false);
            }
        }
        let mapping = self.system.reserve(reserved)?;
        let start = mapping.as_ptr().expose_provenance();
        let at = place(start);
        let before = page(at) - start;
        let open = reserved - PAGE_BYTES - before;
        let first = mapping.as_ptr().wrapping_add(before);
        // SAFETY: inside the fresh reservation, all but its last page.
        if !unsafe { self.system.commit(NonNull::new(first)?, open) } {
            // SAFETY: nobody knows it.
            unsafe { self.system.unmap(mapping, reserved) };
            return None;
        }
        self.large.bytes.fetch_add(open, Ordering::Relaxed);
        self.large.count.fetch_add(1, Ordering::Relaxed);
        self.settle(&Hidden { mapping: start, reserved, open }, at, bytes, true)
    }

    /// Makes a block at `at` in a mapping.
    fn settle(&self, mapping: &Hidden, at: usize, bytes: usize, zeroed: bool) -> Option<Fence> {
        if !self.fences.add(&self.system, at) {
            self.retire_mapping(*mapping);
            return None;
        }
        let before = mapping.reserved - PAGE_BYTES - mapping.open;
        let lead = at - mapping.mapping - before;
        let books = Books { reserved: mapping.reserved, before, lead, bytes };
        Some(self.enter(ptr::with_exposed_provenance_mut(at), books, zeroed))
    }

    /// Writes a large block's books.
    fn enter(&self, at: *mut u8, books: Books, zeroed: bool) -> Fence {
        // SAFETY: the block's first page has room for them before the header.
        unsafe { at.wrapping_sub(FRONT).cast::<Books>().write(books) };
        Fence { at, capacity: books.open() - books.lead, zeroed }
    }

    /// Changes a large block's length by moving its pages; then the old block has been freed. Nothing: it
    /// must be copied.
    pub(super) fn move_fenced(&self, at: *mut u8, found: &Found, bytes: usize) -> Option<Fence> {
        if bytes <= MEDIUM_MAX || bytes > isize::MAX as usize / 2 {
            return None;
        }
        // SAFETY: `found` is a large block's.
        let old = unsafe { Books::of(at) };
        let open = (old.lead + bytes).checked_next_multiple_of(PAGE_BYTES)?;
        if open == old.open() {
            // SAFETY: as above.
            unsafe { at.wrapping_sub(FRONT).cast::<Books>().write(Books { bytes, ..old }) };
            return Some(Fence { at, capacity: open - old.lead, zeroed: false });
        }
        let reserved = (open + PAGE_BYTES).checked_next_multiple_of(UNIT_BYTES)?;
        let mapping = self.system.reserve(reserved)?;
        let books = Books { reserved, before: reserved - PAGE_BYTES - open, bytes, ..old };
        let new = mapping.as_ptr().wrapping_add(books.before + books.lead);
        let from = NonNull::new(at.wrapping_sub(old.lead))?;
        let to = NonNull::new(new.wrapping_sub(books.lead))?;
        let known = self.fences.add(&self.system, new as usize);
        // SAFETY: the old pages are the block's, the new place is nobody's.
        if !known || !unsafe { self.system.transplant(from, old.open(), to, open) } {
            self.fences.remove(&self.system, new as usize, None);
            // SAFETY: nobody knows it.
            unsafe { self.system.unmap(mapping, reserved) };
            return None;
        }
        self.fences.remove(&self.system, at as usize, Some(found));
        self.large.bytes.fetch_add(open.wrapping_sub(old.open()), Ordering::Relaxed);
        if let Some(rest) = NonNull::new(at.wrapping_sub(old.lead + old.before)) {
            // SAFETY: the reservation is the block's, whose pages are elsewhere.
            unsafe { self.system.unmap(rest, old.reserved) };
        }
        Some(self.enter(new, books, false))
    }

    /// Ends a large block. Its pages are out of reach at once: whoever uses it again faults.
    pub(super) fn unfence(&self, at: *mut u8, found: &Found) {
        // SAFETY: `found` is a large block's.
        let books = unsafe { Books::of(at) };
        self.fences.remove(&self.system, at as usize, Some(found));
        self.retire_mapping(books.mapping(at));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::tests::rig::Host;

    #[test]
    fn blocks_that_come_and_go_never_use_the_table_up() {
        let (host, fences) = (Host::default(), Fences::new());
        let (mut live, mut number) = (BTreeSet::new(), 9_u64);
        for _ in 0..if cfg!(miri) { 300 } else { 3 * PLACES } {
            number = number.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let at = (number >> 20) as usize | 16;
            assert!(fences.add(&host, at) && live.insert(at));
            if live.len() > 100 {
                let other = *live.range(number as usize >> 20..).next().unwrap_or(&at);
                fences.remove(&host, other, None);
                assert!(live.remove(&other) && !fences.has(&host, other));
            }
            if number >> 58 == 0 {
                assert!(live.iter().all(|&at| fences.has(&host, at)));
            }
        }
        assert_eq!(fences.all().collect::<BTreeSet<_>>(), live);
        assert_eq!(fences.used.load(Ordering::Relaxed), live.len());
        // SAFETY: it is this test's own.
        unsafe { fences.end(&host) };
        assert_eq!(host.mapped(), 0);
    }
}
