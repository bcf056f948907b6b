//! Allocations that fail on purpose, to see what becomes of those who asked.
//!
//! An allocation *serves a program* when it is made by a thread of any process but the first, whose
//! end would be the end of everything: for a system call, a fault, an exit. Only such allocations
//! fail, of frames (tables, pages, stacks) and of blocks of the heap:
//!
//! - every n-th one, with `fail_every=N` on the kernel's command line (`fail_every=N,after=M`: the
//!   first M are left alone);
//! - the n-th one from now of one thread, once (`/proc/self/fail-nth`).
//!
//! It is in the spirit of Linux's `fail_page_alloc` and `failslab`.
//!
//! *probed*: a block of a size that this CPU gave back with its last operation on the heap does not
//! fail and is not counted. Whoever has no fallible constructor (`Arc`) asks for a block, gives it
//! back, and relies on finding it again.
#![allow(unsafe_code)] // implements the unsafe trait `GlobalAlloc`

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pagoda_sync::MAX_CPUS;

use super::console::say;
use super::host::KernelHeap;
use super::{backtrace, percpu};

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Frames.
    Frames,
    /// A block of the heap.
    Block,
}

/// What a CPU does at the moment.
struct Cpu {
    /// It serves a program that is not spared.
    serves: AtomicBool,
    /// This many allocations until one fails; 0: none does.
    nth: AtomicU64,
    /// *probed*: size and alignment of the block given back last, if nothing came after.
    probed: AtomicU64,
}

static CPUS: [Cpu; MAX_CPUS] = [const {
    Cpu { serves: AtomicBool::new(false), nth: AtomicU64::new(0), probed: AtomicU64::new(0) }
}; MAX_CPUS];

/// Is there anything to do at all? All that an allocation pays where there is not.
static ARMED: AtomicBool = AtomicBool::new(false);
/// Every so many; 0: none.
static EVERY: AtomicU64 = AtomicU64::new(0);
static AFTER: AtomicU64 = AtomicU64::new(0);
static SERVED: AtomicU64 = AtomicU64::new(0);
static FAILED: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// `fail_trace`: say where each one failed.
static TRACE: AtomicBool = AtomicBool::new(false);

/// Reads the command line.
pub(crate) fn configure(command_line: &[u8]) {
    for word in command_line.split(u8::is_ascii_whitespace) {
        if word == b"fail_trace" {
            TRACE.store(true, Ordering::Relaxed);
        }
        let Some(value) = word.strip_prefix(b"fail_every=") else { continue };
        let mut parts = value.split(|&byte| byte == b',');
        let number = |bytes: &[u8]| str::from_utf8(bytes).ok()?.parse::<u64>().ok();
        let every = parts.next().and_then(number).unwrap_or(0);
        let after = parts.next().and_then(|part| number(part.strip_prefix(b"after=")?));
        EVERY.store(every, Ordering::Relaxed);
        AFTER.store(after.unwrap_or(0), Ordering::Relaxed);
        ARMED.store(every != 0, Ordering::Relaxed);
    }
}

fn here() -> &'static Cpu {
    &CPUS[percpu::id().index() % MAX_CPUS]
}

/// Says whether what this CPU allocates from now on serves a program that may be harmed.
pub(crate) fn serve(may_fail: bool) {
    here().serves.store(may_fail, Ordering::Relaxed);
}

/// Lets the n-th allocation from now on this CPU fail (0: none); what was left of the last such
/// order.
pub(crate) fn fail_nth(nth: u64) -> u64 {
    if nth != 0 {
        ARMED.store(true, Ordering::Relaxed);
    }
    here().nth.swap(nth, Ordering::Relaxed)
}

/// Is this the allocation that fails?
#[inline]
pub(crate) fn strikes(what: What) -> bool {
    ARMED.load(Ordering::Relaxed) && decide(what)
}

#[cold]
fn decide(what: What) -> bool {
    let cpu = here();
    if !cpu.serves.load(Ordering::Relaxed) {
        return false;
    }
    let count = SERVED.fetch_add(1, Ordering::Relaxed) + 1;
    let every = EVERY.load(Ordering::Relaxed);
    let count = count.saturating_sub(AFTER.load(Ordering::Relaxed));
    let by_count = every != 0 && count != 0 && count.is_multiple_of(every);
    let nth = cpu.nth.load(Ordering::Relaxed);
    cpu.nth.store(nth.saturating_sub(1), Ordering::Relaxed);
    let strikes = by_count || nth == 1;
    if strikes {
        FAILED[what as usize].fetch_add(1, Ordering::Relaxed);
        if TRACE.load(Ordering::Relaxed) {
            say!("an allocation fails on purpose: {what:?}");
            backtrace::print_here();
        }
    }
    strikes
}

fn probe_word(layout: Layout) -> u64 {
    (layout.size() as u64) << 16 | layout.align().trailing_zeros() as u64 | 1 << 15
}

#[cold]
fn block_strikes(layout: Layout) -> bool {
    let probed = here().probed.swap(0, Ordering::Relaxed);
    probed != probe_word(layout) && decide(What::Block)
}

/// How many failed on purpose, if any were to.
pub(crate) fn report() {
    if ARMED.load(Ordering::Relaxed) {
        let [frames, blocks] = [0, 1].map(|what| FAILED[what].load(Ordering::Relaxed));
        let served = SERVED.load(Ordering::Relaxed);
        say!(
            "failures: {served} allocations for programs, of which {frames} of frames and {blocks} of blocks failed on purpose"
        );
    }
}

/// The heap as Rust's global allocator, with blocks that fail.
pub(crate) struct FailingHeap(pub(crate) KernelHeap);

// SAFETY: the heap's own implementation, or a null pointer without any effect.
unsafe impl GlobalAlloc for FailingHeap {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if ARMED.load(Ordering::Relaxed) && block_strikes(layout) {
            return null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { self.0.alloc(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        if ARMED.load(Ordering::Relaxed) {
            here().probed.store(probe_word(layout), Ordering::Relaxed);
        }
        // SAFETY: the caller's promise.
        unsafe { self.0.dealloc(ptr, layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if ARMED.load(Ordering::Relaxed) && block_strikes(layout) {
            return null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if ARMED.load(Ordering::Relaxed) && decide(What::Block) {
            return null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { self.0.realloc(ptr, layout, new_size) }
    }
}
