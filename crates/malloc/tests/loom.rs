//! Every interleaving of what threads push to slabs and what their owner takes.
//! `RUSTFLAGS="--cfg loom" cargo test --release -p pagoda-malloc --test loom`
#![cfg(loom)]

#[path = "../src/remote.rs"]
#[allow(dead_code)]
mod remote;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use remote::{Chain, Remote};

/// Two slabs with their words and the links of their blocks, and their owner's stack.
struct Slabs {
    words: [Remote; 2],
    links: [[AtomicU32; 3]; 2],
    announced: AtomicU32,
    owned: [AtomicU32; 2],
}

fn slabs() -> Arc<Slabs> {
    Arc::new(Slabs {
        words: [Remote::new(), Remote::new()],
        links: [[(); 3], [(); 3]].map(|links| links.map(|()| AtomicU32::new(99))),
        announced: AtomicU32::new(0),
        owned: [AtomicU32::new(0), AtomicU32::new(0)],
    })
}

/// As in `delivery`: push, and announce if need be.
fn push(slabs: &Slabs, unit: usize, block: u32, generation: u16) -> bool {
    let word = &slabs.words[unit];
    let top = slabs.announced.load(Ordering::Relaxed);
    let pushed = word.push(Chain { first: block + 1, count: 1 }, generation, top, |behind| {
        slabs.links[unit][block as usize].store(behind, Ordering::Relaxed);
    });
    if pushed.announce {
        announce(slabs, unit, top, generation);
    }
    pushed.announce
}

fn announce(slabs: &Slabs, unit: usize, mut top: u32, generation: u16) {
    let (word, number) = (&slabs.words[unit], unit as u32 + 1);
    while let Err(now) =
        slabs.announced.compare_exchange(top, number, Ordering::Release, Ordering::Relaxed)
    {
        top = now;
        word.set_next(top, generation);
    }
}

/// As in `sweep`: takes the stack, empties the words that hold all `blocks` and puts the others back.
fn sweep(slabs: &Slabs, blocks: u32) -> u32 {
    let (mut swept, mut number) = (0, slabs.announced.swap(0, Ordering::Acquire));
    while number != 0 {
        let unit = number as usize - 1;
        let (count, next) = slabs.words[unit].look(0);
        assert_ne!(count, 0, "a slab on the stack twice");
        if count == blocks {
            assert_eq!(slabs.words[unit].take(0).0.count, blocks, "nobody has a block to push");
            swept |= 1 << unit;
        } else {
            let top = slabs.announced.load(Ordering::Relaxed);
            slabs.words[unit].set_next(top, 0);
            announce(slabs, unit, top, 0);
        }
        number = next;
    }
    swept
}

/// As in `small`: takes the stack, and each slab on it. The links must be what the pushers wrote.
fn drain(slabs: &Slabs, generation: u16) {
    let mut number = slabs.announced.swap(0, Ordering::Acquire);
    while number != 0 {
        let unit = number as usize - 1;
        let (chain, next) = slabs.words[unit].take(generation);
        assert_ne!(chain.count, 0, "a slab on the stack twice");
        let mut block = chain.first;
        for _ in 0..chain.count {
            assert!((1..4).contains(&block), "a link that nobody wrote");
            let bit = 1 << (block - 1);
            let before = slabs.owned[unit].fetch_or(bit, Ordering::Relaxed);
            assert_eq!(before & bit, 0, "a block taken twice");
            block = slabs.links[unit][block as usize - 1].load(Ordering::Relaxed);
        }
        assert_eq!(block, 0);
        number = next;
    }
}

fn owned(slabs: &Slabs) -> [u32; 2] {
    [0, 1].map(|unit| slabs.owned[unit].load(Ordering::Relaxed))
}

#[test]
fn everything_pushed_to_a_slab_comes_home_once() {
    loom::model(|| {
        let slabs = slabs();
        let threads: Vec<_> = (0..2)
            .map(|block| {
                let slabs = slabs.clone();
                thread::spawn(move || push(&slabs, 0, block, 0))
            })
            .collect();
        drain(&slabs, 0);
        threads.into_iter().for_each(|thread| _ = thread.join().unwrap());
        drain(&slabs, 0);
        assert_eq!(owned(&slabs), [0b11, 0]);
    });
}

#[test]
fn two_slabs_on_the_stack_are_both_found() {
    loom::model(|| {
        let slabs = slabs();
        let threads: Vec<_> = (0..2)
            .map(|unit| {
                let slabs = slabs.clone();
                thread::spawn(move || push(&slabs, unit, 2, 0))
            })
            .collect();
        drain(&slabs, 0);
        threads.into_iter().for_each(|thread| assert!(thread.join().unwrap()));
        drain(&slabs, 0);
        assert_eq!(owned(&slabs), [0b100, 0b100]);
    });
}

#[test]
fn who_pushes_behind_an_announcement_need_not_announce() {
    loom::model(|| {
        let slabs = slabs();
        assert!(push(&slabs, 1, 0, 0));
        let pusher = {
            let slabs = slabs.clone();
            thread::spawn(move || push(&slabs, 1, 1, 0))
        };
        let other = push(&slabs, 0, 0, 0);
        drain(&slabs, 0);
        let late = pusher.join().unwrap();
        assert!(other);
        assert_eq!(owned(&slabs)[1] & 0b10 == 0, late, "taken with the first, or announced anew");
        drain(&slabs, 0);
        assert_eq!(owned(&slabs), [0b1, 0b11]);
    });
}

#[test]
fn what_was_pushed_before_a_fork_counts_for_nothing() {
    loom::model(|| {
        let slabs = slabs();
        assert!(push(&slabs, 0, 0, 0));
        // The child: generation 1. The stack of generation 0 is gone.
        slabs.announced.store(0, Ordering::Relaxed);
        assert!(push(&slabs, 0, 1, 1));
        drain(&slabs, 1);
        assert_eq!(owned(&slabs), [0b10, 0]);
    });
}

#[test]
fn a_sweep_takes_whole_slabs_and_loses_no_others() {
    loom::model(|| {
        let slabs = slabs();
        // One of two blocks is there: the other comes while somebody sweeps.
        assert!(push(&slabs, 0, 0, 0) && push(&slabs, 1, 2, 0));
        let pusher = {
            let slabs = slabs.clone();
            thread::spawn(move || push(&slabs, 0, 1, 0))
        };
        let swept = sweep(&slabs, 2);
        assert!(!pusher.join().unwrap(), "the slab is announced, or in the sweeper's hands");
        assert_eq!(swept & 0b10, 0);
        drain(&slabs, 0);
        assert_eq!(owned(&slabs), [if swept == 0 { 0b11 } else { 0 }, 0b100]);
    });
}

#[test]
fn a_sweep_and_the_owner_share_what_is_on_the_stack() {
    loom::model(|| {
        let slabs = slabs();
        assert!(push(&slabs, 0, 0, 0) && !push(&slabs, 0, 1, 0) && push(&slabs, 1, 2, 0));
        let sweeper = {
            let slabs = slabs.clone();
            thread::spawn(move || sweep(&slabs, 2))
        };
        drain(&slabs, 0);
        let swept = sweeper.join().unwrap();
        drain(&slabs, 0);
        assert_eq!(owned(&slabs), [if swept == 0 { 0b11 } else { 0 }, 0b100]);
    });
}
