//! One thing at a time.
#![allow(unsafe_code)] // looks at zeroed memory

use std::vec::Vec;

use pagoda_addr::{Order, PhysAddr, PhysMap};

use super::rig::{Ground, frame, frames};
use crate::*;

const GIB: u64 = 1 << 18;

fn order(order: u8) -> Request {
    Request::order(Order::new(order).unwrap())
}

#[test]
fn every_order_from_4_kib_to_1_gib_can_be_had_and_comes_back() {
    let top = if cfg!(miri) { Order::LARGE } else { Order::HUGE };
    let mut ground = Ground::new(&[(0x100, 3 * top.count())], true);
    let frames = ground.allocator(0, 0);
    for size in 0..=top.get() {
        let block = frames.alloc(order(size)).unwrap();
        assert!(block.start().is_aligned(Order::new(size).unwrap()));
        assert_eq!(block.count(), 1 << size);
        assert_eq!(frames.stats().used, 1 << size);
        frames.free(block).unwrap();
        frames.audit();
    }
    assert_eq!(frames.stats().used, 0);
    assert_eq!(frames.available(top), 2);
}

#[test]
fn small_blocks_come_from_the_lowest_address_and_large_ones_from_the_highest() {
    let mut ground = Ground::new(&[(1 << 20, 2 * GIB)], true);
    let frames = ground.allocator(0, 0);
    let low = frames.alloc(Request::frame()).unwrap();
    let next = frames.alloc(order(3)).unwrap();
    let high = frames.alloc(order(9)).unwrap();
    assert_eq!(low.start(), frame(1 << 20));
    // The first word of 64 went to the CPU's magazine.
    assert_eq!(next.start(), frame((1 << 20) + 64));
    // Highest, but in the gig that is broken already.
    assert_eq!(high.range().end_number(), (1 << 20) + GIB);
    for block in [low, next, high] {
        frames.free(block).unwrap();
    }
}

#[test]
fn whole_chunks_are_broken_last() {
    let (count, hole) = if cfg!(miri) { (1024, 512 + 7) } else { (4096, 5 * 512 + 7) };
    let mut ground = Ground::new(&[(1 << 20, count)], true);
    let allocator = ground.allocator(0, 0);
    let all: Vec<_> = (0..count).map(|_| allocator.alloc(Request::frame()).unwrap()).collect();
    for block in all {
        let place = block.start().number() - (1 << 20);
        // Chunk 0 becomes entirely free, another one gets a hole.
        if place < 512 || place == hole {
            allocator.free(block).unwrap();
        } else {
            let _ = block.into_range();
        }
    }
    allocator.drain_cpu().unwrap();
    assert_eq!(allocator.alloc(order(18)), Err(AllocError::NoMemory)); // drains the depot
    let got = allocator.alloc(Request::frame()).unwrap().into_range();
    assert_eq!(got, frames((1 << 20) + hole, 1));
    let got = allocator.alloc(Request::frame()).unwrap().into_range();
    assert_eq!(got, frames(1 << 20, 1));
}

#[test]
fn low_zones_are_used_last() {
    let mut ground = Ground::new(&[(16, 8192), ((1 << 20) - 4, 8)], true);
    let frames = ground.allocator(0, 0);
    let starts: Vec<_> =
        (0..9).map(|_| frames.alloc(Request::frame()).unwrap().into_range().start()).collect();
    let (high, middle): (Vec<_>, Vec<_>) =
        starts.into_iter().partition(|start| start.number() >= 1 << 20);
    assert_eq!(high.len(), 4);
    assert!(middle.iter().all(|start| start.number() >= 1 << 12));
    let low = frames.alloc(Request::frame().below(PhysAddr::new(16 << 20))).unwrap().into_range();
    assert_eq!(low.start(), frame(16));
}

