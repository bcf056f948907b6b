//! Areas and the words in their guards.

use pagoda_addr::{Page, PageRange, VirtAddr, VirtRange};
use pagoda_paging::AbsentWord;

/// What an area is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A kernel stack.
    Stack,
    /// Virtually contiguous memory.
    Block,
    /// Device registers or other memory that is not managed.
    Device,
}

/// Which end of an area.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// In front of the first page: what an overflowing stack meets.
    Below,
    /// Behind the last page.
    Above,
}

/// What a guard page guards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Guard {
    /// What the area is for.
    pub kind: Kind,
    /// At which of its ends the guard is.
    pub side: Side,
    /// The pages between the two guards.
    pub body: PageRange,
}

/// Layout of the word: kind in bits 0 and 1 (never 0, so the word is never 0), side in bit 2,
/// pages of the body from bit 3 on.
const KIND_BITS: u64 = 0b11;
const ABOVE: u64 = 0b100;
const COUNT_SHIFT: u32 = 3;

impl Guard {
    /// The most pages that a guard's word can name.
    pub const MAX_PAGES: u64 = 1 << (AbsentWord::BITS - COUNT_SHIFT - 8);

    /// The word for this guard.
    pub(crate) fn word(&self) -> AbsentWord {
        let kind = match self.kind {
            Kind::Stack => 1,
            Kind::Block => 2,
            Kind::Device => 3,
        };
        let side = if self.side == Side::Above { ABOVE } else { 0 };
        let word = AbsentWord::new(kind | side | self.body.count() << COUNT_SHIFT);
        // The body is at most MAX_PAGES, which fits.
        word.unwrap_or_default()
    }

    /// What the word of the entry of `page` says, if it is a guard's.
    pub(crate) fn read(page: Page, word: AbsentWord) -> Option<Self> {
        let kind = match word.get() & KIND_BITS {
            1 => Kind::Stack,
            2 => Kind::Block,
            3 => Kind::Device,
            _ => return None,
        };
        let count = word.get() >> COUNT_SHIFT;
        let (side, first) = if word.get() & ABOVE == 0 {
            (Side::Below, page.checked_add(1)?)
        } else {
            (Side::Above, page.checked_sub(count)?)
        };
        Some(Self { kind, side, body: PageRange::new(first, count)? })
    }
}

/// A kernel stack between two guard pages. Give it back with [`Kva::free_stack`](crate::Kva).
#[derive(PartialEq, Eq, Debug)]
#[must_use = "the stack stays allocated until it is given back"]
pub struct Stack(pub(crate) PageRange);

impl Stack {
    /// Its pages.
    pub fn pages(&self) -> PageRange {
        self.0
    }

    /// The lowest byte.
    pub fn bottom(&self) -> VirtAddr {
        self.0.start().start()
    }

    /// One past the highest byte: where a stack that grows downwards begins. Aligned to a page.
    pub fn top(&self) -> VirtAddr {
        self.0.addresses().end()
    }
}

/// Virtually contiguous memory between two guard pages.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "the block stays allocated until it is given back"]
pub struct Block(pub(crate) PageRange);

impl Block {
    /// Its pages.
    pub fn pages(&self) -> PageRange {
        self.0
    }

    /// Its bytes, to the end of the last page.
    pub fn bytes(&self) -> VirtRange {
        self.0.addresses()
    }

    /// The block again, for a holder who has kept its pages and nothing else.
    ///
    /// # Safety
    /// These are the [`pages`](Self::pages) of one block that was allocated, let go of and
    /// not given back.
    #[allow(unsafe_code)] // a promise that no type can keep
    pub unsafe fn remembered(pages: PageRange) -> Self {
        Self(pages)
    }
}

/// A window on device memory between two guard pages.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "the window stays open until it is given back"]
pub struct Window {
    pub(crate) pages: PageRange,
    pub(crate) bytes: VirtRange,
}

impl Window {
    /// All pages, also the parts of the first and last that were not asked for.
    pub fn pages(&self) -> PageRange {
        self.pages
    }

    /// The bytes that were asked for.
    pub fn bytes(&self) -> VirtRange {
        self.bytes
    }
}
