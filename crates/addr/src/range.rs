//! Half-open ranges of bytes and of blocks.

use core::fmt;

use crate::{Addr, Block, PAGE_SHIFT, PAGE_SIZE, Phys, Space, Virt};

/// The bytes from `start` up to but not including `end`.
///
/// Invariant "range-forward": `start <= end`. The last byte of the 64-bit space can therefore never
/// be inside a range; no machine has it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct AddrRange<S: Space> {
    start: Addr<S>,
    end: Addr<S>,
}

/// The blocks from `start` up to but not including `start + count`.
///
/// Invariant: `start + count <= Block::LIMIT`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BlockRange<S: Space> {
    start: Block<S>,
    count: u64,
}

/// A range of physical bytes.
pub type PhysRange = AddrRange<Phys>;
/// A range of virtual bytes.
pub type VirtRange = AddrRange<Virt>;
/// A range of frames.
pub type FrameRange = BlockRange<Phys>;
/// A range of pages.
pub type PageRange = BlockRange<Virt>;

impl<S: Space> AddrRange<S> {
    /// The range from `start` to `end`; none when `end` is the lower one.
    #[inline]
    pub const fn new(start: Addr<S>, end: Addr<S>) -> Option<Self> {
        if start.as_u64() <= end.as_u64() { Some(Self { start, end }) } else { None }
    }

    /// `len` bytes from `start`; none when that wraps around the end of the space.
    #[inline]
    pub const fn checked(start: Addr<S>, len: u64) -> Option<Self> {
        match start.checked_add(len) {
            Some(end) => Some(Self { start, end }),
            None => None,
        }
    }

    /// `len` bytes from `start`, or as many as the space has.
    #[inline]
    pub const fn clamped(start: Addr<S>, len: u64) -> Self {
        match start.checked_add(len) {
            Some(end) => Self { start, end },
            None => Self { start, end: Addr::new(u64::MAX) },
        }
    }

    /// The first byte.
    #[inline]
    pub const fn start(self) -> Addr<S> {
        self.start
    }

    /// One past the last byte.
    #[inline]
    pub const fn end(self) -> Addr<S> {
        self.end
    }

    /// Bytes in the range.
    #[inline]
    pub const fn len(self) -> u64 {
        self.end.as_u64() - self.start.as_u64()
    }

    /// No byte at all?
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.start.as_u64() == self.end.as_u64()
    }

    /// Is the byte at `addr` inside?
    #[inline]
    pub const fn contains(self, addr: Addr<S>) -> bool {
        self.start.as_u64() <= addr.as_u64() && addr.as_u64() < self.end.as_u64()
    }

    /// Does every byte of `other` lie inside? True for every empty `other`.
    #[inline]
    pub const fn contains_range(self, other: Self) -> bool {
        other.is_empty()
            || (self.start.as_u64() <= other.start.as_u64()
                && other.end.as_u64() <= self.end.as_u64())
    }

    /// Do the two share a byte?
    #[inline]
    pub const fn overlaps(self, other: Self) -> bool {
        !self.is_empty()
            && !other.is_empty()
            && self.start.as_u64() < other.end.as_u64()
            && other.start.as_u64() < self.end.as_u64()
    }

    /// The bytes that are in both, if there are any.
    #[inline]
    pub fn intersection(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        if start < end { Some(Self { start, end }) } else { None }
    }

    /// The whole blocks inside: rounded inwards, as usable memory must be.
    #[inline]
    pub const fn blocks_inside(self) -> BlockRange<S> {
        let first = match self.start.align_up(PAGE_SIZE) {
            Some(start) => start.as_u64() >> PAGE_SHIFT,
            None => Block::<S>::LIMIT,
        };
        let end = self.end.as_u64() >> PAGE_SHIFT;
        if first < end {
            BlockRange { start: Block::containing(first), count: end - first }
        } else {
            BlockRange { start: self.start.block(), count: 0 }
        }
    }

    /// All blocks touched: rounded outwards, as memory in use must be.
    #[inline]
    pub const fn blocks_touched(self) -> BlockRange<S> {
        let start = self.start.block();
        if self.is_empty() {
            return BlockRange { start, count: 0 };
        }
        let last = (self.end.as_u64() - 1) >> PAGE_SHIFT;
        BlockRange { start, count: last - start.number() + 1 }
    }
}

impl<S: Space> BlockRange<S> {
    /// `count` blocks from `start`; none when that leaves the space.
    #[inline]
    pub const fn new(start: Block<S>, count: u64) -> Option<Self> {
        match start.number().checked_add(count) {
            Some(end) if end <= Block::<S>::LIMIT => Some(Self { start, count }),
            _ => None,
        }
    }

