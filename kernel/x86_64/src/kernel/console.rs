//! The kernel's log: the `log` crate's back end, and the way out for reports about the end.
//!
//! A line is `[seconds] text`. Where it goes (`log=com1`, `log=com2`) is known once the command
//! line has been read; nothing is logged before.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use log::{LevelFilter, Log, Metadata, Record};
use pagoda_kernel_core::machine::Port as Line;

use super::{percpu, serial, time};

struct Console;

static CONSOLE: Console = Console;
static ON_CONTROL_LINE: AtomicBool = AtomicBool::new(false);
/// Whose reports must not wait for anybody's lock: nobody's, those of one CPU (its number + 1), or
/// [`EVERYBODY`]'s.
static URGENT: AtomicU32 = AtomicU32::new(NOBODY);
const NOBODY: u32 = 0;
const EVERYBODY: u32 = u32::MAX;

fn target() -> Line {
    if ON_CONTROL_LINE.load(Ordering::Relaxed) { Line::Control } else { Line::Terminal }
}

/// Starts the log on COM1.
pub(crate) fn init() {
    // An error would mean that there is a logger already: it is this one.
    let _ = log::set_logger(&CONSOLE);
    log::set_max_level(LevelFilter::Info);
}

/// Obeys `log=` and `loglevel=` of the command line.
pub(crate) fn configure(command_line: &[u8]) {
    for word in command_line.split(u8::is_ascii_whitespace) {
        match word {
            b"log=com1" => ON_CONTROL_LINE.store(false, Ordering::Relaxed),
            b"log=com2" => ON_CONTROL_LINE.store(true, Ordering::Relaxed),
            _ => {
                let level = word.strip_prefix(b"loglevel=").and_then(|l| str::from_utf8(l).ok());
                if let Some(level) = level.and_then(|level| level.parse().ok()) {
                    log::set_max_level(level);
                }
            }
        }
    }
}

/// From now on, reports do not wait for locks. For a panic, which ends the machine: areas of CPUs may not
/// be there yet, and the others are being stopped.
pub(crate) fn urgent() {
    URGENT.store(EVERYBODY, Ordering::Relaxed);
}

/// This CPU, as [`URGENT`] has it.
fn me() -> u32 {
    percpu::id().index() as u32 + 1
}

/// Until this is dropped, reports of this CPU do not wait for locks. For the NMI, one at a time; the other CPUs
/// go on, and wait their turn for each line.
pub(crate) struct Urgent;

impl Urgent {
    pub(crate) fn begin() -> Self {
        // A panic stays one.
        let _ = URGENT.compare_exchange(NOBODY, me(), Ordering::Relaxed, Ordering::Relaxed);
        Self
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        let _ = URGENT.compare_exchange(me(), NOBODY, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Whether what this CPU writes must not wait.
fn is_urgent() -> bool {
    match URGENT.load(Ordering::Relaxed) {
        NOBODY => false,
        EVERYBODY => true,
        cpu => cpu == me(),
    }
}

/// Collects a line's pieces, so that the device sees few writes.
struct Buffer {
    bytes: [u8; 128],
    used: usize,
}

impl Buffer {
    fn flush(&mut self) {
        let bytes = &self.bytes[..self.used];
        if is_urgent() {
            serial::send_anyway(target(), bytes);
        } else {
            serial::send(target(), bytes);
        }
        self.used = 0;
    }
}

impl Write for Buffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.used == self.bytes.len() {
                self.flush();
            }
            self.bytes[self.used] = byte;
            self.used += 1;
        }
        Ok(())
    }
}

/// Writes `text` as it is, without time or level.
pub(crate) fn print(text: fmt::Arguments<'_>) {
    let mut buffer = Buffer { bytes: [0; 128], used: 0 };
    let _ = buffer.write_fmt(text);
    buffer.flush();
}

/// Writes one line of a report, as it is.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::kernel::console::print(format_args!("{}\n", format_args!($($text)*)))
    };
}
pub(crate) use say;

impl Log for Console {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let micros = time::since_boot_ns() / 1000;
        let (seconds, rest) = (micros / 1_000_000, micros % 1_000_000);
        let level = match record.level() {
            log::Level::Error => "error: ",
            log::Level::Warn => "warning: ",
            _ => "",
        };
        say!("[{seconds:3}.{rest:06}] {level}{}", record.args());
    }

    fn flush(&self) {}
}
