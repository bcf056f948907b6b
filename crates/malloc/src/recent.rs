//! # Medium and large blocks that may be wanted again at once
//!
//! A program that takes and returns the same buffer again and again should not take a lock, split and
//! merge, or call the system each time. A program that frees thousands of different sizes should not
//! find them parked here. So a size is kept only after it was missed: the first free of a size leaves
//! only its *ghost*; each allocation that meets a ghost raises how many blocks of that size are
//! *wanted*, and later frees are kept up to that number.
//!
//! 64 places, found by the size. Blocks of one place are linked through their first words.
#![allow(unsafe_code)] // links inside free blocks

use core::cell::Cell;
use core::ptr;

/// Places in the table.
const PLACES: usize = 64;
/// A block is kept only while less than this many bytes of its kind are.
const MEDIUM_BUDGET: usize = 128 << 10;
/// The same for large blocks: one at a time, or peaks would carry what no longer matters.
const LARGE_BUDGET: usize = 1;
/// Larger ones are never kept.
pub const LARGEST_KEPT: usize = 4 << 20;
/// At most so many blocks of a size are wanted.
const WANTED_MAX: u16 = 32;

/// A size: medium in granules, large in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u32);

const LARGE: u32 = 1 << 31;

impl Key {
    /// A medium size.
    #[inline]
    pub const fn medium(granules: u32) -> Self {
        Self(granules)
    }

    /// A large size; nothing beyond [`LARGEST_KEPT`] has one.
    #[inline]
    pub fn large(pages: usize) -> Option<Self> {
        (pages <= LARGEST_KEPT / 4096).then_some(Self(pages as u32 | LARGE))
    }

    /// Whether it is a large size.
    pub const fn is_large(self) -> bool {
        self.0 & LARGE != 0
    }

    #[inline]
    fn place(self) -> usize {
        (self.0.wrapping_mul(0x9e37_79b9) >> 26) as usize
    }

    #[inline]
    fn bytes(self) -> usize {
        if self.is_large() { (self.0 & !LARGE) as usize * 4096 } else { self.0 as usize * 64 }
    }
}

/// Blocks of one size, linked through their first words.
#[derive(Clone, Copy)]
pub struct Kept {
    key: u32,
    wanted: u16,
    count: u16,
    first: *mut u8,
}

impl Kept {
    const NOTHING: Self = Self { key: 0, wanted: 0, count: 0, first: ptr::null_mut() };

    /// Takes one of the blocks.
    #[inline]
    pub fn pop(&mut self) -> Option<*mut u8> {
        if self.count == 0 {
            return None;
        }
        let block = self.first;
        // SAFETY: blocks here are free, at least 1 KiB, and linked by `offer`.
        self.first = unsafe { block.cast::<*mut u8>().read() };
        self.count -= 1;
        Some(block)
    }

    /// Their size.
    pub const fn key(&self) -> Key {
        Key(self.key)
    }
}

/// What became of an offered block.
pub enum Offer {
    /// It is kept.
    Kept,
    /// The caller must free it, and these too.
    Refused(Kept),
}

/// The table.
pub struct Recents {
    places: [Cell<Kept>; PLACES],
    medium: Cell<usize>,
    large: Cell<usize>,
}

impl Recents {
    /// Empty.
    pub const fn new() -> Self {
        let places = [const { Cell::new(Kept::NOTHING) }; PLACES];
        Self { places, medium: Cell::new(0), large: Cell::new(0) }
    }

    #[inline]
    fn place(&self, key: Key) -> &Cell<Kept> {
        &self.places[key.place() % PLACES]
    }

    #[inline]
    fn total(&self, key: Key) -> &Cell<usize> {
        if key.is_large() { &self.large } else { &self.medium }
    }

    /// A block of exactly this size, if one is kept. Learns nothing if not.
    #[inline(always)]
    pub fn take_kept(&self, key: Key) -> *mut u8 {
        let place = self.place(key);
        let kept = place.as_ptr();
        // SAFETY: the cell is this thread's, and nobody holds a reference into it.
        unsafe {
            if (*kept).key != key.0 || (*kept).count == 0 {
                return ptr::null_mut();
            }
            let block = (*kept).first;
            (*kept).first = block.cast::<*mut u8>().read();
            (*kept).count -= 1;
            let total = self.total(key);
            total.set(total.get() - key.bytes());
            block
        }
    }

    /// Keeps a free block if its size is wanted. False: [`Recents::offer`] it.
    #[inline(always)]
    pub fn keep(&self, key: Key, block: *mut u8) -> bool {
        let place = self.place(key);
        let kept = place.as_ptr();
        let total = self.total(key);
        let budget = if key.is_large() { LARGE_BUDGET } else { MEDIUM_BUDGET };
        // SAFETY: as for `take_kept`; the block is the caller's, at least 1 KiB and aligned.
        unsafe {
            if (*kept).key != key.0 || (*kept).count >= (*kept).wanted || total.get() >= budget {
                return false;
            }
            block.cast::<*mut u8>().write((*kept).first);
            (*kept).first = block;
            (*kept).count += 1;
        }
        total.set(total.get() + key.bytes());
        true
    }

    /// A block of exactly this size.
    pub fn take(&self, key: Key) -> Option<*mut u8> {
        let place = self.place(key);
        let mut kept = place.get();
        if kept.key != key.0 {
            return None;
        }
        let block = kept.pop();
        if block.is_some() {
            let total = self.total(key);
            total.set(total.get() - key.bytes());
        } else {
            kept.wanted = (kept.wanted + 1).min(WANTED_MAX);
        }
        place.set(kept);
        block
    }

    /// Offers a free block.
    pub fn offer(&self, key: Key, block: *mut u8) -> Offer {
        let place = self.place(key);
        let kept = place.get();
        if kept.key != key.0 {
            let old = kept;
            place.set(Kept { key: key.0, ..Kept::NOTHING });
            let total = self.total(old.key());
            total.set(total.get() - usize::from(old.count) * old.key().bytes());
            return Offer::Refused(old);
        }
        if self.keep(key, block) { Offer::Kept } else { Offer::Refused(Kept::NOTHING) }
    }

    /// Empties one place after the other; ghosts go too.
    pub fn drain(&self) -> impl Iterator<Item = Kept> {
        self.medium.set(0);
        self.large.set(0);
        self.places.iter().map(|place| place.replace(Kept::NOTHING))
    }
}