    /// The blocks from `start` up to but not including `end`; none when `end` is the lower one.
    #[inline]
    pub const fn between(start: Block<S>, end: Block<S>) -> Option<Self> {
        match end.number().checked_sub(start.number()) {
            Some(count) => Some(Self { start, count }),
            None => None,
        }
    }

    /// A single block.
    #[inline]
    pub const fn single(block: Block<S>) -> Self {
        Self { start: block, count: 1 }
    }

    /// The first block.
    #[inline]
    pub const fn start(self) -> Block<S> {
        self.start
    }

    /// The number of the block after the last one. A number, since the block itself may not exist.
    #[inline]
    pub const fn end_number(self) -> u64 {
        self.start.number() + self.count
    }

    /// Blocks in the range.
    #[inline]
    pub const fn count(self) -> u64 {
        self.count
    }

    /// Bytes in the range.
    #[inline]
    pub const fn bytes(self) -> u64 {
        // A range of all 2^52 blocks would not fit; no machine has it, and saturation is harmless.
        self.count.saturating_mul(PAGE_SIZE)
    }

    /// No block at all?
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.count == 0
    }

    /// Is `block` inside?
    #[inline]
    pub const fn contains(self, block: Block<S>) -> bool {
        self.start.number() <= block.number() && block.number() < self.end_number()
    }

    /// Do the two share a block?
    #[inline]
    pub const fn overlaps(self, other: Self) -> bool {
        !self.is_empty()
            && !other.is_empty()
            && self.start.number() < other.end_number()
            && other.start.number() < self.end_number()
    }

    /// The blocks in both, if there are any.
    #[inline]
    pub fn intersection(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end_number().min(other.end_number());
        match end.checked_sub(start.number()) {
            Some(count) if count > 0 => Some(Self { start, count }),
            _ => None,
        }
    }

    /// The bytes of the range; the last one is cut off when the range ends with the space.
    #[inline]
    pub const fn addresses(self) -> AddrRange<S> {
        AddrRange::clamped(self.start.start(), self.bytes())
    }

    /// The blocks one by one, lowest first.
    #[inline]
    pub fn iter(self) -> impl DoubleEndedIterator<Item = Block<S>> {
        (self.start.number()..self.end_number()).map(Block::containing)
    }
}

impl<S: Space> fmt::Debug for AddrRange<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:#x}..{:#x}", S::LETTER, self.start.as_u64(), self.end.as_u64())
    }
}

impl<S: Space> fmt::Debug for BlockRange<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{:#x}..{:#x}", S::LETTER, self.start.number(), self.end_number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Frame, PhysAddr};

    fn bytes(start: u64, end: u64) -> PhysRange {
        PhysRange::new(PhysAddr::new(start), PhysAddr::new(end)).unwrap()
    }

    #[test]
    fn ranges_never_run_backwards_or_wrap() {
        assert_eq!(PhysRange::new(PhysAddr::new(2), PhysAddr::new(1)), None);
        assert_eq!(PhysRange::checked(PhysAddr::new(u64::MAX), 2), None);
        assert_eq!(PhysRange::clamped(PhysAddr::new(u64::MAX - 4), 9).len(), 4);
        assert_eq!(FrameRange::new(Frame::from_number(1), Frame::LIMIT), None);
        assert_eq!(FrameRange::new(Frame::from_number(1), u64::MAX), None);
    }

    #[test]
    fn rounding_inwards_loses_and_outwards_gains_the_partial_pages() {
        let odd = bytes(0x1001, 0x3fff);
        assert_eq!(odd.blocks_inside(), FrameRange::new(Frame::from_number(2), 1).unwrap());
        assert_eq!(odd.blocks_touched(), FrameRange::new(Frame::from_number(1), 3).unwrap());
        assert!(bytes(0x1001, 0x1fff).blocks_inside().is_empty());
        assert!(bytes(0x1001, 0x1001).blocks_touched().is_empty());
        assert!(bytes(u64::MAX - 1, u64::MAX).blocks_inside().is_empty());
    }

    #[test]
    fn empty_ranges_overlap_nothing() {
        assert!(!bytes(5, 5).overlaps(bytes(0, 10)));
        assert!(bytes(0, 10).contains_range(bytes(70, 70)));
        assert_eq!(bytes(0, 5).intersection(bytes(5, 9)), None);
        assert_eq!(bytes(0, 6).intersection(bytes(5, 9)), Some(bytes(5, 6)));
    }
}
