//! What an allocation returns.

#![allow(unsafe_code)] // declares an unsafe function; contains no unsafe block

use core::mem;

use pagoda_addr::{Frame, FrameRange};

/// Frames that the holder owns and has to give back. Neither `Copy` nor `Clone`: there is one value
/// for each allocation. Give it back with [`FrameAllocator::free`](crate::FrameAllocator::free), or
/// take the duty out of the type system with [`into_range`](Self::into_range).
///
/// Dropping one loses the frames; debug builds panic instead.
#[must_use = "dropped frames are lost: free them, or call `into_range`"]
#[derive(PartialEq, Eq, Debug)]
pub struct OwnedFrames(FrameRange);

impl OwnedFrames {
    /// Only the allocator makes them, and only for frames that it has just taken.
    pub(crate) const fn new(range: FrameRange) -> Self {
        Self(range)
    }

    /// The allocation with these frames, for owners that remember them by number.
    ///
    /// # Safety
    /// The frames are one whole allocation of the allocator that they will be given back to, the
    /// caller owns it (by [`into_range`](Self::into_range)), and makes one such value for it.
    #[inline]
    pub const unsafe fn from_range(range: FrameRange) -> Self {
        Self(range)
    }

    /// The frames.
    #[inline]
    pub const fn range(&self) -> FrameRange {
        self.0
    }

    /// The first frame.
    #[inline]
    pub const fn start(&self) -> Frame {
        self.0.start()
    }

    /// How many frames.
    #[inline]
    pub const fn count(&self) -> u64 {
        self.0.count()
    }

    /// Only the numbers: from here on the caller remembers by itself that it owns them, and gives
    /// them back with [`FrameAllocator::free_range`](crate::FrameAllocator::free_range).
    #[inline]
    pub fn into_range(self) -> FrameRange {
        // `ManuallyDrop` rather than `forget`: in release builds there is no `Drop` to forget.
        mem::ManuallyDrop::new(self).0
    }
}

#[cfg(debug_assertions)]
impl Drop for OwnedFrames {
    fn drop(&mut self) {
        #[cfg(test)]
        if std::thread::panicking() {
            return;
        }
        panic!("owned frames {:?} were dropped instead of freed", self.0);
    }
}
