//! Blocks that this thread freed for other heaps, collected by slab, so that one push takes several.
//!
//! A table of 16 places found by the slab's number. A chain leaves when it holds 64 blocks or 4 KiB,
//! when another slab needs the place, and when the thread runs out of blocks or ends. At most 64 KiB
//! wait here.

use core::cell::Cell;

use crate::unit::Block;

/// Places in the table.
pub const PLACES: usize = 16;

/// A chain of blocks of one slab.
#[derive(Clone, Copy)]
pub struct Parcel {
    /// Unit number + 1; 0 = empty.
    pub unit: u32,
    /// How many blocks.
    pub count: u32,
    /// How many more until it leaves.
    pub room: u32,
    /// The first block.
    pub first: *mut Block,
    /// The last block, whose link is still to be written.
    pub last: *mut Block,
}

/// The table.
pub struct Outgoing {
    places: [Cell<Parcel>; PLACES],
}

impl Parcel {
    /// No blocks.
    pub const EMPTY: Self = Self {
        unit: 0,
        count: 0,
        room: 0,
        first: core::ptr::null_mut(),
        last: core::ptr::null_mut(),
    };
}

impl Outgoing {
    /// Empty.
    pub const fn new() -> Self {
        Self { places: [const { Cell::new(Parcel::EMPTY) }; PLACES] }
    }

    /// The place of a unit.
    #[inline(always)]
    pub fn place(&self, unit: u32) -> &Cell<Parcel> {
        &self.places[unit as usize % PLACES]
    }

    /// All places.
    pub fn places(&self) -> impl Iterator<Item = &Cell<Parcel>> {
        self.places.iter()
    }
}
