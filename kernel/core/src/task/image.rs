//! What an executable file asks for: ELF64 for x86-64, fixed or position independent, and `#!`.
//!
//! Nothing here touches memory or files: bytes in, a plan out. Every number in the file is
//! somebody's allegation; what passes [`plan`] neither wraps nor contradicts itself, but may still
//! ask for addresses that the address space will refuse.

use alloc::vec::Vec;

use elf::abi;
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::segment::{ProgramHeader, SegmentTable};
use pagoda_addr::PAGE_SIZE;
use pagoda_vm::Prot;
use pagoda_vm::fallible::try_push;

/// Bytes of an ELF64 header, and of a program header.
pub(crate) const HEADER: usize = 64;
pub(crate) const PHENT: usize = 56;
/// The most program headers: one page and a bit, as much as Linux reads.
const PHNUM_MAX: usize = 1170;
/// Where a position independent program goes.
const DYN_BASE: u64 = 0x5555_5555_4000;

/// Why a file cannot be executed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ImageError {
    /// Not an ELF64 file for x86-64, or its headers contradict themselves.
    Malformed,
    /// It wants a dynamic linker.
    Dynamic,
    /// No memory for the plan.
    NoMemory,
}

/// One loadable piece. Addresses and lengths in bytes, page aligned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Segment {
    /// From the load bias.
    pub(crate) start: u64,
    /// Pages of the file: offset and length.
    pub(crate) file_offset: u64,
    pub(crate) file_len: u64,
    /// From here (not aligned) to the end of the file's last page there are zeroes.
    pub(crate) zero_from: u64,
    /// Zeroed pages behind the file's.
    pub(crate) anon_len: u64,
    pub(crate) prot: Prot,
}

/// How to load a program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Plan {
    pub(crate) segments: Vec<Segment>,
    /// Added to every address of the file.
    pub(crate) bias: u64,
    pub(crate) entry: u64,
    /// The program headers in memory, 0 where they are not loaded.
    pub(crate) phdr: u64,
    pub(crate) phnum: u64,
    /// One past the last byte: the heap starts at the next page.
    pub(crate) end: u64,
    pub(crate) exec_stack: bool,
}

/// Where the program headers stand in the file: offset and number.
pub(crate) fn headers(head: &[u8]) -> Result<(u64, usize), ImageError> {
    let header = parse(head)?;
    Ok((header.e_phoff, usize::from(header.e_phnum)))
}

fn parse(head: &[u8]) -> Result<FileHeader<LittleEndian>, ImageError> {
    let (ident, tail) = head.split_at_checked(abi::EI_NIDENT).ok_or(ImageError::Malformed)?;
    let ident = parse_ident::<LittleEndian>(ident).map_err(|_| ImageError::Malformed)?;
    if ident.1 != Class::ELF64 {
        return Err(ImageError::Malformed);
    }
    let header = FileHeader::parse_tail(ident, tail).map_err(|_| ImageError::Malformed)?;
    let good = matches!(header.e_type, abi::ET_EXEC | abi::ET_DYN)
        && header.e_machine == abi::EM_X86_64
        && usize::from(header.e_phentsize) == PHENT
        && (1..=PHNUM_MAX).contains(&usize::from(header.e_phnum));
    if good { Ok(header) } else { Err(ImageError::Malformed) }
}

fn page_up(value: u64) -> Option<u64> {
    Some(value.checked_add(PAGE_SIZE - 1)? & !(PAGE_SIZE - 1))
}

