//! A tree of tables: making it, sharing its upper half, giving it back.
#![allow(unsafe_code)] // `adopt` and `destroy_shared` are unsafe

use core::sync::atomic::Ordering;

use lock_api::{Mutex, MutexGuard};
use pagoda_addr::{Frame, PageRange};

use crate::gains::Gains;
use crate::slot::{entries, index, next_nonzero, pieces, slot};
use crate::spare::Spare;
use crate::{
    Cursor, Decoded, ENTRIES, FlushBatch, Format, Gain, MapError, OutOfFrames, PageSize, Platform,
    Released, Remembers, SpaceTlb,
};

/// What the lock of a tree protects, besides the tree.
pub(crate) struct Inner {
    /// Tables that are the tree's own, the root included.
    pub(crate) tables: u64,
    /// Words in them that are neither 0 nor tables: leaves of all sizes, and absent words of the
    /// caller's. Never too few (*words-counted*): where nobody counted, there are very many.
    pub(crate) words: u64,
    /// Other trees share the upper half: its top-level entries stay as they are.
    pub(crate) sealed: bool,
    /// Of a sealed or shared upper half: which of the root's entries are in use, a bit each. There are
    /// few, and every new tree copies them.
    upper: Upper,
}

/// More words than there can be.
const UNCOUNTED: u64 = 1 << 63;

/// A bit for each entry of a root.
#[derive(Clone, Copy, Default)]
struct Upper([u64; ENTRIES / 64]);

impl Upper {
    fn set(&mut self, index: usize) {
        self.0[index / 64 % (ENTRIES / 64)] |= 1 << (index % 64);
    }

    fn each(self, mut see: impl FnMut(usize)) {
        for (first, &word) in self.0.iter().enumerate() {
            let mut rest = word;
            while rest != 0 {
                see(64 * first + rest.trailing_zeros() as usize);
                rest &= rest - 1;
            }
        }
    }
}

pub(crate) type Guard<'a, P> = MutexGuard<'a, <P as Platform>::Lock, Inner>;

/// What dropping the value gives back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owns {
    Nothing,
    LowerHalf,
    Everything,
}

/// A page table: a root, a lock, and who remembers.
///
/// Owns its tables, not the pages that they map: whoever maps a frame takes it out again. Dropping
/// it gives every table back, but never a kernel half that it shares, on either side: a shared half
/// outlives its sharers or is given back by [`destroy_shared`](Self::destroy_shared). A table that
/// a CPU still uses is not given back at all (and a debug build stops there).
pub struct PageTable<F: Format, P: Platform> {
    format: F,
    platform: P,
    root: Frame,
    space: SpaceTlb,
    lock: Mutex<P::Lock, Inner>,
    shares_upper: bool,
    owns: Owns,
}

impl<F: Format, P: Platform> PageTable<F, P> {
    /// An empty tree: the kernel's own, at boot, or a test's.
    pub fn new(format: F, platform: P) -> Result<Self, OutOfFrames> {
        let root = platform.alloc_table()?;
        Ok(Self::with_root(format, platform, root, 1, false))
    }

    /// An empty tree that shares `kernel`'s upper half. The first call seals that half: its
    /// top-level entries never change afterwards ([`prefill`](Self::prefill) them before).
    ///
    /// The kernel's table has to outlive what shares it; dropping it is harmless, since a sealed
    /// half is not given back by a drop.
    pub fn new_sharing_upper(kernel: &Self) -> Result<Self, OutOfFrames>
    where
        P: Clone,
    {
        let platform = kernel.platform.clone();
        let root = platform.alloc_table()?;
        let mut inner = kernel.lock.lock();
        let word = |index| slot(&kernel.platform, kernel.root, index).load(Ordering::Relaxed);
        if !inner.sealed {
            inner.sealed = true;
            let used = (kernel.format.upper_index()..ENTRIES).filter(|&index| word(index) != 0);
            used.for_each(|index| inner.upper.set(index));
        }
        let upper = inner.upper;
        upper.each(|index| slot(&platform, root, index).store(word(index), Ordering::Relaxed));
        drop(inner);
        let mut table = Self::with_root(kernel.format, platform, root, 1, true);
        table.lock.get_mut().upper = upper;
        Ok(table)
    }

    fn with_root(format: F, platform: P, root: Frame, tables: u64, shares_upper: bool) -> Self {
        let owns = if shares_upper { Owns::LowerHalf } else { Owns::Everything };
        let lock = Mutex::new(Inner { tables, words: 0, sealed: false, upper: Upper::default() });
        Self { format, platform, root, space: SpaceTlb::new(), lock, shares_upper, owns }
    }

    /// Makes the top-level entries over `range`, so that tables that share the upper half see
    /// whatever is mapped there later. All or nothing.
    pub fn prefill(&self, range: PageRange) -> Result<(), MapError> {
        self.check(range)?;
        let mut inner = self.lock.lock();
        let level = self.format.levels();
        let (start, end) = (range.start().number(), range.end_number());
        let missing = |&(index, _, _): &(usize, u64, u64)| {
            slot(&self.platform, self.root, index).load(Ordering::Relaxed) == 0
        };
        let count = pieces(level, start, end).filter(missing).count() as u64;
        if count != 0 && inner.sealed && self.format.upper_half(range.start()) {
            return Err(MapError::Sealed);
        }
        let mut spare = Spare::allocate(&self.platform, count)?;
        let mut gains = Gains::NONE;
        for (index, from, to) in pieces(level, start, end).filter(missing) {
            let word = self.format.table(spare.pop()?, !self.format.upper_half(range.start()));
            slot(&self.platform, self.root, index).store(word, Ordering::Release);
            inner.tables += 1;
            gains.add(from, to, Gain::Present, true);
        }
        if self.format.remembers() != Remembers::Nothing {
            gains.tell(&self.platform, &self.space);
        }
        Ok(())
    }

