//! Each CPU's own interrupt controller (xAPIC): ticks, and messages between CPUs.
//!
//! The registers lie in one page of device memory, at the same address on every CPU, each of which
//! sees its own. The timer is measured once against the time-stamp counter; all CPUs' timers count
//! the same bus. Under a hypervisor that lets it count nanoseconds, and where nothing else has
//! told, it is the other way round.
//!
//! The serial lines come in by the shared controller ([`ioapic`](super::ioapic)) or, without one, by
//! the old ones ([`irq`](super::irq)), through the boot CPU's input 0 ("virtual wire").
//!
//! Left out: x2APIC mode, deadline mode, errors that the controller reports.
#![allow(unsafe_code)] // device registers

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pagoda_addr::PhysRange;
use pagoda_kva::Caching;
use x86_64::registers::model_specific::Msr;

use super::host::KERNEL;
use super::{acpi, time, trap};

const ID: u64 = 0x20;
const TASK_PRIORITY: u64 = 0x80;
const END_OF_INTERRUPT: u64 = 0xb0;
const SPURIOUS: u64 = 0xf0;
const COMMAND: u64 = 0x300;
const COMMAND_TARGET: u64 = 0x310;
const TIMER: u64 = 0x320;
const INPUT_0: u64 = 0x350;
const INPUT_1: u64 = 0x360;
const ERROR: u64 = 0x370;
const TIMER_START: u64 = 0x380;
const TIMER_NOW: u64 = 0x390;
const TIMER_DIVIDE: u64 = 0x3e0;

const SOFTWARE_ENABLE: u32 = 1 << 8;
const MASKED: u32 = 1 << 16;
const PERIODIC: u32 = 1 << 17;
const EXTERNAL: u32 = 7 << 8;
const NMI: u32 = 4 << 8;
const INIT: u32 = 5 << 8;
const STARTUP: u32 = 6 << 8;
const ASSERT: u32 = 1 << 14;
const PENDING: u32 = 1 << 12;
const ALL_OTHERS: u32 = 3 << 18;
const DIVIDE_BY_16: u32 = 3;

/// `IA32_APIC_BASE`: the APIC's address, and its mode.
const APIC_BASE: u32 = 0x1b;
const X2APIC: u64 = 1 << 10;
const GLOBAL_ENABLE: u64 = 1 << 11;

/// Ticks in a second.
const TICK_HZ: u64 = 250;

/// Where the registers are mapped; 0 without an APIC.
static REGISTERS: AtomicU64 = AtomicU64::new(0);
/// Counts of the timer from tick to tick.
static TICK_COUNTS: AtomicU32 = AtomicU32::new(0);

fn register(offset: u64) -> Option<*mut u32> {
    let base = REGISTERS.load(Ordering::Relaxed);
    (base != 0).then_some((base + offset) as *mut u32)
}

fn write(offset: u64, value: u32) {
    if let Some(register) = register(offset) {
        // SAFETY: a register of the executing CPU's APIC, mapped uncached for good. What is written
        // here makes interrupts with gates, and never touches memory.
        unsafe { register.write_volatile(value) }
    }
}

fn read(offset: u64) -> u32 {
    // SAFETY: as in `write`; the registers that are read here have no side effects.
    register(offset).map_or(0, |register| unsafe { register.read_volatile() })
}

/// Is there one?
pub(crate) fn present() -> bool {
    REGISTERS.load(Ordering::Relaxed) != 0
}

/// Finds and maps the controllers, switches on the boot CPU's and measures its timer. False when
/// there is none that can be used.
pub(crate) fn init() -> bool {
    let (Some(processors), Some(ranges)) = (acpi::processors(), KERNEL.ranges.get()) else {
        return false;
    };
    // SAFETY: ACPI lists an APIC, so the CPU has the register.
    let mode = unsafe { Msr::new(APIC_BASE).read() };
    if mode & X2APIC != 0 || mode & GLOBAL_ENABLE == 0 {
        log::warn!("the local APIC is off, or in a mode that is not supported");
        return false;
    }
    let page = PhysRange::clamped(processors.lapic, pagoda_addr::PAGE_SIZE);
    match ranges.map_device(page, Caching::Uncached) {
        // The window stays for good: nobody unmaps it.
        Ok(window) => REGISTERS.store(window.bytes().start().as_u64(), Ordering::Relaxed),
        Err(error) => {
            log::warn!("the local APIC {error}");
            return false;
        }
    }
    enable();
    write(INPUT_0, EXTERNAL);
    write(INPUT_1, NMI);
    measure();
    true
}

