//! Opening and closing; changing what a file holds.

use alloc::sync::Arc;

use pagoda_kernel_fs::{Follow, OpenFile, OpenFlags, Seals};
use pagoda_linux::Errno;

use crate::Result;
use crate::machine::Machine;
use crate::run::Cx;
use crate::sched::interruptible;
use crate::sched::slots::Channel;

/// `RLIMIT_NOFILE`.
pub(super) const NOFILE: usize = 7;

impl<M: Machine> Cx<'_, M> {
    /// Gives an open file a descriptor.
    pub(super) fn install(&self, file: Arc<OpenFile>, cloexec: bool) -> Result<u64> {
        let limit = self.process.limit(NOFILE) as usize;
        let files = self.files()?;
        let fd = files.0.lock().insert(file, cloexec, limit)?;
        Ok(fd as u64)
    }

    pub(crate) fn sys_openat(&mut self, a: [u64; 6]) -> Result<u64> {
        let path = self.read_path(a[1])?;
        let look = self.look(a[0], &path)?;
        let flags = OpenFlags::from_bits_truncate(a[2] as u32);
        let file = self.kernel.vfs.open(&look.view(), &path, flags, a[3] as u32 & 0o7777)?;
        if file.is_opening()
            && !flags.contains(OpenFlags::NONBLOCK)
            && let Some(waiters) = file.waiters()
        {
            let channel = Channel::File(waiters.key() as u64);
            let wait = interruptible(channel);
            let came = || (!file.is_opening()).then_some(());
            let waited = self.kernel.sched.wait_until(self.thread, wait, came);
            waited.map_err(|_| Errno::ERESTARTSYS)?;
        }
        if !flags.contains(OpenFlags::NOCTTY) {
            self.take_terminal(&file);
        }
        self.install(file, flags.contains(OpenFlags::CLOEXEC))
    }

    /// A session leader without a terminal gets the one that it opens.
    fn take_terminal(&self, file: &OpenFile) {
        use core::sync::atomic::Ordering;
        let Some(terminal) = file.terminal() else { return };
        let session = self.process.session.load(Ordering::Relaxed);
        let mut family = self.process.family.lock();
        let leads = session == self.process.pid && family.terminal.is_none();
        if leads && terminal.session() == 0 {
            let group = self.process.group.load(Ordering::Relaxed);
            terminal.set_session(session as i32, group as i32);
            family.terminal = Some(Arc::clone(terminal));
        }
    }

    pub(crate) fn sys_close(&mut self, a: [u64; 6]) -> Result<u64> {
        let files = self.files()?;
        let file = files.0.lock().remove(a[0] as i32)?;
        drop(file);
        Ok(0)
    }

    pub(crate) fn sys_close_range(&mut self, a: [u64; 6]) -> Result<u64> {
        const UNSHARE: u64 = 2;
        const CLOEXEC: u64 = 4;
        let (first, last) = (u64::from(a[0] as u32), u64::from(a[1] as u32));
        if first > last || a[2] & !(UNSHARE | CLOEXEC) != 0 {
            return Err(Errno::EINVAL);
        }
        let files = self.files()?;
        if a[2] & CLOEXEC != 0 {
            let mut table = files.0.lock();
            let highest = table.iter().last().map_or(0, |(fd, _)| fd as u64);
            for fd in first..=last.min(highest) {
                let _ = table.set_cloexec(fd as i32, true);
            }
            return Ok(0);
        }
        let mut from = first as usize;
        loop {
            let mut table = files.0.lock();
            let next = table.iter().map(|(fd, _)| fd as usize).find(|&fd| fd >= from);
            let Some(fd) = next.filter(|&fd| fd as u64 <= last) else { return Ok(0) };
            let file = table.remove(fd as i32)?;
            drop(table);
            drop(file);
            from = fd + 1;
        }
    }

    pub(crate) fn sys_truncate(&mut self, a: [u64; 6]) -> Result<u64> {
        let path = self.read_path(a[0])?;
        let look = self.look(super::AT_FDCWD as u64, &path)?;
        let len = u64::try_from(a[1] as i64).map_err(|_| Errno::EINVAL)?;
        let node = self.kernel.vfs.resolve(&look.view(), &path, Follow::Yes)?;
        self.kernel.vfs.truncate(&node, len, look.caller()).map(|()| 0)
    }

    pub(crate) fn sys_ftruncate(&mut self, a: [u64; 6]) -> Result<u64> {
        let len = u64::try_from(a[1] as i64).map_err(|_| Errno::EINVAL)?;
        self.file(a[0])?.truncate(len).map(|()| 0)
    }

    pub(crate) fn sys_fallocate(&mut self, a: [u64; 6]) -> Result<u64> {
        let file = self.file(a[0])?;
        let offset = u64::try_from(a[2] as i64).map_err(|_| Errno::EINVAL)?;
        let len = u64::try_from(a[3] as i64).map_err(|_| Errno::EINVAL)?;
        file.allocate(a[1] as u32, offset, len).map(|()| 0)
    }

    /// Memory is as safe as it gets here.
    pub(crate) fn sys_fsync(&mut self, a: [u64; 6]) -> Result<u64> {
        let file = self.file(a[0])?;
        if file.waiters().is_some() { Err(Errno::EINVAL) } else { Ok(0) }
    }

    pub(crate) fn sys_memfd_create(&mut self, a: [u64; 6]) -> Result<u64> {
        const CLOEXEC: u64 = 1;
        const ALLOW_SEALING: u64 = 2;
        const NOEXEC_SEAL: u64 = 8;
        const EXEC: u64 = 16;
        self.read_str(a[0], 250, Errno::EINVAL)?;
        if a[1] & !(CLOEXEC | ALLOW_SEALING | NOEXEC_SEAL | EXEC) != 0 {
            return Err(Errno::EINVAL);
        }
        let file = self.kernel.vfs.memory_file(OpenFlags::RDWR)?;
        if a[1] & NOEXEC_SEAL != 0 {
            file.allow_sealing(Seals::EXEC);
        } else if a[1] & ALLOW_SEALING != 0 {
            file.allow_sealing(Seals::empty());
        }
        self.install(file, a[1] & CLOEXEC != 0)
    }
}
