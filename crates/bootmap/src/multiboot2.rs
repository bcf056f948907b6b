//! Multiboot 2 (specification 2.0, section 3.6): one block of tags, each with a type and a size. All
//! but the modules, the framebuffer and the symbols stands inside the block.
//!
//! Where a tag that should stand once stands twice, the first one counts. Unknown tags are passed
//! over. The firmware's map is the memory map tag; failing that the EFI memory map; failing that
//! the two basic sizes.

use pagoda_addr::PhysAddr;

use crate::bytes::{read, read_u32, string_in, u32_at};
use crate::entries::MemoryEntries;
use crate::info::{BootInfo, Occupied, Protocol};
use crate::modules::ModuleList;
use crate::sections::Sections;
use crate::tags::{Tag, Tags};
use crate::{BootInfoError, BootMemory, Field, Framebuffer, RegionKind};

const MAGIC: u32 = 0x36d7_6289;
/// Bytes before the first tag: total size, and a reserved word.
const HEADER_SIZE: u64 = 8;
/// Bytes of ACPI's root pointer, in its first and in its present form.
const OLD_RSDP_SIZE: u64 = 20;
const NEW_RSDP_SIZE: u64 = 36;

/// The tags that count, the first of each type.
#[derive(Default)]
struct Found<'m> {
    command_line: Option<Tag<'m>>,
    loader_name: Option<Tag<'m>>,
    basic_memory: Option<Tag<'m>>,
    memory_map: Option<Tag<'m>>,
    efi_memory_map: Option<Tag<'m>>,
    boot_services: Option<Tag<'m>>,
    framebuffer: Option<Tag<'m>>,
    elf_sections: Option<Tag<'m>>,
    old_rsdp: Option<Tag<'m>>,
    new_rsdp: Option<Tag<'m>>,
}

pub(crate) fn parse<M: BootMemory + ?Sized>(
    magic: u32,
    info: PhysAddr,
    memory: &M,
) -> Result<BootInfo<'_, M>, BootInfoError> {
    if magic != MAGIC {
        return Err(BootInfoError::BadValue { field: Field::Magic, value: u64::from(magic) });
    }
    if !info.is_aligned(8) {
        return Err(BootInfoError::BadValue { field: Field::InfoAddress, value: info.as_u64() });
    }
    let total = u64::from(read_u32(memory, info, 0, Field::TotalSize)?);
    let bytes = read(memory, info, total, Field::TotalSize)?;
    let needed = 2 * HEADER_SIZE; // the end tag is as long as the header
    let short = BootInfoError::TooShort { field: Field::TotalSize, needed, given: total };
    let bytes = bytes.get(HEADER_SIZE as usize..).filter(|_| total >= needed).ok_or(short)?;
    let tags = Tags::new(bytes, info.checked_add(HEADER_SIZE).ok_or(short)?);
    let found = Found::among(tags)?;
    let mut occupied = Occupied::default();
    occupied.add(info, total, RegionKind::BootInfo);
    Ok(BootInfo {
        memory,
        protocol: Protocol::Multiboot2,
        entries: found.entries()?,
        modules: ModuleList::Multiboot2(tags).checked(memory)?,
        sections: found.sections()?,
        command_line: string(found.command_line, Field::CommandLine)?,
        loader_name: string(found.loader_name, Field::LoaderName)?,
        framebuffer: found.framebuffer.map(framebuffer).transpose()?,
        rsdp: found.rsdp()?,
        occupied,
    })
}

impl<'m> Found<'m> {
    fn among(tags: Tags<'m>) -> Result<Self, BootInfoError> {
        let mut found = Self::default();
        for tag in tags {
            let tag = tag?;
            let place = match tag.kind {
                Tag::COMMAND_LINE => &mut found.command_line,
                Tag::LOADER_NAME => &mut found.loader_name,
                Tag::BASIC_MEMORY => &mut found.basic_memory,
                Tag::MEMORY_MAP => &mut found.memory_map,
                Tag::EFI_MEMORY_MAP => &mut found.efi_memory_map,
                Tag::EFI_BOOT_SERVICES => &mut found.boot_services,
                Tag::FRAMEBUFFER => &mut found.framebuffer,
                Tag::ELF_SECTIONS => &mut found.elf_sections,
                Tag::OLD_RSDP => &mut found.old_rsdp,
                Tag::NEW_RSDP => &mut found.new_rsdp,
                _ => continue,
            };
            place.get_or_insert(tag);
        }
        Ok(found)
    }

