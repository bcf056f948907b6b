//! `cargo xtask matrix`: the tour on every kind of machine.
//!
//! Four choices: how the kernel gets in, how many CPUs there are, how much memory, how many levels
//! page tables have. The whole product, or with `--pairs` a selection in which any two values meet
//! ([`pairs`]); the tests run that.
//!
//! A boot passes when the tour holds, every frame comes back, and the kernel's log names the
//! protocol, the CPUs and the levels that were asked for: a machine that quietly boots in another
//! way fails.

use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;

use crate::pairs::{self, Row};
use crate::{build, setup};

/// Ways in: a name, options, and what the log must say.
const WAYS: [(&str, &[&str], &str); 4] = [
    ("Multiboot 1", &["--boot=multiboot1"], "by Multiboot 1"),
    ("Multiboot 2 (GRUB)", &["--boot=multiboot2"], "by Multiboot 2"),
    ("PVH", &["--boot=pvh"], "by PVH"),
    ("PVH on microvm", &["--boot=pvh", "--machine=microvm"], "by PVH"),
];
const CPUS: [u32; 4] = [1, 2, 4, 8];
const MEMORY: [&str; 3] = ["16M", "256M", "4G"];
const LEVELS: [u32; 2] = [4, 5];

/// Options of `matrix`.
#[derive(Args)]
pub struct Matrix {
    /// Only a selection in which any two values of any two choices meet
    #[arg(long)]
    pairs: bool,
    /// Machines that run at the same time (default: one for each CPU of this machine)
    #[arg(long)]
    jobs: Option<usize>,
}

/// How one boot went: how long it took, or what it said.
type Outcome = Result<Duration, String>;

impl Matrix {
    /// Boots them all, prints the table; the status is not zero when one failed.
    pub fn execute(&self) -> Result<u8> {
        setup::for_boot()?;
        setup::for_grub()?;
        build::for_machines()?;
        let sizes = [WAYS.len(), CPUS.len(), MEMORY.len(), LEVELS.len()];
        let rows = if self.pairs { pairs::all_pairs(&sizes) } else { pairs::product(&sizes) };
        let jobs = self.jobs.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
        });
        let outcomes = boot_all(&rows, jobs.max(1))?;
        print_table(&rows, &outcomes);
        for (row, outcome) in rows.iter().zip(&outcomes) {
            if let Err(said) = outcome {
                println!("\n== {} failed:\n{said}", options(row).join(" "));
            }
        }
        let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        println!("{} passed, {failed} failed", outcomes.len() - failed);
        Ok(u8::from(failed != 0))
    }
}

/// Boots every row, `jobs` at a time; outcomes in the rows' order.
fn boot_all(rows: &[Row], jobs: usize) -> Result<Vec<Outcome>> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(vec![Err("did not run".to_owned()); rows.len()]);
    std::thread::scope(|scope| {
        let worker = || -> Result<()> {
            while let Some((place, row)) =
                Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, rows.get(at)?)))
            {
                let outcome = boot(row)?;
                if let Ok(mut all) = outcomes.lock() {
                    all[place] = outcome;
                }
            }
            Ok(())
        };
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    outcomes.into_inner().map_err(|_| anyhow::anyhow!("a worker ended badly"))
}

/// What `cargo xtask run` is told.
fn options(row: &[usize]) -> Vec<String> {
    let mut all: Vec<String> = WAYS[row[0]].1.iter().map(|&option| option.to_owned()).collect();
    all.push(format!("--smp={}", CPUS[row[1]]));
    all.push(format!("--memory={}", MEMORY[row[2]]));
    if LEVELS[row[3]] == 5 {
        all.push("--la57".into());
    }
    all
}

/// What the log must say.
fn words(row: &[usize]) -> [String; 5] {
    let cpus = CPUS[row[1]];
    [
        WAYS[row[0]].2.to_owned(),
        format!(" {cpus} CPUs, of {cpus} "),
        format!(" {} levels, ", LEVELS[row[3]]),
        ", 0 did not hold".to_owned(),
        "every frame returned".to_owned(),
    ]
}

fn boot(row: &[usize]) -> Result<Outcome> {
    let started = Instant::now();
    let output = Command::new(std::env::current_exe().context("this program's path")?)
        .args(["run", "--timeout=120"])
        .args(options(row))
        .env(build::PREBUILT, "1")
        .stdin(Stdio::null())
        .output()
        .context("this program does not run")?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let missing: Vec<String> = words(row).into_iter().filter(|word| !said.contains(word)).collect();
    if output.status.success() && missing.is_empty() {
        return Ok(Ok(started.elapsed()));
    }
    let lines: Vec<&str> = said.lines().collect();
    let last = lines[lines.len().saturating_sub(25)..].join("\n");
    Ok(Err(format!("{last}\n({}; not said: {missing:?})", output.status)))
}

/// A line for each way, size and number of levels; a column for each number of CPUs.
fn print_table(rows: &[Row], outcomes: &[Outcome]) {
    print!("{:<20}{:>6}{:>8}", "seconds", "memory", "levels");
    for cpus in CPUS {
        print!("{:>9}", format!("{cpus} CPU{}", if cpus == 1 { "" } else { "s" }));
    }
    println!();
    for line in pairs::product(&[WAYS.len(), MEMORY.len(), LEVELS.len()]) {
        let [way, memory, levels] = line[..] else { continue };
        print!("{:<20}{:>6}{:>8}", WAYS[way].0, MEMORY[memory], LEVELS[levels]);
        for cpus in 0..CPUS.len() {
            let place = rows.iter().position(|row| *row == [way, cpus, memory, levels]);
            let cell = match place.map(|place| &outcomes[place]) {
                Some(Ok(time)) => format!("{:.2}", time.as_secs_f64()),
                Some(Err(_)) => "FAILED".to_owned(),
                None => "-".to_owned(),
            };
            print!("{cell:>9}");
        }
        println!();
    }
}
