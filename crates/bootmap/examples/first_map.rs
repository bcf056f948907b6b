//! From what a boot loader left to a map that can be believed, on your desk: the machine is a
//! PC with 64 MiB, and the loader's bytes are those that QEMU's would leave there.
//!
//! `cargo run -p pagoda-bootmap --example first_map`; the guide's chapter on the boot map shows its
//! parts.

use std::error::Error;

use pagoda_addr::{PhysAddr, PhysRange};
use pagoda_bootmap::{
    BootInfo, BootMemory, EarlyAllocator, MemoryEntry, MemoryMap, Region, RegionKind,
};

// ANCHOR: window
/// What can be read of physical memory: here, 4 KiB from address 0x9000 on.
struct Window(Vec<u8>);

impl BootMemory for Window {
    fn bytes(&self, start: PhysAddr, len: u64) -> Option<&[u8]> {
        let from = start.as_usize().checked_sub(0x9000)?;
        self.0.get(from..from.checked_add(usize::try_from(len).ok()?)?)
    }
}
// ANCHOR_END: window

/// What the firmware says: start, bytes, type. Type 1 is usable.
const FIRMWARE: [(u64, u64, u32); 7] = [
    (0, 0x9_fc00, 1),
    (0x9_fc00, 0x400, 2),
    (0xf_0000, 0x1_0000, 2),
    (0x10_0000, 0x3ee_0000, 1),
    (0x3fe_0000, 0x2_0000, 2),
    (0xfffc_0000, 0x4_0000, 2),
    (0xfd_0000_0000, 0x3_0000_0000, 2),
];
/// The kernel's image, and the file that the loader put behind it.
const KERNEL: PhysRange = PhysRange::clamped(PhysAddr::new(0x20_0000), 0x12_3456);
const MODULE: (u32, u32) = (0x40_0000, 0x46_6e10);

/// Writes the loader's part: Multiboot 1's structure at 0x9000, what it points to behind it.
fn loader() -> Window {
    let mut page = vec![0; 4096];
    let mut words = |at: usize, words: &[u32]| {
        let bytes = words.iter().flat_map(|word| word.to_le_bytes());
        page[at..].iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
    };
    words(0, &[1 << 2 | 1 << 3 | 1 << 6]); // these are valid: command line, modules, map
    words(16, &[0x9300, 1, 0x9200]);
    words(44, &[24 * FIRMWARE.len() as u32, 0x9100]);
    for (place, (start, len, kind)) in FIRMWARE.into_iter().enumerate() {
        let halves = [start as u32, (start >> 32) as u32, len as u32, (len >> 32) as u32];
        words(0x100 + 24 * place, &[20]);
        words(0x104 + 24 * place, &halves);
        words(0x114 + 24 * place, &[kind]);
    }
    words(0x200, &[MODULE.0, MODULE.1, 0x9310, 0]);
    page[0x300..0x30a].copy_from_slice(b"stdio=tty\0");
    page[0x310..0x31a].copy_from_slice(b"initramfs\0");
    Window(page)
}

/// A list that is wrong in the ways in which real ones are.
fn trouble() -> Result<(), Box<dyn Error>> {
    println!("\n== trouble");
    // ANCHOR: trouble
    let entries = [
        MemoryEntry::from_e820(0x800_0000, 0x100_0000, 1), // not sorted
        MemoryEntry::from_e820(0x10_0000, 0x700_0123, 1),  // ends on an odd byte
        MemoryEntry::from_e820(0x710_0123, 0xef_fedd, 1),  // and goes on from there
        MemoryEntry::from_e820(0x200_0000, 0x1800, 5),     // broken RAM inside the RAM
        MemoryEntry::from_e820(0x500_0000, 0, 1),          // empty
        MemoryEntry::from_e820(0xffff_ffff_ffff_f000, 0x2000, 1), // wraps around
        MemoryEntry::from_e820(0x870_0000, 0x10_0000, 77), // a type that nobody knows
    ];
    let mut storage = [Region::EMPTY; 16];
    let map = MemoryMap::build(entries, [], &mut storage)?;
    // ANCHOR_END: trouble
    println!("{map}");
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let (eax, ebx, memory) = (0x2bad_b002, PhysAddr::new(0x9000), loader());
    println!("== read");
    // ANCHOR: read
    let info = BootInfo::from_multiboot1(eax, ebx, &memory)?;
    for entry in info.memory() {
        println!("{:#012x} {:>11} KiB  {}", entry.start.as_u64(), entry.len >> 10, entry.kind);
    }
    for module in info.modules() {
        println!("a file at {:?}: {}", module.range, module.command_line.escape_ascii());
    }
    // ANCHOR_END: read

    println!("\n== naive");
    // ANCHOR: naive
    let mut storage = [Region::EMPTY; 64];
    let naive = MemoryMap::build(info.memory(), [], &mut storage)?;
    println!("{} KiB usable, it says", naive.usable_bytes() >> 10);
    for occupied in info.taken().chain([(KERNEL, RegionKind::Kernel)]) {
        if let Err(forgotten) = naive.check_taken([occupied]) {
            println!("{forgotten}");
        }
    }
    // ANCHOR_END: naive

    println!("\n== map");
    // ANCHOR: map
    let mut storage = [Region::EMPTY; 64];
    let map = info.memory_map([(KERNEL, RegionKind::Kernel)], &mut storage)?;
    println!("{map}");
    println!("RAM ends at {:#x}", map.ram_end().as_u64());
    // ANCHOR_END: map

    println!("\n== early");
    // ANCHOR: early
    let mut early = EarlyAllocator::new(map);
    let bitmap = early.alloc(2048, 8, None)?;
    let table = early.alloc(16384 * 16, 4096, None)?;
    println!("a bitmap at {bitmap:?}, a frame table at {table:?}");
    let map = early.finish();
    for range in map.usable() {
        println!("for the frame allocator: {range:?}");
    }
    // ANCHOR_END: early
    trouble()
}
