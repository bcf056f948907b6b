//! Pagoda's allocators beside their peers, in one run. Started by `cargo xtask bench NAME`; each
//! run writes JSON, a table and a picture into `target/bench`.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod measure;
mod report;

#[derive(Parser)]
struct Cli {
    /// Where the results go
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Shorter windows: to see that it works, not to quote
    #[arg(long)]
    quick: bool,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {}

fn main() -> Result<()> {
    let cli = Cli::parse();
    match cli.what {}
}
