//! Descriptors: copies, flags, control, pipes and counters.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use pagoda_kernel_fs::tty::{ProcessIds, Signals, Terminal};
use pagoda_kernel_fs::{IoctlMemory, OpenFlags};
use pagoda_linux::Errno;

use super::file::NOFILE;
use crate::Result;
use crate::machine::Machine;
use crate::run::Cx;

const O_CLOEXEC: u64 = 0o2000000;
const O_NONBLOCK: u64 = 0o4000;
const FIOCLEX: u32 = 0x5451;
const FIONCLEX: u32 = 0x5450;

impl<M: Machine> Cx<'_, M> {
    fn fd_limit(&self) -> usize {
        self.process.limit(NOFILE).min(1 << 20) as usize
    }

    pub(crate) fn sys_dup(&mut self, a: [u64; 6]) -> Result<u64> {
        let file = self.file(a[0])?;
        self.install(file, false)
    }

    pub(crate) fn sys_dup2(&mut self, a: [u64; 6]) -> Result<u64> {
        if a[0] as i32 == a[1] as i32 {
            self.file(a[0])?;
            return Ok(u64::from(a[1] as u32));
        }
        self.dup_to(a[0], a[1], false)
    }

    pub(crate) fn sys_dup3(&mut self, a: [u64; 6]) -> Result<u64> {
        if a[0] as i32 == a[1] as i32 || a[2] & !O_CLOEXEC != 0 {
            return Err(Errno::EINVAL);
        }
        self.dup_to(a[0], a[1], a[2] != 0)
    }

    fn dup_to(&self, from: u64, to: u64, cloexec: bool) -> Result<u64> {
        let file = self.file(from)?;
        let files = self.files()?;
        let old = files.0.lock().replace(to as i32, file, cloexec, self.fd_limit())?;
        drop(old);
        Ok(u64::from(to as u32))
    }

    pub(crate) fn sys_fcntl(&mut self, a: [u64; 6]) -> Result<u64> {
        const DUPFD: u64 = 0;
        const GETFD: u64 = 1;
        const SETFD: u64 = 2;
        const GETFL: u64 = 3;
        const SETFL: u64 = 4;
        const GETLK: u64 = 5;
        const SETLK: u64 = 6;
        const SETLKW: u64 = 7;
        const DUPFD_CLOEXEC: u64 = 1030;
        const GETPIPE_SZ: u64 = 1032;
        const ADD_SEALS: u64 = 1033;
        const GET_SEALS: u64 = 1034;
        const F_UNLCK: u16 = 2;
        let fd = a[0] as i32;
        let file = self.file(a[0])?;
        let files = self.files()?;
        match a[1] {
            DUPFD | DUPFD_CLOEXEC => {
                let from = usize::try_from(a[2] as i32).map_err(|_| Errno::EINVAL)?;
                let cloexec = a[1] == DUPFD_CLOEXEC;
                let fd = files.0.lock().insert_from(file, from, cloexec, self.fd_limit())?;
                Ok(fd as u64)
            }
            GETFD => Ok(u64::from(files.0.lock().cloexec(fd)?)),
            SETFD => files.0.lock().set_cloexec(fd, a[2] & 1 != 0).map(|()| 0),
            // Offsets are always large.
            GETFL => Ok(u64::from(file.flags().bits() & !(O_CLOEXEC as u32))),
            SETFL => {
                file.set_flags(OpenFlags::from_bits_truncate(a[2] as u32));
                Ok(0)
            }
            // Record locks: there is nobody who does not cooperate by other means; a lock is always
            // granted, and none is ever found.
            GETLK => {
                self.write_bytes(a[2], &F_UNLCK.to_le_bytes())?;
                Ok(0)
            }
            SETLK | SETLKW => Ok(0),
            ADD_SEALS => file.add_seals(a[2] as u32).map(|()| 0),
            GET_SEALS => file.get_seals().map(|seals| u64::from(seals.bits())),
            GETPIPE_SZ => file.pipe_capacity().map(|size| size as u64).ok_or(Errno::EBADF),
            _ => Err(Errno::EINVAL),
        }
    }

    pub(crate) fn sys_ioctl(&mut self, a: [u64; 6]) -> Result<u64> {
        let file = self.file(a[0])?;
        let request = a[1] as u32;
        if request == FIOCLEX || request == FIONCLEX {
            let files = self.files()?;
            files.0.lock().set_cloexec(a[0] as i32, request == FIOCLEX)?;
            return Ok(0);
        }
        if Terminal::changes_terminal(request) {
            self.check_foreground(&file, super::io::TerminalUse::Change)?;
        }
        let terminal = file.terminal().cloned();
        let mut memory = ArgumentMemory { cx: self, at: a[2], terminal };
        file.ioctl(request, a[2], &mut memory).map(|value| value as u64)
    }

    pub(crate) fn sys_pipe2(&mut self, a: [u64; 6]) -> Result<u64> {
        const O_DIRECT: u64 = 0o40000;
        if a[1] & !(O_CLOEXEC | O_NONBLOCK | O_DIRECT) != 0 {
            return Err(Errno::EINVAL);
        }
        let flags = OpenFlags::from_bits_truncate((a[1] & O_NONBLOCK) as u32);
        let cloexec = a[1] & O_CLOEXEC != 0;
        let (reader, writer) = self.kernel.vfs.pipe(flags)?;
        let first = self.install(reader, cloexec)?;
        let second = self.install(writer, cloexec);
        let told = second.and_then(|second| {
            self.write_bytes(a[0], &(first | second << 32).to_le_bytes()).inspect_err(|_| {
                let _ = self.sys_close([second, 0, 0, 0, 0, 0]);
            })
        });
        if told.is_err() {
            let _ = self.sys_close([first, 0, 0, 0, 0, 0]);
        }
        told.map(|()| 0)
    }

    pub(crate) fn sys_eventfd2(&mut self, a: [u64; 6]) -> Result<u64> {
        const SEMAPHORE: u64 = 1;
        if a[1] & !(SEMAPHORE | O_CLOEXEC | O_NONBLOCK) != 0 {
            return Err(Errno::EINVAL);
        }
        let flags = OpenFlags::from_bits_truncate((a[1] & O_NONBLOCK) as u32);
        let initial = u64::from(a[0] as u32);
        let file = self.kernel.vfs.eventfd(initial, a[1] & SEMAPHORE != 0, flags)?;
        self.install(file, a[1] & O_CLOEXEC != 0)
    }
}

