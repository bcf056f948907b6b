//! The three serial lines (16550).
//!
//! Bytes go out by polling: the line says when its 16-byte buffer is empty, then up to 16 are
//! written. Bytes come in by interrupt into a ring; when the ring is full the line's receive
//! interrupt is switched off and the rest waits in the device (and then at the other end) until
//! somebody has read: nothing is dropped here.
//!
//! A machine may have fewer lines. What is said on the control line then goes to the debug console,
//! a port of QEMU's (`isa-debugcon`) that only takes bytes, or else to COM1, and what is said on
//! COM3 goes to COM1: nothing is lost, but COM1 is no longer a program's alone. What would come in
//! by a line that is not there never comes.
//!
//! Whoever sends to a line before the kernel has set it up may lose bytes. So the first thing said
//! on the control line is [`READY`]: from then on nothing is lost.
//!
//! Locks: one per line. Interrupt handlers take them too, which cannot deadlock on one CPU because
//! whoever holds one runs with interrupts off (*kernel-quiet*).
//!
//! Left out: other speeds than 115200 (emulated lines do not care), modem lines, transmit by
//! interrupt.
#![allow(unsafe_code)] // I/O ports

use core::sync::atomic::{AtomicU64, Ordering};

use pagoda_kernel_core::machine::Port as Line;
use pagoda_sync::SpinMutex;
use x86_64::instructions::port::Port;

/// Received bytes that wait for a reader, at most.
const RING_BYTES: usize = 8192;
/// Bytes in the device's transmit buffer.
const FIFO_BYTES: usize = 16;
/// How often a report that must not wait for good looks whether the line is free.
const PATIENCE: u32 = 10_000;

/// Register offsets from a line's base port.
mod register {
    pub(super) const DATA: u16 = 0;
    pub(super) const INTERRUPT_ENABLE: u16 = 1;
    pub(super) const FIFO_CONTROL: u16 = 2;
    pub(super) const LINE_CONTROL: u16 = 3;
    pub(super) const MODEM_CONTROL: u16 = 4;
    pub(super) const LINE_STATUS: u16 = 5;
    pub(super) const SCRATCH: u16 = 7;
}

/// The debug console, which reads as its own number.
const DEBUG_CONSOLE: u16 = 0xe9;

/// What the control line begins with.
const READY: &[u8] = b"pagoda-ready\n";

const RECEIVED: u8 = 1 << 0; // of the line status
const TRANSMIT_EMPTY: u8 = 1 << 5; // of the line status
const ON_RECEIVE: u8 = 1 << 0; // of interrupt enable
const ON_EMPTY: u8 = 1 << 1; // of interrupt enable

fn debug_console() -> Port<u8> {
    Port::new(DEBUG_CONSOLE)
}

/// One line: its base port and what it has received.
struct Uart {
    base: u16,
    present: bool,
    ring: [u8; RING_BYTES],
    /// Bytes ever put into and taken out of the ring; their difference is at most `RING_BYTES`.
    put: usize,
    taken: usize,
    listening: bool,
}

static LINES: [SpinMutex<Uart>; 3] = [
    SpinMutex::new(Uart::at(0x3f8)),
    SpinMutex::new(Uart::at(0x2f8)),
    SpinMutex::new(Uart::at(0x3e8)),
];

static INTERRUPTS: AtomicU64 = AtomicU64::new(0);

fn line(line: Line) -> &'static SpinMutex<Uart> {
    match line {
        Line::Terminal => &LINES[0],
        Line::Control => &LINES[1],
        Line::Error => &LINES[2],
    }
}

impl Uart {
    const fn at(base: u16) -> Self {
        Self { base, present: false, ring: [0; RING_BYTES], put: 0, taken: 0, listening: false }
    }

    fn write(&self, register: u16, value: u8) {
        // SAFETY: the port is a register of this line or of nothing at all; a 16550's registers
        // move bytes in and out of the device and never touch memory.
        unsafe { Port::new(self.base + register).write(value) }
    }

    fn read(&self, register: u16) -> u8 {
        // SAFETY: as in `write`.
        unsafe { Port::new(self.base + register).read() }
    }

    /// Finds out whether there is a device, and sets it to 115200 8N1 with buffers.
    fn init(&mut self) {
        self.write(register::SCRATCH, 0x5a);
        self.present = self.read(register::SCRATCH) == 0x5a;
        if !self.present {
            return;
        }
        self.write(register::LINE_CONTROL, 0x03);
        self.write(register::LINE_CONTROL, 0x80); // the divisor takes the place of data
        self.write(register::DATA, 1);
        self.write(register::INTERRUPT_ENABLE, 0);
        self.write(register::LINE_CONTROL, 0x03); // 8N1
        self.write(register::INTERRUPT_ENABLE, 0);
        // Switching the buffers on empties them: what comes between these two lines is lost.
        self.fetch();
        self.write(register::FIFO_CONTROL, 0xc7); // on, cleared, interrupt at 14 bytes or a pause
        self.write(register::MODEM_CONTROL, 0x0b); // ready, and the interrupt line connected
    }

