//! What is known about a file besides its bytes: type, permission bits, owner, times.

use alloc::sync::Arc;

use crate::{Errno, Inode, Result};

/// What kind of file, with Linux's numbers for the upper bits of a mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs)]
pub enum FileType {
    Fifo = 0o010000,
    CharDevice = 0o020000,
    Directory = 0o040000,
    BlockDevice = 0o060000,
    Regular = 0o100000,
    Symlink = 0o120000,
    Socket = 0o140000,
}

impl FileType {
    /// From the type bits of a mode; 0 is a regular file, as for `mknod`.
    pub fn from_mode(mode: u32) -> Result<Self> {
        Ok(match mode & 0o170000 {
            0o010000 => Self::Fifo,
            0o020000 => Self::CharDevice,
            0o040000 => Self::Directory,
            0o060000 => Self::BlockDevice,
            0 | 0o100000 => Self::Regular,
            0o120000 => Self::Symlink,
            0o140000 => Self::Socket,
            _ => return Err(Errno::EINVAL),
        })
    }

    /// The `DT_*` value of a directory entry.
    pub fn dirent_type(self) -> u8 {
        (self as u32 >> 12) as u8
    }
}

/// Seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// The number of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct DeviceNumber {
    pub major: u32,
    pub minor: u32,
}

impl DeviceNumber {
    /// From Linux's 64-bit packing.
    pub fn from_linux(dev: u64) -> Self {
        Self {
            major: (((dev >> 32) & 0xffff_f000) | ((dev >> 8) & 0xfff)) as u32,
            minor: (((dev >> 12) & 0xffff_ff00) | (dev & 0xff)) as u32,
        }
    }

    /// Linux's 64-bit packing.
    pub fn to_linux(self) -> u64 {
        let (major, minor) = (u64::from(self.major), u64::from(self.minor));
        ((major & 0xffff_f000) << 32)
            | ((major & 0xfff) << 8)
            | ((minor & 0xffff_ff00) << 12)
            | (minor & 0xff)
    }
}

/// The answer of `stat`. `pack` makes Linux's bytes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Stat {
    pub dev: DeviceNumber,
    pub ino: u64,
    pub kind: FileType,
    /// The lower twelve bits of the mode.
    pub permissions: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: DeviceNumber,
    pub size: u64,
    pub block_size: u32,
    /// In units of 512 bytes.
    pub blocks: u64,
    pub accessed: Time,
    pub modified: Time,
    pub changed: Time,
}

impl Stat {
    /// `st_mode`.
    pub fn mode(&self) -> u32 {
        self.kind as u32 | self.permissions
    }
}

/// The answer of `statfs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct StatFs {
    /// `f_type`: which file system.
    pub magic: u64,
    /// In blocks of 4096 bytes.
    pub blocks: u64,
    pub blocks_free: u64,
    pub files: u64,
    pub files_free: u64,
}

/// In whose name something is done.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Caller<'a> {
    pub uid: u32,
    pub gid: u32,
    pub groups: &'a [u32],
}

impl Caller<'static> {
    /// The superuser.
    pub const ROOT: Self = Self { uid: 0, gid: 0, groups: &[] };
}

/// From where a path is read, and in whose name.
#[derive(Clone, Copy)]
pub struct Viewpoint<'a> {
    /// Where paths that begin with `/` start, and above which `..` does not lead.
    pub root: &'a Arc<Inode>,
    /// Where other paths start: the working directory or the directory of a descriptor.
    pub start: &'a Arc<Inode>,
    /// Who asks.
    pub caller: Caller<'a>,
    /// Permission bits that new files do not get.
    pub umask: u32,
}
