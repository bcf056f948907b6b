//! One lock around kernel mode.
//!
//! *one-in-kernel*: a CPU holds the big lock whenever it runs kernel code, except
//! - on the way into user mode and back, until [`acquire`] returns;
//! - waiting for the lock;
//! - in idle, between [`release`] and [`acquire`] around `hlt`;
//! - in interrupt and NMI handlers that arrive there: they count ticks, fill the rings of the
//!   serial lines (behind the lines' own locks) and forget translations, and nothing else;
//! - while it starts up, before it is parked.
//!
//! So everything above the machine half may go on as if there were one CPU, while programs run on
//! all of them. The finer locks below stay what they are and are hardly ever contended.
//!
//! It is the outermost lock, without a rank. The lock is not fair: the next holder is whoever finds
//! it free. Where the CPUs are virtual and share fewer real ones, a lock that insists on an order
//! waits for CPUs that do not run.
//!
//! Whoever waits first spins, with interrupts off, and serves the flushes of others meanwhile, so
//! that the holder may wait for a flush. Then it notes down that it *sleeps* and halts with
//! interrupts on, as in idle; whoever gives the lock back wakes one sleeper. The note is written
//! before the lock is looked at once more, and read after the lock was given back: one of the two
//! sees the other.
//!
//! A tick that comes in while a CPU sleeps here was meant for the program that is waiting to be
//! served: whether its slice is over is asked where interrupts of programs are served. So the CPU
//! interrupts itself once it has the lock, which keeps until the program is entered again. Without
//! that a program that traps all the time, and so is interrupted only here, is never pre-empted.

use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pagoda_sync::CpuId;
use x86_64::instructions::interrupts;

use super::{percpu, shootdown, smp};

/// Looks at the lock before a CPU sleeps.
const SPINS: u32 = 300;

/// Held by the boot CPU from the first instruction on.
static HELD: AtomicBool = AtomicBool::new(true);
/// CPUs that sleep or are about to, a bit each (`acpi::MAX` is 64).
static SLEEPERS: AtomicU64 = AtomicU64::new(0);

fn try_acquire() -> bool {
    HELD.compare_exchange(false, true, Ordering::SeqCst, Ordering::Relaxed).is_ok()
}

/// Waits for the lock.
#[inline]
pub(crate) fn acquire() {
    if percpu::started() > 1 && !try_acquire() {
        wait();
    }
}

#[cold]
fn wait() {
    let area = percpu::this();
    area.ticked.store(false, Ordering::Relaxed);
    wait_for_turn();
    if area.ticked.load(Ordering::Relaxed) {
        smp::kick_self();
    }
}

fn wait_for_turn() {
    let bit = 1 << (percpu::id().index() % 64);
    loop {
        for _ in 0..SPINS {
            if !HELD.load(Ordering::Relaxed) && try_acquire() {
                return;
            }
            shootdown::serve();
            spin_loop();
        }
        SLEEPERS.fetch_or(bit, Ordering::SeqCst);
        if try_acquire() {
            SLEEPERS.fetch_and(!bit, Ordering::Relaxed);
            return;
        }
        interrupts::enable_and_hlt();
        interrupts::disable();
        SLEEPERS.fetch_and(!bit, Ordering::Relaxed);
    }
}

/// Gives it back.
#[inline]
pub(crate) fn release() {
    debug_assert!(HELD.load(Ordering::Relaxed), "the big lock given back by nobody");
    if percpu::started() == 1 {
        return; // there is nobody else: it stays held
    }
    HELD.swap(false, Ordering::SeqCst);
    let sleepers = SLEEPERS.load(Ordering::SeqCst);
    if sleepers != 0 {
        wake(sleepers);
    }
}

#[cold]
fn wake(sleepers: u64) {
    let index = sleepers.trailing_zeros() as usize;
    // Whoever clears the bit wakes; a sleeper that wakes in vain notes itself down again.
    let before = SLEEPERS.fetch_and(!(1 << index), Ordering::SeqCst);
    if let Some(cpu) = CpuId::new(index).filter(|_| before & 1 << index != 0) {
        smp::kick(cpu);
    }
}
