//! The memory of another process: `process_vm_readv`, `process_vm_writev`, `process_madvise`.
//!
//! `process_madvise` takes the caller itself alone (`PIDFD_SELF`): there are no descriptors of
//! processes.

use alloc::sync::Arc;
use alloc::vec::Vec;

use pagoda_linux::Errno;

use crate::machine::Machine;
use crate::run::Cx;
use crate::{Result, Space};

/// Bytes on the way from one program to another.
const BOUNCE: usize = 1024;
/// `PIDFD_SELF_THREAD`, `PIDFD_SELF_THREAD_GROUP`.
const SELF: [i32; 2] = [-10_000, -20_000];

/// A place in a list of pieces.
struct Pieces {
    list: Vec<(u64, u64)>,
    index: usize,
    offset: u64,
}

impl Pieces {
    /// The address and the length of what is left of the present piece.
    fn rest(&mut self) -> Option<(u64, u64)> {
        loop {
            let &(addr, len) = self.list.get(self.index)?;
            if self.offset < len {
                return Some((addr.checked_add(self.offset)?, len - self.offset));
            }
            self.index += 1;
            self.offset = 0;
        }
    }
}

impl<M: Machine> Cx<'_, M> {
    /// `process_vm_readv`, or with `write` `process_vm_writev`. Copies until something is missing;
    /// an error only if nothing was copied.
    pub(crate) fn sys_process_vm(&mut self, a: [u64; 6], write: bool) -> Result<u64> {
        let [pid, local, local_count, remote, remote_count, flags] = a;
        if flags != 0 {
            return Err(Errno::EINVAL);
        }
        let mut mine = self.places(local, local_count)?;
        let mut theirs = self.places(remote, remote_count)?;
        if mine.rest().is_none() || theirs.rest().is_none() {
            return Ok(0);
        }
        let space = self.space_of(pid)?;
        let mut done = 0;
        while let (Some((here, room)), Some((there, len))) = (mine.rest(), theirs.rest()) {
            // Up to the end of the page over there: what comes behind it may be missing.
            let page = 4096 - there % 4096;
            let part = room.min(len).min(page).min(BOUNCE as u64);
            let mut bytes = [0; BOUNCE];
            let bytes = bytes.get_mut(..part as usize).unwrap_or_default();
            let copied = if write {
                self.read_bytes(here, bytes)
                    .and_then(|()| crate::user::write_to::<M>(&space, there, bytes))
            } else {
                crate::user::read_from::<M>(&space, there, bytes)
                    .and_then(|()| self.write_bytes(here, bytes))
            };
            match copied {
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
                Ok(()) => {}
            }
            done += part;
            mine.offset += part;
            theirs.offset += part;
        }
        Ok(done)
    }

    fn places(&self, list: u64, count: u64) -> Result<Pieces> {
        Ok(Pieces { list: self.pieces(list, count)?, index: 0, offset: 0 })
    }

    /// The memory of a process that the caller may look into.
    fn space_of(&self, pid: u64) -> Result<Arc<Space<M>>> {
        let pid = u32::try_from(pid as i32).map_err(|_| Errno::ESRCH)?;
        let process = self.kernel.tables.lock().thread(pid).map(|t| Arc::clone(&t.process));
        let process = process.ok_or(Errno::ESRCH)?;
        if process.pid != self.process.pid {
            let uid = self.process.ids.lock().uid[1];
            let theirs = process.ids.lock().uid;
            if uid != 0 && theirs.iter().any(|&id| id != uid) {
                return Err(Errno::EPERM);
            }
        }
        process.space().ok_or(Errno::ESRCH)
    }

    pub(crate) fn sys_process_madvise(&mut self, a: [u64; 6]) -> Result<u64> {
        let [fd, list, count, advice, flags, _] = a;
        if flags != 0 {
            return Err(Errno::EINVAL);
        }
        let mut pieces = self.places(list, count)?;
        if !SELF.contains(&(fd as i32)) {
            return Err(Errno::EBADF);
        }
        let mut done = 0;
        while let Some((addr, len)) = pieces.rest() {
            match self.sys_madvise([addr, len, advice, 0, 0, 0]) {
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
                Ok(_) => {}
            }
            done += len;
            pieces.offset += len;
        }
        Ok(done)
    }
}