    fn entries(&self) -> Result<MemoryEntries<'m>, BootInfoError> {
        if let Some(tag) = self.memory_map {
            let (bytes, size) = entries(tag, Field::MemoryMap, MemoryEntries::FIXED)?;
            return Ok(MemoryEntries::equal(bytes, size));
        }
        if let Some(tag) = self.efi_memory_map {
            let (bytes, size) = entries(tag, Field::EfiMemoryMap, MemoryEntries::EFI_FIXED)?;
            return Ok(MemoryEntries::efi(bytes, size, self.boot_services.is_none()));
        }
        let Some(tag) = self.basic_memory else {
            return Err(BootInfoError::Missing { field: Field::MemoryMap });
        };
        let short = short(tag, Field::BasicMemory, 8);
        let lower = u32_at(tag.body, 0).ok_or(short)?;
        Ok(MemoryEntries::basic(lower, u32_at(tag.body, 4).ok_or(short)?))
    }

    /// The section headers follow their number, their size and the number of the one with names.
    fn sections(&self) -> Result<Sections<'m>, BootInfoError> {
        let Some(tag) = self.elf_sections else { return Ok(Sections::NONE) };
        let head = short(tag, Field::ElfSections, 12);
        let count = u64::from(u32_at(tag.body, 0).ok_or(head)?);
        let size = u32_at(tag.body, 4).ok_or(head)?;
        let headers = tag.body.get(12..).ok_or(head)?;
        let len = count * u64::from(size);
        let short = short(tag, Field::ElfSections, len.saturating_add(12));
        let headers = usize::try_from(len).ok().and_then(|len| headers.get(..len)).ok_or(short)?;
        Sections::new(headers, size)
    }

    fn rsdp(&self) -> Result<Option<PhysAddr>, BootInfoError> {
        let new = self.new_rsdp.map(|tag| (tag, NEW_RSDP_SIZE));
        match new.or(self.old_rsdp.map(|tag| (tag, OLD_RSDP_SIZE))) {
            None => Ok(None),
            Some((tag, size)) if (tag.body.len() as u64) < size => {
                Err(short(tag, Field::Rsdp, size))
            }
            Some((tag, _)) => Ok(Some(tag.start)),
        }
    }
}

fn short(tag: Tag<'_>, field: Field, needed: u64) -> BootInfoError {
    BootInfoError::TooShort { field, needed, given: tag.body.len() as u64 }
}

fn string(tag: Option<Tag<'_>>, field: Field) -> Result<&[u8], BootInfoError> {
    tag.map_or(Ok(&[]), |tag| string_in(tag.body, tag.start, field))
}

/// The entries of a map, which follow their size and version, and the size.
fn entries(tag: Tag<'_>, field: Field, least: u64) -> Result<(&[u8], usize), BootInfoError> {
    let short = short(tag, field, 8);
    let size = u32_at(tag.body, 0).ok_or(short)?;
    let bytes = tag.body.get(8..).ok_or(short)?;
    let bad = BootInfoError::BadValue { field, value: u64::from(size) };
    let size = usize::try_from(size).map_err(|_| bad)?;
    if (size as u64) < least || bytes.len() % size != 0 {
        return Err(bad);
    }
    if bytes.is_empty() { Err(BootInfoError::Missing { field }) } else { Ok((bytes, size)) }
}

fn framebuffer(tag: Tag<'_>) -> Result<Framebuffer, BootInfoError> {
    let colors = Framebuffer::MULTIBOOT2_COLORS;
    let screen = Framebuffer::parse(tag.body, colors);
    screen.ok_or(short(tag, Field::Framebuffer, colors as u64 + 6))
}