    /// Takes over a tree that was built elsewhere: from another platform's
    /// [`into_root`](Self::into_root), say, when the boot's allocator retires.
    ///
    /// # Safety
    /// `root` is the root of a tree in this format, whose tables are all the new value's own: they
    /// can be given to `platform.release`, `platform` reaches them, and nobody else changes them or
    /// shares the upper half.
    pub unsafe fn adopt(format: F, platform: P, root: Frame) -> Self {
        let mut table = Self::with_root(format, platform, root, 0, false);
        let mut tables = 0;
        table.each_table(root, format.levels(), ENTRIES, &mut |_| tables += 1);
        let inner = table.lock.get_mut();
        (inner.tables, inner.words) = (tables, UNCOUNTED);
        table
    }

    /// Gives the tree up; nothing is freed. The opposite of [`adopt`](Self::adopt).
    pub fn into_root(mut self) -> Frame {
        self.owns = Owns::Nothing;
        self.root
    }

    /// Gives back every table, the shared upper half included.
    ///
    /// # Safety
    /// No table that shares the upper half is left, and no CPU uses this one.
    pub unsafe fn destroy_shared(mut self) {
        self.lock.get_mut().sealed = false;
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

    /// Tables that are the tree's own, the root included; takes the lock.
    pub fn tables(&self) -> u64 {
        self.lock.lock().tables
    }

    /// Leaves of all sizes and absent words of the caller's in the tree; takes the lock. Very many
    /// where nobody has counted from the beginning ([`adopt`](Self::adopt)).
    pub fn words(&self) -> u64 {
        self.lock.lock().words
    }

    /// A batch for changes to this tree.
    #[inline]
    pub fn batch(&self) -> FlushBatch<'_, P> {
        FlushBatch::new(&self.platform, &self.space)
    }

    /// Locks the tree for work on `range`. Fails ([`MapError::Range`]) when the machine does not
    /// implement the pages, when they lie in both halves, or when they belong to a half that this
    /// tree only shares.
    pub fn cursor(&self, range: PageRange) -> Result<Cursor<'_, F, P>, MapError> {
        self.check(range)?;
        Ok(Cursor::new(self, range, self.lock.lock()))
    }

    /// As [`cursor`](Self::cursor), but `None` instead of waiting for the lock, and for a range
    /// that `cursor` refuses: for fault handlers that only want to report.
    pub fn try_cursor(&self, range: PageRange) -> Option<Cursor<'_, F, P>> {
        self.check(range).ok()?;
        Some(Cursor::new(self, range, self.lock.try_lock()?))
    }

    fn check(&self, range: PageRange) -> Result<(), MapError> {
        let shared = self.shares_upper && self.format.upper_half(range.start());
        if shared || !self.format.covers_range(range) {
            return Err(MapError::Range);
        }
        Ok(())
    }

    /// Shows `see` every table from `table` (of `level`) down, children first. At the top, only
    /// the entries below `limit`. `see` may release the table.
    fn each_table(&self, table: Frame, level: u32, limit: usize, see: &mut impl FnMut(Frame)) {
        if level > 1 {
            let entries = entries(&self.platform, table);
            let mut next = 0;
            loop {
                let index = next_nonzero(entries, next, limit);
                if index >= limit {
                    break;
                }
                next = index + 1;
                let word = entries[index].load(Ordering::Relaxed);
                if let Decoded::Table(child) = self.format.decode(word, level) {
                    self.each_table(child, level - 1, ENTRIES, see);
                }
            }
        }
        see(table);
    }

    /// Does the entry of the root over this page have to stay (*upper-half-shared*)?
    #[inline]
    pub(crate) fn keeps_top(&self, page: u64, level: u32) -> bool {
        level == self.format.levels() && index(page, level) >= self.format.upper_index()
    }
}

impl<F: Format, P: Platform> Drop for PageTable<F, P> {
    fn drop(&mut self) {
        let limit = match self.owns {
            Owns::Nothing => return,
            Owns::Everything if !self.lock.get_mut().sealed => ENTRIES,
            _ => self.format.upper_index(),
        };
        if let Some(cpu) = self.space.cpus().iter().next() {
            debug_assert!(
                self.platform.unwinding(),
                "page table {:?} dropped while {cpu:?} uses it",
                self.root
            );
            return;
        }
        let (root, mut others) = (self.root, 0);
        // All by itself, and nothing to be looked for.
        let limit = if self.lock.get_mut().tables == 1 { 0 } else { limit };
        self.each_table(root, self.format.levels(), limit, &mut |table| {
            if table != root {
                others += 1;
                self.platform.release(Released::Table(table));
            }
        });
        // A root that can hold no leaf, and holds no table in its lower half, has only what was copied
        // into it.
        let bare = others == 0 && PageSize::of_level(self.format.levels()).is_none();
        if bare && self.owns == Owns::LowerHalf && self.shares_upper {
            let upper = self.lock.get_mut().upper;
            upper.each(|index| slot(&self.platform, root, index).store(0, Ordering::Relaxed));
            self.platform.release_zeroed_table(root);
        } else {
            self.platform.release(Released::Table(root));
        }
    }
}
