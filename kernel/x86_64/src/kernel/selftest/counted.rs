//! `selftest=heap`: what the short way of the heap costs, in counts of the time-stamp counter:
//! instructions, where the emulator counts those (`-icount shift=0`). What is printed is without the
//! loop around it: the same loop with nothing inside is taken off.

use core::alloc::Layout;
use core::arch::asm;
use core::ptr::NonNull;

use pagoda_sync::Cpus;

use crate::kernel::host::heap;
use crate::kernel::percpu::KernelCpus;
use crate::kernel::time;

const ROUNDS: u64 = 10_000;
const LAYOUT: Layout = Layout::new::<[u64; 8]>();

/// The same value, and no instruction; the compiler does not know that.
#[inline]
fn opaque(mut value: usize) -> usize {
    // SAFETY: does nothing.
    unsafe { asm!("/* {} */", inout(reg) value, options(nostack, preserves_flags)) };
    value
}

#[inline]
fn opaque_block(block: NonNull<u8>) -> NonNull<u8> {
    // SAFETY: the same pointer as it was.
    unsafe { NonNull::new_unchecked(opaque(block.as_ptr() as usize) as *mut u8) }
}

/// Counts for [`ROUNDS`] rounds.
#[inline]
fn count(once: impl Fn()) -> u64 {
    let before = time::tsc();
    for _ in 0..opaque(ROUNDS as usize) {
        once();
    }
    time::tsc() - before
}

/// Prints what a round costs beyond an empty one.
fn say(what: &str, counts: u64) {
    let empty = count(|| {
        opaque(0);
    });
    // The register that `opaque` is given costs an instruction in the empty loop alone.
    let hundredths = counts.saturating_sub(empty - ROUNDS) * 100 / ROUNDS;
    log::info!("count: {what}: {}.{:02}", hundredths / 100, hundredths % 100);
}

/// A failure shows as a count of thousands.
#[inline(always)]
fn pair(layout: Layout, sized: bool) {
    let Ok(block) = heap().kalloc(layout) else { return };
    let block = opaque_block(block);
    // SAFETY: just received, used by nobody.
    let _ = unsafe {
        match sized {
            true => heap().kfree_sized(block, layout),
            false => heap().kfree(block),
        }
    };
}

pub(super) fn run() {
    pair(LAYOUT, true);
    let sized = count(|| pair(LAYOUT, true));
    let plain = count(|| pair(LAYOUT, false));
    let any = |_| Layout::from_size_align(opaque(64), 8).unwrap_or(LAYOUT);
    let unknown = count(|| pair(any(()), true));
    let pins = count(|| {
        opaque(KernelCpus.pin().cpu().index());
        opaque(KernelCpus.pin().cpu().index());
    });
    say("kalloc + kfree_sized", sized);
    say("kalloc + kfree", plain);
    say("kalloc + kfree_sized, size not known to the compiler", unknown);
    say("two pins of these", pins);
}
