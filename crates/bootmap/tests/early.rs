//! The early allocator against a naive one, on every real map.

mod common;

use common::{cases, few_under_miri, map_files, range, usual_taken};
use pagoda_addr::{PhysAddr, PhysRange};
use pagoda_bootmap::{
    EarlyAllocator, EarlyError, MapError, MemoryEntry, MemoryMap, Placement, Region, RegionKind,
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
struct Request {
    bytes: u64,
    align: u64,
    below: Option<u64>,
    placement: Placement,
    kind: RegionKind,
}

fn request() -> impl Strategy<Value = Request> {
    let bytes = prop_oneof![
        4 => 1u64..20_000,
        3 => (1u64..600).prop_map(|n| n << 12),
        1 => (1u64..40).prop_map(|n| n << 30),
        1 => any::<u64>(),
    ];
    let align =
        prop_oneof![4 => (0u32..22).prop_map(|n| 1u64 << n), 1 => (0u32..64).prop_map(|n| 1 << n)];
    let below = prop_oneof![
        Just(None),
        Just(Some(1 << 20)),
        Just(Some(1 << 24)),
        Just(Some(1 << 32)),
        (0u64..1 << 33).prop_map(Some),
        any::<u64>().prop_map(Some),
    ];
    let placement = prop_oneof![Just(Placement::Highest), Just(Placement::Lowest)];
    let kind = prop_oneof![3 => Just(RegionKind::EarlyKernel), 1 => Just(RegionKind::Trampoline)];
    (bytes, align, below, placement, kind).prop_map(|(bytes, align, below, placement, kind)| {
        Request { bytes, align, below, placement, kind }
    })
}

/// Every place at which the request fits, best first, in numbers that cannot wrap: for each usable
/// range the lowest and the highest.
fn places(map: &MemoryMap<'_>, request: &Request) -> Vec<PhysRange> {
    let size = u128::from(request.bytes).div_ceil(4096) * 4096;
    let align = u128::from(request.align.max(4096));
    let below = u128::from(request.below.unwrap_or(u64::MAX));
    let mut found = Vec::new();
    for usable in map.usable() {
        let (start, end) = (usable.start().as_u64().into(), usable.end().as_u64().into());
        let end = below.min(end);
        let lowest = u128::div_ceil(start, align) * align;
        let highest = end.saturating_sub(size) / align * align;
        for at in [lowest, highest] {
            if start <= at && at + size <= end {
                found.push(range(at as u64, (at + size) as u64));
            }
        }
    }
    found.sort();
    if request.placement == Placement::Highest {
        found.reverse();
    }
    found
}

fn sorted(map: &MemoryMap<'_>) -> bool {
    map.regions().windows(2).all(|pair| {
        let meet = pair[0].range.end() == pair[1].range.start();
        pair[0].range.end() <= pair[1].range.start() && (!meet || pair[0].kind != pair[1].kind)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(400), ..ProptestConfig::default() })]

    #[test]
    fn each_allocation_is_the_best_that_fits_and_nothing_is_lost(
        requests in prop::collection::vec(request(), 1..30),
        spare in 0usize..3,
    ) {
        for file in files().iter().take(few_under_miri()) {
            let (entries, taken) = (file.entries(), usual_taken());
            let mut storage = vec![Region::EMPTY; 2 * (entries.len() + taken.len())];
            let map = MemoryMap::build(entries, taken, &mut storage).unwrap();
            run(map.regions(), &requests, spare);
        }
    }
}

/// Makes a map of these regions with `spare` places more.
fn remake<'s>(regions: &[Region], storage: &'s mut Vec<Region>, spare: usize) -> MemoryMap<'s> {
    let entries = regions.iter().filter(|region| !region.kind.is_taken()).map(|region| {
        MemoryEntry { start: region.range.start(), len: region.range.len(), kind: region.kind }
    });
    let ram = regions.iter().filter(|region| region.kind.is_taken()).map(|region| MemoryEntry {
        start: region.range.start(),
        len: region.range.len(),
        kind: RegionKind::Usable,
    });
    let taken = regions.iter().filter(|region| region.kind.is_taken());
    let taken = taken.map(|region| (region.range, region.kind));
    let places = entries.clone().count() + ram.clone().count();
    storage.resize(2 * places + spare, Region::EMPTY);
    let map = MemoryMap::build(entries.chain(ram), taken, storage).unwrap();
    assert_eq!(map.regions(), regions);
    map
}

