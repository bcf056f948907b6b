//! Every internal failure once: what was refused changed nothing, and nothing is lost.
#![allow(unsafe_code)] // makes frames that were owned before

use std::vec::Vec;

use pagoda_addr::{FrameRange, Order};

use super::rig::{Frames, Ground, frame, frames};
use crate::*;

const START: u64 = 1 << 20;
const COUNT: u64 = 2048;

/// What somebody owns, and what was refused.
#[derive(Default)]
struct World {
    owned: Vec<FrameRange>,
    refused: usize,
    seldom: bool,
    /// Is the failure behind us?
    fired: bool,
}

/// How much of everything.
struct Size {
    rounds: usize,
    few: usize,
    many: usize,
    back: usize,
    again: usize,
}

impl World {
    fn alloc(&mut self, allocator: &Frames<'_>, request: Request) {
        let before = self.owned.len() as u64;
        match allocator.alloc(request) {
            Ok(owned) => self.owned.push(owned.into_range()),
            Err(error) => {
                assert_eq!(error.blame(), Blame::Exhaustion, "{error}");
                self.refused += 1;
                assert_eq!(self.owned.len() as u64, before);
            }
        }
        self.check(allocator);
    }

    fn free(&mut self, allocator: &Frames<'_>, place: usize) {
        if !self.owned.is_empty() {
            let range = self.owned.swap_remove(place % self.owned.len());
            // Giving back never fails.
            allocator.free_range(range).unwrap();
            self.check(allocator);
        }
    }

    /// After each step where that is affordable; else after the one that has just failed.
    fn check(&mut self, allocator: &Frames<'_>) {
        let fired = !allocator.caches.failing.is_set();
        if self.seldom && fired == self.fired {
            return;
        }
        self.fired = fired;
        self.check_now(allocator);
    }

    fn check_now(&self, allocator: &Frames<'_>) {
        let stats = allocator.stats();
        assert_eq!(stats.free + stats.cached + stats.used, stats.total, "conservation");
        let away = COUNT - stats.total;
        assert_eq!(stats.used, self.owned.iter().map(|range| range.count()).sum::<u64>());
        assert!(away <= 300);
    }
}

/// A bit of everything.
fn scenario(allocator: &Frames<'_>, world: &mut World, size: &Size) {
    let movable = Request::frame().mobility(Mobility::Movable);
    for round in 0..size.rounds {
        allocator.cpus().0.set(round % 2);
        for _ in 0..size.few {
            world.alloc(allocator, Request::frame());
            world.alloc(allocator, movable);
        }
        world.alloc(allocator, Request::count(37));
        world.alloc(allocator, Request::order(Order::LARGE));
        world.alloc(allocator, Request::frame().zeroed());
        let _ = allocator.fill_zeroed().unwrap();
        world.check(allocator);
        world.alloc(allocator, movable.zeroed());
        // More than a magazine holds goes to the depot, and comes from it on the other CPU.
        for _ in 0..size.many {
            world.alloc(allocator, movable);
        }
        allocator.cpus().0.set((round + 1) % 2);
        for place in 0..size.back {
            world.free(allocator, place * 7);
        }
        for _ in 0..size.again {
            world.alloc(allocator, movable);
        }
    }
    // All there is, and more.
    while world.refused < 2 {
        world.alloc(allocator, Request::count(64));
    }
    let singles: Vec<_> = world.owned.iter().filter(|range| range.count() == 1).collect();
    let starts: Vec<_> = singles.iter().map(|range| range.start()).collect();
    allocator.table().share_many(&starts).unwrap();
    assert_eq!(allocator.release_many(&starts), Ok(0));
    assert_eq!(allocator.release_many(&starts), Ok(starts.len()));
    world.owned.retain(|range| range.count() != 1);
    world.check(allocator);
    let leaving = frames(START + 100, 300);
    if allocator.offline(leaving, |_, _| ()).is_ok() {
        world.check(allocator);
        world.alloc(allocator, Request::frame());
        allocator.online(leaving).unwrap();
    }
    world.check(allocator);
    let _ = allocator.empty_block(|_| false);
    world.check_now(allocator);
    allocator.drain_cpu().unwrap();
}

