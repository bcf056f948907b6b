//! The last words.

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use x86_64::instructions::interrupts;

use super::console::say;
use super::exit::{Exit, exit};
use super::{backtrace, console, smp};

static PANICKING: AtomicBool = AtomicBool::new(false);

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    interrupts::disable();
    if PANICKING.swap(true, Ordering::Relaxed) {
        exit(Exit::Panic); // the report itself panicked: better short than never
    }
    console::urgent();
    smp::stop_others();
    match info.location() {
        Some(place) => say!("kernel panic: {} (at {place})", info.message()),
        None => say!("kernel panic: {}", info.message()),
    }
    backtrace::print_here();
    exit(Exit::Panic)
}
