//! Kernel threads of the test machine: fibers that all run on the host thread of their test. So
//! one runs at a time, a switch costs a few instructions, and an ended one leaves nothing behind.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::arch::naked_asm;
use std::ptr::NonNull;

/// Bytes of a stack. Only what is touched costs memory.
const STACK: usize = 512 << 10;
/// Stands at the bottom of a stack that has not overflowed.
const CANARY: u64 = 0x0b57_ac1e_0b57_ac1e;

/// The memory of a stack.
pub struct FiberStack(NonNull<u8>);

// SAFETY: a stack is plain memory.
unsafe impl Send for FiberStack {}

impl FiberStack {
    fn layout() -> Layout {
        Layout::from_size_align(STACK, 64).unwrap()
    }

    pub fn new() -> Self {
        // SAFETY: the layout is not empty.
        let Some(base) = NonNull::new(unsafe { alloc(Self::layout()) }) else {
            handle_alloc_error(Self::layout())
        };
        // SAFETY: the block is large and aligned enough.
        unsafe { base.cast::<u64>().write(CANARY) };
        Self(base)
    }
}

impl Drop for FiberStack {
    fn drop(&mut self) {
        // SAFETY: as in `new`; nobody runs on it any more.
        unsafe {
            assert_eq!(self.0.cast::<u64>().read(), CANARY, "a kernel stack overflowed");
            dealloc(self.0.as_ptr(), Self::layout());
        }
    }
}

/// The saved stack pointer of a fiber that does not run; everything else stands on its stack.
#[derive(Default)]
pub struct Fiber(usize);

impl Fiber {
    /// One that calls `entry(argument)` on `stack` when it is first switched to.
    pub fn new(stack: &FiberStack, entry: extern "C" fn(usize) -> !, argument: usize) -> Self {
        // What `swap` takes from the stack: r15, r14, r13, r12, rbx, rbp, return address.
        let frame = [0, 0, argument, entry as usize, 0, 0, begin as *const () as usize];
        // SAFETY: within the block; the end of the frame is 16-byte aligned, as `begin` needs it.
        let at = unsafe { stack.0.add(STACK - size_of_val(&frame)) };
        // SAFETY: as above.
        unsafe { at.cast::<[usize; 7]>().write(frame) };
        Self(at.addr().get())
    }
}

/// Saves the running fiber in `from` and goes on in `to`.
///
/// # Safety
/// Both are valid; `to` was saved here or is new, and its stack lives.
pub unsafe fn switch(from: *mut Fiber, to: *const Fiber) {
    // SAFETY: by the caller's promise.
    unsafe { swap(&raw mut (*from).0, (*to).0) }
}

#[unsafe(naked)]
unsafe extern "C" fn swap(save: *mut usize, to: usize) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

#[unsafe(naked)]
unsafe extern "C" fn begin() {
    naked_asm!("mov rdi, r13", "call r12", "ud2")
}
