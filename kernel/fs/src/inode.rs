//! Files and directories themselves, whatever their names.
//!
//! An [`Inode`] is owned by the directory entries and the open files that mean it; with the last
//! of them it goes, and so does what it holds. In-memory directories are found by their parents
//! and point back weakly; inodes of generated directories are made by each lookup, and point back
//! strongly, since nobody else keeps the way to them.
//!
//! Locks: `attributes`, `parent` and the body's lock are leaves: none is taken while another of
//! this crate's leaf locks is held. The tree's lock (`Vfs::names`) is taken before them.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use pagoda_addr::Frame;

use crate::content::{Content, PAGE};
use crate::directory::Directory;
use crate::generated::{Found, Generated};
use crate::pipe::Pipe;
use crate::volume::Volume;
use crate::{
    Caller, CustomFile, DeviceNumber, Errno, FileType, Lock, Result, Seals, Stat, Target,
    TextBuffer, Time, fallible,
};

/// What changes about an inode besides its content.
#[derive(Clone, Copy)]
pub(crate) struct Attributes {
    pub(crate) permissions: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Names; a directory counts itself and its subdirectories too. 0: removed.
    pub(crate) nlink: u32,
    /// Made without a name, to be given one by `link` (`O_TMPFILE`).
    pub(crate) linkable: bool,
    pub(crate) accessed: Time,
    pub(crate) modified: Time,
    pub(crate) changed: Time,
}

/// The way up.
pub(crate) enum Parent {
    /// The root, or something without a name.
    None,
    /// The in-memory directory that holds (or held) a name of this.
    Memory(Weak<Inode>),
    /// The directory through which a generated file was found, and the name.
    Generated(Arc<Inode>, Vec<u8>),
}

/// What an inode is.
pub(crate) enum Body {
    Directory(Lock<Directory>),
    Regular(Lock<Content>),
    Symlink(Vec<u8>),
    Device {
        block: bool,
        number: DeviceNumber,
    },
    Pipe(Arc<Pipe>),
    Socket,
    Generated(Generated),
    /// Only reached through the file that is open: its name for `/proc/PID/fd`.
    Anonymous(&'static str),
    /// The kernel's own.
    Custom(Arc<dyn CustomFile>),
}

/// A file, directory, link, device, pipe: a thing that can be named, whatever its names.
pub struct Inode {
    pub(crate) volume: Arc<Volume>,
    ino: u64,
    /// Charged to the volume (generated inodes are not).
    charged: bool,
    pub(crate) attributes: Lock<Attributes>,
    pub(crate) parent: Lock<Parent>,
    pub(crate) body: Body,
    /// Mappings of it (objects that programs' regions refer to).
    mappings: AtomicU32,
    /// Of these, those that may be written through.
    writable_mappings: AtomicU32,
    /// Processes that run it.
    executions: AtomicU32,
    /// Changes that are forbidden (`F_ADD_SEALS`).
    pub(crate) seals: AtomicU32,
}

impl Inode {
    /// A new inode, charged, without a name (`nlink` 0; 1 for a directory).
    pub(crate) fn new(
        volume: &Arc<Volume>,
        body: Body,
        permissions: u32,
        (uid, gid): (u32, u32),
    ) -> Result<Arc<Self>> {
        let text = if let Body::Symlink(text) = &body { text.len() as u64 } else { 0 };
        volume.charge(text)?;
        let ino = volume.new_ino().inspect_err(|_| volume.release(text))?;
        let now = volume.host.now();
        let attributes = Attributes {
            permissions,
            uid,
            gid,
            nlink: u32::from(matches!(body, Body::Directory(_))),
            linkable: false,
            accessed: now,
            modified: now,
            changed: now,
        };
        fallible::try_arc(Self {
            volume: volume.clone(),
            ino,
            charged: true,
            attributes: Lock::new(attributes),
            parent: Lock::new(Parent::None),
            body,
            mappings: AtomicU32::new(0),
            executions: AtomicU32::new(0),
            writable_mappings: AtomicU32::new(0),
            seals: AtomicU32::new(Seals::SEAL.bits()),
        })
    }

    /// The inode of an entry of a generated directory.
    pub(crate) fn generated(
        volume: &Arc<Volume>,
        found: Found,
        parent: Parent,
    ) -> Result<Arc<Self>> {
        let now = volume.host.now();
        let directory = matches!(found.content, Generated::Directory(_));
        let attributes = Attributes {
            permissions: found.permissions,
            uid: found.uid,
            gid: found.gid,
            nlink: if directory { 2 } else { 1 },
            linkable: false,
            accessed: now,
            modified: now,
            changed: now,
        };
        fallible::try_arc(Self {
            volume: volume.clone(),
            ino: found.ino,
            charged: false,
            attributes: Lock::new(attributes),
            parent: Lock::new(parent),
            body: Body::Generated(found.content),
            mappings: AtomicU32::new(0),
            executions: AtomicU32::new(0),
            writable_mappings: AtomicU32::new(0),
            seals: AtomicU32::new(Seals::SEAL.bits()),
        })
    }

