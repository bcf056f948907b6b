//! Unpredictable bytes: as good as the CPU's random numbers, mixed with the clock.
//!
//! Each 64-bit output is a state that is advanced by a fixed odd number, stirred (the finaliser of
//! SplitMix64: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014), and
//! exclusive-ored with a fresh number from `rdrand` where the CPU has it.
//!
//! Left out: an entropy pool. On a CPU without `rdrand` the bytes differ from boot to boot but are
//! no secret.
#![allow(unsafe_code)] // the random number instruction

use core::sync::atomic::{AtomicU64, Ordering};

use super::{cpu, time};

const ADVANCE: u64 = 0x9e37_79b9_7f4a_7c15;

static STATE: AtomicU64 = AtomicU64::new(0);

fn stir(mut value: u64) -> u64 {
    value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

fn from_cpu() -> u64 {
    if !cpu::features().is_some_and(|features| features.rdrand) {
        return 0;
    }
    for _ in 0..10 {
        let (value, ok): (u64, u8);
        // SAFETY: the CPU has the instruction; it writes a register and the flags.
        unsafe {
            core::arch::asm!("rdrand {}", "setc {}", out(reg) value, out(reg_byte) ok,
                options(nomem, nostack));
        }
        if ok != 0 {
            return value;
        }
    }
    0
}

/// Fills `into`.
pub(crate) fn fill(into: &mut [u8]) {
    for chunk in into.chunks_mut(8) {
        let state = STATE.fetch_add(ADVANCE, Ordering::Relaxed);
        let value = stir(state ^ time::tsc() ^ time::realtime_ns().rotate_left(32)) ^ from_cpu();
        chunk.copy_from_slice(&value.to_le_bytes()[..chunk.len()]);
    }
}
