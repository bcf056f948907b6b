//! `/proc`: texts, links and directories that are made up when somebody looks.
//!
//! A source holds a weak count on the kernel (the kernel holds the tree that holds the source) and
//! names a process by number, so that a file that stays open outlives what it tells about: reading
//! it then is `ESRCH`.
//!
//! [`system`]: files about the machine. [`process`] and [`status`]: files about
//! one process.
//!
//! [`settings`]: numbers that can be changed.
//!
//! Left out: writing elsewhere (limits, `oom_score_adj` and the like accept and forget), per-thread memory
//! maps apart from the process's, network files.

mod failures;
mod pages;
mod process;
mod settings;
mod status;
mod system;

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt::{self, Write};

use pagoda_kernel_fs::{
    DirSource, Emit, FileType, Found, Generated, LinkSource, Target, TextBuffer, TextSource,
};
use pagoda_linux::Errno;
use pagoda_vm::fallible::{try_arc, try_extend};

use crate::Result;
use crate::kernel::Kernel;
use crate::machine::Machine;
use crate::task::Process;

/// Writes a text about the system.
type SystemText<M> = fn(&Kernel<M>, &mut dyn Write) -> fmt::Result;
/// Writes a text about a process.
type ProcessText<M> = fn(&Kernel<M>, &Process<M>, &mut TextBuffer) -> Result<()>;

/// What an entry of a fixed directory is.
enum Item<M: Machine> {
    Text(SystemText<M>),
    Directory(fn() -> &'static [&'static str], fn(&str) -> Option<Item<M>>),
    Link(fn(&Kernel<M>) -> Option<u32>, &'static str),
    /// A number that the superuser may change.
    Setting(&'static settings::Setting),
    /// Words about frames: flags, or else counts.
    Frames {
        flags: bool,
    },
}

fn ino(seed: u64, name: &[u8]) -> u64 {
    // FNV-1a (Fowler, Noll, Vo), so that a file keeps its number.
    let start = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let hash = name
        .iter()
        .fold(start, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    (hash >> 16) | 1
}

fn found(seed: u64, name: &[u8], permissions: u32, content: Generated) -> Found {
    Found { ino: ino(seed, name), permissions, uid: 0, gid: 0, content }
}

fn text(bytes: &str) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    try_extend(&mut out, bytes.as_bytes()).map_err(|_| Errno::ENOMEM)?;
    Ok(out)
}

/// A number in decimal, without allocating.
struct Decimal {
    digits: [u8; 20],
    start: usize,
}

impl Decimal {
    fn new(mut value: u64) -> Self {
        let mut decimal = Self { digits: [b'0'; 20], start: 20 };
        loop {
            decimal.start -= 1;
            if let Some(digit) = decimal.digits.get_mut(decimal.start) {
                *digit = b'0' + (value % 10) as u8;
            }
            value /= 10;
            if value == 0 || decimal.start == 0 {
                return decimal;
            }
        }
    }
    fn bytes(&self) -> &[u8] {
        self.digits.get(self.start..).unwrap_or_default()
    }
}

/// A number that is a whole name, as directories of processes are called.
fn number(name: &[u8]) -> Option<u32> {
    let text = core::str::from_utf8(name).ok()?;
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    if plain { text.parse().ok() } else { None }
}

/// A text about the system.
struct System<M: Machine> {
    kernel: Weak<Kernel<M>>,
    write: SystemText<M>,
}

impl<M: Machine> TextSource for System<M> {
    fn generate(&self, out: &mut TextBuffer) -> Result<()> {
        let kernel = self.kernel.upgrade().ok_or(Errno::ESRCH)?;
        (self.write)(&kernel, out).map_err(|_| Errno::ENOMEM)
    }
    fn store(&self, _: u64, _: &[u8]) -> Result<usize> {
        Err(Errno::EACCES)
    }
}

/// A link that leads to a process's directory.
struct Current<M: Machine> {
    kernel: Weak<Kernel<M>>,
    who: fn(&Kernel<M>) -> Option<u32>,
    format: &'static str,
}

impl<M: Machine> LinkSource for Current<M> {
    fn text(&self) -> Result<Vec<u8>> {
        let kernel = self.kernel.upgrade().ok_or(Errno::ESRCH)?;
        let id = (self.who)(&kernel).ok_or(Errno::ENOENT)?;
        let mut out = TextBuffer::default();
        for part in self.format.split_inclusive('#') {
            match part.strip_suffix('#') {
                Some(before) => write!(out, "{before}{id}"),
                None => write!(out, "{part}"),
            }
            .map_err(|_| Errno::ENOMEM)?;
        }
        out.finish()
    }
}

/// A directory with a fixed list of entries; the topmost one lists the processes too.
struct Fixed<M: Machine> {
    kernel: Weak<Kernel<M>>,
    names: fn() -> &'static [&'static str],
    item: fn(&str) -> Option<Item<M>>,
    top: bool,
}

