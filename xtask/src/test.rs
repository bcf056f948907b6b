//! `cargo xtask test`: everything that must hold, and how much of it there was.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{build, setup};

/// Options of `test`.
#[derive(Args)]
pub struct Test {
    /// Leave out the tests that boot a machine
    #[arg(long)]
    host_only: bool,
}

/// Packages whose lock-free parts run under loom, which tries every interleaving, and where those
/// tests are. (The other tests of `pagoda-sync` use its types outside a model, which loom refuses.)
const INTERLEAVED: &[(&str, &[&str])] = &[
    ("pagoda-sync", &["--lib", "--", "loom"]),
    ("pagoda-frames", &["--lib"]),
    ("pagoda-heap", &["--lib"]),
    ("pagoda-malloc", &["--test", "loom"]),
];

/// What the test runners counted.
#[derive(Default)]
struct Count {
    passed: u64,
    failed: u64,
}

impl Test {
    /// Runs all tests; the status is not zero when one failed.
    pub fn execute(&self) -> Result<u8> {
        let mut count = Count::default();
        setup::for_host_tests()?;
        let host = ["test", "--workspace", "--no-fail-fast", "--exclude", "pagoda-kernel"];
        count.run("host tests", &host, &[])?;
        for (package, tests) in INTERLEAVED {
            count.run(
                "every interleaving (loom)",
                &[&["test", "--release", "--package", package], *tests].concat(),
                &[("RUSTFLAGS", "--cfg loom"), ("CARGO_TARGET_DIR", &loom_target())],
            )?;
        }
        if !self.host_only {
            setup::everything()?;
            build::announce()?;
            let boot = [
                "test",
                "--package",
                "pagoda-tests",
                "--no-fail-fast",
                "--",
                "--ignored",
                "--test-threads=2",
            ];
            let xtask = std::env::current_exe().context("this program's path")?;
            let xtask = xtask.to_string_lossy();
            let programs = build::programs()?;
            let mill = programs.iter().find(|path| path.ends_with("mill")).context("user/mill")?;
            let mill = mill.to_string_lossy();
            let environment = [
                ("PAGODA_XTASK", xtask.as_ref()),
                ("PAGODA_MILL", mill.as_ref()),
                (build::PREBUILT, "1"),
            ];
            count.run("boot tests", &boot, &environment)?;
        }
        println!("{} passed, {} failed", count.passed, count.failed);
        Ok(u8::from(count.failed != 0))
    }
}

fn loom_target() -> String {
    build::target().join("loom").to_string_lossy().into_owned()
}

impl Count {
    /// Runs cargo, lets its output through, and adds up its summaries.
    fn run(&mut self, what: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
        println!("== {what}: cargo {}", arguments.join(" "));
        let started = Instant::now();
        let mut child = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
            .args(arguments)
            .current_dir(build::root())
            .env_remove("CARGO_MANIFEST_DIR")
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .context("cargo does not run")?;
        let output = child.stdout.take().context("cargo's output")?;
        let before = (self.passed, self.failed);
        for line in BufReader::new(output).lines() {
            let line = line?;
            if let Some(summary) = line.strip_prefix("test result: ") {
                self.passed += number_before(summary, " passed");
                self.failed += number_before(summary, " failed");
            }
            // The runner's own quiet lines about nothing tell nobody anything.
            if !line.is_empty() && line != "running 0 tests" {
                println!("{line}");
            }
        }
        let status = child.wait()?;
        let counted = (self.passed - before.0, self.failed - before.1);
        println!("== {what}: {} s", started.elapsed().as_secs());
        if !status.success() && counted.1 == 0 {
            bail!("{what}: the tests did not run to their end");
        }
        if counted == (0, 0) {
            bail!("{what}: no test ran");
        }
        Ok(())
    }
}

/// The number that stands before `word` in a summary such as `ok. 5 passed; 0 failed`.
fn number_before(summary: &str, word: &str) -> u64 {
    summary
        .find(word)
        .and_then(|end| summary[..end].rsplit([' ', '.']).next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_added_up() {
        let summary = "FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out";
        assert_eq!(number_before(summary, " passed"), 12);
        assert_eq!(number_before(summary, " failed"), 3);
        assert_eq!(number_before("ok", " passed"), 0);
    }
}
