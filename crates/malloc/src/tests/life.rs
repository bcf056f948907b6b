//! Sizes, alignments, zeroes, giving back.

use std::sync::atomic::Ordering;

use super::rig::{must_be_empty, rig};
use crate::{MEDIUM_MAX, SMALL_MAX};

#[test]
fn every_size_and_alignment_is_served() {
    let rig = rig();
    let shifts = (0..=20).step_by(if cfg!(miri) { 5 } else { 1 });
    for align in shifts.map(|shift| 1 << shift) {
        for bytes in [0, 1, 16, 17, 1000, 1024, 1025, 4096, 70_000, 131_072, 131_073, 1_000_000] {
            let at = rig.alloc_aligned(bytes, align);
            assert!(!at.is_null(), "{bytes} at {align}");
            assert_eq!(at as usize % align, 0);
            unsafe {
                at.write_bytes(7, bytes);
                rig.free(at);
            }
        }
    }
    assert!(rig.alloc_aligned(8, 3).is_null());
    assert!(rig.alloc_aligned(8, 0).is_null());
    must_be_empty(&rig);
}

#[test]
fn absurd_sizes_get_nothing() {
    let rig = rig();
    for bytes in [usize::MAX, usize::MAX - 4096, isize::MAX as usize, 1 << 62] {
        assert!(rig.alloc(bytes).is_null());
        assert!(rig.alloc_zeroed(bytes).is_null());
        assert!(rig.alloc_aligned(bytes, 1 << 40).is_null());
        let at = rig.alloc(300_000);
        assert!(unsafe { rig.realloc(at, bytes) }.is_null());
        unsafe { rig.free(at) };
    }
    must_be_empty(&rig);
}

#[test]
fn a_pair_of_any_size_calls_the_system_only_at_first() {
    for bytes in [16, SMALL_MAX, 1500, 40_000, MEDIUM_MAX, 200_000, 1 << 20] {
        let rig = rig();
        for _ in 0..3 {
            let at = rig.alloc(bytes);
            unsafe { rig.free(at) };
        }
        rig.system.budget.store(1, Ordering::Relaxed);
        for _ in 0..if cfg!(miri) { 10 } else { 1000 } {
            let at = rig.alloc(bytes);
            assert!(!at.is_null());
            unsafe { rig.free(at) };
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "tens of thousands of blocks")]
fn freed_memory_goes_back_without_being_asked() {
    for bytes in [64, 1000, 5000, 100_000] {
        let rig = rig();
        let blocks: Vec<_> = (0..(8 << 20) / bytes).map(|_| rig.alloc(bytes)).collect();
        assert!(rig.stats().footprint() >= 7 << 20);
        for at in blocks {
            unsafe { rig.free(at) };
        }
        let left = rig.stats().footprint();
        assert!(left < 700 << 10, "{left} bytes kept of blocks of {bytes}");
    }
}

#[test]
fn large_blocks_grow_by_moving_pages() {
    let rig = rig();
    let mut at = rig.alloc(200_000);
    unsafe {
        at.write_bytes(3, 200_000);
        at = rig.realloc(at, 3_000_000);
        assert_eq!(*at.add(199_999), 3);
        at = rig.realloc(at, 100);
        assert_eq!(*at.add(99), 3);
        rig.free(at);
    }
    must_be_empty(&rig);
}

#[test]
fn medium_blocks_grow_in_place_when_there_is_room() {
    let rig = rig();
    let at = rig.alloc(2000);
    for bytes in (2000..100_000).step_by(1000) {
        assert_eq!(unsafe { rig.realloc(at, bytes) }, at);
    }
    assert_eq!(unsafe { rig.realloc(at, 1100) }, at);
    unsafe { rig.free(at) };
    must_be_empty(&rig);
}

#[test]
#[cfg_attr(miri, ignore = "tens of thousands of blocks")]
fn when_the_windows_are_full_mappings_serve() {
    let rig = rig();
    let blocks: Vec<_> = (0..20_000).map(|_| rig.alloc(1024)).collect();
    assert!(blocks.iter().all(|at| !at.is_null()));
    for at in blocks {
        unsafe { rig.free(at) };
    }
    must_be_empty(&rig);
}

#[test]
fn holes_that_are_not_worth_giving_back_are_not_looked_through_for_each_block() {
    let rig = rig();
    let count = if cfg!(miri) { 900 } else { 6_000 };
    let blocks: Vec<_> = (0..count).map(|_| rig.alloc(2000)).collect();
    let odd = || blocks.iter().skip(1).step_by(2);
    odd().for_each(|&at| unsafe { rig.free(at) });
    let medium = rig.stats().medium;
    assert!(medium.dirty > count * 800, "all of the holes stay: {medium:?}");
    assert!((1..count / 60).contains(&medium.looks), "{medium:?}");
    blocks.iter().step_by(2).for_each(|&at| unsafe { rig.free(at) });
    let after = rig.stats().medium;
    assert!(after.dirty < medium.dirty && after.dirty < 1 << 20, "{after:?}");
}
