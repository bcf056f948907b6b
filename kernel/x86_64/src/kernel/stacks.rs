//! The kernel's own ranges (`pagoda-kva`), and threads' stacks out of them.
//!
//! A few stacks are kept when they are given back: mapping one costs as much as a hundred system
//! calls, and threads come and go. [`trim`] gives the kept ones up.
#![allow(unsafe_code)] // implements the unsafe trait `KernelPages`

use core::sync::atomic::{AtomicU64, Ordering};

use lock_api::Mutex;
use pagoda_addr::{Frame, PAGE_SIZE, VirtRange};
use pagoda_frames::Request;
use pagoda_kernel_core::machine::OutOfMemory;
use pagoda_kva::{KernelPages, Kva};
use pagoda_paging::{OutOfFrames, X86_64};
use pagoda_sync::rank;

use super::host::{KERNEL, Kernel, Lock, kind};

/// Pages of a stack.
const STACK_PAGES: u64 = 8;
/// Stacks kept for the next thread, at most.
const KEPT: usize = 8;

/// The kernel's own ranges.
pub(crate) type KernelRanges = Kva<'static, X86_64, &'static Kernel, &'static Kernel>;

// SAFETY: a frame from the frame allocator is its caller's alone, and `Kernel::release` gives it
// back.
unsafe impl KernelPages for Kernel {
    fn alloc_page(&self, zeroed: bool) -> Result<Frame, OutOfFrames> {
        let request = Request::frame().kind(kind::KVA);
        let request = if zeroed { request.zeroed() } else { request };
        Ok(self.take(&request).map_err(|_| OutOfFrames)?.start())
    }
}

static FREE: Mutex<Lock<{ rank::PAGE_TABLE }>, [Option<pagoda_kva::Stack>; KEPT]> =
    Mutex::new([const { None }; KEPT]);
static IN_USE: AtomicU64 = AtomicU64::new(0);

/// A kernel stack with a guard page on either side; given back when dropped.
#[derive(Debug)]
pub(crate) struct Stack(Option<pagoda_kva::Stack>);

impl Stack {
    /// A stack for a thread.
    pub(crate) fn new() -> Result<Self, OutOfMemory> {
        let kept = FREE.lock().iter_mut().find_map(Option::take);
        let stack = match kept {
            Some(stack) => stack,
            None => {
                let ranges = KERNEL.ranges.get().ok_or(OutOfMemory)?;
                ranges.alloc_stack(STACK_PAGES).map_err(|_| OutOfMemory)?
            }
        };
        IN_USE.fetch_add(1, Ordering::Relaxed);
        Ok(Self(Some(stack)))
    }

    /// The usable bytes.
    pub(crate) fn range(&self) -> VirtRange {
        self.0.as_ref().map(|stack| stack.pages().addresses()).unwrap_or_default()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let Some(stack) = self.0.take() else { return };
        IN_USE.fetch_sub(1, Ordering::Relaxed);
        let mut free = FREE.lock();
        match free.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(stack),
            None => {
                drop(free);
                give_back(stack);
            }
        }
    }
}

fn give_back(stack: pagoda_kva::Stack) {
    if let Some(Err(error)) = KERNEL.ranges.get().map(|ranges| ranges.free_stack(stack)) {
        panic!("a kernel stack cannot be given back: {error}");
    }
}

/// Gives back what is kept for later threads.
pub(crate) fn trim() {
    loop {
        let kept = FREE.lock().iter_mut().find_map(Option::take);
        match kept {
            Some(stack) => give_back(stack),
            None => return,
        }
    }
}

/// Threads' stacks in use.
pub(crate) fn in_use() -> u64 {
    IN_USE.load(Ordering::Relaxed)
}

/// Bytes of all stacks in use.
pub(crate) fn bytes_in_use() -> u64 {
    in_use() * STACK_PAGES * PAGE_SIZE
}
