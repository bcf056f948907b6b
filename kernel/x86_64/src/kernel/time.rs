//! What time is it, and when does the timer tick?
//!
//! The time-stamp counter is the clock. How fast it counts is measured at boot, against the first of
//! these that is there:
//!
//! 1. channel 2 of the programmable timer (8254), which the gate of the speaker starts: every PC;
//! 2. channel 0 of that timer: machines without a speaker (`microvm`);
//! 3. the power management timer that ACPI names (3.58 MHz): PCs without the old timer;
//! 4. the CPU's own timer ([`lapic`]), under a hypervisor that lets it count nanoseconds.
//!
//! A machine that others share may stand still amid a measurement. So each reading is timed, and the
//! measurement repeated until both its ends were read in no time to speak of ([`compare`]).
//!
//! With none of them the counter is taken to count nanoseconds, and the log says so. The CPU's own
//! timer then ticks for the scheduler, or channel 0 where there is none. The clock chip says what day
//! it is; without one the world began at boot.
//!
//! Left out: time-stamp counters that change their rate or differ between CPUs, deadlines instead
//! of ticks, keeping the clock right against the outside.
#![allow(unsafe_code)] // I/O ports and the time-stamp counter

use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pagoda_sync::CpuId;
use x86_64::instructions::port::Port;

use super::once::Once;
use super::{acpi, irq, lapic};

/// Ticks of channel 0 in a second.
const TICK_HZ: u64 = 250;
/// What the timer counts in a second.
const TIMER_HZ: u64 = 1_193_182;
/// Comparisons of two counters, at most.
const ATTEMPTS: u32 = 8;
/// A comparison is good if no more than one part in so many is in doubt.
const SURE: u64 = 500;
/// Polls after which a timer is taken to be missing.
const PATIENCE: u32 = 50_000_000;
/// Polls after which a counter that has not changed is taken to be none.
const STANDING: u32 = 10_000;
/// What the power management timer counts in a second.
const PM_TIMER_HZ: u64 = 3_579_545;
const NANOS: u64 = 1_000_000_000;

static BOOT_TSC: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds per count of the time-stamp counter, times 2^32. 0 before the measurement.
static NANOS_PER_COUNT: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds from 1970 to boot.
static BOOT_REALTIME: AtomicU64 = AtomicU64::new(0);
static TICKS: AtomicU64 = AtomicU64::new(0);
/// By what the time-stamp counter was measured.
static SOURCE: Once<&str> = Once::new();
static NO_CLOCK: AtomicBool = AtomicBool::new(false);

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

/// Measures the time-stamp counter against what needs no tables, and reads the clock.
pub(crate) fn init() {
    NANOS_PER_COUNT.store(1 << 32, Ordering::Relaxed);
    if let Some(hz) = by_speaker_gate() {
        count_at(hz, "the timer's channel 2");
    } else if let Some(hz) = by_channel(0) {
        count_at(hz, "the timer's channel 0");
    }
    match clock_seconds() {
        Some(now) => {
            let boot = now.saturating_mul(NANOS).saturating_sub(since_boot_ns());
            BOOT_REALTIME.store(boot, Ordering::Relaxed);
        }
        None => NO_CLOCK.store(true, Ordering::Relaxed),
    }
}

/// Measures the counter by the timer that ACPI has named meanwhile, if nothing has yet.
pub(crate) fn init_by_acpi() {
    if !is_known()
        && let Some(hz) = acpi::pm_timer().and_then(by_pm_timer)
    {
        count_at(hz, "ACPI's timer");
    }
}

/// Is it known how fast the counter counts?
pub(crate) fn is_known() -> bool {
    SOURCE.get().is_some()
}

/// The counter counts this often in a second: `source` says so.
pub(crate) fn count_at(hz: u64, source: &'static str) {
    let scaled = (u128::from(NANOS) << 32) / u128::from(hz.max(1));
    NANOS_PER_COUNT.store(u64::try_from(scaled).unwrap_or(1 << 32), Ordering::Relaxed);
    // The first answer counts; nobody asks for a second one.
    let _ = SOURCE.set(source);
}

