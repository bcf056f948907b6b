//! Whatever is wrong with boot information is named. One line for each thing that can be wrong.

mod common;

use common::Sparse;
use common::encode::{self, Machine};
use pagoda_addr::PhysAddr;
use pagoda_bootmap::{BootInfo, BootInfoError, Field, PixelFormat, RegionKind};

fn machine() -> Machine {
    Machine {
        map: vec![(0, 0x9_fc00, 1), (0x10_0000, 0x700_0000, 1)],
        modules: vec![(0x40_0000, 0x50_0000, "initramfs".into())],
        command_line: "quiet".into(),
        loader_name: "loader".into(),
        framebuffer: Some((0xfd00_0000, 4096, 1024, 768, 32, 1)),
        rsdp: Some(vec![0; 36]),
        sections: vec![(2, 0, 0x850_0000, 0x1000)],
        efi_map: None,
    }
}

/// What went wrong, without the particulars.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Wrong {
    Missing,
    Unreadable,
    Unterminated,
    TooShort,
    BadValue,
}

fn outline(error: BootInfoError) -> (Wrong, Field) {
    match error {
        BootInfoError::Missing { field } => (Wrong::Missing, field),
        BootInfoError::Unreadable { field, .. } => (Wrong::Unreadable, field),
        BootInfoError::Unterminated { field, .. } => (Wrong::Unterminated, field),
        BootInfoError::TooShort { field, .. } => (Wrong::TooShort, field),
        BootInfoError::BadValue { field, .. } => (Wrong::BadValue, field),
        other => panic!("{other}"),
    }
}

fn put(memory: &mut Sparse, at: u64, value: u32) {
    let (start, bytes) = memory
        .pieces
        .iter_mut()
        .find(|(start, bytes)| *start <= at && at + 4 <= *start + bytes.len() as u64)
        .expect("a place in the image");
    let place = (at - *start) as usize;
    bytes[place..place + 4].copy_from_slice(&value.to_le_bytes());
}

fn get(memory: &Sparse, at: u64) -> u32 {
    use pagoda_bootmap::BootMemory;
    u32::from_le_bytes(memory.bytes(PhysAddr::new(at), 4).unwrap().try_into().unwrap())
}

#[test]
fn multiboot1_names_what_is_wrong() {
    use Wrong::*;
    const NOWHERE: u32 = 0x7000_0000;
    // Offset in the structure, what to write there, what must be said.
    let cases = [
        (0, 0, Missing, Field::MemoryMap),
        (16, NOWHERE, Unreadable, Field::CommandLine),
        (20, u32::MAX, Unreadable, Field::ModuleList),
        (24, NOWHERE, Unreadable, Field::ModuleList),
        (28, u32::MAX, Unreadable, Field::ElfSections),
        (32, 1, BadValue, Field::ElfSections),
        (36, NOWHERE, Unreadable, Field::ElfSections),
        (44, 0, Missing, Field::MemoryMap),
        (44, 30, TooShort, Field::MemoryMapEntry),
        (44, 3, TooShort, Field::MemoryMapEntry),
        (44, u32::MAX, Unreadable, Field::MemoryMap),
        (48, NOWHERE, Unreadable, Field::MemoryMap),
        (64, NOWHERE, Unreadable, Field::LoaderName),
    ];
    for (offset, value, wrong, field) in cases {
        let (mut memory, at) = encode::multiboot1(&machine());
        put(&mut memory, at + offset, value);
        check1(&memory, at, (wrong, field), &format!("{value:#x} at {offset}"));
    }
    // The same, one pointer further: pointer, offset behind it.
    let behind = [
        (48, 0, 19, BadValue, Field::MemoryMapEntry),
        (48, 0, u32::MAX, TooShort, Field::MemoryMapEntry),
        (24, 4, 0x3f_ffff, BadValue, Field::ModuleRange),
        (24, 8, NOWHERE, Unreadable, Field::ModuleCommandLine),
    ];
    for (pointer, offset, value, wrong, field) in behind {
        let (mut memory, at) = encode::multiboot1(&machine());
        let there = u64::from(get(&memory, at + pointer)) + offset;
        put(&mut memory, there, value);
        check1(&memory, at, (wrong, field), &format!("{value:#x} behind {pointer}"));
    }
    // A structure that ends early: its length, what must be said.
    for (len, field) in [(3, Field::Flags), (47, Field::MemoryMap), (100, Field::Framebuffer)] {
        let (mut memory, at) = encode::multiboot1(&machine());
        memory.pieces.iter_mut().find(|piece| piece.0 == at).unwrap().1.truncate(len);
        if len == 47 {
            put(&mut memory, at, 1 << 6);
        }
        check1(&memory, at, (Unreadable, field), &format!("cut at {len}"));
    }
    let (mut memory, at) = encode::multiboot1(&machine());
    put(&mut memory, at, 1);
    memory.pieces.iter_mut().find(|piece| piece.0 == at).unwrap().1.truncate(10);
    check1(&memory, at, (Unreadable, Field::BasicMemory), "basic sizes cut");
}

