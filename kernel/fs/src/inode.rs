//! Files and directories themselves, whatever their names.
use crate::{Errno, FileType, Result, Stat};

/// A file, directory, link, device, pipe: a thing that can be named, whatever its names.
pub struct Inode {}

#[allow(unused_variables)]
impl Inode {
    /// `stat`.
    pub fn stat(&self) -> Stat {
        unreachable!()
    }
    /// What kind of file.
    pub fn kind(&self) -> FileType {
        FileType::Regular
    }
    /// Its number.
    pub fn ino(&self) -> u64 {
        0
    }
    /// The length of a regular file, in bytes.
    pub fn size(&self) -> u64 {
        0
    }
    /// Reads at `offset`; fewer bytes than asked only at the end. For `execve` and the like.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        Err(Errno::ENOSYS)
    }
    /// Page `index` of a regular file; what lies beyond its end is zero.
    ///
    /// # Errors
    /// [`Errno::ENXIO`]: the whole page lies beyond the end. [`Errno::EINVAL`]: not a regular file.
    pub fn read_page(&self, index: u64, into: &mut [u8; 4096]) -> Result<()> {
        Err(Errno::ENOSYS)
    }
}
