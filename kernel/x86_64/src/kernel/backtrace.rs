//! Who called whom, with names.
//!
//! Every function keeps a frame pointer: at `rbp` lie the caller's `rbp` and the return address.
//! The chain ends at zero. A damaged chain ends the walk instead of faulting ([`probe`]).
//!
//! Names come from the section `.ksyms`, filled after linking: a count, then for each function,
//! sorted, its offset from the kernel's base and the offset of its name, then the names, each ended
//! by a zero byte. All zero: no names.
#![allow(unsafe_code)] // reads the linked-in table of symbols

use core::arch::asm;
use core::fmt;

use pagoda_addr::VirtAddr;

use super::console::say;
use super::layout::{self, KERNEL_BASE};
use super::probe;

/// Callers printed, at most.
const LINES: usize = 32;
/// Callers looked at, at most: a damaged chain may be a circle.
const STEPS: usize = 4096;

/// The table in `.ksyms`.
struct Symbols(&'static [u8]);

impl Symbols {
    fn get() -> Self {
        let range = layout::symbols();
        let bytes = core::ptr::slice_from_raw_parts(
            range.start().as_usize() as *const u8,
            range.len() as usize,
        );
        // SAFETY: the section is read-only memory of the image, of exactly this length, never
        // written while the kernel runs.
        Self(unsafe { &*bytes })
    }

    fn u32(&self, at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(*self.0.get(at..)?.first_chunk()?))
    }

    /// The function that holds `addr`, and how far inside it that is.
    fn find(&self, addr: u64) -> Option<(&'static str, u64)> {
        let offset = u32::try_from(addr.checked_sub(KERNEL_BASE)?).ok()?;
        let count = self.u32(0)? as usize;
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.u32(4 + 8 * middle)? <= offset { low = middle + 1 } else { high = middle }
        }
        let entry = 4 + 8 * low.checked_sub(1)?;
        let name = self.0.get(self.u32(entry + 4)? as usize..)?;
        let name = name.split(|&byte| byte == 0).next()?;
        Some((str::from_utf8(name).ok()?, u64::from(offset - self.u32(entry)?)))
    }
}

fn print_one(number: usize, addr: u64, looked_up: u64) {
    match Symbols::get().find(looked_up) {
        Some((name, inside)) => say!("  {number:2}: {addr:016x} {name} + {inside:#x}"),
        None => say!("  {number:2}: {addr:016x}"),
    }
}

/// A place in the kernel's text, by name.
pub(crate) struct Place(pub(crate) u64);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)?;
        match Symbols::get().find(self.0.wrapping_sub(1)) {
            Some((name, inside)) => write!(f, " {name} + {inside:#x}"),
            None => Ok(()),
        }
    }
}

/// Who called the heap: return addresses, innermost first, without the heap's own.
pub(crate) fn callers_into(frames: &mut [usize]) {
    let mut rbp: u64;
    // SAFETY: only reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags)) };
    let mut slots = frames.iter_mut().peekable();
    for _ in 0..LINES {
        let (Some(next), Some(back)) = (probe::word(rbp), probe::word(rbp.wrapping_add(8))) else {
            return;
        };
        if slots.peek().is_none() || !layout::text().contains(VirtAddr::new(back)) {
            return;
        }
        let name = Symbols::get().find(back - 1).map_or("", |(name, _)| name);
        if !name.contains("pagoda_heap")
            && !name.contains("HeapReport")
            && let Some(slot) = slots.next()
        {
            *slot = back as usize;
        }
        rbp = next;
    }
}

/// Prints the function at `rip` and the callers that the chain from `rbp` leads to.
pub(crate) fn print(rip: u64, rbp: u64) {
    say!("backtrace, innermost first:");
    print_one(0, rip, rip);
    callers(rbp, 1);
}

fn callers(mut rbp: u64, first: usize) {
    let (mut number, mut last, mut repeats) = (first, 0, 0u32);
    for _ in 0..STEPS {
        let (Some(next), Some(back)) = (probe::word(rbp), probe::word(rbp.wrapping_add(8))) else {
            break;
        };
        if !layout::text().contains(VirtAddr::new(back)) {
            break;
        }
        rbp = next;
        if back == last {
            repeats += 1;
            continue;
        }
        repeated(repeats);
        if number == LINES {
            return say!("  and more");
        }
        // The call may be the function's last instruction: the name is that of the byte before.
        print_one(number, back, back - 1);
        (number, last, repeats) = (number + 1, back, 0);
    }
    repeated(repeats);
}

/// A function that called itself is one line.
fn repeated(times: u32) {
    if times > 0 {
        say!("      and {times} times more from there");
    }
}

/// Prints the callers of whoever calls this.
#[inline(always)]
pub(crate) fn print_here() {
    let rbp: u64;
    // SAFETY: only reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags)) };
    say!("backtrace, innermost first:");
    callers(rbp, 0);
}
