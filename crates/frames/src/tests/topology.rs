//! Several nodes; memory that comes and goes; somebody who makes room.

use std::string::String;
use std::vec;
use std::vec::Vec;

use pagoda_addr::{FrameRange, Order};
use proptest::prelude::*;

use super::rig::{Frames, Ground, frame, frames};
use crate::*;

const GIB: u64 = 1 << 18;
const PART: u64 = if cfg!(miri) { 512 } else { 8 * 512 };

/// Three nodes above 4 GiB, the first with a piece below it. From node 0 the closest is 2.
const MEMORY: [(u64, u64, u8); 4] =
    [(0x100, PART, 0), (4 * GIB, PART, 0), (4 * GIB + PART, PART, 1), (5 * GIB, PART, 2)];
const DISTANCES: [u8; 9] = [10, 30, 20, 30, 10, 20, 20, 21, 10];

fn ground() -> Ground {
    Ground::new(&MEMORY.map(|(start, count, _)| (start, count)), true)
}

fn with_nodes<'g>(ground: &'g mut Ground, areas: &'g mut [Area]) -> Frames<'g> {
    let memory = MEMORY.map(|(start, count, node)| (frames(start, count), Node(node)));
    let cpus = [Node(0), Node(1), Node(2), Node(1)];
    let topology = Topology { memory: &memory, cpus: &cpus, distances: &DISTANCES };
    ground.allocator(0, 0).with_topology(&topology, areas).unwrap()
}

fn node_of(frame: u64) -> u8 {
    MEMORY.iter().rev().find(|(start, ..)| *start <= frame).map_or(0, |(.., node)| *node)
}

#[test]
fn every_cpu_is_served_from_its_own_node_then_from_the_closest() {
    let (mut ground, mut areas) = (ground(), [Area::EMPTY; 8]);
    let allocator = with_nodes(&mut ground, &mut areas);
    let cpus = [(0, [0u8, 2, 1]), (1, [1, 2, 0]), (3, [1, 2, 0]), (2, [2, 0, 1])];
    for (cpu, order) in cpus.into_iter().take(if cfg!(miri) { 1 } else { 4 }) {
        allocator.cpus().0.set(cpu);
        let mut nodes: Vec<u8> = Vec::new();
        let mut taken = Vec::new();
        while let Ok(owned) = allocator.alloc(Request::frame()) {
            nodes.push(node_of(owned.start().number()));
            taken.push(owned);
        }
        assert_eq!(taken.len() as u64, 4 * PART);
        nodes.dedup();
        assert_eq!(nodes, order, "CPU {cpu}");
        taken.into_iter().for_each(|owned| allocator.free(owned).unwrap());
        let block = allocator.alloc(Request::order(Order::LARGE)).unwrap();
        assert_eq!(node_of(block.start().number()), order[0]);
        allocator.free(block).unwrap();
        allocator.drain_cpu().unwrap();
        assert_eq!(allocator.stats().cached, 0);
        allocator.audit();
    }
}

#[test]
fn a_request_names_its_node_and_may_insist() {
    let (mut ground, mut areas) = (ground(), [Area::EMPTY; 8]);
    let allocator = with_nodes(&mut ground, &mut areas);
    let three = |node| Request::count(3).node(Node(node));
    let whole = allocator.alloc_at(frames(5 * GIB, PART), Kind(0)).unwrap();
    let near = allocator.alloc(three(2)).unwrap();
    assert_eq!(node_of(near.start().number()), 0);
    assert_eq!(allocator.alloc(Request::frame().only_node(Node(2))), Err(AllocError::Fragmented));
    allocator.free(whole).unwrap();
    // A run longer than any area, across the border of two nodes.
    let long = allocator.alloc(Request::count(PART + 256)).unwrap();
    let there = allocator.alloc(three(2)).unwrap();
    let only = allocator.alloc(Request::frame().only_node(Node(1))).unwrap();
    assert_eq!(
        (allocator.node_of(there.start()), allocator.node_of(only.start())),
        (Node(2), Node(1))
    );
    assert_ne!(
        allocator.node_of(long.start()),
        allocator.node_of(frame(long.range().end_number() - 1))
    );
    [near, there, only, long].into_iter().for_each(|owned| allocator.free(owned).unwrap());
    assert_eq!(allocator.stats().used, 0);
}

#[test]
fn frames_of_another_node_are_not_kept() {
    let (mut ground, mut areas) = (ground(), [Area::EMPTY; 8]);
    let allocator = with_nodes(&mut ground, &mut areas);
    let taken: Vec<_> = (0..if cfg!(miri) { 90 } else { 500 })
        .map(|_| allocator.alloc(Request::frame()).unwrap())
        .collect();
    allocator.cpus().0.set(1);
    taken.into_iter().for_each(|owned| allocator.free(owned).unwrap());
    for _ in 0..100 {
        let own = allocator.alloc(Request::frame()).unwrap();
        assert_eq!(allocator.node_of(own.start()), Node(1));
        let _ = own.into_range();
    }
    assert_eq!(allocator.stats().used, 100);
}

