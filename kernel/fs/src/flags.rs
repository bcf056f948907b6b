//! Flags, with Linux's values for x86-64.

use crate::{Errno, Result};

bitflags::bitflags! {
    /// The flags of `open`. The two lowest bits are the access mode.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct OpenFlags: u32 {
        /// Write only.
        const WRONLY = 0o1;
        /// Read and write.
        const RDWR = 0o2;
        /// Make the file if it is not there.
        const CREAT = 0o100;
        /// The file must not be there.
        const EXCL = 0o200;
        /// Do not make a terminal the controlling one.
        const NOCTTY = 0o400;
        /// Empty the file.
        const TRUNC = 0o1000;
        /// Every write goes to the end.
        const APPEND = 0o2000;
        /// Do not wait.
        const NONBLOCK = 0o4000;
        /// Data reaches the medium before a write returns: always so.
        const DSYNC = 0o10000;
        /// Signal-driven input: kept, without effect.
        const ASYNC = 0o20000;
        /// Past the cache: kept, without effect.
        const DIRECT = 0o40000;
        /// Large offsets: always so.
        const LARGEFILE = 0o100000;
        /// It must be a directory.
        const DIRECTORY = 0o200000;
        /// Do not follow a symbolic link in the last place.
        const NOFOLLOW = 0o400000;
        /// Keep the access time.
        const NOATIME = 0o1000000;
        /// Close on `execve`.
        const CLOEXEC = 0o2000000;
        /// Like `DSYNC`, metadata too.
        const SYNC = 0o4000000;
        /// A place in the tree, not an open file.
        const PATH = 0o10000000;
        /// An unnamed file in this directory (with `DIRECTORY`).
        const TMPFILE = 0o20000000;
    }

    /// The flags of `renameat2`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RenameFlags: u32 {
        /// Fail where the new name is taken.
        const NOREPLACE = 1;
        /// Swap the two.
        const EXCHANGE = 2;
        /// Leave a whiteout: not supported here.
        const WHITEOUT = 4;
    }
}

impl OpenFlags {
    /// May it be read?
    pub fn readable(self) -> bool {
        !self.contains(Self::PATH) && self.bits() & 3 != 1
    }

    /// May it be written?
    pub fn writable(self) -> bool {
        !self.contains(Self::PATH) && matches!(self.bits() & 3, 1 | 2)
    }

    /// The bits that `fcntl(F_SETFL)` changes.
    pub const SETTABLE: Self = Self::APPEND
        .union(Self::NONBLOCK)
        .union(Self::ASYNC)
        .union(Self::DIRECT)
        .union(Self::NOATIME);
}

/// From where `lseek` counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekFrom {
    /// The beginning.
    Set,
    /// Where it stands.
    Current,
    /// The end.
    End,
    /// The next byte that is not in a hole.
    Data,
    /// The next hole; the end of a file counts as one.
    Hole,
}

impl SeekFrom {
    /// The third argument of `lseek`.
    pub fn from_linux(whence: u32) -> Result<Self> {
        Ok(match whence {
            0 => Self::Set,
            1 => Self::Current,
            2 => Self::End,
            3 => Self::Data,
            4 => Self::Hole,
            _ => return Err(Errno::EINVAL),
        })
    }
}