#[test]
fn normal_requests_leave_the_reserve() {
    let mut ground = Ground::new(&[(1 << 20, 64)], true);
    let allocator = ground.allocator(10, 0);
    let mut normal = 0;
    while let Ok(block) = allocator.alloc(Request::frame()) {
        let _ = block.into_range();
        normal += 1;
    }
    assert_eq!(normal, 54);
    assert_eq!(allocator.alloc(Request::frame()), Err(AllocError::Reserved));
    for _ in 0..10 {
        let _ = allocator.alloc(Request::frame().class(Class::Reserve)).unwrap().into_range();
    }
    let last = allocator.alloc(Request::frame().class(Class::Reserve));
    assert_eq!(last, Err(AllocError::NoMemory));
}

#[test]
fn zeroed_means_zeroed() {
    let mut ground = Ground::new(&[(1 << 20, 64)], true);
    let allocator = ground.allocator(0, 64);
    let dirty = allocator.alloc(Request::count(64)).unwrap();
    let start = allocator.map().ptr(dirty.start().start());
    // SAFETY: the arena has 64 frames, which are ours now.
    unsafe { start.write_bytes(0xff, 64 * 4096) };
    allocator.free(dirty).unwrap();
    let clean = allocator.alloc(Request::count(5).zeroed()).unwrap();
    let start = allocator.map().ptr(clean.start().start());
    // SAFETY: five frames of the arena, written before.
    let bytes = unsafe { core::slice::from_raw_parts(start, 5 * 4096) };
    assert!(bytes.iter().all(|&byte| byte == 0));
    allocator.free(clean).unwrap();
}

#[test]
fn the_pool_of_zeroed_frames_serves_and_is_given_up_under_pressure() {
    let mut ground = Ground::new(&[(1 << 20, 2048)], true);
    let allocator = ground.allocator(0, 2048);
    let start = allocator.map().ptr(frame(1 << 20).start());
    // SAFETY: the arena has 2048 frames, which nobody owns.
    unsafe { start.write_bytes(0xff, 2048 * 4096) };
    assert_eq!(allocator.fill_zeroed(), Ok(true));
    assert_eq!(allocator.zero_stats().pooled, 64);
    assert_eq!((allocator.stats().cached, allocator.stats().used), (64, 0));
    let mut taken = Vec::new();
    for _ in 0..70 {
        let owned = allocator.alloc(Request::frame().zeroed()).unwrap();
        let start = allocator.map().ptr(owned.start().start());
        // SAFETY: a frame of ours, which was written.
        let bytes = unsafe { core::slice::from_raw_parts(start, 4096) };
        assert_eq!(bytes, [0; 4096]);
        taken.push(owned);
    }
    assert_eq!(allocator.zero_stats(), ZeroStats { pooled: 0, served: 64, missed: 6 });
    for owned in taken {
        allocator.free(owned).unwrap();
    }
    let mut batches = 0;
    while allocator.fill_zeroed() == Ok(true) {
        batches += 1;
    }
    assert!(batches > 1);
    let all = allocator.alloc(Request::count(2048)).unwrap();
    assert_eq!(allocator.zero_stats().pooled, 0);
    assert_eq!(allocator.fill_zeroed(), Ok(false));
    allocator.free(all).unwrap();
    allocator.audit();
}

#[test]
fn zones_and_nearly_free_blocks_are_shown() {
    let mut ground = Ground::new(&[(0x100, 0x2000), (1 << 20, 1536)], true);
    let allocator = ground.allocator(0, 0);
    assert_eq!(allocator.zone_stats(Zone::Dma), ZoneStats { total: 0xf00, free: 0xf00 });
    assert_eq!(allocator.zone_stats(Zone::Dma32), ZoneStats { total: 0x1100, free: 0x1100 });
    let held = allocator.alloc_at(frames((1 << 20) + 700, 3), Kind(0)).unwrap();
    assert_eq!(allocator.zone_stats(Zone::Normal), ZoneStats { total: 1536, free: 1533 });
    let near = (frames((1 << 20) + 512, 512), 3);
    assert_eq!(allocator.nearly_free_block(), Some(near));
    allocator.free(held).unwrap();
    assert_eq!(allocator.nearly_free_block(), None);
}