/// Switches the executing CPU's on, silent but for messages.
pub(crate) fn enable() {
    write(TASK_PRIORITY, 0);
    write(TIMER, MASKED | u32::from(trap::TICK));
    write(INPUT_0, MASKED);
    write(INPUT_1, MASKED);
    write(ERROR, MASKED);
    write(SPURIOUS, SOFTWARE_ENABLE | u32::from(trap::SPURIOUS));
    write(END_OF_INTERRUPT, 0);
}

/// The executing CPU's number among APICs.
pub(crate) fn id() -> u8 {
    (read(ID) >> 24) as u8
}

/// Lets nothing in that does not come as a message.
pub(crate) fn close_inputs() {
    write(INPUT_0, MASKED);
}

/// Does the timer count nanoseconds? So it does under QEMU's own emulation and under KVM, whatever
/// the machine below them does.
fn counts_nanoseconds() -> bool {
    let hypervisor = raw_cpuid::CpuId::new().get_hypervisor_info();
    matches!(
        hypervisor.map(|info| info.identify()),
        Some(raw_cpuid::Hypervisor::QEMU | raw_cpuid::Hypervisor::KVM)
    )
}

/// Lets the timer count down from the top.
fn start_counting() {
    write(TIMER_DIVIDE, DIVIDE_BY_16);
    write(TIMER_START, u32::MAX);
}

/// What the timer has counted since.
fn counted() -> Option<u64> {
    Some(u64::from(u32::MAX - read(TIMER_NOW)))
}

/// Measures the timer by ten milliseconds of the time-stamp counter, or first that counter by the
/// timer if nothing else could.
fn measure() {
    let mask = u64::from(u32::MAX);
    if !time::is_known() && counts_nanoseconds() {
        let hz = time::rate_by(start_counting, counted, mask, 1_000_000_000 / 16);
        if let Some(hz) = hz {
            time::count_at(hz, "the CPU's own timer");
        }
    }
    let hz = time::tsc_hz();
    let pair = time::compare(start_counting, counted, mask, |_, counts| counts >= hz / 100);
    write(TIMER_START, 0);
    let per_second = pair.map_or(0, |pair| {
        (u128::from(pair.passed) * u128::from(hz) / u128::from(pair.counts.max(1))) as u64
    });
    let per_tick = u32::try_from(per_second / TICK_HZ).unwrap_or(u32::MAX).max(1);
    TICK_COUNTS.store(per_tick, Ordering::Relaxed);
}

/// Starts the executing CPU's ticks.
pub(crate) fn start_ticks() {
    write(TIMER_DIVIDE, DIVIDE_BY_16);
    write(TIMER, PERIODIC | u32::from(trap::TICK));
    write(TIMER_START, TICK_COUNTS.load(Ordering::Relaxed));
}

/// Stops the executing CPU's ticks.
pub(crate) fn stop_ticks() {
    write(TIMER, MASKED | u32::from(trap::TICK));
    write(TIMER_START, 0);
}

/// An interrupt has been served.
pub(crate) fn end_of_interrupt() {
    write(END_OF_INTERRUPT, 0);
}

fn command(target: u8, word: u32) {
    while read(COMMAND) & PENDING != 0 {
        core::hint::spin_loop();
    }
    write(COMMAND_TARGET, u32::from(target) << 24);
    write(COMMAND, word);
}

/// Sends an interrupt to another CPU.
pub(crate) fn send(target: u8, vector: u8) {
    command(target, ASSERT | u32::from(vector));
}

/// Resets another CPU; it waits for [`start_up`].
pub(crate) fn reset(target: u8) {
    command(target, INIT | ASSERT);
}

/// Lets a CPU that was reset begin, in real mode, at the start of a page below 1 MiB.
pub(crate) fn start_up(target: u8, page: u8) {
    command(target, STARTUP | ASSERT | u32::from(page));
}

/// Interrupts whatever the other CPUs do. May itself be called in an NMI, amid a [`command`] of the
/// same CPU: the register with the target, which this message has no use for, is left alone.
pub(crate) fn nmi_to_all_others() {
    let wait = || {
        while read(COMMAND) & PENDING != 0 {
            core::hint::spin_loop();
        }
    };
    if present() {
        wait();
        write(COMMAND, NMI | ASSERT | ALL_OTHERS);
        wait();
    }
}

/// An NMI on the executing CPU itself, as if from outside.
pub(crate) fn nmi_to_self() {
    if present() {
        command(id(), NMI | ASSERT);
    }
}
