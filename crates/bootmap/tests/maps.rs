//! The map builder against the oracle: on every real map, on random mutations of each, and on
//! small ranges byte by byte.

mod common;

use common::oracle::Oracle;
use common::{cases, few_under_miri, map_files, range, usual_taken};
use pagoda_addr::{PhysAddr, PhysRange};
use pagoda_bootmap::{MapError, MemoryEntry, MemoryMap, Region, RegionKind};
use proptest::prelude::*;

type Taken = Vec<(PhysRange, RegionKind)>;

/// Kinds that a taken range may have.
const TAKERS: [RegionKind; 12] = [
    RegionKind::EarlyKernel,
    RegionKind::LowMemory,
    RegionKind::Ebda,
    RegionKind::LegacyWindow,
    RegionKind::CommandLine,
    RegionKind::BootInfo,
    RegionKind::Module,
    RegionKind::Framebuffer,
    RegionKind::AcpiTables,
    RegionKind::Trampoline,
    RegionKind::Kernel,
    RegionKind::Reserved,
];

/// Builds in storage that first is `given` and then as long as the error said, and checks the
/// result against the oracle.
fn build_and_check(entries: &[MemoryEntry], taken: &Taken, given: usize) {
    let mut storage = vec![Region::EMPTY; given];
    let build = |storage: &mut Vec<Region>| match MemoryMap::build(
        entries.iter().copied(),
        taken.iter().copied(),
        storage,
    ) {
        Ok(map) => {
            Oracle::new(entries, taken).check(&map);
            assert_eq!(map.check_taken(taken.iter().copied()), Ok(()));
            Ok(())
        }
        Err(error) => Err(error),
    };
    match build(&mut storage) {
        Ok(()) => {}
        Err(MapError::StorageTooSmall { needed, given: told }) => {
            assert_eq!(told, given);
            assert!(needed > given);
            assert!(needed <= 2 * (entries.len() + taken.len()));
            storage.resize(needed, Region::EMPTY);
            assert_eq!(build(&mut storage), Ok(()), "what the error asked for was not enough");
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn every_real_map_is_what_the_oracle_says() {
    for map in map_files() {
        println!("{}", map.name);
        build_and_check(&map.entries(), &Vec::new(), 0);
        build_and_check(&map.entries(), &usual_taken(), 0);
        let mut backwards = map.entries();
        backwards.reverse();
        build_and_check(&backwards, &usual_taken(), 0);
    }
}

#[test]
fn every_size_of_storage_gives_the_map_or_its_need() {
    for map in map_files() {
        for given in 0..2 * (map.lines.len() + usual_taken().len()) {
            build_and_check(&map.entries(), &usual_taken(), given);
        }
    }
}

/// A way to damage a map. Places are taken modulo the number of entries.
#[derive(Clone, Debug)]
enum Damage {
    Duplicate(usize),
    Remove(usize),
    Swap(usize, usize),
    Move(usize, i64),
    Grow(usize, i64),
    SetLen(usize, u64),
    SetKind(usize, u32),
    Split(usize, u16),
    Span(usize, usize, u32),
    Truncate(usize),
    Insert(u64, u64, u32),
}

fn odd() -> impl Strategy<Value = i64> {
    prop_oneof![-3i64..4, -9000i64..9000, (-40i64..40).prop_map(|n| n << 12), any::<i64>()]
}

fn number() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 1u32..2, 6 => 0u32..14, 1 => Just(0xefff_ffff), 1 => any::<u32>()]
}

fn absurd() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..3, (0u64..1 << 21), Just(u64::MAX), u64::MAX - 9000..u64::MAX, any::<u64>()]
}

fn damage() -> impl Strategy<Value = Damage> {
    let place = any::<usize>;
    prop_oneof![
        place().prop_map(Damage::Duplicate),
        place().prop_map(Damage::Remove),
        (place(), place()).prop_map(|(a, b)| Damage::Swap(a, b)),
        (place(), odd()).prop_map(|(a, by)| Damage::Move(a, by)),
        (place(), odd()).prop_map(|(a, by)| Damage::Grow(a, by)),
        (place(), absurd()).prop_map(|(a, len)| Damage::SetLen(a, len)),
        (place(), number()).prop_map(|(a, n)| Damage::SetKind(a, n)),
        (place(), any::<u16>()).prop_map(|(a, at)| Damage::Split(a, at)),
        (place(), place(), number()).prop_map(|(a, b, n)| Damage::Span(a, b, n)),
        place().prop_map(Damage::Truncate),
        (absurd(), absurd(), number()).prop_map(|(s, l, n)| Damage::Insert(s, l, n)),
    ]
}

