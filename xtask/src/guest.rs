//! Starts QEMU and carries bytes in and out of the machine.
//!
//! The machine has three serial lines, each two pipes of ours: COM1 is the terminal or the
//! program's standard input and output, COM2 is the control line (and the kernel's log where COM1
//! belongs to a program), COM3 is the program's standard error.
//!
//! Nothing is sent before the kernel has said its first word on the control line: a serial device
//! drops what it holds when its buffers are switched on. From then on a person's terminal is in raw
//! mode and its keys are the machine's, but for Ctrl-A X, with which QEMU ends; until then Ctrl-C
//! ends a machine that does not come up.
//!
//! The machine `microvm` has one serial line by itself; the others are added to it as devices. With
//! `one_line` the machine has COM1 alone, on any board, and a debug console in place of COM2.
//!
//! Pipes and not sockets: QEMU writes byte by byte, which a pipe gathers and a socket keeps as one
//! packet each, few of which fit. A program's output is five times as fast.

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::termios::{self, OptionalActions, Termios};

use crate::build;

/// How the machine gets at the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Boot {
    /// QEMU's own loader (`-kernel`)
    Multiboot1,
    /// A GRUB image
    Multiboot2,
    /// QEMU's own loader, by the note that Xen, Firecracker and Cloud Hypervisor look for
    Pvh,
}

impl Boot {
    /// How a machine of this kind is booted when nobody says.
    pub fn natural(machine: &str) -> Self {
        if is_microvm(machine) { Self::Pvh } else { Self::Multiboot1 }
    }
}

/// The CPU model in QEMU's words, with five levels of page tables or without. Without is the rule:
/// so figures and logs of different CPU models can be compared.
pub fn cpu(model: &str, five_levels: bool) -> String {
    format!("{model},{}la57", if five_levels { '+' } else { '-' })
}

/// A size in QEMU's words: a number and a unit, MiB where there is none.
fn bytes(size: &str) -> Option<u64> {
    let units = [('k', 10), ('m', 20), ('g', 30), ('t', 40)];
    let lower = size.to_ascii_lowercase();
    let found = units.iter().find_map(|&(unit, shift)| Some((lower.strip_suffix(unit)?, shift)));
    let (digits, shift) = found.unwrap_or((&lower, 20));
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Is it QEMU's machine without a PC's past?
fn is_microvm(machine: &str) -> bool {
    machine.split(',').next() == Some("microvm")
}

/// Where the serial lines lead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lines {
    /// COM1 to our standard output; nothing comes in.
    Watch,
    /// COM1 is a person's terminal.
    Terminal,
    /// COM1 carries a program's standard input and output, COM3 its standard error.
    Program,
}

/// A machine to start.
pub struct Guest {
    /// How the kernel gets in.
    pub boot: Boot,
    /// The board, in QEMU's words.
    pub machine: String,
    /// Only COM1 and a debug console, in place of three lines.
    pub one_line: bool,
    /// Size of memory in QEMU's words (`256M`).
    pub memory: String,
    /// Number of CPUs.
    pub smp: u32,
    /// Memory and CPUs stand together in this many nodes; 0: the machine says nothing about that.
    pub nodes: u32,
    /// CPU model in QEMU's words.
    pub cpu: String,
    /// Wait for a debugger on port 1234 before the first instruction.
    pub gdb: bool,
    /// A socket to be made, on which QEMU takes commands.
    pub monitor: Option<PathBuf>,
    /// The machine is stopped after this long.
    pub time_limit: Option<Duration>,
    /// Where the lines lead.
    pub lines: Lines,
    /// The image.
    pub kernel: PathBuf,
    /// The one boot module.
    pub initramfs: PathBuf,
    /// Words for the kernel.
    pub command_line: String,
}

/// How a machine ended.
#[derive(Debug)]
pub struct Ending {
    /// QEMU's exit status; none when a signal ended it.
    pub machine: Option<i32>,
    /// The first program's status as a shell would say it, if the kernel reported one.
    pub program: Option<u8>,
    /// The time limit ended it.
    pub timed_out: bool,
    /// What came over the control line.
    pub control: String,
}

