//! Atomics: the machine's, or loom's when interleavings are explored (`--cfg loom`).

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Loads many at once, as memory is copied: one after the other they take as long as their lines take from
/// one CPU to another. Both have the same length.
///
/// # Safety
///
/// Nobody else writes `from` meanwhile.
#[allow(unsafe_code)] // reads atomics as what they are made of
pub(crate) unsafe fn load_all(from: &[AtomicU64], to: &mut [u64]) {
    assert_eq!(from.len(), to.len());
    #[cfg(loom)]
    to.iter_mut().zip(from).for_each(|(to, from)| *to = from.load(Ordering::Relaxed));
    // SAFETY: so many of the same size; `to` is the caller's alone, and `from` is not written.
    #[cfg(not(loom))]
    unsafe {
        core::ptr::copy_nonoverlapping(from.as_ptr().cast(), to.as_mut_ptr(), to.len());
    }
}

/// Stores many at once, as [`load_all`] loads them.
///
/// # Safety
///
/// Nobody else reads or writes `to` meanwhile.
#[allow(unsafe_code)] // writes atomics as what they are made of
pub(crate) unsafe fn store_all(to: &[AtomicU64], from: &[u64]) {
    assert_eq!(from.len(), to.len());
    #[cfg(loom)]
    to.iter().zip(from).for_each(|(to, &from)| to.store(from, Ordering::Relaxed));
    // SAFETY: so many of the same size. An atomic may be written through a shared reference, and nobody else
    // looks.
    #[cfg(not(loom))]
    unsafe {
        let to: *const u64 = to.as_ptr().cast();
        core::ptr::copy_nonoverlapping(from.as_ptr(), to.cast_mut(), from.len());
    }
}
