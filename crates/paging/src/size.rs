//! Sizes of pages.

use pagoda_addr::Order;

/// The size of a leaf.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PageSize {
    /// 4 KiB, a leaf of level 1.
    K4,
    /// 2 MiB, a leaf of level 2.
    M2,
    /// 1 GiB, a leaf of level 3.
    G1,
}

impl PageSize {
    /// All sizes, smallest first.
    pub const ALL: [Self; 3] = [Self::K4, Self::M2, Self::G1];

    /// The level of table in which such a leaf stands; 1 is the lowest.
    #[inline]
    pub const fn level(self) -> u32 {
        match self {
            Self::K4 => 1,
            Self::M2 => 2,
            Self::G1 => 3,
        }
    }

    /// The size of a leaf in a table of `level`, if leaves are possible there.
    #[inline]
    pub const fn of_level(level: u32) -> Option<Self> {
        match level {
            1 => Some(Self::K4),
            2 => Some(Self::M2),
            3 => Some(Self::G1),
            _ => None,
        }
    }

    /// As a power of two of 4 KiB.
    #[inline]
    pub const fn order(self) -> Order {
        match self {
            Self::K4 => Order::PAGE,
            Self::M2 => Order::LARGE,
            Self::G1 => Order::HUGE,
        }
    }

    /// The size in 4 KiB pages.
    #[inline]
    pub const fn pages(self) -> u64 {
        self.order().count()
    }

    /// The size in bytes.
    #[inline]
    pub const fn bytes(self) -> u64 {
        self.order().bytes()
    }
}
