//! What a piece of physical memory is.

use core::fmt;

/// What a region of physical memory is, ordered by severity: where two claims overlap, the greater
/// one wins.
///
/// Four groups, in this order:
/// * [`Usable`](Self::Usable): RAM that nobody sits in;
/// * [`Unreachable`](Self::Unreachable): usable RAM that this kernel cannot reach;
/// * the *taken* kinds, [`EarlyKernel`](Self::EarlyKernel) to [`Kernel`](Self::Kernel): RAM that the
///   firmware calls usable, but that somebody sits in. A map shows a taken kind only on whole
///   frames of such RAM, so that the occupant's frames can be freed once he is gone;
/// * what the firmware keeps, [`SoftReserved`](Self::SoftReserved) to [`Unusable`](Self::Unusable).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum RegionKind {
    /// RAM that nobody sits in.
    Usable,
    /// Usable RAM above the limit given to [`MemoryMap::clip`](crate::MemoryMap::clip).
    Unreachable,
    /// Handed out by the early allocator.
    EarlyKernel,
    /// Frame 0 and the rest of the first 64 KiB, which firmware is known to write behind the back
    /// of the operating system.
    LowMemory,
    /// The BIOS's extended data area, up to 640 KiB.
    Ebda,
    /// Video memory and option ROMs between 640 KiB and 1 MiB, which real maps leave out.
    LegacyWindow,
    /// A command line, of the kernel or of a module.
    CommandLine,
    /// The loader's tables.
    BootInfo,
    /// A file that the loader placed in memory.
    Module,
    /// Pixels.
    Framebuffer,
    /// ACPI tables that the caller found in RAM called usable.
    AcpiTables,
    /// The page at which further CPUs start up.
    Trampoline,
    /// The kernel's own image.
    Kernel,
    /// Set aside for a special purpose (`EFI_MEMORY_SP`), such as high-bandwidth or CXL memory.
    SoftReserved,
    /// Persistent memory: e820 types 7 and 12.
    Persistent,
    /// ACPI tables as reported by the firmware: e820 type 3.
    Acpi,
    /// ACPI non-volatile storage: e820 type 4.
    AcpiNvs,
    /// Anything else that the firmware reports, known or not.
    Reserved,
    /// RAM in which errors were found: e820 type 5.
    Unusable,
}

impl RegionKind {
    /// Number of kinds.
    pub(crate) const COUNT: usize = Self::Unusable as usize + 1;

    /// The most severe kind first.
    pub(crate) const BY_SEVERITY: [Self; Self::COUNT] = [
        Self::Unusable,
        Self::Reserved,
        Self::AcpiNvs,
        Self::Acpi,
        Self::Persistent,
        Self::SoftReserved,
        Self::Kernel,
        Self::Trampoline,
        Self::AcpiTables,
        Self::Framebuffer,
        Self::Module,
        Self::BootInfo,
        Self::CommandLine,
        Self::LegacyWindow,
        Self::Ebda,
        Self::LowMemory,
        Self::EarlyKernel,
        Self::Unreachable,
        Self::Usable,
    ];

    /// The kind for an address range type of the BIOS call E820, as used by Multiboot and PVH too
    /// (ACPI specification 6.5, table 15.1, and Linux's numbers for persistent and soft-reserved
    /// memory). An unknown type is reserved.
    pub const fn from_e820(number: u32) -> Self {
        match number {
            1 => Self::Usable,
            3 => Self::Acpi,
            4 => Self::AcpiNvs,
            5 => Self::Unusable,
            7 | 12 => Self::Persistent,
            0xefff_ffff => Self::SoftReserved,
            _ => Self::Reserved,
        }
    }

    /// The kind for a memory descriptor of UEFI (specification 2.10, section 7.2.3), by its type
    /// and attributes. Boot services memory is usable only after the loader has ended them. An
    /// unknown type is reserved.
    pub const fn from_efi(number: u32, attributes: u64, boot_services_ended: bool) -> Self {
        const SPECIAL_PURPOSE: u64 = 0x4_0000;
        match number {
            7 if attributes & SPECIAL_PURPOSE != 0 => Self::SoftReserved,
            1 | 2 | 7 => Self::Usable,
            3 | 4 if boot_services_ended => Self::Usable,
            8 => Self::Unusable,
            9 => Self::Acpi,
            10 => Self::AcpiNvs,
            14 => Self::Persistent,
            _ => Self::Reserved,
        }
    }

    /// RAM that nobody sits in?
    pub const fn is_usable(self) -> bool {
        matches!(self, Self::Usable)
    }

    /// RAM that the firmware calls usable, but that somebody sits in?
    pub fn is_taken(self) -> bool {
        Self::EarlyKernel <= self && self <= Self::Kernel
    }

    /// RAM within reach that the firmware calls usable, whoever sits in it?
    pub fn is_ram(self) -> bool {
        self.is_usable() || self.is_taken()
    }

    /// A name for tables, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Usable => "usable",
            Self::EarlyKernel => "early kernel",
            Self::LowMemory => "low memory",
            Self::Ebda => "EBDA",
            Self::LegacyWindow => "legacy window",
            Self::CommandLine => "command line",
            Self::BootInfo => "boot information",
            Self::Module => "module",
            Self::Framebuffer => "framebuffer",
            Self::AcpiTables => "ACPI tables (taken)",
            Self::Trampoline => "CPU trampoline",
            Self::Kernel => "kernel image",
            Self::Unreachable => "out of reach",
            Self::SoftReserved => "soft reserved",
            Self::Persistent => "persistent",
            Self::Acpi => "ACPI tables",
            Self::AcpiNvs => "ACPI NVS",
            Self::Reserved => "reserved",
            Self::Unusable => "unusable",
        }
    }
}

impl fmt::Display for RegionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_by_severity_holds_every_kind_once_in_falling_order() {
        let list = RegionKind::BY_SEVERITY;
        assert!(list.windows(2).all(|pair| pair[0] > pair[1]));
        for (place, kind) in list.iter().rev().enumerate() {
            assert_eq!(*kind as usize, place);
        }
    }

    #[test]
    fn unknown_types_are_reserved() {
        for number in [0, 2, 6, 8, 11, 13, 20, 0xefff_fffe, u32::MAX] {
            assert_eq!(RegionKind::from_e820(number), RegionKind::Reserved);
        }
        for number in [0, 5, 6, 11, 12, 13, 15, 16, 0x7000_0000, u32::MAX] {
            assert_eq!(RegionKind::from_efi(number, 0, true), RegionKind::Reserved);
        }
    }

    #[test]
    fn boot_services_memory_stays_reserved_while_they_run() {
        for number in [3, 4] {
            assert_eq!(RegionKind::from_efi(number, 0, true), RegionKind::Usable);
            assert_eq!(RegionKind::from_efi(number, 0, false), RegionKind::Reserved);
        }
    }

    #[test]
    fn every_kind_is_ram_or_kept_by_the_firmware_or_out_of_reach() {
        for kind in RegionKind::BY_SEVERITY {
            let firmware = kind >= RegionKind::SoftReserved || kind == RegionKind::Unreachable;
            assert_eq!(kind.is_ram(), !firmware);
        }
    }
}
