//! What a host kernel supplies.
#![allow(unsafe_code)] // declares an unsafe trait; contains no unsafe block

use lock_api::RawMutex;
use pagoda_addr::Frame;
use pagoda_paging::{OutOfFrames, Platform};

use crate::Commit;

/// Frames with reference counts for the pages of programs, and two more locks.
///
/// A frame comes from [`alloc_page`](Self::alloc_page) with one reference;
/// [`share`](Self::share) adds one; each `Released::Page` that reaches
/// [`Platform::release`] takes one away, and the last one frees
/// the frame.
///
/// Lock order: [`RegionLock`](Self::RegionLock), then [`ObjectLock`](Self::ObjectLock), then
/// [`Platform::Lock`], then the host's allocators. A flush happens
/// with the region lock held: where a flush waits for other CPUs, whoever spins on any of these
/// locks has to serve the requests of others meanwhile.
///
/// # Safety
/// A frame from `alloc_page` is managed RAM of the `PhysMap`, all zero if that was asked for, and
/// nobody else uses it until its last reference is released. `refs` is exact at one: while it
/// answers 1 for a frame that the caller holds a reference to, nobody else holds one.
pub unsafe trait VmPlatform: Platform {
    /// The lock of one address space's regions.
    type RegionLock: RawMutex;
    /// The lock of one shared object.
    type ObjectLock: RawMutex;

    /// A frame with one reference. The class of programs: refused at the watermark.
    fn alloc_page(&self, zeroed: bool) -> Result<Frame, OutOfFrames>;

    /// One more reference to a frame that the caller holds a reference to.
    fn share(&self, frame: Frame);

    /// As [`share`](Self::share) for each of `frames`, for hosts that do many cheaper.
    fn share_many(&self, frames: &[Frame]) {
        for &frame in frames {
            self.share(frame);
        }
    }

    /// References to the frame now.
    fn refs(&self, frame: Frame) -> u32;

    /// A page of zeroes that nobody ever writes, the same each time, if the host has one: reading
    /// memory that was never written maps it. It belongs to the host: `share` and `release` of it do
    /// nothing, and `refs` may answer anything.
    #[inline]
    fn zero_page(&self) -> Option<Frame> {
        None
    }

    /// The books of what is promised to programs, always the same; none: everything may be.
    #[inline]
    fn commit(&self) -> Option<&Commit> {
        None
    }
}

// SAFETY: a reference forwards to an implementer that keeps the contract.
unsafe impl<P: VmPlatform + ?Sized> VmPlatform for &P {
    type RegionLock = P::RegionLock;
    type ObjectLock = P::ObjectLock;

    #[inline]
    fn alloc_page(&self, zeroed: bool) -> Result<Frame, OutOfFrames> {
        (**self).alloc_page(zeroed)
    }
    #[inline]
    fn share(&self, frame: Frame) {
        (**self).share(frame);
    }
    #[inline]
    fn share_many(&self, frames: &[Frame]) {
        (**self).share_many(frames);
    }
    #[inline]
    fn refs(&self, frame: Frame) -> u32 {
        (**self).refs(frame)
    }
    #[inline]
    fn zero_page(&self) -> Option<Frame> {
        (**self).zero_page()
    }
    #[inline]
    fn commit(&self) -> Option<&Commit> {
        (**self).commit()
    }
}
