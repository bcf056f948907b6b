//! Powers of two of frames.

use core::fmt;

use crate::PAGE_SHIFT;

/// A block size as a power of two of 4 KiB: order 0 is 4 KiB, order 9 is 2 MiB, order 18 is 1 GiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Order(u8);

impl Order {
    /// 4 KiB.
    pub const PAGE: Self = Self(0);
    /// 2 MiB.
    pub const LARGE: Self = Self(9);
    /// 1 GiB, the largest.
    pub const HUGE: Self = Self(18);
    /// The largest order.
    pub const MAX: Self = Self::HUGE;

    /// The order, if it is at most [`MAX`](Self::MAX).
    #[inline]
    pub const fn new(order: u8) -> Option<Self> {
        if order <= Self::MAX.0 { Some(Self(order)) } else { None }
    }

    /// The smallest order whose block holds `count` frames; none for more than 1 GiB. Zero frames
    /// need order 0.
    #[inline]
    pub const fn for_count(count: u64) -> Option<Self> {
        if count > Self::MAX.count() {
            return None;
        }
        let order = if count <= 1 { 0 } else { 64 - (count - 1).leading_zeros() };
        Self::new(order as u8)
    }

    /// The smallest order whose block holds `bytes` bytes; none for more than 1 GiB.
    #[inline]
    pub const fn for_bytes(bytes: u64) -> Option<Self> {
        Self::for_count((bytes >> PAGE_SHIFT) + (bytes & (crate::PAGE_SIZE - 1) != 0) as u64)
    }

    /// The exponent.
    #[inline]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Frames in a block of this order.
    #[inline]
    pub const fn count(self) -> u64 {
        1 << self.0
    }

    /// Bytes in a block of this order.
    #[inline]
    pub const fn bytes(self) -> u64 {
        1 << (self.0 as u32 + PAGE_SHIFT)
    }

    /// All orders, smallest first.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> {
        (0..=Self::MAX.0).map(Self)
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "order {}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_for_a_count_is_the_smallest_that_holds_it() {
        for count in 0..=(1u64 << 18) {
            let order = Order::for_count(count).unwrap();
            assert!(order.count() >= count);
            assert!(order.get() == 0 || order.count() / 2 < count);
        }
        assert_eq!(Order::for_count((1 << 18) + 1), None);
        assert_eq!(Order::for_bytes(4097), Order::new(1));
        assert_eq!(Order::for_bytes(u64::MAX), None);
    }
}
