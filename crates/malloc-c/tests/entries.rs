//! Each entry point and each error, called in a program into which the shared object was loaded.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks)] // calls foreign functions by name

mod common;

use std::ffi::{c_int, c_void};
use std::ptr;

use common::{function, inside};

type Block = *mut c_void;
type Of1 = unsafe extern "C" fn(usize) -> Block;
type Of2 = unsafe extern "C" fn(usize, usize) -> Block;
type Free1 = unsafe extern "C" fn(Block);
type Free2 = unsafe extern "C" fn(Block, usize);
type Free3 = unsafe extern "C" fn(Block, usize, usize);

const ENOMEM: c_int = 12;
const EINVAL: c_int = 22;
const HUGE: usize = isize::MAX as usize;

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

fn errno() -> c_int {
    unsafe { *__errno_location() }
}

fn set_errno(value: c_int) {
    unsafe { *__errno_location() = value };
}

fn fails_with(expected: c_int, call: impl FnOnce() -> Block) {
    set_errno(0);
    assert!(call().is_null());
    assert_eq!(errno(), expected);
}

fn works(block: Block, bytes: usize, align: usize) -> Block {
    assert!(!block.is_null());
    assert_eq!(block as usize % align, 0);
    unsafe {
        let usable: unsafe extern "C" fn(Block) -> usize = function("malloc_usable_size");
        assert!(usable(block) >= bytes);
        block.cast::<u8>().write_bytes(0xa5, bytes);
    }
    block
}

#[test]
fn malloc_gives_blocks_and_enomem() {
    if !inside("malloc_gives_blocks_and_enomem") {
        return;
    }
    unsafe {
        let (malloc, free): (Of1, Free1) = (function("malloc"), function("free"));
        for bytes in [0, 1, 24, 1000, 1025, 100_000, 1_000_000] {
            free(works(malloc(bytes), bytes, 16));
        }
        assert_ne!(malloc(0), malloc(0));
        fails_with(ENOMEM, || malloc(HUGE));
        fails_with(ENOMEM, || malloc(usize::MAX));
    }
}

#[test]
fn calloc_clears_and_refuses_overflow() {
    if !inside("calloc_clears_and_refuses_overflow") {
        return;
    }
    unsafe {
        let (calloc, free): (Of2, Free1) = (function("calloc"), function("free"));
        for _ in 0..3 {
            for bytes in [7, 1000, 5000, 200_000] {
                let block = calloc(bytes, 3);
                let content = std::slice::from_raw_parts(block.cast::<u8>(), bytes * 3);
                assert!(content.iter().all(|&byte| byte == 0));
                free(works(block, bytes * 3, 16));
            }
        }
        fails_with(ENOMEM, || calloc(usize::MAX / 2, 3));
        fails_with(ENOMEM, || calloc(HUGE, 1));
        assert!(!calloc(0, 5).is_null());
    }
}

#[test]
fn realloc_keeps_contents() {
    if !inside("realloc_keeps_contents") {
        return;
    }
    unsafe {
        let malloc: Of1 = function("malloc");
        let realloc: unsafe extern "C" fn(Block, usize) -> Block = function("realloc");
        let reallocarray: unsafe extern "C" fn(Block, usize, usize) -> Block =
            function("reallocarray");
        let mut block = realloc(ptr::null_mut(), 10);
        let mut last = 10;
        block.cast::<u8>().write_bytes(9, 10);
        for bytes in [100, 2000, 50_000, 150_000, 2_000_000, 300_000, 130_000, 5000, 900, 20] {
            block = realloc(block, bytes);
            let kept = std::slice::from_raw_parts(block.cast::<u8>(), bytes.min(last));
            assert!(kept.iter().all(|&byte| byte == 9), "{last} to {bytes}");
            block.cast::<u8>().write_bytes(9, bytes);
            last = bytes;
        }
        fails_with(ENOMEM, || realloc(block, HUGE));
        assert_eq!(*block.cast::<u8>(), 9);
        fails_with(ENOMEM, || reallocarray(block, usize::MAX / 2, 3));
        block = reallocarray(block, 30, 30);
        works(block, 900, 16);
        set_errno(5);
        assert!(realloc(block, 0).is_null());
        assert_eq!(errno(), 5);
        assert!(!realloc(ptr::null_mut(), 0).is_null());
        let _ = malloc;
    }
}

