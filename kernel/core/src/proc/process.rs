//! Files about one process.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt::Write;

use pagoda_addr::VirtAddr;
use pagoda_kernel_fs::{
    DirSource, Emit, FileType, Found, Generated, Inode, LinkSource, Target, TextBuffer, TextSource,
};
use pagoda_linux::{Errno, text};
use pagoda_vm::fallible::{try_arc, try_vec};

use super::failures::FailNth;
use super::pages::PageMap;
use super::status::{limits, stat, statm, status};
use super::{Decimal, ProcessText, found, ino, number, to_node};
use crate::kernel::Kernel;
use crate::machine::Machine;
use crate::task::{Executed, Process};
use crate::text::name;
use crate::{Result, Space};

/// What stands in a process's directory.
enum Entry<M: Machine> {
    Text(ProcessText<M>),
    PageMap,
    Link(LinkKind),
    Files,
    Threads,
    FailNth,
}

#[derive(Clone, Copy)]
enum LinkKind {
    Exe,
    Cwd,
    Root,
    File(i32),
}

const NAMES: &[&str] = &[
    "auxv",
    "cgroup",
    "cmdline",
    "comm",
    "cwd",
    "environ",
    "exe",
    "fail-nth",
    "fd",
    "limits",
    "maps",
    "mountinfo",
    "mounts",
    "oom_score",
    "oom_score_adj",
    "pagemap",
    "root",
    "smaps",
    "smaps_rollup",
    "stat",
    "statm",
    "status",
    "task",
    "wchan",
];

fn entry<M: Machine>(name: &str) -> Option<Entry<M>> {
    Some(match name {
        "auxv" => Entry::Text(|_, p, out| out.push_bytes(&p.program.lock().try_clone()?.auxv)),
        "cgroup" => Entry::Text(|_, _, out| out.push_bytes(b"0::/\n")),
        "cmdline" => Entry::Text(|_, p, out| strings(p, p.program.lock().args, out)),
        "comm" => Entry::Text(comm),
        "cwd" => Entry::Link(LinkKind::Cwd),
        "environ" => Entry::Text(|_, p, out| strings(p, p.program.lock().env, out)),
        "exe" => Entry::Link(LinkKind::Exe),
        "fail-nth" => Entry::FailNth,
        "fd" => Entry::Files,
        "limits" => Entry::Text(limits),
        "maps" => Entry::Text(maps),
        "mountinfo" => Entry::Text(|_, _, out| {
            out.push_bytes(b"1 0 0:1 / / rw - tmpfs tmpfs rw\n2 1 0:2 / /proc rw - proc proc rw\n")
        }),
        "mounts" => Entry::Text(|_, _, out| {
            out.push_bytes(b"tmpfs / tmpfs rw 0 0\nproc /proc proc rw 0 0\n")
        }),
        "oom_score" | "oom_score_adj" => Entry::Text(|_, _, out| out.push_bytes(b"0\n")),
        "root" => Entry::Link(LinkKind::Root),
        "pagemap" => Entry::PageMap,
        "smaps" => Entry::Text(smaps),
        "smaps_rollup" => Entry::Text(smaps_rollup),
        "stat" => Entry::Text(stat),
        "statm" => Entry::Text(statm),
        "status" => Entry::Text(status),
        "task" => Entry::Threads,
        "wchan" => Entry::Text(|_, _, out| out.push_bytes(b"0")),
        _ => return None,
    })
}

pub(super) fn full<T>(result: core::result::Result<T, core::fmt::Error>) -> Result<T> {
    result.map_err(|_| Errno::ENOMEM)
}

/// The directory of a process, or of the process of a thread.
pub(super) fn directory<M: Machine>(kernel: &Arc<Kernel<M>>, id: u32) -> Result<Found> {
    let pid = {
        let tables = kernel.tables.lock();
        match tables.process(id) {
            Some(process) => process.pid,
            None => tables.thread(id).ok_or(Errno::ENOENT)?.process.pid,
        }
    };
    let source = ProcessDir { kernel: Arc::downgrade(kernel), pid, with_threads: true };
    let source = try_arc(source).map_err(|_| Errno::ENOMEM)?;
    let name = Decimal::new(u64::from(id));
    Ok(found(0, name.bytes(), 0o555, Generated::Directory(source)))
}

