//! `cargo xtask programs`: programs that others wrote, on our kernel and on Linux, compared.
//!
//! [`fetch`] gets them through the ordinary clients (Debian's sources, npm, pip) into
//! `target/programs` and builds what has to be built; nothing of it is kept in the tree. What they
//! work on stands in `tests/real`. Every program runs on Linux once and in the machine on each
//! number of CPUs, with the same arguments, input, files and environment, and must say the same on
//! both outputs and end with the same status.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::build;

mod fetch;

/// Options of `programs`.
#[derive(Args)]
pub struct Programs {
    /// Numbers of CPUs, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8")]
    smp: Vec<u32>,
    /// Only these, separated by commas (bash, threads, rust, sqlite, lua, go, esbuild, ruff)
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// A machine is stopped after this many seconds
    #[arg(long, default_value_t = 900)]
    timeout: u64,
}

/// A program and what it gets.
struct Case {
    name: &'static str,
    /// Memory of the machine, in QEMU's words.
    memory: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    /// Files and folders that it reads, at the same paths in the machine.
    files: Vec<PathBuf>,
    /// Its standard input.
    input: Option<PathBuf>,
}

/// How it ended and what it said.
#[derive(PartialEq, Eq)]
struct Said {
    status: i32,
    out: Vec<u8>,
    err: Vec<u8>,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let status = output.status;
        let status = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(127));
        Self { status, out: output.stdout, err: output.stderr }
    }
}

impl Programs {
    /// Runs the whole table; the status is not zero when anything differs from Linux.
    pub fn execute(&self) -> Result<u8> {
        let cases = fetch::cases(&self.only)?;
        if cases.is_empty() {
            bail!("none of these programs is known: {}", self.only.join(", "));
        }
        build::announce()?;
        let (mut passed, mut failed) = (0, 0);
        for case in &cases {
            let expected = case.on_linux()?;
            println!("{:8} Linux: status {}", case.name, expected.status);
            for &smp in &self.smp {
                let start = Instant::now();
                let found = case.in_machine(smp, self.timeout)?;
                let seconds = start.elapsed().as_secs_f64();
                let word = if found == expected { "same" } else { "DIFFERS" };
                println!("{:8} --smp {smp}: {word}, {seconds:.1} s", case.name);
                if found == expected {
                    passed += 1;
                } else {
                    failed += 1;
                    tell("status", &expected.status.to_string(), &found.status.to_string());
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    tell("output", &text(&expected.out), &text(&found.out));
                    tell("errors", &text(&expected.err), &text(&found.err));
                }
            }
        }
        println!("{passed} passed, {failed} failed");
        Ok(u8::from(failed != 0))
    }
}

/// The first difference, if there is one.
fn tell(what: &str, expected: &str, found: &str) {
    let (mut expected, mut found) = (expected.lines(), found.lines());
    for line in 1.. {
        let pair = (expected.next(), found.next());
        if pair.0 != pair.1 {
            println!("    {what}, line {line}: on Linux {:?}, here {:?}", pair.0, pair.1);
        }
        if pair.0 != pair.1 || pair == (None, None) {
            return;
        }
    }
}

impl Case {
    fn on_linux(&self) -> Result<Said> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env_clear().current_dir("/");
        command.env("PATH", "/bin:/sbin:/usr/bin").env("HOME", "/root");
        self.output(&mut command)
    }

    fn in_machine(&self, smp: u32, timeout: u64) -> Result<Said> {
        let mut command = Command::new(std::env::current_exe().context("this program's path")?);
        command.env(build::PREBUILT, "1").arg("run");
        command.arg(format!("--smp={smp}")).arg(format!("--memory={}", self.memory));
        command.arg(format!("--timeout={timeout}"));
        for file in &self.files {
            command.arg("--file").arg(file);
        }
        command.arg("--").arg(&self.program).args(&self.arguments);
        self.output(&mut command)
    }

    fn output(&self, command: &mut Command) -> Result<Said> {
        match &self.input {
            Some(path) => command.stdin(open(path)?),
            None => command.stdin(Stdio::null()),
        };
        let output = command.output().with_context(|| format!("{} does not run", self.name))?;
        Ok(output.into())
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot read {}", path.display()))
}