#[test]
fn every_free_takes_blocks_and_null_and_keeps_errno() {
    if !inside("every_free_takes_blocks_and_null_and_keeps_errno") {
        return;
    }
    unsafe {
        let malloc: Of1 = function("malloc");
        let aligned: Of2 = function("aligned_alloc");
        let (free, cfree): (Free1, Free1) = (function("free"), function("cfree"));
        let sized: Free2 = function("free_sized");
        let aligned_sized: Free3 = function("free_aligned_sized");
        set_errno(77);
        for bytes in [0, 10, 2000, 50_000, 300_000, 20_000_000] {
            free(malloc(bytes));
            cfree(malloc(bytes));
            sized(malloc(bytes), bytes);
            aligned_sized(aligned(64, bytes), 64, bytes);
        }
        free(ptr::null_mut());
        cfree(ptr::null_mut());
        sized(ptr::null_mut(), 0);
        aligned_sized(ptr::null_mut(), 16, 0);
        assert_eq!(errno(), 77);
    }
}

#[test]
fn alignments_are_kept_and_bad_ones_refused() {
    if !inside("alignments_are_kept_and_bad_ones_refused") {
        return;
    }
    unsafe {
        let (aligned, memalign): (Of2, Of2) = (function("aligned_alloc"), function("memalign"));
        let (valloc, pvalloc): (Of1, Of1) = (function("valloc"), function("pvalloc"));
        let posix: unsafe extern "C" fn(*mut Block, usize, usize) -> c_int =
            function("posix_memalign");
        let free: Free1 = function("free");
        for align in (3..=22).map(|shift| 1_usize << shift) {
            for bytes in [0, 1, 100, 3000, 140_000] {
                free(works(aligned(align, bytes), bytes, align));
                free(works(memalign(align, bytes), bytes, align));
                let mut block = ptr::null_mut();
                assert_eq!(posix(&mut block, align, bytes), 0);
                free(works(block, bytes, align));
            }
        }
        free(works(memalign(48, 10), 10, 64));
        fails_with(EINVAL, || aligned(48, 10));
        fails_with(EINVAL, || aligned(0, 10));
        fails_with(EINVAL, || memalign(usize::MAX, 10));
        fails_with(ENOMEM, || aligned(64, HUGE));
        let untouched = 8 as Block;
        let mut block = untouched;
        set_errno(3);
        assert_eq!(posix(&mut block, 4, 10), EINVAL);
        assert_eq!(posix(&mut block, 24, 10), EINVAL);
        assert_eq!(posix(&mut block, 0, 10), EINVAL);
        assert_eq!(posix(&mut block, 8, HUGE), ENOMEM);
        assert_eq!((block, errno()), (untouched, 3));
        free(works(valloc(5), 5, 4096));
        free(works(pvalloc(5), 4096, 4096));
        free(works(pvalloc(0), 4096, 4096));
        fails_with(ENOMEM, || valloc(HUGE));
        fails_with(ENOMEM, || pvalloc(usize::MAX));
        let usable: unsafe extern "C" fn(Block) -> usize = function("malloc_usable_size");
        assert_eq!(usable(ptr::null_mut()), 0);
    }
}

#[test]
fn what_is_usable_is_the_same_for_the_owner_and_for_others() {
    if !inside("what_is_usable_is_the_same_for_the_owner_and_for_others") {
        return;
    }
    unsafe {
        let (malloc, free): (Of1, Free1) = (function("malloc"), function("free"));
        let usable: unsafe extern "C" fn(Block) -> usize = function("malloc_usable_size");
        let sizes = (1..2100).chain((2100..200_000).step_by(777)).chain([5_000_000]);
        // Two of each: the second stands further on in its slab.
        let blocks: Vec<(usize, usize)> = sizes
            .flat_map(|bytes| [0; 2].map(|_| (works(malloc(bytes), bytes, 16) as usize, bytes)))
            .collect();
        let ask = |blocks: &[(usize, usize)]| -> Vec<usize> {
            blocks.iter().map(|&(block, _)| usable(block as Block)).collect()
        };
        let own = ask(&blocks);
        let others = std::thread::scope(|scope| scope.spawn(|| ask(&blocks)).join().unwrap());
        assert_eq!(own, others);
        for (&(block, bytes), usable) in blocks.iter().zip(own) {
            assert!((bytes..=bytes + bytes / 4 + 4096).contains(&usable), "{bytes}: {usable}");
            // All of it may be written.
            (block as *mut u8).write_bytes(0x5a, usable);
        }
        blocks.iter().for_each(|&(block, _)| free(block as Block));
    }
}

