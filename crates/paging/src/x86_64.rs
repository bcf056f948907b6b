//! Entries of x86-64 (Intel SDM volume 3A, chapter "Paging"; AMD APM volume 2, chapter 5).
//!
//! ```text
//! present   63 | 62..52 | 51..12 frame | 11 10 9    | 8 | 7  | 6 | 5 | 4   3   | 2 | 1 | 0
//!           NX | 0      |              | 0  S2 S1   | G | PS | D | A | PCD PWT | U | W | 1
//! parked    0  | as above, no access granted                               | U | 1 | 0
//! absent    the caller's word, shifted left by two                             | 0   0
//! ```
//!
//! Bit 7 means "leaf" in levels 2 and 3, and in level 1 it is part of the memory type; it is never
//! set there. Memory types use the first four entries of the PAT only: write-back is entry 0,
//! write-combining entry 1 (PWT), uncached entry 3 (PCD and PWT). After reset entry 1 is
//! write-through: a host that does not reprogram it gets that, slower but correct, for
//! [`WRITE_COMBINE`](PageFlags::WRITE_COMBINE).
//!
//! Left out: protection keys, encrypted-memory bits, shadow-stack pages.

use pagoda_addr::{Frame, PhysAddr};

use crate::{AbsentWord, Decoded, Format, PageFlags, PageSize, Remembers, Rewrite};

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const PWT: u64 = 1 << 3;
const PCD: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LEAF: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const SOFT1: u64 = 1 << 9;
const SOFT2: u64 = 1 << 10;
const NX: u64 = 1 << 63;
/// In a word that is not present: a leaf that grants nothing.
const PARKED: u64 = 1 << 1;
const ABSENT_SHIFT: u32 = 2;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Flags that have the same bit here and in [`PageFlags`], and mean the same present and parked.
const PLAIN: u64 = USER | PCD | PWT | ACCESSED | DIRTY | GLOBAL | SOFT1 | SOFT2;
/// The same bit too, in present leaves only.
const RIGHTS: u64 = PRESENT | WRITE;

const _: () = {
    let same = [
        (PageFlags::READ, PRESENT),
        (PageFlags::WRITE, WRITE),
        (PageFlags::USER, USER),
        (PageFlags::WRITE_COMBINE, PWT),
        (PageFlags::UNCACHED, PCD),
        (PageFlags::ACCESSED, ACCESSED),
        (PageFlags::DIRTY, DIRTY),
        (PageFlags::GLOBAL, GLOBAL),
        (PageFlags::SOFT1, SOFT1),
        (PageFlags::SOFT2, SOFT2),
    ];
    let mut index = 0;
    while index < same.len() {
        assert!(same[index].0.bits() as u64 == same[index].1);
        index += 1;
    }
};

/// The format of x86-64 with four or five levels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct X86_64 {
    levels: u32,
    phys_bits: u32,
    nx: bool,
    huge: bool,
}

impl X86_64 {
    /// The format of a machine with 4 or 5 `levels` (anything else is taken as 4), `phys_bits` of
    /// physical address (CPUID 8000_0008h; taken as at least 32 and at most 52), `nx` if EFER.NXE
    /// is set, and `huge` if there are 1 GiB pages.
    pub const fn new(levels: u32, phys_bits: u32, nx: bool, huge: bool) -> Self {
        let levels = if levels == 5 { 5 } else { 4 };
        let phys_bits = match phys_bits {
            0..32 => 32,
            32..=52 => phys_bits,
            _ => 52,
        };
        Self { levels, phys_bits, nx, huge }
    }

    #[inline]
    fn flags(word: u64) -> PageFlags {
        let mut bits = word & PLAIN;
        if word & PCD != 0 {
            // Uncached has both bits here.
            bits &= !PWT;
        }
        let mut exec = PageFlags::empty();
        if word & PRESENT != 0 {
            bits |= word & RIGHTS;
            if word & NX == 0 {
                exec = PageFlags::EXEC;
            }
        }
        PageFlags::from_bits_retain(bits as u32) | exec
    }
}

impl Format for X86_64 {
    #[inline]
    fn levels(&self) -> u32 {
        self.levels
    }

