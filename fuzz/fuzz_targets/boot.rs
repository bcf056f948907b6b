//! The boot parsers over arbitrary bytes: an error or a map, never a panic, and never a byte read
//! outside what there is.
//!
//! The first byte chooses the protocol; the others are the machine's memory from [`BASE`] on, and
//! the boot information stands at its beginning.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pagoda_addr::PhysAddr;
use pagoda_bootmap::{BootInfo, BootMemory, EarlyAllocator, Region};

const BASE: u64 = 0x9000;

struct Memory<'a>(&'a [u8]);

impl BootMemory for Memory<'_> {
    fn bytes(&self, start: PhysAddr, len: u64) -> Option<&[u8]> {
        let offset = usize::try_from(start.as_u64().checked_sub(BASE)?).ok()?;
        let end = offset.checked_add(usize::try_from(len).ok()?)?;
        self.0.get(offset..end)
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&protocol, bytes)) = data.split_first() else { return };
    let memory = Memory(bytes);
    let at = PhysAddr::new(BASE);
    let info = match protocol % 3 {
        0 => BootInfo::from_multiboot1(0x2bad_b002, at, &memory),
        1 => BootInfo::from_multiboot2(0x36d7_6289, at, &memory),
        _ => BootInfo::from_pvh(at, &memory),
    };
    let Ok(info) = info else { return };
    let places = 2 * (info.memory().count() + info.taken().count()) + 8;
    if places > 100_000 {
        return;
    }
    for module in info.modules() {
        assert!(module.command_line.len() <= bytes.len());
    }
    assert!(info.command_line().len() <= bytes.len() && info.loader_name().len() <= bytes.len());
    let mut storage = vec![Region::EMPTY; places];
    let map = info.memory_map([], &mut storage).expect("the storage suffices");
    let mut last = 0;
    for region in map.regions() {
        let (start, end) = (region.range.start().as_u64(), region.range.end().as_u64());
        assert!(start >= last && end > start && start % 4096 == 0, "sorted, disjoint, aligned");
        last = end;
    }
    map.check_taken(info.taken()).expect("what is taken is not usable");
    let usable = map.usable_bytes();
    let mut early = EarlyAllocator::new(map);
    if let Ok(range) = early.alloc(5000, 4096, None) {
        assert_eq!(early.finish().usable_bytes() + range.blocks_touched().bytes(), usable);
    }
});
