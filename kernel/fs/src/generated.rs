//! Files and directories whose content the kernel makes up when it is asked: `/proc`.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use crate::{Errno, FileType, Inode, Result};

/// The most bytes of text that one generated file may have.
const TEXT_LIMIT: usize = 16 << 20;

/// Text that is being generated. Writing to it fails when memory is short; `generate` may ignore
/// that (the reader hears of it).
#[derive(Default)]
pub struct TextBuffer {
    bytes: Vec<u8>,
    failed: bool,
}

impl TextBuffer {
    /// Appends bytes that need not be text.
    pub fn push_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let fits = self.bytes.len() + bytes.len() <= TEXT_LIMIT;
        if !fits || crate::fallible::try_extend(&mut self.bytes, bytes).is_err() {
            self.failed = true;
            return Err(Errno::ENOMEM);
        }
        Ok(())
    }

    /// What was written, or [`Errno::ENOMEM`] if something did not fit.
    pub fn finish(self) -> Result<Vec<u8>> {
        if self.failed { Err(Errno::ENOMEM) } else { Ok(self.bytes) }
    }
}

impl fmt::Write for TextBuffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push_bytes(text.as_bytes()).map_err(|_| fmt::Error)
    }
}

/// A file whose text is made when it is read from its beginning.
pub trait TextSource: Send + Sync {
    /// Writes the whole text.
    fn generate(&self, out: &mut TextBuffer) -> Result<()>;
    /// Reads at a place, for files that are not made at once (`/proc/PID/pagemap`): none for others.
    fn window(&self, offset: u64, into: &mut [u8]) -> Option<Result<usize>> {
        let _ = (offset, into);
        None
    }
    /// Takes what a program writes (`/proc/sys`).
    fn store(&self, _offset: u64, _bytes: &[u8]) -> Result<usize> {
        Err(Errno::EINVAL)
    }
}

/// Where a magic link leads.
pub enum Target {
    /// To this path, read from the directory that the link is in.
    Path(Vec<u8>),
    /// To this file, whatever its name.
    Node(Arc<Inode>),
}

/// A symbolic link whose target is made up when asked for.
pub trait LinkSource: Send + Sync {
    /// The text for `readlink`.
    fn text(&self) -> Result<Vec<u8>>;
    /// Where it leads when followed.
    fn follow(&self) -> Result<Target> {
        self.text().map(Target::Path)
    }
}

/// Takes the entries of a listing: the position *after* the entry, the inode number, the kind and
/// the name. Answers whether it wants more.
pub type Emit<'a> = dyn FnMut(u64, u64, FileType, &[u8]) -> bool + 'a;

/// A directory whose entries are made up when asked for.
pub trait DirSource: Send + Sync {
    /// The entry of that name, or [`Errno::ENOENT`].
    fn lookup(&self, name: &[u8]) -> Result<Found>;
    /// Reports the entries (without `.` and `..`) from position `from` (0 is the first) to `emit`.
    fn list(&self, from: u64, emit: &mut Emit) -> Result<()>;
}

/// The content of a generated file.
#[derive(Clone)]
pub enum Generated {
    /// A directory.
    Directory(Arc<dyn DirSource>),
    /// Text.
    Text(Arc<dyn TextSource>),
    /// A link.
    Link(Arc<dyn LinkSource>),
}

/// An entry of a generated directory.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct Found {
    pub ino: u64,
    /// Permission bits.
    pub permissions: u32,
    pub uid: u32,
    pub gid: u32,
    pub content: Generated,
}
