//! How many levels do page tables have?
//!
//! Five where the CPU can (57 bits of address), four elsewhere or when the command line says
//! `la57=off`. The kernel's own addresses are the same in both cases: they are the last 128 TiB, and
//! programs get addresses below 128 TiB (*lower-47*): a pointer's upper bits may hold a program's own
//! marks, as programs do that were written before there were five levels.
//!
//! Left out: addresses above 128 TiB for programs that ask for them by a hint.
#![allow(unsafe_code)] // switches the mode of paging

use core::arch::global_asm;

use x86_64::instructions::interrupts;
use x86_64::registers::control::{Cr4, Cr4Flags};

use super::{cpu, tables};

global_asm!(
    include_str!("levels.s"),
    KERNEL_CODE = const tables::KERNEL_CODE,
);

unsafe extern "C" {
    fn boot_five_levels();
}

/// Chooses, and switches. Called once, on the boot CPU, while the tables of `boot.s` are in use.
pub(crate) fn choose(command_line: &[u8]) {
    let refused = command_line.split(u8::is_ascii_whitespace).any(|word| word == b"la57=off");
    if refused || !cpu::features().is_some_and(|cpu| cpu.la57) || count() == 5 {
        return;
    }
    debug_assert!(!interrupts::are_enabled());
    // SAFETY: the CPU has five levels; the tables in use are those of `boot.s`, which show this
    // code at its physical address, and whose fifth level shows everything where it is.
    unsafe { boot_five_levels() };
}

/// Levels in use.
pub(crate) fn count() -> u32 {
    if Cr4::read().contains(Cr4Flags::L5_PAGING) { 5 } else { 4 }
}

/// Bits of an address that count.
pub(crate) fn address_bits() -> u32 {
    12 + 9 * count()
}
