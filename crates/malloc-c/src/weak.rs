//! Functions of other libraries that may be missing.

use core::ffi::{c_char, c_int, c_void};

/// The address of a function, if anybody defines it. The symbol must be declared weak below.
macro_rules! weak {
    ($symbol:literal as $kind:ty) => {{
        let address: *const core::ffi::c_void;
        // SAFETY: loads the symbol's address, zero when nobody defines it.
        unsafe {
            core::arch::asm!(
                concat!("mov {}, qword ptr [rip + ", $symbol, "@GOTPCREL]"),
                out(reg) address,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        // SAFETY: the function of that name has that type; null is `None`.
        unsafe { core::mem::transmute::<*const core::ffi::c_void, Option<$kind>>(address) }
    }};
}

core::arch::global_asm!(
    ".weak fputs",
    ".weak __errno_location",
    ".weak _ZSt15get_new_handlerv",
    ".weak _ZSt17__throw_bad_allocv",
);

/// `int fputs(const char *, FILE *)`.
pub type Fputs = unsafe extern "C" fn(*const c_char, *mut c_void) -> c_int;
/// `std::new_handler`.
pub type NewHandler = unsafe extern "C-unwind" fn();
type ErrnoLocation = unsafe extern "C" fn() -> *mut c_int;
type GetNewHandler = unsafe extern "C" fn() -> Option<NewHandler>;
type ThrowBadAlloc = unsafe extern "C-unwind" fn() -> !;

/// `errno` of no memory.
pub const ENOMEM: c_int = 12;
/// `errno` of a bad argument.
pub const EINVAL: c_int = 22;

/// Sets `errno`.
#[cold]
pub fn set_errno(value: c_int) {
    if let Some(location) = weak!("__errno_location" as ErrnoLocation) {
        // SAFETY: the C library gives this thread's errno.
        unsafe { location().write(value) };
    }
}

/// The program's new-handler.
pub fn new_handler() -> Option<NewHandler> {
    let get = weak!("_ZSt15get_new_handlerv" as GetNewHandler)?;
    // SAFETY: `std::get_new_handler` takes nothing and reads a pointer.
    unsafe { get() }
}

/// `std::__throw_bad_alloc`, if the program has libstdc++.
pub fn throw_bad_alloc() -> Option<ThrowBadAlloc> {
    weak!("_ZSt17__throw_bad_allocv" as ThrowBadAlloc)
}

/// `fputs`, if the program has a C library with files.
pub fn fputs() -> Option<Fputs> {
    weak!("fputs" as Fputs)
}