/// Makes the plan from the file's first bytes, its program headers, and its length.
pub(crate) fn plan(head: &[u8], phdrs: &[u8], file_size: u64) -> Result<Plan, ImageError> {
    let header = parse(head)?;
    let table: SegmentTable<'_, LittleEndian> =
        SegmentTable::new(header.endianness, header.class, phdrs);
    let mut segments = Vec::new();
    let (mut low, mut end, mut align) = (u64::MAX, 0, PAGE_SIZE);
    let mut phdr = None;
    let mut exec_stack = false;
    for entry in table.iter() {
        match entry.p_type {
            abi::PT_LOAD if entry.p_memsz == 0 => {}
            abi::PT_LOAD => {
                let segment = segment(&entry, file_size).ok_or(ImageError::Malformed)?;
                low = low.min(segment.start);
                end = end.max(entry.p_vaddr + entry.p_memsz);
                if entry.p_align.is_power_of_two() && entry.p_align <= 1 << 30 {
                    align = align.max(entry.p_align);
                }
                phdr = phdr.or_else(|| phdr_inside(&entry, &header));
                try_push(&mut segments, segment).map_err(|_| ImageError::NoMemory)?;
            }
            abi::PT_INTERP => return Err(ImageError::Dynamic),
            abi::PT_GNU_STACK => exec_stack = entry.p_flags & abi::PF_X != 0,
            _ => {}
        }
    }
    if segments.is_empty() {
        return Err(ImageError::Malformed);
    }
    let bias = if header.e_type == abi::ET_DYN {
        // The lowest address may be anything; what is loaded starts at the base, aligned.
        let base = DYN_BASE.checked_next_multiple_of(align).ok_or(ImageError::Malformed)?;
        base.wrapping_sub(low & !(align - 1))
    } else {
        0
    };
    Ok(Plan {
        segments,
        bias,
        entry: header.e_entry.wrapping_add(bias),
        phdr: phdr.map_or(0, |at| at.wrapping_add(bias)),
        phnum: u64::from(header.e_phnum),
        end: end.wrapping_add(bias),
        exec_stack,
    })
}

fn phdr_inside(entry: &ProgramHeader, header: &FileHeader<LittleEndian>) -> Option<u64> {
    let from = header.e_phoff.checked_sub(entry.p_offset)?;
    (from < entry.p_filesz).then(|| entry.p_vaddr + from)
}

/// Checks one loadable program header; none when it contradicts itself.
fn segment(entry: &ProgramHeader, file_size: u64) -> Option<Segment> {
    let in_page = entry.p_vaddr % PAGE_SIZE;
    let file_end = entry.p_offset.checked_add(entry.p_filesz)?;
    let congruent = entry.p_filesz == 0 || entry.p_offset % PAGE_SIZE == in_page;
    if entry.p_filesz > entry.p_memsz || file_end > file_size || !congruent {
        return None;
    }
    let start = entry.p_vaddr - in_page;
    let memory_end = page_up(entry.p_vaddr.checked_add(entry.p_memsz)?)?;
    let file_len = if entry.p_filesz == 0 { 0 } else { page_up(in_page + entry.p_filesz)? };
    let mut prot = Prot::empty();
    for (flag, right) in
        [(abi::PF_R, Prot::READ), (abi::PF_W, Prot::WRITE | Prot::READ), (abi::PF_X, Prot::EXEC)]
    {
        if entry.p_flags & flag != 0 {
            prot |= right;
        }
    }
    Some(Segment {
        start,
        file_offset: entry.p_offset.wrapping_sub(in_page) & !(PAGE_SIZE - 1),
        file_len,
        zero_from: entry.p_vaddr + entry.p_filesz,
        anon_len: (memory_end - start).checked_sub(file_len)?,
        prot,
    })
}