/// Says what is known, and what had to be guessed.
pub(crate) fn report() {
    match SOURCE.get() {
        Some(source) => {
            log::info!("    clock: {} MHz, measured by {source}", tsc_hz() / 1_000_000);
        }
        None => log::warn!("no timer: the clock is a guess"),
    }
    if NO_CLOCK.load(Ordering::Relaxed) {
        log::warn!("no clock chip: it is 1970");
    }
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

/// Lets channel 2 count down, with the speaker off.
fn by_speaker_gate() -> Option<u64> {
    let gate = input(0x61);
    if gate == u8::MAX {
        return None; // no gate; some emulators let the channel count all the same
    }
    out(0x61, gate & !0x02 | 0x01);
    let hz = by_channel(2);
    out(0x61, gate);
    hz
}

/// Lets a channel of the timer count down and reads it meanwhile.
fn by_channel(channel: u8) -> Option<u64> {
    let data = 0x40 + u16::from(channel);
    let start = || {
        out(0x43, channel << 6 | 0x30); // both bytes, one shot
        out(data, 0xff);
        out(data, 0xff);
    };
    let read = || {
        out(0x43, 0xc0 | 2 << channel); // hold status and count
        let [status, low, high] = [input(data), input(data), input(data)];
        // Not the count while it is being loaded, nor after it went past its end.
        (status & 0xc0 == 0).then(|| u64::from(u16::MAX - u16::from_le_bytes([low, high])))
    };
    rate_by(start, read, u64::from(u16::MAX), TIMER_HZ)
}

/// Reads ACPI's timer, of which 24 bits are sure to be there.
fn by_pm_timer(port: u16) -> Option<u64> {
    // SAFETY: ACPI says that this is a counter, which reading does not change.
    let read = || Some(u64::from(unsafe { Port::<u32>::new(port).read() }));
    rate_by(|| {}, read, (1 << 24) - 1, PM_TIMER_HZ)
}

/// How often the time-stamp counter counts in a second, by ten milliseconds of a timer of rate `hz`.
/// None where nothing counts.
pub(crate) fn rate_by(
    start: impl Fn(),
    read: impl Fn() -> Option<u64>,
    mask: u64,
    hz: u64,
) -> Option<u64> {
    let Pair { passed, counts, .. } = compare(start, read, mask, |passed, _| passed >= hz / 100)?;
    Some((u128::from(counts) * u128::from(hz) / u128::from(passed)) as u64)
}

/// How far a timer and the time-stamp counter came in the same time.
#[derive(Clone, Copy)]
pub(crate) struct Pair {
    pub(crate) passed: u64,
    pub(crate) counts: u64,
    /// By how much `counts` may be wrong: readings take time, most of all where a hypervisor runs
    /// something else amid one.
    doubt: u64,
}

impl Pair {
    fn is_sure(&self) -> bool {
        self.doubt.saturating_mul(SURE) <= self.counts
    }
}

/// Compares the time-stamp counter with one that `start` starts and `read` reads, in the bits of
/// `mask`, until `enough` of both has passed; the best of several attempts unless one is good.
/// A reading of none spoils an attempt.
pub(crate) fn compare(
    start: impl Fn(),
    read: impl Fn() -> Option<u64>,
    mask: u64,
    enough: impl Fn(u64, u64) -> bool,
) -> Option<Pair> {
    let mut best: Option<Pair> = None;
    for _ in 0..ATTEMPTS {
        start();
        let pair = attempt(&read, mask, &enough);
        let better = |best: Pair| pair.filter(|pair| pair.doubt < best.doubt).unwrap_or(best);
        best = best.map(better).or(pair);
        if best.is_some_and(|best| best.is_sure()) {
            break;
        }
    }
    best
}

fn attempt(
    read: &impl Fn() -> Option<u64>,
    mask: u64,
    enough: &impl Fn(u64, u64) -> bool,
) -> Option<Pair> {
    // A reading, the moment in its middle, and how long it took.
    let timed = || {
        let before = tsc();
        let value = read()?;
        let took = tsc().wrapping_sub(before);
        Some((value, before.wrapping_add(took / 2), took))
    };
    // The first reading after a start may come too early.
    let first = (0..STANDING).find_map(|_| timed());
    let (first, begin, took_first) = first?;
    for polls in 0..PATIENCE {
        let (now, end, took) = timed()?;
        let (passed, counts) = (now.wrapping_sub(first) & mask, end.wrapping_sub(begin));
        if polls == STANDING && passed == 0 {
            return None;
        }
        if passed != 0 && enough(passed, counts) {
            // A counter that was done at once was none.
            return (polls > 1).then_some(Pair { passed, counts, doubt: took_first + took });
        }
    }
    None
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
/// changing them; none without a chip.
fn clock_registers() -> Option<[u8; 8]> {
    // A change takes two milliseconds; where there is no chip it never ends.
    let read = || {
        let ready = (0..STANDING).any(|_| clock(0x0a) & 0x80 == 0);
        ready.then(|| [0x00, 0x02, 0x04, 0x07, 0x08, 0x09, 0x32, 0x0b].map(clock))
    };
    let mut last = read()?;
    for _ in 0..8 {
        let again = read()?;
        if again == last {
            break;
        }
        last = again;
    }
    Some(last)
}

/// Seconds from 1970 to now, by the clock chip, which is taken to run in universal time.
fn clock_seconds() -> Option<u64> {
    let raw = clock_registers()?;
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
    Some(((days * 24 + hour) * 60 + decode(raw[1])) * 60 + decode(raw[0]))
}

/// Days from 1 January 1970 to the given day of the Gregorian calendar, counting years from March
/// so that the leap day comes last.
fn days_from_1970(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    days.saturating_sub(719_469)
}