#[test]
#[cfg_attr(miri, ignore)] // zones begin where they do: thousands of frames
fn small_machines_can_use_every_frame() {
    // 16 MiB, 32 MiB, and a zone that is one frame long.
    for end in [0x1000, 0x2000, 0x1001] {
        let mut ground = Ground::new(&[(0x10, 0x80), (0x100, end - 0x100)], true);
        let allocator = ground.allocator(0, 0);
        let total = allocator.stats().total;
        for _ in 0..2 {
            let mut list: Vec<_> = (0..total + 1).map(|_| None).collect();
            let (made, why) = allocator.alloc_bulk(Request::frame(), &mut list);
            assert_eq!((made as u64, why), (total, Err(AllocError::NoMemory)));
            allocator.free_bulk(&mut list).unwrap();
        }
        let large = allocator.alloc(order(9).below(PhysAddr::new(16 << 20))).unwrap();
        allocator.free(large).unwrap();
        assert_eq!(allocator.stats().used, 0);
        allocator.audit();
    }
}

#[test]
fn bulk_fills_and_empties_a_list() {
    let mut ground = Ground::new(&[(1 << 20, 100)], true);
    let allocator = ground.allocator(0, 0);
    let mut list: Vec<_> = (0..120).map(|_| None).collect();
    let (made, why) = allocator.alloc_bulk(Request::frame(), &mut list);
    assert_eq!((made, why), (100, Err(AllocError::NoMemory)));
    allocator.free_bulk(&mut list).unwrap();
    assert!(list.iter().all(Option::is_none));
    assert_eq!(allocator.stats().used, 0);
}

#[test]
fn hostile_requests_are_refused() {
    let mut ground = Ground::new(&[(1 << 20, 1000)], true);
    let allocator = ground.allocator(0, 0);
    let two = Order::new(1).unwrap();
    assert_eq!(allocator.alloc(Request::count(0)), Err(AllocError::BadRequest));
    assert_eq!(allocator.alloc(Request::count(u64::MAX)), Err(AllocError::BadRequest));
    assert_eq!(allocator.alloc(Request::count(3).within(two)), Err(AllocError::BadRequest));
    assert_eq!(allocator.alloc(Request::count(1 << 31)), Err(AllocError::NoMemory));
    assert_eq!(allocator.alloc(order(10)), Err(AllocError::NoMemory));
    assert_eq!(allocator.alloc(order(9).below(PhysAddr::ZERO)), Err(AllocError::Fragmented));
    let outside = allocator.alloc_at(frames((1 << 20) + 999, 2), Kind(0));
    assert_eq!(outside, Err(AllocError::NotManaged(frame((1 << 20) + 1000))));
    let given = allocator.alloc_at(frames((1 << 20) + 5, 2), Kind(0)).unwrap();
    let again = allocator.alloc_at(frames((1 << 20) + 4, 2), Kind(0));
    assert_eq!(again, Err(AllocError::Busy(frame((1 << 20) + 5))));
    let given = allocator.split(given, 2).unwrap_err();
    let (low, high) = allocator.split(given, 1).unwrap();
    assert_eq!((low.range(), high.range()), (frames((1 << 20) + 5, 1), frames((1 << 20) + 6, 1)));
    allocator.free(high).unwrap();
    allocator.free(low).unwrap();
}