fn check1(memory: &Sparse, at: u64, expected: (Wrong, Field), what: &str) {
    let result = BootInfo::from_multiboot1(0x2bad_b002, PhysAddr::new(at), memory);
    assert_eq!(outline(result.unwrap_err()), expected, "{what}");
}

#[test]
fn a_wrong_magic_number_is_named_by_all() {
    let (memory, at) = encode::multiboot1(&machine());
    let at = PhysAddr::new(at);
    let bad = |value| Some(BootInfoError::BadValue { field: Field::Magic, value });
    assert_eq!(BootInfo::from_multiboot1(0x36d7_6289, at, &memory).err(), bad(0x36d7_6289));
    assert_eq!(BootInfo::from_multiboot2(0x2bad_b002, at, &memory).err(), bad(0x2bad_b002));
    let flags = u64::from(get(&memory, at.as_u64()));
    assert_eq!(BootInfo::from_pvh(at, &memory).err(), bad(flags));
}

#[test]
fn addresses_at_the_end_of_the_space_are_named() {
    let memory = Sparse { pieces: vec![(u64::MAX - 7, vec![0xff; 7])] };
    for at in [u64::MAX, u64::MAX - 7, u64::MAX - 3, 0] {
        let at = PhysAddr::new(at);
        assert!(BootInfo::from_multiboot1(0x2bad_b002, at, &memory).is_err());
        assert!(BootInfo::from_multiboot2(0x36d7_6289, at, &memory).is_err());
        assert!(BootInfo::from_pvh(at, &memory).is_err());
    }
}

/// Finds the tag of this type: where its type stands.
fn tag(memory: &Sparse, info: u64, kind: u32) -> u64 {
    let mut at = info + 8;
    while get(memory, at) != kind {
        at += u64::from(get(memory, at + 4)).next_multiple_of(8);
    }
    at
}

