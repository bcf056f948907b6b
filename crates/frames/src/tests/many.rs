//! Several CPUs.
#![allow(unsafe_code)] // switches poisoning on

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;
use std::vec::Vec;

use pagoda_addr::{FrameRange, Order};
use pagoda_sync::MAX_CPUS;
use pagoda_sync::host::ThreadCpus;

use super::rig::{Ground, Turns, frame};
use crate::*;

const START: u64 = 1 << 20;

#[test]
fn threads_that_allocate_free_and_hand_over_never_share_a_frame() {
    const COUNT: u64 = if cfg!(miri) { 512 } else { 8 * 512 };
    let rounds = if cfg!(miri) { 150 } else { 20_000 };
    let mut ground = Ground::with_cpus(&[(START, COUNT)], true, MAX_CPUS);
    let allocator = ground.allocator_for(ThreadCpus, 0, COUNT as usize);
    // SAFETY: the arena is filled.
    unsafe { allocator.set_poison(!cfg!(miri)) };
    let owners: Vec<_> = (0..COUNT).map(|_| AtomicU64::new(0)).collect();
    let handed: Mutex<Vec<FrameRange>> = Mutex::new(Vec::new());
    let own = |range: FrameRange, who: u64| {
        for f in range.iter() {
            let old = owners[(f.number() - START) as usize].swap(who, Ordering::SeqCst);
            assert!((old == 0) != (who == 0), "{f:?} had owner {old}, now {who}");
        }
    };
    std::thread::scope(|scope| {
        for who in 1..=4u64 {
            let (allocator, handed, own) = (&allocator, &handed, &own);
            scope.spawn(move || {
                let mut mine: Vec<FrameRange> = Vec::new();
                let mut random = who;
                for _ in 0..rounds {
                    random =
                        random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let dice = random >> 40;
                    match dice % 8 {
                        0..4 if mine.len() < 500 => {
                            let order = if dice % 64 == 0 { dice / 64 % 10 } else { 0 };
                            let request = Request::order(Order::new(order as u8).unwrap());
                            let zeroed = dice % 512 == 8;
                            let request = if zeroed { request.zeroed() } else { request };
                            if let Ok(owned) = allocator.alloc(request) {
                                own(owned.range(), who);
                                mine.push(owned.into_range());
                            }
                        }
                        6 if dice % 1024 == 14 => _ = allocator.fill_zeroed().unwrap(),
                        7 if dice % 32 == 7 => handed.lock().unwrap().extend(mine.pop()),
                        6 if dice % 32 == 6 => mine.extend(handed.lock().unwrap().pop()),
                        _ if !mine.is_empty() => {
                            let range = mine.swap_remove(dice as usize / 8 % mine.len());
                            own(range, 0);
                            allocator.free_range(range).unwrap();
                        }
                        _ => {}
                    }
                }
                for range in mine {
                    own(range, 0);
                    allocator.free_range(range).unwrap();
                }
                allocator.drain_cpu().unwrap();
            });
        }
    });
    for range in handed.into_inner().unwrap() {
        allocator.free_range(range).unwrap();
    }
    allocator.audit();
    let stats = allocator.stats();
    assert_eq!((stats.used, stats.free + stats.cached), (0, COUNT));
    let all = (0..COUNT / 512).map(|_| allocator.alloc(Request::order(Order::LARGE)));
    all.for_each(|owned| _ = owned.unwrap().into_range());
}

#[test]
fn a_double_free_that_races_on_two_cpus_is_caught_when_the_caches_drain() {
    for with_table in [false, true] {
        let mut ground = Ground::new(&[(START, 1024)], with_table);
        let allocator = ground.allocator(0, 0);
        let victim = allocator.alloc(Request::frame()).unwrap().into_range();
        // The second CPU read the entry before the first one wrote it.
        allocator.free(OwnedFrames::new(victim)).unwrap();
        allocator.cpus().0.set(1);
        allocator.own_again_for_test(victim.start());
        allocator.free(OwnedFrames::new(victim)).unwrap();
        let evidence = Corruption::CacheDisturbed { frame: victim.start() };
        assert_eq!(allocator.drain_cpu(), Ok(()));
        allocator.cpus().0.set(0);
        assert_eq!(allocator.drain_cpu(), Err(evidence));
        assert_eq!(allocator.stats().free, 1024);
        allocator.audit();
    }
}

#[test]
fn stock_of_other_cpus_is_asked_for_before_a_large_block_is_refused() {
    let mut ground = Ground::new(&[(START, 512)], true);
    let allocator = ground.allocator(0, 0);
    allocator.cpus().0.set(3);
    let one = allocator.alloc(Request::frame()).unwrap();
    allocator.free(one).unwrap();
    assert_eq!(allocator.stats().cached, 64);
    allocator.cpus().0.set(0);
    let large = Request::order(Order::LARGE);
    assert_eq!(allocator.alloc(large), Err(AllocError::NoMemory));
    // The owner answers at its next call, whatever that is.
    allocator.cpus().0.set(3);
    let one = allocator.alloc(Request::frame()).unwrap();
    allocator.free(one).unwrap();
    allocator.drain_cpu().unwrap();
    allocator.cpus().0.set(0);
    let block = allocator.alloc(large).unwrap();
    allocator.free(block).unwrap();
}

#[test]
#[cfg_attr(miri, ignore)] // what is seen after 30,000 steps
fn frames_freed_on_another_cpu_do_not_pile_up_there() {
    let mut ground = Ground::new(&[(START, 4096)], true);
    let allocator = ground.allocator(0, 0);
    for _ in 0..100 {
        allocator.cpus().0.set(0);
        let taken: Vec<_> = (0..300).map(|_| allocator.alloc(Request::frame()).unwrap()).collect();
        allocator.cpus().0.set(1);
        taken.into_iter().for_each(|owned| allocator.free(owned).unwrap());
        let highest = START + 4096 - allocator.stats().free;
        assert!(
            highest <= START + 300 + 4 * 64 * Turns::LIMIT as u64 + 400,
            "the pool creeps upwards"
        );
    }
}

#[test]
#[cfg_attr(miri, ignore)] // what is seen after 130,000 steps
fn turnover_leaves_the_free_memory_in_large_blocks() {
    // 64 MiB, 50 % used, 16 turnovers at random.
    const COUNT: u64 = 32 * 512;
    let mut ground = Ground::new(&[(START, COUNT)], true);
    let allocator = ground.allocator(0, 0);
    let mut owned: Vec<_> =
        (0..COUNT / 2).map(|_| allocator.alloc(Request::frame()).unwrap().into_range()).collect();
    let mut random = 1u64;
    for step in 0..8 * COUNT {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        allocator.cpus().0.set((step / 1000 % 4) as usize);
        let place = (random >> 33) as usize % owned.len();
        allocator.free_range(owned[place]).unwrap();
        owned[place] = allocator.alloc(Request::frame()).unwrap().into_range();
    }
    let free = allocator.stats().free;
    let large = allocator.available(Order::LARGE) * 512;
    assert!(large * 100 >= free * 90, "{large} of {free} free frames are in 2 MiB blocks");
    assert!(owned.iter().all(|range| allocator.table().begins(range.start()).is_some()));
    assert!(allocator.table().begins(frame(3)).is_none());
}
