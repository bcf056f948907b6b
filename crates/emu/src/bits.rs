//! What hardware reads in an entry, from the manuals: Intel SDM volume 3A ("4-level paging and
//! 5-level paging"), Arm ARM ("VMSAv8-64 translation table format descriptors"), RISC-V Privileged
//! Architecture ("Sv39", "Sv48", "Sv57"). Deliberately shares nothing with the formats under test.

use pagoda_addr::{Frame, PhysAddr, VirtAddr};

use crate::Mmu;
use crate::walk::Rights;

/// The machine's own parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hardware {
    pub(crate) mmu: Mmu,
    pub(crate) levels: u32,
    pub(crate) phys_bits: u32,
}

/// An entry.
pub(crate) enum Raw {
    Absent,
    Table { next: Frame, rights: Rights },
    Leaf(Leaf),
}

/// A leaf. Where the machine keeps no history, every leaf that it accepts is dirty.
pub(crate) struct Leaf {
    pub(crate) frame: Frame,
    pub(crate) rights: Rights,
    pub(crate) global: bool,
    pub(crate) memory: u8,
    pub(crate) accessed: bool,
    pub(crate) dirty: bool,
}

/// What the machine sets in entries that it uses.
pub(crate) struct Marks {
    /// In a table's entry.
    pub(crate) passed: u64,
    /// In the leaf.
    pub(crate) used: u64,
    /// In the leaf, on a write.
    pub(crate) written: u64,
}

impl Hardware {
    /// Does the loaded root cover the address?
    pub(crate) fn covers(&self, addr: VirtAddr) -> bool {
        match self.mmu {
            Mmu::Aarch64 { upper } => addr.as_u64() >> 48 == if upper { 0xffff } else { 0 },
            Mmu::X86_64 | Mmu::RiscV { .. } => addr.is_canonical(12 + 9 * self.levels),
        }
    }

    /// Does a fault on a page make the CPU forget it?
    pub(crate) fn fault_forgets(&self) -> bool {
        self.mmu == Mmu::X86_64
    }

    /// May a CPU remember that an entry is absent?
    pub(crate) fn remembers_absence(&self) -> bool {
        matches!(self.mmu, Mmu::RiscV { .. })
    }

    /// Does the machine fault rather than set a bit of the history?
    pub(crate) fn faults_for_history(&self) -> bool {
        matches!(self.mmu, Mmu::Aarch64 { .. } | Mmu::RiscV { svadu: false })
    }

    pub(crate) fn breaks_before_make(&self) -> bool {
        matches!(self.mmu, Mmu::Aarch64 { .. })
    }

    pub(crate) fn marks(&self) -> Marks {
        match self.mmu {
            Mmu::X86_64 => Marks { passed: 1 << 5, used: 1 << 5, written: 1 << 6 },
            Mmu::RiscV { svadu: true } => Marks { passed: 0, used: 1 << 6, written: 1 << 7 },
            Mmu::RiscV { svadu: false } | Mmu::Aarch64 { .. } => {
                Marks { passed: 0, used: 0, written: 0 }
            }
        }
    }

    /// Reads an entry of a table of `level` (1 is the lowest) on the way to `page`.
    ///
    /// # Panics
    /// When it is one that the architecture reserves.
    pub(crate) fn read(&self, word: u64, level: u32, page: u64) -> Raw {
        let (raw, reserved) = match self.mmu {
            Mmu::X86_64 => x86_64(word, level),
            Mmu::Aarch64 { .. } => aarch64(word, level),
            Mmu::RiscV { .. } => riscv(word, level),
        };
        let (frame, size) = match &raw {
            Raw::Absent => return raw,
            Raw::Table { next, .. } => (next.number(), 1),
            Raw::Leaf(leaf) => (leaf.frame.number(), 1 << (9 * (level - 1))),
        };
        let fits = frame + size <= 1 << (self.phys_bits - 12);
        let good = word & reserved == 0 && fits && frame & (size - 1) == 0;
        assert!(
            good,
            "entry {word:#x} of level {level} on the way to page {page:#x} has reserved bits set"
        );
        raw
    }
}