#[test]
fn multiboot2_names_what_is_wrong() {
    use Wrong::*;
    // Tag, offset in it, what to write there, what must be said.
    let cases = [
        (1, 4, 7, BadValue, Field::TagSize),
        (1, 4, 0, BadValue, Field::TagSize),
        (1, 4, u32::MAX, BadValue, Field::TagSize),
        (3, 12, 0x3f_ffff, BadValue, Field::ModuleRange),
        (6, 8, 0, BadValue, Field::MemoryMap),
        (6, 8, 19, BadValue, Field::MemoryMap),
        (6, 8, 25, BadValue, Field::MemoryMap),
        (6, 8, u32::MAX, BadValue, Field::MemoryMap),
        (9, 8, u32::MAX, TooShort, Field::ElfSections),
        (9, 12, 7, BadValue, Field::ElfSections),
        (0, 0, 0x1234, Missing, Field::EndTag),
        (0, 4, 9, BadValue, Field::TagSize),
    ];
    for (kind, offset, value, wrong, field) in cases {
        let (mut memory, at) = encode::multiboot2(&machine());
        let place = tag(&memory, at, kind) + offset;
        put(&mut memory, place, value);
        check2(&memory, at, (wrong, field), &format!("{value:#x} at {offset} of {kind}"));
    }
    // Tags that end early: type, what stands in it, what must be said.
    let early: [(u64, &[u8], Wrong, Field); 12] = [
        (1, b"", Unterminated, Field::CommandLine),
        (1, b"quiet", Unterminated, Field::CommandLine),
        (2, b"GRUB", Unterminated, Field::LoaderName),
        (3, &[0; 7], TooShort, Field::ModuleList),
        (3, &[0; 8], Unterminated, Field::ModuleCommandLine),
        (3, b"\0\0\0\0\0\0\0\0initramfs", Unterminated, Field::ModuleCommandLine),
        (6, &[24, 0, 0, 0], TooShort, Field::MemoryMap),
        (6, &[24, 0, 0, 0, 0, 0, 0, 0], Missing, Field::MemoryMap),
        (8, &[1; 29], TooShort, Field::Framebuffer),
        (9, &[0; 11], TooShort, Field::ElfSections),
        (14, &[0; 19], TooShort, Field::Rsdp),
        (15, &[0; 35], TooShort, Field::Rsdp),
    ];
    for (kind, body, wrong, field) in early {
        let basic = (4, &[0; 8][..]);
        let (memory, at) = encode::multiboot2_of(&[basic, (kind, body)]);
        check2(&memory, at, (wrong, field), &format!("{} bytes of {kind}", body.len()));
    }
    for (total, wrong, field) in [
        (0, TooShort, Field::TotalSize),
        (15, TooShort, Field::TotalSize),
        (16, BadValue, Field::TagSize),
        (u32::MAX, Unreadable, Field::TotalSize),
    ] {
        let (mut memory, at) = encode::multiboot2(&machine());
        put(&mut memory, at, total);
        check2(&memory, at, (wrong, field), &format!("total size {total}"));
    }
    let (memory, at) = encode::multiboot2(&machine());
    check2(&memory, at + 4, (BadValue, Field::InfoAddress), "unaligned");
    check2(&memory, 0x7000_0000, (Unreadable, Field::TotalSize), "nowhere");
}

#[test]
fn multiboot2_without_its_map_uses_what_is_left() {
    use Wrong::*;
    let unknown = 0x7778;
    let (mut memory, at) = encode::multiboot2(&machine());
    let (map, basic) = (tag(&memory, at, 6), tag(&memory, at, 4));
    put(&mut memory, map, unknown);
    let info = BootInfo::from_multiboot2(0x36d7_6289, PhysAddr::new(at), &memory).unwrap();
    assert_eq!(info.memory().map(|entry| entry.len).collect::<Vec<_>>(), [639 << 10, 0x1234 << 10]);
    put(&mut memory, basic, unknown);
    check2(&memory, at, (Missing, Field::MemoryMap), "no map");
    put(&mut memory, map, 17);
    check2(&memory, at, (BadValue, Field::EfiMemoryMap), "descriptors of 24 bytes");
    let (memory, at) = encode::multiboot2_of(&[(4, &[0; 7])]);
    check2(&memory, at, (TooShort, Field::BasicMemory), "basic sizes cut");
}

