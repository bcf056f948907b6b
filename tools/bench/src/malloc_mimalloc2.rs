//! mimalloc 2 beside mimalloc 3. The crate builds one of them: both in one program would define the same
//! names. So version 2 is Debian's shared object, opened with its names kept to itself, and called through
//! pointers: one instruction more for each call than the crates pay.

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::c_void;
use std::sync::OnceLock;

/// Two functions of mimalloc 2.
pub struct Mimalloc2 {
    malloc: unsafe extern "C" fn(usize) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void),
}

// SAFETY: mimalloc's own promise; its alignment, 16 bytes, serves what is measured here.
unsafe impl GlobalAlloc for Mimalloc2 {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { (self.malloc)(layout.size()).cast() }
    }
    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
        // SAFETY: the caller's promise.
        unsafe { (self.free)(block.cast()) }
    }
}

/// It, if it is installed (`libmimalloc2.0`) and says that it is version 2.
pub fn mimalloc2() -> Option<&'static Mimalloc2> {
    static OPENED: OnceLock<Option<Mimalloc2>> = OnceLock::new();
    OPENED.get_or_init(open).as_ref()
}

fn open() -> Option<Mimalloc2> {
    // SAFETY: the object is mimalloc, whose functions have these types.
    unsafe {
        let library = libc::dlopen(c"libmimalloc.so.2".as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        if library.is_null() {
            return None;
        }
        let find = |name: &std::ffi::CStr| {
            let function = libc::dlsym(library, name.as_ptr());
            (!function.is_null()).then_some(function)
        };
        let version: extern "C" fn() -> i32 = std::mem::transmute(find(c"mi_version")?);
        if !(200..300).contains(&version()) {
            return None;
        }
        Some(Mimalloc2 {
            malloc: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(usize) -> *mut c_void>(
                find(c"mi_malloc")?,
            ),
            free: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void)>(find(
                c"mi_free",
            )?),
        })
    }
}