    /// What kind of file.
    pub fn kind(&self) -> FileType {
        match &self.body {
            Body::Directory(_) | Body::Generated(Generated::Directory(_)) => FileType::Directory,
            Body::Regular(_) | Body::Generated(Generated::Text(_)) => FileType::Regular,
            Body::Symlink(_) | Body::Generated(Generated::Link(_)) => FileType::Symlink,
            Body::Device { block: true, .. } => FileType::BlockDevice,
            Body::Device { .. } => FileType::CharDevice,
            Body::Pipe(_) => FileType::Fifo,
            Body::Socket => FileType::Socket,
            Body::Anonymous(_) => FileType::Fifo,
            Body::Custom(file) => file.kind(),
        }
    }

    /// Is it a directory?
    pub fn is_directory(&self) -> bool {
        self.kind() == FileType::Directory
    }

    /// Its number.
    pub fn ino(&self) -> u64 {
        self.ino
    }

    /// The length of a regular file or of a link's text, in bytes.
    pub fn size(&self) -> u64 {
        match &self.body {
            Body::Regular(content) => content.lock().size(),
            Body::Symlink(text) => text.len() as u64,
            _ => 0,
        }
    }

    /// `stat`.
    pub fn stat(&self) -> Stat {
        let attributes = *self.attributes.lock();
        let (size, pages) = match &self.body {
            Body::Regular(content) => {
                let content = content.lock();
                (content.size(), content.pages())
            }
            _ => (self.size(), 0),
        };
        let rdev = if let Body::Device { number, .. } = self.body { Some(number) } else { None };
        Stat {
            dev: self.volume.dev,
            ino: self.ino,
            kind: self.kind(),
            permissions: attributes.permissions,
            nlink: attributes.nlink,
            uid: attributes.uid,
            gid: attributes.gid,
            rdev: rdev.unwrap_or_default(),
            size,
            block_size: PAGE as u32,
            blocks: pages * (PAGE / 512),
            accessed: attributes.accessed,
            modified: attributes.modified,
            changed: attributes.changed,
        }
    }

    /// Reads at `offset`; fewer bytes than asked only at the end. For regular files, whoever asks.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        match &self.body {
            Body::Regular(content) => Ok(content.lock().read(offset, into)),
            Body::Directory(_) => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Page `index` of a regular file; what lies beyond its end is zero.
    ///
    /// # Errors
    /// [`Errno::ENXIO`]: the whole page lies beyond the end. [`Errno::EINVAL`]: not a regular file.
    pub fn read_page(&self, index: u64, into: &mut [u8; 4096]) -> Result<()> {
        let Body::Regular(content) = &self.body else { return Err(Errno::EINVAL) };
        let content = content.lock();
        let start = index.checked_mul(PAGE).ok_or(Errno::ENXIO)?;
        if start >= content.size() {
            return Err(Errno::ENXIO);
        }
        let read = content.read(start, into);
        into[read..].fill(0);
        Ok(())
    }

    /// The frame of page `index` of a regular file, with a reference more for whoever maps it; none
    /// where the host's pages cannot be mapped, and for a hole that nobody touched yet (`ahead`).
    ///
    /// # Errors
    /// [`Errno::ENXIO`]: the whole page lies beyond the end. [`Errno::EINVAL`]: not a regular file.
    pub fn page_frame(&self, index: u64, ahead: bool) -> Result<Option<Frame>> {
        let Body::Regular(content) = &self.body else { return Err(Errno::EINVAL) };
        content.lock().frame(index, ahead)
    }

    /// One more mapping of the file, or one less: while there are any, whoever takes pages out of the
    /// file has the programs forget them. `writable`: stores through it are in the file.
    pub fn note_mapping(&self, writable: bool, more: bool) {
        let note = |count: &AtomicU32| {
            if more {
                count.fetch_add(1, Ordering::Relaxed);
            } else {
                count.fetch_sub(1, Ordering::Relaxed);
            }
        };
        note(&self.mappings);
        if writable {
            note(&self.writable_mappings);
        }
    }

    /// May somebody write to it through a mapping?
    pub(crate) fn is_mapped_writable(&self) -> bool {
        self.writable_mappings.load(Ordering::Relaxed) != 0
    }

    /// Has it pages that can be mapped?
    pub(crate) fn mappable_pages(&self) -> bool {
        matches!(self.body, Body::Regular(_))
    }

    /// The pages from index `from` up to `to` are no longer the file's. Called with no lock of this
    /// crate held. `own`: what programs made of them for themselves goes too.
    pub(crate) fn forget_pages(&self, from: u64, to: u64, own: bool) {
        if self.is_mapped() {
            self.volume.host.pages_gone(self, (from, to), own);
        }
    }

