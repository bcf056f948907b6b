#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod fallible;
mod fdtable;
mod file;
mod flags;
mod generated;
mod host;
mod inode;
mod meta;
pub mod tty;
mod vfs;

pub use fdtable::{DEFAULT_FD_LIMIT, FdTable};
pub use file::{CustomFile, OpenFile};
pub use flags::{OpenFlags, RenameFlags, SeekFrom};
pub use generated::{DirSource, Found, Generated, LinkSource, Target, TextBuffer, TextSource};
pub use host::{Host, IoctlMemory, Ready, Waiters};
pub use inode::Inode;
pub use meta::{Caller, DeviceNumber, FileType, Stat, StatFs, Time, Viewpoint};
pub use pagoda_linux::Errno;
pub use vfs::{Follow, Vfs};

/// A spinning lock. Nothing in this crate sleeps.
pub(crate) type Lock<T> = lock_api::Mutex<pagoda_sync::RawSpin, T>;

/// What almost everything here returns.
pub type Result<T> = core::result::Result<T, Errno>;
