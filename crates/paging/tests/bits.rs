//! Words of x86-64 against the manual (Intel SDM vol. 3, tables 4-14 to 4-20): no reserved bit is ever
//! set, and bit 7 means what it means in that level.

use pagoda_addr::Frame;
use pagoda_paging::{Format, PageFlags, PageSize, X86_64};

const PRESENT: u64 = 1;
const PAGE_SIZE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// Bits that are reserved in a present entry of a machine with addresses of `width` bits.
fn reserved(width: u32, nx: bool, size: Option<PageSize>) -> u64 {
    let address = ((1 << 52) - 1) & !((1 << width) - 1);
    let alignment = match size {
        Some(PageSize::M2) => 0xff << 13,
        Some(PageSize::G1) => 0x1_ffff << 13,
        Some(PageSize::K4) | None => 0,
    };
    let page_size = if size.is_none() { PAGE_SIZE } else { 0 };
    address | alignment | page_size | if nx { 0 } else { NO_EXECUTE }
}

/// The entry of the page attribute table that a leaf chooses.
fn memory_type(word: u64, size: PageSize) -> u64 {
    let high = if size == PageSize::K4 { word >> 7 } else { word >> 12 };
    word >> 3 & 3 | (high & 1) << 2
}

#[test]
fn no_reserved_bit_is_set_and_bit_7_means_what_its_level_says() {
    for (width, nx, huge) in
        [(36, false, false), (39, true, true), (46, false, true), (52, true, true)]
    {
        let format = X86_64::new(4, width, nx, huge);
        let end = 1 << (width - 12);
        for size in PageSize::ALL.into_iter().filter(|&size| format.has_size(size)) {
            let highest = Frame::from_number(end - size.pages());
            assert!(format.frame_fits(highest, size));
            assert!(!format.frame_fits(Frame::from_number(end), size), "too wide an address");
            for bits in 0..=PageFlags::all().bits() {
                let flags = format.grants(PageFlags::from_bits_retain(bits));
                let raw = format.leaf(highest, size, PageFlags::from_bits_retain(bits));
                assert_eq!(raw & NO_EXECUTE & reserved(width, nx, Some(size)), 0, "{raw:#x}");
                let word = format.leaf(highest, size, flags);
                if !flags.intersects(PageFlags::ACCESS) {
                    assert_eq!(word & PRESENT, 0, "a parked leaf is absent to the machine");
                    continue;
                }
                let wrong = word & reserved(width, nx, Some(size));
                assert_eq!(wrong, 0, "{word:#x}, {size:?}, {width} bits");
                assert_eq!(word & NO_EXECUTE == 0, flags.contains(PageFlags::EXEC), "{word:#x}");
                if size != PageSize::K4 {
                    assert_ne!(word & PAGE_SIZE, 0, "a large leaf that is taken for a table");
                }
                let small = format.leaf(highest, PageSize::K4, flags);
                let types = (memory_type(word, size), memory_type(small, PageSize::K4));
                assert_eq!(types.0, types.1, "{word:#x}: another memory type by its size");
            }
        }
        for user in [false, true] {
            let word = format.table(Frame::from_number(end - 1), user);
            assert_eq!(word & reserved(width, nx, None), 0, "{word:#x}");
        }
        assert_eq!(format.has_size(PageSize::G1), huge);
    }
}
