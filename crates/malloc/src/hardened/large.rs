//! Large blocks: mappings that end at a page that faults, and a table of them.
//!
//! ```text
//! | one page and more: header | the program's bytes | up to 15 bytes of tail | a page that faults |
//! ```
//!
//! The table is a hash table of addresses in a reservation of its own, open addressing, never more than
//! three quarters full.
#![allow(unsafe_code)] // mappings, and the table in one

use core::cell::Cell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use super::Header;
use crate::allocator::Allocator;
use crate::lock::Lock;
use crate::story::Trouble;
use crate::system::{Local, PAGE_BYTES, System};

/// Places in the table: more mappings than that Linux does not permit by default.
const PLACES: usize = 1 << 16;
const TABLE_BYTES: usize = PLACES * size_of::<usize>() + PAGE_BYTES;
/// So many freed blocks are remembered, behind the table.
const REMEMBERED: usize = PAGE_BYTES / size_of::<Gone>();
/// A block was here.
const ERASED: usize = 1;

/// The table of large blocks.
pub struct Fences {
    /// Rank 4 of the locks, the last.
    pub lock: Lock,
    table: AtomicPtr<Cell<usize>>,
    used: AtomicUsize,
    turns: AtomicUsize,
}

/// What is remembered of large blocks that were freed.
#[derive(Clone, Copy)]
struct Gone {
    at: usize,
    header: Header,
}

