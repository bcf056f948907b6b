//! Headers: what stands before a block, and how it is told from anything else that may stand there.
//!
//! The last word is the *mark*. From its lowest bit:
//!
//! - of a block in a slab, whose whole header it is: standing (2 bits), binary logarithm of its alignment in
//!   units of 16 bytes (3), bytes asked for (11), number of the place that allocated it (20), seal (27);
//! - of another block: standing (2), binary logarithm of the distance from the inner block's start (6), bytes
//!   asked for (18; all ones: a large block, which keeps them elsewhere), seal (37).
//!
//! The highest bit is set. The seal is last, so that a write before the block breaks it; the last byte is
//! never zero.
#![allow(unsafe_code)] // memory before blocks

use core::sync::atomic::Ordering;

use super::sites::NUMBER_BITS;
use super::{FAR_HEADER, Found, MARK, Standing, large};
use crate::allocator::Allocator;
use crate::arena::MEDIUM_MAX;
use crate::classes::SMALL_MAX;
use crate::story::Site;
use crate::system::{Local, System};

/// Before a block that lies in no slab.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Header {
    pub(super) allocated: Site,
    pub(super) mark: u64,
}

const _: () = assert!(size_of::<Header>() == FAR_HEADER && size_of::<u64>() == MARK);

const STANDING: u64 = 3;
const TOP: u64 = 1 << 63;
/// What changes in the mark of a live block that is freed.
pub(super) const DEATH: u64 = Standing::Live as u64 ^ Standing::Freed as u64;
/// What changes in the mark of a freed block that leaves the quarantine.
pub(super) const GONE: u64 = Standing::Freed as u64 ^ Standing::Gone as u64;

const BYTES_AT: u32 = 5;
const NUMBER_AT: u32 = 16;
/// Bits below the seal, of a block in a slab.
const LOW_BITS: u32 = NUMBER_AT + NUMBER_BITS;
const BYTES: u64 = (1 << (NUMBER_AT - BYTES_AT)) - 1;
const _: () = assert!(SMALL_MAX <= BYTES as usize);

const FAR_LOW_BITS: u32 = 26;
/// The size of a block that is larger than a header can say.
const LARGE: u64 = (1 << 18) - 1;
const _: () = assert!(MEDIUM_MAX < LARGE as usize);

/// Where a block's mark is.
#[inline(always)]
pub(super) fn mark_of(at: *mut u8) -> *mut u64 {
    at.wrapping_sub(MARK).cast()
}

/// Where the header is of a block that lies in no slab.
pub(super) fn header(at: *mut u8) -> *mut Header {
    at.wrapping_sub(FAR_HEADER).cast()
}

/// What the mark says of a live block in a slab that has no bytes: who allocated it.
pub(super) fn named(number: u64) -> u64 {
    TOP | number << NUMBER_AT | Standing::Live as u64
}

/// The mark, without its seal, of a live block in a slab.
#[inline(always)]
pub(super) fn said_of(bytes: usize, lead: usize, named: u64) -> u64 {
    let align = u64::from((lead + 16).trailing_zeros() - 4);
    named | (bytes as u64) << BYTES_AT | align << 2
}

/// The same for one in no slab.
fn far_said_of(bytes: usize, lead: usize) -> u64 {
    let lead = u64::from(lead.trailing_zeros());
    TOP | (bytes as u64).min(LARGE) << 8 | lead << 2 | Standing::Live as u64
}

/// Whether the mark of a block in a slab says that it has no special alignment.
#[inline(always)]
pub(super) fn is_plain(mark: u64) -> bool {
    mark & (7 << 2) == 0
}

/// Bytes asked for, of a block in a slab.
#[inline(always)]
pub(super) fn bytes_of(mark: u64) -> usize {
    (mark >> BYTES_AT & BYTES) as usize
}

