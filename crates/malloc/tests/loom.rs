//! Every interleaving of what threads push to a slab and what its owner takes.
//! `RUSTFLAGS="--cfg loom" cargo test --release -p pagoda-malloc --test loom`
#![cfg(loom)]

#[path = "../src/remote.rs"]
#[allow(dead_code)]
mod remote;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use remote::{Chain, Remote, Standing};

/// A slab's word, the links of its blocks, and its owner's stack of announcements (one slab: a count).
struct Slab {
    word: Remote,
    links: [AtomicU32; 4],
    announced: AtomicU32,
}

fn slab(standing: Standing) -> Arc<Slab> {
    let links = [const { () }; 4].map(|()| AtomicU32::new(99));
    let slab = Slab { word: Remote::new(), links, announced: AtomicU32::new(0) };
    slab.word.reset(standing, 0);
    Arc::new(slab)
}

fn push(slab: &Slab, block: u32) {
    let announce = slab.word.push(Chain { first: block + 1, count: 1 }, 0, |behind| {
        slab.links[block as usize].store(behind, Ordering::Relaxed);
    });
    if announce {
        let others = slab.announced.fetch_add(1, Ordering::Release);
        assert_eq!(others, 0, "one-announcer");
    }
}

/// Walks a chain: the links must be what the pushers wrote.
fn walk(slab: &Slab, chain: Chain) -> u32 {
    let (mut next, mut blocks) = (chain.first, 0);
    for _ in 0..chain.count {
        assert!(next != 0 && next < 5, "a link that nobody wrote");
        blocks |= 1 << (next - 1);
        next = slab.links[next as usize - 1].load(Ordering::Relaxed);
    }
    assert_eq!(next, 0);
    blocks
}

#[test]
fn everything_pushed_is_taken_once() {
    loom::model(|| {
        let slab = slab(Standing::Listed);
        let threads: Vec<_> = (0..2)
            .map(|block| {
                let slab = slab.clone();
                thread::spawn(move || push(&slab, block))
            })
            .collect();
        let early = walk(&slab, slab.word.take(0));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let late = walk(&slab, slab.word.take(0));
        assert_eq!(early & late, 0);
        assert_eq!(early | late, 0b11);
        assert_eq!(slab.announced.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn a_full_slab_is_announced_by_exactly_one() {
    loom::model(|| {
        let slab = slab(Standing::Full);
        let threads: Vec<_> = (0..2)
            .map(|block| {
                let slab = slab.clone();
                thread::spawn(move || push(&slab, block))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(slab.announced.swap(0, Ordering::Acquire), 1);
        assert_eq!(walk(&slab, slab.word.take(0)), 0b11);
    });
}

#[test]
fn the_owner_reopens_a_slab_or_hears_of_it() {
    loom::model(|| {
        let slab = slab(Standing::Full);
        let pusher = {
            let slab = slab.clone();
            thread::spawn(move || push(&slab, 0))
        };
        let reopened = slab.word.reopen(0);
        pusher.join().unwrap();
        // Either the owner has it back on its list, or it was told: never neither, never both.
        assert_eq!(slab.announced.load(Ordering::Acquire), u32::from(!reopened));
        assert_eq!(walk(&slab, slab.word.take(0)), 1);
    });
}

#[test]
fn the_owner_fills_a_slab_or_sees_what_was_pushed() {
    loom::model(|| {
        let slab = slab(Standing::Listed);
        let pusher = {
            let slab = slab.clone();
            thread::spawn(move || push(&slab, 0))
        };
        let filled = slab.word.fill(0);
        if !filled {
            assert_eq!(walk(&slab, slab.word.take(0)), 1);
        }
        pusher.join().unwrap();
        if filled {
            assert_eq!(slab.announced.swap(0, Ordering::Acquire), 1);
            assert_eq!(walk(&slab, slab.word.take(0)), 1);
        }
    });
}

#[test]
fn what_was_pushed_before_a_fork_counts_for_nothing() {
    loom::model(|| {
        let slab = slab(Standing::Full);
        push(&slab, 0);
        // The child: generation 1. The announcement of generation 0 is gone with its stack.
        slab.announced.store(0, Ordering::Relaxed);
        let announce = slab.word.push(Chain { first: 2, count: 1 }, 1, |behind| {
            assert_eq!(behind, 0);
            slab.links[1].store(behind, Ordering::Relaxed);
        });
        assert!(announce);
        assert_eq!(walk(&slab, slab.word.take(1)), 0b10);
    });
}
