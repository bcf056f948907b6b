//! Starts QEMU and carries bytes in and out of the machine.
//!
//! The machine has three serial lines, each a socket of ours: COM1 is the terminal or the
//! program's standard input and output, COM2 is the control line (and the kernel's log where COM1
//! belongs to a program), COM3 is the program's standard error. Only for a person's terminal COM1
//! is QEMU's own standard input and output, so that QEMU puts the terminal into raw mode.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::build;

/// How the machine gets at the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Boot {
    /// QEMU's own loader (`-kernel`)
    Multiboot1,
    /// A GRUB image
    Multiboot2,
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
    /// Size of memory in QEMU's words (`256M`).
    pub memory: String,
    /// Number of CPUs.
    pub smp: u32,
    /// CPU model in QEMU's words.
    pub cpu: String,
    /// Wait for a debugger on port 1234 before the first instruction.
    pub gdb: bool,
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
        let sockets = Sockets::new()?;
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-display", "none", "-monitor", "none", "-nodefaults", "-no-reboot"]);
        command.args(["-accel", "tcg", "-cpu", &self.cpu, "-m", &self.memory]);
        command.args(["-smp", &self.smp.to_string()]);
        command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
        self.boot_arguments(&mut command)?;
        if self.lines == Lines::Terminal {
            command.args(["-chardev", "stdio,id=com1,mux=on,signal=off"]);
        } else {
            sockets.chardev(&mut command, "com1");
            command.stdin(Stdio::null());
        }
        sockets.chardev(&mut command, "com2");
        sockets.chardev(&mut command, "com3");
        for line in ["com1", "com2", "com3"] {
            command.args(["-serial", &format!("chardev:{line}")]);
        }
        if self.gdb {
            command.args(["-s", "-S"]);
            eprintln!("waiting; type: gdb {} -ex 'target remote :1234'", self.kernel.display());
        }
        let child = command.spawn().context("qemu-system-x86_64 does not start")?;
        let mut running = Running(child);
        self.attend(&sockets, &mut running)
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
            Boot::Multiboot2 => {
                let image = build::grub_image(&self.kernel, &self.initramfs, &self.command_line)?;
                command.arg("-cdrom").arg(image);
            }
        }
        Ok(())
    }

    /// Carries bytes until the machine has ended.
    fn attend(&self, sockets: &Sockets, running: &mut Running) -> Result<Ending> {
        let deadline = self.time_limit.map(|limit| Instant::now() + limit);
        let mut carriers = Vec::new();
        if self.lines != Lines::Terminal {
            let com1 = sockets.accept("com1", running, deadline)?;
            if self.lines == Lines::Program {
                let control = sockets.accept("com2", running, deadline)?;
                let (awake, wait) = mpsc::channel();
                feed(com1.try_clone()?, control.try_clone()?, wait);
                carriers.push(carry(com1, std::io::stdout()));
                let com3 = sockets.accept("com3", running, deadline)?;
                carriers.push(carry(com3, std::io::stderr()));
                return self.wait(running, deadline, control, carriers, Some(awake));
            }
            carriers.push(carry(com1, std::io::stdout()));
        }
        let control = sockets.accept("com2", running, deadline)?;
        let com3 = sockets.accept("com3", running, deadline)?;
        carriers.push(carry(com3, std::io::stderr()));
        self.wait(running, deadline, control, carriers, None)
    }

    fn wait(
        &self,
        running: &mut Running,
        deadline: Option<Instant>,
        control: UnixStream,
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

/// A folder of listening sockets, removed when this is dropped.
struct Sockets {
    dir: PathBuf,
    listeners: Vec<(&'static str, UnixListener)>,
}

impl Sockets {
    fn new() -> Result<Self> {
        // Socket paths are limited to about 100 bytes, so not under the target folder.
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("pagoda-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let mut sockets = Self { dir, listeners: Vec::new() };
        for name in ["com1", "com2", "com3"] {
            let listener = UnixListener::bind(sockets.dir.join(name))?;
            listener.set_nonblocking(true)?;
            sockets.listeners.push((name, listener));
        }
        Ok(sockets)
    }

    fn chardev(&self, command: &mut Command, name: &str) {
        let path: &Path = &self.dir.join(name);
        let chardev = format!("socket,id={name},path={},server=off", path.display());
        command.args(["-chardev", &chardev]);
    }

    fn accept(
        &self,
        name: &str,
        running: &mut Running,
        deadline: Option<Instant>,
    ) -> Result<UnixStream> {
        let listener = &self.listeners.iter().find(|entry| entry.0 == name).context("a line")?.1;
        let patience = Instant::now() + Duration::from_secs(20);
        let deadline = deadline.map_or(patience, |deadline| deadline.min(patience));
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(status) = running.0.try_wait()? {
                bail!("QEMU ended at once ({status})");
            }
            if Instant::now() > deadline {
                bail!("QEMU did not open its serial line {name}");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Sockets {
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
fn carry(mut from: UnixStream, mut to: impl Write + Send + 'static) -> JoinHandle<()> {
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

/// Copies our standard input to the program's, and says on the control line when and where it
/// ended. Not joined: it may wait for input that nobody will send.
///
/// Not before the kernel has said its first word on the control line (`wait`): a serial device
/// drops what it holds when its buffers are switched on.
fn feed(mut com1: UnixStream, mut control: UnixStream, wait: Receiver<()>) {
    std::thread::spawn(move || {
        let _ = wait.recv();
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