#[test]
fn while_boot_services_run_their_memory_is_reserved() {
    let efi_map = Some(vec![(0x10_0000, 0x20_0000, 4), (0x20_0000, 0x30_0000, 7)]);
    let (mut memory, at) = encode::multiboot2(&Machine { efi_map, ..machine() });
    let kinds = |memory: &Sparse| {
        let info = BootInfo::from_multiboot2(0x36d7_6289, PhysAddr::new(at), memory).unwrap();
        info.memory().map(|entry| entry.kind).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&memory), [RegionKind::Usable, RegionKind::Usable]);
    let unknown = tag(&memory, at, 0x7777);
    put(&mut memory, unknown, 18);
    assert_eq!(kinds(&memory), [RegionKind::Reserved, RegionKind::Usable]);
}

fn check2(memory: &Sparse, at: u64, expected: (Wrong, Field), what: &str) {
    let result = BootInfo::from_multiboot2(0x36d7_6289, PhysAddr::new(at), memory);
    assert_eq!(outline(result.unwrap_err()), expected, "{what}");
}

#[test]
fn pvh_names_what_is_wrong() {
    use Wrong::*;
    let cases = [
        (0, 0, BadValue, Field::Magic),
        (4, 0, BadValue, Field::Version),
        (12, u32::MAX, Unreadable, Field::ModuleList),
        (16, 0x7000_0000, Unreadable, Field::ModuleList),
        (20, 1, Unreadable, Field::ModuleList),
        (24, 0x7000_0000, Unreadable, Field::CommandLine),
        (40, 0x7000_0000, Unreadable, Field::MemoryMap),
        (44, u32::MAX, Unreadable, Field::MemoryMap),
        (48, u32::MAX, Unreadable, Field::MemoryMap),
        (48, 0, Missing, Field::MemoryMap),
    ];
    for (offset, value, wrong, field) in cases {
        let (mut memory, at) = encode::pvh(&machine());
        put(&mut memory, at + offset, value);
        check3(&memory, at, (wrong, field), &format!("{value:#x} at {offset}"));
    }
    for (offset, value, wrong, field) in [
        (12, u32::MAX, BadValue, Field::ModuleRange),
        (16, 0x7000_0000, Unreadable, Field::ModuleCommandLine),
    ] {
        let (mut memory, at) = encode::pvh(&machine());
        let there = u64::from(get(&memory, at + 16));
        if field == Field::ModuleRange {
            put(&mut memory, there + 4, u32::MAX);
        }
        put(&mut memory, there + offset, value);
        check3(&memory, at, (wrong, field), &format!("{value:#x} behind 16"));
    }
    for (len, field) in [(3, Field::Magic), (7, Field::Version), (55, Field::InfoAddress)] {
        let (mut memory, at) = encode::pvh(&machine());
        memory.pieces.iter_mut().find(|piece| piece.0 == at).unwrap().1.truncate(len);
        check3(&memory, at, (Unreadable, field), &format!("cut at {len}"));
    }
}

fn check3(memory: &Sparse, at: u64, expected: (Wrong, Field), what: &str) {
    let result = BootInfo::from_pvh(PhysAddr::new(at), memory);
    assert_eq!(outline(result.unwrap_err()), expected, "{what}");
}

#[test]
fn a_string_without_an_end_is_not_followed_for_ever() {
    let (mut memory, at) = encode::pvh(&machine());
    memory.pieces.push((0x100_0000, vec![b'x'; 1 << 20]));
    put(&mut memory, at + 24, 0x100_0001);
    check3(&memory, at, (Wrong::Unterminated, Field::CommandLine), "a megabyte of x");
    // Just within reason, and ending with the last byte of memory.
    let start = 0x100_0000 + (1 << 20) - 0xffff;
    put(&mut memory, at + 24, start);
    memory.pieces.last_mut().unwrap().1[(1 << 20) - 1] = 0;
    let info = BootInfo::from_pvh(PhysAddr::new(at), &memory).unwrap();
    assert_eq!(info.command_line().len(), 0xfffe);
}