/// One run for each failure, `step` after the last; returns how many there were.
fn sweep(size: &Size, seldom: bool, step: impl Fn(u64) -> u64) -> u64 {
    let mut failures = 0;
    let mut nth = 1;
    loop {
        let mut ground = Ground::new(&[(START, COUNT)], true);
        let allocator = ground.allocator(20, COUNT as usize);
        let failing = &allocator.caches.failing;
        failing.set(nth);
        let mut world = World { seldom, ..World::default() };
        scenario(&allocator, &mut world, size);
        if failing.is_set() {
            return failures;
        }
        failures += 1;
        for range in world.owned {
            allocator.free_range(range).unwrap();
        }
        let stats = allocator.stats();
        assert_eq!((stats.used, stats.total), (0, COUNT), "failure {nth}");
        for cpu in 0..2 {
            allocator.cpus().0.set(cpu);
            allocator.drain_cpu().unwrap();
        }
        allocator.audit();
        let all = allocator.alloc(Request::count(COUNT).class(Class::Reserve)).unwrap();
        allocator.free(all).unwrap();
        nth += step(nth);
    }
}

#[test]
#[cfg_attr(miri, ignore)] // hundreds of scenarios
fn internal_failures_now_and_then_change_nothing_and_lose_nothing() {
    let size = Size { rounds: 3, few: 70, many: 300, back: 420, again: 100 };
    // Most questions come from the fast paths, all alike: later ones are taken in larger steps.
    let failures = sweep(&size, false, |nth| 1 + nth / 40);
    assert!(failures > 100, "{failures}");
}

#[test]
#[cfg_attr(miri, ignore)] // a thousand scenarios
fn every_internal_failure_once_changes_nothing_and_loses_nothing() {
    // One round, with as much as fills a magazine, sends a batch to the depot and takes it out.
    let size = Size { rounds: 1, few: 10, many: 340, back: 360, again: 70 };
    let failures = sweep(&size, true, |_| 1);
    assert!(failures > 500, "{failures}");
}

#[test]
fn each_contradiction_is_named_where_it_is_found() {
    let one = frame(START);
    let range = FrameRange::single(one);
    let lie = |range| {
        // SAFETY: a lie about a frame that is only a number.
        unsafe { OwnedFrames::from_range(range) }
    };
    let fresh = |test: &dyn Fn(&Frames<'_>)| {
        let mut ground = Ground::new(&[(START, 1024)], true);
        test(&ground.allocator(0, 0));
    };
    let disturbed = Corruption::CacheDisturbed { frame: one };
    // A frame on the stack that somebody owns: at the hand-out.
    fresh(&|allocator| {
        let owned = allocator.alloc(Request::frame()).unwrap();
        assert_eq!(owned.start(), one);
        allocator.free(owned).unwrap();
        allocator.own_again_for_test(one);
        assert_eq!(allocator.alloc(Request::frame()), Err(AllocError::Corrupt(disturbed)));
        // The others are sound.
        let next = allocator.alloc(Request::frame()).unwrap();
        allocator.free(next).unwrap();
    });
    // The same on its way back to the core.
    fresh(&|allocator| {
        let owned = allocator.alloc(Request::frame()).unwrap();
        allocator.free(owned).unwrap();
        allocator.own_again_for_test(one);
        assert_eq!(allocator.drain_cpu(), Err(disturbed));
        assert_eq!(allocator.drain_cpu(), Ok(()));
        assert_eq!(allocator.stats().free, 1023);
        // It has an owner, after all, who can give it back.
        allocator.free(lie(range)).unwrap();
        allocator.drain_cpu().unwrap();
        assert_eq!(allocator.stats().free, 1024);
        allocator.audit();
    });
    // A free bit for an owned frame: at the free, and at the next hand-out.
    fresh(&|allocator| {
        let owned = allocator.alloc(Request::count(3)).unwrap();
        let owned = owned.into_range();
        allocator.corrupt_for_test(owned);
        let free = Corruption::OwnedButFree { frame: owned.start() };
        assert_eq!(allocator.free_range(owned), Err(FreeError::Corrupt(free)));
        let twice = Corruption::HandedOutTwice { frame: owned.start() };
        let again = allocator.alloc_at(owned, Kind(0));
        assert_eq!(again, Err(AllocError::Corrupt(twice)));
    });
    assert_eq!(AllocError::Corrupt(disturbed).blame(), Blame::Corruption);
}
