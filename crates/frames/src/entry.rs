//! What the frame table keeps for one frame, and how it is packed.
//!
//! Head, owners, length and kind share one word, so that one look tells whether a frame may be given
//! back, and one addition makes one owner more:
//!
//! ```text
//!  63    62 .. 32       30   29      20..16  15..8  7..0
//!  HEAD  owners - 1     ODD  CACHED  order   flags  kind
//! ```
//!
//! A word that is a head with not too many owners is, as a signed number, below [`BUSY`]; every
//! other word is not.

use crate::shim::{AtomicU32, AtomicU64};

/// What the table knows about one frame.
///
/// | field | bytes | meaning in a head |
/// |---|---|---|
/// | `word` | 8 | status, owners, order, the owner's kind and flags |
/// | `maps` | 4 | page-table entries that show the allocation |
/// | `link` | 4 | the owner's, for a list or an index |
#[derive(Debug)]
#[repr(C, align(16))]
pub struct FrameInfo {
    pub(crate) word: AtomicU64,
    pub(crate) maps: AtomicU32,
    pub(crate) link: AtomicU32,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<FrameInfo>() == 16);

/// An allocation begins here.
pub(crate) const HEAD: u64 = 1 << 63;
/// The length is not a power of two and stands in the `link` of the next entry.
pub(crate) const ODD: u64 = 1 << 30;
/// The frame is in a CPU's magazine or in the depot, alone in the word.
pub(crate) const CACHED: u64 = 1 << 29;
pub(crate) const ORDER_SHIFT: u32 = 16;
pub(crate) const FLAGS_SHIFT: u32 = 8;
/// The owners but one.
pub(crate) const OWNERS_SHIFT: u32 = 32;
pub(crate) const OWNER: u64 = 1 << OWNERS_SHIFT;
pub(crate) const OWNERS: u64 = HEAD - OWNER;
/// The length's part of the word.
pub(crate) const LENGTH: u64 = ODD | 31 << ORDER_SHIFT;
/// No more than this: an attacker who takes references gets an error, not a wrap. As many again
/// fit, more than there are CPUs to pass the check at once.
pub(crate) const MAX_COUNT: u32 = 1 << 30;
/// The smallest word, as a signed number, that may not get one more owner.
pub(crate) const BUSY: i64 = (HEAD | (MAX_COUNT as u64 - 1) << OWNERS_SHIFT) as i64;

impl FrameInfo {
    pub(crate) fn unused() -> Self {
        Self { word: AtomicU64::new(0), maps: AtomicU32::new(0), link: AtomicU32::new(0) }
    }
}

/// How many owners a head has.
#[inline]
pub(crate) const fn owners(word: u64) -> u32 {
    ((word & OWNERS) >> OWNERS_SHIFT) as u32 + 1
}

/// The head of one frame with one owner, of any kind and with any flags?
#[inline]
pub(crate) const fn single(word: u64) -> bool {
    word & !0xffff == HEAD
}
