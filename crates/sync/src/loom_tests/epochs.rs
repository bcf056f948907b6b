use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use super::{Played, explore, leak, two};
use crate::{Cpus, Deferral, EpochCell, Epochs};

/// Three objects, whose contents loom watches: freeing one writes to it. Links apart, as in a frame
/// table.
struct Objects {
    bodies: [UnsafeCell<usize>; 3],
    links: [UnsafeCell<Option<usize>>; 3],
}

impl Objects {
    fn new() -> Self {
        let bodies = core::array::from_fn(|_| UnsafeCell::new(7));
        let links = core::array::from_fn(|_| UnsafeCell::new(None));
        Self { bodies, links }
    }

    fn read(&self, item: usize) -> usize {
        // SAFETY: loom stops the test if somebody writes meanwhile.
        self.bodies[item].with(|body| unsafe { *body })
    }
}

// SAFETY: loom watches the cells.
unsafe impl Sync for Objects {}
// SAFETY: as above.
unsafe impl Send for Objects {}

// SAFETY: links are kept apart, and used by nobody else.
unsafe impl Deferral for Objects {
    type Item = usize;
    fn set_next(&self, item: usize, next: Option<usize>) {
        // SAFETY: as in `read`.
        self.links[item].with_mut(|link| unsafe { *link = next });
    }
    fn next(&self, item: usize) -> Option<usize> {
        // SAFETY: as in `read`.
        self.links[item].with(|link| unsafe { *link })
    }
    fn reclaim(&self, item: usize) {
        // SAFETY: as in `read`.
        self.bodies[item].with_mut(|body| unsafe { *body = 0 });
    }
}

struct World {
    epochs: Epochs<'static, Played, Objects>,
    /// The structure: which object is in it.
    current: AtomicUsize,
}

fn world() -> &'static World {
    // SAFETY: `Played` alone, each number in one thread.
    let epochs = unsafe { Epochs::new(two(EpochCell::new), Objects::new()) };
    leak(World { epochs, current: AtomicUsize::new(0) })
}

impl World {
    fn read(&self, cpu: Played) {
        let pin = cpu.pin();
        let _reading = self.epochs.read(&pin);
        let item = self.current.load(Ordering::Acquire);
        assert_eq!(self.epochs.deferral().read(item), 7, "object {item} was freed under a reader");
    }

    fn replace(&self, cpu: Played, by: usize) {
        let pin = cpu.pin();
        let old = self.current.swap(by, Ordering::AcqRel);
        // SAFETY: just unlinked, once.
        unsafe { self.epochs.defer(&pin, old) };
    }
}

#[test]
fn nobody_reads_what_was_freed() {
    explore(9, || {
        let world = world();
        let reader = thread::spawn(|| {
            let cpu = Played(1);
            world.epochs.enter(&cpu.pin());
            world.read(cpu);
            world.epochs.leave(&cpu.pin());
        });
        let cpu = Played(0);
        world.epochs.enter(&cpu.pin());
        world.replace(cpu, 1);
        let mut freed = 0;
        for _ in 0..3 {
            world.epochs.quiesce(&cpu.pin());
            freed += world.epochs.reclaim(&cpu.pin());
        }
        world.epochs.leave(&cpu.pin());
        reader.join().unwrap();
        freed += world.epochs.reclaim(&cpu.pin());
        freed += world.epochs.reclaim(&cpu.pin());
        assert_eq!(
            (freed, world.epochs.deferred(&cpu.pin())),
            (1, 0),
            "what waits is freed in the end"
        );
    });
}

#[test]
fn a_reader_that_quiesces_between_reads_is_waited_for_each_time() {
    explore(4, || {
        let world = world();
        let reader = thread::spawn(|| {
            let cpu = Played(1);
            world.epochs.enter(&cpu.pin());
            world.read(cpu);
            world.epochs.quiesce(&cpu.pin());
            world.read(cpu);
            world.epochs.leave(&cpu.pin());
            // User mode, and in again.
            world.epochs.enter(&cpu.pin());
            world.read(cpu);
            world.epochs.leave(&cpu.pin());
        });
        let cpu = Played(0);
        world.epochs.enter(&cpu.pin());
        for by in 1..3 {
            world.replace(cpu, by);
            world.epochs.quiesce(&cpu.pin());
            world.epochs.reclaim(&cpu.pin());
        }
        world.epochs.leave(&cpu.pin());
        world.epochs.reclaim(&cpu.pin());
        world.epochs.reclaim(&cpu.pin());
        reader.join().unwrap();
    });
}

#[test]
fn two_cpus_advance_and_free_what_is_their_own() {
    explore(9, || {
        let world = world();
        let work = |cpu: Played, by: usize| {
            world.epochs.enter(&cpu.pin());
            world.read(cpu);
            world.replace(cpu, by);
            world.epochs.quiesce(&cpu.pin());
            world.epochs.reclaim(&cpu.pin());
            world.epochs.leave(&cpu.pin());
            world.epochs.reclaim(&cpu.pin());
        };
        let other = thread::spawn(move || work(Played(1), 1));
        work(Played(0), 2);
        other.join().unwrap();
    });
}

#[test]
fn an_epoch_that_passed_unnoticed_does_not_count() {
    explore(4, || {
        let world = world();
        let reader = thread::spawn(|| {
            let cpu = Played(1);
            // Perhaps the one who defers still believes in the epoch before.
            world.epochs.try_advance();
            world.epochs.enter(&cpu.pin());
            world.read(cpu);
            world.epochs.leave(&cpu.pin());
        });
        let cpu = Played(0);
        world.epochs.enter(&cpu.pin());
        world.replace(cpu, 1);
        world.epochs.leave(&cpu.pin());
        world.epochs.reclaim(&cpu.pin());
        world.epochs.reclaim(&cpu.pin());
        reader.join().unwrap();
    });
}

#[test]
fn somebody_else_may_advance_while_the_one_who_defers_rests() {
    explore(3, || {
        let world = world();
        let reader = thread::spawn(|| {
            let cpu = Played(1);
            world.epochs.enter(&cpu.pin());
            world.read(cpu);
            world.epochs.leave(&cpu.pin());
        });
        let advancing = thread::spawn(|| {
            world.epochs.try_advance();
            world.epochs.try_advance();
        });
        let cpu = Played(0);
        world.replace(cpu, 1);
        world.epochs.reclaim(&cpu.pin());
        reader.join().unwrap();
        advancing.join().unwrap();
    });
}
