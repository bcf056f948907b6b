//! System calls, one module for each family.
//!
//! A call gets its six argument words and returns a word or an error number. The numbers, layouts
//! and errors are those of Linux on x86-64; man 2 of each name says what it does. What is missing
//! answers `ENOSYS` and is logged once.
//!
//! Every pointer goes through the address space (see [`crate::user`]); a call whose arguments are
//! bad has changed nothing, except where Linux too writes results one after the other.

mod epoll;
mod fd;
mod file;
mod futex;
mod ids;
mod info;
mod io;
mod mem;
mod meta;
mod path;
mod poll;
mod process;
mod remote;
pub(crate) mod shm;
mod signal;
mod table;
mod time;
mod timer;

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use pagoda_kernel_fs::{Caller, Inode, OpenFile, Viewpoint};
use pagoda_linux::Errno;

pub(crate) use info::{FIRST_LIMITS, RELEASE, VERSION};

use crate::Result;
use crate::machine::{Machine, Resume};
use crate::run::Cx;
use crate::task::{Files, Ids, Places};

const AT_FDCWD: i32 = -100;

/// The view of a process with these places and identity, on paths that start at `start`.
pub(crate) fn viewpoint<'a>(
    places: &'a Places,
    start: &'a Arc<Inode>,
    ids: &'a Ids,
) -> Viewpoint<'a> {
    Viewpoint {
        root: &places.root,
        start,
        caller: Caller { uid: ids.uid[1], gid: ids.gid[1], groups: &ids.groups },
        umask: places.umask,
    }
}

/// From where a path is read, with everything that a [`Viewpoint`] borrows.
pub(crate) struct Look {
    places: Places,
    start: Arc<Inode>,
    ids: Ids,
}

impl Look {
    fn view(&self) -> Viewpoint<'_> {
        viewpoint(&self.places, &self.start, &self.ids)
    }
    fn caller(&self) -> Caller<'_> {
        self.view().caller
    }
}

impl<M: Machine> Cx<'_, M> {
    /// Serves the call that the registers ask for.
    #[inline]
    pub(crate) fn system_call(&mut self, number: u64) -> Resume {
        let r = &self.regs;
        let args = [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9];
        match self.dispatch(number, args) {
            Ok(value) => self.regs.rax = value,
            Err(error) => self.failed(number, error),
        }
        self.resume()
    }

    #[inline(never)]
    fn failed(&mut self, number: u64, error: Errno) {
        if error.is_internal() {
            // *attention-covers*
            self.call = Some(number);
            self.thread.attention.store(true, Ordering::SeqCst);
        }
        self.regs.rax = error.to_result_register();
    }

    fn missing(&self, number: u64) -> Result<u64> {
        if self.kernel.first_miss(number) {
            let name = self.process.program.lock().name;
            let name = crate::text::name(&name);
            log::warn!("system call {number} is missing (first asked for by {name})");
        }
        Err(Errno::ENOSYS)
    }

    fn files(&self) -> Result<Arc<Files>> {
        self.process.files().ok_or(Errno::EBADF)
    }

    /// The open file behind a descriptor.
    fn file(&self, fd: u64) -> Result<Arc<OpenFile>> {
        let files = self.files()?;
        let table = files.0.lock();
        table.get(fd as i32).cloned()
    }

    /// From where `path` is read if it is relative: the working directory or the file `dirfd`.
    fn look(&self, dirfd: u64, path: &[u8]) -> Result<Look> {
        let places = self.process.places().ok_or(Errno::ENOENT)?;
        let ids = self.process.ids.lock().try_clone()?;
        let start = if path.first() == Some(&b'/') {
            Arc::clone(&places.root)
        } else if dirfd as i32 == AT_FDCWD {
            Arc::clone(&places.cwd)
        } else {
            Arc::clone(self.file(dirfd)?.node())
        };
        Ok(Look { places, start, ids })
    }
}