/// Two words at the start of a freed block. While it waits, the first says who freed it. When it has left
/// the quarantine: of a block in a slab the second, and the mark says who allocated it; of another block
/// the first, and the second says who allocated it.
pub(super) fn epitaph(at: *mut u8) -> *mut [Site; 2] {
    at.cast()
}

impl<S: System, L: Local> Allocator<S, L> {
    /// The seal over what a mark of so many bits says, but for its standing.
    #[inline(always)]
    fn seal<const BITS: u32>(&self, at: *mut u8, said: u64) -> u64 {
        let secret = self.secret.load(Ordering::Relaxed) as u64;
        let mixed = (at as u64 ^ secret ^ said).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed >> (BITS + 1) << BITS
    }

    /// What a mark says, with the seal that it ought to have.
    #[inline(always)]
    fn sealed<const BITS: u32>(&self, at: *mut u8, mark: u64) -> u64 {
        let said = mark & (TOP | ((1 << BITS) - 1));
        self.seal::<BITS>(at, said & !STANDING) | said
    }

    /// The mark of a block in a slab, of no special alignment, that says so.
    #[inline(always)]
    pub(super) fn plain_mark(&self, at: *mut u8, said: u64) -> u64 {
        self.seal::<LOW_BITS>(at, said & !STANDING) | said
    }

    /// The mark of a block in a slab that says so.
    pub(super) fn mark(&self, at: *mut u8, said: u64) -> u64 {
        self.sealed::<LOW_BITS>(at, said)
    }

    /// The mark of a block in no slab.
    pub(super) fn far_mark(&self, at: *mut u8, bytes: usize, lead: usize) -> u64 {
        self.sealed::<FAR_LOW_BITS>(at, far_said_of(bytes, lead))
    }

    /// Whether a mark is that of a live block at `at`, in a slab, of no special alignment.
    #[inline(always)]
    pub(super) fn is_live_plain(&self, at: *mut u8, mark: u64) -> bool {
        let said = mark & (TOP | ((1 << LOW_BITS) - (1 << BYTES_AT)));
        self.seal::<LOW_BITS>(at, said) | said | Standing::Live as u64 == mark
    }

    /// What the header of a block says, if there is one. The memory before `at` must be readable, and of
    /// a freed block its start.
    #[inline]
    pub(super) fn read_header(&self, at: *mut u8) -> Option<Found> {
        // SAFETY: the callers have made sure that it is memory of ours.
        let mark = unsafe { mark_of(at).read() };
        let standing = match mark & STANDING {
            1 => Standing::Live,
            2 => Standing::Freed,
            3 => Standing::Gone,
            _ => return None,
        };
        // SAFETY: as above; words that a block in the given standing has.
        let told = || unsafe { epitaph(at).read() };
        if self.window.is_small(at as usize) {
            if self.mark(at, mark) != mark {
                return None;
            }
            let freed = match standing {
                Standing::Live => Site::NOBODY,
                Standing::Freed => told()[0],
                Standing::Gone => told()[1],
            };
            let allocated = self.sites.site(mark >> NUMBER_AT & ((1 << NUMBER_BITS) - 1));
            let lead = (16 << (mark >> 2 & 7)) - 16;
            return Some(Found { bytes: bytes_of(mark), lead, allocated, freed, standing });
        }
        if self.sealed::<FAR_LOW_BITS>(at, mark) != mark {
            return None;
        }
        let (allocated, freed) = match standing {
            // SAFETY: as above.
            Standing::Live => (unsafe { (*header(at)).allocated }, Site::NOBODY),
            // SAFETY: as above.
            Standing::Freed => (unsafe { (*header(at)).allocated }, told()[0]),
            Standing::Gone => (told()[1], told()[0]),
        };
        let bytes = match mark >> 8 & LARGE {
            LARGE => large::bytes(at),
            bytes => bytes as usize,
        };
        let lead = 1 << (mark >> 2 & 63);
        Some(Found { bytes, lead, allocated, freed, standing })
    }
}
