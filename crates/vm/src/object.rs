//! What stands behind regions: files and shared memory.

use core::fmt;
use core::marker::PhantomData;

use alloc::sync::Arc;
use pagoda_addr::PAGE_SIZE;

use crate::{VmError, VmPlatform};

/// A page of a file could not be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadError {
    /// The file has no such page, or its medium failed: SIGBUS.
    Bus,
    /// No memory for it.
    OutOfMemory,
}

/// What `/proc/PID/maps` says about a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FileIdentity {
    /// Major number of the device.
    pub major: u32,
    /// Minor number of the device.
    pub minor: u32,
    /// Inode number.
    pub inode: u64,
}

/// A file that may be mapped privately. Called with the regions of one address space locked: an
/// implementer takes only locks of rank `OBJECT` and above, never touches user memory, never waits
/// for a program.
pub trait FileObject: Send + Sync {
    /// Bytes in the file now.
    fn size(&self) -> u64;

    /// Fills `into` with page `index` of the file. Bytes beyond the end of the file need not be
    /// written: the caller clears them.
    fn read_page(&self, index: u64, into: &mut [u8; PAGE_SIZE as usize]) -> Result<(), ReadError>;

    /// Device and inode.
    fn identity(&self) -> FileIdentity {
        FileIdentity::default()
    }

    /// Writes the path, as `/proc/PID/maps` shows it.
    fn write_path(&self, to: &mut dyn fmt::Write) -> fmt::Result {
        let _ = to;
        Ok(())
    }
}

/// Zeroed memory that several mappings see at once.
pub struct SharedObject<P: VmPlatform> {
    _platform: PhantomData<P>,
}

impl<P: VmPlatform> SharedObject<P> {
    /// `pages` pages of zeroes, none of which takes memory before it is touched.
    pub fn new(platform: P, pages: u64) -> Result<Arc<Self>, VmError> {
        let _ = (platform, pages);
        todo!()
    }
}
