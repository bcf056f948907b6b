//! What the frame table keeps for one frame, and how it is packed.
//!
//! Sixteen bytes in four cells. What single frames with few owners, which are nearly all, need for
//! their whole life is in the first one, the *state*; the others wait in memory that nobody touches
//! meanwhile (`table.rs` says where):
//!
//! ```text
//! state    31    30    29      28..21  20..0
//!          HEAD  MORE  CACHED  kind    owners - 1         a plain head
//!          HEAD  MORE  28..0: owners - 1                  a head with more to say
//! traits   31    30    20..16  15..8   7..0
//!          KNOWN ODD   order   flags   kind
//! maps     page-table entries that show the allocation
//! link     the owner's; or the length of the odd allocation that begins one frame before
//! ```
//!
//! The owners stand at the same place in both, so one addition makes one owner more, whatever others
//! do to the head meanwhile.
//!
//! *clean*: of a head without `MORE`, and of what is no head, the other three cells are zero (but
//! for an odd allocation's length). So whoever owns a plain one may *open* it, at once with others:
//! the first one writes the traits, and nothing else has to be written. The last owner closes it.

use core::marker::PhantomData;
use core::ptr::NonNull;

use crate::Kind;
use crate::places::{CHUNK, CHUNK_SHIFT};
use crate::shim::{AtomicU32, Ordering::*};

/// Memory of the frame table for one frame. The 512 of a chunk are laid out together.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct FrameInfo(#[allow(dead_code)] [AtomicU32; CELLS]); // the table looks at the cells

const CELLS: usize = 4;
const _: () = assert!(size_of::<FrameInfo>() == CELLS * size_of::<AtomicU32>());
#[cfg(not(loom))]
const _: () = assert!(size_of::<FrameInfo>() == 16);

/// An allocation begins here.
pub(crate) const HEAD: u32 = 1 << 31;
/// The other cells say something.
pub(crate) const MORE: u32 = 1 << 30;
/// The frame is in a CPU's magazine or in the depot, alone in the state.
pub(crate) const CACHED: u32 = 1 << 29;
const KIND_SHIFT: u32 = 21;
const KIND: u32 = 0xff << KIND_SHIFT;
/// A plain head with as many owners is opened before it gets one more. As many again fit, more than
/// there are CPUs to pass the check at once.
pub(crate) const FEW: u32 = 1 << 20;
/// The owners but one, of a plain head.
const PLAIN_OWNERS: u32 = (1 << KIND_SHIFT) - 1;
/// The owners but one, of an open head.
const OWNERS: u32 = CACHED - 1;
/// No more than this: an attacker who takes references gets an error, not a wrap. As many again fit.
pub(crate) const MAX_OWNERS: u32 = 1 << 28;
/// No more mappings than this.
pub(crate) const MAX_MAPS: u32 = 1 << 30;

/// The traits were written.
pub(crate) const KNOWN: u32 = 1 << 31;
/// The length is not a power of two and stands in the `link` of the next frame.
pub(crate) const ODD: u32 = 1 << 30;
pub(crate) const ORDER_SHIFT: u32 = 16;
pub(crate) const FLAGS_SHIFT: u32 = 8;
/// The length's part of the traits.
pub(crate) const LENGTH: u32 = ODD | 31 << ORDER_SHIFT;

/// The head of one frame with one owner.
#[inline]
pub(crate) const fn plain(kind: Kind) -> u32 {
    HEAD | (kind.0 as u32) << KIND_SHIFT
}

/// The kind in a plain head.
#[inline]
pub(crate) const fn kind(state: u32) -> Kind {
    Kind((state >> KIND_SHIFT) as u8)
}

/// The owners of a head but one.
#[inline]
pub(crate) const fn others(state: u32) -> u32 {
    state & if state & MORE == 0 { PLAIN_OWNERS } else { OWNERS }
}

/// A plain head of any kind with one owner?
#[inline]
pub(crate) const fn single(state: u32) -> bool {
    state & !KIND == HEAD
}

