//! What stands behind a page.

use pagoda_addr::Frame;

use crate::{PageFlags, PageSize};

/// The caller's own bits in an absent entry: a swap slot, a guard mark. Zero is "nothing at all".
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct AbsentWord(u64);

impl AbsentWord {
    /// Bits that every format can keep.
    pub const BITS: u32 = 62;
    /// Nothing at all.
    pub const NOTHING: Self = Self(0);

    /// The word with this value, if it fits into [`BITS`](Self::BITS).
    #[inline]
    pub const fn new(value: u64) -> Option<Self> {
        if value >> Self::BITS == 0 { Some(Self(value)) } else { None }
    }

    /// The word in the lowest [`BITS`](Self::BITS) of `bits`; for formats that decode one.
    #[inline]
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits & (u64::MAX >> (64 - Self::BITS)))
    }

    /// The value.
    #[inline]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Nothing at all?
    #[inline]
    pub const fn is_nothing(self) -> bool {
        self.0 == 0
    }
}

/// What stands behind a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// No frame.
    Absent(AbsentWord),
    /// A frame.
    Mapped {
        /// The frame behind the page that was asked for, also in the middle of a large leaf (whose
        /// first frame is `frame.align_down(size.order())`).
        frame: Frame,
        /// The size of the leaf that the page belongs to.
        size: PageSize,
        /// The flags of the leaf.
        flags: PageFlags,
    },
}

/// A mapped leaf, for callers that know that it is one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// The frame behind the page in question.
    pub frame: Frame,
    /// The size of the leaf.
    pub size: PageSize,
    /// Its flags.
    pub flags: PageFlags,
}

impl Entry {
    /// Nothing at all.
    pub const NOTHING: Self = Self::Absent(AbsentWord::NOTHING);

    /// The leaf, if there is one.
    #[inline]
    pub const fn leaf(self) -> Option<Leaf> {
        match self {
            Self::Mapped { frame, size, flags } => Some(Leaf { frame, size, flags }),
            Self::Absent(_) => None,
        }
    }
}

impl From<Leaf> for Entry {
    fn from(leaf: Leaf) -> Self {
        Self::Mapped { frame: leaf.frame, size: leaf.size, flags: leaf.flags }
    }
}
