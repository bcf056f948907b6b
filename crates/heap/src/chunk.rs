//! Chunks: 64 KiB of pages, and the two bitmaps in front that say how they are cut.
//!
//! ```text
//! chunk  | header: 5 granules | block | block | free | block | ...            | 64 KiB
//! start  | 1 . . . .          | 1 . . | 1 .   | 1 .  | 1 . . |    first granule of each block
//! free   | . . . . .          | . . . | . .   | 1 .  | . . . |    ... of each free block
//! ```
//! The bitmaps are the truth; what lies in free blocks (`pool`) only helps to find them.
#![allow(unsafe_code)] // reads and writes headers in raw pages

use core::cell::Cell;
use core::mem::size_of;
use core::ops::Deref;
use core::ptr::NonNull;

use pagoda_addr::Order;

/// Bytes of the smallest piece.
pub(crate) const GRANULE: usize = 64;
/// Pages of a chunk: what the heap asks its source for, but for blocks above 32 KiB, aligned ones,
/// and object caches. A kernel may let requests of up to this order use its reserve.
pub const CHUNK_ORDER: Order = match Order::new(4) {
    Some(order) => order,
    None => Order::PAGE,
};
/// Bytes of a chunk.
pub(crate) const CHUNK: usize = 1 << 16;
pub(crate) const GRANULES: usize = CHUNK / GRANULE;
/// Granules of the header.
pub(crate) const HEAD: usize = size_of::<ChunkHeader>().div_ceil(GRANULE);
/// Bytes of the header: no block's.
pub(crate) const CHUNK_OVERHEAD: usize = HEAD * GRANULE;

const WORDS: usize = GRANULES / 64;

#[repr(C)]
pub(crate) struct ChunkHeader {
    pub(crate) start: [Cell<u64>; WORDS],
    pub(crate) free: [Cell<u64>; WORDS],
    magic: Cell<usize>,
    pub(crate) next: Cell<Option<Chunk>>,
    pub(crate) prev: Cell<Option<Chunk>>,
    /// *chunk-clean*: from this granule on nobody has owned a byte and all are zero, but for the links
    /// of free blocks that began there.
    pub(crate) clean: Cell<u16>,
}

/// A handle to a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Chunk(NonNull<ChunkHeader>);

pub(crate) const MAGIC: usize = 0x7a90_da00_c411_4b0d;

impl Deref for Chunk {
    type Target = ChunkHeader;
    fn deref(&self) -> &ChunkHeader {
        // SAFETY: a handle denotes an initialised header; all fields are cells (*pool-locked*).
        unsafe { self.0.as_ref() }
    }
}

pub(crate) fn bit(bits: &[Cell<u64>; WORDS], granule: usize) -> bool {
    bits[granule / 64 % WORDS].get() >> (granule % 64) & 1 != 0
}

pub(crate) fn set(bits: &[Cell<u64>; WORDS], granule: usize, value: bool) {
    let word = &bits[granule / 64 % WORDS];
    let mask = 1 << (granule % 64);
    word.set(if value { word.get() | mask } else { word.get() & !mask });
}

impl Chunk {
    /// Makes fresh pages a chunk: the header, and one free block that is on no list yet.
    ///
    /// # Safety
    /// [`CHUNK`] bytes at `base`, aligned to their size, are the caller's, with exposed provenance; they
    /// are zero if `zero` says so.
    pub(crate) unsafe fn create(base: NonNull<u8>, zero: bool) -> Self {
        let header = ChunkHeader {
            start: [const { Cell::new(0) }; WORDS],
            free: [const { Cell::new(0) }; WORDS],
            magic: Cell::new(MAGIC ^ base.as_ptr() as usize),
            next: Cell::new(None),
            prev: Cell::new(None),
            clean: Cell::new(if zero { HEAD as u16 } else { GRANULES as u16 }),
        };
        let chunk = Self(base.cast());
        // SAFETY: the caller's bytes.
        unsafe { chunk.0.write(header) };
        set(&chunk.start, 0, true);
        chunk
    }

    /// The chunk that a tag says holds `address`; none when its header was written over.
    ///
    /// # Safety
    /// *pool-locked*, and a tag of the heap vouches for the chunk.
    pub(crate) unsafe fn holding(address: usize) -> Option<Self> {
        let base = address & !(CHUNK - 1);
        let chunk = Self(NonNull::new(core::ptr::with_exposed_provenance_mut(base))?);
        (chunk.magic.get() == MAGIC ^ base && bit(&chunk.start, 0)).then_some(chunk)
    }

    /// The address of a granule.
    pub(crate) fn address(self, granule: usize) -> usize {
        self.0.as_ptr() as usize + granule * GRANULE
    }

    /// The chunk's first byte.
    pub(crate) fn base(self) -> NonNull<u8> {
        self.0.cast()
    }

    /// The granule at which the block that holds `granule` begins; 0 for the header.
    pub(crate) fn start_of(self, granule: usize) -> usize {
        let mut word = granule / 64 % WORDS;
        let mut bits = self.start[word].get() & (u64::MAX >> (63 - granule % 64));
        while bits == 0 && word > 0 {
            word -= 1;
            bits = self.start[word].get();
        }
        // An empty bitmap means the header: `holding` has seen its bit.
        word * 64 + 63_usize.saturating_sub(bits.leading_zeros() as usize)
    }

    /// The granule after the last one of the block that begins at `granule`.
    pub(crate) fn end_of(self, granule: usize) -> usize {
        let from = granule + 1;
        if from >= GRANULES {
            return GRANULES;
        }
        let mut word = from / 64;
        let mut bits = self.start[word].get() & (u64::MAX << (from % 64));
        while bits == 0 {
            word += 1;
            if word == WORDS {
                return GRANULES;
            }
            bits = self.start[word].get();
        }
        word * 64 + bits.trailing_zeros() as usize
    }

    /// Is the block that begins at `granule` free?
    pub(crate) fn is_free(self, granule: usize) -> bool {
        bit(&self.free, granule)
    }

    /// An owner may write up to this granule from now on.
    pub(crate) fn soil(self, end: usize) {
        if end > usize::from(self.clean.get()) {
            self.clean.set(end as u16);
        }
    }

    /// The blocks: first granule, granule after the last one, free?
    pub(crate) fn blocks(self) -> impl Iterator<Item = (usize, usize, bool)> {
        let mut at = self.end_of(0);
        core::iter::from_fn(move || {
            if at >= GRANULES {
                return None;
            }
            let (from, end) = (at, self.end_of(at));
            at = end;
            Some((from, end, self.is_free(from)))
        })
    }
}
