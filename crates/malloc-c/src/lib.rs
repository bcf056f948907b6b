//! # malloc for programs in C and C++
//!
//! `libpagoda_malloc.so` (for `LD_PRELOAD`, or linked) and `libpagoda_malloc.a`: names that C, C++ and
//! glibc define for the allocator of the process, [`pagoda_malloc_core::PROCESS`].
//!
//! - `c`: allocation and its errors, as the C standard, POSIX and glibc have them.
//! - `cxx`: the twenty replaceable operators of C++.
//! - `tell`: statistics and tuning.
//!
//! What the program must have: a C library that defines `__errno_location` and `pthread_atfork`. Taken when
//! present, by weak reference: thread hooks, `fputs`, and what libstdc++ has to report that memory ran out.
//!
//! Left out: `__malloc_hook` and its kin, `malloc_set_state`; the tuning of `mallopt` (its hints are
//! accepted, and change nothing).
#![no_std]
// This crate is a table of foreign names.
#![allow(unsafe_code)]

// Where panics unwind, the standard library must bring its handler. Release builds abort and need
// neither it nor the unwinder: `ldd` shows the C library alone.
#[cfg(not(panic = "abort"))]
extern crate std;

/// Nothing here is meant to panic; if it does, it says so and ends the program.
#[cfg(panic = "abort")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    pagoda_malloc_core::linux::abort(b"pagoda-malloc: broken: a check inside failed\n")
}

// What was asked for at the end of the program.
#[used]
#[unsafe(link_section = ".fini_array")]
static AT_EXIT: extern "C" fn() = {
    extern "C" fn at_exit() {
        pagoda_malloc_core::process::at_exit();
    }
    at_exit
};

// The allocator asks for this by weak name, which brings nothing into a static program. With musl, only this
// one tells of forks.
#[used]
static AT_FORK: unsafe extern "C" fn(Handler, Handler, Handler) -> core::ffi::c_int = {
    unsafe extern "C" {
        fn pthread_atfork(_: Handler, _: Handler, _: Handler) -> core::ffi::c_int;
    }
    pthread_atfork
};
type Handler = Option<unsafe extern "C" fn()>;

mod c;
mod cxx;
mod tell;
mod weak;

// The routine that an unwinder asks about a function of Rust's: only an exception of C++, thrown by
// `operator new`, ever passes here, and there is nothing to clean up: go on (`_URC_CONTINUE_UNWIND`).
// Weak, so that a program that has the standard library keeps that one's.
#[cfg(panic = "abort")]
core::arch::global_asm!(
    ".weak rust_eh_personality",
    ".type rust_eh_personality, @function",
    "rust_eh_personality:",
    "mov eax, 8",
    "ret",
);
