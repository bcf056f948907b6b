//! Fills the kernel's `.ksyms` section with its own function names, so that a backtrace on the
//! serial line speaks names without a debugger.
//!
//! The section is reserved by the linker script and full of zeroes until then (the kernel prints
//! bare addresses). Its format, little-endian: the count `n` as a u32; `n` pairs (offset of the
//! function from the kernel's base, offset of its name from the start of the section), both u32,
//! sorted by the first; the names, each with a NUL.

use anyhow::{Context, Result, bail};
use elf::ElfBytes;
use elf::abi::STT_FUNC;
use elf::endian::LittleEndian;

/// Virtual address that the kernel image is linked at.
pub const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// Longer names are cut.
const NAME_MAX_BYTES: usize = 100;

/// Fills the section in `image`, an ELF file, in place. Without the section nothing happens.
pub fn fill(image: &mut [u8]) -> Result<()> {
    let (offset, size) = {
        let elf = ElfBytes::<LittleEndian>::minimal_parse(image).context("the kernel is no ELF")?;
        let Some(section) = elf.section_header_by_name(".ksyms")? else { return Ok(()) };
        (section.sh_offset as usize, section.sh_size as usize)
    };
    let symbols = functions(image)?;
    let table = encode(&symbols, size);
    let Some(room) = image.get_mut(offset..offset + size) else {
        bail!("the section .ksyms lies outside the kernel's file");
    };
    room[..table.len()].copy_from_slice(&table);
    Ok(())
}

/// The functions of `image`, an ELF file: offsets from the kernel's base and names, sorted, one name
/// for each offset.
pub fn functions(image: &[u8]) -> Result<Vec<(u32, String)>> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(image).context("the kernel is no ELF")?;
    let Some((table, names)) = elf.symbol_table()? else { return Ok(Vec::new()) };
    let mut symbols: Vec<(u32, String)> = table
        .iter()
        .filter(|symbol| symbol.st_symtype() == STT_FUNC)
        .filter_map(|symbol| {
            let offset = symbol.st_value.checked_sub(KERNEL_BASE)?;
            let name = names.get(symbol.st_name as usize).ok()?;
            let mut name = format!("{:#}", rustc_demangle::demangle(name));
            name.truncate(name.floor_boundary(NAME_MAX_BYTES));
            Some((u32::try_from(offset).ok()?, name))
        })
        .collect();
    symbols.sort();
    symbols.dedup_by_key(|symbol| symbol.0);
    Ok(symbols)
}

trait FloorBoundary {
    fn floor_boundary(&self, index: usize) -> usize;
}

impl FloorBoundary for String {
    fn floor_boundary(&self, index: usize) -> usize {
        (0..=index.min(self.len())).rev().find(|&i| self.is_char_boundary(i)).unwrap_or(0)
    }
}

/// The table of as many symbols as fit into `size` bytes.
fn encode(symbols: &[(u32, String)], size: usize) -> Vec<u8> {
    let mut fitting = 0;
    let mut bytes = 4;
    for (_, name) in symbols {
        bytes += 8 + name.len() + 1;
        if bytes > size {
            eprintln!("note: {} symbols do not fit", symbols.len() - fitting);
            break;
        }
        fitting += 1;
    }
    let symbols = &symbols[..fitting];
    let mut table = Vec::with_capacity(size);
    table.extend_from_slice(&(fitting as u32).to_le_bytes());
    let mut name_at = 4 + 8 * fitting as u32;
    for (offset, name) in symbols {
        table.extend_from_slice(&offset.to_le_bytes());
        table.extend_from_slice(&name_at.to_le_bytes());
        name_at += name.len() as u32 + 1;
    }
    for (_, name) in symbols {
        table.extend_from_slice(name.as_bytes());
        table.push(0);
    }
    table
}
