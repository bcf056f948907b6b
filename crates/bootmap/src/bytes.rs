//! Reading what the loader wrote.

use pagoda_addr::PhysAddr;

use crate::{BootInfoError, Field};

/// The parsers' only access to memory: bytes that stand at physical addresses.
///
/// A kernel answers from its identity map or direct map, for as much as that covers; a test from
/// whatever it made up. Nothing is trusted, this trait included: an answer of another length than
/// asked for counts as no answer.
pub trait BootMemory {
    /// The `len` bytes from `start`; none unless all of them are memory that may be read.
    fn bytes(&self, start: PhysAddr, len: u64) -> Option<&[u8]>;
}

impl<M: BootMemory + ?Sized> BootMemory for &M {
    fn bytes(&self, start: PhysAddr, len: u64) -> Option<&[u8]> {
        (**self).bytes(start, len)
    }
}

/// The longest string that is looked for, in bytes with the final zero. A longer one is an error,
/// never cut short.
pub(crate) const STRING_LIMIT: u64 = 64 << 10;

/// Bytes of a string looked at together, a power of two.
const PIECE: u64 = 256;

/// `len` bytes from `start`, if the memory answers with exactly these.
pub(crate) fn exactly<M: BootMemory + ?Sized>(
    memory: &M,
    start: PhysAddr,
    len: u64,
) -> Option<&[u8]> {
    if len == 0 {
        return Some(&[]);
    }
    start.checked_add(len)?;
    memory.bytes(start, len).filter(|bytes| u64::try_from(bytes.len()) == Ok(len))
}

/// `len` bytes from `start`, on behalf of `field`.
pub(crate) fn read<M: BootMemory + ?Sized>(
    memory: &M,
    start: PhysAddr,
    len: u64,
    field: Field,
) -> Result<&[u8], BootInfoError> {
    exactly(memory, start, len).ok_or(BootInfoError::Unreadable { field, start, len })
}

/// The 32-bit field at `base + offset`.
pub(crate) fn read_u32<M: BootMemory + ?Sized>(
    memory: &M,
    base: PhysAddr,
    offset: u64,
    field: Field,
) -> Result<u32, BootInfoError> {
    let unreadable = BootInfoError::Unreadable { field, start: base, len: offset + 4 };
    let bytes = read(memory, base.checked_add(offset).ok_or(unreadable)?, 4, field)?;
    u32_at(bytes, 0).ok_or(unreadable)
}

/// The string at `start`, without its final zero.
pub(crate) fn read_string<M: BootMemory + ?Sized>(
    memory: &M,
    start: PhysAddr,
    field: Field,
) -> Result<&[u8], BootInfoError> {
    let unterminated = BootInfoError::Unterminated { field, start };
    let mut len = 0;
    while len < STRING_LIMIT {
        let at = start.checked_add(len).ok_or(unterminated)?;
        // In pieces that stay inside a page, and smaller ones where memory ends after the zero.
        let mut piece = PIECE - (at.as_u64() & (PIECE - 1));
        let bytes = loop {
            match read(memory, at, piece, field) {
                Ok(bytes) => break bytes,
                Err(error) if piece == 1 => return Err(error),
                Err(_) => piece /= 2,
            }
        };
        if let Some(zero) = bytes.iter().position(|byte| *byte == 0) {
            return read(memory, start, len + zero as u64, field);
        }
        len += piece;
    }
    Err(unterminated)
}

/// The string at the start of `bytes`, which stand at `start`.
pub(crate) fn string_in(
    bytes: &[u8],
    start: PhysAddr,
    field: Field,
) -> Result<&[u8], BootInfoError> {
    let end = bytes.iter().position(|byte| *byte == 0);
    let string = end.and_then(|end| bytes.get(..end));
    string.ok_or(BootInfoError::Unterminated { field, start })
}

pub(crate) fn u8_at(bytes: &[u8], offset: usize) -> Option<u8> {
    bytes.get(offset).copied()
}

pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u16::from_le_bytes(*chunk))
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}
