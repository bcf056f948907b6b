use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use super::{explore, leak};
use crate::spin::{Flag, lock, try_lock, unlock};

impl Flag for AtomicBool {
    fn exchange(&self, from: bool, to: bool, done: Ordering, not: Ordering) -> bool {
        self.compare_exchange(from, to, done, not).is_ok()
    }
    fn load(&self, order: Ordering) -> bool {
        self.load(order)
    }
    fn store(&self, value: bool, order: Ordering) {
        self.store(value, order);
    }
    fn relax() {
        loom::hint::spin_loop();
    }
}

struct World {
    flag: AtomicBool,
    guarded: UnsafeCell<usize>,
}

// SAFETY: loom watches the cell.
unsafe impl Sync for World {}

impl World {
    fn new() -> &'static Self {
        leak(Self { flag: AtomicBool::new(false), guarded: UnsafeCell::new(0) })
    }

    fn count(&self) {
        // SAFETY: loom stops the test if two are here.
        self.guarded.with_mut(|count| unsafe { *count += 1 });
        unlock(&self.flag);
    }
}

#[test]
fn one_holder_at_a_time_and_it_sees_what_the_last_one_did() {
    explore(9, || {
        let world = World::new();
        let work = move || {
            for _ in 0..2 {
                lock(&world.flag);
                world.count();
            }
        };
        let other = thread::spawn(work);
        work();
        other.join().unwrap();
        // SAFETY: the other has ended.
        assert_eq!(world.guarded.with(|count| unsafe { *count }), 4);
    });
}

#[test]
fn who_tries_gets_it_or_finds_it_held() {
    explore(9, || {
        let world = World::new();
        let other = thread::spawn(move || {
            lock(&world.flag);
            world.count();
        });
        let got = try_lock(&world.flag);
        if got {
            world.count();
        }
        other.join().unwrap();
        // SAFETY: the other has ended.
        let count = world.guarded.with(|count| unsafe { *count });
        assert_eq!(count, 1 + usize::from(got));
    });
}
