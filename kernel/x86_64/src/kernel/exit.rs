//! The end: one word for whoever started the machine.
#![allow(unsafe_code)] // writes an I/O port

use x86_64::instructions::port::Port;
use x86_64::instructions::{hlt, interrupts};

/// QEMU's `isa-debug-exit`, as every command line here sets it up. QEMU ends with `2 * code + 1`.
const DEBUG_EXIT: u16 = 0xf4;

/// How the machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Exit {
    /// The first process ended with status 0 and every frame came back.
    Clean = 0x10,
    /// The first process ended with another status; every frame came back.
    Status = 0x11,
    /// Frames were lost.
    FramesLost = 0x12,
    /// The kernel gave up.
    Panic = 0x13,
}

/// Ends the machine. Where there is no debug port, the CPU stops.
pub(crate) fn exit(how: Exit) -> ! {
    interrupts::disable();
    // SAFETY: the port belongs to the debug device where there is one and to nobody else on a PC;
    // writing it ends the machine, which is what the caller asked for.
    unsafe { Port::<u32>::new(DEBUG_EXIT).write(how as u32) };
    loop {
        hlt();
    }
}
