//! Frames and pages: 4 KiB blocks, counted from the start of their space.

use core::fmt;
use core::marker::PhantomData;

use crate::{Addr, Order, PAGE_SHIFT, Phys, Space, Virt};

/// The number of a 4 KiB block in the space `S`. Below 2^52, so that its first byte has a 64-bit
/// address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Block<S: Space>(u64, PhantomData<S>);

/// A 4 KiB piece of physical memory. Only a number: who owns the frame is for the frame table to
/// say.
pub type Frame = Block<Phys>;
/// A 4 KiB piece of an address space.
pub type Page = Block<Virt>;

impl<S: Space> Block<S> {
    /// One more than the highest number.
    pub const LIMIT: u64 = 1 << (64 - PAGE_SHIFT);

    /// The block with this number, if it is below [`LIMIT`](Self::LIMIT).
    #[inline]
    pub const fn new(number: u64) -> Option<Self> {
        if number < Self::LIMIT { Some(Self(number, PhantomData)) } else { None }
    }

    /// `number` modulo [`LIMIT`](Self::LIMIT); for numbers that came from an address.
    #[inline]
    pub(crate) const fn containing(number: u64) -> Self {
        Self(number & (Self::LIMIT - 1), PhantomData)
    }

    /// The block with this number.
    ///
    /// # Panics
    /// When `number` is not below [`LIMIT`](Self::LIMIT): a bug of the caller, never input. Use
    /// [`new`](Self::new) for numbers that somebody else supplied.
    #[inline]
    #[track_caller]
    pub const fn from_number(number: u64) -> Self {
        assert!(number < Self::LIMIT, "block number out of range");
        Self(number, PhantomData)
    }

    /// The number, in blocks from the start of the space.
    #[inline]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The address of the first byte.
    #[inline]
    pub const fn start(self) -> Addr<S> {
        Addr::new(self.0 << PAGE_SHIFT)
    }

    /// The block `count` further up, unless that leaves the space.
    #[inline]
    pub const fn checked_add(self, count: u64) -> Option<Self> {
        match self.0.checked_add(count) {
            Some(sum) => Self::new(sum),
            None => None,
        }
    }

    /// The block `count` further down, unless that is below zero.
    #[inline]
    pub const fn checked_sub(self, count: u64) -> Option<Self> {
        match self.0.checked_sub(count) {
            Some(rest) => Self::new(rest),
            None => None,
        }
    }

    /// Can a block of 2^`order` frames or pages start here?
    #[inline]
    pub const fn is_aligned(self, order: Order) -> bool {
        self.0 & (order.count() - 1) == 0
    }

    /// The first block of the naturally aligned group of 2^`order` that holds this one.
    #[inline]
    pub const fn align_down(self, order: Order) -> Self {
        Self(self.0 & !(order.count() - 1), PhantomData)
    }
}

impl<S: Space> fmt::Debug for Block<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{:#x}", S::LETTER, self.0)
    }
}
