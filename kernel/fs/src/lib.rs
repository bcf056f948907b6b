#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod content;
pub mod cpio;
mod custom;
mod device;
mod directory;
mod event;
pub mod fallible;
mod fdtable;
mod file;
mod flags;
mod generated;
mod host;
mod inode;
mod listing;
mod meta;
mod names;
mod open;
pub mod pack;
mod pipe;
mod rename;
mod seals;
pub mod tty;
mod unpack;
mod vfs;
mod volume;
mod walk;

pub use custom::CustomFile;
pub use fdtable::{DEFAULT_FD_LIMIT, FdTable};
pub use file::OpenFile;
pub use flags::{OpenFlags, RenameFlags, SeekFrom};
pub use generated::{
    DirSource, Emit, Found, Generated, LinkSource, Target, TextBuffer, TextSource,
};
pub use host::{Host, IoctlMemory, Ready, Waiters};
pub use inode::Inode;
pub use meta::{Caller, DeviceNumber, FileType, Stat, StatFs, Time, Viewpoint};
pub use pagoda_linux::Errno;
pub use pipe::{PIPE_BUF, PIPE_CAPACITY};
pub use seals::Seals;
pub use unpack::{UnpackError, Unpacked};
pub use vfs::{Follow, Vfs};
pub use walk::{NAME_MAX, PATH_MAX};

/// A spinning lock. Nothing in this crate sleeps.
pub(crate) type Lock<T> = lock_api::Mutex<pagoda_sync::RawSpin, T>;

/// What almost everything here returns.
pub type Result<T> = core::result::Result<T, Errno>;
