//! Entries of AArch64: stage 1, 4 KiB granule, four levels, 48 bits (Arm Architecture Reference
//! Manual for A-profile, "The AArch64 Virtual Memory System Architecture").
//!
//! ```text
//! page      63 | 58 57 56 55 | 54  53  | 52..48 | 47..12 | 11 | 10 | 9 8 | 7  6  | 5 | 4..2 | 1 0
//!           0  | D  W  S2 S1 | UXN PXN | 0      | frame  | nG | AF | SH  | RO U  | 0 | Attr | 1 1
//! block     as a page                                                                    | 0 1
//! table     0    0             0         0        frame    0    0    0     0  0    0   0   | 1 1
//! parked    as a page, no access granted                                                 | 1 0
//! absent    the caller's word, shifted left by two                                       | 0 0
//! ```
//!
//! Levels are counted here from the bottom; the manual calls level 1 of this crate level 3.
//!
//! Nothing but software keeps the history (no FEAT_HAFDBS): W says that the page may be written, D
//! that it was. A page that may be written and was not yet is read-only for the machine, and
//! one that was not used yet has AF clear; the first access faults, and the handler calls
//! [`Cursor::touch`](crate::Cursor::touch).
//!
//! A program's page is never executable for the kernel and the reverse, and pages that a program
//! may use are for the kernel to keep away from by PAN. Whatever may be written or executed may be
//! read. Memory is inner shareable. MAIR_EL1 has to be [`Aarch64::MAIR`].
//!
//! # What the machine needs beyond
//!
//! - *Two roots*: TTBR0 covers the programs' half, TTBR1 the kernel's, so a format value stands for
//!   one of them ([`Aarch64::lower`], [`Aarch64::upper`]) and no tree shares a half with another.
//! - *Break before make* ([`Format::breaks_for`]): a valid entry that gets another frame,
//!   another size, another memory type or another nG is made absent first, and flushed, and written
//!   only then. Inside this moment other CPUs fault, and their handlers wait for the tree's lock:
//!   therefore the pages on which the handler itself runs must not be split or replaced. With
//!   FEAT_BBM at level 2 a change of size does without it ([`Aarch64::without_break`]).
//! - *Barriers*: a new entry is seen by walks after DSB ISHST (and, on the same CPU, ISB): that is
//!   what a host does in [`Platform::gained`](crate::Platform::gained) for
//!   [`Gain::Present`](crate::Gain::Present). Absence itself is never remembered.
//! - *A fault forgets nothing*: for [`Gain::Rights`](crate::Gain::Rights) it is TLBI, there or in the
//!   handler of a fault that finds nothing to do.
//! - *Flush*: DSB ISHST, TLBI VALE1IS for each page (VAE1IS when `tables` is set), DSB ISH, ISB.
//!   The machine broadcasts it; the set of CPUs is not asked.
//!
//! Left out: hardware history, the contiguous hint, 52-bit addresses, granules of 16 and 64 KiB,
//! stage 2, guarded pages, memory tags, hierarchical attributes, execute-only pages.

use pagoda_addr::{Frame, Page, PhysAddr};

use crate::{AbsentWord, Decoded, Format, PageFlags, PageSize, Remembers, Rewrite};

const VALID: u64 = 1 << 0;
/// In a valid word: a table, or in level 1 a page; clear in a block.
const TABLE_OR_PAGE: u64 = 1 << 1;
/// In a word that is not valid: a leaf that grants nothing.
const PARKED: u64 = 1 << 1;
const ATTR_SHIFT: u32 = 2;
const ATTR_MASK: u64 = 7 << ATTR_SHIFT;
const ATTR_DEVICE: u64 = 1 << ATTR_SHIFT;
const ATTR_COMBINE: u64 = 2 << ATTR_SHIFT;
const USER: u64 = 1 << 6;
const READ_ONLY: u64 = 1 << 7;
const INNER_SHAREABLE: u64 = 3 << 8;
const ACCESSED: u64 = 1 << 10;
const NOT_GLOBAL: u64 = 1 << 11;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;
const SOFT1: u64 = 1 << 55;
const SOFT2: u64 = 1 << 56;
/// The page may be written.
const WRITABLE: u64 = 1 << 57;
/// It was written.
const DIRTY: u64 = 1 << 58;
const ABSENT_SHIFT: u32 = 2;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
const LEVELS: u32 = 4;
/// Pages in one half.
const HALF: u64 = 1 << (9 * LEVELS);

