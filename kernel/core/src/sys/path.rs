//! Names: making, removing, moving them; working directories.

use alloc::sync::Arc;

use pagoda_kernel_fs::{DeviceNumber, Follow, Inode, RenameFlags};
use pagoda_linux::Errno;

use crate::Result;
use crate::machine::Machine;
use crate::run::Cx;

const REMOVEDIR: u64 = 0x200;
const SYMLINK_FOLLOW: u64 = 0x400;
const EMPTY_PATH: u64 = 0x1000;

impl<M: Machine> Cx<'_, M> {
    pub(crate) fn sys_mkdirat(&mut self, a: [u64; 6]) -> Result<u64> {
        let path = self.read_path(a[1])?;
        let look = self.look(a[0], &path)?;
        self.kernel.vfs.mkdir(&look.view(), &path, a[2] as u32 & 0o7777).map(|()| 0)
    }

    pub(crate) fn sys_mknodat(&mut self, a: [u64; 6]) -> Result<u64> {
        let path = self.read_path(a[1])?;
        let look = self.look(a[0], &path)?;
        let device = DeviceNumber::from_linux(a[3]);
        self.kernel.vfs.mknod(&look.view(), &path, a[2] as u32, device).map(|()| 0)
    }

    pub(crate) fn sys_unlinkat(&mut self, a: [u64; 6]) -> Result<u64> {
        let path = self.read_path(a[1])?;
        let look = self.look(a[0], &path)?;
        match a[2] {
            0 => self.kernel.vfs.unlink(&look.view(), &path).map(|()| 0),
            REMOVEDIR => self.kernel.vfs.rmdir(&look.view(), &path).map(|()| 0),
            _ => Err(Errno::EINVAL),
        }
    }

    pub(crate) fn sys_renameat2(&mut self, a: [u64; 6]) -> Result<u64> {
        let (old, new) = (self.read_path(a[1])?, self.read_path(a[3])?);
        let from = self.look(a[0], &old)?;
        let to = self.look(a[2], &new)?;
        let flags = RenameFlags::from_bits(a[4] as u32).ok_or(Errno::EINVAL)?;
        self.kernel.vfs.rename(&from.view(), &old, &to.view(), &new, flags).map(|()| 0)
    }

    pub(crate) fn sys_linkat(&mut self, a: [u64; 6]) -> Result<u64> {
        let [from_dir, old_at, to_dir, new_at, flags, _] = a;
        if flags & !(SYMLINK_FOLLOW | EMPTY_PATH) != 0 {
            return Err(Errno::EINVAL);
        }
        let (old, new) = (self.read_path(old_at)?, self.read_path(new_at)?);
        let from = self.look(from_dir, &old)?;
        let follow = if flags & SYMLINK_FOLLOW != 0 { Follow::Yes } else { Follow::No };
        let node = if old.is_empty() && flags & EMPTY_PATH != 0 {
            Arc::clone(&from.start)
        } else {
            self.kernel.vfs.resolve(&from.view(), &old, follow)?
        };
        let to = self.look(to_dir, &new)?;
        self.kernel.vfs.link(&node, &to.view(), &new).map(|()| 0)
    }

    pub(crate) fn sys_symlinkat(&mut self, a: [u64; 6]) -> Result<u64> {
        let (target, path) = (self.read_path(a[0])?, self.read_path(a[2])?);
        let look = self.look(a[1], &path)?;
        self.kernel.vfs.symlink(&look.view(), &target, &path).map(|()| 0)
    }

    pub(crate) fn sys_readlinkat(&mut self, a: [u64; 6]) -> Result<u64> {
        let len = usize::try_from(a[3] as i32).ok().filter(|&len| len != 0);
        let len = len.ok_or(Errno::EINVAL)?;
        let path = self.read_path(a[1])?;
        let look = self.look(a[0], &path)?;
        let node = if path.is_empty() {
            Arc::clone(&look.start)
        } else {
            self.kernel.vfs.resolve(&look.view(), &path, Follow::No)?
        };
        let text = self.kernel.vfs.readlink(&node).map_err(|error| match error {
            Errno::EINVAL if path.is_empty() => Errno::ENOENT,
            error => error,
        })?;
        let text = text.get(..len).unwrap_or(&text);
        self.write_bytes(a[2], text)?;
        Ok(text.len() as u64)
    }

    fn set_cwd(&self, node: Arc<Inode>) -> Result<u64> {
        if !node.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        let look = self.look(super::AT_FDCWD as u64, b"/")?;
        self.kernel.vfs.access(&node, 1, look.caller())?;
        let places = self.process.places.lock().clone().ok_or(Errno::ESRCH)?;
        let old = core::mem::replace(&mut places.lock().cwd, node);
        drop(old);
        Ok(0)
    }

    pub(crate) fn sys_chdir(&mut self, a: [u64; 6]) -> Result<u64> {
        let path = self.read_path(a[0])?;
        let look = self.look(super::AT_FDCWD as u64, &path)?;
        let node = self.kernel.vfs.resolve(&look.view(), &path, Follow::Yes)?;
        self.set_cwd(node)
    }

    pub(crate) fn sys_fchdir(&mut self, a: [u64; 6]) -> Result<u64> {
        let node = Arc::clone(self.file(a[0])?.node());
        self.set_cwd(node)
    }

    pub(crate) fn sys_chroot(&mut self, a: [u64; 6]) -> Result<u64> {
        let path = self.read_path(a[0])?;
        let look = self.look(super::AT_FDCWD as u64, &path)?;
        let node = self.kernel.vfs.resolve(&look.view(), &path, Follow::Yes)?;
        if !node.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        if look.caller().uid != 0 {
            return Err(Errno::EPERM);
        }
        let places = self.process.places.lock().clone().ok_or(Errno::ESRCH)?;
        let old = core::mem::replace(&mut places.lock().root, node);
        drop(old);
        Ok(0)
    }

    pub(crate) fn sys_getcwd(&mut self, a: [u64; 6]) -> Result<u64> {
        let places = self.process.places().ok_or(Errno::ENOENT)?;
        let mut path = self.kernel.vfs.path_of(&places.root, &places.cwd)?;
        pagoda_vm::fallible::try_push(&mut path, 0).map_err(|_| Errno::ENOMEM)?;
        if path.len() as u64 > a[1] {
            return Err(Errno::ERANGE);
        }
        self.write_bytes(a[0], &path)?;
        Ok(path.len() as u64)
    }
}
