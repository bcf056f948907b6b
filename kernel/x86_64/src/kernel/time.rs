//! What time is it, and when does the timer tick?
//!
//! The time-stamp counter is the clock, measured once against the programmable timer (8254), whose
//! frequency is known. The timer's channel 0 then ticks for the scheduler. The clock chip says
//! what day it is.
//!
//! Left out: time-stamp counters that change their rate or differ between CPUs, deadlines instead
//! of ticks, keeping the clock right against the outside.
#![allow(unsafe_code)] // I/O ports and the time-stamp counter

use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicU64, Ordering};

use pagoda_sync::CpuId;
use x86_64::instructions::port::Port;

use super::{irq, lapic};

/// Ticks of channel 0 in a second.
const TICK_HZ: u64 = 250;
/// What the timer counts in a second.
const TIMER_HZ: u64 = 1_193_182;
/// Counts of the measurement: ten milliseconds.
const MEASURE_COUNTS: u64 = TIMER_HZ / 100;
/// Polls after which a timer is taken to be missing.
const PATIENCE: u32 = 50_000_000;
const NANOS: u64 = 1_000_000_000;

static BOOT_TSC: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds per count of the time-stamp counter, times 2^32. 0 before the measurement.
static NANOS_PER_COUNT: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds from 1970 to boot.
static BOOT_REALTIME: AtomicU64 = AtomicU64::new(0);
static TICKS: AtomicU64 = AtomicU64::new(0);

/// The time-stamp counter.
#[inline]
pub(crate) fn tsc() -> u64 {
    // SAFETY: every CPU with a long mode has the counter, and the kernel may always read it.
    unsafe { _rdtsc() }
}

fn out(port: u16, value: u8) {
    // SAFETY: only called with ports of the timer, of the clock chip and of the speaker gate; none
    // of them touches memory.
    unsafe { Port::new(port).write(value) }
}

fn input(port: u16) -> u8 {
    // SAFETY: as in `out`.
    unsafe { Port::new(port).read() }
}

/// Remembers the moment of boot.
pub(crate) fn begin() {
    BOOT_TSC.store(tsc(), Ordering::Relaxed);
}

/// Measures the time-stamp counter and reads the clock. Returns the counter's frequency in Hz, or
/// none when there is no timer and the frequency is a guess.
pub(crate) fn init() -> Option<u64> {
    let measured = measure();
    let hz = measured.unwrap_or(NANOS).max(1);
    let scaled = (u128::from(NANOS) << 32) / u128::from(hz);
    NANOS_PER_COUNT.store(u64::try_from(scaled).unwrap_or(1 << 32), Ordering::Relaxed);
    let now = clock_seconds().saturating_mul(NANOS);
    BOOT_REALTIME.store(now.saturating_sub(since_boot_ns()), Ordering::Relaxed);
    measured
}

/// Starts the boot CPU's ticks: by its own controller, or by channel 0 where there is none.
pub(crate) fn start_ticks() {
    if lapic::present() {
        irq::close_timer();
        return lapic::start_ticks();
    }
    let [low, high, ..] = (TIMER_HZ / TICK_HZ).to_le_bytes();
    out(0x43, 0x34); // channel 0, both bytes, rate generator
    out(0x40, low);
    out(0x40, high);
}

/// Lets channel 2 count down once and compares.
fn measure() -> Option<u64> {
    let gate = input(0x61);
    out(0x61, gate & !0x02 | 0x01); // counting, speaker off
    let [low, high, ..] = MEASURE_COUNTS.to_le_bytes();
    out(0x43, 0xb0); // channel 2, both bytes, one shot
    out(0x42, low);
    out(0x42, high);
    let start = tsc();
    let mut polls = 0;
    while input(0x61) & 0x20 == 0 {
        polls += 1;
        if polls == PATIENCE {
            return None;
        }
    }
    let counts = tsc().wrapping_sub(start);
    out(0x61, gate);
    // A timer that was done at once was none.
    (polls > 2).then(|| counts.saturating_mul(TIMER_HZ) / MEASURE_COUNTS)
}

/// Counts of the time-stamp counter in a second; 0 until [`init`].
pub(crate) fn tsc_hz() -> u64 {
    let scaled = NANOS_PER_COUNT.load(Ordering::Relaxed);
    (u128::from(NANOS) << 32).checked_div(scaled.into()).unwrap_or(0) as u64
}

/// Nanoseconds since boot; 0 until [`init`].
#[inline]
pub(crate) fn since_boot_ns() -> u64 {
    let counts = tsc().saturating_sub(BOOT_TSC.load(Ordering::Relaxed));
    let scaled = u128::from(counts) * u128::from(NANOS_PER_COUNT.load(Ordering::Relaxed));
    (scaled >> 32) as u64
}

/// Nanoseconds since 1970.
pub(crate) fn realtime_ns() -> u64 {
    BOOT_REALTIME.load(Ordering::Relaxed).saturating_add(since_boot_ns())
}

/// Serves the timer's interrupt. The boot CPU's is the one that counts.
pub(crate) fn tick(cpu: CpuId) {
    if cpu == CpuId::BOOT {
        TICKS.fetch_add(1, Ordering::Relaxed);
    }
}

/// Timer interrupts so far.
pub(crate) fn ticks() -> u64 {
    TICKS.load(Ordering::Relaxed)
}

/// One register of the clock chip.
fn clock(register: u8) -> u8 {
    out(0x70, register | 0x80); // the high bit keeps NMIs out meanwhile
    let value = input(0x71);
    out(0x70, 0x0d);
    let _ = input(0x71);
    value
}

/// Seconds, minutes, hours, day, month, year, century and the format, read while the chip is not
/// changing them.
fn clock_registers() -> [u8; 8] {
    let read = || {
        while clock(0x0a) & 0x80 != 0 {
            core::hint::spin_loop();
        }
        [0x00, 0x02, 0x04, 0x07, 0x08, 0x09, 0x32, 0x0b].map(clock)
    };
    let mut last = read();
    for _ in 0..8 {
        let again = read();
        if again == last {
            break;
        }
        last = again;
    }
    last
}

/// Seconds from 1970 to now, by the clock chip, which is taken to run in universal time.
fn clock_seconds() -> u64 {
    let raw = clock_registers();
    let format = raw[7];
    let binary = format & 0x04 != 0;
    let decode =
        |value: u8| u64::from(if binary { value } else { (value >> 4) * 10 + (value & 0x0f) });
    let afternoon = format & 0x02 == 0 && raw[2] & 0x80 != 0;
    let mut hour = decode(raw[2] & 0x7f);
    if format & 0x02 == 0 {
        hour = hour % 12 + if afternoon { 12 } else { 0 };
    }
    let century = match decode(raw[6]) {
        century @ 19..=22 => century,
        _ => 20,
    };
    let year = century * 100 + decode(raw[5]);
    let days = days_from_1970(year, decode(raw[4]), decode(raw[3]));
    ((days * 24 + hour) * 60 + decode(raw[1])) * 60 + decode(raw[0])
}

/// Days from 1 January 1970 to the given day of the Gregorian calendar, counting years from March
/// so that the leap day comes last.
fn days_from_1970(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    days.saturating_sub(719_469)
}
