//! One file system's common things: its device number, its inode numbers, its budget.
//!
//! Conservation law *budget*: `used` is the sum over all living inodes of `INODE_COST`, all pages
//! of file content that they own (4096 each, pages still shared with the initramfs not counted),
//! all link texts, and over all directory entries of `ENTRY_COST` plus the name's length. When the
//! last file is gone, `used` is the root directory's share again.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::{DeviceNumber, Errno, Host, Result, StatFs};

/// Bytes that an inode is charged for besides its content.
pub(crate) const INODE_COST: u64 = 512;
/// Bytes that a directory entry is charged for besides its name.
pub(crate) const ENTRY_COST: u64 = 64;

/// See the module.
pub(crate) struct Volume {
    pub(crate) host: Arc<dyn Host>,
    pub(crate) dev: DeviceNumber,
    magic: u64,
    limit: u64,
    used: AtomicU64,
    inodes: AtomicU64,
    next_ino: AtomicU64,
}

impl Volume {
    pub(crate) fn new(host: Arc<dyn Host>, minor: u32, magic: u64, limit: u64) -> Self {
        Self {
            host,
            dev: DeviceNumber { major: 0, minor },
            magic,
            limit,
            used: AtomicU64::new(0),
            inodes: AtomicU64::new(0),
            next_ino: AtomicU64::new(1),
        }
    }

    /// Takes `bytes` of the budget, or [`Errno::ENOSPC`].
    pub(crate) fn charge(&self, bytes: u64) -> Result<()> {
        let more = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= self.limit);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(()),
            Err(_) => Err(Errno::ENOSPC),
        }
    }

    /// Could it hold `bytes` if it were empty?
    pub(crate) fn could_hold(&self, bytes: u64) -> Result<()> {
        if bytes <= self.limit { Ok(()) } else { Err(Errno::ENOSPC) }
    }

    pub(crate) fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Charges for an inode and numbers it.
    pub(crate) fn new_ino(&self) -> Result<u64> {
        self.charge(INODE_COST)?;
        self.inodes.fetch_add(1, Ordering::Relaxed);
        Ok(self.next_ino.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn inode_gone(&self) {
        self.release(INODE_COST);
        self.inodes.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn statfs(&self) -> StatFs {
        let free = self.limit - self.used().min(self.limit);
        let inodes = self.inodes.load(Ordering::Relaxed);
        StatFs {
            magic: self.magic,
            blocks: self.limit / 4096,
            blocks_free: free / 4096,
            files: inodes + free / INODE_COST,
            files_free: free / INODE_COST,
        }
    }
}
