//! Pages of files: the memory that a file system keeps its files in, and that programs map.
//!
//! A [`FilePage`] is one counted frame. Whoever keeps files in such pages has one set of frames for
//! reading, writing and mapping: a program's store to a shared mapping is in the file at once. A
//! file system holds one reference to each page, every mapping another; a page that leaves the file
//! lives on under its mappings until they are told to forget it
//! ([`AddressSpace::forget_object`](crate::AddressSpace::forget_object)).
//!
//! [`Frames`] makes pages of a platform's frames, [`HeapPages`] of the heap, for hosts without
//! frames: those cannot be mapped.
#![allow(unsafe_code)] // makes pages of heap memory

use alloc::alloc::{alloc_zeroed, dealloc};
use core::alloc::Layout;
use core::ptr::NonNull;

use pagoda_addr::Frame;
use pagoda_paging::{OutOfFrames, PageSize, Released};

use crate::memory::{self, PAGE};
use crate::{VmPlatform, fallible};

/// One page of a file, and the duty to give it back to the store that it came from.
#[must_use = "a page is given back to its store"]
#[derive(Debug)]
pub struct FilePage(u64);

/// Where the pages of files come from. Bytes are copied in and out, never lent: programs that map a
/// page change it at any moment. Offsets and lengths that leave the page are cut off at its end.
pub trait PageStore: Send + Sync {
    /// A page of zeroes.
    fn alloc(&self) -> Result<FilePage, OutOfFrames>;
    /// Takes a page back that came from this store.
    fn free(&self, page: FilePage);
    /// Copies from the page.
    fn read(&self, page: &FilePage, offset: usize, into: &mut [u8]);
    /// Copies to the page.
    fn write(&self, page: &FilePage, offset: usize, from: &[u8]);
    /// Clears a part of the page.
    fn clear(&self, page: &FilePage, offset: usize, len: usize);
    /// The frame, with a reference more for the caller; none where pages cannot be mapped.
    fn share(&self, page: &FilePage) -> Option<Frame>;
}

/// Pages of a platform's frames: those of programs, refused at the watermark.
#[derive(Clone, Copy, Debug)]
pub struct Frames<P>(pub P);

impl<P: VmPlatform> Frames<P> {
    /// Invariant *of-this-store*: pages are made by `alloc` alone and given back to their store, so
    /// the number is that of a frame to which the page holds a reference.
    fn frame(page: &FilePage) -> Frame {
        Frame::new(page.0).unwrap_or_default()
    }
}

impl<P: VmPlatform + Send + Sync> PageStore for Frames<P> {
    fn alloc(&self) -> Result<FilePage, OutOfFrames> {
        fallible::step().map_err(|_| OutOfFrames)?;
        self.0.alloc_page(true).map(|frame| FilePage(frame.number()))
    }

    fn free(&self, page: FilePage) {
        let frame = Self::frame(&page);
        self.0.release(Released::Page { frame, size: PageSize::K4 });
    }

    fn read(&self, page: &FilePage, offset: usize, into: &mut [u8]) {
        memory::read(&self.0, Self::frame(page), offset, into);
    }

    fn write(&self, page: &FilePage, offset: usize, from: &[u8]) {
        memory::write(&self.0, Self::frame(page), offset, from);
    }

    fn clear(&self, page: &FilePage, offset: usize, len: usize) {
        memory::clear(&self.0, Self::frame(page), offset, len);
    }

    fn share(&self, page: &FilePage) -> Option<Frame> {
        let frame = Self::frame(page);
        self.0.share(frame);
        Some(frame)
    }
}

/// Pages of the heap.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeapPages;

const LAYOUT: Layout = match Layout::from_size_align(PAGE, PAGE) {
    Ok(layout) => layout,
    Err(_) => Layout::new::<u8>(),
};

impl HeapPages {
    /// The byte at `offset`, which is inside the page, and how many of `len` bytes are.
    fn at(page: &FilePage, offset: usize, len: usize) -> (*mut u8, usize) {
        let offset = offset % PAGE;
        let start = core::ptr::with_exposed_provenance_mut::<u8>(page.0 as usize);
        (start.wrapping_add(offset), len.min(PAGE - offset))
    }
}

impl PageStore for HeapPages {
    fn alloc(&self) -> Result<FilePage, OutOfFrames> {
        fallible::step().map_err(|_| OutOfFrames)?;
        // SAFETY: the layout is that of a page, not of nothing.
        let start = NonNull::new(unsafe { alloc_zeroed(LAYOUT) }).ok_or(OutOfFrames)?;
        Ok(FilePage(start.as_ptr().expose_provenance() as u64))
    }

    fn free(&self, page: FilePage) {
        let (start, _) = Self::at(&page, 0, 0);
        // SAFETY: *of-this-store*: from `alloc`, with this layout, and the page is gone now.
        unsafe { dealloc(start, LAYOUT) };
    }

    fn read(&self, page: &FilePage, offset: usize, into: &mut [u8]) {
        let (from, len) = Self::at(page, offset, into.len());
        // SAFETY: *of-this-store*: `len` bytes at `from` lie inside the page, which nobody lends.
        unsafe { core::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), len) };
    }

    fn write(&self, page: &FilePage, offset: usize, from: &[u8]) {
        let (to, len) = Self::at(page, offset, from.len());
        // SAFETY: as in `read`.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to, len) };
    }

    fn clear(&self, page: &FilePage, offset: usize, len: usize) {
        let (at, len) = Self::at(page, offset, len);
        // SAFETY: as in `read`.
        unsafe { at.write_bytes(0, len) };
    }

    fn share(&self, _: &FilePage) -> Option<Frame> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_stay_in_their_page(store: &impl PageStore) {
        let page = store.alloc().unwrap();
        let other = store.alloc().unwrap();
        store.write(&page, 4090, b"0123456789");
        let mut seen = [1; 8];
        store.read(&page, 4088, &mut seen);
        assert_eq!(&seen, b"\0\x00012345");
        store.clear(&page, 4091, 100);
        store.read(&page, 4088, &mut seen);
        assert_eq!(&seen, b"\0\x000\0\0\0\0\0");
        store.read(&other, 0, &mut seen);
        assert_eq!(seen, [0; 8]);
        store.free(page);
        store.free(other);
    }

    #[test]
    fn heap_pages_keep_what_is_written_and_no_more() {
        bytes_stay_in_their_page(&HeapPages);
    }

    #[test]
    fn frames_keep_what_is_written_and_come_back() {
        let host = crate::tests::Host::new(8);
        bytes_stay_in_their_page(&Frames(&host));
        assert_eq!(host.used(), 0);
    }
}
