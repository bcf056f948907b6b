//! Allocation that can be refused.
//!
//! The standard containers abort when the allocator refuses. Everything that a system call can
//! reach allocates through these functions instead, which return [`NoMemory`].
#![allow(unsafe_code)] // calls the allocator by hand, for boxes

use alloc::alloc::{alloc, dealloc};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::alloc::Layout;
use core::sync::atomic::AtomicUsize;

/// The allocator refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoMemory;

impl From<NoMemory> for crate::VmError {
    fn from(_: NoMemory) -> Self {
        Self::OutOfMemory
    }
}

/// Counts as an allocation where tests let the n-th fail.
pub(crate) fn step() -> Result<(), NoMemory> {
    host::step()
}

/// A box around `value`, or the value lost with an error.
pub fn try_box<T>(value: T) -> Result<Box<T>, NoMemory> {
    try_box_with(|| value)
}

/// A box around what `make` makes, where the compiler can in its place: for what is large.
#[inline]
pub fn try_box_with<T>(make: impl FnOnce() -> T) -> Result<Box<T>, NoMemory> {
    host::step()?;
    let layout = Layout::new::<T>();
    if layout.size() == 0 {
        return Ok(Box::new(make()));
    }
    // SAFETY: the size is not zero.
    let place = unsafe { alloc(layout) }.cast::<T>();
    if place.is_null() {
        return Err(NoMemory);
    }
    // SAFETY: the allocator gave memory of the layout of `T`, which a box of `T` frees with the
    // same layout; it is written before it becomes a box.
    unsafe {
        place.write(make());
        Ok(Box::from_raw(place))
    }
}

/// A counted pointer to `value`.
///
/// Asks the allocator for a block of the size that `Arc` needs and gives it back at once; `Arc::new`
/// then finds it. Sound in a kernel that is not pre-empted here and whose allocator serves a size
/// that it has just taken back; if another CPU takes the last block in between, `Arc::new` ends in
/// the allocation error handler.
pub fn try_arc<T>(value: T) -> Result<Arc<T>, NoMemory> {
    host::step()?;
    // What `Arc` allocates: two counters, then the value.
    let layout = Layout::new::<[AtomicUsize; 2]>()
        .extend(Layout::new::<T>())
        .map_err(|_| NoMemory)?
        .0
        .pad_to_align();
    // SAFETY: the size is not zero (two counters); what was got is given back with its layout.
    unsafe {
        // Else the compiler drops an allocation that is given back at once, and assumes that it
        // would have succeeded.
        let place = core::hint::black_box(alloc(layout));
        if place.is_null() {
            return Err(NoMemory);
        }
        dealloc(place, layout);
    }
    Ok(Arc::new(value))
}

/// Appends `value`, growing as `Vec` does.
pub fn try_push<T>(vec: &mut Vec<T>, value: T) -> Result<(), NoMemory> {
    if vec.len() == vec.capacity() {
        host::step()?;
        vec.try_reserve(1).map_err(|_| NoMemory)?;
    }
    vec.push(value);
    Ok(())
}

/// Appends a copy of `values`.
pub fn try_extend<T: Copy>(vec: &mut Vec<T>, values: &[T]) -> Result<(), NoMemory> {
    if vec.capacity() - vec.len() < values.len() {
        host::step()?;
        vec.try_reserve(values.len()).map_err(|_| NoMemory)?;
    }
    vec.extend_from_slice(values);
    Ok(())
}

/// `len` copies of `value`.
pub fn try_vec<T: Clone>(value: T, len: usize) -> Result<Vec<T>, NoMemory> {
    let mut vec = Vec::new();
    if len != 0 {
        host::step()?;
        vec.try_reserve_exact(len).map_err(|_| NoMemory)?;
    }
    vec.resize(len, value);
    Ok(vec)
}

/// Makes the n-th allocation of a test's thread fail.
#[cfg(any(test, feature = "std"))]
pub mod host {
    use super::NoMemory;
    use std::cell::Cell;

    std::thread_local! {
        static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
    }

    /// The allocation after `count` successful ones fails, once; none does when `None`.
    pub fn fail_after(count: Option<u64>) {
        LEFT.set(count);
    }

    pub(super) fn step() -> Result<(), NoMemory> {
        match LEFT.get() {
            None => Ok(()),
            Some(0) => {
                LEFT.set(None);
                Err(NoMemory)
            }
            Some(left) => {
                LEFT.set(Some(left - 1));
                Ok(())
            }
        }
    }
}

#[cfg(not(any(test, feature = "std")))]
mod host {
    #[inline(always)]
    pub(super) fn step() -> Result<(), super::NoMemory> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counted_failure_strikes_once() {
        host::fail_after(Some(1));
        assert!(try_box(1u64).is_ok());
        assert_eq!(try_arc(2u64), Err(NoMemory));
        assert_eq!(*try_arc(2u64).unwrap(), 2);
        assert_eq!(try_vec(0u8, usize::MAX).unwrap_err(), NoMemory);
    }
}
