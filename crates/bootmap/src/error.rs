//! What can be wrong with boot information.

use core::error::Error;
use core::fmt;

use pagoda_addr::PhysAddr;

/// Why boot information was refused. The loader is to blame for all of these, or the caller, if he
/// passed on something else than what the loader gave him.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum BootInfoError {
    /// A part that nothing works without is not there.
    Missing {
        /// The part.
        field: Field,
    },
    /// The field, or what it points to, does not lie in memory that can be read.
    Unreadable {
        /// The field.
        field: Field,
        /// The first byte looked for.
        start: PhysAddr,
        /// Bytes looked for.
        len: u64,
    },
    /// A string has no end within reason, or within the part that holds it.
    Unterminated {
        /// The string.
        field: Field,
        /// Its first byte.
        start: PhysAddr,
    },
    /// A part is too short for what must stand in it.
    TooShort {
        /// The part.
        field: Field,
        /// Bytes that it must have.
        needed: u64,
        /// Bytes that it has.
        given: u64,
    },
    /// A value that cannot be.
    BadValue {
        /// Where it stands.
        field: Field,
        /// What stands there.
        value: u64,
    },
}

/// A field of some boot protocol, for error messages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Field {
    /// The number that says which protocol this is.
    Magic,
    /// The address of the information itself.
    InfoAddress,
    /// Multiboot 1: the word that says which fields are valid.
    Flags,
    /// Multiboot 2: bytes in all tags together.
    TotalSize,
    /// Multiboot 2: the size of a tag.
    TagSize,
    /// Multiboot 2: the tag that ends the list.
    EndTag,
    /// PVH: the version of the structure.
    Version,
    /// KiB of memory below 640 KiB and from 1 MiB upwards.
    BasicMemory,
    /// The list of memory ranges.
    MemoryMap,
    /// An entry of the list of memory ranges.
    MemoryMapEntry,
    /// The list of memory ranges as UEFI gave it.
    EfiMemoryMap,
    /// The list of modules.
    ModuleList,
    /// The first and the last address of a module.
    ModuleRange,
    /// The command line of a module.
    ModuleCommandLine,
    /// The command line of the kernel.
    CommandLine,
    /// The name of the loader.
    LoaderName,
    /// The description of the framebuffer.
    Framebuffer,
    /// The headers of the kernel's ELF sections.
    ElfSections,
    /// The copy of, or the pointer to, ACPI's root pointer.
    Rsdp,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Magic => "magic number",
            Self::InfoAddress => "address of the boot information",
            Self::Flags => "flags",
            Self::TotalSize => "total size",
            Self::TagSize => "tag size",
            Self::EndTag => "end tag",
            Self::Version => "version",
            Self::BasicMemory => "basic memory information",
            Self::MemoryMap => "memory map",
            Self::MemoryMapEntry => "memory map entry",
            Self::EfiMemoryMap => "EFI memory map",
            Self::ModuleList => "module list",
            Self::ModuleRange => "module range",
            Self::ModuleCommandLine => "module command line",
            Self::CommandLine => "command line",
            Self::LoaderName => "loader name",
            Self::Framebuffer => "framebuffer",
            Self::ElfSections => "ELF sections",
            Self::Rsdp => "ACPI root pointer",
        })
    }
}

impl fmt::Display for BootInfoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "boot information: ")?;
        match self {
            Self::Missing { field } => write!(f, "no {field}"),
            Self::Unreadable { field, start, len } => {
                write!(f, "{field}: cannot read {len} bytes at {start}")
            }
            Self::Unterminated { field, start } => {
                write!(f, "{field}: the string at {start} has no end")
            }
            Self::TooShort { field, needed, given } => {
                write!(f, "{field}: {given} bytes, {needed} are needed")
            }
            Self::BadValue { field, value } => write!(f, "{field}: {value:#x} cannot be"),
        }
    }
}

impl Error for BootInfoError {}