fn bit(word: u64, index: u32) -> bool {
    word >> index & 1 != 0
}

/// The entry, and which of its bits must be clear.
fn x86_64(word: u64, level: u32) -> (Raw, u64) {
    if !bit(word, 0) {
        return (Raw::Absent, 0);
    }
    let frame = PhysAddr::new(word & 0x000f_ffff_ffff_f000).block();
    let rights =
        Rights { read: true, write: bit(word, 1), user: bit(word, 2), exec: !bit(word, 63) };
    if level > 1 && !(bit(word, 7) && level < 4) {
        let reserved = if level >= 4 { 1 << 7 } else { 0 };
        return (Raw::Table { next: frame, rights }, reserved);
    }
    // Bit 12 of a large leaf is part of the memory type; nobody here sets it.
    let leaf = Leaf {
        frame,
        rights,
        global: bit(word, 8),
        memory: (word >> 3 & 3) as u8 | if level == 1 { (word >> 5 & 4) as u8 } else { 0 },
        accessed: true,
        dirty: bit(word, 6),
    };
    (Raw::Leaf(leaf), 0)
}

/// Levels from the bottom; the manual counts from the top (3 is the lowest there).
fn aarch64(word: u64, level: u32) -> (Raw, u64) {
    const RES0: u64 = 0x0007_0000_0000_0000;
    // NSTable, APTable, UXNTable, PXNTable: hardware would honour them; nothing here sets them.
    const TABLE_ATTRIBUTES: u64 = 0x1f << 59;
    if !bit(word, 0) {
        return (Raw::Absent, 0);
    }
    let frame = PhysAddr::new(word & 0x0000_ffff_ffff_f000).block();
    let points = bit(word, 1);
    if level > 1 && points {
        return (Raw::Table { next: frame, rights: Rights::ALL }, RES0 | TABLE_ATTRIBUTES);
    }
    // A block in the highest level, and a page without its bit, are reserved encodings.
    let encoding = if (level == 1) != points || level > 3 { 1 } else { 0 };
    let user = bit(word, 6);
    let never = if user { bit(word, 54) } else { bit(word, 53) };
    // Executable for the other side: a mistake, though hardware would take it.
    let other = if user { 1 << 53 } else { 1 << 54 };
    let crossed = if word & other == 0 { 1 } else { 0 };
    let leaf = Leaf {
        frame,
        rights: Rights { read: true, write: !bit(word, 7), user, exec: !never },
        global: !bit(word, 11),
        memory: (word >> 2 & 7) as u8,
        accessed: bit(word, 10),
        dirty: true,
    };
    // Bit 0 is set in every valid word, so to reserve it is to refuse the word.
    (Raw::Leaf(leaf), RES0 | 1 << 5 | encoding | crossed)
}

fn riscv(word: u64, level: u32) -> (Raw, u64) {
    // N and the bits that the base architecture reserves.
    const RESERVED: u64 = 1 << 63 | 0x7f << 54;
    if !bit(word, 0) {
        return (Raw::Absent, 0);
    }
    let frame = Frame::from_number(word >> 10 & ((1 << 44) - 1));
    let (read, write, exec) = (bit(word, 1), bit(word, 2), bit(word, 3));
    if !(read || write || exec) {
        // D, A, U and the memory type of a table's entry are reserved; a pointer in level 1 is none.
        let encoding = if level == 1 { 1 } else { 0 };
        let reserved = RESERVED | 3 << 61 | 1 << 7 | 1 << 6 | 1 << 4 | encoding;
        return (Raw::Table { next: frame, rights: Rights::ALL }, reserved);
    }
    let write_only = if write && !read { 1 } else { 0 };
    let leaf = Leaf {
        frame,
        rights: Rights { read, write, user: bit(word, 4), exec },
        global: bit(word, 5),
        memory: (word >> 61 & 3) as u8,
        accessed: bit(word, 6),
        dirty: bit(word, 7),
    };
    let too_large = if level > 3 { 1 } else { 0 };
    (Raw::Leaf(leaf), RESERVED | write_only | too_large)
}