impl Damage {
    fn apply(&self, map: &mut Vec<MemoryEntry>) {
        let count = map.len().max(1);
        let at = |place: &usize| place % count;
        if map.is_empty() && !matches!(self, Self::Insert(..)) {
            return;
        }
        match self {
            Self::Duplicate(a) => map.push(map[at(a)]),
            Self::Remove(a) => drop(map.swap_remove(at(a))),
            Self::Swap(a, b) => map.swap(at(a), at(b)),
            Self::Move(a, by) => {
                let entry = &mut map[at(a)];
                entry.start = PhysAddr::new(entry.start.as_u64().wrapping_add_signed(*by));
            }
            Self::Grow(a, by) => {
                let entry = &mut map[at(a)];
                entry.len = entry.len.wrapping_add_signed(*by);
            }
            Self::SetLen(a, len) => map[at(a)].len = *len,
            Self::SetKind(a, n) => map[at(a)].kind = RegionKind::from_e820(*n),
            Self::Split(a, cut) => {
                let entry = map[at(a)];
                let cut = u64::from(*cut).min(entry.len);
                let start = PhysAddr::new(entry.start.as_u64().wrapping_add(cut));
                map[at(a)].len = cut;
                map.push(MemoryEntry { start, len: entry.len - cut, kind: entry.kind });
            }
            Self::Span(a, b, n) => {
                let start = map[at(a)].start.as_u64().wrapping_add(map[at(a)].len / 2);
                let len = map[at(b)].start.as_u64().wrapping_sub(start);
                map.push(MemoryEntry::from_e820(start, len, *n));
            }
            Self::Truncate(a) => map.truncate(at(a) + 1),
            Self::Insert(start, len, n) => map.push(MemoryEntry::from_e820(*start, *len, *n)),
        }
    }
}

/// Taken ranges near the usual ones, and anywhere.
fn taken() -> impl Strategy<Value = Taken> {
    let near = (0u64..0x80_0000, 0u64..0x2_0000);
    let anywhere = (absurd(), absurd());
    let one = (prop_oneof![3 => near, 1 => anywhere], 0..TAKERS.len());
    let one = one.prop_map(|((start, len), kind)| {
        (PhysRange::clamped(PhysAddr::new(start), len), TAKERS[kind])
    });
    prop::collection::vec(one, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(8000), ..ProptestConfig::default() })]

    /// Each case damages every real map in the same way: eight thousand mutations of each.
    #[test]
    fn every_damaged_map_is_what_the_oracle_says(
        damages in prop::collection::vec(damage(), 1..12),
        more in taken(),
        given in 0usize..80,
    ) {
        for map in maps() {
            let mut entries = map.clone();
            damages.iter().for_each(|damage| damage.apply(&mut entries));
            let mut taken = usual_taken();
            taken.extend_from_slice(&more);
            build_and_check(&entries, &taken, given);
        }
    }
}

fn maps() -> &'static [Vec<MemoryEntry>] {
    static MAPS: std::sync::OnceLock<Vec<Vec<MemoryEntry>>> = std::sync::OnceLock::new();
    MAPS.get_or_init(|| {
        map_files().iter().take(few_under_miri()).map(|map| map.entries()).collect()
    })
}

const SMALL: u64 = 8 * 4096;

fn small_entries() -> impl Strategy<Value = Vec<MemoryEntry>> {
    let edge = || prop_oneof![0..SMALL, (0..8u64).prop_map(|n| n << 12)];
    let one = (edge(), edge(), number())
        .prop_map(|(a, b, n)| MemoryEntry::from_e820(a.min(b), a.abs_diff(b), n));
    prop::collection::vec(one, 0..10)
}

fn small_taken() -> impl Strategy<Value = Taken> {
    let one = (0..SMALL, 0u64..5000, 0..TAKERS.len());
    let one = one.prop_map(|(start, len, kind)| (range(start, start + len), TAKERS[kind]));
    prop::collection::vec(one, 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(150), ..ProptestConfig::default() })]

    #[test]
    fn small_maps_are_right_in_every_byte(entries in small_entries(), taken in small_taken()) {
        let oracle = Oracle::new(&entries, &taken);
        let mut storage = vec![Region::EMPTY; 2 * (entries.len() + taken.len())];
        let map = MemoryMap::build(entries, taken, &mut storage).unwrap();
        for frame in 0..10 {
            let truth = oracle.frame_by_bytes(frame);
            prop_assert_eq!(oracle.frame(frame), truth, "the oracle disagrees with itself");
            let told = map.find(PhysAddr::new(frame as u64 * 4096)).map(|region| region.kind);
            prop_assert_eq!(told, truth, "frame {}", frame);
        }
        oracle.check(&map);
    }
}

