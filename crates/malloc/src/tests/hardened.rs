//! Hardened mode over a host's heap: what is promised of blocks, and what is found.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::rig::{Rig, hardened_rig, must_be_empty};
use crate::hardened::{MEDIUM_PLACES, SMALL_BYTES, TOLL};
use crate::{Stop, Trouble};

fn trouble(rig: &Rig, crime: impl FnOnce(&Rig)) -> Option<Trouble> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let caught = catch_unwind(AssertUnwindSafe(|| crime(rig)));
    std::panic::set_hook(hook);
    match caught {
        Ok(()) => None,
        Err(panic) => match *panic.downcast::<Stop>().expect("another panic") {
            Stop::Trouble(trouble, ..) => Some(trouble),
            other => panic!("{other}"),
        },
    }
}

const SIZES: [usize; 22] = [
    0, 1, 8, 15, 16, 17, 31, 40, 47, 48, 63, 64, 100, 112, 128, 255, 700, 1000, 1007, 1008, 5000,
    130_000,
];

#[test]
fn zeroed_blocks_are_zero_fresh_or_used() {
    let rig = hardened_rig();
    for _ in 0..3 {
        for bytes in SIZES {
            let at = rig.alloc_zeroed(bytes);
            let block = unsafe { std::slice::from_raw_parts_mut(at, bytes) };
            assert!(block.iter().all(|&byte| byte == 0), "{bytes}");
            block.fill(0xff);
            unsafe { rig.free(at) };
        }
        rig.trim(0);
    }
    must_be_empty(&rig);
}

#[test]
fn a_resized_block_keeps_its_bytes_and_has_a_tail() {
    let rig = hardened_rig();
    for bytes in SIZES {
        for other in SIZES {
            let at = rig.alloc(bytes);
            unsafe { at.write_bytes(7, bytes) };
            let at = unsafe { rig.realloc(at, other) };
            let kept = unsafe { std::slice::from_raw_parts(at, bytes.min(other)) };
            assert!(kept.iter().all(|&byte| byte == 7), "{bytes} to {other}");
            let old = unsafe { at.add(other).replace(9) };
            assert_eq!(
                trouble(&rig, |rig| unsafe { rig.free(at) }),
                Some(Trouble::Behind),
                "{bytes} to {other}"
            );
            unsafe { at.add(other).write(old) };
            unsafe { rig.free(at) };
        }
    }
    must_be_empty(&rig);
}

#[test]
fn each_byte_behind_up_to_8_before_a_multiple_of_16_is_watched() {
    let rig = hardened_rig();
    for bytes in SIZES {
        for behind in bytes..(bytes + 8) / 16 * 16 + 8 {
            let at = rig.alloc(bytes);
            let old = unsafe { at.add(behind).replace(0) };
            assert_eq!(
                trouble(&rig, |rig| unsafe { rig.free(at) }),
                Some(Trouble::Behind),
                "{behind} of {bytes}"
            );
            unsafe { at.add(behind).write(old) };
            unsafe { rig.free(at) };
        }
    }
}

#[test]
fn aligned_blocks_are_aligned_watched_and_told() {
    let rig = hardened_rig();
    for shift in 4..15 {
        // None so large that the table of large blocks is mapped.
        for bytes in SIZES.into_iter().filter(|&bytes| bytes < 100_000) {
            // More than one, so that a slab's first block is not all there is.
            let blocks = [(); 5].map(|()| rig.alloc_aligned(bytes, 1 << shift));
            for at in blocks {
                assert_eq!(at as usize % (1 << shift), 0, "{bytes}");
                unsafe { at.write_bytes(1, bytes) };
                let old = unsafe { at.add(bytes).replace(0) };
                let told = trouble(&rig, |rig| unsafe { rig.free(at) });
                assert_eq!(told, Some(Trouble::Behind), "{bytes} aligned to {}", 1 << shift);
                unsafe { at.add(bytes).write(old) };
            }
            for at in blocks {
                unsafe { rig.free(at) };
                let told = trouble(&rig, |rig| unsafe { rig.free(at) });
                assert_eq!(told, Some(Trouble::Freed), "{bytes} aligned to {}", 1 << shift);
            }
        }
    }
    must_be_empty(&rig);
}

#[test]
fn blocks_of_one_slab_after_another_do_not_touch() {
    let sizes = [1, 8, 23, 24, 39, 55, 119, 247, 503, 1015];
    for bytes in sizes.into_iter().step_by(if cfg!(miri) { 4 } else { 1 }) {
        let rig = hardened_rig();
        let blocks: Vec<_> = (0..100_000 / (bytes + 25)).map(|_| rig.alloc(bytes)).collect();
        for &at in &blocks {
            unsafe { at.write_bytes(0xff, bytes) };
        }
        assert!(rig.check_all().is_some());
        for &at in &blocks {
            unsafe { rig.free(at) };
        }
        must_be_empty(&rig);
    }
}

