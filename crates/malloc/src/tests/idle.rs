//! When a helper is asked for, and what it gives back.

use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use super::rig::{Rig, must_be_empty, rig};
use crate::idle::Seen;

const EVERY: u32 = u32::MAX;

/// Up and down by some MiB, until malloc expects it to go on.
fn waves(rig: &Rig, blocks: usize) {
    for _ in 0..if cfg!(miri) { 2 } else { 4 } {
        let bytes = |n: usize| if n % 20 == 0 { 17_000 } else { 1 + n * 37 % 1000 };
        let all: Vec<_> = (0..blocks).map(|n| rig.alloc(bytes(n))).collect();
        assert!(all.iter().all(|at| !at.is_null()));
        all.into_iter().for_each(|at| unsafe { rig.free(at) });
    }
}

#[test]
fn what_waits_goes_back_when_nothing_was_taken_for_a_period() {
    let rig = rig();
    waves(&rig, 3000);
    let before = rig.stats();
    assert!(before.pool.dirty > 32 && before.medium.dirty > 128 << 10, "{before}");
    let mut seen = Seen::default();
    let left = rig.settle_parts(EVERY, &mut seen);
    assert_eq!(rig.stats(), before, "nobody knows yet whether it is wanted");
    assert_eq!(rig.settle_parts(left, &mut seen), 0);
    let after = rig.stats();
    assert_eq!(after.pool.dirty, 0);
    assert!(after.medium.dirty < 64 << 10, "{after}");
    waves(&rig, 3000);
    must_be_empty(&rig);
}

#[test]
fn what_is_in_use_stays() {
    let rig = rig();
    waves(&rig, 3000);
    let before = rig.stats();
    let mut seen = Seen::default();
    let mut left = rig.settle_parts(EVERY, &mut seen);
    for _ in 0..if cfg!(miri) { 1 } else { 5 } {
        waves(&rig, 3000);
        left = rig.settle_parts(left, &mut seen);
        assert_ne!(left, 0);
    }
    let after = rig.stats();
    assert!(after.pool.dirty >= before.pool.dirty, "{before}{after}");
    must_be_empty(&rig);
}

#[test]
fn slabs_too_few_for_a_sweep_go_back_too() {
    let rig = rig();
    thread::scope(|scope| {
        let rig = &rig;
        let all = scope.spawn(move || {
            let all: Vec<_> = (0..600).map(|_| rig.alloc(500) as usize).collect();
            // It sleeps for ever.
            all
        });
        let all = all.join().unwrap();
        all.into_iter().for_each(|at| unsafe { rig.free(at as *mut u8) });
        let before = rig.stats().slab_bytes();
        let mut seen = Seen::default();
        let left = rig.settle_parts(EVERY, &mut seen);
        rig.settle_parts(left, &mut seen);
        assert!(before > 250 << 10, "{before}");
        assert!(rig.stats().slab_bytes() <= 3 * crate::UNIT_BYTES, "a head, and a parcel");
    });
}

#[test]
#[cfg_attr(miri, ignore = "many blocks")]
fn a_helper_is_asked_for_once_and_only_by_several_threads_with_much_to_give_back() {
    let rig = rig();
    let asked = || rig.local.helpers.load(Relaxed);
    waves(&rig, 5000);
    assert_eq!(asked(), 0, "one thread needs none");
    rig.trim(0);
    let work = |blocks: usize| {
        let rig = &rig;
        thread::scope(|scope| {
            scope.spawn(move || {
                waves(rig, blocks);
                rig.thread_ends();
            });
        });
    };
    work(100);
    assert_eq!(asked(), 0, "little is not worth it");
    work(5000);
    assert_eq!(asked(), 1);
    work(5000);
    assert_eq!(asked(), 1, "there is one");
    rig.before_fork();
    rig.after_fork_in_child();
    waves(&rig, 5000);
    assert_eq!(asked(), 1, "a child has one thread");
    work(5000);
    assert_eq!(asked(), 2);
}
