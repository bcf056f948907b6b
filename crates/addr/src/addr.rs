//! Byte addresses, tagged with the space that they belong to.

use core::fmt;
use core::hash::Hash;
use core::marker::PhantomData;

use crate::{Block, PAGE_SHIFT, PAGE_SIZE};

/// The space an address belongs to: [`Phys`] or [`Virt`]. Sealed by having no other use.
pub trait Space: Copy + Ord + Hash + fmt::Debug + Default + 'static {
    /// One letter for `Debug` output.
    const LETTER: char;
}

/// The machine's physical memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Phys;
/// A virtual address space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Virt;

impl Space for Phys {
    const LETTER: char = 'p';
}
impl Space for Virt {
    const LETTER: char = 'v';
}

/// A byte address in the space `S`. Any 64-bit value; whether a machine implements it is for the
/// page-table format to say.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Addr<S: Space>(u64, PhantomData<S>);

/// A physical address.
pub type PhysAddr = Addr<Phys>;
/// A virtual address.
pub type VirtAddr = Addr<Virt>;

impl<S: Space> Addr<S> {
    /// Address zero.
    pub const ZERO: Self = Self::new(0);

    /// The address with this value.
    #[inline]
    pub const fn new(value: u64) -> Self {
        Self(value, PhantomData)
    }

    /// The value, in bytes from the start of the space.
    #[inline]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The value as an index or pointer-sized number.
    #[inline]
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }

    /// Is the address a multiple of `align`? `align` must be a power of two.
    #[inline]
    pub const fn is_aligned(self, align: u64) -> bool {
        debug_assert!(align.is_power_of_two());
        self.0 & (align - 1) == 0
    }

    /// The highest multiple of `align` (a power of two) that is not above the address.
    #[inline]
    pub const fn align_down(self, align: u64) -> Self {
        debug_assert!(align.is_power_of_two());
        Self::new(self.0 & !(align - 1))
    }

    /// The lowest multiple of `align` (a power of two) that is not below the address, unless that
    /// lies beyond the 64-bit space.
    #[inline]
    pub const fn align_up(self, align: u64) -> Option<Self> {
        debug_assert!(align.is_power_of_two());
        match self.0.checked_add(align - 1) {
            Some(sum) => Some(Self::new(sum & !(align - 1))),
            None => None,
        }
    }

    /// Bytes from the start of the page that holds the address.
    #[inline]
    pub const fn page_offset(self) -> u64 {
        self.0 & (PAGE_SIZE - 1)
    }

    /// The frame or page that holds the address.
    #[inline]
    pub const fn block(self) -> Block<S> {
        Block::containing(self.0 >> PAGE_SHIFT)
    }

    /// `self + bytes`, unless that leaves the 64-bit space.
    #[inline]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Self::new(sum)),
            None => None,
        }
    }

    /// `self - bytes`, unless that is below zero.
    #[inline]
    pub const fn checked_sub(self, bytes: u64) -> Option<Self> {
        match self.0.checked_sub(bytes) {
            Some(rest) => Some(Self::new(rest)),
            None => None,
        }
    }

    /// Bytes from `lower` up to `self`, unless `lower` is the higher one.
    #[inline]
    pub const fn checked_offset_from(self, lower: Self) -> Option<u64> {
        self.0.checked_sub(lower.0)
    }
}

impl VirtAddr {
    /// Is the address canonical when the machine implements `bits` of virtual address (48 for four
    /// levels on x86-64, 57 for five), that is, are all higher bits copies of bit `bits - 1`?
    #[inline]
    pub const fn is_canonical(self, bits: u32) -> bool {
        let shift = 64 - bits;
        ((self.as_u64() << shift) as i64 >> shift) as u64 == self.as_u64()
    }
}

impl<S: Space> fmt::Debug for Addr<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:#x}", S::LETTER, self.0)
    }
}

impl<S: Space> fmt::Display for Addr<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl<S: Space> fmt::LowerHex for Addr<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}
