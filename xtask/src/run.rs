//! `cargo xtask run`: decides what runs in the machine.

use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use elf::ElfBytes;
use elf::abi::{EM_X86_64, PT_INTERP};
use elf::endian::AnyEndian;

use crate::build::{self, Contents};
use crate::guest::{self, Boot, Ending, Guest, Lines};

/// Options of `run`.
#[derive(Args)]
pub struct Run {
    /// Memory of the machine, in QEMU's words
    #[arg(long, default_value = "256M")]
    memory: String,
    /// The board, in QEMU's words: pc, q35, microvm, with options
    #[arg(long, default_value = "pc")]
    machine: String,
    /// How the kernel is booted (default: multiboot1; on microvm pvh)
    #[arg(long, value_enum)]
    boot: Option<Boot>,
    /// A machine with one serial line and a debug console, in place of three serial lines
    #[arg(long)]
    one_line: bool,
    /// CPUs of the machine
    #[arg(long, default_value_t = 1)]
    smp: u32,
    /// Deal memory and CPUs out to this many nodes
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=16))]
    nodes: u32,
    /// CPU model, in QEMU's words
    #[arg(long, default_value = "max")]
    cpu: String,
    /// A CPU whose page tables may have five levels
    #[arg(long)]
    la57: bool,
    /// Wait for a debugger
    #[arg(long)]
    gdb: bool,
    /// Let QEMU take commands on this socket (`nmi`: the kernel says where every CPU is)
    #[arg(long, value_name = "SOCKET")]
    monitor: Option<PathBuf>,
    /// Stop the machine after this many seconds (0: never; default 600, never in a terminal)
    #[arg(long)]
    timeout: Option<u64>,
    /// More words for the kernel
    #[arg(long, default_value = "")]
    append: String,
    /// Put a file or folder of the host into the guest, at the same path or at another
    #[arg(long, value_name = "HOST[:GUEST]")]
    file: Vec<String>,
    /// Set a variable in the program's environment
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Show the kernel's log on standard error when a program is run
    #[arg(long)]
    log: bool,
    /// A static Linux program of the host and its arguments
    #[arg(last = true)]
    program: Vec<String>,
}

impl Run {
    /// Boots, waits, and returns the status to exit with.
    pub fn execute(&self) -> Result<u8> {
        let mut contents = Contents {
            environment: vec!["PATH=/bin:/sbin:/usr/bin".into(), "HOME=/root".into()],
            ..Contents::default()
        };
        for file in &self.file {
            contents.files.push(split_file(file)?);
        }
        let lines = if let Some((name, rest)) = self.program.split_first() {
            let path = find_program(name)?;
            let guest = path.to_string_lossy().into_owned();
            contents.files.push((path, guest.clone()));
            contents.arguments.push(guest);
            contents.arguments.extend_from_slice(rest);
            Lines::Program
        } else if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
            let script = "/bin/tour; cd /root; exec /bin/sh -l".into();
            contents.arguments = vec!["/bin/sh".into(), "-c".into(), script];
            Lines::Terminal
        } else {
            contents.arguments = vec!["/bin/tour".into()];
            Lines::Watch
        };
        if lines != Lines::Program {
            let terminal = std::env::var("TERM").unwrap_or_else(|_| "vt100".into());
            contents.environment.push(format!("TERM={terminal}"));
        }
        contents.environment.extend_from_slice(&self.env);
        self.boot(lines, &contents)
    }

    fn boot(&self, lines: Lines, contents: &Contents) -> Result<u8> {
        let kernel = build::kernel()?;
        let name = format!("initramfs-{}", std::process::id());
        let initramfs = build::initramfs(&name, contents)?;
        let _remove = Remove(initramfs.clone());
        let words = if lines == Lines::Program { "stdio=raw log=com2" } else { "stdio=tty" };
        let default_limit = if lines == Lines::Terminal { 0 } else { 600 };
        let limit = self.timeout.unwrap_or(if self.gdb { 0 } else { default_limit });
        let guest = Guest {
            boot: self.boot.unwrap_or(Boot::natural(&self.machine)),
            machine: self.machine.clone(),
            one_line: self.one_line,
            memory: self.memory.clone(),
            smp: self.smp,
            nodes: self.nodes,
            cpu: guest::cpu(&self.cpu, self.la57),
            gdb: self.gdb,
            monitor: self.monitor.as_ref().map(std::path::absolute).transpose()?,
            time_limit: (limit != 0).then(|| Duration::from_secs(limit)),
            lines,
            kernel,
            initramfs,
            command_line: format!("{words} {}", self.append),
        };
        let ending = guest.run()?;
        if self.log && lines == Lines::Program {
            eprint!("{}", ending.control);
        }
        status(lines, limit, &ending)
    }
}