    #[inline]
    fn has_size(&self, size: PageSize) -> bool {
        self.huge || size != PageSize::G1
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
            if !self.nx {
                flags |= PageFlags::EXEC;
            }
        }
        if flags.contains(PageFlags::UNCACHED) {
            flags -= PageFlags::WRITE_COMBINE;
        }
        flags
    }

    #[inline]
    fn leaf(&self, frame: Frame, size: PageSize, flags: PageFlags) -> u64 {
        let bits = u64::from(flags.bits());
        let mut word = frame.start().as_u64() | (bits & PLAIN);
        if flags.contains(PageFlags::UNCACHED) {
            word |= PWT;
        }
        if size != PageSize::K4 {
            word |= LEAF;
        }
        if !flags.intersects(PageFlags::ACCESS) {
            return word | PARKED;
        }
        if self.nx && !flags.contains(PageFlags::EXEC) {
            word |= NX;
        }
        word | (bits & RIGHTS) | PRESENT
    }

    #[inline]
    fn table(&self, frame: Frame, user: bool) -> u64 {
        // Accessed is preset, so that no walk has to write it.
        let user = if user { USER } else { 0 };
        frame.start().as_u64() | PRESENT | WRITE | ACCESSED | user
    }

    #[inline]
    fn absent(&self, word: AbsentWord) -> u64 {
        word.get() << ABSENT_SHIFT
    }

    #[inline]
    fn frame_bits(&self) -> u64 {
        ADDRESS
    }

    #[inline]
    fn leaf_frame(&self, word: u64) -> Frame {
        PhysAddr::new(word & ADDRESS).block()
    }

    #[inline]
    fn is_settled(&self, word: u64) -> bool {
        // Accessed is set by any use, dirty only by a write that the entry allows.
        word & PRESENT == 0 || (word & ACCESSED != 0 && word & (WRITE | DIRTY) != WRITE)
    }

    #[inline]
    fn remembers(&self) -> Remembers {
        Remembers::Nothing
    }

    #[inline]
    fn breaks_for(&self, _: Rewrite) -> bool {
        false
    }

    #[inline]
    fn next_table(&self, word: u64, _: u32) -> Option<Frame> {
        // A table is always present.
        let is_table = word & (PRESENT | LEAF) == PRESENT;
        is_table.then(|| PhysAddr::new(word & ADDRESS).block())
    }

    #[inline]
    fn decode(&self, word: u64, level: u32) -> Decoded {
        let frame = PhysAddr::new(word & ADDRESS).block();
        if word & (PRESENT | PARKED) == 0 {
            return Decoded::Absent(AbsentWord::from_bits(word >> ABSENT_SHIFT));
        }
        if level == 1 || word & LEAF != 0 {
            return Decoded::Leaf(frame, Self::flags(word));
        }
        Decoded::Table(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagoda_addr::Page;

    use crate::format::laws;

    const FORMAT: X86_64 = X86_64::new(4, 40, true, true);

    fn frame(number: u64) -> Frame {
        Frame::from_number(number)
    }

    #[test]
    fn every_leaf_reads_back_as_what_is_granted() {
        for format in [FORMAT, X86_64::new(5, 52, false, false)] {
            laws::leaves_read_back(&format);
        }
    }

    #[test]
    fn absent_words_never_read_as_anything_else() {
        for format in [FORMAT, X86_64::new(5, 52, false, false)] {
            laws::absence_reads_back(&format, PRESENT);
        }
    }

    #[test]
    fn bits_are_where_the_manual_has_them() {
        let flags = PageFlags::READ_WRITE | PageFlags::USER | PageFlags::DIRTY;
        assert_eq!(FORMAT.leaf(frame(0x1234), PageSize::K4, flags), 0x8000_0000_0123_4047);
        let flags = PageFlags::READ_EXEC | PageFlags::GLOBAL | PageFlags::UNCACHED;
        assert_eq!(FORMAT.leaf(frame(0x200), PageSize::M2, flags), 0x20_0199);
        assert_eq!(FORMAT.table(frame(5), true), 0x5027);
        assert_eq!(FORMAT.table(frame(5), false), 0x5023);
        let without = X86_64::new(4, 40, false, true);
        assert_eq!(without.leaf(frame(1), PageSize::K4, PageFlags::READ), 0x1001);
    }

    #[test]
    fn width_and_canonicity_are_parameters() {
        assert!(FORMAT.frame_fits(frame((1 << 28) - 1), PageSize::K4));
        assert!(!FORMAT.frame_fits(frame(1 << 28), PageSize::K4));
        assert!(!FORMAT.frame_fits(frame((1 << 28) - 1), PageSize::M2));
        let five = X86_64::new(5, 52, true, true);
        for (page, in_four, in_five) in [
            (0, true, true),
            (0x7_ffff_ffff, true, true),
            (0x8_0000_0000, false, true),
            (0xf_fff8_0000_0000, true, true),
            (0xf_fff0_0000_0000, false, true),
            (0x1000_0000_0000 - 1, false, true),
            (0x1000_0000_0000, false, false),
            (Page::LIMIT - 1, true, true),
        ] {
            let page = Page::from_number(page);
            assert_eq!((FORMAT.covers(page), five.covers(page)), (in_four, in_five), "{page:?}");
        }
    }
}
