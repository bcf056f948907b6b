use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use super::{explore, leak};
use crate::{CpuId, Members};

const OLD: usize = 1;
const NEW: usize = 2;

struct World {
    members: Members,
    /// A page-table entry. Hardware reads it, with no order of its own: `Relaxed`.
    entry: AtomicUsize,
}

fn world() -> &'static World {
    leak(World { members: Members::default(), entry: AtomicUsize::new(OLD) })
}

impl World {
    /// The one who changes. Does it tell `cpu`?
    fn change(&self, cpu: CpuId) -> bool {
        self.entry.store(NEW, Ordering::Release);
        self.members.advance();
        self.members.cpus().iter().any(|member| member == cpu)
    }
}

#[test]
fn a_cpu_that_joins_sees_the_change_or_is_told() {
    explore(9, || {
        let world = world();
        let cpu = CpuId::new(1).unwrap();
        let joining = thread::spawn(move || {
            world.members.join(cpu);
            world.entry.load(Ordering::Relaxed)
        });
        let told = world.change(cpu);
        let remembered = joining.join().unwrap();
        assert!(told || remembered == NEW, "stale, and nobody tells");
    });
}

#[test]
fn a_cpu_that_comes_back_sees_the_generation_or_is_told() {
    explore(9, || {
        let world = world();
        let cpu = CpuId::new(1).unwrap();
        // It was there before, remembers the entry, and left with that in its TLB.
        let before = world.members.join(cpu);
        let kept = world.entry.load(Ordering::Relaxed);
        world.members.leave(cpu);
        let coming = thread::spawn(move || {
            let now = world.members.join(cpu);
            // The same generation: what it kept is still good. Else it forgets, and walks.
            if now == before { kept } else { world.entry.load(Ordering::Relaxed) }
        });
        let told = world.change(cpu);
        let used = coming.join().unwrap();
        assert!(told || used == NEW, "stale, and nobody tells");
    });
}

#[test]
fn a_generation_vouches_for_the_changes_before_it() {
    explore(9, || {
        let world = world();
        let cpu = CpuId::new(1).unwrap();
        let joining = thread::spawn(move || {
            let generation = world.members.join(cpu);
            (generation, world.entry.load(Ordering::Relaxed))
        });
        world.change(cpu);
        let (generation, entry) = joining.join().unwrap();
        assert!(generation == 0 || entry == NEW, "the new generation with the old entry");
    });
}
