//! Pagoda's allocators beside their peers, and its address spaces stage by stage, in one run. Started by `cargo xtask bench NAME`; each
//! run writes JSON, a table and a picture into `target/bench`.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Parser, Subcommand};

mod arena;
mod frames;
mod frames_peers;
mod frames_threads;
mod heap;
mod linux;
mod malloc;
mod malloc_inputs;
mod malloc_machines;
mod malloc_mimalloc2;
mod malloc_probes;
mod malloc_programs;
mod malloc_threads;
mod measure;
mod peers;
mod report;
mod vm;

#[derive(Parser)]
struct Cli {
    /// Where the results go
    #[arg(long, global = true, default_value = "target/bench")]
    out: PathBuf,
    /// Shorter windows: to see that it works, not to quote
    #[arg(long, global = true)]
    quick: bool,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Frame allocators
    Frames {
        /// Only this part: fill, pairs, repeat, blocks, recovered or threads
        #[arg(long)]
        only: Option<String>,
    },
    /// Kernel heaps
    Heap {
        /// Only this part: pairs, churn, tails, threads, fill or debug
        #[arg(long)]
        only: Option<String>,
        /// What the kernel said that counted its instructions
        #[arg(long)]
        guest: Option<PathBuf>,
    },
    /// The malloc of programs
    Malloc {
        /// Only this part: static, probes, programs or machines
        #[arg(long)]
        only: Option<String>,
        /// What machines counted that ran an allocating program
        #[arg(long)]
        machines: Option<PathBuf>,
    },
    /// Address spaces: each operation, and its stages in parentheses
    Vm,
    /// Runs a program and writes down its CPU seconds and its largest resident size in KiB
    #[command(hide = true)]
    Weigh {
        /// Where to
        note: PathBuf,
        /// The program and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<std::ffi::OsString>,
    },
    /// The reference kernel beside Linux: what `cargo xtask bench linux` has measured
    Linux {
        /// The raw counts
        #[arg(long)]
        from: PathBuf,
    },
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let (name, rows) = match cli.what {
        What::Linux { from } => return linux(&cli.out, &from),
        What::Frames { only } => ("frames", frames::rows(cli.quick, only.as_deref())),
        What::Heap { only, guest } => {
            ("heap", heap::rows(cli.quick, only.as_deref(), guest.as_deref())?)
        }
        What::Malloc { only, machines } => {
            ("malloc", malloc::rows(cli.quick, only.as_deref(), machines.as_deref())?)
        }
        What::Vm => ("vm", vm::rows(cli.quick)),
        What::Weigh { note, command } => return malloc_programs::weigh(&note, &command),
    };
    print!("{}", report::markdown(&rows));
    report::write(&cli.out, name, &format!("cargo xtask bench {name}"), &rows)
}

fn linux(out: &Path, from: &Path) -> Result<()> {
    let raw = linux::Raw::read(from)?;
    let rows = raw.rows();
    print!("{}{}", report::markdown(&rows), raw.notes());
    report::write(out, "linux", "cargo xtask bench linux", &rows)?;
    let table = out.join("linux.md");
    let mut file = std::fs::OpenOptions::new().append(true).open(&table)?;
    file.write_all(raw.notes().as_bytes())?;
    Ok(())
}
