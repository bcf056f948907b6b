//! The crate rusty_alloc under the names of the C library and of C++, so that it can be loaded before the real
//! programs as the mallocs of Debian are: of those that an earlier survey had loaded, none was faster.
//!
//! As much as those programs call: no `malloc_trim`, no `mallinfo`, no hook at a fork.

use core::ffi::{c_int, c_void};
use core::ptr;

use rusty_alloc::alloc as rusty;

type Block = *mut c_void;

/// Null says ENOMEM.
fn or_enomem(block: *mut u8) -> Block {
    if block.is_null() {
        // SAFETY: the thread's own `errno`.
        unsafe { *libc::__errno_location() = libc::ENOMEM };
    }
    block.cast()
}

/// # Safety
/// Null, or a block from here that nobody uses any more.
unsafe fn give(block: Block) {
    if !block.is_null() {
        // SAFETY: the caller's promise.
        unsafe { rusty::free_inline(block.cast()) };
    }
}

macro_rules! functions {
    ($($name:ident($($argument:ident: $of:ty),*) $(-> $result:ty)? $body:block)*) => {$(
        /// # Safety
        /// As in C.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $of),*) $(-> $result)? $body
    )*};
}

functions! {
    malloc(bytes: usize) -> Block {
        or_enomem(rusty::malloc(bytes))
    }
    calloc(count: usize, bytes: usize) -> Block {
        or_enomem(rusty::calloc(count, bytes))
    }
    realloc(block: Block, bytes: usize) -> Block {
        // SAFETY: the caller's promise.
        or_enomem(unsafe { rusty::realloc(block.cast(), bytes) })
    }
    reallocarray(block: Block, count: usize, bytes: usize) -> Block {
        match count.checked_mul(bytes) {
            // SAFETY: the caller's promise.
            Some(bytes) => or_enomem(unsafe { rusty::realloc(block.cast(), bytes) }),
            None => or_enomem(ptr::null_mut()),
        }
    }
    memalign(align: usize, bytes: usize) -> Block {
        or_enomem(rusty::malloc_aligned(bytes, align))
    }
    aligned_alloc(align: usize, bytes: usize) -> Block {
        or_enomem(rusty::malloc_aligned(bytes, align))
    }
    posix_memalign(out: *mut Block, align: usize, bytes: usize) -> c_int {
        if !align.is_power_of_two() || !align.is_multiple_of(size_of::<Block>()) {
            return libc::EINVAL;
        }
        let block = rusty::malloc_aligned(bytes, align);
        if block.is_null() {
            return libc::ENOMEM;
        }
        // SAFETY: the caller's promise.
        unsafe { out.write(block.cast()) };
        0
    }
    malloc_usable_size(block: Block) -> usize {
        // SAFETY: the caller's promise.
        if block.is_null() { 0 } else { unsafe { rusty::usable_size(block.cast()) } }
    }
    free(block: Block) {
        // SAFETY: the caller's promise.
        unsafe { give(block) }
    }
    _Znwm(bytes: usize) -> Block {
        or_enomem(rusty::malloc(bytes))
    }
    _Znam(bytes: usize) -> Block {
        or_enomem(rusty::malloc(bytes))
    }
    _ZdlPv(block: Block) {
        // SAFETY: the caller's promise.
        unsafe { give(block) }
    }
    _ZdaPv(block: Block) {
        // SAFETY: the caller's promise.
        unsafe { give(block) }
    }
    _ZdlPvm(block: Block, _bytes: usize) {
        // SAFETY: the caller's promise.
        unsafe { give(block) }
    }
    _ZdaPvm(block: Block, _bytes: usize) {
        // SAFETY: the caller's promise.
        unsafe { give(block) }
    }
}
