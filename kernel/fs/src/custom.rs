//! Files of the kernel's own kinds.

use crate::{Errno, FileType, IoctlMemory, Ready, Result, Waiters};

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
    fn name(&self) -> &'static str {
        "anon_inode:[custom]"
    }
    /// What `fstat` calls it.
    fn kind(&self) -> FileType {
        FileType::Fifo
    }
    /// May it be opened again through `/proc/PID/fd`, as a pipe or a line may, but not an epoll set?
    fn reopens(&self) -> bool {
        false
    }
    /// The kernel's own type, for its own use.
    fn as_any(&self) -> Option<&dyn core::any::Any> {
        None
    }
}