/// Which bit says what, in every leaf.
const PLAIN: [(PageFlags, u64); 5] = [
    (PageFlags::USER, USER),
    (PageFlags::ACCESSED, ACCESSED),
    (PageFlags::DIRTY, DIRTY),
    (PageFlags::SOFT1, SOFT1),
    (PageFlags::SOFT2, SOFT2),
];

/// The format of AArch64 with 4 KiB pages, for one of its two roots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Aarch64 {
    upper: bool,
    phys_bits: u32,
    breaks: bool,
}

impl Aarch64 {
    /// What MAIR_EL1 has to hold: normal write-back memory, Device-nGnRnE, normal non-cacheable.
    pub const MAIR: u64 = 0x44_00ff;

    /// The programs' half (TTBR0), with `phys_bits` of physical address (ID_AA64MMFR0_EL1.PARange;
    /// taken as at least 32 and at most 48).
    pub const fn lower(phys_bits: u32) -> Self {
        Self::new(false, phys_bits)
    }

    /// The kernel's half (TTBR1).
    pub const fn upper(phys_bits: u32) -> Self {
        Self::new(true, phys_bits)
    }

    const fn new(upper: bool, phys_bits: u32) -> Self {
        let phys_bits = match phys_bits {
            0..32 => 32,
            32..=48 => phys_bits,
            _ => 48,
        };
        Self { upper, phys_bits, breaks: true }
    }

    /// The same on a machine with FEAT_BBM at level 2, which needs no break before a change of size.
    /// Another frame or memory type still does: no level of that feature allows it.
    pub const fn without_break(self) -> Self {
        Self { breaks: false, ..self }
    }
}

impl Format for Aarch64 {
    #[inline]
    fn levels(&self) -> u32 {
        LEVELS
    }

    #[inline]
    fn has_size(&self, _: PageSize) -> bool {
        true
    }

    #[inline]
    fn covers(&self, page: Page) -> bool {
        if self.upper { page.number() >= Page::LIMIT - HALF } else { page.number() < HALF }
    }

    #[inline]
    fn upper_half(&self, _: Page) -> bool {
        false
    }

    #[inline]
    fn upper_index(&self) -> usize {
        crate::ENTRIES
    }

    #[inline]
    fn phys_bits(&self) -> u32 {
        self.phys_bits
    }

    #[inline]
    fn grants(&self, flags: PageFlags) -> PageFlags {
        let mut flags = flags;
        if flags.intersects(PageFlags::ACCESS) {
            flags |= PageFlags::READ;
        }
        if flags.contains(PageFlags::UNCACHED) {
            flags -= PageFlags::WRITE_COMBINE;
        }
        flags
    }

    #[inline]
    fn leaf(&self, frame: Frame, size: PageSize, flags: PageFlags) -> u64 {
        let mut word = frame.start().as_u64() | INNER_SHAREABLE;
        for (flag, bit) in PLAIN {
            if flags.contains(flag) {
                word |= bit;
            }
        }
        if flags.contains(PageFlags::UNCACHED) {
            word |= ATTR_DEVICE;
        } else if flags.contains(PageFlags::WRITE_COMBINE) {
            word |= ATTR_COMBINE;
        }
        if !flags.contains(PageFlags::GLOBAL) {
            word |= NOT_GLOBAL;
        }
        if !flags.intersects(PageFlags::ACCESS) {
            return word | PARKED;
        }
        let never = if flags.contains(PageFlags::USER) { PXN } else { UXN };
        word |= if flags.contains(PageFlags::EXEC) { never } else { PXN | UXN };
        if flags.contains(PageFlags::WRITE) {
            word |= WRITABLE;
        }
        if !flags.contains(PageFlags::WRITE | PageFlags::DIRTY) {
            word |= READ_ONLY;
        }
        if size == PageSize::K4 {
            word |= TABLE_OR_PAGE;
        }
        word | VALID
    }

