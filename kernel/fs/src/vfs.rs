//! The tree of names.
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::{
    Caller, CustomFile, DeviceNumber, DirSource, Errno, Found, Host, Inode, OpenFile, OpenFlags,
    RenameFlags, Result, StatFs, Time, Viewpoint,
};

/// What to do with a symbolic link in the last place of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// Go where it leads.
    Yes,
    /// It is meant itself.
    No,
}

/// The whole tree.
pub struct Vfs {
    root: Arc<Inode>,
}

#[allow(unused_variables)]
impl Vfs {
    /// An empty tree whose files may have `limit` bytes in all (content, names, bookkeeping).
    pub fn new(host: Arc<dyn Host>, limit: u64) -> Result<Self> {
        Err(Errno::ENOSYS)
    }
    /// `/`.
    pub fn root(&self) -> &Arc<Inode> {
        &self.root
    }
    /// The file that `path` names. An empty path is ENOENT (`AT_EMPTY_PATH` is the caller's case:
    /// it then means `view.start`).
    pub fn resolve(&self, view: &Viewpoint, path: &[u8], follow: Follow) -> Result<Arc<Inode>> {
        Err(Errno::ENOSYS)
    }
    /// `open`. `mode` is used when a file is made.
    pub fn open(
        &self,
        view: &Viewpoint,
        path: &[u8],
        flags: OpenFlags,
        mode: u32,
    ) -> Result<Arc<OpenFile>> {
        Err(Errno::ENOSYS)
    }
    /// Opens a file that was found already (`execve`, the first process's terminal).
    pub fn open_node(
        &self,
        node: &Arc<Inode>,
        flags: OpenFlags,
        caller: Caller,
    ) -> Result<Arc<OpenFile>> {
        Err(Errno::ENOSYS)
    }
    /// `mkdir`.
    pub fn mkdir(&self, view: &Viewpoint, path: &[u8], mode: u32) -> Result<()> {
        Err(Errno::ENOSYS)
    }
    /// `mknod`; the type is in `mode`.
    pub fn mknod(
        &self,
        view: &Viewpoint,
        path: &[u8],
        mode: u32,
        device: DeviceNumber,
    ) -> Result<()> {
        Err(Errno::ENOSYS)
    }
    /// `symlink`.
    pub fn symlink(&self, view: &Viewpoint, target: &[u8], path: &[u8]) -> Result<()> {
        Err(Errno::ENOSYS)
    }
    /// `link`: a further name for `node`.
    pub fn link(&self, node: &Arc<Inode>, view: &Viewpoint, path: &[u8]) -> Result<()> {
        Err(Errno::ENOSYS)
    }
    /// `unlink`.
    pub fn unlink(&self, view: &Viewpoint, path: &[u8]) -> Result<()> {
        Err(Errno::ENOSYS)
    }
    /// `rmdir`.
    pub fn rmdir(&self, view: &Viewpoint, path: &[u8]) -> Result<()> {
        Err(Errno::ENOSYS)
    }
    /// `renameat2`.
    pub fn rename(
        &self,
        from: &Viewpoint,
        old: &[u8],
        to: &Viewpoint,
        new: &[u8],
        flags: RenameFlags,
    ) -> Result<()> {
        Err(Errno::ENOSYS)
    }
    /// The text of a symbolic link; [`Errno::EINVAL`] if it is none.
    pub fn readlink(&self, node: &Arc<Inode>) -> Result<Vec<u8>> {
        Err(Errno::ENOSYS)
    }
    /// `truncate`.
    pub fn truncate(&self, node: &Arc<Inode>, len: u64, caller: Caller) -> Result<()> {
        Err(Errno::ENOSYS)
    }
    /// `chmod`.
    pub fn chmod(&self, node: &Arc<Inode>, mode: u32, caller: Caller) -> Result<()> {
        Err(Errno::ENOSYS)
    }
    /// `chown`.
    pub fn chown(
        &self,
        node: &Arc<Inode>,
        uid: Option<u32>,
        gid: Option<u32>,
        caller: Caller,
    ) -> Result<()> {
        Err(Errno::ENOSYS)
    }
    /// `utimensat`: `None` leaves a time as it is.
    pub fn set_times(
        &self,
        node: &Arc<Inode>,
        accessed: Option<Time>,
        modified: Option<Time>,
        caller: Caller,
    ) -> Result<()> {
        Err(Errno::ENOSYS)
    }
    /// `access`: may `caller` do all of `wanted` (4 read, 2 write, 1 execute)?
    pub fn access(&self, node: &Arc<Inode>, wanted: u32, caller: Caller) -> Result<()> {
        Err(Errno::ENOSYS)
    }
    /// The absolute path of `node` below `root` (`getcwd`).
    ///
    /// # Errors
    /// [`Errno::ENOENT`]: it has no name any more, or none below `root`.
    pub fn path_of(&self, root: &Arc<Inode>, node: &Arc<Inode>) -> Result<Vec<u8>> {
        Err(Errno::ENOSYS)
    }
    /// `statfs`.
    pub fn statfs(&self, node: &Arc<Inode>) -> StatFs {
        StatFs { magic: 0, blocks: 0, blocks_free: 0, files: 0, files_free: 0 }
    }
    /// `pipe2`: the reading and the writing end. `flags`: `NONBLOCK`.
    pub fn pipe(&self, flags: OpenFlags) -> Result<(Arc<OpenFile>, Arc<OpenFile>)> {
        Err(Errno::ENOSYS)
    }
    /// `eventfd2`.
    pub fn eventfd(
        &self,
        initial: u64,
        semaphore: bool,
        flags: OpenFlags,
    ) -> Result<Arc<OpenFile>> {
        Err(Errno::ENOSYS)
    }
    /// `memfd_create`: an empty regular file without a name.
    pub fn memory_file(&self, flags: OpenFlags) -> Result<Arc<OpenFile>> {
        Err(Errno::ENOSYS)
    }
    /// An open file with the kernel's own behaviour.
    pub fn custom(&self, file: Arc<dyn CustomFile>, flags: OpenFlags) -> Result<Arc<OpenFile>> {
        Err(Errno::ENOSYS)
    }
    /// Puts a generated directory at `path` (made if it is missing), for good: `/proc`.
    pub fn mount(&self, path: &[u8], content: Found) -> Result<()> {
        Err(Errno::ENOSYS)
    }
    /// Fills `/dev`.
    pub fn make_devices(&self) -> Result<()> {
        Err(Errno::ENOSYS)
    }
    /// Unpacks cpio archives (format newc) into the tree. Contents stay where they are until they
    /// are changed.
    pub fn unpack(&self, archive: &'static [u8]) -> Result<()> {
        let _: Option<Arc<dyn DirSource>> = None;
        Err(Errno::ENOSYS)
    }
}
