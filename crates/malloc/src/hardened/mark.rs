//! Headers: what stands before a block, and how it is told from anything else that may stand there.
#![allow(unsafe_code)] // memory before blocks

use core::sync::atomic::Ordering;

use super::{Found, HEADER, Standing, large};
use crate::allocator::Allocator;
use crate::arena::MEDIUM_MAX;
use crate::story::Site;
use crate::system::{Local, System};

/// Before the block.
///
/// `mark`, from its lowest bit: standing (2 bits), binary logarithm of the distance from the inner
/// block's start (6), bytes asked for (18; all ones: a large block, which keeps them elsewhere), seal.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Header {
    pub(super) allocated: Site,
    /// Last, so that a write before the block breaks it; its last byte is never zero.
    pub(super) mark: u64,
}

const _: () = assert!(size_of::<Header>() == HEADER);

const STANDING: u64 = 3;
/// What changes in the mark of a freed block that leaves the quarantine.
pub(super) const GONE: u64 = Standing::Freed as u64 ^ Standing::Gone as u64;
const LOW_BITS: u32 = 26;
pub(super) const LOW: u64 = (1 << LOW_BITS) - 1;
/// The size of a block that is larger than a header can say.
const FAR: u64 = (1 << 18) - 1;
const _: () = assert!(MEDIUM_MAX < FAR as usize);

pub(super) fn header(at: *mut u8) -> *mut Header {
    at.wrapping_sub(HEADER).cast()
}

/// The lower bits of a live block's mark, but for its standing.
#[inline(always)]
pub(super) fn low_of(bytes: usize, lead: usize) -> u64 {
    (bytes as u64).min(FAR) << 8 | u64::from(lead.trailing_zeros()) << 2
}

/// Bytes asked for, of a block that is not large.
#[inline(always)]
pub(super) fn bytes_of(mark: u64) -> usize {
    (mark & LOW) as usize >> 8
}

/// Two words at the start of a freed block: who freed it, and (when it has left the quarantine) who
/// allocated it. The inner block has room for both: its tail, at least, and its bytes are a multiple of 16.
pub(super) fn epitaph(at: *mut u8) -> *mut [Site; 2] {
    at.cast()
}

impl<S: System, L: Local> Allocator<S, L> {
    /// The seal of a mark, in its upper bits; the lower ones are anything.
    #[inline(always)]
    pub(super) fn seal(&self, at: *mut u8, mark: u64) -> u64 {
        let secret = self.secret.load(Ordering::Relaxed) as u64;
        let low = (mark & LOW & !STANDING).rotate_left(40);
        (at as u64 ^ secret ^ low).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 << 63
    }

    /// Whether a mark is that of the block at `at`.
    #[inline(always)]
    fn is_sealed(&self, at: *mut u8, mark: u64) -> bool {
        (self.seal(at, mark) ^ mark) >> LOW_BITS == 0
    }

    /// Whether a mark is that of the block at `at`, which is near to its inner block's start and stands so.
    #[inline(always)]
    pub(super) fn is_near(&self, at: *mut u8, mark: u64, standing: Standing) -> bool {
        mark & 0xff == low_of(0, HEADER) | standing as u64 && self.is_sealed(at, mark)
    }

    /// What the header of a block says, if there is one. The memory before `at` must be readable, and of
    /// a freed block its start.
    #[inline]
    pub(super) fn read_header(&self, at: *mut u8) -> Option<Found> {
        // SAFETY: the callers have made sure that it is memory of ours.
        let Header { mut allocated, mark } = unsafe { header(at).read() };
        let standing = match mark & STANDING {
            _ if !self.is_sealed(at, mark) => return None,
            1 => Standing::Live,
            2 => Standing::Freed,
            3 => Standing::Gone,
            _ => return None,
        };
        let mut freed = Site::NOBODY;
        if standing != Standing::Live {
            // SAFETY: as above.
            let told = unsafe { epitaph(at).read() };
            freed = told[0];
            if standing == Standing::Gone {
                allocated = told[1];
            }
        }
        let bytes = match (mark & LOW) >> 8 {
            FAR => large::bytes(at),
            bytes => bytes as usize,
        };
        let lead = 1 << (mark >> 2 & 63);
        Some(Found { bytes, lead, allocated, freed, standing })
    }
}
