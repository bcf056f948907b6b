//! Open files.
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::tty::Terminal;
use crate::{Errno, Inode, IoctlMemory, OpenFlags, Ready, Result, SeekFrom, Stat, Waiters};

/// A file whose behaviour the kernel supplies itself (a raw serial line, an epoll set).
pub trait CustomFile: Send + Sync {
    /// Reads; [`Errno::EAGAIN`] where it would have to wait, 0 at the end.
    fn read(&self, _into: &mut [u8]) -> Result<usize> {
        Err(Errno::EINVAL)
    }
    /// Writes; [`Errno::EAGAIN`] where it would have to wait.
    fn write(&self, _bytes: &[u8]) -> Result<usize> {
        Err(Errno::EINVAL)
    }
    /// What it is ready for.
    fn poll(&self) -> Ready;
    /// Where to wait; without it the file is always ready.
    fn waiters(&self) -> Option<&Waiters> {
        None
    }
    /// Anything else.
    fn ioctl(&self, _request: u32, _arg: u64, _memory: &mut dyn IoctlMemory) -> Result<i64> {
        Err(Errno::ENOTTY)
    }
    /// What `/proc/PID/fd` shows, such as `anon_inode:[eventpoll]`.
    fn name(&self) -> &str {
        "anon_inode:[custom]"
    }
    /// The kernel's own type, for its own use.
    fn as_any(&self) -> Option<&dyn core::any::Any> {
        None
    }
}

/// An open file description: what `dup` and `fork` share.
pub struct OpenFile {
    node: Arc<Inode>,
}

#[allow(unused_variables)]
impl OpenFile {
    /// Reads at the offset and advances it. 0 is the end.
    ///
    /// # Errors
    /// [`Errno::EAGAIN`]: it would have to wait (see [`Waiters`]).
    pub fn read(&self, into: &mut [u8]) -> Result<usize> {
        Err(Errno::ENOSYS)
    }
    /// How long a read that was refused with EAGAIN waits at most, in milliseconds, before
    /// [`read_expired`](Self::read_expired) is called (a terminal's VTIME); `None`: for ever.
    pub fn read_wait_limit_ms(&self) -> Option<u64> {
        None
    }
    /// The wait is over: what is there now, be it nothing.
    pub fn read_expired(&self, into: &mut [u8]) -> Result<usize> {
        Err(Errno::ENOSYS)
    }
    /// Writes at the offset (or the end, with `O_APPEND`) and advances it.
    pub fn write(&self, bytes: &[u8]) -> Result<usize> {
        Err(Errno::ENOSYS)
    }
    /// Reads at `offset`.
    pub fn pread(&self, into: &mut [u8], offset: u64) -> Result<usize> {
        Err(Errno::ENOSYS)
    }
    /// Writes at `offset`.
    pub fn pwrite(&self, bytes: &[u8], offset: u64) -> Result<usize> {
        Err(Errno::ENOSYS)
    }
    /// Moves the offset and returns it.
    pub fn seek(&self, from: SeekFrom, offset: i64) -> Result<u64> {
        Err(Errno::ENOSYS)
    }
    /// Fills `into` with Linux's 64-bit directory records; 0 is the end.
    pub fn getdents64(&self, into: &mut [u8]) -> Result<usize> {
        Err(Errno::ENOSYS)
    }
    /// Sets the length (`ftruncate`).
    pub fn truncate(&self, len: u64) -> Result<()> {
        Err(Errno::ENOSYS)
    }
    /// `fallocate`, with Linux's mode bits.
    pub fn allocate(&self, mode: u32, offset: u64, len: u64) -> Result<()> {
        Err(Errno::ENOSYS)
    }
    /// What it is ready for now.
    pub fn poll(&self) -> Ready {
        Ready::empty()
    }
    /// Where to wait for that to change; `None`: it never does.
    pub fn waiters(&self) -> Option<&Waiters> {
        None
    }
    /// Device control. Knows `FIONREAD`, `FIONBIO` and the terminal's requests.
    pub fn ioctl(&self, request: u32, arg: u64, memory: &mut dyn IoctlMemory) -> Result<i64> {
        Err(Errno::ENOSYS)
    }
    /// The access mode and the flags that `fcntl(F_GETFL)` shows.
    pub fn flags(&self) -> OpenFlags {
        OpenFlags::empty()
    }
    /// `fcntl(F_SETFL)`.
    pub fn set_flags(&self, flags: OpenFlags) {}
    /// The file itself.
    pub fn node(&self) -> &Arc<Inode> {
        &self.node
    }
    /// `fstat`.
    pub fn stat(&self) -> Stat {
        self.node.stat()
    }
    /// The terminal, if it is one.
    pub fn terminal(&self) -> Option<&Arc<Terminal>> {
        None
    }
    /// The kernel's own file, if it is one.
    pub fn custom(&self) -> Option<&Arc<dyn CustomFile>> {
        None
    }
    /// What may be mapped privately: a readable regular file ([`Inode::read_page`]).
    ///
    /// # Errors
    /// [`Errno::EACCES`] if not open for reading, [`Errno::ENODEV`] if not a regular file.
    pub fn mappable(&self) -> Result<Arc<Inode>> {
        Err(Errno::ENODEV)
    }
    /// Its name as `/proc/PID/fd` shows it: a path below `root`, or `pipe:[7]`.
    pub fn describe(&self, root: &Arc<Inode>) -> Result<Vec<u8>> {
        Err(Errno::ENOSYS)
    }
}
