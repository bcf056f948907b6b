//! From nothing to the first process, and from its end to nothing.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use pagoda_kernel_fs::tty::Terminal;
use pagoda_kernel_fs::{Caller, CustomFile, FdTable, Follow, Host, OpenFile, OpenFlags, Vfs};
use pagoda_linux::Errno;
use pagoda_sync::SpinMutex;
use pagoda_vm::Frames;
use pagoda_vm::fallible::{try_arc, try_vec};

use crate::host::{CoreHost, Line, RawInput, TerminalFeed};
use crate::kernel::{Console, Kernel};
use crate::machine::{Machine, Port};
use crate::sched::Sched;
use crate::signal::set::SigSet;
use crate::signal::{ProcessSignals, ThreadSignals};
use crate::task::{Files, Ids, Parts, Places, Process, Request, Thread, first_space};
use crate::user::StrList;

/// What the boot loader and the machine half hand over.
#[derive(Clone, Copy, Debug)]
pub struct BootConfig {
    /// The kernel's command line: `key=value`, separated by spaces. Read here: `stdio=tty` (the
    /// default) or `stdio=raw`, and `faultahead=N`: the most pages of anonymous memory that one fault
    /// brings (default 16; 1 is what Linux does).
    pub command_line: &'static [u8],
    /// The cpio archive (newc) that the file system starts from; may be empty.
    pub initramfs: &'static [u8],
}

/// How the first process ended, as a shell would say it: its exit code, or 128 plus the number of
/// the signal that killed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitStatus(pub u8);

/// Why the first process could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// Not enough memory.
    OutOfMemory,
    /// The initramfs is not a cpio archive of the right kind.
    BadInitramfs,
    /// The file system could not be set up.
    FileSystem(Errno),
    /// The program that `/etc/pagoda/argv` names cannot be executed.
    CannotExecute(Errno),
}

impl From<Errno> for StartError {
    fn from(error: Errno) -> Self {
        if error == Errno::ENOMEM { Self::OutOfMemory } else { Self::FileSystem(error) }
    }
}

/// The largest file with arguments that is read.
const ARGV_MAX: u64 = 1 << 20;

/// The value of `key=` on the command line.
pub(crate) fn option<'c>(command_line: &'c [u8], key: &[u8]) -> Option<&'c [u8]> {
    command_line
        .split(|byte| byte.is_ascii_whitespace())
        .rev()
        .find_map(|word| word.strip_prefix(key)?.strip_prefix(b"="))
}

/// Runs the first process and everything that comes of it, until the first process has ended; then
/// ends all others and gives everything back that was taken from `machine`.
///
/// Called once, on the boot CPU's stack, with interrupts off.
pub fn start<M: Machine>(
    machine: &'static M,
    config: BootConfig,
) -> Result<ExitStatus, StartError> {
    let sched = Sched::new(machine).and_then(try_arc).map_err(|_| StartError::OutOfMemory)?;
    let console = SpinMutex::new(None);
    let host = try_arc(CoreHost { machine, sched, console, pages: Frames(machine) });
    let host = host.map_err(|_| StartError::OutOfMemory)?;
    let result = boot(machine, &host, config);
    // The terminal knows the host and the host the terminal.
    let console = host.console.lock().take();
    drop(console);
    result
}

fn boot<M: Machine>(
    machine: &'static M,
    host: &Arc<CoreHost<M>>,
    config: BootConfig,
) -> Result<ExitStatus, StartError> {
    let kernel = make_kernel(machine, host, config)?;
    let started = start_first(&kernel);
    if let Err(error) = started {
        log::error!("the first program cannot be started: {error:?}");
        return Err(error);
    }
    idle(&kernel);
    let status = kernel.first_status.lock().map_or(0, |status| status.shell());
    Ok(ExitStatus(status))
}

fn make_kernel<M: Machine>(
    machine: &'static M,
    host: &Arc<CoreHost<M>>,
    config: BootConfig,
) -> Result<Arc<Kernel<M>>, StartError> {
    let as_host: Arc<dyn Host> = Arc::clone(host) as Arc<dyn Host>;
    let files_limit = match machine.memory().total {
        0 => 64 << 20,
        total => total / 2,
    };
    let console = if option(config.command_line, b"stdio") == Some(b"raw") {
        let input = RawInput::new(Arc::clone(&as_host));
        Console::Raw(try_arc(input).map_err(|_| StartError::OutOfMemory)?)
    } else {
        let line = Line { machine, port: Port::Terminal };
        let line = try_arc(line).map_err(|_| StartError::OutOfMemory)?;
        let terminal = Terminal::new(Arc::clone(&as_host), line)?;
        *host.console.lock() = Some(Arc::clone(&terminal));
        Console::Terminal(terminal, SpinMutex::new(TerminalFeed::default()))
    };
    let vfs = Vfs::new(as_host, files_limit)?;
    if !config.initramfs.is_empty() {
        let unpacked = vfs.unpack(config.initramfs).map_err(|error| {
            log::error!("initramfs: {error}");
            StartError::BadInitramfs
        })?;
        log::info!("initramfs: {} entries, {} bytes", unpacked.entries, unpacked.bytes);
    }
    for directory in [&b"/dev"[..], b"/proc", b"/tmp", b"/root"] {
        vfs.make_directories(directory)?;
    }
    vfs.make_devices()?;
    let fpu = machine.new_fpu().map_err(|_| StartError::OutOfMemory)?;
    let kernel = Kernel::new(host, vfs, console, fpu, config.command_line);
    let kernel = try_arc(kernel).map_err(|_| StartError::OutOfMemory)?;
    crate::proc::mount(&kernel)?;
    Ok(kernel)
}

