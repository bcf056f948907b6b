//! From a cpio archive to the tree.
//!
//! Contents are used where they lie. Missing directories are made. A later entry of the same name
//! takes the place of an earlier one (that is how concatenated archives override each other), but
//! never that of a directory that is not empty. Entries of one archive with the same inode number
//! become names of one file.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use crate::cpio::{Cpio, CpioError, Entry};
use crate::inode::Body;
use crate::names::New;
use crate::walk::{Last, walk};
use crate::{DeviceNumber, Errno, FileType, Follow, Inode, Result, Time, Vfs};

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries, of all archives.
    pub entries: usize,
    /// Bytes of content.
    pub bytes: u64,
}

/// Why unpacking stopped. What was unpacked before stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum UnpackError<'a> {
    /// The archive is wrong.
    Archive(CpioError<'a>),
    /// The archive is well formed, but what an entry asks for cannot be done.
    Entry { number: usize, offset: usize, name: &'a [u8], field: &'static str, errno: Errno },
}

impl fmt::Display for UnpackError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Archive(error) => error.fmt(f),
            Self::Entry { number, offset, name, field, errno } => {
                let name = name.escape_ascii();
                write!(f, "cpio entry {number} at byte {offset} ({name}): {field}: {errno:?}")
            }
        }
    }
}

/// Files that may get further names, by archive, device and inode number; sorted.
type Links = Vec<((usize, (u32, u32), u32), Arc<Inode>)>;

/// An error of one entry: which field, and why.
type Blame = (&'static str, Errno);

impl Vfs {
    /// Unpacks the cpio archives in `bytes` (see [`cpio`](crate::cpio)) into the tree.
    pub fn unpack(
        &self,
        bytes: &'static [u8],
    ) -> core::result::Result<Unpacked, UnpackError<'static>> {
        let mut done = Unpacked::default();
        let mut links = Links::new();
        for entry in Cpio::new(bytes) {
            let entry = entry.map_err(UnpackError::Archive)?;
            self.unpack_entry(&entry, &mut links).map_err(|blame| blamed(&entry, blame))?;
            done.entries += 1;
            done.bytes += entry.data.len() as u64;
        }
        // Filling a directory changed its time.
        for entry in Cpio::new(bytes).flatten() {
            if FileType::from_mode(entry.mode) == Ok(FileType::Directory)
                && let Ok(node) = self.resolve(&self.root_view(), entry.name, Follow::No)
                && node.is_directory()
            {
                let time = Time { seconds: entry.mtime.into(), nanoseconds: 0 };
                node.attributes.lock().modified = time;
            }
        }
        Ok(done)
    }

    fn unpack_entry(
        &self,
        entry: &Entry<'static>,
        links: &mut Links,
    ) -> core::result::Result<(), Blame> {
        if entry.name.split(|&byte| byte == b'/').any(|name| name == b"..") {
            return Err(("name", Errno::EINVAL));
        }
        let kind = match entry.mode & 0o170000 {
            0 => return Err(("mode", Errno::EINVAL)),
            _ => FileType::from_mode(entry.mode).map_err(|errno| ("mode", errno))?,
        };
        if let Some(end) = entry.name.iter().rposition(|&byte| byte == b'/') {
            self.make_directories(&entry.name[..end]).map_err(|errno| ("name", errno))?;
        }
        if kind == FileType::Directory {
            return self.unpack_directory(entry).map_err(|errno| ("name", errno));
        }
        if kind != FileType::Regular && kind != FileType::Symlink && !entry.data.is_empty() {
            return Err(("filesize", Errno::EINVAL));
        }
        let key = (entry.archive, entry.device, entry.ino);
        let known = links.binary_search_by_key(&key, |(key, _)| *key);
        if let (true, Ok(at)) = (entry.nlink > 1, known) {
            return self.unpack_link(entry, kind, &links[at].1);
        }
        self.make_way(entry).map_err(|errno| ("name", errno))?;
        let new = new_file(entry, kind)?;
        let made = self.make(&self.root_view(), entry.name, 0o777, new);
        let node = made.map_err(|errno| ("name", errno))?;
        set_attributes(&node, entry);
        if let (true, Err(at)) = (entry.nlink > 1, known) {
            links.try_reserve(1).map_err(|_| ("nlink", Errno::ENOMEM))?;
            links.insert(at, (key, node));
        }
        Ok(())
    }

    fn unpack_directory(&self, entry: &Entry) -> Result<()> {
        let view = self.root_view();
        let there = walk(&view, entry.name, Last::Follow)?.node;
        let node = match there {
            Some(node) if node.is_directory() => node,
            _ => {
                self.make_way(entry)?;
                self.make(&view, entry.name, 0o755, New::Directory)?
            }
        };
        set_attributes(&node, entry);
        Ok(())
    }

    /// A further name for `node`. Of the names of one file, usually only the last has the content.
    fn unpack_link(
        &self,
        entry: &Entry<'static>,
        kind: FileType,
        node: &Arc<Inode>,
    ) -> core::result::Result<(), Blame> {
        if node.kind() != kind {
            return Err(("mode", Errno::EINVAL));
        }
        let there = self.resolve(&self.root_view(), entry.name, Follow::No);
        if !there.is_ok_and(|there| Arc::ptr_eq(&there, node)) {
            self.make_way(entry).map_err(|errno| ("name", errno))?;
            self.link(node, &self.root_view(), entry.name).map_err(|errno| ("name", errno))?;
        }
        if let (Body::Regular(content), false) = (&node.body, entry.data.is_empty()) {
            let mut content = content.lock();
            if content.size() != 0 && !content.is_base(entry.data) {
                return Err(("filesize", Errno::EEXIST));
            }
            content.set_base(entry.data);
        }
        set_attributes(node, entry);
        Ok(())
    }

    /// Removes what has the entry's name.
    fn make_way(&self, entry: &Entry) -> Result<()> {
        let view = self.root_view();
        match walk(&view, entry.name, Last::Entry)?.node {
            None => Ok(()),
            Some(node) if node.is_directory() => self.rmdir(&view, entry.name),
            Some(_) => self.unlink(&view, entry.name),
        }
    }
}