struct ProcessDir<M: Machine> {
    kernel: Weak<Kernel<M>>,
    pid: u32,
    /// Has a `task`: is not itself below one.
    with_threads: bool,
}

/// The kernel and one of its processes.
type Both<M> = (Arc<Kernel<M>>, Arc<Process<M>>);

pub(super) fn process_of<M: Machine>(kernel: &Weak<Kernel<M>>, pid: u32) -> Result<Both<M>> {
    let kernel = kernel.upgrade().ok_or(Errno::ESRCH)?;
    let process = kernel.tables.lock().process(pid).ok_or(Errno::ESRCH)?;
    Ok((kernel, process))
}

impl<M: Machine> DirSource for ProcessDir<M> {
    fn lookup(&self, name: &[u8]) -> Result<Found> {
        let entry = core::str::from_utf8(name).ok().and_then(entry::<M>).ok_or(Errno::ENOENT)?;
        process_of(&self.kernel, self.pid).map_err(|_| Errno::ENOENT)?;
        let kernel = Weak::clone(&self.kernel);
        let (pid, seed) = (self.pid, u64::from(self.pid) + 2);
        let no_memory = |_| Errno::ENOMEM;
        Ok(match entry {
            Entry::Text(write) => {
                let source = try_arc(About { kernel, pid, write }).map_err(no_memory)?;
                found(seed, name, 0o444, Generated::Text(source))
            }
            Entry::FailNth => {
                let source = try_arc(FailNth { kernel }).map_err(no_memory)?;
                found(seed, name, 0o666, Generated::Text(source))
            }
            Entry::PageMap => {
                let source = PageMap { kernel, pid };
                let source = try_arc(source).map_err(no_memory)?;
                found(seed, name, 0o400, Generated::Text(source))
            }
            Entry::Link(kind) => {
                let source = try_arc(Leads { kernel, pid, kind }).map_err(no_memory)?;
                found(seed, name, 0o777, Generated::Link(source))
            }
            Entry::Files => {
                let source = try_arc(FilesDir { kernel, pid }).map_err(no_memory)?;
                found(seed, name, 0o555, Generated::Directory(source))
            }
            Entry::Threads if !self.with_threads => return Err(Errno::ENOENT),
            Entry::Threads => {
                let source = try_arc(ThreadsDir { kernel, pid }).map_err(no_memory)?;
                found(seed, name, 0o555, Generated::Directory(source))
            }
        })
    }

    fn list(&self, from: u64, emit: &mut Emit<'_>) -> Result<()> {
        let seed = u64::from(self.pid) + 2;
        for (at, name) in NAMES.iter().enumerate().skip(from.min(1 << 20) as usize) {
            let kind = match entry::<M>(name) {
                Some(Entry::Link(_)) => FileType::Symlink,
                Some(Entry::Files) => FileType::Directory,
                Some(Entry::Threads) if !self.with_threads => continue,
                Some(Entry::Threads) => FileType::Directory,
                _ => FileType::Regular,
            };
            if !emit(at as u64 + 1, ino(seed, name.as_bytes()), kind, name.as_bytes()) {
                break;
            }
        }
        Ok(())
    }
}

/// `task`: a directory for each thread.
struct ThreadsDir<M: Machine> {
    kernel: Weak<Kernel<M>>,
    pid: u32,
}

