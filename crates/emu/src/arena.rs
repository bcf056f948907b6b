//! Host memory at a pretended physical address.
#![allow(unsafe_code)] // implements the unsafe trait `PhysMap`

use pagoda_addr::{Frame, FrameRange, PhysAddr, PhysMap};
use pagoda_paging::{OutOfFrames, PageSize};

/// Host memory at a pretended physical address, with a plain frame allocator and reference counts.
pub struct PhysArena {
    range: FrameRange,
}

impl PhysArena {
    /// `frames` frames, the first of which pretends to be `first`.
    pub fn new(_first: Frame, _frames: u64) -> Self {
        todo!()
    }

    /// All frames.
    pub fn range(&self) -> FrameRange {
        self.range
    }

    /// A frame with one reference, zeroed or full of junk.
    pub fn alloc(&self, _zeroed: bool) -> Result<Frame, OutOfFrames> {
        todo!()
    }

    /// `size.pages()` aligned consecutive frames with one reference each.
    pub fn alloc_block(&self, _size: PageSize, _zeroed: bool) -> Result<Frame, OutOfFrames> {
        todo!()
    }

    /// One reference more.
    pub fn share(&self, _frame: Frame) {
        todo!()
    }

    /// References to the frame; 0 when it is free.
    pub fn refs(&self, _frame: Frame) -> u32 {
        todo!()
    }

    /// One reference less; true when it was the last. The frame is then filled with junk.
    pub fn release(&self, _frame: Frame) -> bool {
        todo!()
    }

    /// Frames in use.
    pub fn used(&self) -> u64 {
        todo!()
    }

    /// Lets the `count`-th allocation from now (0: the next) fail, once; `None`: no more failures.
    pub fn fail_after(&self, _count: Option<u64>) {
        todo!()
    }
}

// SAFETY: (skeleton)
unsafe impl PhysMap for PhysArena {
    fn ptr(&self, _addr: PhysAddr) -> *mut u8 {
        todo!()
    }
}
