//! Multiboot 1 (specification 0.6.96, section 3.3): a structure of fixed fields, of which a word of
//! flags says which are valid. It points to everything else.
//!
//! ```text
//! 0 flags   4 lower KiB   8 upper KiB   16 command line   20 modules, count   24 modules, address
//! 28 symbols (16 bytes)   44 map, bytes   48 map, address   52 drives, bytes   56 drives, address
//! 60 configuration   64 loader name   68 APM   72 VBE   76 VBE mode   88 framebuffer (28 bytes)
//! ```
//!
//! Left out: what drives, APM, VBE and the configuration table say. That they occupy memory is
//! reported.

use pagoda_addr::PhysAddr;

use crate::bytes::{exactly, read, read_string, read_u32, u16_at, u32_at};
use crate::entries::MemoryEntries;
use crate::info::{BootInfo, Occupied, Protocol};
use crate::modules::ModuleList;
use crate::sections::Sections;
use crate::{BootInfoError, BootMemory, Field, Framebuffer, PixelFormat, RegionKind};

const MAGIC: u32 = 0x2bad_b002;

const BASIC_MEMORY: u32 = 1 << 0;
const COMMAND_LINE: u32 = 1 << 2;
const MODULES: u32 = 1 << 3;
const AOUT_SYMBOLS: u32 = 1 << 4;
const ELF_SECTIONS: u32 = 1 << 5;
const MEMORY_MAP: u32 = 1 << 6;
const DRIVES: u32 = 1 << 7;
const CONFIGURATION: u32 = 1 << 8;
const LOADER_NAME: u32 = 1 << 9;
const APM: u32 = 1 << 10;
const VBE: u32 = 1 << 11;
const FRAMEBUFFER: u32 = 1 << 12;

/// Bytes of the whole structure.
const INFO_SIZE: u64 = 116;
/// Bytes of tables that the structure only points to.
const APM_SIZE: u64 = 20;
const VBE_CONTROL_SIZE: u64 = 512;
const VBE_MODE_SIZE: u64 = 256;
/// Bytes of a palette's colour.
const COLOR_SIZE: u64 = 3;

/// The structure being read.
struct Reader<'m, M: ?Sized> {
    memory: &'m M,
    info: PhysAddr,
    flags: u32,
    occupied: Occupied,
}

pub(crate) fn parse<M: BootMemory + ?Sized>(
    magic: u32,
    info: PhysAddr,
    memory: &M,
) -> Result<BootInfo<'_, M>, BootInfoError> {
    if magic != MAGIC {
        return Err(BootInfoError::BadValue { field: Field::Magic, value: u64::from(magic) });
    }
    let flags = read_u32(memory, info, 0, Field::Flags)?;
    let mut reader = Reader { memory, info, flags, occupied: Occupied::default() };
    reader.occupy(info, INFO_SIZE);
    let command_line =
        reader.string(COMMAND_LINE, 16, Field::CommandLine, RegionKind::CommandLine)?;
    let loader_name = reader.string(LOADER_NAME, 64, Field::LoaderName, RegionKind::BootInfo)?;
    let entries = reader.memory_map()?;
    let modules = reader.modules()?;
    let sections = reader.symbols()?;
    let framebuffer = reader.framebuffer()?;
    reader.unread_tables()?;
    Ok(BootInfo {
        memory,
        protocol: Protocol::Multiboot1,
        entries,
        modules,
        sections,
        command_line,
        loader_name,
        framebuffer,
        rsdp: None,
        occupied: reader.occupied,
    })
}

impl<'m, M: BootMemory + ?Sized> Reader<'m, M> {
    fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    fn word(&self, offset: u64, field: Field) -> Result<u32, BootInfoError> {
        read_u32(self.memory, self.info, offset, field)
    }

    /// A field that holds an address.
    fn pointer(&self, offset: u64, field: Field) -> Result<PhysAddr, BootInfoError> {
        Ok(PhysAddr::new(u64::from(self.word(offset, field)?)))
    }

    fn occupy(&mut self, start: PhysAddr, len: u64) {
        self.occupied.add(start, len, RegionKind::BootInfo);
    }