impl<M: Machine> DirSource for ThreadsDir<M> {
    fn lookup(&self, name: &[u8]) -> Result<Found> {
        let tid = number(name).ok_or(Errno::ENOENT)?;
        let (kernel, _) = process_of(&self.kernel, self.pid)?;
        let thread = kernel.tables.lock().thread(tid).ok_or(Errno::ENOENT)?;
        if thread.process.pid != self.pid {
            return Err(Errno::ENOENT);
        }
        let (kernel, pid) = (Weak::clone(&self.kernel), self.pid);
        let source = try_arc(ProcessDir { kernel, pid, with_threads: false });
        let source = source.map_err(|_| Errno::ENOMEM)?;
        Ok(found(u64::from(tid) << 32, name, 0o555, Generated::Directory(source)))
    }

    fn list(&self, from: u64, emit: &mut Emit<'_>) -> Result<()> {
        let (_, process) = process_of(&self.kernel, self.pid)?;
        let mut next = from as u32;
        loop {
            // `emit` is called with no lock held.
            let tid = {
                let family = process.family.lock();
                family.threads.iter().map(|thread| thread.tid).filter(|&tid| tid >= next).min()
            };
            let Some(tid) = tid else { return Ok(()) };
            next = tid + 1;
            let name = Decimal::new(u64::from(tid));
            let number = ino(u64::from(tid) << 32, name.bytes());
            if !emit(u64::from(next), number, FileType::Directory, name.bytes()) {
                return Ok(());
            }
        }
    }
}

/// `fd`: a link for each open file.
struct FilesDir<M: Machine> {
    kernel: Weak<Kernel<M>>,
    pid: u32,
}

impl<M: Machine> DirSource for FilesDir<M> {
    fn lookup(&self, name: &[u8]) -> Result<Found> {
        let plain = if name == b"0" { Some(0) } else { number(name) };
        let fd = plain.and_then(|fd| i32::try_from(fd).ok()).ok_or(Errno::ENOENT)?;
        let (_, process) = process_of(&self.kernel, self.pid)?;
        let files = process.files().ok_or(Errno::ENOENT)?;
        files.0.lock().get(fd).map_err(|_| Errno::ENOENT)?;
        let (kernel, pid) = (Weak::clone(&self.kernel), self.pid);
        let source = try_arc(Leads { kernel, pid, kind: LinkKind::File(fd) });
        let source = source.map_err(|_| Errno::ENOMEM)?;
        let seed = u64::from(pid) << 32 | 1;
        Ok(found(seed, name, 0o700, Generated::Link(source)))
    }

    fn list(&self, from: u64, emit: &mut Emit<'_>) -> Result<()> {
        let (_, process) = process_of(&self.kernel, self.pid)?;
        let Some(files) = process.files() else { return Ok(()) };
        let mut next = from;
        loop {
            let fd = {
                let table = files.0.lock();
                table.iter().map(|(fd, _)| fd as u64).find(|&fd| fd >= next)
            };
            let Some(fd) = fd else { return Ok(()) };
            next = fd + 1;
            let name = Decimal::new(fd);
            let number = ino(u64::from(self.pid) << 32 | 1, name.bytes());
            if !emit(next, number, FileType::Symlink, name.bytes()) {
                return Ok(());
            }
        }
    }
}

/// A link from a process to a file.
struct Leads<M: Machine> {
    kernel: Weak<Kernel<M>>,
    pid: u32,
    kind: LinkKind,
}

impl<M: Machine> Leads<M> {
    fn node(&self, process: &Process<M>) -> Result<Option<Arc<Inode>>> {
        Ok(match self.kind {
            LinkKind::Exe => process.program.lock().exe.as_ref().map(Executed::node),
            LinkKind::Cwd => process.places().map(|places| places.cwd),
            LinkKind::Root => process.places().map(|places| places.root),
            LinkKind::File(fd) => {
                let files = process.files().ok_or(Errno::ENOENT)?;
                let table = files.0.lock();
                Some(Arc::clone(table.get(fd).map_err(|_| Errno::ENOENT)?.node()))
            }
        })
    }
}

