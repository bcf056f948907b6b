//! What hardened mode can tell about a block.

use core::fmt;

/// Who did something: an address in the program, and the number of a thread's heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site(u64);

impl Site {
    /// It has not been done.
    pub const NOBODY: Self = Self(0);

    /// Addresses have 48 bits.
    pub const fn new(pc: usize, thread: u16) -> Self {
        Self((pc as u64) << 16 | thread as u64)
    }

    /// As a number.
    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    /// What a number says.
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The address; 0 if it is not known.
    pub const fn pc(self) -> usize {
        (self.0 >> 16) as usize
    }

    /// Threads are numbered from 1 as they first allocate; numbers of threads that ended are used again.
    pub const fn thread(self) -> u16 {
        self.0 as u16
    }
}

/// A block's story.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Story {
    /// Bytes that were asked for.
    pub bytes: usize,
    /// How far behind the block's start the trouble is.
    pub offset: isize,
    /// Who allocated it.
    pub allocated: Site,
    /// Who freed it last.
    pub freed: Site,
}

/// What hardened mode found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A free of what is no live block.
    Freed,
    /// A realloc of what is no live block.
    Resized,
    /// A question about the size of what is no live block.
    Asked,
    /// A free with a size that the block does not have.
    WrongSize,
    /// A write behind the block.
    Behind,
    /// A write before the block.
    Before,
    /// A large block's end was passed: the page there faults.
    Passed,
    /// A large block was used after it was freed: its pages are gone.
    Vanished,
    /// A write into the block after it was freed.
    AfterFree,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Freed => "free",
            Self::Resized => "realloc",
            Self::Asked => "malloc_usable_size",
            Self::WrongSize => "free with a size that the block does not have",
            Self::Behind => "write behind a block",
            Self::Before => "write before a block",
            Self::Passed => "read or write behind a block",
            Self::Vanished => "use after free",
            Self::AfterFree => "write after free",
        })
    }
}

/// The sentence about a trouble, before the story's places are added.
pub fn sentence(
    f: &mut impl fmt::Write,
    trouble: Trouble,
    at: usize,
    story: Option<&Story>,
) -> fmt::Result {
    let asked = matches!(trouble, Trouble::Freed | Trouble::Resized | Trouble::Asked);
    match story {
        None if asked => write!(f, "{trouble} of a pointer that malloc never returned: {at:#x}"),
        None => write!(f, "{trouble}: {at:#x}"),
        Some(story) if asked && story.offset == 0 => {
            let again = if trouble == Trouble::Freed { "double free" } else { "use after free: " };
            let rest = match trouble {
                Trouble::Resized => "realloc",
                Trouble::Asked => "malloc_usable_size",
                _ => "",
            };
            write!(f, "{again}{rest}: {at:#x}, a block of {} bytes", story.bytes)
        }
        Some(story) if asked => write!(
            f,
            "{trouble} of a pointer that is not the start of a block: {at:#x}, {} bytes {} the start of a \
             block of {} bytes",
            story.offset.unsigned_abs(),
            if story.offset < 0 { "before" } else { "behind" },
            story.bytes,
        ),
        Some(story) => write!(
            f,
            "{trouble}: {at:#x}, {} bytes {} the start of a block of {} bytes",
            story.offset.unsigned_abs(),
            if story.offset < 0 { "before" } else { "behind" },
            story.bytes,
        ),
    }
}
