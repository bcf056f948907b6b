//! A short list without initialisation: a batch stands on the stack of every unmap, and clearing a
//! kilobyte there would cost more than the unmap.
#![allow(unsafe_code)] // keeps uninitialised memory

use core::mem::MaybeUninit;

/// Up to `N` values.
///
/// Invariant *filled*: the first `len` slots are initialised.
pub(crate) struct StackVec<T: Copy, const N: usize> {
    slots: [MaybeUninit<T>; N],
    len: usize,
}

impl<T: Copy, const N: usize> StackVec<T, N> {
    #[inline]
    pub(crate) const fn new() -> Self {
        Self { slots: [const { MaybeUninit::uninit() }; N], len: 0 }
    }

    /// Adds a value; false when there is no room.
    #[inline]
    pub(crate) fn push(&mut self, value: T) -> bool {
        let Some(slot) = self.slots.get_mut(self.len) else { return false };
        slot.write(value);
        self.len += 1;
        true
    }

    /// Adds values while there is room for them and `values` has some; says how many that were.
    #[inline(always)]
    pub(crate) fn fill(&mut self, values: impl Iterator<Item = T>) -> usize {
        let before = self.len;
        let room = self.slots.get_mut(before..).unwrap_or_default();
        let mut filled = 0;
        // The slot comes first: no value is asked for that has none.
        for (slot, value) in room.iter_mut().zip(values) {
            slot.write(value);
            filled += 1;
        }
        self.len = before + filled;
        filled
    }

    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.len == N
    }

    #[inline]
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    #[inline]
    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: *filled*.
        unsafe { core::slice::from_raw_parts(self.slots.as_ptr().cast(), self.len) }
    }

    #[inline]
    pub(crate) fn last_mut(&mut self) -> Option<&mut T> {
        let last = self.len.checked_sub(1)?;
        // SAFETY: *filled*, and `last` is below `len`.
        Some(unsafe { self.slots[last].assume_init_mut() })
    }
}
