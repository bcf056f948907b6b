//! `cargo xtask torture`: `user/torture` in the machine, for as long as one likes.

use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::build;

/// Options of `torture`.
#[derive(Args)]
pub struct Torture {
    /// CPUs of the machine
    #[arg(long, default_value_t = 4)]
    smp: u32,
    /// How long, in the machine's seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Where all random numbers come from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Processes that are tortured at once (0: by the number of CPUs)
    #[arg(long, default_value_t = 0)]
    workers: u32,
    /// Memory of the machine, in QEMU's words
    #[arg(long, default_value = "512M")]
    memory: String,
    /// Every n-th allocation of the kernel fails (0: none is made to)
    #[arg(long, default_value_t = 0)]
    fail_every: u64,
    /// Threads that fault, map and unmap, each in its own range
    #[arg(long)]
    ranges: bool,
    /// Show the kernel's log
    #[arg(long)]
    log: bool,
    /// More words for the kernel
    #[arg(long, default_value = "")]
    append: String,
}

impl Torture {
    /// Runs the machine to its end. Not zero: something was wrong, stuck, or lost.
    pub fn execute(&self) -> Result<u8> {
        let programs = build::programs()?;
        let program = programs.iter().find(|path| path.ends_with("torture"));
        let program = program.context("user/torture is not there")?;
        let mut append = self.append.clone();
        if self.fail_every != 0 {
            append = format!("{append} fail_every={}", self.fail_every);
        }
        let mut command = Command::new(std::env::current_exe().context("this program's path")?);
        command.arg("run").arg(format!("--smp={}", self.smp));
        command.arg(format!("--memory={}", self.memory)).arg(format!("--append={append}"));
        // What the machine needs to start, and to find out that something is stuck.
        command.arg(format!("--timeout={}", 2 * self.seconds + 180));
        if self.log {
            command.arg("--log");
        }
        command.arg("--").arg(program).arg("--seconds").arg(self.seconds.to_string());
        command.arg("--seed").arg(self.seed.to_string());
        command.arg("--workers").arg(self.workers.to_string());
        if self.ranges {
            command.arg("--ranges");
        }
        if self.fail_every != 0 {
            command.arg("--tolerant");
        }
        let status = command.status().context("the machine does not start")?;
        Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
    }
}
