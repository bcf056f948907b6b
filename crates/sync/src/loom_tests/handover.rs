use loom::cell::{Cell, UnsafeCell};
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use super::{Played, explore, leak, two};
use crate::{CpuId, Cpus, HandOver, HandOverCell, PerCpu};

/// A cache for each CPU, of a count of things, and the pool into which they are drained.
struct World {
    caches: PerCpu<'static, Cell<usize>>,
    requests: HandOver<'static, Played>,
    pool: AtomicUsize,
    /// Written by the drainer, not atomically, read by who asked for the drain.
    note: UnsafeCell<usize>,
}

// SAFETY: loom watches the cells.
unsafe impl Sync for World {}

fn world() -> &'static World {
    leak(World {
        caches: PerCpu::new(two(|| Cell::new(0))),
        requests: HandOver::new(two(HandOverCell::new)),
        pool: AtomicUsize::new(10),
        note: UnsafeCell::new(0),
    })
}

impl World {
    /// Moves things from the pool to the cache of a CPU, which honours requests first.
    fn fill(&self, cpu: Played, count: usize) {
        let pin = cpu.pin();
        // SAFETY: `Played` alone, each number in one thread.
        let cache = unsafe { self.caches.get(&pin) };
        self.requests.honour(&pin, || self.drain(cache));
        self.pool.fetch_sub(count, Ordering::Relaxed);
        cache.set(cache.get() + count);
    }

    fn drain(&self, cache: &Cell<usize>) {
        let count = cache.replace(0);
        // SAFETY: loom stops the test if somebody else is at it.
        self.note.with_mut(|note| unsafe { *note += count });
        self.pool.fetch_add(count, Ordering::Relaxed);
    }
}

#[test]
fn what_was_asked_for_is_drained_when_the_ticket_is_done() {
    explore(9, || {
        let world = world();
        let owner = Played(1);
        // In the cache before the request.
        world.fill(owner, 2);
        let owning = thread::spawn(move || {
            world.fill(owner, 3);
            world.fill(owner, 1);
            let pin = owner.pin();
            // SAFETY: as in `fill`.
            let cache = unsafe { world.caches.get(&pin) };
            world.requests.rest(&pin, || world.drain(cache));
        });
        let ticket = world.requests.post(CpuId::new(1).unwrap());
        while !world.requests.is_done(ticket) {
            thread::yield_now();
        }
        assert!(world.pool.load(Ordering::Relaxed) >= 10 - 4);
        owning.join().unwrap();
        // SAFETY: the owner has ended.
        let noted = world.note.with(|note| unsafe { *note });
        assert_eq!((noted, world.pool.load(Ordering::Relaxed)), (6, 10), "nothing is lost");
    });
}

#[test]
fn a_drain_is_visible_to_who_asked_for_it() {
    explore(9, || {
        let world = world();
        let owner = Played(1);
        world.fill(owner, 2);
        let owning = thread::spawn(move || {
            // The only drain: at this pin if it sees the request, else when it rests.
            let pin = owner.pin();
            // SAFETY: as in `fill`.
            let cache = unsafe { world.caches.get(&pin) };
            if !world.requests.honour(&pin, || world.drain(cache)) {
                world.requests.rest(&pin, || world.drain(cache));
            }
        });
        let ticket = world.requests.post(CpuId::new(1).unwrap());
        while !world.requests.is_done(ticket) {
            thread::yield_now();
        }
        // SAFETY: loom stops the test if the drain did not happen before.
        assert_eq!(world.note.with(|note| unsafe { *note }), 2);
        owning.join().unwrap();
    });
}

#[test]
fn a_cpu_that_rests_owes_nothing_and_wakes_without_a_drain() {
    explore(9, || {
        let world = world();
        let owner = Played(1);
        let waking = thread::spawn(move || {
            world.fill(owner, 2);
            world.fill(owner, 1);
        });
        let ticket = world.requests.post(CpuId::new(1).unwrap());
        // Done at once, or at the owner's second pin; if it came later than that, at no time here.
        let done = world.requests.is_done(ticket);
        waking.join().unwrap();
        world.requests.honour(&owner.pin(), || {
            // SAFETY: the owner has ended.
            world.drain(unsafe { world.caches.of(CpuId::new(1).unwrap()) }.unwrap());
        });
        assert!(world.requests.is_done(ticket), "done before: {done}");
        // SAFETY: as above.
        let kept = unsafe { world.caches.of(CpuId::new(1).unwrap()) }.unwrap().get();
        assert_eq!(kept + world.pool.load(Ordering::Relaxed), 10);
    });
}
