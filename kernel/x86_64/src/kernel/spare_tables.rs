//! Page tables that came back empty, kept for the next address space.
//!
//! A table that a page table gives up because nothing is left in it is all zero. Handing it out
//! again saves clearing it, which costs as much as everything else about a new table. A process
//! takes a dozen and gives a dozen back.
//!
//! Invariant *spare-is-zero*: a frame in here is a page table of nobody, and all its words are zero.
//!
//! Its lock stands where the frame allocator's does, and nobody is called with it held. [`trim`]
//! gives everything back: when memory is short, and before frames are counted.

use lock_api::Mutex;
use pagoda_addr::{Frame, FrameRange};
use pagoda_sync::rank;

use super::host::{KERNEL, Lock};

/// Tables kept, at most: 128 KiB.
const KEPT: usize = 32;

struct Spare {
    tables: [Frame; KEPT],
    count: usize,
}

static SPARE: Mutex<Lock<{ rank::FRAMES }>, Spare> =
    Mutex::new(Spare { tables: [Frame::from_number(0); KEPT], count: 0 });

/// A zeroed table, if there is one.
#[inline]
pub(crate) fn take() -> Option<Frame> {
    let mut spare = SPARE.lock();
    spare.count = spare.count.checked_sub(1)?;
    let count = spare.count;
    spare.tables.get(count).copied()
}

/// Keeps a zeroed table; false when there is no room.
#[inline]
pub(crate) fn keep(table: Frame) -> bool {
    let mut spare = SPARE.lock();
    let count = spare.count;
    let Some(place) = spare.tables.get_mut(count) else { return false };
    *place = table;
    spare.count += 1;
    true
}

/// Tables that are kept.
pub(crate) fn count() -> usize {
    SPARE.lock().count
}

/// Gives back all; returns how many that were.
pub(crate) fn trim() -> usize {
    let mut given = 0;
    while let Some(table) = take() {
        KERNEL.give_back(FrameRange::single(table));
        given += 1;
    }
    given
}