#[test]
#[cfg_attr(miri, ignore)] // the text is that of the full size
fn each_node_has_its_figures_and_its_text() {
    let (mut ground, mut areas) = (ground(), [Area::EMPTY; 8]);
    let allocator = with_nodes(&mut ground, &mut areas);
    let held = allocator.alloc(Request::order(Order::LARGE).node(Node(1))).unwrap();
    assert_eq!(allocator.nodes().count(), 3);
    assert_eq!(allocator.node_stats(Node(1)), ZoneStats { total: PART, free: PART - 512 });
    assert_eq!(allocator.node_stats(Node(0)).total, 2 * PART);
    assert_eq!(allocator.zone_stats(Zone::Normal).total, 3 * PART);
    let (mut buddy, mut zones, mut types) = (String::new(), String::new(), String::new());
    for node in allocator.nodes() {
        let snapshot = allocator.snapshot_of(node);
        snapshot.buddyinfo(&mut buddy).unwrap();
        snapshot.zoneinfo(&mut zones).unwrap();
        snapshot.pagetypeinfo(&mut types).unwrap();
    }
    assert_eq!(
        buddy,
        "Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      3 \n\
         Node 0, zone    DMA32      0      0      0      0      0      0      0      0      1      0      0 \n\
         Node 0, zone   Normal      0      0      0      0      0      0      0      0      0      0      4 \n\
         Node 1, zone   Normal      0      0      0      0      0      0      0      0      0      1      3 \n\
         Node 2, zone   Normal      0      0      0      0      0      0      0      0      0      0      4 \n"
    );
    assert!(zones.contains("Node 1, zone   Normal\n  pages free     3584\n"), "{zones}");
    assert!(zones.contains("        managed  4096\nNode 2, zone   Normal\n"), "{zones}");
    assert!(types.contains("Node    2, zone   Normal, type      Movable "), "{types}");
    assert!(types.contains("Node 1, zone   Normal            1            7 "), "{types}");
    assert_eq!(types.matches("Page block order: 9").count(), 3);
    allocator.free(held).unwrap();
}

#[test]
fn bad_topologies_are_refused() {
    let refuse = |memory: &[(FrameRange, Node)], distances: &[u8], areas: usize| {
        let mut ground = ground();
        let mut storage = vec![Area::EMPTY; areas];
        let topology = Topology { memory, cpus: &[], distances };
        ground.allocator(0, 0).with_topology(&topology, &mut storage).map(|_| ()).unwrap_err()
    };
    let (low, high) = (frames(0x100, PART), frames(4 * GIB, PART));
    let two = [(low, Node(0)), (high, Node(1))];
    assert_eq!(refuse(&two, &[10, 20, 20], 8), SetupError::Distances);
    assert_eq!(refuse(&two, &[10], 8), SetupError::Distances);
    assert_eq!(refuse(&two, &[], 1), SetupError::Areas(3));
    assert_eq!(refuse(&[two[1], two[0]], &[], 8), SetupError::Unsorted(low));
    assert_eq!(refuse(&[(low, Node(200))], &[], 8), SetupError::NoSuchNode(Node(200)));
}

#[test]
fn a_range_goes_off_line_when_its_owners_have_moved() {
    let mut ground = Ground::new(&[(GIB, 4096)], true);
    let allocator = ground.allocator(0, 0);
    let movable = Request::frame().mobility(Mobility::Movable);
    let (count, chunks) = if cfg!(miri) { (90, 1) } else { (700, 2) };
    let mut pages: Vec<_> =
        (0..count).map(|_| allocator.alloc(movable).unwrap().into_range()).collect();
    let fixed = allocator.alloc(Request::count(5)).unwrap().into_range();
    let leaving = frames(GIB, chunks * 512 + 100);
    let total = allocator.stats().total;
    let mut rounds = 0;
    loop {
        let mut named = Vec::new();
        let left = allocator.offline(leaving, |one, mobility| named.push((one, mobility))).unwrap();
        let stats = allocator.stats();
        assert_eq!(stats.free + stats.cached + stats.used, stats.total);
        assert_eq!(stats.total, total - (leaving.count() - left));
        assert_eq!(named.iter().map(|(one, _)| one.range.count()).sum::<u64>(), left);
        allocator.audit();
        if left == 0 {
            break;
        }
        for (one, mobility) in named {
            assert_eq!(mobility == Mobility::Movable, one.range != fixed);
            if mobility == Mobility::Movable {
                let new = allocator.alloc(movable).unwrap().into_range();
                assert!(!leaving.contains(new.start()));
                allocator.free_range(one.range).unwrap();
                *pages.iter_mut().find(|page| **page == one.range).unwrap() = new;
            } else {
                allocator.free_range(one.range).unwrap();
            }
        }
        rounds += 1;
    }
    assert_eq!(rounds, 1);
    // Nobody gets it, and nobody can give it back.
    let inside = FrameRange::single(leaving.start());
    assert_eq!(allocator.free_range(inside), Err(FreeError::DoubleFree(leaving.start())));
    assert_eq!(allocator.alloc_at(inside, Kind(0)), Err(AllocError::Busy(leaving.start())));
    let over = frames(GIB + 5, 10);
    assert_eq!(allocator.offline(over, |_, _| ()), Err(OfflineError::Overlaps(leaving)));
    assert_eq!(allocator.online(over), Err(OfflineError::NotOffline(over)));
    assert_eq!(allocator.online(leaving), Ok(leaving.count()));
    assert_eq!(allocator.stats().total, total);
    pages.into_iter().for_each(|page| allocator.free_range(page).unwrap());
    assert_eq!(allocator.stats().used, 0);
    allocator.audit();
}