/// All went well: status 0 and every frame came back.
pub const EXIT_CLEAN: i32 = 33;
/// The program ended with another status; every frame came back.
pub const EXIT_STATUS: i32 = 35;
/// Frames were lost.
pub const EXIT_LOST: i32 = 37;
/// The kernel panicked.
pub const EXIT_PANIC: i32 = 39;

impl Guest {
    /// Runs the machine until it ends, by itself or by the time limit.
    pub fn run(&self) -> Result<Ending> {
        let mut lines = SerialLines::new()?;
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-display", "none", "-nodefaults", "-no-reboot", "-monitor"]);
        match &self.monitor {
            Some(path) => command.arg(format!("unix:{},server=on,wait=off", path.display())),
            None => command.arg("none"),
        };
        command.args(["-accel", "tcg"]);
        self.memory_arguments(&mut command);
        command.args(["-smp", &self.smp.to_string()]);
        command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
        self.boot_arguments(&mut command)?;
        // A chardev that others could share knows Ctrl-A.
        lines.chardev(&mut command, "com1", self.lines == Lines::Terminal);
        lines.chardev(&mut command, "com2", false);
        lines.chardev(&mut command, "com3", false);
        command.stdin(Stdio::null());
        self.line_arguments(&mut command);
        if self.gdb {
            command.args(["-s", "-S"]);
            eprintln!("waiting; type: gdb {} -ex 'target remote :1234'", self.kernel.display());
        }
        let child = command.spawn().context("qemu-system-x86_64 does not start")?;
        let mut running = Running(child);
        self.attend(&mut lines, &mut running)
    }

    /// Memory of this size and the board that takes it. What a person's machine may not have is not
    /// reserved: only what the guest touches must be there. Addresses above 1 TiB need a CPU that
    /// has so many.
    fn memory_arguments(&self, command: &mut Command) {
        const NOT_RESERVED: u64 = 8 << 30;
        const ORDINARY_ADDRESSES: u64 = 512 << 30;
        let bytes = bytes(&self.memory).unwrap_or(0);
        let (mut machine, mut cpu) = (self.machine.clone(), self.cpu.clone());
        if self.nodes > 0 {
            self.node_arguments(command, bytes);
        } else if bytes > NOT_RESERVED {
            let backend = format!("memory-backend-ram,id=ram,size={},reserve=off", self.memory);
            command.args(["-object", &backend]);
            machine += ",memory-backend=ram";
        }
        if bytes > ORDINARY_ADDRESSES && !cpu.contains("phys-bits") {
            cpu += ",phys-bits=48";
        }
        command.args(["-m", &self.memory, "-machine", &machine, "-cpu", &cpu]);
    }

    /// The same memory and the CPUs, dealt out to nodes. Neighbours are at distance 20, others farther.
    fn node_arguments(&self, command: &mut Command, bytes: u64) {
        const STEP: u64 = 2 << 20;
        let part = bytes / u64::from(self.nodes) / STEP * STEP;
        for node in 0..self.nodes {
            let size = if node == 0 { bytes - part * u64::from(self.nodes - 1) } else { part };
            let backend = format!("memory-backend-ram,id=ram{node},size={size},reserve=off");
            let mut words = format!("node,nodeid={node},memdev=ram{node}");
            for cpu in (0..self.smp).filter(|cpu| cpu % self.nodes == node) {
                words += &format!(",cpus={cpu}");
            }
            command.args(["-object", &backend, "-numa", &words]);
        }
        for (from, to) in (0..self.nodes).flat_map(|from| (0..from).map(move |to| (from, to))) {
            let distance = 10 + 10 * (from - to);
            command.args(["-numa", &format!("dist,src={from},dst={to},val={distance}")]);
        }
    }

    fn line_arguments(&self, command: &mut Command) {
        command.args(["-serial", "chardev:com1"]);
        if self.one_line {
            command.args(["-device", "isa-debugcon,iobase=0xe9,chardev=com2"]);
        } else if is_microvm(&self.machine) {
            for (index, line) in [(1, "com2"), (2, "com3")] {
                command.args(["-device", &format!("isa-serial,index={index},chardev={line}")]);
            }
        } else {
            command.args(["-serial", "chardev:com2", "-serial", "chardev:com3"]);
        }
    }

