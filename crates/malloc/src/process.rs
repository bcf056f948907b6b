//! # The process's own allocator
//!
//! A process has one thread-local slot for malloc, and so it has one allocator: [`PROCESS`], which
//! [`Malloc`] and the C face both are names for. The slot is a pointer in initial-exec thread-local
//! storage: two loads, no call, no allocation, in programs as well as in shared objects that are loaded
//! at the start.
//!
//! The end of threads, and fork, are learnt from the C library when the program has one that offers
//! `pthread_key_create` and `__register_atfork` (or `pthread_atfork`): they are looked up weakly. A
//! program without them works as well: heaps of threads that ended are found by their numbers.
//!
//! Left out: programs without any thread-local storage set up (give [`crate::Allocator`] a
//! [`crate::Local`] of your own).
#![allow(unsafe_code)] // thread-local storage, the C library's hooks, GlobalAlloc

use core::alloc::{GlobalAlloc, Layout};
use core::arch::{asm, global_asm};
use core::ffi::{c_int, c_void};
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::allocator::{Allocator, MIN_ALIGN};
use crate::heap::{Heap, NO_HEAP};
use crate::linux::{Linux, process};
use crate::system::Local;

global_asm!(
    ".section .tdata.pagoda_malloc_heap_0_1,\"awT\",@progbits",
    ".balign 8",
    ".globl pagoda_malloc_heap_0_1",
    ".hidden pagoda_malloc_heap_0_1",
    ".type pagoda_malloc_heap_0_1, @object",
    ".size pagoda_malloc_heap_0_1, 8",
    "pagoda_malloc_heap_0_1:",
    ".quad {none}",
    ".text",
    ".weak pthread_key_create",
    ".weak pthread_setspecific",
    ".weak pthread_atfork",
    ".weak __register_atfork",
    none = sym NO_HEAP,
);

/// The allocator of this process.
pub static PROCESS: Allocator<Linux, Slot> = Allocator::new(Linux, Slot);

/// The process's thread-local slot.
#[derive(Debug)]
pub struct Slot;

// SAFETY: the slot starts as `Heap::none()` in each thread, and only `set` changes it.
unsafe impl Local for Slot {
    #[inline(always)]
    fn get(&self) -> *const Heap {
        let heap;
        // SAFETY: reads the running thread's slot.
        unsafe {
            asm!(
                "mov {0}, qword ptr [rip + pagoda_malloc_heap_0_1@GOTTPOFF]",
                "mov {0}, qword ptr fs:[{0}]",
                out(reg) heap,
                options(pure, readonly, nostack, preserves_flags)
            );
        }
        heap
    }

    fn set(&self, heap: *const Heap) {
        // SAFETY: writes the running thread's slot.
        unsafe {
            asm!(
                "mov {0}, qword ptr [rip + pagoda_malloc_heap_0_1@GOTTPOFF]",
                "mov qword ptr fs:[{0}], {1}",
                out(reg) _,
                in(reg) heap,
                options(nostack, preserves_flags)
            );
        }
    }

    fn arm(&self, heap: *const Heap) {
        hooks(heap);
    }
}

type Handler = unsafe extern "C" fn();
type KeyCreate = unsafe extern "C" fn(*mut u32, unsafe extern "C" fn(*mut c_void)) -> c_int;
type SetSpecific = unsafe extern "C" fn(u32, *const c_void) -> c_int;
type AtFork = unsafe extern "C" fn(Handler, Handler, Handler) -> c_int;
type RegisterAtFork = unsafe extern "C" fn(Handler, Handler, Handler, *const c_void) -> c_int;