#[test]
fn thousands_of_entries_take_no_time_to_speak_of() {
    // Islands inside islands: the worst for anything that inserts into the middle.
    let count = 20_000u64;
    let entries = (0..count).map(|i| {
        let kind = [1, 2, 3, 4, 5, 7][i as usize % 6];
        MemoryEntry::from_e820(i * 4096, (2 * count - 2 * i) * 4096, kind)
    });
    let mut storage = vec![Region::EMPTY; 2 * count as usize];
    let started = std::time::Instant::now();
    let map = MemoryMap::build(entries, [], &mut storage).unwrap();
    assert!(!map.regions().is_empty());
    assert!(started.elapsed().as_secs() < 2, "{:?}", started.elapsed());
}

#[test]
fn usable_entries_that_meet_inside_a_page_lose_nothing() {
    let entries = [
        MemoryEntry::from_e820(0x10_0000, 0x1018, 1),
        MemoryEntry::from_e820(0x10_1018, 0x2fe8, 1),
    ];
    let mut storage = [Region::EMPTY; 4];
    let map = MemoryMap::build(entries, [], &mut storage).unwrap();
    assert_eq!(map.usable_bytes(), 0x4000);
}

#[test]
fn a_reserved_window_at_a_tebibyte_does_not_move_the_end_of_ram() {
    for file in map_files().iter().filter(|file| file.name.contains("1tib")) {
        let mut storage = [Region::EMPTY; 64];
        let map = MemoryMap::build(file.entries(), [], &mut storage).unwrap();
        assert_eq!(map.ram_end(), PhysAddr::new(0x4_4000_0000));
        assert_eq!(map.regions().last().unwrap().range.end(), PhysAddr::new(0x100_0000_0000));
    }
}

#[test]
fn taking_a_range_as_usable_is_the_callers_mistake() {
    let slip = range(0x1000, 0x2000);
    let result = MemoryMap::build([], [(slip, RegionKind::Usable)], &mut []);
    assert_eq!(result.err(), Some(MapError::TakenAsUsable { range: slip }));
}

#[test]
fn a_forgotten_range_is_found_and_named() {
    let entries = [MemoryEntry::from_e820(0, 1 << 24, 1)];
    let all = usual_taken();
    for (place, &(range, kind)) in all.iter().enumerate() {
        if kind == RegionKind::Framebuffer || kind == RegionKind::Trampoline {
            continue; // not in this memory; inside the first 64 KiB, which is taken anyway
        }
        let rest = all.iter().enumerate().filter(|(at, _)| *at != place).map(|(_, taken)| *taken);
        let mut storage = [Region::EMPTY; 40];
        let map = MemoryMap::build(entries, rest, &mut storage).unwrap();
        let shares_its_frames = kind == RegionKind::BootInfo && range.len() < 4096;
        match map.check_taken(all.iter().copied()) {
            Err(found) => assert_eq!((found.range, found.kind), (range, kind)),
            Ok(()) => assert!(shares_its_frames, "forgot {kind} and nobody noticed"),
        }
    }
}

#[test]
fn a_clipped_map_keeps_every_byte_and_reaches_no_further() {
    for file in map_files() {
        for limit in [0, 0x1234, 0x10_0000, 0x20_0800, 1 << 30, (1 << 32) + 1, 1 << 40, u64::MAX] {
            let (entries, limit) = (file.entries(), PhysAddr::new(limit));
            let mut storage = vec![Region::EMPTY; 2 * (entries.len() + usual_taken().len()) + 1];
            let mut map = MemoryMap::build(entries, usual_taken(), &mut storage).unwrap();
            let before = (map.usable_bytes(), map.bytes(RegionKind::is_taken));
            map.clip(limit).unwrap();
            let lost = map.bytes(|kind| kind == RegionKind::Unreachable);
            assert_eq!(before.0, map.usable_bytes() + lost);
            assert!(map.usable().all(|range| range.end() <= limit));
            for region in map.regions() {
                let unreachable = region.kind == RegionKind::Unreachable;
                assert!(!unreachable || region.range.start() >= limit.align_down(4096));
            }
        }
    }
}

#[test]
fn a_clip_without_room_changes_nothing() {
    let entries = [MemoryEntry::from_e820(0, 0x4000, 1), MemoryEntry::from_e820(0x8000, 0x4000, 1)];
    let mut storage = [Region::EMPTY; 4];
    let map = MemoryMap::build(entries, [], &mut storage).unwrap();
    let regions = map.regions().to_vec();
    let mut exact = [Region::EMPTY; 4];
    let taken = [0x9000, 0xb000].map(|at| (range(at, at + 0x800), RegionKind::Module));
    let mut full = MemoryMap::build(entries, taken.into_iter().take(1), &mut exact).unwrap();
    assert_eq!((regions.len(), full.regions().len()), (2, 4));
    let before = full.regions().to_vec();
    let error = MapError::StorageTooSmall { needed: 5, given: 4 };
    assert_eq!(full.clip(PhysAddr::new(0x2000)), Err(error));
    assert_eq!(full.regions(), before);
}
