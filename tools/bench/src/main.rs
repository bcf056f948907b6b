//! Pagoda's allocators beside their peers, in one run. Started by `cargo xtask bench NAME`; each
//! run writes JSON, a table and a picture into `target/bench`.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod arena;
mod frames;
mod heap;
mod measure;
mod peers;
mod report;

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
    Frames,
    /// Kernel heaps
    Heap,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let (name, rows) = match cli.what {
        What::Frames => ("frames", frames::rows(cli.quick)),
        What::Heap => ("heap", heap::rows(cli.quick)),
    };
    print!("{}", report::markdown(&rows));
    report::write(&cli.out, name, &format!("cargo xtask bench {name}"), &rows)
}
