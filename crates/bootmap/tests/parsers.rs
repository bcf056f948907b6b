//! The three parsers: what an encoder writes comes back; damaged bytes give an error or something
//! harmless; each thing that can be wrong is named.

mod common;

use common::encode::{self, Machine};
use common::oracle::Oracle;
use common::{MapFile, Sparse, cases, map_files, range};
use pagoda_addr::{PhysAddr, PhysRange};
use pagoda_bootmap::{
    BootInfo, BootInfoError, BootMemory, Channel, EarlyAllocator, MemoryEntry, MemoryMap,
    PixelFormat, Protocol, Region, RegionKind, find_rsdp, firmware_taken, is_rsdp,
};
use proptest::prelude::*;

const PROTOCOLS: [Protocol; 3] = [Protocol::Multiboot1, Protocol::Multiboot2, Protocol::Pvh];

fn encode(protocol: Protocol, machine: &Machine) -> (Sparse, u64) {
    match protocol {
        Protocol::Multiboot1 => encode::multiboot1(machine),
        Protocol::Multiboot2 => encode::multiboot2(machine),
        Protocol::Pvh => encode::pvh(machine),
    }
}

fn parse(
    protocol: Protocol,
    memory: &Sparse,
    info: u64,
) -> Result<BootInfo<'_, Sparse>, BootInfoError> {
    let info = PhysAddr::new(info);
    match protocol {
        Protocol::Multiboot1 => BootInfo::from_multiboot1(0x2bad_b002, info, memory),
        Protocol::Multiboot2 => BootInfo::from_multiboot2(0x36d7_6289, info, memory),
        Protocol::Pvh => BootInfo::from_pvh(info, memory),
    }
}

/// An ACPI root pointer with right checksums.
fn rsdp() -> Vec<u8> {
    let mut bytes = vec![0; 36];
    bytes[..8].copy_from_slice(b"RSD PTR ");
    bytes[15] = 2;
    bytes[16..20].copy_from_slice(&0x07fe_1234u32.to_le_bytes());
    bytes[20] = 36;
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |a, b| a.wrapping_add(*b)).wrapping_neg();
    bytes[8] = sum(&bytes[..20]);
    bytes[32] = sum(&bytes);
    bytes
}

/// The map of `file` with all that a loader can add.
fn machine(file: &MapFile) -> Machine {
    Machine {
        map: file.e820(),
        efi_map: file.efi.then(|| file.lines.clone()),
        modules: vec![
            (0x40_0000, 0x7a_bcde, "initramfs".into()),
            (0x7a_c000, 0x7a_c000, String::new()),
            (0x900_0123, 0x900_1123, "symbols and words".into()),
        ],
        command_line: "log=com2 stdio=raw loglevel=debug".into(),
        loader_name: "a loader of the tests".into(),
        framebuffer: Some((0xfd00_0000, 4096, 1024, 768, 32, 1)),
        rsdp: Some(rsdp()),
        sections: vec![
            (0, 0, 0, 0),
            (1, 6, 0x20_0000, 0x1_0000),  // text, part of the image
            (8, 3, 0x21_0000, 0x1_0000),  // bss
            (2, 0, 0x850_0000, 0x1_2345), // the symbol table
            (3, 0, 0x860_0000, 0x4321),   // its strings
            (1, 0, 0, 0x99),              // a comment that nobody loaded
        ],
    }
}

fn covers(taken: &[(PhysRange, RegionKind)], at: u64) -> bool {
    taken.iter().any(|(range, _)| range.contains(PhysAddr::new(at)))
}

#[test]
fn what_a_loader_wrote_comes_back() {
    for file in map_files() {
        for protocol in PROTOCOLS {
            println!("{} by {protocol:?}", file.name);
            let machine = machine(&file);
            let (memory, at) = encode(protocol, &machine);
            let info = parse(protocol, &memory, at).unwrap();
            assert_eq!(info.protocol(), protocol);
            assert_eq!(info.memory().collect::<Vec<_>>(), file.entries());
            assert_eq!(info.command_line(), machine.command_line.as_bytes());
            let modules = info.modules().map(|module| (module.range, module.command_line));
            let wanted = machine.modules.iter();
            let wanted = wanted.map(|(start, end, text)| (range(*start, *end), text.as_bytes()));
            assert!(modules.eq(wanted));
            check_extras(protocol, &info, &machine);
            check_taken(protocol, &memory, &info, &machine);
            check_map(&file, &info);
        }
    }
}

