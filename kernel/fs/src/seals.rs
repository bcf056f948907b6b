//! Seals: changes to a memory file that nobody may make any more (`fcntl`, `F_ADD_SEALS`).
//!
//! A seal never comes off. Files that were not made for sealing have the seal against seals. The
//! files of a volume know their mappings by number: with stores to come from a shared mapping,
//! nobody can seal against writing.

use core::sync::atomic::Ordering;

use crate::{Errno, Inode, OpenFile, Result};

bitflags::bitflags! {
    /// What may not happen; the values of Linux's `F_SEAL_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Seals: u32 {
        /// More seals.
        const SEAL = 1;
        /// Fewer bytes.
        const SHRINK = 2;
        /// More bytes.
        const GROW = 4;
        /// Other bytes.
        const WRITE = 8;
        /// Other bytes, but by mappings that are there.
        const FUTURE_WRITE = 16;
        /// Another right to execute.
        const EXEC = 32;
    }
}

/// Either seal against writing.
const ANY_WRITE: Seals = Seals::WRITE.union(Seals::FUTURE_WRITE);

impl Inode {
    /// The seals.
    pub fn seals(&self) -> Seals {
        Seals::from_bits_retain(self.seals.load(Ordering::Relaxed))
    }

    fn check_seals(&self, against: Seals) -> Result<()> {
        if self.seals().intersects(against) { Err(Errno::EPERM) } else { Ok(()) }
    }

    /// May bytes up to `end` be written, in a file of this size?
    pub(crate) fn may_write(&self, end: u64, size: u64) -> Result<()> {
        self.check_seals(ANY_WRITE)?;
        if end > size { self.check_seals(Seals::GROW) } else { Ok(()) }
    }

    /// May bytes be taken out of the middle?
    pub(crate) fn may_punch(&self) -> Result<()> {
        self.check_seals(ANY_WRITE)
    }

    /// May the size become `new`?
    pub(crate) fn may_resize(&self, old: u64, new: u64) -> Result<()> {
        if new < old {
            self.check_seals(Seals::SHRINK)
        } else if new > old {
            self.check_seals(Seals::GROW)
        } else {
            Ok(())
        }
    }

    /// May it be mapped so that stores are in the file?
    pub fn may_map_writable(&self) -> Result<()> {
        self.check_seals(ANY_WRITE)
    }
}

impl OpenFile {
    /// `F_GET_SEALS`.
    pub fn get_seals(&self) -> Result<Seals> {
        if self.node().mappable_pages() { Ok(self.node().seals()) } else { Err(Errno::EINVAL) }
    }

    /// `F_ADD_SEALS`. [`Errno::EBUSY`]: somebody may still write through a mapping.
    pub fn add_seals(&self, more: u32) -> Result<()> {
        let more = Seals::from_bits(more).ok_or(Errno::EINVAL)?;
        let seals = self.get_seals()?;
        if !self.flags().writable() || seals.contains(Seals::SEAL) {
            return Err(Errno::EPERM);
        }
        if more.contains(Seals::WRITE) && self.node().is_mapped_writable() {
            return Err(Errno::EBUSY);
        }
        self.node().seals.fetch_or(more.bits(), Ordering::Relaxed);
        Ok(())
    }

    /// Lets a new memory file be sealed, from these seals on.
    pub fn allow_sealing(&self, from: Seals) {
        self.node().seals.store(from.bits(), Ordering::Relaxed);
    }
}