/// What the command's own exit status is, or what went wrong with the machine.
fn status(lines: Lines, limit: u64, ending: &Ending) -> Result<u8> {
    let log = || match lines {
        Lines::Program => format!("\nthe kernel's last words:\n{}", tail(&ending.control, 60)),
        _ => String::new(),
    };
    if ending.timed_out {
        bail!("the machine was stopped after {limit} s{}", log());
    }
    match (ending.machine, ending.program) {
        (Some(guest::EXIT_CLEAN), Some(0)) => Ok(0),
        (Some(guest::EXIT_STATUS), Some(status)) => Ok(status),
        (Some(guest::EXIT_LOST), _) => bail!("the kernel lost frames{}", log()),
        (Some(guest::EXIT_PANIC), _) => bail!("the kernel panicked{}", log()),
        (Some(0), None) if lines == Lines::Terminal => {
            bail!("the machine was ended by Ctrl-A X, or reset itself: a triple fault")
        }
        (Some(0), _) => bail!("the machine reset itself: a triple fault{}", log()),
        (machine, program) => {
            bail!("the machine ended oddly (QEMU {machine:?}, program {program:?}){}", log())
        }
    }
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A file that goes when we go.
struct Remove(PathBuf);

impl Drop for Remove {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        let _ = fs::remove_file(self.0.with_extension("iso"));
        let mut tree = self.0.clone().into_os_string();
        tree.push(".grub");
        let _ = fs::remove_dir_all(tree);
    }
}

fn split_file(file: &str) -> Result<(PathBuf, String)> {
    let (host, guest) = match file.split_once(':') {
        Some((host, guest)) => (host, guest.to_owned()),
        None => (file, file.to_owned()),
    };
    let host = fs::canonicalize(host).with_context(|| format!("--file {host}"))?;
    if guest.starts_with('/') {
        return Ok((host, guest));
    }
    let absolute = host.to_string_lossy().into_owned();
    Ok((host, if file.contains(':') { format!("/{guest}") } else { absolute }))
}

/// The program's path, if it is one that can run: a static ELF for x86-64.
fn find_program(name: &str) -> Result<PathBuf> {
    let path = if name.contains('/') {
        PathBuf::from(name)
    } else {
        let search = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&search)
            .map(|dir| dir.join(name))
            .find(|path| path.is_file())
            .with_context(|| format!("no program {name} on the search path"))?
    };
    let path = std::path::absolute(&path)?;
    check_program(&path)?;
    Ok(path)
}

fn check_program(path: &Path) -> Result<()> {
    let shown = path.display();
    let bytes = fs::read(path).with_context(|| format!("cannot read {shown}"))?;
    if bytes.starts_with(b"#!") {
        bail!("{shown} is a script: run its interpreter, with --file {shown}");
    }
    let elf = ElfBytes::<AnyEndian>::minimal_parse(&bytes);
    let elf = elf.with_context(|| format!("{shown} is no ELF program"))?;
    if elf.ehdr.e_machine != EM_X86_64 {
        bail!("{shown} is not for x86-64");
    }
    if elf.segments().is_some_and(|all| all.iter().any(|s| s.p_type == PT_INTERP)) {
        bail!("{shown} is dynamically linked; the kernel runs static programs");
    }
    Ok(())
}