/// What not every protocol has.
fn check_extras(protocol: Protocol, info: &BootInfo<'_, Sparse>, machine: &Machine) {
    if protocol == Protocol::Pvh {
        assert_eq!((info.loader_name(), info.framebuffer()), (&[][..], None));
    } else {
        assert_eq!(info.loader_name(), machine.loader_name.as_bytes());
        let screen = info.framebuffer().unwrap();
        assert_eq!(screen.range(), range(0xfd00_0000, 0xfd30_0000));
        assert_eq!((screen.width, screen.height, screen.bits_per_pixel), (1024, 768, 32));
        let channel = |position, bits| Channel { position, bits };
        let (red, green, blue) = (channel(16, 8), channel(8, 7), channel(0, 6));
        assert_eq!(screen.format, PixelFormat::Rgb { red, green, blue });
    }
    assert_eq!(info.rsdp().is_some(), protocol != Protocol::Multiboot1);
}

/// Every byte that the loader wrote or placed is taken, and nothing that it did not.
fn check_taken(
    protocol: Protocol,
    memory: &Sparse,
    info: &BootInfo<'_, Sparse>,
    machine: &Machine,
) {
    let taken: Vec<_> = info.taken().collect();
    for (start, bytes) in &memory.pieces {
        for at in *start..*start + bytes.len() as u64 {
            assert!(covers(&taken, at), "{at:#x} of the loader's data is not taken");
        }
    }
    for (start, end, _) in machine.modules.iter().filter(|module| module.0 < module.1) {
        assert!(taken.contains(&(range(*start, *end), RegionKind::Module)));
    }
    let symbols = (range(0x850_0000, 0x851_2345), RegionKind::BootInfo);
    assert_eq!(taken.contains(&symbols), protocol != Protocol::Pvh);
    for free in [0x20_0000, 0x21_0000, 0x85f_0000, 0x800_0000] {
        assert!(!covers(&taken, free), "{free:#x} is taken by nobody");
    }
    for low in [0, 0xffff, 0xa_0000, 0xf_ffff] {
        assert!(covers(&taken, low));
    }
    if let Some(rsdp) = info.rsdp() {
        assert!(is_rsdp(memory, rsdp) && covers(&taken, rsdp.as_u64()));
    }
}

fn check_map(file: &MapFile, info: &BootInfo<'_, Sparse>) {
    let own = [(range(0x20_0000, 0x34_5678), RegionKind::Kernel)];
    let taken: Vec<_> = info.taken().chain(own).collect();
    let mut storage = vec![Region::EMPTY; 2 * (file.lines.len() + taken.len())];
    let map = info.memory_map(own, &mut storage).unwrap();
    Oracle::new(&file.entries(), &taken).check(&map);
    assert_eq!(map.check_taken(taken), Ok(()));
}

#[test]
fn a_forgotten_module_is_found_and_named() {
    for file in map_files().iter().filter(|file| file.name.contains("azure")) {
        for protocol in PROTOCOLS {
            let (memory, at) = encode(protocol, &machine(file));
            let info = parse(protocol, &memory, at).unwrap();
            let forgetful = info.taken().filter(|(_, kind)| *kind != RegionKind::Module);
            let mut storage = [Region::EMPTY; 128];
            let map = MemoryMap::build(info.memory(), forgetful, &mut storage).unwrap();
            let found = map.check_taken(info.taken()).unwrap_err();
            assert_eq!(
                (found.kind, found.range),
                (RegionKind::Module, range(0x40_0000, 0x7a_bcde))
            );
            let said = found.to_string();
            assert!(said.starts_with("module sits in p:0x400000..0x7abcde"), "{said}");
        }
    }
}

/// Looks at everything that information offers, and gives memory away by it.
fn use_up(info: &BootInfo<'_, Sparse>, memory: &Sparse) {
    let readable = |bytes: &[u8]| {
        let inside = |piece: &(u64, Vec<u8>)| piece.1.as_ptr_range().contains(&bytes.as_ptr());
        assert!(bytes.is_empty() || memory.pieces.iter().any(inside), "read outside");
    };
    readable(info.command_line());
    readable(info.loader_name());
    info.modules().for_each(|module| readable(module.command_line));
    assert!(format!("{info:?}").len() > 10);
    let entries: Vec<_> = info.memory().collect();
    let taken: Vec<_> = info.taken().collect();
    let mut storage = vec![Region::EMPTY; 2 * (entries.len() + taken.len()) + 2];
    let map = info.memory_map([], &mut storage).unwrap();
    Oracle::new(&entries, &taken).check(&map);
    let mut early = EarlyAllocator::new(map);
    let usable = early.map().usable_bytes();
    if let Ok(range) = early.alloc(1, 1, None) {
        assert_eq!(early.finish().usable_bytes() + range.len(), usable);
        assert!(taken.iter().all(|(taken, _)| !taken.overlaps(range)), "gave away {range:?}");
    }
}

