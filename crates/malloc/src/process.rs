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

use crate::allocator::{Allocator, MIN_ALIGN, Short, push, rarely};
use crate::classes::SMALL_MAX;
use crate::heap::{Heap, NO_HEAP};
use crate::linux::{self, Linux, process};
use crate::options::Options;
pub use crate::report::{at_exit, write_picture, write_profile};
use crate::system::Local;
use crate::unit::{NONE, Unit};

global_asm!(
    ".section .tdata.pagoda_malloc_heap_0_1,\"awT\",@progbits",
    ".balign 8",
    ".globl pagoda_malloc_heap_0_1",
    ".hidden pagoda_malloc_heap_0_1",
    ".type pagoda_malloc_heap_0_1, @object",
    ".size pagoda_malloc_heap_0_1, 8",
    "pagoda_malloc_heap_0_1:",
    ".quad {none}",
    // What `Window::unit_of` needs, where an instruction reaches it: headers, mask. Then: 1 in hardened mode, -1
    // while allocations are sampled, else 0.
    ".section .data.pagoda_malloc_window_0_1,\"aw\",@progbits",
    ".balign 16",
    ".globl pagoda_malloc_window_0_1",
    ".hidden pagoda_malloc_window_0_1",
    ".type pagoda_malloc_window_0_1, @object",
    ".size pagoda_malloc_window_0_1, 24",
    "pagoda_malloc_window_0_1:",
    ".quad {no_unit}",
    ".quad 0",
    ".quad 0",
    // The slow ways, told who called: the address that a tail call leaves on the stack.
    ".text",
    ".globl pagoda_malloc_alloc_slow_0_1",
    ".hidden pagoda_malloc_alloc_slow_0_1",
    ".type pagoda_malloc_alloc_slow_0_1, @function",
    "pagoda_malloc_alloc_slow_0_1:",
    "mov rsi, qword ptr [rsp]",
    "cmp byte ptr [rip + pagoda_malloc_window_0_1 + 16], 0",
    "je {alloc_slow}",
    "js {sampled_alloc}",
    "jmp {hard_alloc}",
    ".globl pagoda_malloc_free_slow_0_1",
    ".hidden pagoda_malloc_free_slow_0_1",
    ".type pagoda_malloc_free_slow_0_1, @function",
    "pagoda_malloc_free_slow_0_1:",
    "mov rsi, -1",
    ".globl pagoda_malloc_free_sized_slow_0_1",
    ".hidden pagoda_malloc_free_sized_slow_0_1",
    ".type pagoda_malloc_free_sized_slow_0_1, @function",
    "pagoda_malloc_free_sized_slow_0_1:",
    "mov rdx, qword ptr [rsp]",
    "cmp byte ptr [rip + pagoda_malloc_window_0_1 + 16], 0",
    "jle {free_slow}",
    "jmp {hard_free}",
    ".weak pthread_key_create",
    ".weak pthread_setspecific",
    ".weak pthread_atfork",
    ".weak __register_atfork",
    ".weak _Unwind_Backtrace",
    ".weak _Unwind_GetIP",
    ".weak backtrace",
    none = sym NO_HEAP,
    no_unit = sym NONE,
    alloc_slow = sym alloc_slow_from,
    free_slow = sym free_slow_from,
    hard_alloc = sym hard_alloc_from,
    sampled_alloc = sym sampled_alloc_from,
    hard_free = sym hard_free_from,
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

    fn opened(&self, headers: *const u8, mask: usize) {
        // SAFETY: once, under a lock; both of the words lead to some readable header at all times.
        unsafe {
            asm!(
                "mov qword ptr [rip + pagoda_malloc_window_0_1], {0}",
                "mov qword ptr [rip + pagoda_malloc_window_0_1 + 8], {1}",
                in(reg) headers,
                in(reg) mask,
                options(nostack, preserves_flags)
            );
        }
        let hardened = PROCESS.options().has(Options::HARDENED);
        if PROCESS.is_watched() {
            // SAFETY: as above; from now on the slow ways are others.
            unsafe {
                asm!(
                    "mov byte ptr [rip + pagoda_malloc_window_0_1 + 16], {0}",
                    in(reg_byte) if hardened { 1_i8 } else { -1 },
                    options(nostack, preserves_flags)
                );
            }
        }
        if hardened {
            linux::watch_faults(fault);
        }
    }

    fn prepare(&self) {
        ask();
    }

    fn arm(&self, heap: *const Heap) {
        hooks(heap);
    }

    fn helper(&self) -> bool {
        crate::helper::start()
    }

    fn callers(&self, all: &mut [usize]) -> usize {
        callers(all)
    }
}

