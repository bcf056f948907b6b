//! One command for everything: `cargo xtask run`, `test`, `check`.
//!
//! - [`setup`] installs what is missing, and says so first.
//! - [`build`] makes the kernel, the programs and the initramfs ([`cpio`], [`ksyms`]).
//! - [`guest`] starts QEMU and carries bytes in and out; [`run`] decides what runs in it.
//! - [`guide`] compares the guide with the tree.
//! - [`check`] is format, lints, documentation and the direction of the dependencies.
//! - [`matrix`] boots every kind of machine, or all pairs of them ([`pairs`]).
//! - [`linux`] measures our kernel beside Linux.
//! - [`programs`] runs programs that others wrote, here and on Linux, and compares.
//! - [`mod@test`] is everything that must hold; [`torture`] looks for what does not, for longer.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod build;
mod check;
mod cpio;
mod guest;
mod guide;
mod heap;
mod ksyms;
mod linux;
mod matrix;
mod pairs;
mod programs;
mod run;
mod setup;
mod test;
mod torture;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "One command for everything in Pagoda")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot the reference kernel: the tour, then a shell in a terminal; or one program of the host
    Run(run::Run),
    /// Everything that must hold: host tests, doc tests, boot tests
    Test(test::Test),
    /// Processes and threads that map, fork, signal and die at random, with every byte checked
    Torture(torture::Torture),
    /// The tour on every kind of machine: ways to boot, CPUs, memory, levels of page tables
    Matrix(matrix::Matrix),
    /// The guide's listings and outputs beside the tree; --bless writes them anew
    Guide(guide::Guide),
    /// Programs that others wrote, fetched and built, on our kernel and on Linux
    Programs(programs::Programs),
    /// Format, lints, documentation, direction of dependencies
    Check,
    /// Pagoda beside its peers, in one run: table, JSON, SVG in target/bench (frames, heap, malloc, vm, linux)
    Bench {
        /// What to measure, and options of the measuring program
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        arguments: Vec<String>,
    },
    /// Install what is missing, and nothing else
    Setup,
    /// Build kernel, programs and initramfs, and say where they are
    Build,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(run) => run.execute(),
        Command::Test(test) => test.execute(),
        Command::Torture(torture) => torture.execute(),
        Command::Matrix(matrix) => matrix.execute(),
        Command::Guide(guide) => guide.execute(),
        Command::Programs(programs) => programs.execute(),
        Command::Check => check::execute().map(|()| 0),
        Command::Bench { arguments } => bench(&arguments).map(|()| 0),
        Command::Setup => setup::everything().map(|()| 0),
        Command::Build => build::announce().map(|()| 0),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(arguments: &[String]) -> anyhow::Result<()> {
    match arguments.split_first() {
        Some((name, rest)) if name == "linux" => linux::bench(rest),
        Some((name, rest)) if name == "heap" => heap::bench(rest),
        Some((name, rest)) if name == "malloc" => linux::malloc::bench(rest),
        _ => build::bench(arguments),
    }
}