/// What a device sees of the program that controls it.
struct ArgumentMemory<'c, 'a, M: Machine> {
    cx: &'c Cx<'a, M>,
    at: u64,
    terminal: Option<Arc<Terminal>>,
}

impl<M: Machine> IoctlMemory for ArgumentMemory<'_, '_, M> {
    fn read(&mut self, into: &mut [u8]) -> Result<()> {
        self.cx.read_bytes(self.at, into)
    }
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.cx.write_bytes(self.at, bytes)
    }
    fn process(&self) -> ProcessIds {
        match &self.terminal {
            Some(terminal) => self.cx.terminal_ids(terminal),
            None => ProcessIds {
                pid: self.cx.process.pid as i32,
                group: self.cx.process.group.load(Ordering::Relaxed) as i32,
                session: self.cx.process.session.load(Ordering::Relaxed) as i32,
                controlling: false,
            },
        }
    }
    fn group_in_session(&self, group: i32, session: i32) -> bool {
        self.cx.kernel.tables.lock().processes().iter().any(|process| {
            process.group.load(Ordering::Relaxed) as i32 == group
                && process.session.load(Ordering::Relaxed) as i32 == session
        })
    }
    fn signal(&mut self, signals: Signals, group: i32) {
        self.cx.kernel.terminal_signals(signals, group);
    }
    fn set_controlling(&mut self, terminal: &Arc<Terminal>, controlling: bool) -> Result<()> {
        let session = self.cx.process.session.load(Ordering::Relaxed);
        let group = self.cx.process.group.load(Ordering::Relaxed);
        if controlling {
            if session != self.cx.process.pid {
                return Err(Errno::EPERM);
            }
            terminal.set_session(session as i32, group as i32);
            let old = self.cx.process.family.lock().terminal.replace(Arc::clone(terminal));
            drop(old);
        } else {
            if session == self.cx.process.pid && terminal.session() == session as i32 {
                terminal.set_session(0, 0);
            }
            let old = self.cx.process.family.lock().terminal.take();
            drop(old);
        }
        Ok(())
    }
}