    /// One more process runs it, or one less: meanwhile nobody opens it for writing.
    pub fn note_execution(&self, more: bool) {
        if more {
            self.executions.fetch_add(1, Ordering::Relaxed);
        } else {
            self.executions.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// [`Errno::ETXTBSY`] while a process runs it: its pages are the program's.
    pub(crate) fn may_change(&self) -> Result<()> {
        let runs = self.executions.load(Ordering::Relaxed) != 0;
        if runs { Err(Errno::ETXTBSY) } else { Ok(()) }
    }

    /// Is it mapped somewhere?
    pub fn is_mapped(&self) -> bool {
        self.mappings.load(Ordering::Relaxed) != 0
    }

    /// Reads a generated file that has no text, at `offset`.
    pub(crate) fn read_window(&self, offset: u64, into: &mut [u8]) -> Option<Result<usize>> {
        match &self.body {
            Body::Generated(Generated::Text(source)) => source.window(offset, into),
            _ => None,
        }
    }

    /// The whole text of a generated file, as it is now.
    pub(crate) fn generate(&self) -> Result<Vec<u8>> {
        let Body::Generated(Generated::Text(source)) = &self.body else {
            return Err(Errno::EINVAL);
        };
        let mut text = TextBuffer::default();
        source.generate(&mut text)?;
        text.finish()
    }

    /// The entry `name` of this directory. `.` and `..` are the walk's business.
    pub(crate) fn lookup(self: &Arc<Self>, name: &[u8]) -> Result<Arc<Self>> {
        match &self.body {
            Body::Directory(entries) => entries.lock().get(name).cloned().ok_or(Errno::ENOENT),
            Body::Generated(Generated::Directory(source)) => {
                let found = source.lookup(name)?;
                let parent = Parent::Generated(self.clone(), fallible::try_bytes(name)?);
                Self::generated(&self.volume, found, parent)
            }
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// The directory above; `None` for a root and where the way is gone.
    pub(crate) fn parent(&self) -> Option<Arc<Self>> {
        match &*self.parent.lock() {
            Parent::None => None,
            Parent::Memory(parent) => parent.upgrade(),
            Parent::Generated(parent, _) => Some(parent.clone()),
        }
    }

    /// The text of a link; [`Errno::EINVAL`] if it is none.
    pub fn link_text(&self) -> Result<Vec<u8>> {
        match &self.body {
            Body::Symlink(text) => fallible::try_bytes(text),
            Body::Generated(Generated::Link(source)) => source.text(),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Where a link leads.
    pub(crate) fn link_target(&self) -> Result<Target> {
        match &self.body {
            Body::Generated(Generated::Link(source)) => source.follow(),
            _ => self.link_text().map(Target::Path),
        }
    }

    /// May `caller` do all of `wanted` (4 read, 2 write, 1 execute or search)?
    ///
    /// # Errors
    /// [`Errno::EACCES`].
    pub fn permits(&self, caller: Caller, wanted: u32) -> Result<()> {
        let Attributes { permissions, uid, gid, .. } = *self.attributes.lock();
        if caller.uid == 0 {
            // The superuser may all, except to execute a file that nobody may execute.
            let searchable = self.is_directory() || permissions & 0o111 != 0;
            return if wanted & 1 == 0 || searchable { Ok(()) } else { Err(Errno::EACCES) };
        }
        let granted = if caller.uid == uid {
            permissions >> 6
        } else if caller.gid == gid || caller.groups.contains(&gid) {
            permissions >> 3
        } else {
            permissions
        };
        if granted & wanted == wanted { Ok(()) } else { Err(Errno::EACCES) }
    }

    /// Notes that the content was changed (and with it the inode).
    pub(crate) fn touch_modified(&self) {
        let now = self.volume.host.now();
        let mut attributes = self.attributes.lock();
        attributes.modified = now;
        attributes.changed = now;
    }

    /// Notes that the inode was changed.
    pub(crate) fn touch_changed(&self) {
        let now = self.volume.host.now();
        self.attributes.lock().changed = now;
    }

    /// Notes a read, where that tells something new (as `relatime` does).
    pub(crate) fn touch_accessed(&self) {
        let now = self.volume.host.now();
        let mut attributes = self.attributes.lock();
        if attributes.accessed <= attributes.modified || attributes.accessed <= attributes.changed {
            attributes.accessed = now;
        }
    }

    /// Is it the same file, even if found by different lookups?
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.volume, &other.volume) && self.ino == other.ino
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        if self.charged {
            if let Body::Symlink(text) = &self.body {
                self.volume.release(text.len() as u64);
            }
            self.volume.inode_gone();
        }
    }
}

impl core::fmt::Debug for Inode {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Inode({:?} {:?} {})", self.volume.dev, self.kind(), self.ino)
    }
}
