//! What no single crate owns: boot tests, misuse, and programs run beside Linux.
//!
//! The tests that boot a machine are marked `ignored`, so that a plain `cargo test` needs no
//! emulator; `cargo xtask test` builds what they need and runs them. This library is what they
//! share: it starts `cargo xtask run` as a person would, and compiles the C programs in
//! `programs/`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// How a program ended and what it said.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    /// Exit status as a shell would say it.
    pub status: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    fn from_output(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        let status = output.status;
        Self {
            status: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(127)),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs a command to its end with `input` on its standard input.
pub fn run(command: &mut Command, input: &[u8]) -> Said {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the command starts");
    let mut stdin = child.stdin.take().expect("its input");
    let input = input.to_owned();
    let feeder = std::thread::spawn(move || {
        // A program may end without reading all of its input.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().expect("the command ends");
    feeder.join().expect("the feeder ends");
    Said::from_output(output)
}

/// `cargo xtask run` with these options.
pub fn xtask_run(options: &[&str]) -> Command {
    let xtask = std::env::var_os("PAGODA_XTASK").expect("run by `cargo xtask test`");
    let mut command = Command::new(xtask);
    command.arg("run").arg("--timeout=120").args(options);
    command
}

/// Runs a program in the machine: `options` for the machine, then the program and its arguments.
pub fn in_guest(options: &[&str], program: &[&str], input: &[u8]) -> Said {
    run(xtask_run(options).arg("--").args(program), input)
}

/// Runs the same program on Linux, with the environment that it has in the machine.
pub fn on_linux(program: &[&str], input: &[u8]) -> Said {
    let mut command = Command::new(program[0]);
    command.args(&program[1..]).env_clear().current_dir("/");
    command.env("PATH", "/bin:/sbin:/usr/bin").env("HOME", "/root");
    run(&mut command, input)
}

/// Asserts that a program says and does the same in the machine as on Linux.
pub fn same_as_linux(options: &[&str], program: &[&str], input: &[u8]) {
    let expected = on_linux(program, input);
    let found = in_guest(options, program, input);
    assert_eq!(found, expected, "(found, on Linux) for {program:?}");
}

/// Compiles `programs/NAME.c` with the C library musl, statically; returns its path.
pub fn c_program(name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("programs/{name}.c"));
    let dir = std::env::temp_dir().join(format!("pagoda-programs-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a folder for programs");
    let program = dir.join(name);
    let fresh = dir.join(format!("{name}.{:?}", std::thread::current().id()));
    let status = Command::new("musl-gcc")
        .args(["-static", "-O1", "-fno-builtin", "-w", "-o"])
        .arg(&fresh)
        .arg(&source)
        .status()
        .expect("musl-gcc runs");
    assert!(status.success(), "{} compiles", source.display());
    std::fs::rename(&fresh, &program).expect("the program gets its name");
    program
}
