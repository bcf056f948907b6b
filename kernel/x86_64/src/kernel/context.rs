//! Threads of the kernel: where one left off, and going on in another.
#![allow(unsafe_code)] // changes stacks

use super::percpu;
use super::stacks::Stack;
use super::user::Border;

unsafe extern "C" {
    fn switch_stacks(from: *mut Context, to: *const Context);
    fn context_start();
}

/// Where a thread that does not run left off: its stack pointer (first: `switch_stacks` knows), and
/// its border to its program; all else is on the stack.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Context {
    rsp: u64,
    border: Border,
}

/// What `switch_stacks` pops, lowest address first.
#[repr(C)]
struct Pushed {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    rbx: u64,
    rbp: u64,
    rip: u64,
    /// Where `context_start`'s caller would be: the end of a backtrace.
    end: [u64; 2],
}

impl Context {
    /// Room to save a running thread in.
    pub(crate) const fn unused() -> Self {
        Self { rsp: 0, border: Border::none() }
    }

    /// A thread that begins with `entry(argument)` on `stack`.
    pub(crate) fn new(stack: &Stack, entry: extern "C" fn(usize) -> !, argument: usize) -> Self {
        let start: unsafe extern "C" fn() = context_start;
        let pushed = Pushed {
            r15: 0,
            r14: 0,
            r13: argument as u64,
            r12: entry as usize as u64,
            rbx: 0,
            rbp: 0,
            rip: start as usize as u64,
            end: [0; 2],
        };
        // The stack's end is a page boundary and `Pushed` is 72 bytes: after `ret` has popped the
        // first seven words, `rsp` is a multiple of 16, as before a call.
        let rsp = stack.range().end().as_u64() - size_of::<Pushed>() as u64;
        // SAFETY: inside the stack, which is mapped, aligned to eight, and not in use yet.
        unsafe { (rsp as *mut Pushed).write(pushed) };
        Self { rsp, border: Border::none() }
    }

    /// Saves the running thread in `from` and goes on in `to`.
    ///
    /// # Safety
    /// As [`switch`](pagoda_kernel_core::machine::Machine::switch) of the machine.
    pub(crate) unsafe fn switch(from: *mut Self, to: *const Self) {
        percpu::assert_unpinned();
        // SAFETY: the caller's promise: nobody else touches `from` before it is switched to.
        unsafe { (*from).border = Border::take() };
        // SAFETY: the caller's promise; interrupts are off and no lock is held.
        unsafe { switch_stacks(from, to) };
        // Perhaps on another CPU.
        // SAFETY: as above: whoever switched here is done with `from`.
        unsafe { (*from).border.put() };
    }
}