    fn string(
        &mut self,
        flag: u32,
        offset: u64,
        field: Field,
        kind: RegionKind,
    ) -> Result<&'m [u8], BootInfoError> {
        if !self.has(flag) {
            return Ok(&[]);
        }
        let start = self.pointer(offset, field)?;
        let string = read_string(self.memory, start, field)?;
        self.occupied.add(start, string.len() as u64 + 1, kind);
        Ok(string)
    }

    /// The map; without one, what the two basic sizes tell.
    fn memory_map(&mut self) -> Result<MemoryEntries<'m>, BootInfoError> {
        let field = Field::MemoryMap;
        if !self.has(MEMORY_MAP) {
            if !self.has(BASIC_MEMORY) {
                return Err(BootInfoError::Missing { field });
            }
            let lower = self.word(4, Field::BasicMemory)?;
            return Ok(MemoryEntries::basic(lower, self.word(8, Field::BasicMemory)?));
        }
        let len = u64::from(self.word(44, field)?);
        if len == 0 {
            return Err(BootInfoError::Missing { field });
        }
        let start = self.pointer(48, field)?;
        let bytes = read(self.memory, start, len, field)?;
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = skip_entry(rest)?;
        }
        self.occupy(start, len);
        Ok(MemoryEntries::sized(bytes))
    }

    fn modules(&mut self) -> Result<ModuleList<'m>, BootInfoError> {
        let field = Field::ModuleList;
        if !self.has(MODULES) {
            return Ok(ModuleList::EMPTY);
        }
        let len = u64::from(self.word(20, field)?) * ModuleList::MULTIBOOT1_ENTRY;
        if len == 0 {
            return Ok(ModuleList::EMPTY);
        }
        let start = self.pointer(24, field)?;
        let bytes = read(self.memory, start, len, field)?;
        self.occupy(start, len);
        ModuleList::Multiboot1(bytes).checked(self.memory)
    }

    /// The kernel's symbols, in the one form or the other.
    fn symbols(&mut self) -> Result<Sections<'m>, BootInfoError> {
        let field = Field::ElfSections;
        if self.has(AOUT_SYMBOLS) {
            // Two tables, each preceded by its size.
            let (table, strings) = (self.word(28, field)?, self.word(32, field)?);
            let start = self.pointer(36, field)?;
            self.occupy(start, 8 + u64::from(table) + u64::from(strings));
            return Ok(Sections::NONE);
        }
        if !self.has(ELF_SECTIONS) {
            return Ok(Sections::NONE);
        }
        let size = self.word(32, field)?;
        let len = u64::from(self.word(28, field)?) * u64::from(size);
        if len == 0 {
            return Ok(Sections::NONE);
        }
        let start = self.pointer(36, field)?;
        self.occupy(start, len);
        Sections::new(read(self.memory, start, len, field)?, size)
    }

    fn framebuffer(&mut self) -> Result<Option<Framebuffer>, BootInfoError> {
        let field = Field::Framebuffer;
        if !self.has(FRAMEBUFFER) {
            return Ok(None);
        }
        let len = INFO_SIZE - 88;
        let unreadable = BootInfoError::Unreadable { field, start: self.info, len: INFO_SIZE };
        let start = self.info.checked_add(88).ok_or(unreadable)?;
        let bytes = read(self.memory, start, len, field)?;
        let screen = Framebuffer::parse(bytes, Framebuffer::MULTIBOOT1_COLORS).ok_or(unreadable)?;
        if let PixelFormat::Indexed { colors } = screen.format {
            let palette = u32_at(bytes, Framebuffer::MULTIBOOT1_COLORS).ok_or(unreadable)?;
            self.occupy(PhysAddr::new(u64::from(palette)), u64::from(colors) * COLOR_SIZE);
        }
        Ok(Some(screen))
    }

    /// Tables whose contents do not matter here, but whose place does.
    fn unread_tables(&mut self) -> Result<(), BootInfoError> {
        let field = Field::Flags;
        if self.has(DRIVES) {
            let len = u64::from(self.word(52, field)?);
            self.occupy(self.pointer(56, field)?, len);
        }
        if self.has(CONFIGURATION) {
            // The table's first two bytes are the bytes that follow them.
            let start = self.pointer(60, field)?;
            let len = exactly(self.memory, start, 2).and_then(|bytes| u16_at(bytes, 0));
            self.occupy(start, 2 + u64::from(len.unwrap_or(0)));
        }
        if self.has(APM) {
            self.occupy(self.pointer(68, field)?, APM_SIZE);
        }
        if self.has(VBE) {
            self.occupy(self.pointer(72, field)?, VBE_CONTROL_SIZE);
            self.occupy(self.pointer(76, field)?, VBE_MODE_SIZE);
        }
        Ok(())
    }
}

/// What follows the first entry of a map, if that entry is sound.
fn skip_entry(bytes: &[u8]) -> Result<&[u8], BootInfoError> {
    let field = Field::MemoryMapEntry;
    let given = bytes.len() as u64;
    let short = BootInfoError::TooShort { field, needed: 4 + MemoryEntries::FIXED, given };
    let size = u64::from(u32_at(bytes, 0).ok_or(short)?);
    if size < MemoryEntries::FIXED {
        return Err(BootInfoError::BadValue { field, value: size });
    }
    let short = BootInfoError::TooShort { field, needed: 4 + size, given };
    usize::try_from(4 + size).ok().and_then(|end| bytes.get(end..)).ok_or(short)
}
