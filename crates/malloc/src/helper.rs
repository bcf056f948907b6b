//! # The thread that gives back what is idle ([`crate::idle`]), on Linux
//!
//! Made by a system call, not by the C library:
//!
//! - It is started where something is freed, and the C library frees under locks that its own
//!   `pthread_create` takes (the stacks of threads that ended). This way takes none, allocates nothing, and
//!   is the same for a shared object, a static program, and Rust's global allocator.
//! - A process ends when its last thread does, as the C library counts them. A program whose `main` leaves by
//!   `pthread_exit` would wait for ever for a helper that is in the count.
//! - No signal reaches it: it blocks all, also those that the C library keeps for itself; nor does
//!   the library send it any, for it does not know it.
//!
//! Where the C library does not tell of forks (a static program without `pthread_atfork`), there is none.
//!
//! What it must not do in turn: call the C library, or use thread-local storage but for the one slot that
//! it has (which says that it has no heap).
//!
//! A change of user (`setuid`) passes it by: the kernel knows users by thread, and the C library tells only
//! its own. So it must have nothing to keep: in a process with privileges (root, set-user-ID, capabilities)
//! it first gives up every system call but a few harmless ones, by a filter of its own; where there are no
//! filters, there is no helper. (A program with privileges that later puts a filter on all of its threads at
//! once is then refused: `PAGODA_MALLOC=nohelper`.)
#![allow(unsafe_code)] // system calls, a stack of its own

use core::arch::asm;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::heap::Heap;
use crate::linux::{call, process};
use crate::process::PROCESS;
use crate::system::{PAGE_BYTES, System};

/// Bytes of the stack; a page that faults lies below.
const STACK: usize = 64 << 10;
/// Bytes above the stack: the slot, and what a thread pointer may be asked for.
const ABOVE: usize = 256;

const MPROTECT: usize = 10;
const SIGPROCMASK: usize = 14;
const YIELD: usize = 24;
const MADVISE: usize = 28;
const NANOSLEEP: usize = 35;
const CLONE: usize = 56;
const EXIT: usize = 60;
const READ: usize = 0;
const WRITE: usize = 1;
const SIGTIMEDWAIT: usize = 128;
const GETTID: usize = 186;
const GETRESUID: usize = 118;
const GETRESGID: usize = 120;
const CAPGET: usize = 125;
const PRCTL: usize = 157;
const FUTEX: usize = 202;
const RESTART: usize = 219;

const SETMASK: usize = 2;
/// Memory, directory, files, signals and semaphores of the process, of which it is a thread; a slot.
const THREAD: usize = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000 | 0x8_0000;

/// Whether we are told of forks. Without, a child could begin with a lock that the helper holds.
static MAY_BE: AtomicBool = AtomicBool::new(false);

/// Says whether there may be one.
pub fn may_be(told_of_forks: bool) {
    MAY_BE.store(told_of_forks, Ordering::Relaxed);
}

/// Where the stack lies.
static MEMORY: AtomicUsize = AtomicUsize::new(0);

/// Starts it. False: it cannot be.
#[cold]
pub fn start() -> bool {
    let heap = PROCESS.own_heap();
    // A child that only borrows the memory of its parent, until it runs another program, starts no threads.
    let borrows = heap.is_some_and(|heap| heap.process.load(Ordering::Relaxed) != process());
    if borrows || !MAY_BE.load(Ordering::Relaxed) {
        return false;
    }
    let Some(start) = memory() else { return false };
    let top = start + PAGE_BYTES + STACK;
    let slot: *mut *const Heap = ptr::with_exposed_provenance_mut(top);
    let (all, mut old) = (u64::MAX, 0_u64);
    // SAFETY: the memory is nobody else's. Signals are blocked before the thread is there, and are as before
    // after.
    unsafe {
        slot.write(Heap::none());
        call(SIGPROCMASK, [SETMASK, &raw const all as usize, &raw mut old as usize, 8, 0, 0]);
        let result: isize;
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "call {run}",
            "ud2",
            "2:",
            run = sym run,
            inlateout("rax") CLONE as isize => result,
            in("rdi") THREAD,
            in("rsi") top,
            in("rdx") 0,
            in("r10") 0,
            in("r8") top.wrapping_sub(slot_offset()),
            lateout("rcx") _,
            lateout("r11") _,
        );
        call(SIGPROCMASK, [SETMASK, &raw const old as usize, 0, 8, 0, 0]);
        result > 0
    }
}

