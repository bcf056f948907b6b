//! Is this address mapped? A walk of the active page tables in software, for reports that must not
//! fault: it believes nothing and changes nothing.
#![allow(unsafe_code)] // reads page tables through the direct map

use x86_64::registers::control::Cr3;

use super::layout::{DIRECT_MAP, DIRECT_MAP_BYTES};
use super::levels;

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The physical address behind the virtual `addr`, if it is mapped.
pub(crate) fn translate(addr: u64) -> Option<u64> {
    let levels = levels::count();
    let unused = 64 - (12 + 9 * levels);
    if (((addr << unused) as i64 >> unused) as u64) != addr {
        return None;
    }
    let mut table = Cr3::read_raw().0.start_address().as_u64();
    for level in (0..levels).rev() {
        let shift = 12 + 9 * level;
        let place = table + (addr >> shift & 0x1ff) * 8;
        if place >= DIRECT_MAP_BYTES {
            return None;
        }
        // SAFETY: page tables are RAM, all RAM is in the direct map, and an entry is read as one
        // aligned 8-byte word.
        let entry = unsafe { ((DIRECT_MAP + place) as *const u64).read_volatile() };
        if entry & PRESENT == 0 {
            return None;
        }
        if level == 0 || entry & LARGE != 0 && level <= 2 {
            let inside = (1u64 << shift) - 1;
            return Some((entry & ADDRESS & !inside) | (addr & inside));
        }
        table = entry & ADDRESS;
    }
    None
}

/// The 8-byte word at `addr`, if `addr` is aligned and mapped kernel memory.
pub(crate) fn word(addr: u64) -> Option<u64> {
    if !addr.is_multiple_of(8) || addr < DIRECT_MAP || translate(addr).is_none() {
        return None;
    }
    // SAFETY: just found mapped; an aligned word does not cross a page. Whatever it holds is a
    // number. Volatile, because somebody may be writing it.
    Some(unsafe { (addr as *const u64).read_volatile() })
}