#[test]
fn bad_setups_are_refused() {
    let unsorted = [frames(100, 10), frames(105, 10)];
    assert_eq!(required(&unsorted, 1), Err(SetupError::Unsorted(unsorted[1])));
    let high = [frames(1 << 40, 1)];
    assert_eq!(required(&high, 1), Err(SetupError::TooHigh(high[0])));
    let layout = required(&[frames(0, 10)], 4).unwrap();
    let setup = Setup { ranges: &[frames(0, 10)], storage: &mut [], table: None, reserve: 0 };
    // SAFETY: nothing is set up at all.
    let made = unsafe {
        FrameAllocator::<_, _, pagoda_sync::RawSpin>::new(
            setup,
            super::rig::Turns::default(),
            NoMap,
        )
    };
    assert_eq!(made.map(|_| ()).unwrap_err(), SetupError::Storage(layout));
    assert_eq!(required(&[], 1).map(|layout| layout.size() < 12288), Ok(true));
}

struct NoMap;
// SAFETY: never asked.
unsafe impl PhysMap for NoMap {
    fn ptr(&self, _: PhysAddr) -> *mut u8 {
        core::ptr::null_mut()
    }
}

#[test]
#[cfg_attr(miri, ignore)] // half a gigabyte of metadata
fn four_tib_with_a_hole_start_at_once_and_end_as_they_began() {
    // 3 GiB low, the rest from 1 TiB up, as on machines with the AMD window.
    let tib = 1 << 28;
    let mut ground = Ground::new(&[(0x100, 3 * GIB - 0x100), (tib, 4 * tib - 3 * GIB)], true);
    let begun = std::time::Instant::now();
    let allocator = ground.allocator(0, 0);
    let block = allocator.alloc(order(18)).unwrap();
    assert_eq!(block.range().end_number(), 5 * tib - 3 * GIB);
    let one = allocator.alloc(Request::frame()).unwrap();
    assert_eq!(one.start(), frame(tib));
    let huge = allocator.alloc(Request::count(1 << 29)).unwrap();
    allocator.free(huge).unwrap();
    allocator.free(one).unwrap();
    allocator.free(block).unwrap();
    assert_eq!(allocator.stats().used, 0);
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
}

#[test]
fn metadata_stays_below_36_kib_per_gib() {
    // Besides the parts of each CPU, which are below 12 KiB.
    let bytes = |gib, cpus| required(&[frames(0, gib * GIB)], cpus).unwrap().size() as u64;
    for gib in [1, 16, 4096] {
        assert!(bytes(gib, 0) <= gib * 36 * 1024, "{} for {gib} GiB", bytes(gib, 0));
        assert!(bytes(gib, 8) - bytes(gib, 0) <= 8 * 12288);
    }
    assert!(required(&[frames(0, 4096)], 0).unwrap().size() <= 36 * 1024);
}

#[test]
#[cfg_attr(miri, ignore)] // what is seen after 60,000 steps
fn movable_and_unmovable_frames_stand_in_different_blocks() {
    for with_table in [false, true] {
        let mut ground = Ground::new(&[(GIB, 64 * 512)], with_table);
        let allocator = ground.allocator(0, 1);
        let (mut fixed, mut moving) = (Vec::new(), Vec::new());
        let mut seed = 1u32;
        for _ in 0..60_000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let fix = seed >> 29 == 0;
            let (list, most) = if fix { (&mut fixed, 2000) } else { (&mut moving, 20_000) };
            if list.len() < most {
                let mobility = if fix { Mobility::Unmovable } else { Mobility::Movable };
                list.push(allocator.alloc(Request::frame().mobility(mobility)).unwrap());
            } else {
                let which = (seed >> 3) as usize % list.len();
                allocator.free(list.swap_remove(which)).unwrap();
            }
        }
        allocator.audit();
        let blocks = |list: &[OwnedFrames]| {
            let blocks = list.iter().map(|owned| owned.start().number() >> 9);
            blocks.collect::<std::collections::BTreeSet<_>>()
        };
        assert!(blocks(&fixed).is_disjoint(&blocks(&moving)));
        assert!(blocks(&fixed).len() <= 5, "{} blocks", blocks(&fixed).len());
        // Emptying the block that is named first makes a 2 MiB block, if all in it can be moved.
        while let Some((block, used)) = allocator.block_to_empty().filter(|_| with_table) {
            let mut named = 0;
            allocator.obstacles(block, |one| named += one.range.count());
            assert!(named <= used, "{named} of {used}");
            let before = allocator.owners_of_blocks(None).free;
            moving = moving
                .into_iter()
                .filter_map(|owned| {
                    let inside = block.contains(owned.start());
                    if inside { allocator.free(owned).map(|()| None).unwrap() } else { Some(owned) }
                })
                .collect();
            allocator.drain_cpu().unwrap();
            let _ = allocator.alloc(order(18)).unwrap_err(); // empties the shelves
            assert!(allocator.owners_of_blocks(None).free > before);
        }
        for owned in fixed.into_iter().chain(moving) {
            allocator.free(owned).unwrap();
        }
    }
}

