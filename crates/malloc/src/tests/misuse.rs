//! Each mistake stops the program with the name of the mistake.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::rig::{Rig, rig};
use crate::{Corruption, Misuse, Stop};

fn stopped(rig: &Rig, crime: impl FnOnce(&Rig)) -> Stop {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let caught = catch_unwind(AssertUnwindSafe(|| crime(rig)));
    std::panic::set_hook(hook);
    *caught.expect_err("nothing noticed").downcast::<Stop>().expect("another panic")
}

fn must_be(rig: &Rig, what: Misuse, at: *mut u8, crime: impl FnOnce(&Rig)) {
    assert_eq!(stopped(rig, crime), Stop::Misuse(what, at as usize));
}

#[test]
fn a_block_freed_twice_in_a_row_is_a_double_free() {
    for bytes in [1, 100, 1024, 1025, 5000, 100_000] {
        let rig = rig();
        let at = rig.alloc(bytes);
        unsafe { rig.free(at) };
        must_be(&rig, Misuse::DoubleFree, at, |rig| unsafe { rig.free(at) });
    }
}

#[test]
fn a_block_freed_twice_in_a_full_slab_is_told_when_it_is_wanted() {
    let rig = rig();
    let class = crate::classes::of(crate::classes::class_of(1024));
    // One more than a slab has: the first is full.
    let blocks: Vec<_> = (0..=class.blocks).map(|_| rig.alloc(1024)).collect();
    let patience = class.blocks as usize / 8 + 2;
    // The last of as many frees as bring it back to its list.
    let twice = blocks[patience - 2];
    for &at in blocks[..patience - 1].iter().chain([&twice]) {
        unsafe { rig.free(at) };
    }
    must_be(&rig, Misuse::DoubleFree, twice, |rig| {
        (0..class.blocks).for_each(|_| _ = rig.alloc(1024));
    });
}

#[test]
fn a_kept_block_freed_again_is_a_double_free() {
    for bytes in [4000, 200_000] {
        let rig = rig();
        let mut at = rig.alloc(bytes);
        for _ in 0..3 {
            unsafe { rig.free(at) };
            at = rig.alloc(bytes);
        }
        unsafe { rig.free(at) };
        must_be(&rig, Misuse::DoubleFree, at, |rig| unsafe { rig.free(at) });
    }
}

#[test]
fn a_block_at_hand_that_another_thread_frees_is_a_double_free() {
    // By threads with heaps of their own, the first of them or a later one.
    for others in [1, 3] {
        let rig = rig();
        let mut at = rig.alloc(4000);
        for _ in 0..3 {
            unsafe { rig.free(at) };
            at = rig.alloc(4000);
        }
        unsafe { rig.free(at) };
        let sent = at as usize;
        for _ in 0..others {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let at = sent as *mut u8;
                    // It has room for the size itself, and something to do with it.
                    let blocks = [0; 3].map(|_| rig.alloc(4000));
                    blocks.into_iter().for_each(|block| unsafe { rig.free(block) });
                    must_be(&rig, Misuse::DoubleFree, at, |rig| unsafe { rig.free(at) });
                    must_be(&rig, Misuse::DoubleFree, at, |rig| _ = unsafe { rig.usable(at) });
                });
            });
        }
        assert_eq!(rig.alloc(4000), at, "still at hand");
    }
}

#[test]
fn a_medium_block_freed_twice_with_others_between_is_a_double_free() {
    let rig = rig();
    let blocks: Vec<_> = (0..10).map(|n| rig.alloc(2000 + n * 100)).collect();
    for &at in &blocks[..5] {
        unsafe { rig.free(at) };
    }
    must_be(&rig, Misuse::DoubleFree, blocks[0], |rig| unsafe { rig.free(blocks[0]) });
}

#[test]
fn an_interior_pointer_is_named() {
    for (bytes, inside) in [(48, 16), (48, 8), (1000, 500), (3000, 64), (3000, 1), (3000, 1024)] {
        let rig = rig();
        let at = rig.alloc(bytes).wrapping_add(inside);
        let stop = stopped(&rig, |rig| unsafe { rig.free(at) });
        // In a medium block no trace tells an address inside from one freed before.
        assert!(
            stop == Stop::Misuse(Misuse::Interior, at as usize)
                || (bytes > 1024 && stop == Stop::Misuse(Misuse::DoubleFree, at as usize))
        );
    }
}

#[test]
fn a_block_that_was_never_handed_out_is_named() {
    let rig = rig();
    let at = rig.alloc(1024).wrapping_add(12 * 1024);
    must_be(&rig, Misuse::Interior, at, |rig| unsafe { rig.free(at) });
}

#[test]
fn a_foreign_pointer_is_named() {
    let rig = rig();
    rig.alloc(10);
    let mut space = [0_u64; 100];
    let space = space.as_mut_ptr().cast::<u8>();
    let odd = space.wrapping_add(8);
    for at in [space.wrapping_add(space.align_offset(64)).wrapping_add(64), odd] {
        must_be(&rig, Misuse::Foreign, at, |rig| unsafe { rig.free(at) });
    }
    let low = core::ptr::without_provenance_mut(64);
    must_be(&rig, Misuse::Foreign, low, |rig| unsafe { rig.free(low) });
}

#[test]
fn a_write_behind_a_medium_block_is_noticed_when_the_next_is_used() {
    let rig = rig();
    let first = rig.alloc(2048);
    let second = rig.alloc(2048);
    let third = rig.alloc(2048);
    unsafe { rig.free(second) };
    unsafe { first.add(2048).write_bytes(0xff, 16) };
    let stop = stopped(&rig, |rig| unsafe { rig.free(first) });
    assert_eq!(stop, Stop::Corruption(Corruption::FreeBlock, second as usize));
    let _ = third;
}

#[test]
fn null_may_be_freed_at_any_time() {
    let rig = rig();
    unsafe { rig.free(core::ptr::null_mut()) };
    rig.alloc(1);
    unsafe { rig.free(core::ptr::null_mut()) };
}