    fn send(&self, bytes: &[u8]) {
        if !self.present {
            return;
        }
        for chunk in bytes.chunks(FIFO_BYTES) {
            while self.read(register::LINE_STATUS) & TRANSMIT_EMPTY == 0 {
                core::hint::spin_loop();
            }
            for &byte in chunk {
                self.write(register::DATA, byte);
            }
        }
    }

    fn listen(&mut self, on: bool) {
        if self.listening != on {
            self.listening = on;
            self.write(register::INTERRUPT_ENABLE, if on { ON_RECEIVE } else { 0 });
        }
    }

    /// Moves what has arrived into the ring, as far as there is room.
    fn fetch(&mut self) {
        while self.put.wrapping_sub(self.taken) < RING_BYTES {
            if self.read(register::LINE_STATUS) & RECEIVED == 0 {
                return;
            }
            self.ring[self.put % RING_BYTES] = self.read(register::DATA);
            self.put = self.put.wrapping_add(1);
        }
        self.listen(false); // until there is room
    }

    fn receive(&mut self, into: &mut [u8]) -> usize {
        if !self.present {
            return 0;
        }
        self.fetch();
        let mut count = 0;
        for byte in into {
            if self.put == self.taken {
                break;
            }
            *byte = self.ring[self.taken % RING_BYTES];
            self.taken = self.taken.wrapping_add(1);
            count += 1;
        }
        if count > 0 {
            self.listen(true);
        }
        count
    }
}

/// Sets up the lines that exist, and says so on the control line.
pub(crate) fn init() {
    for uart in &LINES {
        uart.lock().init();
    }
    send(Line::Control, READY);
}

/// Lets the lines interrupt when something arrives.
pub(crate) fn listen() {
    for uart in &LINES {
        let mut uart = uart.lock();
        if uart.present {
            uart.listen(true);
        }
    }
}

/// Interrupts that were served.
pub(crate) fn interrupts() -> u64 {
    INTERRUPTS.load(Ordering::Relaxed)
}

/// Makes a line interrupt because it has nothing to send, or listen again; false if it is not there.
pub(crate) fn call(from: Line, on: bool) -> bool {
    let uart = line(from).lock();
    if uart.present {
        uart.write(register::INTERRUPT_ENABLE, if on { ON_EMPTY } else { ON_RECEIVE });
    }
    uart.present
}

/// Serves the lines' interrupt.
pub(crate) fn interrupt() {
    INTERRUPTS.fetch_add(1, Ordering::Relaxed);
    for uart in &LINES {
        let mut uart = uart.lock();
        if uart.present {
            uart.fetch();
        }
    }
}

/// Writes all of `bytes`, waiting for the line. Without any device they are gone.
pub(crate) fn send(to: Line, bytes: &[u8]) {
    if instead(to, bytes, send) {
        return;
    }
    line(to).lock().send(bytes);
}

/// Sends the bytes elsewhere if the line is not there. COM1 has no substitute.
fn instead(to: Line, bytes: &[u8], send: fn(Line, &[u8])) -> bool {
    // SAFETY: only `present` is read, which does not change after `init`.
    if matches!(to, Line::Terminal) || unsafe { (*line(to).data_ptr()).present } {
        return false;
    }
    // SAFETY: the port belongs to the debug console or to nobody.
    if matches!(to, Line::Control) && unsafe { debug_console().read() } == DEBUG_CONSOLE as u8 {
        for &byte in bytes {
            // SAFETY: as above; it takes bytes and does not touch memory.
            unsafe { debug_console().write(byte) };
        }
    } else {
        send(Line::Terminal, bytes);
    }
    true
}

/// As [`send`], for reports from places where somebody may hold the line's lock for good: an NMI,
/// a panic. Waits a little, for another CPU's line is soon over; then bytes of the two may mix.
pub(crate) fn send_anyway(to: Line, bytes: &[u8]) {
    if instead(to, bytes, send_anyway) {
        return;
    }
    let lock = line(to);
    let mut uart = lock.try_lock();
    for _ in 0..PATIENCE {
        if uart.is_some() {
            break;
        }
        core::hint::spin_loop();
        uart = lock.try_lock();
    }
    match uart {
        Some(uart) => uart.send(bytes),
        // SAFETY: only `base` and `present` are read, which do not change after `init`.
        None => unsafe { (*lock.data_ptr()).send(bytes) },
    }
}

/// Takes what has arrived, without waiting; the number of bytes.
pub(crate) fn receive(from: Line, into: &mut [u8]) -> usize {
    line(from).lock().receive(into)
}