fn hash(at: usize) -> usize {
    (at >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40
}

impl Fences {
    /// Empty.
    pub const fn new() -> Self {
        Self {
            lock: Lock::new(),
            table: AtomicPtr::new(ptr::null_mut()),
            used: AtomicUsize::new(0),
            turns: AtomicUsize::new(0),
        }
    }

    fn place(&self, index: usize) -> Option<&Cell<usize>> {
        let table = self.table.load(Ordering::Relaxed);
        // SAFETY: the table has that many places; it is read and written under the lock.
        (!table.is_null()).then(|| unsafe { &*table.wrapping_add(index % PLACES) })
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
        let mut index = hash(at);
        while let Some(place) = self.place(index) {
            if place.get() <= ERASED {
                if place.get() == 0 {
                    self.used.fetch_add(1, Ordering::Relaxed);
                }
                place.set(at);
                return true;
            }
            index += 1;
        }
        false
    }

    fn search(&self, at: usize) -> Option<&Cell<usize>> {
        let mut index = hash(at);
        loop {
            let place = self.place(index)?;
            match place.get() {
                0 => return None,
                found if found == at => return Some(place),
                _ => index += 1,
            }
        }
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

    /// What is remembered of a large block that was freed not long ago.
    pub fn remembered<S: System>(&self, system: &S, at: usize) -> Option<Header> {
        let _held = self.lock.take(system);
        (0..REMEMBERED)
            .filter_map(|index| self.gone(index))
            .map(Cell::get)
            .find(|gone| gone.at == at)
            .map(|gone| gone.header)
    }

    /// What an address that faulted has to do with a large block.
    pub fn blame<S: System>(&self, system: &S, at: usize) -> Option<(Trouble, usize, Header)> {
        if let Some(block) = self.around(at) {
            // SAFETY: a block in the table has its header.
            let found = unsafe { super::header(ptr::with_exposed_provenance_mut(block)).read() };
            return Some((Trouble::Passed, block, found));
        }
        let _held = self.lock.take(system);
        (0..REMEMBERED)
            .filter_map(|index| self.gone(index))
            .map(Cell::get)
            .find(|gone| gone.at != 0 && (gone.at..gone.at + gone.header.bytes()).contains(&at))
            .map(|gone| (Trouble::Vanished, gone.at, gone.header))
    }

    fn remove<S: System>(&self, system: &S, at: usize, header: Header) {
        let _held = self.lock.take(system);
        if let Some(place) = self.gone(self.turns.fetch_add(1, Ordering::Relaxed)) {
            place.set(Gone { at, header });
        }
        if let Some(place) = self.search(at) {
            place.set(ERASED);
        }
    }

    /// All blocks, in no order. Somebody else may change the table meanwhile: then one may be missed.
    pub fn all(&self) -> impl Iterator<Item = usize> {
        (0..PLACES).map_while(|index| self.place(index)).map(Cell::get).filter(|&at| at > ERASED)
    }

    /// The last block that starts at or before `at`, less than 1 GiB away: for reports.
    pub fn around(&self, at: usize) -> Option<usize> {
        let near = self.all().filter(|&block| block <= at && at - block < 1 << 30);
        near.max().filter(|&block| {
            // SAFETY: the page of a block's header is mapped as long as the block is in the table.
            let bytes = unsafe { super::header(ptr::with_exposed_provenance_mut(block)).read() };
            at - block < bytes.bytes() + 2 * PAGE_BYTES
        })
    }
}

/// The mapping of a block.
pub fn start(at: *mut u8) -> *mut u8 {
    let address = at as usize - super::HEADER;
    // SAFETY: the header of a fenced block says how far before it the mapping starts.
    let lead = unsafe { at.wrapping_sub(2 * super::HEADER).cast::<usize>().read() };
    at.wrapping_sub(lead.min(address))
}

/// Bytes from the mapping's start to the page that faults.
pub fn capacity(at: *mut u8, bytes: usize) -> usize {
    (at as usize - start(at) as usize + bytes).next_multiple_of(PAGE_BYTES)
}

impl<S: System, L: Local> Allocator<S, L> {
    /// To be called when the program touched an address without memory: stops it if a large block of
    /// ours is involved.
    pub fn blame_fault(&self, at: usize) {
        if let Some((trouble, block, found)) = self.fences.blame(&self.system, at) {
            let block = ptr::with_exposed_provenance_mut::<u8>(block);
            let at = block.wrapping_add(at.wrapping_sub(block as usize));
            self.tell(trouble, at, block, &found);
        }
    }

    /// Whether a large block starts there.
    pub(super) fn is_fenced(&self, at: *mut u8) -> bool {
        !self.window.is_small(at as usize)
            && self.window.medium_offset(at as usize).is_none()
            && self.fences.has(&self.system, at as usize)
    }

    /// A large block: itself, the mapping's start, and the bytes to the page that faults.
    pub(super) fn fenced(&self, bytes: usize, align: usize) -> Option<(*mut u8, *mut u8, usize)> {
        let align = align.max(16);
        let room = bytes.checked_next_multiple_of(align)?.checked_add(PAGE_BYTES + align)?;
        let room = room.checked_next_multiple_of(PAGE_BYTES)?;
        let reserved = (room + PAGE_BYTES).checked_next_multiple_of(crate::UNIT_BYTES)?;
        let mapping = self.system.reserve(reserved)?;
        // The end of the program's bytes lies as near to the page that faults as the alignment permits.
        let end = mapping.as_ptr() as usize + reserved - PAGE_BYTES;
        let at = (end - bytes) & !(align - 1);
        let first = (at - 2 * super::HEADER) & !(PAGE_BYTES - 1);
        let open = mapping.as_ptr().wrapping_add(first - mapping.as_ptr() as usize);
        let block = open.wrapping_add(at - first);
        // SAFETY: inside the fresh reservation, all but its last page.
        let ours = unsafe { self.system.commit(NonNull::new(open)?, end - first) };
        if !ours || !self.fences.add(&self.system, at) {
            // SAFETY: nobody knows it.
            unsafe { self.system.unmap(mapping, reserved) };
            return None;
        }
        // SAFETY: before the header, in the block's first page.
        unsafe {
            let words = block.wrapping_sub(2 * super::HEADER).cast::<usize>();
            words.write(at - first);
            words.add(1).write(first - mapping.as_ptr() as usize);
            words.add(2).write(reserved);
        }
        self.large.bytes.fetch_add(end - first, Ordering::Relaxed);
        self.large.count.fetch_add(1, Ordering::Relaxed);
        Some((block, open, end - first))
    }

    /// Ends a large block. Its pages are gone at once: whoever uses it again faults.
    pub(super) fn unfence(&self, at: *mut u8) {
        let open = start(at);
        // SAFETY: written by `fenced`.
        let (before, reserved) = unsafe {
            let words = at.wrapping_sub(2 * super::HEADER).cast::<usize>();
            (words.add(1).read(), words.add(2).read())
        };
        // SAFETY: the block's header.
        let last = unsafe { super::header(at).read() };
        self.fences.remove(&self.system, at as usize, last);
        let bytes = reserved - before - PAGE_BYTES;
        self.large.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.large.count.fetch_sub(1, Ordering::Relaxed);
        if let Some(start) = NonNull::new(open.wrapping_sub(before)) {
            // SAFETY: the reservation is the block's, who is freed.
            unsafe { self.system.unmap(start, reserved) };
        }
    }
}