/// Damage to the bytes of an image: piece, place in it, what to do.
#[derive(Clone, Debug)]
enum Damage {
    Byte(usize, usize, u8),
    Word(usize, usize, u32),
    Cut(usize, usize),
    Zero(usize, usize, usize),
}

fn byte_damage() -> impl Strategy<Value = Damage> {
    // Small places are where counts and sizes stand.
    let place = || prop_oneof![0usize..160, any::<usize>()];
    let word = prop_oneof![0u32..40, Just(u32::MAX), 0x9_1000u32..0x9_2000, any::<u32>()];
    prop_oneof![
        3 => (any::<usize>(), place(), any::<u8>()).prop_map(|(p, a, v)| Damage::Byte(p, a, v)),
        5 => (any::<usize>(), place(), word).prop_map(|(p, a, v)| Damage::Word(p, a & !3, v)),
        1 => (any::<usize>(), place()).prop_map(|(p, a)| Damage::Cut(p, a)),
        1 => (any::<usize>(), place(), 0usize..64).prop_map(|(p, a, n)| Damage::Zero(p, a, n)),
    ]
}

impl Damage {
    fn apply(&self, memory: &mut Sparse) {
        let (Self::Byte(piece, at, _)
        | Self::Word(piece, at, _)
        | Self::Cut(piece, at)
        | Self::Zero(piece, at, _)) = self;
        let piece = piece % memory.pieces.len();
        let bytes = &mut memory.pieces[piece].1;
        let at = at % bytes.len().max(1);
        match self {
            Self::Byte(_, _, value) => {
                bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = *value);
            }
            Self::Word(_, _, value) => {
                let word = bytes.iter_mut().skip(at & !3).zip(value.to_le_bytes());
                word.for_each(|(byte, value)| *byte = value);
            }
            Self::Cut(..) => bytes.truncate(at),
            Self::Zero(_, _, count) => {
                bytes.iter_mut().skip(at).take(*count).for_each(|byte| *byte = 0);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(20_000), ..ProptestConfig::default() })]

    #[test]
    fn damaged_images_give_an_error_or_something_harmless(
        file in 0usize..21,
        damages in prop::collection::vec(byte_damage(), 1..6),
    ) {
        let file = &files()[file];
        for protocol in PROTOCOLS {
            let (mut memory, at) = encode(protocol, &machine(file));
            damages.iter().for_each(|damage| damage.apply(&mut memory));
            if let Ok(info) = parse(protocol, &memory, at) {
                use_up(&info, &memory);
            }
        }
    }

    #[test]
    fn bytes_without_sense_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        for protocol in PROTOCOLS {
            let mut bytes = bytes.clone();
            // Past the first gate.
            if protocol == Protocol::Pvh && bytes.len() > 8 {
                bytes[..8].copy_from_slice(&[0x78, 0xc5, 0x6e, 0x33, 1, 0, 0, 0]);
            }
            let memory = Sparse { pieces: vec![(0x1000, bytes)] };
            if let Ok(info) = parse(protocol, &memory, 0x1000) {
                use_up(&info, &memory);
            }
        }
    }
}

fn files() -> &'static [MapFile] {
    static FILES: std::sync::OnceLock<Vec<MapFile>> = std::sync::OnceLock::new();
    FILES.get_or_init(map_files)
}

#[test]
fn every_truncation_gives_an_error() {
    let machine = machine(&files()[1]);
    for protocol in PROTOCOLS {
        let (memory, at) = encode(protocol, &machine);
        for piece in 0..memory.pieces.len() {
            let len = memory.pieces[piece].1.len();
            for keep in 0..len {
                let mut cut = memory.clone();
                cut.pieces[piece].1.truncate(keep);
                match parse(protocol, &cut, at) {
                    Err(error) => assert!(!error.to_string().is_empty()),
                    // What is only pointed to, like ACPI's root pointer, is not read.
                    Ok(info) => {
                        let start = PhysAddr::new(cut.pieces[piece].0);
                        assert_eq!(info.rsdp(), Some(start), "{protocol:?} {piece} {keep}");
                    }
                }
            }
        }
    }
}

#[test]
fn every_single_byte_may_be_anything() {
    let mut machine = machine(&files()[1]);
    machine.map.truncate(3);
    for protocol in PROTOCOLS {
        let (memory, at) = encode(protocol, &machine);
        for piece in 0..memory.pieces.len() {
            for place in 0..memory.pieces[piece].1.len() {
                for value in [0, 1, 7, 0x7f, 0x80, 0xff] {
                    let mut damaged = memory.clone();
                    damaged.pieces[piece].1[place] = value;
                    if let Ok(info) = parse(protocol, &damaged, at) {
                        use_up(&info, &damaged);
                    }
                }
            }
        }
    }
}

