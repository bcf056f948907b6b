//! What can go wrong, and who is to blame.

use core::fmt;

use crate::guard::{Harm, Track};

/// Why an allocation did not happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeapError {
    /// The caller asks for more than any heap could give (size or alignment above 1 GiB).
    TooLarge,
    /// The page source has nothing left. Exhaustion: try later.
    OutOfPages,
    /// The cache has as many objects out as its limit allows. Exhaustion: try later.
    Limit,
    /// The pointer to be resized is not a live block, or the heap's own records are damaged. The
    /// [`Report`] hook has been told already.
    Misuse(MisuseKind),
}

impl fmt::Display for HeapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => f.write_str("the request is larger than the heap can ever serve"),
            Self::OutOfPages => f.write_str("the page source has no pages left"),
            Self::Limit => f.write_str("the cache is at its limit"),
            Self::Misuse(kind) => f.write_str(kind.name()),
        }
    }
}

impl core::error::Error for HeapError {}

/// What somebody did to the heap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum MisuseKind {
    /// A block that is free already was freed.
    DoubleFree,
    /// A pointer that this heap never gave out was freed.
    Foreign,
    /// A pointer into the middle of a block, or between blocks, was freed.
    Interior,
    /// A block was freed with a layout that it was not allocated with.
    WrongLayout,
    /// An object of a cache was freed to another cache or to the general heap, or the reverse.
    WrongCache,
    /// The heap's own records do not agree: somebody wrote over them.
    Damaged,
    /// In a debug mode: somebody wrote in front of a block.
    Underflow,
    /// In a debug mode: somebody wrote behind a block.
    Overflow,
    /// In a debug mode: somebody wrote to a block after it was freed.
    UseAfterFree,
    /// A cache was dropped while objects of it were live.
    Leak,
}

impl MisuseKind {
    /// A few words for a message.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DoubleFree => "double free",
            Self::Foreign => "free of a foreign pointer",
            Self::Interior => "free of an interior pointer",
            Self::WrongLayout => "free with a wrong layout",
            Self::WrongCache => "free to a wrong cache",
            Self::Damaged => "damaged heap records",
            Self::Underflow => "write in front of a block",
            Self::Overflow => "write behind a block",
            Self::UseAfterFree => "write after free",
            Self::Leak => "leaked objects",
        }
    }
}

impl fmt::Display for MisuseKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl core::error::Error for MisuseKind {}

/// A misuse of the heap and its evidence. The heap has changed nothing: the block, if there is one,
/// is as it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Misuse {
    /// What was done.
    pub kind: MisuseKind,
    /// The pointer that was handed in.
    pub address: usize,
    /// The cache or size class that the memory there belongs to; empty when it belongs to none.
    pub cache: &'static str,
    /// Where the block that holds `address` begins; 0 when there is none.
    pub block: usize,
    /// The block's size in bytes; 0 when there is none. For a leak: the number of live objects.
    pub size: usize,
    /// In a debug mode: what the damage looks like.
    pub harm: Option<Harm>,
    /// In a debug mode with tracks: who allocated the block.
    pub allocated: Option<Track>,
    /// In a debug mode with tracks: who freed it.
    pub freed: Option<Track>,
}

impl Misuse {
    /// A misuse of an address at which there is no block.
    pub(crate) const fn at(kind: MisuseKind, address: usize) -> Self {
        Self {
            kind,
            address,
            cache: "",
            block: 0,
            size: 0,
            harm: None,
            allocated: None,
            freed: None,
        }
    }
}

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, address, cache, block, size, .. } = self;
        write!(f, "heap: {}", kind.name())?;
        match kind {
            MisuseKind::Leak => {
                write!(f, ": {size} objects of {cache} are still live, one at {block:#x}")?;
                return match self.allocated {
                    Some(track) => write!(f, "; allocated {track}"),
                    None => Ok(()),
                };
            }
            MisuseKind::Foreign => return write!(f, ": {address:#x} is not the heap's"),
            _ => write!(f, ": {address:#x}")?,
        }
        if *block != 0 {
            let offset = address.wrapping_sub(*block);
            write!(f, " is byte {offset} of the {size}-byte block at {block:#x}")?;
        }
        if !cache.is_empty() {
            write!(f, " of {cache}")?;
        }
        if let Some(harm) = self.harm {
            write!(f, "; {harm}")?;
        }
        if let Some(track) = self.allocated {
            write!(f, "; allocated {track}")?;
        }
        if let Some(track) = self.freed {
            write!(f, "; freed {track}")?;
        }
        Ok(())
    }
}

impl core::error::Error for Misuse {}

/// Told about every misuse before the call that found it returns. No lock of the heap is held.
///
/// A kernel prints the evidence and stops; when the hook returns, the heap has done nothing (it
/// leaks rather than guesses) and the call returns the kind of misuse as an error where it can.
pub trait Report {
    /// Somebody misused the heap.
    fn misuse(&self, misuse: &Misuse);

    /// For debug modes with tracks: when it is (in any unit), and the return addresses of the
    /// callers into `frames`, innermost first. No lock of the heap is held.
    fn track(&self, frames: &mut [usize]) -> u64 {
        let _ = frames;
        0
    }
}

/// Panics with the evidence.
#[derive(Clone, Copy, Debug, Default)]
pub struct PanicReport;

impl Report for PanicReport {
    fn misuse(&self, misuse: &Misuse) {
        panic!("{misuse}");
    }
}

impl<P: Report + ?Sized> Report for &P {
    fn misuse(&self, misuse: &Misuse) {
        (**self).misuse(misuse);
    }
    fn track(&self, frames: &mut [usize]) -> u64 {
        (**self).track(frames)
    }
}