fn new_file(entry: &Entry<'static>, kind: FileType) -> core::result::Result<New<'static>, Blame> {
    Ok(match kind {
        FileType::Regular => New::Regular(entry.data),
        FileType::Symlink => {
            let plausible = !entry.data.is_empty()
                && entry.data.len() < crate::PATH_MAX
                && !entry.data.contains(&0);
            if !plausible {
                return Err(("the link's target", Errno::EINVAL));
            }
            New::Symlink(entry.data)
        }
        kind => New::Node(kind, DeviceNumber { major: entry.rdev.0, minor: entry.rdev.1 }),
    })
}

fn set_attributes(node: &Arc<Inode>, entry: &Entry) {
    let time = Time { seconds: entry.mtime.into(), nanoseconds: 0 };
    let mut attributes = node.attributes.lock();
    attributes.permissions = entry.mode & 0o7777;
    (attributes.uid, attributes.gid) = (entry.uid, entry.gid);
    (attributes.modified, attributes.accessed) = (time, time);
}

fn blamed<'a>(entry: &Entry<'a>, (field, errno): Blame) -> UnpackError<'a> {
    let Entry { number, offset, name, .. } = *entry;
    UnpackError::Entry { number, offset, name, field, errno }
}

impl Vfs {
    /// Makes (or replaces) a regular file whose content lies at `content` for ever.
    pub fn place_file(&self, path: &[u8], content: &'static [u8], mode: u32) -> Result<()> {
        if let Some(end) = path.iter().rposition(|&byte| byte == b'/') {
            self.make_directories(&path[..end])?;
        }
        let view = self.root_view();
        match self.unlink(&view, path) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(error),
        }
        self.make(&view, path, mode, New::Regular(content)).map(drop)
    }
}
