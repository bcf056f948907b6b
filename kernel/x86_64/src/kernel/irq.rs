//! The two interrupt controllers (8259) and who is served on which line.
//!
//! Handlers run with interrupts off, on the stack of whoever was interrupted: user mode or idle
//! (*kernel-quiet*). They touch devices and their rings, and never allocate: whoever pins in one stops
//! loudly.
//!
//! The CPUs' own controllers ([`lapic`]) send ticks and messages; where there is one,
//! the timer's line here stays closed. The other lines come to the boot CPU: by the shared
//! controller ([`ioapic`]) where there is one, and then these two are closed.
//!
//! Left out: lines that go to other CPUs.
#![allow(unsafe_code)] // I/O ports

use pagoda_sync::CpuId;
use x86_64::instructions::port::Port;

use core::sync::atomic::Ordering;

use super::trap::{self, FIRST_IRQ};
use super::{ioapic, lapic, percpu, serial, shootdown, time};

const COMMAND: [u16; 2] = [0x20, 0xa0];
const DATA: [u16; 2] = [0x21, 0xa1];
const END_OF_INTERRUPT: u8 = 0x20;
const READ_IN_SERVICE: u8 = 0x0b;

const TIMER: u8 = 0;
const CASCADE: u8 = 2;
const SERIAL_2: u8 = 3;
const SERIAL_1_3: u8 = 4;
/// The serial lines' interrupts: COM2; COM1 and COM3.
pub(crate) const SERIAL_LINES: [u8; 2] = [SERIAL_2, SERIAL_1_3];

fn out(port: u16, value: u8) {
    // SAFETY: only called with the controllers' ports; they select which interrupts arrive, all of
    // which have gates, and never touch memory.
    unsafe { Port::new(port).write(value) }
}

fn input(port: u16) -> u8 {
    // SAFETY: as in `out`.
    unsafe { Port::new(port).read() }
}

/// Points the 16 lines at our gates and lets through those that are served.
pub(crate) fn init() {
    for (controller, first, wiring) in [(0, FIRST_IRQ, 1 << CASCADE), (1, FIRST_IRQ + 8, CASCADE)] {
        out(COMMAND[controller], 0x11); // begin: edges, cascaded, four words
        out(DATA[controller], first);
        out(DATA[controller], wiring);
        out(DATA[controller], 0x01); // 8086 mode, explicit end of interrupt
    }
    let open: u16 = 1 << TIMER | 1 << CASCADE | 1 << SERIAL_2 | 1 << SERIAL_1_3;
    let [low, high] = (!open).to_le_bytes();
    out(DATA[0], low);
    out(DATA[1], high);
}

/// A line's last request may vanish before it is asked for; the controller then reports its lowest
/// line, without having it in service.
fn spurious(line: u8) -> bool {
    let controller = match line {
        7 => 0,
        15 => 1,
        _ => return false,
    };
    out(COMMAND[controller], READ_IN_SERVICE);
    let in_service = input(COMMAND[controller]) & 0x80 != 0;
    if !in_service && controller == 1 {
        out(COMMAND[0], END_OF_INTERRUPT); // the first controller did see the second one
    }
    !in_service
}

/// No line comes in by these controllers any more.
pub(crate) fn close() {
    out(DATA[0], 0xff);
    out(DATA[1], 0xff);
}

/// The timer's line is not served any more.
pub(crate) fn close_timer() {
    out(DATA[0], input(DATA[0]) | 1 << TIMER);
}

/// Serves a message or tick of the CPU's own controller.
fn serve_own(vector: u8) {
    let area = percpu::this();
    match vector {
        trap::TICK => {
            time::tick(area.cpu());
            area.ticked.store(true, Ordering::Relaxed);
            area.kicked.store(true, Ordering::Relaxed);
        }
        trap::KICK => area.kicked.store(true, Ordering::Relaxed),
        trap::FLUSH => shootdown::serve(),
        trap::SPURIOUS => return, // is not waiting to hear of its end
        _ => {}
    }
    lapic::end_of_interrupt();
}

/// Serves the interrupt that came in by `vector`.
pub(crate) fn serve(vector: u64) {
    percpu::in_handler(|| handle(vector));
}

fn handle(vector: u64) {
    let line = match u8::try_from(vector) {
        Ok(own @ trap::TICK..) => return serve_own(own),
        Ok(vector) => vector.wrapping_sub(FIRST_IRQ),
        Err(_) => unreachable!("the stubs push vectors below 64"),
    };
    percpu::this().kicked.store(true, Ordering::Relaxed);
    if ioapic::in_use() {
        serve_line(line);
        return lapic::end_of_interrupt();
    }
    if spurious(line) {
        return;
    }
    serve_line(line);
    if line >= 8 {
        out(COMMAND[1], END_OF_INTERRUPT);
    }
    out(COMMAND[0], END_OF_INTERRUPT);
}

fn serve_line(line: u8) {
    match line {
        TIMER => time::tick(CpuId::BOOT),
        SERIAL_2 | SERIAL_1_3 => serial::interrupt(),
        _ => {}
    }
}
