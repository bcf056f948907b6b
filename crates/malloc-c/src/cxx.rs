//! The replaceable operators of C++, by their mangled names (Itanium C++ ABI, `size_t` = `m`).
//!
//! When memory runs out, the throwing ones call the program's new-handler again and again as the
//! standard says, then throw `std::bad_alloc` through libstdc++; in a program without it they abort.

use core::ffi::c_void;

use pagoda_malloc_core::process;

use crate::c::pagoda_c_aligned;
use crate::weak::{new_handler, throw_bad_alloc};

/// `std::nothrow_t const &`.
type Nothrow = *const c_void;

// A tail call leaves the caller's return address on the stack: it goes along, for stories and profiles
// to tell.
core::arch::global_asm!(
    ".text",
    ".hidden pagoda_cxx_new",
    ".globl pagoda_cxx_new",
    ".type pagoda_cxx_new, @function",
    "pagoda_cxx_new:",
    "mov rsi, qword ptr [rsp]",
    "cmp byte ptr [rip + pagoda_malloc_window_0_1 + 16], 0",
    "js {sampled_new}",
    "jmp {new}",
    ".hidden pagoda_cxx_aligned",
    ".globl pagoda_cxx_aligned",
    ".type pagoda_cxx_aligned, @function",
    "pagoda_cxx_aligned:",
    "mov rdx, qword ptr [rsp]",
    "jmp {aligned}",
    new = sym new_from,
    sampled_new = sym sampled_new_from,
    aligned = sym aligned_from,
);

// Exceptions come out of both. Who calls them is to be off the stack then, and is, unless the compiler guards the
// call against exceptions: so it is told that there are none. Where it calls all the same, because it does not
// optimize, an exception finds a frame with nothing to do, and the place that is told is ours.
unsafe extern "C" {
    fn pagoda_cxx_new(bytes: usize) -> *mut c_void;
    fn pagoda_cxx_aligned(bytes: usize, align: usize) -> *mut c_void;
}

extern "C-unwind" fn new_from(bytes: usize, pc: usize) -> *mut c_void {
    let block = process::alloc_slow_from(bytes, pc);
    if block.is_null() { out_of_memory(bytes, 1) } else { block.cast() }
}

extern "C-unwind" fn sampled_new_from(bytes: usize, pc: usize) -> *mut c_void {
    let block = process::sampled_alloc_from(bytes, pc);
    if block.is_null() { out_of_memory(bytes, 1) } else { block.cast() }
}

extern "C-unwind" fn aligned_from(bytes: usize, align: usize, pc: usize) -> *mut c_void {
    let block = process::alloc_aligned(bytes, align, pc);
    if block.is_null() { out_of_memory(bytes, align) } else { block.cast() }
}

#[cold]
#[inline(never)]
extern "C-unwind" fn out_of_memory(bytes: usize, align: usize) -> *mut c_void {
    while let Some(handler) = new_handler() {
        // SAFETY: the program's own handler; it may throw, and there is nothing here to clean up.
        unsafe { handler() };
        let block = process::alloc_aligned(bytes, align, 0);
        if !block.is_null() {
            return block.cast();
        }
    }
    match throw_bad_alloc() {
        // SAFETY: throws through frames that have nothing to clean up.
        Some(throw) => unsafe { throw() },
        None => pagoda_malloc_core::linux::abort(b"pagoda-malloc: operator new: out of memory\n"),
    }
}

