//! The table from file descriptors to open files.
//!
//! A plain value without a lock: the kernel keeps it in a lock of its own, shared by the threads
//! that share it. What leaves the table is handed out, so that closing (which may wake others)
//! happens after that lock is given back.
//!
//! Invariants: `first_free` is at most the lowest free number; the table never holds a number at
//! or above [`FdTable::HARD_LIMIT`].

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::{Errno, OpenFile, Result};

/// How many descriptors a process may have unless it says otherwise.
pub const DEFAULT_FD_LIMIT: usize = 1024;

#[derive(Clone)]
struct Slot {
    file: Arc<OpenFile>,
    cloexec: bool,
}

/// The table from file descriptors to open files. Descriptors are `i32` as programs give them.
#[derive(Default)]
pub struct FdTable {
    slots: Vec<Option<Slot>>,
    first_free: usize,
}

impl FdTable {
    /// No limit may be above this.
    pub const HARD_LIMIT: usize = 1 << 20;

    /// An empty table.
    pub const fn new() -> Self {
        Self { slots: Vec::new(), first_free: 0 }
    }

    /// The open file behind `fd`, or [`Errno::EBADF`].
    pub fn get(&self, fd: i32) -> Result<&Arc<OpenFile>> {
        self.slot(fd).map(|slot| &slot.file)
    }

    /// Is it closed on `execve`?
    pub fn cloexec(&self, fd: i32) -> Result<bool> {
        self.slot(fd).map(|slot| slot.cloexec)
    }

    /// Sets whether it is closed on `execve`.
    pub fn set_cloexec(&mut self, fd: i32, cloexec: bool) -> Result<()> {
        let slot = usize::try_from(fd).ok().and_then(|index| self.slots.get_mut(index));
        slot.and_then(Option::as_mut).ok_or(Errno::EBADF)?.cloexec = cloexec;
        Ok(())
    }

    /// Puts `file` at the lowest free number that is at least `from` and below `limit`.
    ///
    /// # Errors
    /// [`Errno::EINVAL`]: `from` is not below the limit. [`Errno::EMFILE`]: no number is free.
    /// [`Errno::ENOMEM`].
    pub fn insert_from(
        &mut self,
        file: Arc<OpenFile>,
        from: usize,
        cloexec: bool,
        limit: usize,
    ) -> Result<i32> {
        let limit = limit.min(Self::HARD_LIMIT);
        if from >= limit {
            return Err(if from == 0 { Errno::EMFILE } else { Errno::EINVAL });
        }
        let start = from.max(self.first_free);
        let taken = self.slots.get(start..).unwrap_or_default();
        let fd = start + taken.iter().take_while(|slot| slot.is_some()).count();
        if fd >= limit {
            return Err(Errno::EMFILE);
        }
        self.reach(fd)?;
        self.slots[fd] = Some(Slot { file, cloexec });
        if from <= self.first_free {
            self.first_free = fd + 1;
        }
        Ok(fd as i32)
    }

    /// Puts `file` at the lowest free number.
    pub fn insert(&mut self, file: Arc<OpenFile>, cloexec: bool, limit: usize) -> Result<i32> {
        self.insert_from(file, 0, cloexec, limit)
    }

    /// Puts `file` at `fd` and hands out what was there (`dup2`, `dup3`; that `old == new` is
    /// another case is the caller's business).
    ///
    /// # Errors
    /// [`Errno::EBADF`]: `fd` is negative or not below the limit. [`Errno::ENOMEM`].
    pub fn replace(
        &mut self,
        fd: i32,
        file: Arc<OpenFile>,
        cloexec: bool,
        limit: usize,
    ) -> Result<Option<Arc<OpenFile>>> {
        let index = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        if index >= limit.min(Self::HARD_LIMIT) {
            return Err(Errno::EBADF);
        }
        self.reach(index)?;
        let old = self.slots[index].replace(Slot { file, cloexec });
        if index == self.first_free {
            self.first_free += 1;
        }
        Ok(old.map(|slot| slot.file))
    }

    /// Takes `fd` out. Dropping the last copy of the file closes it.
    pub fn remove(&mut self, fd: i32) -> Result<Arc<OpenFile>> {
        let index = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        let slot = self.slots.get_mut(index).and_then(Option::take).ok_or(Errno::EBADF)?;
        self.first_free = self.first_free.min(index);
        Ok(slot.file)
    }

    /// Takes the lowest descriptor at or above `from` out, if there is one: the loop body of
    /// `close_range` and of a process's end.
    pub fn take_next(&mut self, from: usize) -> Option<(i32, Arc<OpenFile>)> {
        let rest = self.slots.get(from..)?;
        let fd = (from + rest.iter().position(Option::is_some)?) as i32;
        Some((fd, self.remove(fd).ok()?))
    }

    /// Takes the lowest descriptor at or above `from` that is to be closed on `execve`.
    pub fn take_next_cloexec(&mut self, from: usize) -> Option<(i32, Arc<OpenFile>)> {
        let marked = |slot: &Option<Slot>| slot.as_ref().is_some_and(|slot| slot.cloexec);
        let fd = (from + self.slots.get(from..)?.iter().position(marked)?) as i32;
        Some((fd, self.remove(fd).ok()?))
    }

    /// A copy that shares the open files and their offsets, for `fork`.
    pub fn try_clone(&self) -> Result<Self> {
        let mut slots = Vec::new();
        let used = self.slots.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        slots.try_reserve_exact(used).map_err(|_| Errno::ENOMEM)?;
        slots.extend(self.slots.iter().take(used).cloned());
        Ok(Self { slots, first_free: self.first_free })
    }

    /// The descriptors in use, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = (i32, &Arc<OpenFile>)> {
        let used = self.slots.iter().enumerate();
        used.filter_map(|(fd, slot)| slot.as_ref().map(|slot| (fd as i32, &slot.file)))
    }

    /// How many descriptors are in use.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Is none in use?
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    fn slot(&self, fd: i32) -> Result<&Slot> {
        let slot = usize::try_from(fd).ok().and_then(|index| self.slots.get(index));
        slot.and_then(Option::as_ref).ok_or(Errno::EBADF)
    }

    /// Makes `slots[index]` exist.
    fn reach(&mut self, index: usize) -> Result<()> {
        if index >= self.slots.len() {
            let more = index + 1 - self.slots.len();
            self.slots.try_reserve(more).map_err(|_| Errno::ENOMEM)?;
            self.slots.resize_with(index + 1, || None);
        }
        Ok(())
    }
}
