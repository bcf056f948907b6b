//! What a host kernel supplies.
#![allow(unsafe_code)] // declares an unsafe trait

use pagoda_addr::Frame;

/// There is no frame for a user (or only the reserve is left).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfFrames;

/// Frames with reference counts, for the pages of programs.
///
/// # Safety
/// A frame that [`alloc_page`](Self::alloc_page) returns is managed RAM that nobody else uses until
/// as many releases as references have gone through the page table's `release`.
pub unsafe trait VmPlatform {
    /// A frame with one reference; all zero if `zeroed`. Refused at the watermark.
    fn alloc_page(&self, zeroed: bool) -> Result<Frame, OutOfFrames>;

    /// One more reference.
    fn share(&self, frame: Frame);

    /// The references now.
    fn refs(&self, frame: Frame) -> u32;

    /// May `pages` more pages of memory be promised? The heuristic of Linux refuses only what
    /// exceeds all of RAM.
    fn may_commit(&self, pages: u64) -> bool {
        let _ = pages;
        true
    }
}
