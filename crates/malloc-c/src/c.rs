//! Allocation in C.
//!
//! Errors: no memory or an overflow gives null and `ENOMEM`; a bad alignment gives null and `EINVAL`.
//! `posix_memalign` returns them instead and leaves `errno` alone. `free` never touches `errno`. As in
//! glibc, `realloc(p, 0)` frees and gives null, and any size of zero else gives a block of its own.

use core::ffi::{c_int, c_void};
use core::ptr;

use pagoda_malloc_core::{PAGE_BYTES, process};

use crate::weak::{EINVAL, ENOMEM, set_errno};

#[inline(always)]
fn or_enomem(block: *mut u8) -> *mut c_void {
    if block.is_null() {
        set_errno(ENOMEM);
    }
    block.cast()
}

#[cold]
fn refuse(errno: c_int) -> *mut c_void {
    set_errno(errno);
    ptr::null_mut()
}

/// `void *malloc(size_t size)`
#[unsafe(no_mangle)]
pub extern "C" fn malloc(bytes: usize) -> *mut c_void {
    let block = process::alloc_short(bytes);
    // SAFETY: goes on in `malloc_from`.
    if block.is_null() { unsafe { pagoda_c_malloc(bytes) } } else { block.cast() }
}

// Tail calls leave the caller's return address on the stack: it goes along, for stories and profiles to tell. The
// byte that is asked for says that the mode is hardened, or that allocations are sampled: see
// `pagoda_malloc_core::process`.
core::arch::global_asm!(
    ".text",
    ".hidden pagoda_c_malloc",
    ".globl pagoda_c_malloc",
    ".type pagoda_c_malloc, @function",
    "pagoda_c_malloc:",
    "mov rsi, qword ptr [rsp]",
    "cmp byte ptr [rip + pagoda_malloc_window_0_1 + 16], 0",
    "je {malloc}",
    "js {sampled_malloc}",
    "jmp {hard_malloc}",
    ".hidden pagoda_c_calloc",
    ".globl pagoda_c_calloc",
    ".type pagoda_c_calloc, @function",
    "pagoda_c_calloc:",
    "mov rsi, qword ptr [rsp]",
    "jmp {calloc}",
    ".hidden pagoda_c_aligned",
    ".globl pagoda_c_aligned",
    ".type pagoda_c_aligned, @function",
    "pagoda_c_aligned:",
    "mov rdx, qword ptr [rsp]",
    "jmp {aligned}",
    ".hidden pagoda_c_realloc",
    ".globl pagoda_c_realloc",
    ".type pagoda_c_realloc, @function",
    "pagoda_c_realloc:",
    "mov rdx, qword ptr [rsp]",
    "jmp {realloc}",
    ".hidden pagoda_c_posix_memalign",
    ".globl pagoda_c_posix_memalign",
    ".type pagoda_c_posix_memalign, @function",
    "pagoda_c_posix_memalign:",
    "mov rcx, qword ptr [rsp]",
    "jmp {posix_memalign}",
    malloc = sym malloc_from,
    hard_malloc = sym hard_malloc_from,
    sampled_malloc = sym sampled_malloc_from,
    calloc = sym calloc_from,
    aligned = sym aligned_from,
    realloc = sym realloc_from,
    posix_memalign = sym posix_memalign_from,
);

unsafe extern "C" {
    fn pagoda_c_malloc(bytes: usize) -> *mut c_void;
    fn pagoda_c_calloc(bytes: usize) -> *mut c_void;
    pub(crate) fn pagoda_c_aligned(bytes: usize, align: usize) -> *mut c_void;
    fn pagoda_c_realloc(block: *mut c_void, bytes: usize) -> *mut c_void;
    fn pagoda_c_posix_memalign(result: *mut *mut c_void, align: usize, bytes: usize) -> c_int;
}

extern "C" fn malloc_from(bytes: usize, pc: usize) -> *mut c_void {
    or_enomem(process::alloc_slow_from(bytes, pc))
}

extern "C" fn hard_malloc_from(bytes: usize, pc: usize) -> *mut c_void {
    or_enomem(process::hard_alloc_from(bytes, pc))
}

extern "C" fn sampled_malloc_from(bytes: usize, pc: usize) -> *mut c_void {
    or_enomem(process::sampled_alloc_from(bytes, pc))
}

extern "C" fn calloc_from(bytes: usize, pc: usize) -> *mut c_void {
    or_enomem(process::alloc_zeroed(bytes, pc))
}

extern "C" fn aligned_from(bytes: usize, align: usize, pc: usize) -> *mut c_void {
    or_enomem(process::alloc_aligned(bytes, align, pc))
}

unsafe extern "C" fn realloc_from(block: *mut c_void, bytes: usize, pc: usize) -> *mut c_void {
    if bytes == 0 && !block.is_null() {
        // SAFETY: the caller's promise is ours.
        unsafe { process::free(block.cast()) };
        return ptr::null_mut();
    }
    // SAFETY: as above.
    or_enomem(unsafe { process::realloc(block.cast(), bytes, pc) })
}

