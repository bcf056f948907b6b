//! What is known about files: `stat` and its kin, modes, owners, times.

use pagoda_kernel_fs::{Follow, Inode, Stat, Time, pack};
use pagoda_linux::Errno;

use alloc::sync::Arc;

use super::Look;
use crate::Result;
use crate::machine::Machine;
use crate::run::Cx;

const SYMLINK_NOFOLLOW: u64 = 0x100;
const EMPTY_PATH: u64 = 0x1000;
const EACCESS: u64 = 0x200;
const NO_AUTOMOUNT: u64 = 0x800;

impl<M: Machine> Cx<'_, M> {
    /// The file that a call with a directory, a path and `AT_*` flags means.
    fn target(&self, dirfd: u64, path_at: u64, flags: u64) -> Result<(Look, Arc<Inode>)> {
        let path = if path_at == 0 && flags & EMPTY_PATH != 0 {
            alloc::vec::Vec::new()
        } else {
            self.read_path(path_at)?
        };
        let look = self.look(dirfd, &path)?;
        let node = if path.is_empty() && flags & EMPTY_PATH != 0 {
            Arc::clone(&look.start)
        } else {
            let follow = if flags & SYMLINK_NOFOLLOW != 0 { Follow::No } else { Follow::Yes };
            self.kernel.vfs.resolve(&look.view(), &path, follow)?
        };
        Ok((look, node))
    }

    fn give_stat(&self, at: u64, stat: &Stat) -> Result<u64> {
        self.write_bytes(at, &pack::stat(stat)).map(|()| 0)
    }

    pub(crate) fn sys_fstat(&mut self, a: [u64; 6]) -> Result<u64> {
        let stat = self.file(a[0])?.stat();
        self.give_stat(a[1], &stat)
    }

    pub(crate) fn sys_newfstatat(&mut self, a: [u64; 6]) -> Result<u64> {
        let [dirfd, path, buffer, flags, ..] = a;
        if flags & !(SYMLINK_NOFOLLOW | EMPTY_PATH | NO_AUTOMOUNT) != 0 {
            return Err(Errno::EINVAL);
        }
        let (_, node) = self.target(dirfd, path, flags)?;
        self.give_stat(buffer, &node.stat())
    }

    pub(crate) fn sys_statx(&mut self, a: [u64; 6]) -> Result<u64> {
        const SYNC: u64 = 0x6000;
        let [dirfd, path, flags, _, buffer, _] = a;
        if flags & !(SYMLINK_NOFOLLOW | EMPTY_PATH | NO_AUTOMOUNT | SYNC) != 0 {
            return Err(Errno::EINVAL);
        }
        let (_, node) = self.target(dirfd, path, flags)?;
        self.write_bytes(buffer, &pack::statx(&node.stat())).map(|()| 0)
    }

    pub(crate) fn sys_statfs(&mut self, a: [u64; 6]) -> Result<u64> {
        let (_, node) = self.target(super::AT_FDCWD as u64, a[0], 0)?;
        let answer = self.kernel.vfs.statfs(&node);
        self.write_bytes(a[1], &pack::statfs(&answer)).map(|()| 0)
    }

    pub(crate) fn sys_fstatfs(&mut self, a: [u64; 6]) -> Result<u64> {
        let file = self.file(a[0])?;
        let answer = self.kernel.vfs.statfs(file.node());
        self.write_bytes(a[1], &pack::statfs(&answer)).map(|()| 0)
    }

    pub(crate) fn sys_faccessat(&mut self, a: [u64; 6]) -> Result<u64> {
        let [dirfd, path, mode, flags, ..] = a;
        if mode & !7 != 0 || flags & !(SYMLINK_NOFOLLOW | EMPTY_PATH | EACCESS) != 0 {
            return Err(Errno::EINVAL);
        }
        let (look, node) = self.target(dirfd, path, flags)?;
        let mut caller = look.caller();
        if flags & EACCESS == 0 {
            caller.uid = look.ids.uid[0];
            caller.gid = look.ids.gid[0];
        }
        self.kernel.vfs.access(&node, mode as u32, caller).map(|()| 0)
    }

    pub(crate) fn sys_fchmodat(&mut self, a: [u64; 6]) -> Result<u64> {
        let (look, node) = self.target(a[0], a[1], 0)?;
        self.kernel.vfs.chmod(&node, a[2] as u32 & 0o7777, look.caller()).map(|()| 0)
    }

    pub(crate) fn sys_fchmod(&mut self, a: [u64; 6]) -> Result<u64> {
        let file = self.file(a[0])?;
        let look = self.look(a[0], b"/")?;
        self.kernel.vfs.chmod(file.node(), a[1] as u32 & 0o7777, look.caller()).map(|()| 0)
    }

    pub(crate) fn sys_fchownat(&mut self, a: [u64; 6]) -> Result<u64> {
        let (look, node) = self.target(a[0], a[1], a[4])?;
        let (uid, gid) = (owner(a[2]), owner(a[3]));
        self.kernel.vfs.chown(&node, uid, gid, look.caller()).map(|()| 0)
    }

    pub(crate) fn sys_fchown(&mut self, a: [u64; 6]) -> Result<u64> {
        let file = self.file(a[0])?;
        let look = self.look(a[0], b"/")?;
        let (uid, gid) = (owner(a[1]), owner(a[2]));
        self.kernel.vfs.chown(file.node(), uid, gid, look.caller()).map(|()| 0)
    }

    fn set_times(
        &self,
        dirfd: u64,
        path: u64,
        flags: u64,
        times: [Option<Time>; 2],
        to_now: bool,
    ) -> Result<u64> {
        let (look, node) = if path == 0 {
            let file = self.file(dirfd)?;
            (self.look(dirfd, b"/")?, Arc::clone(file.node()))
        } else {
            self.target(dirfd, path, flags)?
        };
        let [accessed, modified] = times;
        let vfs = &self.kernel.vfs;
        vfs.set_times(&node, accessed, modified, to_now, look.caller()).map(|()| 0)
    }

    fn time_now(&self) -> Time {
        crate::host::time(self.kernel.machine.realtime_ns())
    }

    pub(crate) fn sys_utimensat(&mut self, a: [u64; 6]) -> Result<u64> {
        const NOW: u64 = 0x3fff_ffff;
        const OMIT: u64 = 0x3fff_fffe;
        let [dirfd, path, times, flags, ..] = a;
        if flags & !(SYMLINK_NOFOLLOW | EMPTY_PATH) != 0 {
            return Err(Errno::EINVAL);
        }
        let now = self.time_now();
        if times == 0 {
            return self.set_times(dirfd, path, flags, [Some(now); 2], true);
        }
        let words: [u64; 4] = self.read_words(times)?;
        let one = |seconds: u64, nanoseconds: u64| match nanoseconds {
            NOW => Ok(Some(now)),
            OMIT => Ok(None),
            0..1_000_000_000 => {
                let nanoseconds = nanoseconds as u32;
                Ok(Some(Time { seconds: seconds as i64, nanoseconds }))
            }
            _ => Err(Errno::EINVAL),
        };
        let times = [one(words[0], words[1])?, one(words[2], words[3])?];
        let to_now = words[1] == NOW && words[3] == NOW;
        self.set_times(dirfd, path, flags, times, to_now)
    }

    pub(crate) fn sys_utime(&mut self, a: [u64; 6]) -> Result<u64> {
        let times = if a[1] == 0 {
            [Some(self.time_now()); 2]
        } else {
            let words: [u64; 2] = self.read_words(a[1])?;
            words.map(|seconds| Some(Time { seconds: seconds as i64, nanoseconds: 0 }))
        };
        self.set_times(super::AT_FDCWD as u64, a[0], 0, times, a[1] == 0)
    }

    pub(crate) fn sys_futimesat(&mut self, a: [u64; 6]) -> Result<u64> {
        if a[2] == 0 {
            return self.set_times(a[0], a[1], 0, [Some(self.time_now()); 2], true);
        }
        let words: [u64; 4] = self.read_words(a[2])?;
        let one = |seconds: u64, micros: u64| {
            if micros >= 1_000_000 {
                return Err(Errno::EINVAL);
            }
            Ok(Some(Time { seconds: seconds as i64, nanoseconds: micros as u32 * 1000 }))
        };
        let times = [one(words[0], words[1])?, one(words[2], words[3])?];
        self.set_times(a[0], a[1], 0, times, false)
    }

    pub(crate) fn sys_umask(&mut self, a: [u64; 6]) -> Result<u64> {
        let places = self.process.places.lock().clone().ok_or(Errno::ESRCH)?;
        let mut places = places.lock();
        let old = core::mem::replace(&mut places.umask, a[0] as u32 & 0o777);
        Ok(u64::from(old))
    }
}

/// -1 leaves an owner as it is.
fn owner(word: u64) -> Option<u32> {
    let id = word as u32;
    (id != u32::MAX).then_some(id)
}
