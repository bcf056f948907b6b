//! The shared interrupt controller (I/O APIC), where ACPI names one: it sends the lines of old to
//! the boot CPU, each by the vector that it had before. The two controllers of old
//! ([`irq`]) are then closed: a machine may well lack them.
//!
//! Only the serial lines are let through; the CPUs' own timers tick.
//!
//! Left out: more than one controller, lines beyond the 16 of old, lines that go to other CPUs.
#![allow(unsafe_code)] // device registers

use core::sync::atomic::{AtomicBool, Ordering};

use pagoda_addr::PhysRange;
use pagoda_kva::Caching;

use super::acpi::{self, Input, IoApic};
use super::host::KERNEL;
use super::trap::FIRST_IRQ;
use super::{irq, lapic, percpu};

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;

const VERSION: u32 = 0x01;
const FIRST_ENTRY: u32 = 0x10;

const MASKED: u32 = 1 << 16;
const LEVEL: u32 = 1 << 15;
const ACTIVE_LOW: u32 = 1 << 13;

static IN_USE: AtomicBool = AtomicBool::new(false);

/// Do the lines come in by this controller?
#[inline]
pub(crate) fn in_use() -> bool {
    IN_USE.load(Ordering::Relaxed)
}

/// The registers: one selects, the other shows.
struct Registers(u64);

impl Registers {
    fn write(&mut self, register: u32, value: u32) {
        // SAFETY: the device's registers, mapped uncached for good, and `&mut self` is the only one
        // there is. What is written makes interrupts with gates, and never touches memory.
        unsafe {
            ((self.0 + SELECT) as *mut u32).write_volatile(register);
            ((self.0 + WINDOW) as *mut u32).write_volatile(value);
        }
    }

    fn read(&mut self, register: u32) -> u32 {
        // SAFETY: as in `write`.
        unsafe {
            ((self.0 + SELECT) as *mut u32).write_volatile(register);
            ((self.0 + WINDOW) as *mut u32).read_volatile()
        }
    }

    /// Lets input `number` through as `low`, or masks it, to the CPU whose APIC is `target`.
    fn entry(&mut self, number: u32, low: u32, target: u8) {
        let register = FIRST_ENTRY + 2 * number;
        self.write(register, MASKED);
        self.write(register + 1, u32::from(target) << 24);
        self.write(register, low);
    }
}

/// Finds and maps the controller and lets the lines through that are served. Called once, by the
/// boot CPU, when its own controller is on. False, and nothing has changed, when there is none.
pub(crate) fn init() -> bool {
    let (Some(found), Some(ranges)) = (acpi::processors(), KERNEL.ranges.get()) else {
        return false;
    };
    let Some(IoApic { registers, first_input }) = found.io_apic else { return false };
    let page = PhysRange::clamped(registers.align_down(pagoda_addr::PAGE_SIZE), 4096);
    let offset = registers.as_u64() - page.start().as_u64();
    let mut device = match ranges.map_device(page, Caching::Uncached) {
        // The window stays for good: nobody unmaps it.
        Ok(window) => Registers(window.bytes().start().as_u64() + offset),
        Err(error) => {
            log::warn!("the I/O APIC {error}");
            return false;
        }
    };
    let inputs = (device.read(VERSION) >> 16 & 0xff) + 1;
    for number in 0..inputs {
        device.entry(number, MASKED, 0);
    }
    irq::close();
    lapic::close_inputs();
    let target = percpu::boot().apic_id.load(Ordering::Relaxed);
    for line in irq::SERIAL_LINES {
        let Some(input) = found.lines.get(usize::from(line)) else { continue };
        let Some(number) = input.number.checked_sub(first_input).filter(|n| *n < inputs) else {
            log::warn!("line {line} does not come in by the first I/O APIC");
            continue;
        };
        device.entry(number, entry_of(*input, FIRST_IRQ + line), target);
    }
    IN_USE.store(true, Ordering::Relaxed);
    true
}

/// The low half of an entry: fixed delivery, to one CPU.
fn entry_of(input: Input, vector: u8) -> u32 {
    let level = if input.level { LEVEL } else { 0 };
    let low = if input.active_low { ACTIVE_LOW } else { 0 };
    u32::from(vector) | level | low
}
