//! One cell for each CPU.
#![allow(unsafe_code)] // hands a cell that is not `Sync` to the CPU that owns it

use core::ops::{Deref, DerefMut};

use crate::{CpuId, Cpus, Pinned};

/// A value alone on its cache lines (two of them: adjacent lines are prefetched in pairs).
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct CachePadded<T>(pub T);

impl<T> Deref for CachePadded<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for CachePadded<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

/// One cell for each CPU, in storage that the caller supplies.
///
/// `T` needs no synchronisation of its own: [`get`](Self::get) returns the cell of the CPU that the
/// [`Pinned`] guard proves, and nobody else can reach it meanwhile (*pin-exclusive*). Cells hold
/// `Cell`s and the like; a `&mut` is never given out because pins nest.
#[derive(Debug)]
pub struct PerCpu<'s, T> {
    cells: &'s [CachePadded<T>],
}

// SAFETY: a cell is only reached from the CPU that owns it, one context at a time, so values move
// between threads at most as a whole (`T: Send`); `&T` never reaches two threads at once.
unsafe impl<T: Send> Sync for PerCpu<'_, T> {}
// SAFETY: as for `Sync`: the shared reference inside is only used under the same rule.
unsafe impl<T: Send> Send for PerCpu<'_, T> {}

impl<'s, T> PerCpu<'s, T> {
    /// Uses `cells`, one for each CPU from 0.
    pub const fn new(cells: &'s mut [CachePadded<T>]) -> Self {
        Self { cells }
    }

    /// The number of cells.
    pub const fn len(&self) -> usize {
        self.cells.len()
    }

    /// No cell at all?
    pub const fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The executing CPU's cell.
    ///
    /// # Safety
    /// All guards that are ever used with this value come from one and the same [`Cpus`]
    /// implementer, so that two of them are never for the same CPU at once.
    ///
    /// # Panics
    /// When there are fewer cells than [`Cpus::limit`]: a bug of the caller.
    #[inline]
    pub unsafe fn get<'p, C: Cpus + ?Sized>(&self, pin: &'p Pinned<'_, C>) -> &'p T
    where
        's: 'p,
    {
        &self.cells[pin.cpu().index()].0
    }

    /// The cell of any CPU.
    ///
    /// # Safety
    /// The owner of the cell does not use it meanwhile: it is stopped, or is not yet started, or
    /// the caller is the owner and pinned.
    pub unsafe fn of(&self, cpu: CpuId) -> Option<&T> {
        self.cells.get(cpu.index()).map(|cell| &cell.0)
    }
}