unsafe extern "C" fn fault(_signal: c_int, info: *const [usize; 3], _context: *const u8) {
    // SAFETY: the kernel gives a `siginfo_t`, whose third word is the address.
    PROCESS.blame_fault(unsafe { (*info)[2] });
}

type Handler = unsafe extern "C" fn();
type KeyCreate = unsafe extern "C" fn(*mut u32, unsafe extern "C" fn(*mut c_void)) -> c_int;
type SetSpecific = unsafe extern "C" fn(u32, *const c_void) -> c_int;
type AtFork = unsafe extern "C" fn(Handler, Handler, Handler) -> c_int;
type RegisterAtFork = unsafe extern "C" fn(Handler, Handler, Handler, *const c_void) -> c_int;

type Walk = unsafe extern "C" fn(Frame, *mut c_void) -> c_int;
type Frame = *const c_void;
type Unwind = unsafe extern "C" fn(Walk, *mut c_void) -> c_int;
type Pc = unsafe extern "C" fn(Frame) -> usize;
type Backtrace = unsafe extern "C" fn(*mut usize, c_int) -> c_int;

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

/// Asks for the hooks once. Not before there is a second thread: a program with one needs none, and
/// asking costs pages of the C library that it would not touch otherwise.
fn ask() {
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
}

/// Asks for the end of this thread.
fn hooks(heap: *const Heap) {
    let key = KEY.load(Ordering::Acquire);
    // SAFETY: `heap` is the running thread's.
    let first = unsafe { (*heap).thread.load(Ordering::Relaxed) } == process();
    let known = key != 0 && key != NO_KEY;
    if let (false, true, Some(set)) = (first, known, weak!("pthread_setspecific" as SetSpecific)) {
        // SAFETY: the key is ours. The call may allocate: this thread has its heap already.
        unsafe { set(key - 1, heap.cast()) };
    }
}

fn at_fork() {
    let register = weak!("__register_atfork" as RegisterAtFork);
    let failed = match (register, weak!("pthread_atfork" as AtFork)) {
        // SAFETY: the handlers live as long as the program.
        (Some(register), _) => unsafe {
            register(before_fork, after_fork_in_parent, after_fork_in_child, ptr::null())
        },
        // SAFETY: as above.
        (None, Some(register)) => unsafe {
            register(before_fork, after_fork_in_parent, after_fork_in_child)
        },
        (None, None) => -1,
    };
    crate::helper::may_be(failed == 0);
}

/// The calls around this one, by the tables that programs have for exceptions: with the unwinder, if the program has
/// it loaded (C++ and Rust do), else by the C library's `backtrace`, which loads it.
fn callers(all: &mut [usize]) -> usize {
    let mut found = Found { all, count: 0 };
    match weak!("_Unwind_Backtrace" as Unwind) {
        // SAFETY: the walk gets what it expects, which outlives the call.
        Some(unwind) => unsafe { unwind(walk, (&raw mut found).cast()) },
        None => {
            let room = found.all.len() as c_int;
            // SAFETY: there is room for so many addresses.
            let count = weak!("backtrace" as Backtrace)
                .map_or(0, |backtrace| unsafe { backtrace(found.all.as_mut_ptr(), room) });
            found.count = usize::try_from(count).unwrap_or(0);
            0
        }
    };
    found.count
}

struct Found<'a> {
    all: &'a mut [usize],
    count: usize,
}