#[test]
fn all_twenty_operators_work() {
    if !inside("all_twenty_operators_work") {
        return;
    }
    unsafe {
        let nothrow: Block = ptr::null_mut();
        for array in [false, true] {
            let name = |single: &str| {
                if array {
                    single.replacen("_Znw", "_Zna", 1).replacen("_Zdl", "_Zda", 1)
                } else {
                    single.to_owned()
                }
            };
            let new: Of1 = function(&name("_Znwm"));
            let new_nothrow: unsafe extern "C" fn(usize, Block) -> Block =
                function(&name("_ZnwmRKSt9nothrow_t"));
            let new_aligned: Of2 = function(&name("_ZnwmSt11align_val_t"));
            let new_aligned_nothrow: unsafe extern "C" fn(usize, usize, Block) -> Block =
                function(&name("_ZnwmSt11align_val_tRKSt9nothrow_t"));
            let delete: Free1 = function(&name("_ZdlPv"));
            let delete_sized: Free2 = function(&name("_ZdlPvm"));
            let delete_nothrow: unsafe extern "C" fn(Block, Block) =
                function(&name("_ZdlPvRKSt9nothrow_t"));
            let delete_aligned: Free2 = function(&name("_ZdlPvSt11align_val_t"));
            let delete_aligned_sized: Free3 = function(&name("_ZdlPvmSt11align_val_t"));
            let delete_aligned_nothrow: unsafe extern "C" fn(Block, usize, Block) =
                function(&name("_ZdlPvSt11align_val_tRKSt9nothrow_t"));
            for bytes in [0, 8, 1000, 70_000, 1_000_000] {
                delete(works(new(bytes), bytes, 16));
                delete_sized(works(new(bytes), bytes, 16), bytes);
                delete_nothrow(works(new_nothrow(bytes, nothrow), bytes, 16), nothrow);
                delete_aligned(works(new_aligned(bytes, 128), bytes, 128), 128);
                delete_aligned_sized(works(new_aligned(bytes, 4096), bytes, 4096), bytes, 4096);
                let block = works(new_aligned_nothrow(bytes, 32, nothrow), bytes, 32);
                delete_aligned_nothrow(block, 32, nothrow);
            }
            assert!(new_nothrow(HUGE, nothrow).is_null());
            assert!(new_aligned_nothrow(HUGE, 64, nothrow).is_null());
            delete(ptr::null_mut());
        }
    }
}

#[test]
fn statistics_see_what_was_allocated() {
    if !inside("statistics_see_what_was_allocated") {
        return;
    }
    unsafe {
        let (malloc, free): (Of1, Free1) = (function("malloc"), function("free"));
        let mallinfo2: unsafe extern "C" fn() -> [usize; 10] = function("mallinfo2");
        let mallinfo: unsafe extern "C" fn() -> [c_int; 10] = function("mallinfo");
        let (hblks, hblkhd, uordblks) = (3, 4, 7);
        let before = mallinfo2();
        let large = malloc(10_000_000);
        let medium = malloc(100_000);
        let small: Vec<_> = (0..2000).map(|_| malloc(500)).collect();
        let after = mallinfo2();
        assert_eq!(after[hblks], before[hblks] + 1);
        assert!(after[hblkhd] >= before[hblkhd] + 10_000_000);
        assert!(after[uordblks] >= before[uordblks] + 1_100_000);
        assert_eq!(mallinfo()[hblks] as usize, after[hblks]);
        small.into_iter().chain([large, medium]).for_each(|block| free(block));
        assert!(mallinfo2()[uordblks] < before[uordblks] + 100_000);
    }
}

#[test]
fn trim_gives_back_and_tuning_answers() {
    if !inside("trim_gives_back_and_tuning_answers") {
        return;
    }
    unsafe {
        let (malloc, free): (Of1, Free1) = (function("malloc"), function("free"));
        let trim: unsafe extern "C" fn(usize) -> c_int = function("malloc_trim");
        let blocks: Vec<_> = (0..1000).map(|_| malloc(600)).collect();
        blocks.into_iter().for_each(|block| free(block));
        assert_eq!(trim(0), 1);
        let mallopt: unsafe extern "C" fn(c_int, c_int) -> c_int = function("mallopt");
        assert_eq!([mallopt(-1, 1 << 20), mallopt(-3, 1), mallopt(-8, 1)], [1, 1, 1]);
        assert_eq!([mallopt(-6, 1), mallopt(-5, 1), mallopt(1234, 1)], [0, 0, 0]);
    }
}

#[test]
fn malloc_info_writes_xml_and_refuses_options() {
    if !inside("malloc_info_writes_xml_and_refuses_options") {
        return;
    }
    unsafe {
        let info: unsafe extern "C" fn(c_int, Block) -> c_int = function("malloc_info");
        let memory: unsafe extern "C" fn(*mut *mut u8, *mut usize) -> Block =
            function("open_memstream");
        let close: unsafe extern "C" fn(Block) -> c_int = function("fclose");
        let (mut text, mut bytes) = (ptr::null_mut(), 0);
        let stream = memory(&mut text, &mut bytes);
        assert_eq!(info(1, stream), EINVAL);
        assert_eq!(info(0, stream), 0);
        close(stream);
        let text = String::from_utf8_lossy(std::slice::from_raw_parts(text, bytes)).into_owned();
        assert!(text.starts_with("<malloc version=") && text.ends_with("</malloc>\n"), "{text}");
        let stats: unsafe extern "C" fn() = function("malloc_stats");
        stats();
    }
}