/// The ten operators of one form: for an object (nothing between operator and parameters) or an array (`[]`).
macro_rules! operators {
    (
        $form:literal,
        new: $new:ident, $new_nothrow:ident, $new_aligned:ident, $new_aligned_nothrow:ident,
        delete: $delete:ident, $delete_sized:ident, $delete_nothrow:ident, $delete_aligned:ident,
        $delete_sized_aligned:ident, $delete_aligned_nothrow:ident $(,)?
    ) => {
        #[doc = concat!("`operator new", $form, "(size_t)`")]
        #[unsafe(no_mangle)]
        #[allow(non_snake_case)]
        pub extern "C-unwind" fn $new(bytes: usize) -> *mut c_void {
            let block = process::alloc_short(bytes);
            // SAFETY: goes on in `new_from`.
            if block.is_null() { unsafe { pagoda_cxx_new(bytes) } } else { block.cast() }
        }

        #[doc = concat!("`operator new", $form, "(size_t, std::nothrow_t const &) noexcept`")]
        #[unsafe(no_mangle)]
        #[allow(non_snake_case)]
        pub extern "C" fn $new_nothrow(bytes: usize, _: Nothrow) -> *mut c_void {
            crate::c::malloc(bytes)
        }

        #[doc = concat!("`operator new", $form, "(size_t, std::align_val_t)`")]
        #[unsafe(no_mangle)]
        #[allow(non_snake_case)]
        pub extern "C-unwind" fn $new_aligned(bytes: usize, align: usize) -> *mut c_void {
            // SAFETY: goes on in `aligned_from`.
            unsafe { pagoda_cxx_aligned(bytes, align) }
        }

        #[doc = concat!(
            "`operator new", $form, "(size_t, std::align_val_t, std::nothrow_t const &) noexcept`"
        )]
        #[unsafe(no_mangle)]
        #[allow(non_snake_case)]
        pub extern "C" fn $new_aligned_nothrow(
            bytes: usize,
            align: usize,
            _: Nothrow,
        ) -> *mut c_void {
            // SAFETY: goes on there.
            unsafe { pagoda_c_aligned(bytes, align) }
        }

        deletes! {
            #[doc = concat!("`operator delete", $form, "(void *) noexcept`")]
            $delete => free();
            #[doc = concat!("`operator delete", $form, "(void *, size_t) noexcept`")]
            $delete_sized => free_sized(bytes: usize);
            #[doc = concat!("`operator delete", $form, "(void *, std::nothrow_t const &) noexcept`")]
            $delete_nothrow => free(), _: Nothrow;
            #[doc = concat!("`operator delete", $form, "(void *, std::align_val_t) noexcept`")]
            $delete_aligned => free(), _: usize;
            #[doc = concat!("`operator delete", $form, "(void *, size_t, std::align_val_t) noexcept`")]
            $delete_sized_aligned => free_sized(bytes: usize), _: usize;
            #[doc = concat!(
                "`operator delete", $form,
                "(void *, std::align_val_t, std::nothrow_t const &) noexcept`"
            )]
            $delete_aligned_nothrow => free(), _: usize, _: Nothrow;
        }
    };
}

/// Operators that free a block: what they tell of it, and what they pass over.
macro_rules! deletes {
    ($($(#[$doc:meta])* $name:ident => $free:ident($($told:ident: $told_type:ty)?)
        $(, _: $other:ty)*;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// The block came from here and is not used again.
        #[unsafe(no_mangle)]
        #[allow(non_snake_case)]
        pub unsafe extern "C" fn $name(block: *mut c_void, $($told: $told_type,)? $(_: $other),*) {
            // SAFETY: the caller's promise is ours.
            unsafe { process::$free(block.cast(), $($told)?) }
        }
    )*};
}

operators! {
    "",
    new: _Znwm, _ZnwmRKSt9nothrow_t, _ZnwmSt11align_val_t, _ZnwmSt11align_val_tRKSt9nothrow_t,
    delete: _ZdlPv, _ZdlPvm, _ZdlPvRKSt9nothrow_t, _ZdlPvSt11align_val_t,
    _ZdlPvmSt11align_val_t, _ZdlPvSt11align_val_tRKSt9nothrow_t,
}

operators! {
    "[]",
    new: _Znam, _ZnamRKSt9nothrow_t, _ZnamSt11align_val_t, _ZnamSt11align_val_tRKSt9nothrow_t,
    delete: _ZdaPv, _ZdaPvm, _ZdaPvRKSt9nothrow_t, _ZdaPvSt11align_val_t,
    _ZdaPvmSt11align_val_t, _ZdaPvSt11align_val_tRKSt9nothrow_t,
}