fn run(regions: &[Region], requests: &[Request], spare: usize) {
    let mut storage = Vec::new();
    let map = remake(regions, &mut storage, spare);
    let ram = map.bytes(RegionKind::is_ram);
    let mut early = EarlyAllocator::new(map);
    let mut given: Vec<(PhysRange, RegionKind)> = Vec::new();
    for request in requests {
        let before = early.map().regions().to_vec();
        let best = places(early.map(), request).first().copied();
        let Request { bytes, align, placement, kind, .. } = *request;
        let below = request.below.map(PhysAddr::new);
        match early.alloc_as(bytes, align, below, placement, kind) {
            Ok(range) => {
                assert_eq!(Some(range), best);
                assert!(given.iter().all(|(other, _)| !other.overlaps(range)));
                given.push((range, kind));
            }
            Err(EarlyError::OutOfMemory { .. }) => {
                assert_eq!(best, None);
                assert_eq!(early.map().regions(), before);
            }
            Err(EarlyError::StorageTooSmall { needed, given }) => {
                assert!(given < needed && needed <= before.len() + 2);
                assert_eq!(early.map().regions(), before);
            }
            Err(other) => panic!("{other}"),
        }
        assert!(sorted(early.map()));
        assert_eq!(early.map().bytes(RegionKind::is_ram), ram, "RAM was lost or made");
        let sum: u64 = given.iter().map(|(range, _)| range.len()).sum();
        let was: u64 = regions.iter().filter(|r| r.kind.is_usable()).map(|r| r.range.len()).sum();
        assert_eq!(early.map().usable_bytes() + sum, was);
    }
    let map = early.finish();
    assert_eq!(map.check_taken(given.iter().copied()), Ok(()));
    for (range, kind) in given {
        assert_eq!(map.find(range.start()).map(|region| region.kind), Some(kind));
    }
}

fn files() -> &'static [common::MapFile] {
    static FILES: std::sync::OnceLock<Vec<common::MapFile>> = std::sync::OnceLock::new();
    FILES.get_or_init(map_files)
}

fn small(storage: &mut [Region]) -> EarlyAllocator<'_> {
    let entries = [MemoryEntry::from_e820(0x10_0000, 0x10_0000, 1)];
    EarlyAllocator::new(MemoryMap::build(entries, [], storage).unwrap())
}

#[test]
fn a_mistake_of_the_caller_is_named_and_changes_nothing() {
    let mut storage = [Region::EMPTY; 8];
    let mut early = small(&mut storage);
    let before = early.map().regions().to_vec();
    assert_eq!(early.alloc(0, 1, None), Err(EarlyError::NoBytes));
    assert_eq!(early.alloc(1, 0, None), Err(EarlyError::BadAlignment { align: 0 }));
    assert_eq!(early.alloc(1, 24, None), Err(EarlyError::BadAlignment { align: 24 }));
    for kind in [RegionKind::Usable, RegionKind::Reserved, RegionKind::Unreachable] {
        let result = early.alloc_as(1, 1, None, Placement::Lowest, kind);
        assert_eq!(result, Err(EarlyError::NotATakenKind { kind }));
    }
    assert_eq!(early.map().regions(), before);
}

#[test]
fn neighbours_join_so_that_many_allocations_need_little_storage() {
    let mut storage = [Region::EMPTY; 2];
    let mut early = small(&mut storage);
    for _ in 0..256 {
        early.alloc(100, 8, None).unwrap();
    }
    let none = EarlyError::OutOfMemory { bytes: 100, align: 8, below: None };
    assert_eq!(early.alloc(100, 8, None), Err(none));
    let map = early.finish();
    assert_eq!(
        map.regions(),
        [Region { range: range(0x10_0000, 0x20_0000), kind: RegionKind::EarlyKernel }]
    );
}

#[test]
fn an_allocation_without_room_for_its_region_says_how_much_it_needs() {
    let mut storage = [Region::EMPTY; 2];
    let mut early = small(&mut storage);
    let below = Some(PhysAddr::new(0x18_0000));
    let error = EarlyError::StorageTooSmall { needed: 3, given: 2 };
    assert_eq!(early.alloc(4096, 4096, below), Err(error));
    assert_eq!(early.map().usable_bytes(), 0x10_0000);
    assert_eq!(early.alloc(4096, 4096, None), Ok(range(0x1f_f000, 0x20_0000)));
}

#[test]
fn a_page_for_further_cpus_is_found_below_a_mebibyte() {
    for file in files() {
        let mut storage = [Region::EMPTY; 256];
        let map = MemoryMap::build(file.entries(), usual_taken(), &mut storage).unwrap();
        let low = map.usable().next().is_some_and(|range| range.start() < PhysAddr::new(1 << 20));
        let mut early = EarlyAllocator::new(map);
        let limit = Some(PhysAddr::new(1 << 20));
        let (lowest, kind) = (Placement::Lowest, RegionKind::Trampoline);
        match early.alloc_as(4096, 4096, limit, lowest, kind) {
            Ok(page) => assert_eq!(page, range(0x1_0000, 0x1_1000)),
            Err(_) => assert!(!low, "{}", file.name),
        }
    }
}

#[test]
fn a_clipped_map_gives_nothing_from_out_of_reach() {
    let mut storage = [Region::EMPTY; 8];
    let entries = [MemoryEntry::from_e820(0, 0x10_0000, 1)];
    let mut map = MemoryMap::build(entries, [], &mut storage).unwrap();
    assert_eq!(map.clip(PhysAddr::new(0x8_0000)), Ok::<(), MapError>(()));
    let mut early = EarlyAllocator::new(map);
    assert_eq!(early.alloc(4096, 4096, None), Ok(range(0x7_f000, 0x8_0000)));
    assert!(early.alloc(0x8_0000, 4096, None).is_err());
}
