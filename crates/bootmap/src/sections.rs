//! The kernel's ELF section headers, as far as they tell of memory: symbol tables and the like, which
//! the loader places outside the kernel's image.

use pagoda_addr::{PhysAddr, PhysRange};

use crate::bytes::{u32_at, u64_at};
use crate::{BootInfoError, Field, RegionKind};

/// Section headers, each of `size` bytes: 40 for ELF32, 64 for ELF64.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sections<'m> {
    bytes: &'m [u8],
    size: usize,
}

const ELF32: usize = 40;
const ELF64: usize = 64;
const EMPTY_SECTION: u32 = 0;
const WITHOUT_BYTES: u32 = 8;
const PART_OF_IMAGE: u64 = 2;

impl<'m> Sections<'m> {
    pub(crate) const NONE: Self = Self { bytes: &[], size: ELF64 };

    /// Headers of `size` bytes each.
    pub(crate) fn new(bytes: &'m [u8], size: u32) -> Result<Self, BootInfoError> {
        let field = Field::ElfSections;
        match usize::try_from(size) {
            Ok(size @ (ELF32 | ELF64)) => Ok(Self { bytes, size }),
            _ if bytes.is_empty() => Ok(Self::NONE),
            _ => Err(BootInfoError::BadValue { field, value: u64::from(size) }),
        }
    }

    /// The bytes of sections that are not part of the image and that the loader put somewhere.
    pub(crate) fn taken(self) -> impl Iterator<Item = (PhysRange, RegionKind)> + Clone + 'm {
        let wide = self.size == ELF64;
        self.bytes.chunks_exact(self.size).filter_map(move |header| {
            let (flags, start, len) = if wide {
                (u64_at(header, 8)?, u64_at(header, 16)?, u64_at(header, 32)?)
            } else {
                let word = |offset| u32_at(header, offset).map(u64::from);
                (word(8)?, word(12)?, word(20)?)
            };
            let kind = u32_at(header, 4)?;
            let loaded = flags & PART_OF_IMAGE == 0
                && kind != EMPTY_SECTION
                && kind != WITHOUT_BYTES
                && start != 0;
            let range = PhysRange::clamped(PhysAddr::new(start), len);
            loaded.then_some((range, RegionKind::BootInfo))
        })
    }
}
