//! A tree of tables.
#![allow(unsafe_code)] // `adopt` is unsafe

use lock_api::Mutex;
use pagoda_addr::{Frame, PageRange};

use crate::{Cursor, FlushBatch, Format, MapError, OutOfFrames, Platform, SpaceTlb};

/// A page table: a root, a lock, and who remembers.
///
/// Owns its tables, not the pages that they map: whoever maps a frame takes it out again. Dropping
/// it gives every table back, and leaves alone the kernel half that it shares.
pub struct PageTable<F: Format, P: Platform> {
    format: F,
    platform: P,
    root: Frame,
    space: SpaceTlb,
    lock: Mutex<P::Lock, ()>,
}

impl<F: Format, P: Platform> PageTable<F, P> {
    /// An empty tree: the kernel's own, at boot, or a test's.
    pub fn new(_format: F, _platform: P) -> Result<Self, OutOfFrames> {
        todo!()
    }

    /// An empty tree that shares `kernel`'s upper half. The first call seals that half: its
    /// top-level entries never change afterwards ([`prefill`](Self::prefill) them before).
    pub fn new_sharing_upper(_kernel: &Self) -> Result<Self, OutOfFrames>
    where
        P: Clone,
    {
        todo!()
    }

    /// Makes the top-level entries over `range` (of the upper half), so that tables that share
    /// them see whatever is mapped there later.
    pub fn prefill(&self, _range: PageRange) -> Result<(), MapError> {
        todo!()
    }

    /// Takes over a tree that was built elsewhere.
    ///
    /// # Safety
    /// `root` is the root of a tree in this format, whose tables are all the new value's own: they
    /// can be given to `platform.release`, and nobody else changes them.
    pub unsafe fn adopt(format: F, platform: P, root: Frame) -> Self {
        Self { format, platform, root, space: SpaceTlb::new(), lock: Mutex::new(()) }
    }

    /// Gives the tree up; nothing is freed. The opposite of [`adopt`](Self::adopt).
    pub fn into_root(self) -> Frame {
        todo!()
    }

    /// The root, for the register that hardware starts from.
    pub fn root(&self) -> Frame {
        self.root
    }

    /// Who remembers.
    pub fn space(&self) -> &SpaceTlb {
        &self.space
    }

    /// The host.
    pub fn platform(&self) -> &P {
        &self.platform
    }

    /// The encoding.
    pub fn format(&self) -> &F {
        &self.format
    }

    /// A batch for changes to this tree.
    pub fn batch(&self) -> FlushBatch<'_, P> {
        FlushBatch::new(&self.platform, &self.space)
    }

    /// Locks the tree for work on `range`. Fails ([`MapError::Range`]) when the machine does not
    /// implement the pages, or when they belong to a half that this tree only shares.
    pub fn cursor(&self, _range: PageRange) -> Result<Cursor<'_, F, P>, MapError> {
        let _ = self.lock.is_locked();
        todo!()
    }

    /// As [`cursor`](Self::cursor), but `None` instead of waiting for the lock: for fault handlers
    /// that only want to report.
    pub fn try_cursor(&self, _range: PageRange) -> Option<Cursor<'_, F, P>> {
        todo!()
    }
}