    #[inline]
    fn table(&self, frame: Frame, _: bool) -> u64 {
        frame.start().as_u64() | TABLE_OR_PAGE | VALID
    }

    #[inline]
    fn absent(&self, word: AbsentWord) -> u64 {
        word.get() << ABSENT_SHIFT
    }

    #[inline]
    fn decode(&self, word: u64, level: u32) -> Decoded {
        if word & (VALID | PARKED) == 0 {
            return Decoded::Absent(AbsentWord::from_bits(word >> ABSENT_SHIFT));
        }
        let frame = PhysAddr::new(word & ADDRESS).block();
        if word & VALID != 0 && level > 1 && word & TABLE_OR_PAGE != 0 {
            return Decoded::Table(frame);
        }
        Decoded::Leaf(frame, flags(word))
    }

    #[inline]
    fn remembers(&self) -> Remembers {
        Remembers::Refusals
    }

    #[inline]
    fn breaks_for(&self, rewrite: Rewrite) -> bool {
        self.breaks || rewrite != Rewrite::Size
    }
}

/// The flags of a leaf.
#[inline]
fn flags(word: u64) -> PageFlags {
    let mut flags = PageFlags::empty();
    for (flag, bit) in PLAIN {
        if word & bit != 0 {
            flags |= flag;
        }
    }
    if word & NOT_GLOBAL == 0 {
        flags |= PageFlags::GLOBAL;
    }
    flags |= match word & ATTR_MASK {
        ATTR_DEVICE => PageFlags::UNCACHED,
        ATTR_COMBINE => PageFlags::WRITE_COMBINE,
        _ => PageFlags::empty(),
    };
    if word & VALID == 0 {
        return flags;
    }
    flags |= PageFlags::READ;
    if word & WRITABLE != 0 {
        flags |= PageFlags::WRITE;
    }
    let forbids = if word & USER != 0 { UXN } else { PXN };
    if word & forbids == 0 {
        flags |= PageFlags::EXEC;
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::laws;

    const FORMAT: Aarch64 = Aarch64::lower(40);

    fn frame(number: u64) -> Frame {
        Frame::from_number(number)
    }

    #[test]
    fn every_leaf_reads_back_as_what_is_granted() {
        laws::leaves_read_back(&FORMAT);
    }

    #[test]
    fn absent_words_never_read_as_anything_else() {
        laws::absence_reads_back(&FORMAT, VALID);
    }

    #[test]
    fn bits_are_where_the_manual_has_them() {
        let used = PageFlags::READ_WRITE | PageFlags::USER | PageFlags::ACCESSED;
        // Not yet written: read-only for the machine.
        assert_eq!(FORMAT.leaf(frame(0x1234), PageSize::K4, used), 0x0260_0000_0123_4fc3);
        let dirty = used | PageFlags::DIRTY;
        assert_eq!(FORMAT.leaf(frame(0x1234), PageSize::K4, dirty), 0x0660_0000_0123_4f43);
        let flags = PageFlags::READ_EXEC | PageFlags::GLOBAL | PageFlags::UNCACHED;
        assert_eq!(FORMAT.leaf(frame(0x200), PageSize::M2, flags), 0x0040_0000_0020_0385);
        assert_eq!(FORMAT.table(frame(5), true), 0x5003);
    }

    #[test]
    fn each_root_covers_one_half() {
        let upper = Aarch64::upper(48);
        for (page, in_lower, in_upper) in [
            (0, true, false),
            ((1 << 36) - 1, true, false),
            (1 << 36, false, false),
            (Page::LIMIT - (1 << 36) - 1, false, false),
            (Page::LIMIT - (1 << 36), false, true),
            (Page::LIMIT - 1, false, true),
        ] {
            let page = Page::from_number(page);
            assert_eq!((FORMAT.covers(page), upper.covers(page)), (in_lower, in_upper), "{page:?}");
        }
        assert!(!FORMAT.frame_fits(frame(1 << 28), PageSize::K4));
    }
}