/// Frees so many bytes of other blocks, as the quarantine counts them.
fn pass(rig: &Rig, bytes: usize) {
    for turn in 0..bytes / (40 + TOLL) {
        let at = rig.alloc(40);
        unsafe {
            at.write_bytes(turn as u8, 40);
            rig.free(at);
        }
    }
}

#[test]
fn a_freed_block_waits_and_is_looked_at_when_it_leaves() {
    let some = if cfg!(miri) { 400 } else { 37 };
    for bytes in [1, 16, 40, 100, 128, 200, 500, 1000] {
        for place in (0..bytes).filter(|place| *place < 256 || *place + 240 >= bytes).step_by(some)
        {
            let rig = hardened_rig();
            let at = rig.alloc(bytes);
            unsafe { rig.free(at) };
            pass(&rig, SMALL_BYTES * 7 / 8 - 2 * (bytes + TOLL));
            // Nobody has it: it still says who freed it.
            assert_eq!(trouble(&rig, |rig| unsafe { rig.free(at) }), Some(Trouble::Freed));
            unsafe { at.add(place).write(!at.add(place).read()) };
            let told = trouble(&rig, |rig| pass(rig, SMALL_BYTES));
            assert_eq!(told, Some(Trouble::AfterFree), "{place} of {bytes}");
        }
    }
}

#[test]
fn medium_blocks_wait_too() {
    let rig = hardened_rig();
    let at = rig.alloc(2000);
    unsafe {
        rig.free(at);
        at.add(8).write(1);
    }
    let told = trouble(&rig, |rig| {
        for _ in 0..MEDIUM_PLACES {
            unsafe { rig.free(rig.alloc(1500)) };
        }
    });
    assert_eq!(told, Some(Trouble::AfterFree));
}

#[test]
fn a_broken_header_is_noticed_free_or_live() {
    let rig = hardened_rig();
    for bytes in [8, 100, 3000] {
        for back in 1..=8 {
            let at = rig.alloc(bytes);
            let old = unsafe { at.sub(back).replace(!at.sub(back).read()) };
            assert_eq!(
                trouble(&rig, |rig| unsafe { rig.free(at) }),
                Some(Trouble::Before),
                "{back} before {bytes}"
            );
            unsafe { at.sub(back).write(old) };
            unsafe { rig.free(at) };
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "megabytes")]
fn large_blocks_that_come_and_go_wait_out_of_reach_and_are_used_again() {
    let rig = hardened_rig();
    let mut hidden = 0;
    for round in 0..4 {
        let blocks: Vec<_> = (0..6).map(|n| rig.alloc_zeroed(150_001 + n * 50_000)).collect();
        for (n, &at) in blocks.iter().enumerate() {
            let bytes = 150_001 + n * 50_000;
            let block = unsafe { std::slice::from_raw_parts_mut(at, bytes) };
            assert!(block.iter().all(|&byte| byte == 0), "round {round}, block {n}");
            block.fill(0xff);
            let old = unsafe { at.add(bytes).replace(0) };
            let told = trouble(&rig, |rig| unsafe { rig.free(at) });
            assert_eq!(told, Some(Trouble::Behind), "round {round}, block {n}");
            unsafe { at.add(bytes).write(old) };
        }
        for &at in &blocks {
            unsafe { rig.free(at) };
            assert_eq!(trouble(&rig, |rig| unsafe { rig.free(at) }), Some(Trouble::Freed));
        }
        hidden = rig.system.hidden();
        // The first time tells only that they are wanted again.
        assert_eq!(hidden > 0, round > 0, "round {round}");
        assert_eq!(rig.stats().large_bytes, hidden);
    }
    assert!(hidden > 1 << 20, "{hidden}");
    rig.trim(0);
    assert_eq!((rig.system.hidden(), rig.stats().large_bytes, rig.stats().large_count), (0, 0, 0));
}

#[test]
fn a_heap_that_ends_leaves_no_mapping() {
    let rig = hardened_rig();
    for bytes in [40, 1 << 20] {
        let at = rig.hard_alloc(bytes, 1, false, 0x1234);
        unsafe { rig.free(at) };
    }
    rig.trim(0);
    assert_ne!(rig.system.mapped(), 0, "the tables of places and of large blocks");
    unsafe { rig.destroy() };
    assert_eq!(rig.system.mapped(), 0);
}

#[test]
fn an_address_near_zero_is_no_block_though_large_ones_live() {
    let rig = hardened_rig();
    let large = rig.alloc(200_000);
    for at in [16, 64, 4096] {
        let wild = std::ptr::without_provenance_mut(at);
        assert_eq!(trouble(&rig, |rig| unsafe { rig.free(wild) }), Some(Trouble::Freed));
    }
    unsafe { rig.free(large) };
    must_be_empty(&rig);
}
