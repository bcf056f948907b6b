//! Entries of RISC-V: Sv39, Sv48 and Sv57 (Privileged Architecture, "Supervisor-Level ISA"; the
//! extensions Svpbmt, Svade, Svadu and Svvptc).
//!
//! ```text
//! leaf      63 | 62 61 | 60..54 | 53..10 frame | 9  8  | 7 | 6 | 5 | 4 | 3 | 2 | 1 | 0
//!           0  | PBMT  | 0      |              | S2 S1 | D | A | G | U | X | W | R | 1
//! table     0    0       0        frame          0  0    0   0   0   0   0   0   0   1
//! parked    0  | as in a leaf, no access granted               | U | 0   0   1 | 0
//! absent    the caller's word, shifted left by two                         | 0 | 0
//! ```
//!
//! The one kind of entry that is a table is a valid one without R, W and X; nothing else says
//! "leaf". Executing without reading is possible; writing without reading is not.
//!
//! # What the machine needs beyond
//!
//! - *Absence is remembered* ([`Remembers::Absence`]), of tables as well as of leaves, unless the
//!   machine has Svvptc ([`RiscV::svvptc`]): whatever appears is told to
//!   [`Platform::gained`](crate::Platform::gained). There, and in a flush, `tables` means an
//!   SFENCE.VMA without an address: with one, it orders changes of leaves only.
//! - *A fault forgets nothing.* A handler that finds that the tables do allow the access does an
//!   SFENCE.VMA of that page, or the same fault comes again for ever.
//! - *History.* With Svade the machine raises a page fault where A, or on a write D, is clear: the
//!   handler calls [`Cursor::touch`](crate::Cursor::touch). With Svadu the machine sets the bits.
//! - No break-before-make: a change of a leaf's size may be seen as either until the fence, which is
//!   what a flush promises anyway; both sizes translate alike.
//! - Memory types: without Svpbmt they are a property of the address, and the flags for them are
//!   not granted.
//! - Address-space identifiers: none here; a CPU that loads another root does an SFENCE.VMA without
//!   operands (with ASID 0 everywhere), and then `leave`s the old space.
//!
//! Left out: leaves of 512 GiB and more, NAPOT ranges, shadow stacks.

use pagoda_addr::Frame;

use crate::{AbsentWord, Decoded, Format, PageFlags, PageSize, Remembers, Rewrite};

const VALID: u64 = 1 << 0;
const READ: u64 = 1 << 1;
const WRITE: u64 = 1 << 2;
const EXEC: u64 = 1 << 3;
const RIGHTS: u64 = READ | WRITE | EXEC;
/// In a word that is not valid: a leaf that grants nothing.
const PARKED: u64 = READ;
const FRAME_SHIFT: u32 = 10;
const FRAME_BITS: u32 = 44;
/// Svpbmt: not cacheable memory, and input/output.
const PBMT_NC: u64 = 1 << 61;
const PBMT_IO: u64 = 1 << 62;
const ABSENT_SHIFT: u32 = 2;

/// Which bit says what, in every leaf.
const PLAIN: [(PageFlags, u64); 6] = [
    (PageFlags::USER, 1 << 4),
    (PageFlags::GLOBAL, 1 << 5),
    (PageFlags::ACCESSED, 1 << 6),
    (PageFlags::DIRTY, 1 << 7),
    (PageFlags::SOFT1, 1 << 8),
    (PageFlags::SOFT2, 1 << 9),
];
/// In leaves that grant something.
const GRANTED: [(PageFlags, u64); 3] =
    [(PageFlags::READ, READ), (PageFlags::WRITE, WRITE), (PageFlags::EXEC, EXEC)];
/// With Svpbmt.
const TYPES: [(PageFlags, u64); 2] =
    [(PageFlags::WRITE_COMBINE, PBMT_NC), (PageFlags::UNCACHED, PBMT_IO)];

/// The format of RISC-V with three, four or five levels (Sv39, Sv48, Sv57).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RiscV {
    levels: u32,
    phys_bits: u32,
    pbmt: bool,
    svvptc: bool,
}

impl RiscV {
    /// Three levels.
    pub const SV39: Self = Self::new(3, 56, false);
    /// Four levels.
    pub const SV48: Self = Self::new(4, 56, false);
    /// Five levels.
    pub const SV57: Self = Self::new(5, 56, false);

    /// The format with 3 to 5 `levels` (anything else is taken as 3), `phys_bits` of physical
    /// address (taken as at least 32 and at most 56), and `pbmt` if the machine has Svpbmt and it
    /// is switched on.
    pub const fn new(levels: u32, phys_bits: u32, pbmt: bool) -> Self {
        let levels = if levels == 4 || levels == 5 { levels } else { 3 };
        let phys_bits = match phys_bits {
            0..32 => 32,
            32..=56 => phys_bits,
            _ => 56,
        };
        Self { levels, phys_bits, pbmt, svvptc: false }
    }