/// How far the slot lies from what a thread pointer points to.
fn slot_offset() -> usize {
    let offset;
    // SAFETY: loads what the linker put there.
    unsafe {
        asm!(
            "mov {0}, qword ptr [rip + pagoda_malloc_heap_0_1@GOTTPOFF]",
            out(reg) offset,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    offset
}

const WHOLE: usize = (PAGE_BYTES + STACK + ABOVE).next_multiple_of(PAGE_BYTES);

fn memory() -> Option<usize> {
    let start = PROCESS.system().map(WHOLE)?.as_ptr().expose_provenance();
    // SAFETY: the first page of a fresh mapping.
    unsafe { call(MPROTECT, [start, PAGE_BYTES, 0, 0, 0, 0]) };
    MEMORY.store(start, Ordering::Relaxed);
    Some(start)
}

/// In a child after fork: the stack is nobody's.
pub fn after_fork() {
    let start = ptr::with_exposed_provenance_mut(MEMORY.swap(0, Ordering::Relaxed));
    if let Some(start) = NonNull::new(start) {
        // SAFETY: the parent's helper, which used it, is not in this process.
        unsafe { PROCESS.system().unmap(start, WHOLE) };
    }
}

extern "C" fn run() -> ! {
    const SET_NAME: usize = 15;
    // SAFETY: a name that ends with a zero.
    unsafe { call(PRCTL, [SET_NAME, c"pagoda-malloc".as_ptr() as usize, 0, 0, 0, 0]) };
    if has_privileges() && !give_up() {
        PROCESS.no_helper();
        loop {
            // SAFETY: ends this thread, whose stack nobody uses again: there will be no other.
            unsafe { call(EXIT, [0; 6]) };
        }
    }
    PROCESS.tend()
}

/// Whether the process may become somebody else, or do what not everybody may.
fn has_privileges() -> bool {
    let (mut users, mut groups) = ([0_u32; 3], [0_u32; 3]);
    // Version 3, this thread; then effective, permitted, inheritable, twice.
    let (head, mut sets) = ([0x2008_0522_u32, 0], [[1_u32; 3]; 2]);
    let at =
        |numbers: &mut [u32; 3], index: usize| numbers.as_mut_ptr().wrapping_add(index) as usize;
    // SAFETY: places for what is asked.
    unsafe {
        let [a, b, c] = [0, 1, 2].map(|index| at(&mut users, index));
        call(GETRESUID, [a, b, c, 0, 0, 0]);
        let [a, b, c] = [0, 1, 2].map(|index| at(&mut groups, index));
        call(GETRESGID, [a, b, c, 0, 0, 0]);
        call(CAPGET, [head.as_ptr() as usize, sets.as_mut_ptr() as usize, 0, 0, 0, 0]);
    }
    let one = |[a, b, c]: [u32; 3]| a == b && b == c;
    !one(users) || !one(groups) || users == [0; 3] || sets.iter().any(|set| set[1] != 0)
}

/// Gives up all system calls but those that are needed, by the helper or by a machine that plays this one
/// (valgrind); none of them opens, changes or asks for anything that is not there. False: that cannot be.
fn give_up() -> bool {
    const NO_NEW_PRIVILEGES: usize = 38;
    const SET_FILTER: [usize; 2] = [22, 2];
    const NEEDED: [usize; 11] = [
        MADVISE,
        FUTEX,
        NANOSLEEP,
        RESTART,
        WRITE,
        EXIT,
        READ,
        SIGPROCMASK,
        YIELD,
        SIGTIMEDWAIT,
        GETTID,
    ];
    /// An instruction of the filter: code, how far to jump if equal and if not, number.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Step(u16, u8, u8, u32);
    const LOAD: u16 = 0x20;
    const IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 6;
    const ALLOW: u32 = 0x7fff_0000;
    const REFUSE: u32 = 0x0005_0001;
    const X86_64: u32 = 0xc000_003e;
    const LENGTH: usize = NEEDED.len() + 5;
    let mut steps = [Step(RETURN, 0, 0, REFUSE); LENGTH];
    // The machine stands at byte 4 of what the filter sees, the call's number at byte 0.
    steps[0] = Step(LOAD, 0, 0, 4);
    steps[1] = Step(IF_EQUAL, 0, NEEDED.len() as u8 + 1, X86_64);
    steps[2] = Step(LOAD, 0, 0, 0);
    for (index, &number) in NEEDED.iter().enumerate() {
        let to_allow = (NEEDED.len() - index) as u8;
        steps[3 + index] = Step(IF_EQUAL, to_allow, 0, number as u32);
    }
    steps[LENGTH - 1] = Step(RETURN, 0, 0, ALLOW);
    // SAFETY: a filter of that many steps: its length in two bytes, its address in the next word.
    unsafe {
        let filter = [LENGTH, steps.as_ptr() as usize];
        call(PRCTL, [NO_NEW_PRIVILEGES, 1, 0, 0, 0, 0]) == 0
            && call(PRCTL, [SET_FILTER[0], SET_FILTER[1], filter.as_ptr() as usize, 0, 0, 0]) == 0
    }
}