/// A plain head that may get one more owner by an addition?
#[inline]
pub(crate) const fn may_share(state: u32) -> bool {
    state & (HEAD | MORE | FEW) == HEAD
}

/// Are all of them such heads?
#[inline]
pub(crate) fn may_all_share(states: impl Iterator<Item = u32>) -> bool {
    states.fold(0, |wrong, state| wrong | state ^ HEAD) & (HEAD | MORE | FEW) == 0
}

/// Where the table has a cell of a frame, counted in cells. The 512 states of a chunk follow each
/// other, then come the traits, the maps and the links, or any other of the four first: by turns of
/// eight chunks, since states that were all at multiples of 8 KiB would find room in a quarter of a
/// processor's cache only.
#[inline]
pub(crate) const fn place(frame: u64, column: usize) -> usize {
    let frame = frame as usize;
    let turn = frame >> (CHUNK_SHIFT + 3);
    let chunk = frame & !(CHUNK - 1);
    frame + chunk * (CELLS - 1) + (((turn + column) % CELLS) << CHUNK_SHIFT)
}

/// The cells of a frame whose chunk is started.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'t> {
    base: NonNull<AtomicU32>,
    frame: u64,
    table: PhantomData<&'t AtomicU32>,
}

#[allow(unsafe_code)] // indexes an array that the host backs only in part
impl<'t> Entry<'t> {
    /// # Safety
    /// At `base` is a table's array, whose part for the frame's chunk is backed and was initialised,
    /// and stays so for `'t`.
    #[inline]
    pub(crate) const unsafe fn new(base: NonNull<AtomicU32>, frame: u64) -> Self {
        Self { base, frame, table: PhantomData }
    }

    #[inline]
    fn cell(self, column: usize) -> &'t AtomicU32 {
        // SAFETY: the contract of `new`; all cells of a frame are in its chunk's part.
        unsafe { &*self.base.as_ptr().wrapping_add(place(self.frame, column)) }
    }

    #[inline]
    pub(crate) fn state(self) -> &'t AtomicU32 {
        self.cell(0)
    }
    #[inline]
    pub(crate) fn traits(self) -> &'t AtomicU32 {
        self.cell(1)
    }
    #[inline]
    pub(crate) fn maps(self) -> &'t AtomicU32 {
        self.cell(2)
    }
    #[inline]
    pub(crate) fn link(self) -> &'t AtomicU32 {
        self.cell(3)
    }

    /// From now on the head's other cells may say something. By an owner, at once with others.
    pub(crate) fn open(self) {
        let mut state = self.state().load(Relaxed);
        while state & (HEAD | MORE) == HEAD {
            let traits = KNOWN | u32::from(kind(state).0);
            // Whoever comes late must not undo what was changed since.
            let _ = self.traits().compare_exchange(0, traits, Release, Relaxed);
            let open = HEAD | MORE | others(state);
            match self.state().compare_exchange_weak(state, open, AcqRel, Relaxed) {
                Ok(_) => return,
                Err(now) => state = now,
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    #[cfg_attr(miri, ignore)] // arithmetic alone, no memory
    fn every_cell_has_a_place_of_its_own_in_its_chunks_part() {
        for chunk in [0u64, 1, 7, 8, 9, 24, 31, 32, 1 << 20] {
            let part = chunk as usize * CHUNK * CELLS..(chunk as usize + 1) * CHUNK * CELLS;
            let frames = chunk << CHUNK_SHIFT..(chunk + 1) << CHUNK_SHIFT;
            let places: HashSet<_> = frames
                .flat_map(|frame| (0..CELLS).map(move |column| place(frame, column)))
                .inspect(|place| assert!(part.contains(place)))
                .collect();
            assert_eq!(places.len(), CHUNK * CELLS);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore)] // arithmetic alone, no memory
    fn states_spread_over_all_sets_of_a_cache() {
        // Lines of 64 bytes, sets by the ten bits above: 64 KiB that look different.
        let sets: HashSet<_> =
            (0..1u64 << 18).step_by(16).map(|frame| place(frame, 0) * 4 / 64 % 1024).collect();
        assert_eq!(sets.len(), 1024);
    }
}