#[test]
fn all_that_multiboot1_can_point_to_is_taken() {
    let (mut memory, at) = encode::multiboot1(&machine());
    put(&mut memory, at, 0x1fff & !(1 << 5)); // all but ELF, which excludes a.out
    let fields = [
        (28, 0x100), // a.out symbols, bytes
        (32, 0x200), // a.out strings, bytes
        (36, 0x110_0000),
        (52, 0x300), // drives, bytes
        (56, 0x120_0000),
        (60, 0x130_0000), // configuration
        (68, 0x140_0000), // APM
        (72, 0x150_0000), // VBE
        (76, 0x160_0000),
    ];
    for (offset, value) in fields {
        put(&mut memory, at + offset, value);
    }
    // A picture with a palette.
    let screen = memory.pieces.iter_mut().find(|piece| piece.0 == at).unwrap();
    screen.1[109] = 0;
    screen.1[110..116].copy_from_slice(&[0, 0, 0x70, 1, 0, 1]);
    memory.pieces.push((0x130_0000, vec![0x34, 0x12]));
    let info = BootInfo::from_multiboot1(0x2bad_b002, PhysAddr::new(at), &memory).unwrap();
    assert_eq!(info.framebuffer().unwrap().format, PixelFormat::Indexed { colors: 256 });
    let taken: Vec<_> = info.taken().collect();
    let expected = [
        (0x110_0000, 0x110_0308),
        (0x120_0000, 0x120_0300),
        (0x130_0000, 0x130_1236),
        (0x140_0000, 0x140_0014),
        (0x150_0000, 0x150_0200),
        (0x160_0000, 0x160_0100),
        (0x170_0000, 0x170_0300),
    ];
    for (start, end) in expected {
        let wanted = (common::range(start, end), RegionKind::BootInfo);
        assert!(taken.contains(&wanted), "{start:#x} is missing from {taken:?}");
    }
}

#[test]
fn symbols_of_a_32_bit_kernel_are_taken_too() {
    let (mut memory, at) = encode::multiboot1(&machine());
    // Type, flags, address, place in the file, size.
    let section = |words: [u32; 5]| {
        let mut header = vec![0; 40];
        let bytes = words.iter().flat_map(|word| word.to_le_bytes());
        header[4..24].iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
        header
    };
    let text = section([1, 6, 0x20_0000, 0x1000, 0x8000]);
    let symbols = section([2, 0, 0x111_0000, 0x9000, 0x123]);
    memory.pieces.push((0x110_0000, [text, symbols].concat()));
    for (offset, value) in [(28, 2), (32, 40), (36, 0x110_0000)] {
        put(&mut memory, at + offset, value);
    }
    let info = BootInfo::from_multiboot1(0x2bad_b002, PhysAddr::new(at), &memory).unwrap();
    let taken: Vec<_> = info.taken().map(|(range, _)| range).collect();
    assert!(taken.contains(&common::range(0x110_0000, 0x110_0050)), "the headers");
    assert!(taken.contains(&common::range(0x111_0000, 0x111_0123)), "the symbols");
    assert!(!taken.iter().any(|range| range.contains(PhysAddr::new(0x20_0000))), "the image");
}

#[test]
fn every_error_reads_as_a_sentence() {
    let start = PhysAddr::new(0x1000);
    let errors = [
        BootInfoError::Missing { field: Field::MemoryMap },
        BootInfoError::Unreadable { field: Field::ModuleList, start, len: 16 },
        BootInfoError::Unterminated { field: Field::CommandLine, start },
        BootInfoError::TooShort { field: Field::Rsdp, needed: 36, given: 20 },
        BootInfoError::BadValue { field: Field::TagSize, value: 7 },
    ];
    let said = errors.map(|error| error.to_string());
    assert_eq!(
        said,
        [
            "boot information: no memory map",
            "boot information: module list: cannot read 16 bytes at 0x1000",
            "boot information: command line: the string at 0x1000 has no end",
            "boot information: ACPI root pointer: 20 bytes, 36 are needed",
            "boot information: tag size: 0x7 cannot be",
        ]
    );
}