#[test]
fn a_range_that_does_not_leave_after_all_comes_back() {
    let mut ground = Ground::new(&[(GIB, 2048)], true);
    let allocator = ground.allocator(0, 0);
    let kept: Vec<_> = [1, 3, 64, 7].map(|n| allocator.alloc(Request::count(n)).unwrap()).into();
    let one = allocator.alloc(Request::frame()).unwrap();
    let leaving = frames(GIB + 10, 1000);
    let left = allocator.offline(leaving, |_, _| ()).unwrap();
    assert!(left > 0);
    // Freed meanwhile: free again, and neither captured nor lost.
    allocator.free(one).unwrap();
    let captured = leaving.count() - left;
    assert_eq!(allocator.online(leaving), Ok(captured));
    kept.into_iter().for_each(|owned| allocator.free(owned).unwrap());
    let stats = allocator.stats();
    assert_eq!((stats.used, stats.total, stats.free + stats.cached), (0, 2048, 2048));
    allocator.drain_cpu().unwrap();
    allocator.audit();
    let all = allocator.alloc(Request::count(2048)).unwrap();
    allocator.free(all).unwrap();
}

#[test]
#[cfg_attr(miri, ignore)] // looks at thousands of frames
fn hot_added_memory_is_nobodys_until_it_comes() {
    let mut ground = Ground::new(&[(GIB, 1024), (2 * GIB, 4096)], true);
    let allocator = ground.allocator(0, 0);
    let hot = frames(2 * GIB, 4096);
    assert_eq!(allocator.offline(hot, |_, _| ()), Ok(0));
    assert_eq!(allocator.stats().total, 1024);
    assert_eq!(allocator.alloc(Request::count(1025)), Err(AllocError::NoMemory));
    assert_eq!(allocator.online(hot), Ok(4096));
    assert_eq!(allocator.online(hot), Err(OfflineError::NotOffline(hot)));
    let all = allocator.alloc(Request::count(4096)).unwrap();
    assert_eq!(all.range(), hot);
    allocator.free(all).unwrap();
    assert_eq!(allocator.offline(frames(5, 1), |_, _| ()), Err(OfflineError::NotManaged(frame(5))));
    assert_eq!(allocator.offline(frames(GIB, 0), |_, _| ()), Err(OfflineError::Empty));
    for place in 0..MAX_OFFLINE as u64 {
        assert_eq!(allocator.offline(frames(GIB + place, 1), |_, _| ()), Ok(0));
    }
    let more = frames(GIB + 100, 1);
    assert_eq!(allocator.offline(more, |_, _| ()), Err(OfflineError::TooMany));
    let mut ground = Ground::new(&[(GIB, 1024)], false);
    let without = ground.allocator(0, 0);
    assert_eq!(without.offline(frames(GIB, 1), |_, _| ()), Err(OfflineError::NoTable));
}

