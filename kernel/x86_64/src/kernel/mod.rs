//! # How a PC becomes a [`Machine`](pagoda_kernel_core::machine::Machine)
//!
//! In the order in which things happen:
//!
//! | module | what it does |
//! |---|---|
//! | [`boot`] (`boot.s`) | three boot protocols, one 32-bit entry, the jump to the higher half |
//! | [`levels`] (`levels.s`) | four levels of page tables become five |
//! | [`serial`], [`console`], [`exit`] | three serial lines, the log, the end |
//! | [`tables`], [`percpu`], [`cpu`], [`fpu`] | descriptor tables, what a CPU calls its own, its features |
//! | [`trap`] (`trap.s`), [`backtrace`], [`probe`], [`guard`] | exceptions, and how they are reported |
//! | [`time`], [`irq`], [`ioapic`] | clocks, ticks, interrupts |
//! | [`acpi`], [`lapic`], [`smp`] (`smp.s`) | further CPUs: found, started, stopped |
//! | [`nodes`] | which memory is near to which CPU |
//! | [`big_lock`], [`shootdown`] | one CPU in the kernel at a time; all CPUs forget together |
//! | [`storeys`] with [`boot_info`], [`kernel_map`], [`heap_options`], [`host`], [`heap_pages`] | storeys 1 to 3 are built |
//! | [`stacks`], [`context`], [`user`] (`user.s`) | threads, and the border to programs |
//! | [`machine`], [`reports`] | all of that as the portable half knows it |
//! | [`ledger`] | did every frame come back? |
//! | [`failures`] | allocations that fail on purpose |
//! | [`selftest`] | mistakes made on purpose |
//!
//! # Invariants
//!
//! *kernel-quiet*: the kernel runs with interrupts off, except where a CPU is idle, parked, or
//! asleep before the big lock. An interrupt therefore arrives there or in user mode, never while a
//! lock is held, and handlers may take the locks of the devices they serve.
//!
//! *kernel-gs*: while the kernel runs, the GS base is the address of the CPU's own area. The few
//! instructions around `swapgs` where that is not so cannot fault, run with interrupts off, and are
//! only ever interrupted by an NMI or a machine check, whose entry does not rely on it.
//!
//! *one-in-kernel*: one CPU at a time runs kernel code, whoever holds the [`big_lock`].
pub(crate) mod acpi;
pub(crate) mod backtrace;
pub(crate) mod big_lock;
pub(crate) mod boot;
pub(crate) mod boot_info;
pub(crate) mod console;
pub(crate) mod context;
pub(crate) mod cpu;
pub(crate) mod exit;
pub(crate) mod failures;
pub(crate) mod fpu;
pub(crate) mod guard;
pub(crate) mod heap_options;
pub(crate) mod heap_pages;
pub(crate) mod host;
pub(crate) mod ioapic;
pub(crate) mod irq;
pub(crate) mod kernel_map;
pub(crate) mod lapic;
pub(crate) mod layout;
pub(crate) mod ledger;
pub(crate) mod levels;
pub(crate) mod machine;
pub(crate) mod nodes;
pub(crate) mod once;
mod panic;
pub(crate) mod percpu;
pub(crate) mod probe;
pub(crate) mod random;
pub(crate) mod reports;
pub(crate) mod selftest;
pub(crate) mod serial;
pub(crate) mod shootdown;
pub(crate) mod smp;
pub(crate) mod spare_tables;
pub(crate) mod stacks;
pub(crate) mod storeys;
pub(crate) mod tables;
pub(crate) mod time;
pub(crate) mod trap;
pub(crate) mod user;

use pagoda_addr::PhysAddr;
use pagoda_kernel_core::machine::Port;
use pagoda_kernel_core::{BootConfig, ExitStatus};

use exit::Exit;
use host::KERNEL;
use storeys::Handover;

/// The status of a first process that could not be started, as a shell has it for a program that
/// it cannot find.
const NOT_STARTED: u8 = 127;

/// The first Rust code to run, on the boot stack, on the tables that `boot.s` built.
extern "C" fn entry(magic: u32, info: u32) -> ! {
    time::begin();
    serial::init();
    console::init();
    tables::init();
    cpu::init();
    fpu::init();
    user::init();
    time::init();
    irq::init();
    let handover = match storeys::build(magic, PhysAddr::new(info.into())) {
        Ok(handover) => handover,
        Err(error) => panic!("the tower cannot be built: {error}"),
    };
    if lapic::init() {
        ioapic::init();
    }
    time::report();
    smp::start();
    time::start_ticks();
    serial::listen();
    run(&handover)
}

/// Storey 4 and everything above it, then the accounts.
fn run(handover: &Handover) -> ! {
    let Some(frames) = KERNEL.frames.get() else { panic!("no frame allocator") };
    let before = ledger::take(frames);
    selftest::run(handover.command_line);
    failures::configure(handover.command_line);
    log::info!("storey 4, processes: {} frames handed over", before.free());
    let config =
        BootConfig { command_line: handover.command_line, initramfs: handover.initramfs() };
    let status = match pagoda_kernel_core::start(&KERNEL, config) {
        Ok(ExitStatus(status)) => status,
        Err(error) => {
            log::error!("the first process cannot be started: {error:?}");
            NOT_STARTED
        }
    };
    finish(ledger::close(&before, status), status)
}

/// Tells whoever started the machine how it went, and ends it.
fn finish(how: Exit, status: u8) -> ! {
    let mut digits = [0; 3];
    let mut rest = status;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + rest % 10;
        rest /= 10;
    }
    let leading = digits.iter().take(2).take_while(|&&digit| digit == b'0').count();
    serial::send(Port::Control, b"pagoda-exit: ");
    serial::send(Port::Control, &digits[leading..]);
    serial::send(Port::Control, b"\n");
    exit::exit(how)
}