#[test]
fn the_low_memory_of_a_pc_is_taken_as_its_bios_says() {
    let bios = |segment: u16, kib: u16| {
        let mut area = vec![0; 0x100];
        area[0x0e..0x10].copy_from_slice(&segment.to_le_bytes());
        area[0x13..0x15].copy_from_slice(&kib.to_le_bytes());
        Sparse { pieces: vec![(0x400, area)] }
    };
    let ebda = |memory: &Sparse| {
        let taken: Vec<_> = firmware_taken(memory).collect();
        assert!(taken.contains(&(range(0, 0x1_0000), RegionKind::LowMemory)));
        assert!(taken.contains(&(range(0xa_0000, 0x10_0000), RegionKind::LegacyWindow)));
        let found = taken.iter().find(|(_, kind)| *kind == RegionKind::Ebda);
        found.map(|(range, _)| range.start().as_u64())
    };
    assert_eq!(ebda(&bios(0x9fc0, 639)), Some(0x9_fc00));
    assert_eq!(ebda(&bios(0x9f80, 622)), Some(0x9_b800)); // lowered by a loader
    assert_eq!(ebda(&bios(0, 640)), None);
    assert_eq!(ebda(&bios(0xffff, 0xffff)), None);
    assert_eq!(ebda(&bios(0x1000, 1)), None);
    assert_eq!(ebda(&Sparse::default()), None);
}

#[test]
fn acpis_root_pointer_is_found_where_a_bios_puts_it() {
    let rom = |at: usize, bytes: &[u8]| {
        let mut rom = vec![0x5a; 0x2_0000];
        rom[at..at + bytes.len()].copy_from_slice(bytes);
        let mut area = vec![0; 0x100];
        area[0x0e..0x10].copy_from_slice(&0x9fc0u16.to_le_bytes());
        Sparse { pieces: vec![(0x400, area), (0x9_fc00, vec![0; 0x400]), (0xe_0000, rom)] }
    };
    assert_eq!(find_rsdp(&rom(0x1_4f50, &rsdp())), Some(PhysAddr::new(0xf_4f50)));
    assert_eq!(find_rsdp(&rom(0x1_4f58, &rsdp())), None, "not on a multiple of 16");
    assert_eq!(find_rsdp(&rom(0x1_4f50, b"RSD PTR ")), None);
    for place in 0..36 {
        let mut damaged = rsdp();
        damaged[place] ^= 0x10;
        assert_eq!(find_rsdp(&rom(0x1_4f50, &damaged)), None, "byte {place}");
    }
    let mut low = rom(0x1_4f50, &rsdp());
    low.pieces[1].1[0x20..0x44].copy_from_slice(&rsdp());
    assert_eq!(find_rsdp(&low), Some(PhysAddr::new(0x9_fc20)));
    let mut old = rsdp()[..20].to_vec();
    (old[15], old[8]) = (0, old[8].wrapping_add(2));
    assert_eq!(find_rsdp(&rom(0x1_fff0 - 16, &old)), Some(PhysAddr::new(0xf_ffe0)));
    assert_eq!(find_rsdp(&Sparse::default()), None);
}

/// A memory that answers with another length than asked for.
struct Liar(Vec<u8>, usize);

impl BootMemory for Liar {
    fn bytes(&self, _: PhysAddr, len: u64) -> Option<&[u8]> {
        self.0.get(..(len as usize).saturating_add_signed(self.1 as isize - 2))
    }
}

#[test]
fn a_memory_that_answers_wrongly_is_not_believed() {
    let (memory, at) = encode(Protocol::Pvh, &machine(&files()[0]));
    let bytes = memory.pieces.iter().find(|piece| piece.0 == at).unwrap().1.clone();
    for slip in [0, 1, 3, 4] {
        let liar = Liar([bytes.clone(), vec![0; 4096]].concat(), slip);
        assert!(BootInfo::from_pvh(PhysAddr::new(at), &liar).is_err());
        assert_eq!(find_rsdp(&liar), None);
        assert_eq!(firmware_taken(&liar).count(), 2);
    }
}

#[test]
fn without_a_map_the_two_basic_sizes_serve() {
    let (mut memory, at) = encode(Protocol::Multiboot1, &machine(&files()[0]));
    let info = memory.pieces.iter_mut().find(|piece| piece.0 == at).unwrap();
    info.1[0] &= !(1 << 6);
    let info = parse(Protocol::Multiboot1, &memory, at).unwrap();
    let expected =
        [MemoryEntry::from_e820(0, 639 << 10, 1), MemoryEntry::from_e820(1 << 20, 0x1234 << 10, 1)];
    assert!(info.memory().eq(expected));
}
