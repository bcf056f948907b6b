//! Allocation that can be refused.
//!
//! Every growth in this crate goes through these functions or through `try_reserve`: exhaustion is
//! an answer ([`Errno::ENOMEM`]), never an abort.
//!
//! [`pagoda_vm::fallible`] with this crate's error, and the same for strings of bytes.

use alloc::sync::Arc;
use alloc::vec::Vec;

use pagoda_vm::fallible;

use crate::{Errno, Result};

/// A shared value, or [`Errno::ENOMEM`] and the value is dropped.
pub fn try_arc<T>(value: T) -> Result<Arc<T>> {
    fallible::try_arc(value).map_err(|_| Errno::ENOMEM)
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
    fallible::try_push(vec, value).map_err(|_| Errno::ENOMEM)
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