unsafe extern "C" fn posix_memalign_from(
    result: *mut *mut c_void,
    align: usize,
    bytes: usize,
    pc: usize,
) -> c_int {
    if !align.is_power_of_two() || align < size_of::<*mut c_void>() {
        return EINVAL;
    }
    let block = process::alloc_aligned(bytes, align, pc);
    if block.is_null() {
        return ENOMEM;
    }
    // SAFETY: as the caller promised.
    unsafe { result.write(block.cast()) };
    0
}

/// `void *calloc(size_t n, size_t size)`
#[unsafe(no_mangle)]
pub extern "C" fn calloc(count: usize, bytes: usize) -> *mut c_void {
    let Some(bytes) = count.checked_mul(bytes) else { return refuse(ENOMEM) };
    let block = process::alloc_short(bytes);
    if block.is_null() {
        // SAFETY: goes on in `calloc_from`.
        return unsafe { pagoda_c_calloc(bytes) };
    }
    // SAFETY: a fresh block of at least that many bytes.
    unsafe { block.write_bytes(0, bytes) };
    block.cast()
}

/// `void *realloc(void *block, size_t size)`
///
/// # Safety
/// The block came from here, and is not used again if another is returned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(block: *mut c_void, bytes: usize) -> *mut c_void {
    if block.is_null() {
        // Many an interpreter allocates so.
        return malloc(bytes);
    }
    // SAFETY: goes on in `realloc_from`.
    unsafe { pagoda_c_realloc(block, bytes) }
}

/// `void *reallocarray(void *block, size_t n, size_t size)`
///
/// # Safety
/// As for [`realloc`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn reallocarray(
    block: *mut c_void,
    count: usize,
    bytes: usize,
) -> *mut c_void {
    match count.checked_mul(bytes) {
        // SAFETY: the caller's promise is ours.
        Some(bytes) => unsafe { pagoda_c_realloc(block, bytes) },
        None => refuse(ENOMEM),
    }
}

/// `void free(void *block)`
///
/// # Safety
/// The block came from here and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free(block: *mut c_void) {
    // SAFETY: the caller's promise is ours.
    unsafe { process::free(block.cast()) }
}

/// `void cfree(void *block)`
///
/// # Safety
/// As for [`free`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cfree(block: *mut c_void) {
    // SAFETY: the caller's promise is ours.
    unsafe { process::free(block.cast()) }
}

/// `void free_sized(void *block, size_t size)`
///
/// # Safety
/// As for [`free`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free_sized(block: *mut c_void, bytes: usize) {
    // SAFETY: the caller's promise is ours.
    unsafe { process::free_sized(block.cast(), bytes) }
}

/// `void free_aligned_sized(void *block, size_t alignment, size_t size)`
///
/// # Safety
/// As for [`free`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free_aligned_sized(block: *mut c_void, _align: usize, bytes: usize) {
    // SAFETY: the caller's promise is ours.
    unsafe { process::free_sized(block.cast(), bytes) }
}

/// `void *aligned_alloc(size_t alignment, size_t size)`; the alignment is a power of two.
#[unsafe(no_mangle)]
pub extern "C" fn aligned_alloc(align: usize, bytes: usize) -> *mut c_void {
    if !align.is_power_of_two() {
        return refuse(EINVAL);
    }
    // SAFETY: goes on in `aligned_from`.
    unsafe { pagoda_c_aligned(bytes, align) }
}

/// `void *memalign(size_t alignment, size_t size)`; the alignment is rounded up to a power of two.
#[unsafe(no_mangle)]
pub extern "C" fn memalign(align: usize, bytes: usize) -> *mut c_void {
    match align.checked_next_power_of_two() {
        // SAFETY: goes on in `aligned_from`.
        Some(align) => unsafe { pagoda_c_aligned(bytes, align) },
        None => refuse(EINVAL),
    }
}

/// `int posix_memalign(void **result, size_t alignment, size_t size)`
///
/// # Safety
/// `result` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(
    result: *mut *mut c_void,
    align: usize,
    bytes: usize,
) -> c_int {
    // SAFETY: goes on in `posix_memalign_from`.
    unsafe { pagoda_c_posix_memalign(result, align, bytes) }
}

/// `void *valloc(size_t size)`: aligned to a page.
#[unsafe(no_mangle)]
pub extern "C" fn valloc(bytes: usize) -> *mut c_void {
    // SAFETY: goes on in `aligned_from`.
    unsafe { pagoda_c_aligned(bytes, PAGE_BYTES) }
}

/// `void *pvalloc(size_t size)`: whole pages.
#[unsafe(no_mangle)]
pub extern "C" fn pvalloc(bytes: usize) -> *mut c_void {
    match bytes.checked_next_multiple_of(PAGE_BYTES) {
        Some(bytes) =>
        // SAFETY: goes on in `aligned_from`.
        unsafe { pagoda_c_aligned(bytes.max(PAGE_BYTES), PAGE_BYTES) },
        None => refuse(ENOMEM),
    }
}

/// `size_t malloc_usable_size(void *block)`
///
/// # Safety
/// The block came from here.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_usable_size(block: *mut c_void) -> usize {
    // SAFETY: the caller's promise is ours.
    unsafe { process::usable(block.cast()) }
}
