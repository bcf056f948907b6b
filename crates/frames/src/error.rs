//! What can go wrong, and who is to blame.

use core::alloc::Layout;
use core::fmt;

use pagoda_addr::{Frame, FrameRange};

/// Whose fault an error is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blame {
    /// The caller asked for something that makes no sense, or gave back what is not its own.
    Caller,
    /// There is not enough; try later, or after something was freed.
    Exhaustion,
    /// The allocator's own records contradict each other: stop the machine.
    Corruption,
}

/// Records that contradict each other, with the evidence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Corruption {
    /// The bitmap offered a frame that the table says is in somebody's hands.
    HandedOutTwice {
        /// The frame.
        frame: Frame,
    },
    /// The table says that the frame is in somebody's hands, the bitmap says that it is free.
    OwnedButFree {
        /// The frame.
        frame: Frame,
    },
    /// A frame in a cache changed its state meanwhile: somebody freed it twice.
    CacheDisturbed {
        /// The frame.
        frame: Frame,
    },
    /// Somebody wrote into a frame after it had been freed (debug builds, see
    /// [`FrameAllocator::set_poison`](crate::FrameAllocator::set_poison)).
    WrittenAfterFree {
        /// The frame.
        frame: Frame,
    },
}

/// Why nothing was allocated. The allocator is as it was before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AllocError {
    /// Caller: no frame asked for, or a boundary that the range cannot fit between.
    BadRequest,
    /// Caller: a given frame is not memory that this allocator manages.
    NotManaged(Frame),
    /// Exhaustion: a given frame is in use.
    Busy(Frame),
    /// Exhaustion: fewer frames are free than asked for.
    NoMemory,
    /// Exhaustion: what is left is for [`Class::Reserve`](crate::Class::Reserve).
    Reserved,
    /// Exhaustion: enough is free, but not in one piece where it was asked for.
    Fragmented,
    /// Corruption.
    Corrupt(Corruption),
}

impl AllocError {
    /// Whose fault it is.
    pub const fn blame(self) -> Blame {
        match self {
            Self::BadRequest | Self::NotManaged(_) => Blame::Caller,
            Self::Busy(_) | Self::NoMemory | Self::Reserved | Self::Fragmented => Blame::Exhaustion,
            Self::Corrupt(_) => Blame::Corruption,
        }
    }
}

/// Why nothing was freed. The allocator is as it was before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FreeError {
    /// Caller: no frame at all.
    Empty,
    /// Caller, a foreign free: the frame is not memory that this allocator manages.
    NotManaged(Frame),
    /// Caller, a double free: the frame is free already.
    DoubleFree(Frame),
    /// Caller, a partial free: the frame lies in an allocation that the range does not cover;
    /// [`split`](crate::FrameAllocator::split) or
    /// [`free_part`](crate::FrameAllocator::free_part) first.
    PartOf {
        /// The frame.
        frame: Frame,
        /// The allocation it belongs to.
        block: FrameRange,
    },
    /// Caller: others still hold references to the allocation.
    Shared {
        /// Its first frame.
        frame: Frame,
        /// References, above one.
        refs: u32,
    },
    /// Caller: the allocation is still mapped somewhere.
    Mapped {
        /// Its first frame.
        frame: Frame,
        /// Mappings.
        maps: u32,
    },
    /// Corruption.
    Corrupt(Corruption),
}

impl FreeError {
    /// Whose fault it is.
    pub const fn blame(self) -> Blame {
        match self {
            Self::Corrupt(_) => Blame::Corruption,
            _ => Blame::Caller,
        }
    }
}

/// Why memory was not taken off line or brought back. All of them are the caller's fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OfflineError {
    /// No frame at all.
    Empty,
    /// The allocator was set up without a frame table, which tells whose the frames are.
    NoTable,
    /// The frame is not memory that this allocator manages.
    NotManaged(Frame),
    /// The range overlaps this one, which is on its way or off line already.
    Overlaps(FrameRange),
    /// No more ranges than [`MAX_OFFLINE`](crate::MAX_OFFLINE) can be off line.
    TooMany,
    /// The range is not one that was taken off line.
    NotOffline(FrameRange),
}

/// Why the frame table could not do as asked. The entry is as it was before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableError {
    /// Caller: the allocator was set up without a frame table.
    NoTable,
    /// Caller: the frame is not managed memory.
    NotManaged(Frame),
    /// Caller: no allocation begins at the frame.
    NotAHead(Frame),
    /// Caller: the count would go below zero.
    Underflow(Frame),
    /// Exhaustion: the count would exceed 2^31.
    TooMany(Frame),
}

impl TableError {
    /// Whose fault it is.
    pub const fn blame(self) -> Blame {
        match self {
            Self::TooMany(_) => Blame::Exhaustion,
            _ => Blame::Caller,
        }
    }
}

/// Why no allocator was set up. All of them are the caller's fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetupError {
    /// The ranges are not sorted and disjoint; this is the first that is not above its predecessor.
    Unsorted(FrameRange),
    /// A range ends above 2^40 frames (52 bits of physical address).
    TooHigh(FrameRange),
    /// The metadata storage is too small or not aligned; this is what is needed.
    Storage(Layout),
    /// More metadata than the address space holds.
    TooLarge,
    /// A node's number is not below [`MAX_NODES`](crate::MAX_NODES).
    NoSuchNode(crate::Node),
    /// The distances are not a square with a row for each node.
    Distances,
    /// This many [`Area`](crate::Area)s are needed.
    Areas(usize),
}

macro_rules! display_as_debug {
    ($($name:ty),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
        impl core::error::Error for $name {}
    )*};
}
display_as_debug!(Corruption, AllocError, FreeError, TableError, SetupError, OfflineError);
