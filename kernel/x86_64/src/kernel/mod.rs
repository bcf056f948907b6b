//! # How a PC becomes a [`Machine`](pagoda_kernel_core::machine::Machine)
//!
//! In the order in which things happen:
//!
//! | module | what it does |
//! |---|---|
//! | [`boot`] (`boot.s`) | three boot protocols, one 32-bit entry, the jump to the higher half |
//! | [`serial`], [`console`], [`exit`] | three serial lines, the log, the end |
//! | [`cpu`], [`tables`], [`percpu`] | CPU features, descriptor tables, what a CPU calls its own |
//! | [`trap`] (`trap.s`), [`backtrace`], [`probe`] | exceptions and interrupts, and how they are reported |
//!
//! # Invariants
//!
//! *kernel-quiet*: the kernel runs with interrupts off, except inside
//! `wait_for_interrupt`. An interrupt therefore arrives in user mode or in idle, never while a lock
//! is held, and handlers may take the locks of the devices they serve.
//!
//! *kernel-gs*: while the kernel runs, the GS base is the address of the CPU's own area. The few
//! instructions around `swapgs` where that is not so cannot fault, run with interrupts off, and are
//! only ever interrupted by an NMI or a machine check, whose entry does not rely on it.
//!
//! Left out: starting other CPUs, ACPI, the local APIC. The structures count CPUs; one is started.

#![allow(dead_code)] // until every part is joined to the others

pub(crate) mod backtrace;
pub(crate) mod boot;
pub(crate) mod boot_info;
pub(crate) mod console;
pub(crate) mod cpu;
pub(crate) mod exit;
pub(crate) mod guard;
pub(crate) mod host;
pub(crate) mod irq;
pub(crate) mod kernel_map;
pub(crate) mod layout;
pub(crate) mod once;
mod panic;
pub(crate) mod percpu;
pub(crate) mod probe;
pub(crate) mod serial;
pub(crate) mod storeys;
pub(crate) mod tables;
pub(crate) mod time;
pub(crate) mod trap;
pub(crate) mod user;

use pagoda_addr::PhysAddr;

/// The first Rust code to run, on the boot stack, on the tables that `boot.s` built.
extern "C" fn entry(magic: u32, info: u32) -> ! {
    time::begin();
    serial::init();
    console::init();
    tables::init();
    cpu::init();
    if let Err(error) = storeys::build(magic, PhysAddr::new(info.into())) {
        panic!("the tower cannot be built: {error}");
    }
    exit::exit(exit::Exit::Clean)
}
