//! The firmware's memory map in the forms in which loaders pass it on.

use pagoda_addr::PhysAddr;

use crate::bytes::{u32_at, u64_at};
use crate::{MemoryEntry, RegionKind};

/// The entries of the firmware's map, in its order. A cheap copy.
#[derive(Clone, Copy, Debug)]
pub struct MemoryEntries<'m> {
    form: Form<'m>,
}

#[derive(Clone, Copy, Debug)]
enum Form<'m> {
    /// Only two sizes are known.
    Basic { entries: [Option<MemoryEntry>; 2] },
    /// Multiboot 1: each entry is preceded by its size.
    Sized { bytes: &'m [u8] },
    /// Multiboot 2 and PVH: entries of one size that begin with start, length and type.
    Equal { bytes: &'m [u8], size: usize },
    /// UEFI's descriptors.
    Efi { bytes: &'m [u8], size: usize, boot_services_ended: bool },
}

impl<'m> MemoryEntries<'m> {
    /// Bytes of start, length and type.
    pub(crate) const FIXED: u64 = 20;
    /// Bytes of the fields of a UEFI descriptor.
    pub(crate) const EFI_FIXED: u64 = 40;

    /// `lower` KiB from zero and `upper` KiB from 1 MiB: all that is known without a map. It stops
    /// at the first hole, so it is the truth but not all of it.
    pub(crate) fn basic(lower: u32, upper: u32) -> Self {
        let entry = |start, kib: u32| Some(MemoryEntry::from_e820(start, u64::from(kib) << 10, 1));
        Self { form: Form::Basic { entries: [entry(0, lower), entry(1 << 20, upper)] } }
    }

    /// Entries each preceded by its size, as Multiboot 1 has them.
    pub(crate) const fn sized(bytes: &'m [u8]) -> Self {
        Self { form: Form::Sized { bytes } }
    }

    /// Entries of `size` bytes each, at least [`FIXED`](Self::FIXED).
    pub(crate) const fn equal(bytes: &'m [u8], size: usize) -> Self {
        Self { form: Form::Equal { bytes, size } }
    }

    /// UEFI descriptors of `size` bytes each, at least [`EFI_FIXED`](Self::EFI_FIXED).
    pub(crate) const fn efi(bytes: &'m [u8], size: usize, boot_services_ended: bool) -> Self {
        Self { form: Form::Efi { bytes, size, boot_services_ended } }
    }
}

/// Takes `size` bytes off the front; none when there are not so many.
fn take<'m>(bytes: &mut &'m [u8], size: usize) -> Option<&'m [u8]> {
    let (front, rest) = bytes.split_at_checked(size)?;
    *bytes = rest;
    Some(front)
}

/// An entry that begins with start, length and type.
fn e820(bytes: &[u8]) -> Option<MemoryEntry> {
    let (start, len) = (u64_at(bytes, 0)?, u64_at(bytes, 8)?);
    Some(MemoryEntry::from_e820(start, len, u32_at(bytes, 16)?))
}

fn efi(bytes: &[u8], boot_services_ended: bool) -> Option<MemoryEntry> {
    let kind = RegionKind::from_efi(u32_at(bytes, 0)?, u64_at(bytes, 32)?, boot_services_ended);
    let len = u64_at(bytes, 24)?.saturating_mul(4096);
    Some(MemoryEntry { start: PhysAddr::new(u64_at(bytes, 8)?), len, kind })
}

impl Iterator for MemoryEntries<'_> {
    type Item = MemoryEntry;

    fn next(&mut self) -> Option<MemoryEntry> {
        match &mut self.form {
            Form::Basic { entries } => entries.iter_mut().find_map(Option::take),
            Form::Sized { bytes } => {
                let size = usize::try_from(u32_at(take(bytes, 4)?, 0)?).ok()?;
                e820(take(bytes, size)?)
            }
            Form::Equal { bytes, size } => e820(take(bytes, *size)?),
            Form::Efi { bytes, size, boot_services_ended } => {
                efi(take(bytes, *size)?, *boot_services_ended)
            }
        }
    }
}
