//! What a program claims about its own memory.

use crate::{PageRange, VirtAddr, VirtRange};

/// An `(address, length)` pair that a program handed to the kernel, checked once.
///
/// What holding one tells you: the range does not wrap, and it ends at or below the limit of the
/// program's half of the address space. What it does *not* tell you: that anything is mapped there,
/// that it may be read or written, or that it will still be so in a moment. It has no way to become
/// a pointer; only an address space can copy through it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserRange(VirtRange);

/// The range wraps, or reaches beyond the program's half of the address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserRangeError;

impl UserRange {
    /// `len` bytes from `addr`, all below `limit` (the end of the program's half).
    pub const fn new(addr: u64, len: u64, limit: VirtAddr) -> Result<Self, UserRangeError> {
        match VirtRange::checked(VirtAddr::new(addr), len) {
            Some(range) if range.end().as_u64() <= limit.as_u64() => Ok(Self(range)),
            _ => Err(UserRangeError),
        }
    }

    /// The claimed range.
    pub const fn range(self) -> VirtRange {
        self.0
    }

    /// The first claimed byte.
    pub const fn start(self) -> VirtAddr {
        self.0.start()
    }

    /// Claimed bytes.
    pub const fn len(self) -> u64 {
        self.0.len()
    }

    /// No byte claimed?
    pub const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// All pages touched.
    pub const fn pages(self) -> PageRange {
        self.0.blocks_touched()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_range_neither_wraps_nor_reaches_the_kernel() {
        let limit = VirtAddr::new(0x7fff_ffff_f000);
        assert!(UserRange::new(0x7fff_ffff_effe, 2, limit).is_ok());
        assert_eq!(UserRange::new(0x7fff_ffff_efff, 2, limit), Err(UserRangeError));
        assert_eq!(UserRange::new(u64::MAX, 2, limit), Err(UserRangeError));
        assert_eq!(UserRange::new(1, u64::MAX, limit), Err(UserRangeError));
        assert_eq!(UserRange::new(0x8000_0000_0000, 0, limit), Err(UserRangeError));
    }
}