#[test]
fn a_block_is_emptied_by_moving_what_stands_in_it() {
    const COUNT: u64 = if cfg!(miri) { 1024 } else { 2048 };
    let mut ground = Ground::new(&[(GIB, COUNT)], true);
    let allocator = ground.allocator(0, 0);
    let movable = Request::frame().mobility(Mobility::Movable);
    assert_eq!(allocator.empty_block(|_| true), Err(AllocError::Fragmented));
    let mut pages: Vec<_> =
        (0..COUNT).map(|_| allocator.alloc(movable).unwrap().into_range()).collect();
    // Every block keeps some.
    pages.retain(|page| {
        let stays = page.start().number() % 3 == 0;
        if !stays {
            allocator.free_range(*page).unwrap();
        }
        stays
    });
    assert_eq!(allocator.alloc(Request::order(Order::LARGE)), Err(AllocError::Fragmented));
    // Somebody refuses: everything stays.
    let free = allocator.stats().free + allocator.stats().cached;
    assert_eq!(allocator.empty_block(|_| false), Err(AllocError::Fragmented));
    assert_eq!(allocator.stats().free + allocator.stats().cached, free);
    allocator.audit();
    let block = allocator.empty_block(|one| {
        let new = allocator.alloc(movable).unwrap().into_range();
        *pages.iter_mut().find(|page| **page == one.range).unwrap() = new;
        allocator.free_range(one.range).map(|()| true).unwrap()
    });
    let block = block.unwrap();
    assert!(pages.iter().all(|page| !block.contains(page.start())));
    let large = allocator.alloc(Request::order(Order::LARGE)).unwrap();
    assert_eq!(large.range(), block);
    allocator.free(large).unwrap();
    pages.into_iter().for_each(|page| allocator.free_range(page).unwrap());
    assert_eq!(allocator.stats().used, 0);
    allocator.audit();
}

#[test]
fn who_reclaims_is_asked_with_no_lock_held_and_not_for_ever() {
    let mut ground = Ground::new(&[(GIB, 128)], true);
    let allocator = ground.allocator(0, 0);
    allocator.set_watermarks(Watermarks { min: 10, low: 20, high: 30 });
    let mut cache: Vec<_> = Vec::new();
    while let Ok(owned) = allocator.alloc(Request::frame()) {
        cache.push(owned.into_range());
    }
    let mut asked = Vec::new();
    let owned = allocator.alloc_reclaiming(Request::count(2), |shortage| {
        asked.push(shortage);
        // Allocates and frees as it likes.
        let own = allocator.alloc(Request::frame().class(Class::Reserve)).unwrap();
        allocator.free(own).unwrap();
        let some: Vec<_> = cache.drain(..5).collect();
        some.iter().for_each(|range| allocator.free_range(*range).unwrap());
        5
    });
    allocator.free(owned.unwrap()).unwrap();
    assert_eq!((asked[0].error, asked[0].wanted, asked[0].tries), (AllocError::Reserved, 22, 0));
    let mut calls = 0;
    let refused = allocator.alloc_reclaiming(Request::count(129), |_| {
        calls += 1;
        1
    });
    assert_eq!((refused, calls), (Err(AllocError::NoMemory), 16));
    let refused = allocator.alloc_reclaiming(Request::count(129), |_| 0);
    assert_eq!(refused, Err(AllocError::NoMemory));
    assert_eq!(
        allocator.alloc_reclaiming(Request::count(0), |_| unreachable!()),
        Err(AllocError::BadRequest)
    );
    cache.into_iter().for_each(|range| allocator.free_range(range).unwrap());
}

proptest! {
    #![proptest_config(crate::line::random_cases(60))]
    #[test]
    fn nodes_only_decide_where(
        calls in prop::collection::vec((0u8..8, 0u8..3, 1u64..600), 1..if cfg!(miri) { 8 } else { 120 }),
    ) {
        let (mut ground, mut areas) = (ground(), [Area::EMPTY; 8]);
        let allocator = with_nodes(&mut ground, &mut areas);
        let mut owned: Vec<FrameRange> = Vec::new();
        for (what, node, count) in calls {
            allocator.cpus().0.set(usize::from(node));
            match what {
                0..3 => {
                    for _ in 0..count {
                        let got = allocator.alloc(Request::frame());
                        owned.extend(got.ok().map(OwnedFrames::into_range));
                    }
                }
                3 => {
                    let request = Request::count(count).only_node(Node(node));
                    if let Ok(got) = allocator.alloc(request) {
                        let range = got.into_range();
                        let last = frame(range.end_number() - 1);
                        assert_eq!(allocator.node_of(range.start()), Node(node));
                        assert_eq!(allocator.node_of(last), Node(node));
                        owned.push(range);
                    }
                }
                4 => {
                    let got = allocator.alloc(Request::count(count).node(Node(node)));
                    owned.extend(got.ok().map(OwnedFrames::into_range));
                }
                _ => {
                    for _ in 0..count.min(owned.len() as u64) {
                        let place = (count as usize * 7919) % owned.len();
                        allocator.free_range(owned.swap_remove(place)).unwrap();
                    }
                }
            }
            let stats = allocator.stats();
            assert_eq!(stats.free + stats.cached + stats.used, stats.total);
            assert_eq!(stats.used, owned.iter().map(|range| range.count()).sum::<u64>());
            let free: u64 = allocator.nodes().map(|node| allocator.node_stats(node).free).sum();
            assert_eq!(free, stats.free);
            allocator.audit();
        }
        owned.sort();
        assert!(owned.windows(2).all(|two| two[0].end_number() <= two[1].start().number()));
    }
}
