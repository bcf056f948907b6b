//! What the tests share: the real maps, memory made of pieces, and an oracle.
#![allow(dead_code)] // each test file uses its part

pub mod encode;
pub mod oracle;

use std::fs;
use std::path::PathBuf;

use pagoda_addr::{PhysAddr, PhysRange};
use pagoda_bootmap::{BootMemory, MemoryEntry, RegionKind};

/// A map file of `data/memory-maps`, as it stands there.
#[derive(Clone, Debug)]
pub struct MapFile {
    pub name: String,
    /// Are the types those of UEFI rather than of e820?
    pub efi: bool,
    /// Start, end (exclusive), type.
    pub lines: Vec<(u64, u64, u32)>,
}

impl MapFile {
    /// The lines with e820 types, converted here where the file has UEFI's, as firmware does once
    /// boot services have ended.
    pub fn e820(&self) -> Vec<(u64, u64, u32)> {
        let convert = |number: u32| match number {
            _ if !self.efi => number,
            1 | 2 | 3 | 4 | 7 => 1,
            8 => 5,
            9 => 3,
            10 => 4,
            14 => 7,
            _ => 2,
        };
        self.lines
            .iter()
            .map(|&(start, end, number)| (start, end - start, convert(number)))
            .collect()
    }

    pub fn entries(&self) -> Vec<MemoryEntry> {
        let e820 = self.e820().into_iter();
        e820.map(|(start, len, number)| MemoryEntry::from_e820(start, len, number)).collect()
    }
}

/// All map files, by name.
pub fn map_files() -> Vec<MapFile> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/memory-maps");
    let mut files: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let maps: Vec<_> = files.iter().map(parse).collect();
    assert!(maps.len() >= 21, "map files are missing");
    maps
}

fn parse(path: &PathBuf) -> MapFile {
    let text = fs::read_to_string(path).unwrap();
    let number = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let lines = lines.map(|line| {
        let words: Vec<u64> = line.split_whitespace().map(number).collect();
        (words[0], words[1], u32::try_from(words[2]).unwrap())
    });
    MapFile {
        name: path.file_stem().unwrap().to_str().unwrap().into(),
        efi: text.contains("EFI-type"),
        lines: lines.collect(),
    }
}

pub fn range(start: u64, end: u64) -> PhysRange {
    PhysRange::new(PhysAddr::new(start), PhysAddr::new(end)).unwrap()
}

/// The ranges that every test map is less of: what a PC's firmware keeps, and a kernel, its
/// information and a module in the usual places.
pub fn usual_taken() -> Vec<(PhysRange, RegionKind)> {
    vec![
        (range(0, 0x10000), RegionKind::LowMemory),
        (range(0x9fc00, 0xa0000), RegionKind::Ebda),
        (range(0xa0000, 0x100000), RegionKind::LegacyWindow),
        (range(0x8000, 0x9000), RegionKind::Trampoline),
        (range(0x200000, 0x345678), RegionKind::Kernel),
        (range(0x345678, 0x345a00), RegionKind::BootInfo),
        (range(0x346010, 0x346020), RegionKind::CommandLine),
        (range(0x400000, 0x7abcde), RegionKind::Module),
        (range(0x9a5ff000, 0x9a600fff), RegionKind::Framebuffer),
    ]
}

/// Memory in pieces: nothing can be read that is not wholly inside one of them.
#[derive(Clone, Debug, Default)]
pub struct Sparse {
    pub pieces: Vec<(u64, Vec<u8>)>,
}

impl BootMemory for Sparse {
    fn bytes(&self, start: PhysAddr, len: u64) -> Option<&[u8]> {
        self.pieces.iter().find_map(|(base, bytes)| {
            let from = usize::try_from(start.as_u64().checked_sub(*base)?).ok()?;
            let to = from.checked_add(usize::try_from(len).ok()?)?;
            bytes.get(from..to)
        })
    }
}

/// How many random cases: few under the interpreter, which is some thousand times slower.
pub fn cases(usual: u32) -> u32 {
    if cfg!(miri) { 2 } else { usual }
}

/// How many real maps a random case goes through.
pub fn few_under_miri() -> usize {
    if cfg!(miri) { 2 } else { usize::MAX }
}