    /// The same on a machine with Svvptc: what appears in the tables is seen after a bounded time
    /// without a fence (and until then as a fault that finds nothing to do).
    pub const fn svvptc(self) -> Self {
        Self { svvptc: true, ..self }
    }
}

#[inline]
fn encode(flags: PageFlags, bits: &[(PageFlags, u64)]) -> u64 {
    bits.iter().filter(|(flag, _)| flags.contains(*flag)).fold(0, |word, (_, bit)| word | bit)
}

#[inline]
fn read(word: u64, bits: &[(PageFlags, u64)]) -> PageFlags {
    let set = bits.iter().filter(|(_, bit)| word & bit != 0);
    set.fold(PageFlags::empty(), |flags, (flag, _)| flags | *flag)
}

impl Format for RiscV {
    #[inline]
    fn levels(&self) -> u32 {
        self.levels
    }

    #[inline]
    fn has_size(&self, _: PageSize) -> bool {
        true
    }

    #[inline]
    fn phys_bits(&self) -> u32 {
        self.phys_bits
    }

    #[inline]
    fn grants(&self, flags: PageFlags) -> PageFlags {
        let mut flags = flags;
        if flags.contains(PageFlags::WRITE) {
            flags |= PageFlags::READ;
        }
        if !self.pbmt {
            flags -= PageFlags::UNCACHED | PageFlags::WRITE_COMBINE;
        } else if flags.contains(PageFlags::UNCACHED) {
            flags -= PageFlags::WRITE_COMBINE;
        }
        flags
    }

    #[inline]
    fn leaf(&self, frame: Frame, _: PageSize, flags: PageFlags) -> u64 {
        let word = frame.number() << FRAME_SHIFT | encode(flags, &PLAIN) | encode(flags, &TYPES);
        if !flags.intersects(PageFlags::ACCESS) {
            return word | PARKED;
        }
        word | encode(flags, &GRANTED) | VALID
    }

    #[inline]
    fn table(&self, frame: Frame, _: bool) -> u64 {
        frame.number() << FRAME_SHIFT | VALID
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
        let number = word >> FRAME_SHIFT & ((1 << FRAME_BITS) - 1);
        let frame = Frame::new(number).unwrap_or_default();
        if word & VALID == 0 {
            return Decoded::Leaf(frame, read(word, &PLAIN) | read(word, &TYPES));
        }
        if level > 1 && word & RIGHTS == 0 {
            return Decoded::Table(frame);
        }
        Decoded::Leaf(frame, read(word, &PLAIN) | read(word, &TYPES) | read(word, &GRANTED))
    }

    #[inline]
    fn remembers(&self) -> Remembers {
        if self.svvptc { Remembers::Refusals } else { Remembers::Absence }
    }

    #[inline]
    fn breaks_for(&self, _: Rewrite) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagoda_addr::Page;

    use crate::format::laws;

    fn frame(number: u64) -> Frame {
        Frame::from_number(number)
    }

    #[test]
    fn every_leaf_reads_back_as_what_is_granted() {
        for format in [RiscV::SV39, RiscV::new(5, 56, true)] {
            laws::leaves_read_back(&format);
        }
    }

    #[test]
    fn absent_words_never_read_as_anything_else() {
        for format in [RiscV::SV39, RiscV::new(5, 56, true)] {
            laws::absence_reads_back(&format, VALID);
        }
    }

    #[test]
    fn bits_are_where_the_manual_has_them() {
        let format = RiscV::new(3, 56, true);
        let flags = PageFlags::READ_WRITE | PageFlags::USER | PageFlags::DIRTY;
        assert_eq!(format.leaf(frame(0x1234), PageSize::K4, flags), 0x48_d097);
        let flags = PageFlags::EXEC | PageFlags::GLOBAL | PageFlags::ACCESSED;
        assert_eq!(format.leaf(frame(0x200), PageSize::M2, flags), 0x8_0069);
        let flags = PageFlags::READ | PageFlags::UNCACHED;
        assert_eq!(format.leaf(frame(1), PageSize::K4, flags), 0x4000_0000_0000_0403);
        assert_eq!(format.table(frame(5), true), 0x1401);
        assert_eq!(format.decode(0x1401, 2), Decoded::Table(frame(5)));
    }

    #[test]
    fn levels_decide_what_is_canonical() {
        for (format, bits) in [(RiscV::SV39, 39), (RiscV::SV48, 48), (RiscV::SV57, 57)] {
            let half = 1 << (bits - 13);
            let covered = [0, half - 1, half, Page::LIMIT - half - 1, Page::LIMIT - half]
                .map(|page| format.covers(Page::from_number(page)));
            assert_eq!(covered, [true, true, false, false, true]);
        }
        assert!(RiscV::SV39.frame_fits(frame((1 << 44) - 1), PageSize::K4));
        assert!(!RiscV::SV39.frame_fits(frame(1 << 44), PageSize::K4));
    }
}
