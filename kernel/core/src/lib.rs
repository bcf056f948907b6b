//! The portable half of the reference kernel: processes, threads, scheduling, signals, system
//! calls, `/proc`. It knows no instruction and no device; a machine ([`machine::Machine`]) runs
//! its programs, and another, scripted one tests it on the host.
//!
//! The way down: [`start`](fn@start) makes the kernel value (`kernel`), loads the first program
//! (`task::exec`) and becomes the idle context of the scheduler (`sched`). Every thread is a loop
//! (`run`): run the program until it traps, serve the trap (`sys`, or a fault to the address
//! space), look at signals (`signal`), again.
//!
//! # Rules
//!
//! Kernel mode is never pre-empted, and one CPU at a time runs it; a thread gives the CPU away only
//! in the scheduler, and holds no lock then. All state stands behind locks in one value; there is no hidden static. Every
//! allocation that a system call can reach may fail, and then the call answers `ENOMEM`. User
//! memory is only ever copied through the address space.
//!
//! Left out: more than one CPU in the kernel at a time, dynamic linking, `ptrace`, sockets,
//! namespaces, credentials beyond user and group numbers.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod host;
mod kernel;
pub mod machine;
mod proc;
mod run;
mod sched;
mod signal;
mod start;
mod sys;
mod task;
mod text;
mod user;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

pub use start::{BootConfig, ExitStatus, StartError, start};

/// What almost everything here returns.
pub(crate) type Result<T> = core::result::Result<T, pagoda_linux::Errno>;

/// A program's address space on machine `M`.
pub(crate) type Space<M> = pagoda_vm::AddressSpace<<M as machine::Machine>::Format, &'static M>;
