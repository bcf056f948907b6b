//! Blocks that this thread freed for other heaps, collected by slab, so that one push takes several.
//!
//! A table whose places are found by the slab's class, because who sends blocks of all sizes takes them from one
//! slab of each at a time, and by the lowest bit of its number. A chain leaves when it holds its class's
//! [share](crate::classes::Class::share), when another slab needs the place, and when the thread runs out of
//! blocks or ends. What waits pins its slab, be it one block: so chains may be long, and the steps that other
//! threads see few.
//!
//! It is *wide*, with 64 places, where that is worth it: a thread that is sent blocks of all sizes empties as
//! many slabs at a time. But what waits keeps its slab from the system, however long the thread sleeps. So it
//! is *narrow*, with 16, when chains left with less than two blocks in the middle, and tries again later. At
//! most 256 KiB of slabs are pinned by a narrow one, 1 MiB by a wide one.

use core::cell::Cell;

use crate::classes::{CLASSES, UNIT_BYTES};

/// Places in a wide table.
pub const PLACES: usize = 64;
const WIDE: u16 = PLACES as u16 - 1;
/// Places in a narrow one, minus one.
const NARROW: u16 = 15;

/// A wide table is judged after so many chains.
const TRIAL: u16 = 256;
/// A narrow one becomes wide after so many.
const PAUSE: u16 = 4096;

/// A chain of blocks of one slab. Blocks are distances from the slab's start. Packed, because a heap has one
/// page.
#[derive(Clone, Copy)]
#[repr(C, packed(2))]
pub struct Parcel {
    /// Unit number + 1; 0 = empty.
    pub unit: u32,
    /// The first block.
    pub first: u16,
    /// The last block, whose link is still to be written.
    pub last: u16,
    /// How many more until it leaves.
    pub room: u16,
}

const _: () = assert!(UNIT_BYTES <= 1 << 16);

/// The table.
pub struct Outgoing {
    places: [Cell<Parcel>; PLACES],
    /// Chains that left since it became wide or narrow.
    chains: Cell<u16>,
    /// Blocks in them, while it is wide.
    blocks: Cell<u16>,
    /// Places minus one.
    last: Cell<u16>,
}

impl Parcel {
    /// No blocks.
    pub const EMPTY: Self = Self { unit: 0, first: 0, last: 0, room: 0 };
}

impl Outgoing {
    /// Empty.
    pub const fn new() -> Self {
        Self {
            places: [const { Cell::new(Parcel::EMPTY) }; PLACES],
            chains: Cell::new(0),
            blocks: Cell::new(0),
            last: Cell::new(WIDE),
        }
    }

    /// The place of a unit and its class.
    #[inline(always)]
    pub fn place(&self, unit: u32, class: u8) -> &Cell<Parcel> {
        let index = u32::from(class) + unit * CLASSES as u32;
        &self.places[(index & u32::from(self.last.get())) as usize % PLACES]
    }

    /// All places.
    pub fn places(&self) -> impl Iterator<Item = &Cell<Parcel>> {
        self.places.iter()
    }

    /// Learns that a chain of so many blocks left. True: the table became narrow, and all must leave.
    pub fn learn(&self, blocks: u16) -> bool {
        let chains = self.chains.get() + 1;
        self.chains.set(chains);
        if self.last.get() == NARROW {
            if chains == PAUSE {
                self.turn(WIDE);
            }
            return false;
        }
        self.blocks.set(self.blocks.get().saturating_add(blocks));
        let worth = self.blocks.get() >= 2 * TRIAL;
        if chains == TRIAL {
            self.turn(if worth { WIDE } else { NARROW });
        }
        self.last.get() == NARROW
    }

    fn turn(&self, last: u16) {
        self.chains.set(0);
        self.blocks.set(0);
        self.last.set(last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_wide_where_chains_grow_long_and_tries_again_where_not() {
        let table = Outgoing::new();
        let send =
            |count: u16, blocks: u16| (0..count).map(|_| table.learn(blocks)).collect::<Vec<_>>();
        let apart = |class| !core::ptr::eq(table.place(1, class), table.place(1, class + 16));
        assert!(!send(3 * TRIAL, 2).contains(&true) && apart(3));
        assert_eq!(send(TRIAL, 1).iter().position(|&narrow| narrow), Some(TRIAL as usize - 1));
        assert!(!apart(3));
        assert!(!send(PAUSE, 9).contains(&true) && apart(3));
        assert!(!send(TRIAL, 256).contains(&true) && apart(3));
        assert!(send(TRIAL, 1).contains(&true) && !apart(3));
    }
}
