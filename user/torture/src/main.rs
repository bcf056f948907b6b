//! Torture for a kernel: processes of several threads that map, unmap, protect, move and fork
//! memory, execute, signal each other, wait for each other, and die at random on all CPUs.
//!
//! `torture [--seconds N] [--seed S] [--workers W] [--ranges] [--tolerant]`, `torture --sweep`
//!
//! - Every page of every mapping has known contents ([`regions`]); a wrong byte is named with its
//!   address, the byte expected and the byte seen.
//! - Registers of every kind are compared across switches, calls and signals ([`registers`]).
//! - Accesses that must fault do, and the handler is told the truth ([`faults`]).
//! - Every thread has a heartbeat on a page that the first process watches ([`supervisor`]); a
//!   thread that stands still is named, and so is a CPU on which a pinned thread does.
//!
//! `--ranges` leaves everything out but memory calls and faults, by threads of one process, each in
//! its own range. `--tolerant` is for a kernel that refuses allocations on purpose: calls may
//! answer `ENOMEM` and processes may be killed; contents must be right all the same.
//!
//! `--sweep` does something else: small pieces of work in which every allocation of the kernel fails
//! once ([`sweep`]).
//!
//! It uses plain Linux system calls and runs on Linux as well. The last line is a summary; the
//! status is 0 when nothing was wrong.

use std::process::ExitCode;

mod board;
mod faults;
mod lane;
mod processes;
mod random;
mod regions;
mod registers;
mod supervisor;
mod sweep;
mod swing;
mod sys;

/// Blocks of malloc are tortured too: those of our own.
#[global_allocator]
static MALLOC: pagoda_malloc::Malloc = pagoda_malloc::Malloc::new();

/// What the command line says.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long.
    pub seconds: u64,
    /// Where all numbers come from.
    pub seed: u64,
    /// Worker processes; with `--ranges` threads of one process.
    pub workers: usize,
    /// Memory calls only.
    pub ranges: bool,
    /// The kernel may refuse and kill.
    pub tolerant: bool,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let mut options = Options { seconds: 10, seed: 1, workers: 0, ranges: false, tolerant: false };
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse::<u64>().ok());
        let understood = match argument.as_str() {
            "--seconds" => number().map(|n| options.seconds = n),
            "--seed" => number().map(|n| options.seed = n),
            "--workers" => number().map(|n| options.workers = n as usize),
            "--ranges" => {
                options.ranges = true;
                Some(())
            }
            "--tolerant" => {
                options.tolerant = true;
                Some(())
            }
            "--sweep" => return sweep::run(),
            "--left" => return sweep::left(),
            "--echo" => return echo(arguments.next()),
            _ => None,
        };
        if understood.is_none() {
            eprintln!("torture: what is {argument}?");
            eprintln!("torture [--seconds N] [--seed S] [--workers W] [--ranges] [--tolerant]");
            return ExitCode::from(2);
        }
    }
    supervisor::run(options)
}

/// A program that a lane has executed: answers for its number, if everything came with it.
fn echo(number: Option<String>) -> ExitCode {
    let number = number.and_then(|text| u64::from_str_radix(&text, 16).ok());
    let marked = std::env::vars().eq([("TORTURE".to_owned(), "yes".to_owned())]);
    match number {
        Some(number) if marked => ExitCode::from(processes::echo(number) as u8),
        _ => ExitCode::from(board::WRONG as u8),
    }
}