/// A file's whole content; none where it is missing.
fn read_file<M: Machine>(kernel: &Kernel<M>, path: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    let view = kernel.vfs.root_view();
    let node = match kernel.vfs.resolve(&view, path, Follow::Yes) {
        Ok(node) => node,
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        Err(error) => return Err(error),
    };
    let size = node.size().min(ARGV_MAX);
    let mut bytes = try_vec(0u8, size as usize).map_err(|_| Errno::ENOMEM)?;
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match node.read_at(done as u64, rest)? {
            0 => break,
            count => done += count,
        }
    }
    bytes.truncate(done);
    Ok(Some(bytes))
}

fn start_first<M: Machine>(kernel: &Arc<Kernel<M>>) -> Result<(), StartError> {
    let argv = read_file(kernel, b"/etc/pagoda/argv")?;
    let args = StrList::parse(argv.as_deref().unwrap_or(b"/bin/tour\0"))?;
    let env = read_file(kernel, b"/etc/pagoda/env")?;
    let default_env: &[u8] = b"PATH=/bin:/sbin:/usr/bin:/usr/sbin\0HOME=/root\0TERM=vt100\0";
    let env = StrList::parse(env.as_deref().unwrap_or(default_env))?;
    let mut path = Vec::new();
    let name = args.iter().next().unwrap_or_default();
    pagoda_vm::fallible::try_extend(&mut path, name).map_err(|_| StartError::OutOfMemory)?;
    let loaded = first_space(kernel, Request { path, args, env }).map_err(|error| match error {
        Errno::ENOMEM => StartError::OutOfMemory,
        error => StartError::CannotExecute(error),
    })?;

    let files = first_files(kernel)?;
    let terminal = match &kernel.console {
        Console::Terminal(terminal, _) => Some(Arc::clone(terminal)),
        Console::Raw(_) => None,
    };
    let root = Arc::clone(kernel.vfs.root());
    let places = Places { root: Arc::clone(&root), cwd: root, umask: 0o22 };
    let places = try_arc(SpinMutex::new(places)).map_err(|_| StartError::OutOfMemory)?;
    let pid = kernel.tables.lock().new_id()?;
    let process = Process::new(Parts {
        pid,
        parent: 0,
        group: pid,
        session: pid,
        exit_signal: 0,
        borrows: false,
        space: loaded.space,
        files: try_arc(files).map_err(|_| StartError::OutOfMemory)?,
        places,
        signals: ProcessSignals::new()?,
        ids: Ids::default(),
        limits: crate::sys::FIRST_LIMITS,
        program: loaded.program,
        nice: 0,
        terminal: terminal.clone(),
        now: kernel.machine.monotonic_ns(),
    });
    let process = try_arc(process).map_err(|_| StartError::OutOfMemory)?;
    process.has_execed.store(true, Ordering::Relaxed);
    let fpu = kernel.machine.new_fpu().map_err(|_| StartError::OutOfMemory)?;
    let signals = ThreadSignals::new(SigSet::EMPTY);
    let thread = Thread::new(kernel, &process, pid, loaded.regs, fpu, signals)?;
    kernel.sched.admit(&thread).map_err(|_| StartError::OutOfMemory)?;
    {
        let mut tables = kernel.tables.lock();
        let mut family = process.family.lock();
        let reserved = tables.reserve().is_ok() && family.threads.try_reserve(1).is_ok();
        if !reserved {
            drop((family, tables));
            kernel.discard_thread(&thread);
            return Err(StartError::OutOfMemory);
        }
        family.threads.push(Arc::clone(&thread));
        tables.add_thread(Arc::clone(&thread));
        drop(family);
        tables.add_process(process);
    }
    if let Some(terminal) = terminal {
        terminal.set_session(pid as i32, pid as i32);
    }
    kernel.sched.release(&thread);
    Ok(())
}

/// Descriptors 0, 1 and 2.
fn first_files<M: Machine>(kernel: &Arc<Kernel<M>>) -> Result<Files, StartError> {
    let mut table = FdTable::new();
    let machine = kernel.machine;
    match &kernel.console {
        Console::Terminal(..) => {
            let view = kernel.vfs.root_view();
            let node = kernel.vfs.resolve(&view, b"/dev/console", Follow::Yes)?;
            let file = kernel.vfs.open_node(&node, OpenFlags::RDWR, Caller::ROOT)?;
            for _ in 0..3 {
                table.insert(Arc::clone(&file), false, 3)?;
            }
        }
        Console::Raw(input) => {
            let line = |port| -> Result<Arc<OpenFile>, StartError> {
                let line = try_arc(Line { machine, port }).map_err(|_| StartError::OutOfMemory)?;
                Ok(kernel.vfs.custom(line as Arc<dyn CustomFile>, OpenFlags::WRONLY)?)
            };
            let input = Arc::clone(input) as Arc<dyn CustomFile>;
            let stdin = kernel.vfs.custom(input, OpenFlags::empty())?;
            for file in [stdin, line(Port::Terminal)?, line(Port::Error)?] {
                table.insert(file, false, 3)?;
            }
        }
    }
    Ok(Files(SpinMutex::new(table)))
}

/// The boot context while there are threads: waits for something to do when no thread can run.
fn idle<M: Machine>(kernel: &Arc<Kernel<M>>) {
    kernel.sched.start_others();
    while kernel.sched.run_ready() != 0 {
        kernel.machine.wake_at(kernel.next_event());
        kernel.machine.wait_for_interrupt();
        kernel.poll();
    }
    kernel.sched.join_others();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_of_a_kind_counts() {
        let line = b"log=com2 stdio=tty  stdio=raw x";
        assert_eq!(option(line, b"stdio"), Some(&b"raw"[..]));
        assert_eq!(option(line, b"std"), None);
        assert_eq!(option(line, b"x"), None);
    }
}