impl<M: Machine> DirSource for Fixed<M> {
    fn lookup(&self, name: &[u8]) -> Result<Found> {
        if let Some(pid) = number(name).filter(|_| self.top) {
            let kernel = self.kernel.upgrade().ok_or(Errno::ENOENT)?;
            return process::directory(&kernel, pid);
        }
        let item = core::str::from_utf8(name).ok().and_then(self.item).ok_or(Errno::ENOENT)?;
        let kernel = Weak::clone(&self.kernel);
        let seed = u64::from(!self.top);
        let no_memory = |_| Errno::ENOMEM;
        Ok(match item {
            Item::Text(write) => {
                let source = try_arc(System { kernel, write }).map_err(no_memory)?;
                found(seed, name, 0o444, Generated::Text(source))
            }
            Item::Directory(names, item) => {
                let source = Fixed { kernel, names, item, top: false };
                let source = try_arc(source).map_err(no_memory)?;
                found(seed, name, 0o555, Generated::Directory(source))
            }
            Item::Setting(setting) => {
                let source = try_arc(settings::Source { kernel, setting }).map_err(no_memory)?;
                found(seed, name, 0o644, Generated::Text(source))
            }
            Item::Frames { flags } => {
                let source = pages::FrameWords { kernel, flags };
                let source = try_arc(source).map_err(no_memory)?;
                found(seed, name, 0o400, Generated::Text(source))
            }
            Item::Link(who, format) => {
                let source = try_arc(Current { kernel, who, format }).map_err(no_memory)?;
                found(seed, name, 0o777, Generated::Link(source))
            }
        })
    }

    fn list(&self, from: u64, emit: &mut Emit<'_>) -> Result<()> {
        let names = (self.names)();
        for (at, name) in names.iter().enumerate().skip(from.min(1 << 20) as usize) {
            let kind = match (self.item)(name) {
                Some(Item::Directory(..)) => FileType::Directory,
                Some(Item::Link(..)) => FileType::Symlink,
                _ => FileType::Regular,
            };
            let seed = u64::from(!self.top);
            if !emit(at as u64 + 1, ino(seed, name.as_bytes()), kind, name.as_bytes()) {
                return Ok(());
            }
        }
        if !self.top {
            return Ok(());
        }
        let Some(kernel) = self.kernel.upgrade() else { return Ok(()) };
        // Positions behind the fixed entries are process numbers.
        let base = names.len() as u64;
        let mut next = from.saturating_sub(base) as u32;
        while let Some(process) = kernel.next_process(next) {
            next = process.pid + 1;
            let name = Decimal::new(u64::from(process.pid));
            let number = ino(0, name.bytes());
            if !emit(base + u64::from(next), number, FileType::Directory, name.bytes()) {
                break;
            }
        }
        Ok(())
    }
}

/// Puts `/proc` into the tree.
pub(crate) fn mount<M: Machine>(kernel: &Arc<Kernel<M>>) -> Result<()> {
    let top = Fixed {
        kernel: Arc::downgrade(kernel),
        names: system::top_names,
        item: system::top_item::<M>,
        top: true,
    };
    let top = try_arc(top).map_err(|_| Errno::ENOMEM)?;
    kernel.vfs.mount(b"/proc", found(0, b"/", 0o555, Generated::Directory(top)))
}

/// A link that leads to a node, whatever its name is.
fn to_node(target: Option<Arc<pagoda_kernel_fs::Inode>>) -> Result<Target> {
    target.map(Target::Node).ok_or(Errno::ENOENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_and_write_the_same() {
        for value in [0, 7, 10, 4_194_303, u64::MAX] {
            let name = Decimal::new(value);
            assert_eq!(core::str::from_utf8(name.bytes()).unwrap().parse(), Ok(value));
        }
        assert_eq!(number(b"12"), Some(12));
        assert_eq!(number(b"012"), None);
        assert_eq!(number(b"1x"), None);
        assert_eq!(number(b""), None);
    }
}