    fn boot_arguments(&self, command: &mut Command) -> Result<()> {
        match self.boot {
            Boot::Multiboot1 => {
                // A module's command line is all of `-initrd`'s argument: run beside the file so
                // that it is the bare name.
                let dir = self.initramfs.parent().context("the initramfs has a folder")?;
                let name = self.initramfs.file_name().context("the initramfs has a name")?;
                command.current_dir(dir).arg("-kernel").arg(&self.kernel);
                command.arg("-initrd").arg(format!("{} initramfs", name.to_string_lossy()));
                command.arg("-append").arg(&self.command_line);
            }
            Boot::Pvh => {
                command.arg("-kernel").arg(build::pvh(&self.kernel));
                command.arg("-initrd").arg(&self.initramfs);
                command.arg("-append").arg(&self.command_line);
            }
            Boot::Multiboot2 => {
                let image = build::grub_image(&self.kernel, &self.initramfs, &self.command_line)?;
                command.arg("-cdrom").arg(image);
            }
        }
        Ok(())
    }

    /// Carries bytes until the machine has ended.
    fn attend(&self, lines: &mut SerialLines, running: &mut Running) -> Result<Ending> {
        let deadline = self.time_limit.map(|limit| Instant::now() + limit);
        let [com1, com2, com3] = lines.ours()?;
        let mut carriers = Vec::new();
        let mut awake = None;
        let terminal = Arc::new(Terminal::new(self.lines == Lines::Terminal)?);
        let _cooked = Cooked(terminal.clone());
        if self.lines != Lines::Watch {
            let (sender, receiver) = mpsc::channel();
            awake = Some(sender);
            feed(com1.1, com2.1, receiver, terminal);
        }
        carriers.push(carry(com1.0, std::io::stdout()));
        carriers.push(carry(com3.0, std::io::stderr()));
        self.wait(lines, running, deadline, com2.0, carriers, awake)
    }

    fn wait(
        &self,
        lines: &mut SerialLines,
        running: &mut Running,
        deadline: Option<Instant>,
        control: PipeReader,
        mut carriers: Vec<JoinHandle<()>>,
        awake: Option<Sender<()>>,
    ) -> Result<Ending> {
        let text = Arc::new(Mutex::new(Vec::new()));
        carriers.push(carry(control, Shared(text.clone(), awake)));
        let mut timed_out = false;
        let status = loop {
            if let Some(status) = running.0.try_wait()? {
                break status;
            }
            if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                timed_out = true;
                running.0.kill()?;
                break running.0.wait()?;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        lines.close();
        for carrier in carriers {
            let _ = carrier.join();
        }
        let bytes = text.lock().map(|bytes| bytes.clone()).unwrap_or_default();
        let control = String::from_utf8_lossy(&bytes).into_owned();
        let program = control
            .lines()
            .filter_map(|line| line.trim().strip_prefix("pagoda-exit: "))
            .find_map(|status| status.trim().parse().ok());
        Ok(Ending { machine: status.code(), program, timed_out, control })
    }
}

/// The machine's process, ended when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// The machine's serial lines: a pipe out of it and a pipe into it each. QEMU finds its ends by name:
/// links in a folder of ours to the names that open files have in `/proc`.
struct SerialLines {
    dir: PathBuf,
    lines: Vec<SerialLine>,
}

struct SerialLine {
    /// QEMU's ends: where it writes, where it reads. Kept until the machine has ended.
    _theirs: (PipeWriter, PipeReader),
    /// Our ends: where we read, where we write.
    ours: (PipeReader, PipeWriter),
}

impl SerialLines {
    fn new() -> Result<Self> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("pagoda-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let mut all = Self { dir, lines: Vec::new() };
        for name in ["com1", "com2", "com3"] {
            let ((from, write), (read, to)) = (std::io::pipe()?, std::io::pipe()?);
            for (end, fd) in [("out", write.as_raw_fd()), ("in", read.as_raw_fd())] {
                let link = all.dir.join(format!("{name}.{end}"));
                symlink(format!("/proc/{}/fd/{fd}", std::process::id()), link)?;
            }
            all.lines.push(SerialLine { _theirs: (write, read), ours: (from, to) });
        }
        Ok(all)
    }

