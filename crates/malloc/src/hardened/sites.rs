//! Numbers for the places in the program that allocate, so that a header of one word names one.
//!
//! A place with its thread is a word in a table of the process; its number says where. The table is a hash
//! table in four parts, the next eight times as large, so that few places touch few pages; nothing is ever
//! taken out. When nothing is free where a place may stand, it has number 0, and is told as unknown.
//! What a thread's places are is kept behind its heap.
#![allow(unsafe_code)] // a table in a mapping

use core::cell::Cell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use crate::story::Site;
use crate::system::System;

/// Places in each part. Miri looks at all of them at each step.
const PARTS: [usize; 4] = if cfg!(miri) {
    [1 << 4, 1 << 6, 1 << 8, 1 << 10]
} else {
    [1 << 9, 1 << 12, 1 << 15, 1 << 18]
};
/// In all.
const PLACES: usize = PARTS[0] + PARTS[1] + PARTS[2] + PARTS[3];
const TABLE_BYTES: usize = PLACES * size_of::<u64>();
/// So many places of a part are tried.
const PROBES: usize = 16;
/// Numbers take so many bits.
pub const NUMBER_BITS: u32 = 20;
const _: () = assert!(PLACES < 1 << NUMBER_BITS);

/// Places that a thread knows; a power of two.
const KNOWN: usize = 256;

const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// The table of the process.
pub struct Sites {
    table: AtomicPtr<AtomicU64>,
}

impl Sites {
    /// Empty.
    pub const fn new() -> Self {
        Self { table: AtomicPtr::new(ptr::null_mut()) }
    }

    fn places(&self) -> &[AtomicU64] {
        let table = self.table.load(Ordering::Acquire);
        if table.is_null() {
            return &[];
        }
        // SAFETY: the mapping has so many words and stays; all zero is an empty table.
        unsafe { core::slice::from_raw_parts(table, PLACES) }
    }

    fn map<S: System>(&self, system: &S) {
        let Some(table) = system.map(TABLE_BYTES) else { return };
        let (none, new) = (ptr::null_mut(), table.as_ptr().cast());
        if self.table.compare_exchange(none, new, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            // SAFETY: another thread's table is used; nobody knows this one.
            unsafe { system.unmap(table, TABLE_BYTES) };
        }
    }

    /// Gives the table back.
    ///
    /// # Safety
    /// Nobody looks into it.
    pub unsafe fn end<S: System>(&self, system: &S) {
        let table = self.table.swap(ptr::null_mut(), Ordering::AcqRel);
        if let Some(table) = NonNull::new(table.cast()) {
            // SAFETY: a mapping of that length, and the caller's promise.
            unsafe { system.unmap(table, TABLE_BYTES) };
        }
    }

    /// The number of a place, which gets one if it has none.
    pub fn number<S: System>(&self, system: &S, site: Site) -> u64 {
        if site == Site::NOBODY {
            return 0;
        }
        if self.table.load(Ordering::Relaxed).is_null() {
            self.map(system);
        }
        let hash = (site.bits().wrapping_mul(MIX) >> 32) as usize;
        let (mut rest, mut before) = (self.places(), 0);
        for places in PARTS {
            let Some((part, further)) = rest.split_at_checked(places) else { return 0 };
            for index in (hash..hash + PROBES).map(|index| index % places) {
                let Some(place) = part.get(index) else { return 0 };
                // One word, which is all there is to see.
                let held =
                    place.compare_exchange(0, site.bits(), Ordering::Relaxed, Ordering::Relaxed);
                if held.is_ok() || held == Err(site.bits()) {
                    return (before + index) as u64 + 1;
                }
            }
            (rest, before) = (further, before + places);
        }
        0
    }

    /// The place of a number.
    pub fn site(&self, number: u64) -> Site {
        let place = (number as usize).checked_sub(1).and_then(|index| self.places().get(index));
        place.map_or(Site::NOBODY, |place| Site::from_bits(place.load(Ordering::Relaxed)))
    }
}

/// Places that a thread allocated from lately, and what marks say of them. All zero is nothing.
#[repr(C)]
pub struct Known {
    places: [Cell<(usize, u64)>; KNOWN],
}

impl Known {
    #[inline(always)]
    fn place(&self, pc: usize) -> Option<&Cell<(usize, u64)>> {
        let hash = (pc as u64).wrapping_mul(MIX) >> (u64::BITS - KNOWN.trailing_zeros());
        self.places.get(hash as usize)
    }

    /// What marks say of a place, if it is known. No address has the key of an empty entry.
    #[inline(always)]
    pub fn named(&self, pc: usize) -> Option<u64> {
        let (key, named) = self.place(pc)?.get();
        (key == pc.wrapping_add(1)).then_some(named)
    }

    /// Remembers it.
    pub fn learn(&self, pc: usize, named: u64) {
        if let Some(place) = self.place(pc) {
            place.set((pc.wrapping_add(1), named));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::rig::hardened_rig;

    #[test]
    fn each_place_has_a_number_of_its_own_until_there_is_no_room() {
        let rig = hardened_rig();
        let sites = Sites::new();
        let mut unknown = 0;
        let count = if cfg!(miri) { 100 } else { PLACES };
        let number = |pc: usize| sites.number(&rig.system, Site::new(pc * 5 + 0x40_0000, 3));
        for pc in 1..count {
            match number(pc) {
                0 => unknown += 1,
                given => assert_eq!(sites.site(given), Site::new(pc * 5 + 0x40_0000, 3)),
            }
        }
        assert!(unknown < count / 10, "{unknown}");
        assert_eq!(number(1), number(1));
        assert_ne!(number(1), sites.number(&rig.system, Site::new(0x40_0005, 4)));
        assert_eq!(sites.site(0), Site::NOBODY);
        assert_eq!(sites.number(&rig.system, Site::NOBODY), 0);
        // SAFETY: it is this test's own.
        unsafe { sites.end(&rig.system) };
    }
}