#[test]
fn the_last_frame_can_be_had_for_either_use() {
    for mobility in Mobility::ALL {
        // Under an interpreter, three chunks of which little is there.
        let part = if cfg!(miri) { 24 } else { 512 };
        let ranges = [0, 512, 1024].map(|place| (GIB + place, part));
        let mut ground = Ground::new(&ranges, true);
        let allocator = ground.allocator(0, 1);
        let request = |index| {
            let other = if index == 0 { Mobility::Unmovable } else { Mobility::Movable };
            Request::frame().mobility(if index < 2 { other } else { mobility })
        };
        let all: Vec<_> = (0..3 * part).map(|i| allocator.alloc(request(i)).unwrap()).collect();
        assert_eq!(allocator.alloc(request(5)), Err(AllocError::NoMemory));
        all.into_iter().for_each(|owned| allocator.free(owned).unwrap());
        allocator.audit();
    }
}

#[test]
fn linux_would_say_it_so() {
    let mut ground = Ground::new(&[(0x10, 0x1ff0), (GIB, 1024)], false);
    let allocator = ground.allocator(0, 1);
    allocator.set_watermarks(Watermarks { min: 100, low: 200, high: 300 });
    assert_eq!(allocator.pressure(), Pressure::None);
    let page = allocator.alloc(order(1)).unwrap();
    let snapshot = allocator.snapshot();
    let free: u64 = snapshot.zones.iter().map(|zone| zone.free_frames()).sum();
    assert_eq!(free, allocator.stats().free);
    let mut text = std::string::String::new();
    snapshot.buddyinfo(&mut text).unwrap();
    assert_eq!(
        text,
        "Node 0, zone      DMA      0      0      0      0      1      1      1      1      1      1      3 \n\
         Node 0, zone    DMA32      0      1      1      1      1      1      1      1      1      1      4 \n"
    );
    text.clear();
    snapshot.pagetypeinfo(&mut text).unwrap();
    assert!(text.contains("Node    0, zone    DMA32, type    Unmovable      0      1"), "{text}");
    assert!(text.contains("Node 0, zone    DMA32            1            9 "), "{text}");
    text.clear();
    snapshot.zoneinfo(&mut text).unwrap();
    assert!(text.contains("Node 0, zone      DMA\n  pages free     4080\n"), "{text}");
    assert!(text.contains("        spanned  259072\n        present  5120\n"), "{text}");
    allocator.free(page).unwrap();
    let all = allocator.alloc_at(frames(0x10, 0x1ff0), Kind(0)).unwrap();
    let some = allocator.alloc(Request::count(850)).unwrap();
    assert_eq!(allocator.pressure(), Pressure::Low { wanted: 126 });
    let rest = allocator.alloc_at(frames(some.range().end_number().min(GIB + 900), 80), Kind(0));
    assert_eq!(allocator.pressure(), Pressure::Critical { wanted: 206 });
    [all, some, rest.unwrap()].into_iter().for_each(|owned| allocator.free(owned).unwrap());
}