/// Notes one call. Goes on as long as there is room (the numbers are `_URC_NO_REASON` and `_URC_END_OF_STACK`).
unsafe extern "C" fn walk(frame: Frame, found: *mut c_void) -> c_int {
    // SAFETY: `callers` gives it, and looks at it only when the walk is over.
    let found = unsafe { &mut *found.cast::<Found<'_>>() };
    let (Some(place), Some(pc)) = (found.all.get_mut(found.count), weak!("_Unwind_GetIP" as Pc))
    else {
        return 5;
    };
    // SAFETY: the unwinder's own.
    *place = unsafe { pc(frame) };
    found.count += 1;
    0
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
    crate::helper::after_fork();
}

unsafe extern "C" {
    fn pagoda_malloc_alloc_slow_0_1(bytes: usize) -> *mut u8;
    fn pagoda_malloc_free_slow_0_1(at: *mut u8);
    fn pagoda_malloc_free_sized_slow_0_1(at: *mut u8, bytes: usize);
}

/// A block of the process's allocator: [`Allocator::alloc`], whose slow way is compiled once.
#[inline(always)]
pub fn alloc(bytes: usize) -> *mut u8 {
    let block = if bytes > SMALL_MAX { take_at_hand(bytes) } else { PROCESS.alloc_short(bytes) };
    if block.is_null() {
        rarely();
        // SAFETY: goes on in `alloc_slow_from`.
        return unsafe { pagoda_malloc_alloc_slow_0_1(bytes) };
    }
    block
}

/// [`Allocator::take_at_hand`], compiled once; straight there and back.
#[inline(never)]
extern "C" fn take_at_hand(bytes: usize) -> *mut u8 {
    PROCESS.take_at_hand(bytes)
}

/// [`Allocator::give_at_hand`], compiled once.
#[inline(never)]
extern "C" fn give_at_hand(at: *mut u8) -> bool {
    PROCESS.give_at_hand(at)
}

/// The short way alone; null when there is none.
#[inline(always)]
pub fn alloc_short(bytes: usize) -> *mut u8 {
    PROCESS.alloc_short(bytes)
}

/// The way of [`alloc`] when there is no short one; `pc` is who asks.
#[cold]
pub extern "C-unwind" fn alloc_slow_from(bytes: usize, pc: usize) -> *mut u8 {
    PROCESS.alloc_long(bytes, pc)
}

/// Frees a block of the process's allocator: [`Allocator::free`], whose slow way is compiled once.
///
/// # Safety
/// As for [`Allocator::free`].
#[inline(always)]
pub unsafe fn free(at: *mut u8) {
    // SAFETY: the caller's promise is ours.
    unsafe {
        match free_short(at) {
            Short::Done => {}
            Short::Look => free_look(at),
            Short::Other => pagoda_malloc_free_slow_0_1(at),
        }
    }
}

/// Frees a block whose size is known: a large one goes its own way at once.
///
/// # Safety
/// As for [`Allocator::free`]; the size is the one that was asked for.
#[inline(always)]
pub unsafe fn free_sized(at: *mut u8, bytes: usize) {
    // SAFETY: the caller's promise is ours.
    unsafe {
        if bytes > SMALL_MAX {
            if !give_at_hand(at) {
                rarely();
                pagoda_malloc_free_sized_slow_0_1(at, bytes);
            }
            return;
        }
        match free_short(at) {
            Short::Done => {}
            Short::Look => free_look(at),
            Short::Other => pagoda_malloc_free_sized_slow_0_1(at, bytes),
        }
    }
}

/// [`Allocator::free_short`] on top of [`look_up`].
#[inline(always)]
unsafe fn free_short(at: *mut u8) -> Short {
    // SAFETY: the caller's promise is ours.
    unsafe {
        let (unit, is_own) = look_up(at);
        if is_own { push(unit, at) } else { Short::Other }
    }
}

/// The header that is responsible for a place, and whether it is the start of a block in a slab of this
/// thread's: [`Unit::holds_for`] in the instructions that a compiler does not find, which takes no operand of
/// an arithmetic instruction from memory that others may write.
#[inline(always)]
fn look_up(at: *mut u8) -> (*const Unit, bool) {
    let (unit, scaled): (*const Unit, u64);
    // SAFETY: *every-header-readable*; see *one-compare* for what is computed, and `Unit` for the order
    // of the fields.
    unsafe {
        asm!(
            "shr {unit}, 8",
            "and {unit}, qword ptr [rip + pagoda_malloc_window_0_1 + 8]",
            "add {unit}, qword ptr [rip + pagoda_malloc_window_0_1]",
            "mov {scaled}, qword ptr [rip + pagoda_malloc_heap_0_1@GOTTPOFF]",
            "mov {scaled}, qword ptr fs:[{scaled}]",
            "add {scaled}, {at}",
            "sub {scaled}, qword ptr [{unit} + {key}]",
            "imul {scaled}, qword ptr [{unit} + {multiplier}]",
            unit = inout(reg) at => unit,
            scaled = out(reg) scaled,
            at = in(reg) at,
            key = const core::mem::offset_of!(Unit, key),
            multiplier = const core::mem::offset_of!(Unit, multiplier),
            options(pure, readonly, nostack)
        );
        (unit, scaled < (*unit).limit.load(Ordering::Relaxed))
    }
}

#[cold]
#[inline(never)]
unsafe fn free_look(at: *mut u8) {
    // SAFETY: as `free` has seen.
    unsafe { PROCESS.free_look(at) }
}

#[cold]
unsafe extern "C-unwind" fn free_slow_from(at: *mut u8, bytes: usize, pc: usize) {
    // SAFETY: the caller's promise is ours.
    unsafe { PROCESS.free_long(at, bytes, pc) }
}

/// [`alloc_slow_from`] in hardened mode.
#[inline(always)]
pub extern "C" fn hard_alloc_from(bytes: usize, pc: usize) -> *mut u8 {
    let block = PROCESS.hard_alloc_short(bytes, pc);
    if block.is_null() { PROCESS.hard_alloc_rest(bytes, 1, false, pc) } else { block }
}

/// [`alloc_slow_from`] while allocations are sampled.
#[inline(always)]
pub extern "C" fn sampled_alloc_from(bytes: usize, pc: usize) -> *mut u8 {
    PROCESS.sampled_alloc(bytes, pc)
}

unsafe extern "C" fn hard_free_from(at: *mut u8, bytes: usize, pc: usize) {
    PROCESS.hard_free(at, bytes, pc);
}

/// [`Allocator::alloc_zeroed`]; `pc` is who asks.
pub fn alloc_zeroed(bytes: usize, pc: usize) -> *mut u8 {
    PROCESS.alloc_zeroed_from(bytes, pc)
}

/// [`Allocator::alloc_aligned`]; `pc` is who asks.
pub fn alloc_aligned(bytes: usize, align: usize, pc: usize) -> *mut u8 {
    PROCESS.alloc_aligned_from(bytes, align, pc)
}

/// [`Allocator::realloc`]; `pc` is who asks.
///
/// # Safety
/// As there.
pub unsafe fn realloc(at: *mut u8, bytes: usize, pc: usize) -> *mut u8 {
    // SAFETY: the caller's promise is ours.
    unsafe { PROCESS.realloc_from(at, bytes, pc) }
}

/// [`Allocator::usable`]. Short for what this thread allocated: there are programs that ask for each block
/// when it comes and again when it goes.
///
/// # Safety
/// As there.
#[inline(always)]
pub unsafe fn usable(at: *mut u8) -> usize {
    let (unit, is_own) = look_up(at);
    if is_own {
        // SAFETY: *every-header-readable*.
        return unsafe { &*unit }.class().bytes as usize;
    }
    // SAFETY: the caller's promise is ours.
    unsafe { usable_long(at) }
}

#[cold]
#[inline(never)]
unsafe fn usable_long(at: *mut u8) -> usize {
    // SAFETY: the caller's promise is ours.
    unsafe { PROCESS.usable(at) }
}

/// [`Allocator::trim`].
pub fn trim(keep: usize) -> usize {
    PROCESS.trim(keep)
}

/// [`Allocator::stats`].
pub fn stats() -> crate::Stats {
    PROCESS.stats()
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
        trim(keep)
    }

    /// How the allocator stands.
    pub fn stats(&self) -> crate::Stats {
        stats()
    }
}

// SAFETY: blocks are as large and as aligned as the layout says, and nobody else's until freed.
unsafe impl GlobalAlloc for Malloc {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() <= MIN_ALIGN {
            alloc(layout.size())
        } else {
            alloc_aligned(layout.size(), layout.align(), 0)
        }
    }

    #[inline]
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is ours.
        unsafe { free_sized(at, layout.size()) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.align() <= MIN_ALIGN {
            alloc_zeroed(layout.size(), 0)
        } else {
            PROCESS.alloc_aligned_zeroed(layout.size(), layout.align())
        }
    }

    #[inline]
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        if layout.align() <= MIN_ALIGN {
            // SAFETY: the caller's promise is ours.
            return unsafe { realloc(at, bytes, 0) };
        }
        let new = alloc_aligned(bytes, layout.align(), 0);
        if !new.is_null() {
            // SAFETY: both blocks have at least that many bytes, and are different ones.
            unsafe {
                ptr::copy_nonoverlapping(at, new, layout.size().min(bytes));
                free(at);
            }
        }
        new
    }
}
