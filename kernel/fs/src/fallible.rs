//! Allocation that can be refused.
//!
//! Every growth in this crate goes through these functions or through `try_reserve`: exhaustion is
//! an answer ([`Errno::ENOMEM`]), never an abort.
//!
//! The one weak place is [`try_arc`]: stable Rust has no fallible `Arc::new`, so it asks for a
//! block of the size that an `Arc` needs, gives it back and then lets `Arc::new` take it. On a
//! kernel that runs on one CPU and is not pre-empted nothing can take the block in between. A
//! kernel with several CPUs needs a small reserve in its heap for this window.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem::{align_of, size_of};

use crate::{Errno, Result};

/// The two reference counts in front of the value of an `Arc`.
const COUNTS: usize = 2 * size_of::<usize>();

/// Asks for room for `count` of `P` and gives it back at once.
fn probe<P>(count: usize) -> Result<()> {
    let mut probe: Vec<P> = Vec::new();
    probe.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
    // Else the compiler drops an allocation that is given back at once, and assumes that it would
    // have succeeded.
    drop(core::hint::black_box(probe));
    Ok(())
}

/// A shared value, or [`Errno::ENOMEM`] and the value is dropped.
pub fn try_arc<T>(value: T) -> Result<Arc<T>> {
    // The block of an `Arc` is the counts, padding up to the alignment of `T`, and `T`.
    let bytes = COUNTS.next_multiple_of(align_of::<T>()) + size_of::<T>();
    let words = bytes.div_ceil(size_of::<u64>());
    // Two kinds of probe: one that is as aligned as any type here, and one that is not larger than
    // it must be, so that it comes from where the block itself will come from.
    const { assert!(align_of::<T>() <= 16) };
    if align_of::<T>() <= align_of::<u64>() {
        probe::<u64>(words)?
    } else {
        probe::<u128>(words.div_ceil(2))?
    }
    Ok(Arc::new(value))
}

/// A copy of `bytes` on the heap.
pub fn try_bytes(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(bytes.len()).map_err(|_| Errno::ENOMEM)?;
    copy.extend_from_slice(bytes);
    Ok(copy)
}

/// Appends, growing by doubling.
pub fn try_push<T>(vec: &mut Vec<T>, value: T) -> Result<()> {
    vec.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
    vec.push(value);
    Ok(())
}

/// Appends all of `bytes` or nothing.
pub fn try_extend(vec: &mut Vec<u8>, bytes: &[u8]) -> Result<()> {
    vec.try_reserve(bytes.len()).map_err(|_| Errno::ENOMEM)?;
    vec.extend_from_slice(bytes);
    Ok(())
}

/// `len` zero bytes.
pub fn try_zeroed(len: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
    bytes.resize(len, 0);
    Ok(bytes)
}