macro_rules! weak {
    ($symbol:literal as $kind:ty) => {{
        let address: *const c_void;
        // SAFETY: loads the symbol's address, zero when nobody defines it.
        unsafe {
            asm!(
                concat!("mov {}, qword ptr [rip + ", $symbol, "@GOTPCREL]"),
                out(reg) address,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        // SAFETY: the C library's function of that name has that type; null is `None`.
        unsafe { core::mem::transmute::<*const c_void, Option<$kind>>(address) }
    }};
}

/// Key + 1 of the C library's thread-specific value; 0 = not asked yet, [`NO_KEY`] = none.
static KEY: AtomicU32 = AtomicU32::new(0);
const NO_KEY: u32 = u32::MAX;

/// Asks for the hooks once, and for the end of this thread.
fn hooks(heap: *const Heap) {
    if KEY.compare_exchange(0, NO_KEY, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        at_fork();
        let mut key = 0;
        if let Some(create) = weak!("pthread_key_create" as KeyCreate) {
            // SAFETY: a key of our own, with a destructor that lives as long as the program.
            if unsafe { create(&raw mut key, thread_ends) } == 0 {
                KEY.store(key + 1, Ordering::Release);
            }
        }
    }
    let key = KEY.load(Ordering::Acquire);
    // SAFETY: `heap` is the running thread's.
    let first = unsafe { (*heap).thread.load(Ordering::Relaxed) } == process();
    if let (false, false, Some(set)) =
        (first, key == NO_KEY, weak!("pthread_setspecific" as SetSpecific))
    {
        // SAFETY: the key is ours. The call may allocate: this thread has its heap already.
        unsafe { set(key - 1, heap.cast()) };
    }
}

fn at_fork() {
    if let Some(register) = weak!("__register_atfork" as RegisterAtFork) {
        // SAFETY: the handlers live as long as the program.
        unsafe { register(before_fork, after_fork_in_parent, after_fork_in_child, ptr::null()) };
    } else if let Some(register) = weak!("pthread_atfork" as AtFork) {
        // SAFETY: as above.
        unsafe { register(before_fork, after_fork_in_parent, after_fork_in_child) };
    }
}

unsafe extern "C" fn thread_ends(_heap: *mut c_void) {
    PROCESS.thread_ends();
}

unsafe extern "C" fn before_fork() {
    PROCESS.before_fork();
}

unsafe extern "C" fn after_fork_in_parent() {
    PROCESS.after_fork_in_parent();
}

unsafe extern "C" fn after_fork_in_child() {
    PROCESS.after_fork_in_child();
}

/// The process's allocator as Rust's global allocator:
/// `#[global_allocator] static A: Malloc = Malloc::new();`
#[derive(Clone, Copy, Debug, Default)]
pub struct Malloc;

impl Malloc {
    /// The process's allocator.
    pub const fn new() -> Self {
        Self
    }

    /// Gives unused memory back to the system, but for `keep` bytes. Bytes given back.
    pub fn trim(&self, keep: usize) -> usize {
        PROCESS.trim(keep)
    }

    /// How the allocator stands.
    pub fn stats(&self) -> crate::Stats {
        PROCESS.stats()
    }
}

// SAFETY: blocks are as large and as aligned as the layout says, and nobody else's until freed.
unsafe impl GlobalAlloc for Malloc {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() <= MIN_ALIGN {
            PROCESS.alloc(layout.size())
        } else {
            PROCESS.alloc_aligned(layout.size(), layout.align())
        }
    }

    #[inline]
    unsafe fn dealloc(&self, at: *mut u8, _layout: Layout) {
        // SAFETY: the caller's promise is ours.
        unsafe { PROCESS.free(at) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.align() <= MIN_ALIGN {
            PROCESS.alloc_zeroed(layout.size())
        } else {
            PROCESS.alloc_aligned_zeroed(layout.size(), layout.align())
        }
    }

    #[inline]
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        if layout.align() <= MIN_ALIGN {
            // SAFETY: the caller's promise is ours.
            return unsafe { PROCESS.realloc(at, bytes) };
        }
        let new = PROCESS.alloc_aligned(bytes, layout.align());
        if !new.is_null() {
            // SAFETY: both blocks have at least that many bytes, and are different ones.
            unsafe {
                ptr::copy_nonoverlapping(at, new, layout.size().min(bytes));
                PROCESS.free(at);
            }
        }
        new
    }
}