    fn chardev(&self, command: &mut Command, name: &str, shared: bool) {
        let (path, mux) = (self.dir.join(name), if shared { ",mux=on" } else { "" });
        command.args(["-chardev", &format!("pipe,id={name},path={}{mux}", path.display())]);
    }

    /// Our ends of the three lines.
    fn ours(&self) -> Result<[(PipeReader, PipeWriter); 3]> {
        let mut ours = Vec::new();
        for line in &self.lines {
            ours.push((line.ours.0.try_clone()?, line.ours.1.try_clone()?));
        }
        ours.try_into().map_err(|_| anyhow::anyhow!("there are three lines"))
    }

    /// The machine has ended: what it wrote ends here.
    fn close(&mut self) {
        self.lines.clear();
    }
}

impl Drop for SerialLines {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A buffer that a carrier writes and we read; tells of the first bytes.
struct Shared(Arc<Mutex<Vec<u8>>>, Option<Sender<()>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Ok(mut all) = self.0.lock() {
            all.extend_from_slice(bytes);
        }
        if let Some(awake) = self.1.take() {
            let _ = awake.send(());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Copies a line to `to`, byte by byte as it comes, until the machine closes it.
fn carry(mut from: PipeReader, mut to: impl Write + Send + 'static) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = [0; 16384];
        while let Ok(count) = from.read(&mut buffer) {
            if count == 0 || to.write_all(&buffer[..count]).and_then(|()| to.flush()).is_err() {
                break;
            }
        }
        // Whoever reads our output may have gone; the machine must not stall for that.
        let _ = std::io::copy(&mut from, &mut std::io::sink());
    })
}

/// Our standard input, if that is a person's terminal: how it was before.
struct Terminal(Mutex<Option<Termios>>);

impl Terminal {
    fn new(there: bool) -> Result<Self> {
        let before = there.then(|| termios::tcgetattr(std::io::stdin())).transpose();
        Ok(Self(Mutex::new(before.context("standard input is no terminal")?)))
    }

    /// Keys go to the machine as they are, what the machine says is lines. Nothing where the machine
    /// has ended.
    fn raw(&self) {
        if let Ok(before) = self.0.lock()
            && let Some(mut modes) = before.clone()
        {
            let output = modes.output_modes;
            modes.make_raw();
            modes.output_modes = output;
            let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &modes);
        }
    }
}

/// The terminal is as it was when this is dropped.
struct Cooked(Arc<Terminal>);

impl Drop for Cooked {
    fn drop(&mut self) {
        if let Ok(mut before) = self.0.0.lock()
            && let Some(modes) = before.take()
        {
            let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &modes);
        }
    }
}

/// Copies our standard input to the program's, and says on the control line when and where it
/// ended. Not joined: it may wait for input that nobody will send. Not before the kernel is ready
/// (`wait`); if it has ended without that, nothing is read.
fn feed(
    mut com1: PipeWriter,
    mut control: PipeWriter,
    wait: Receiver<()>,
    terminal: Arc<Terminal>,
) {
    std::thread::spawn(move || {
        if wait.recv().is_err() {
            return;
        }
        terminal.raw();
        let mut sent = 0u64;
        let mut buffer = [0; 4096];
        let mut stdin = std::io::stdin();
        while let Ok(count) = stdin.read(&mut buffer) {
            if count == 0 || com1.write_all(&buffer[..count]).is_err() {
                break;
            }
            sent += count as u64;
        }
        let _ = control.write_all(format!("eof {sent}\n").as_bytes());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_qemu_reads_them() {
        assert_eq!(bytes("256M"), Some(256 << 20));
        assert_eq!(bytes("4T"), Some(4 << 40));
        assert_eq!(bytes("16"), Some(16 << 20));
        assert_eq!(bytes("1g"), Some(1 << 30));
        assert_eq!(bytes("much"), None);
    }
}