/// The interpreter of a script and its one argument: `#! interpreter argument`.
pub(crate) fn script(head: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let line = head.strip_prefix(b"#!")?;
    let end = line.iter().position(|&byte| byte == b'\n' || byte == 0).unwrap_or(line.len());
    let line = line.get(..end)?.trim_ascii();
    let space = line.iter().position(|&byte| byte == b' ' || byte == b'\t');
    let (interpreter, argument) = match space {
        Some(at) => (line.get(..at)?, Some(line.get(at..)?.trim_ascii())),
        None => (line, None),
    };
    if interpreter.is_empty() { None } else { Some((interpreter, argument)) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    /// A file with the given program headers (type, flags, offset, vaddr, filesz, memsz).
    pub(crate) fn elf(kind: u16, entry: u64, loads: &[(u32, u32, u64, u64, u64, u64)]) -> Vec<u8> {
        let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        file.extend(kind.to_le_bytes());
        file.extend(62u16.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        file.extend(entry.to_le_bytes());
        file.extend(64u64.to_le_bytes());
        file.extend(0u64.to_le_bytes());
        file.extend(0u32.to_le_bytes());
        for half in [64u16, 56, loads.len() as u16, 64, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        for &(kind, flags, offset, vaddr, filesz, memsz) in loads {
            file.extend(kind.to_le_bytes());
            file.extend(flags.to_le_bytes());
            for word in [offset, vaddr, vaddr, filesz, memsz, 4096] {
                file.extend(word.to_le_bytes());
            }
        }
        file
    }

    fn plan_of(file: &[u8], size: u64) -> Result<Plan, ImageError> {
        let (at, count) = headers(file)?;
        let phdrs = &file[at as usize..at as usize + count * PHENT];
        plan(file, phdrs, size)
    }

    #[test]
    fn a_data_segment_ends_in_zeroes() {
        let file = elf(
            2,
            0x401000,
            &[(1, 5, 0, 0x400000, 0x1800, 0x1800), (1, 6, 0x2010, 0x403010, 0x20, 0x3000)],
        );
        let plan = plan_of(&file, 0x2030).unwrap();
        assert_eq!(plan.phdr, 0x400040);
        assert_eq!(plan.end, 0x406010);
        let data = plan.segments[1];
        assert_eq!((data.start, data.file_offset, data.file_len), (0x403000, 0x2000, 0x1000));
        assert_eq!((data.zero_from, data.anon_len), (0x403030, 0x3000));
        assert_eq!(data.prot, Prot::READ | Prot::WRITE);
    }

    #[test]
    fn contradictions_are_malformed() {
        for load in [
            (1, 4, 0, 0x400000, 0x2000, 0x1000),
            (1, 4, 0, 0x400000, 0x9000, 0x9000),
            (1, 4, 0x10, 0x400020, 0x100, 0x100),
            (1, 4, 0, u64::MAX - 10, 5, 100),
            (1, 4, u64::MAX, 0xfff, 5, 100),
        ] {
            let file = elf(2, 0, &[load]);
            assert_eq!(plan_of(&file, 0x8000), Err(ImageError::Malformed), "{load:?}");
        }
        assert_eq!(plan_of(&elf(2, 0, &[(3, 4, 0, 0, 0, 0)]), 99), Err(ImageError::Dynamic));
        assert_eq!(headers(b"\x7fELF"), Err(ImageError::Malformed));
    }

    #[test]
    fn position_independent_programs_get_a_base() {
        let file = elf(3, 0x1000, &[(1, 5, 0, 0, 0x100, 0x100)]);
        let plan = plan_of(&file, 0x8000).unwrap();
        assert_eq!(plan.bias, DYN_BASE);
        assert_eq!(plan.entry, DYN_BASE + 0x1000);
    }

    #[test]
    fn scripts_name_their_interpreter() {
        assert_eq!(script(b"#!/bin/sh\nx"), Some((&b"/bin/sh"[..], None)));
        assert_eq!(script(b"#! /bin/sh  -e x \n"), Some((&b"/bin/sh"[..], Some(&b"-e x"[..]))));
        assert_eq!(script(b"#!\n"), None);
    }

    proptest! {
        #[test]
        fn no_file_makes_the_planner_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            loads in proptest::collection::vec(
                (1u32..8, any::<u32>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>()), 1..5),
            size: u64,
        ) {
            let _ = headers(&bytes);
            let _ = plan(&bytes, &bytes, size);
            let file = elf(3, 0, &loads);
            let _ = plan_of(&file, size);
            let _ = script(&bytes);
        }
    }
}
