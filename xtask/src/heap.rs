//! `cargo xtask bench heap`: first the kernel counts the instructions of its heap's fast path
//! (`selftest=heap`), in a machine whose time-stamp counter counts instructions; then the measuring
//! program runs, with these counts among its rows.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::build;

/// The longest that the machine may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The command.
pub fn bench(arguments: &[String]) -> Result<()> {
    let mut all = vec!["heap".to_owned()];
    // A part of the rows needs no machine.
    if !arguments.iter().any(|word| word.starts_with("--only")) {
        let counts = count()?;
        all.extend(["--guest".to_owned(), counts.to_string_lossy().into_owned()]);
    }
    all.extend(arguments.iter().cloned());
    build::bench(&all)
}

/// Lets the kernel count; returns the path of its log.
fn count() -> Result<PathBuf> {
    let kernel = build::kernel()?;
    let dir = build::target().join("bench");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let log = dir.join("heap-guest.log");
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-display", "none", "-monitor", "none", "-nodefaults", "-no-reboot"]);
    command.args(["-accel", "tcg", "-icount", "shift=0,sleep=off"]);
    command.args(["-cpu", "max,-rdrand,-rdseed,-erms", "-smp", "1", "-m", "256M"]);
    command.args(["-rtc", "base=2024-01-01,clock=vm"]);
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    command.arg("-serial").arg(format!("file:{}", log.display()));
    command.arg("-kernel").arg(&kernel).args(["-append", "selftest=heap"]);
    let mut child = command.stdin(Stdio::null()).spawn().context("QEMU does not start")?;
    let deadline = Instant::now() + PATIENCE;
    // There is no program to run: the kernel says so and ends the machine.
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("the kernel did not come to its end; see {}", log.display());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(log)
}