impl<M: Machine> LinkSource for Leads<M> {
    fn text(&self) -> Result<Vec<u8>> {
        let (kernel, process) = process_of(&self.kernel, self.pid)?;
        let root = kernel.vfs.root();
        if let LinkKind::File(fd) = self.kind {
            let files = process.files().ok_or(Errno::ENOENT)?;
            let file = {
                let table = files.0.lock();
                table.get(fd).map_err(|_| Errno::ENOENT)?.clone()
            };
            return file.describe(root);
        }
        let node = self.node(&process)?.ok_or(Errno::ENOENT)?;
        kernel.vfs.path_of(root, &node).or_else(|_| super::text("(deleted)"))
    }

    fn follow(&self) -> Result<Target> {
        let (_, process) = process_of(&self.kernel, self.pid)?;
        to_node(self.node(&process)?)
    }
}

/// A text about a process.
struct About<M: Machine> {
    kernel: Weak<Kernel<M>>,
    pid: u32,
    write: ProcessText<M>,
}

impl<M: Machine> TextSource for About<M> {
    fn generate(&self, out: &mut TextBuffer) -> Result<()> {
        let (kernel, process) = process_of(&self.kernel, self.pid)?;
        (self.write)(&kernel, &process, out)
    }
    /// What is written is accepted and forgotten.
    fn store(&self, _: u64, bytes: &[u8]) -> Result<usize> {
        Ok(bytes.len())
    }
}

fn comm<M: Machine>(_: &Kernel<M>, process: &Process<M>, out: &mut TextBuffer) -> Result<()> {
    let program = process.program.lock().name;
    full(writeln!(out, "{}", name(&program)))
}

/// Bytes of the program's own memory: its arguments or its environment.
fn strings<M: Machine>(
    process: &Process<M>,
    (start, end): (u64, u64),
    out: &mut TextBuffer,
) -> Result<()> {
    let Some(space) = process.space() else { return Ok(()) };
    let len = end.saturating_sub(start).min(1 << 20);
    let mut bytes = try_vec(0u8, len as usize).map_err(|_| Errno::ENOMEM)?;
    crate::user::read_from::<M>(&space, start, &mut bytes)?;
    out.push_bytes(&bytes)
}

fn each_region<M: Machine>(
    process: &Process<M>,
    mut each: impl FnMut(&Space<M>, &pagoda_vm::RegionInfo) -> core::fmt::Result,
) -> Result<()> {
    let Some(space) = process.space() else { return Ok(()) };
    let mut from = VirtAddr::new(0);
    while let Some(region) = space.next_region(from) {
        full(each(&space, &region))?;
        from = region.range.end();
    }
    Ok(())
}

fn maps<M: Machine>(_: &Kernel<M>, process: &Process<M>, out: &mut TextBuffer) -> Result<()> {
    each_region(process, |_, region| text::maps_line(out, region))
}

fn smaps<M: Machine>(_: &Kernel<M>, process: &Process<M>, out: &mut TextBuffer) -> Result<()> {
    each_region(process, |space, region| {
        text::smaps_entry(out, region, &space.resident(region.range.start()))
    })
}

fn smaps_rollup<M: Machine>(
    _: &Kernel<M>,
    process: &Process<M>,
    out: &mut TextBuffer,
) -> Result<()> {
    let (mut sum, mut ends) = (pagoda_vm::Residency::default(), None);
    each_region(process, |space, region| {
        let pages = space.resident(region.range.start());
        sum.present += pages.present;
        sum.sole += pages.sole;
        sum.dirty += pages.dirty;
        sum.sole_dirty += pages.sole_dirty;
        sum.anonymous += pages.anonymous;
        sum.accessed += pages.accessed;
        sum.lazy += pages.lazy;
        sum.proportional += pages.proportional;
        let (start, end) = (region.range.start().as_u64(), region.range.end().as_u64());
        ends = Some((ends.map_or(start, |(first, _)| first), end));
        Ok(())
    })?;
    match ends {
        Some(ends) => full(text::smaps_rollup(out, ends, &sum)),
        None => Ok(()),
    }
}
