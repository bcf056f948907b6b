//! Where pages come from, and the byte per KiB by which the heap knows its own again.
#![allow(unsafe_code)] // declares an unsafe trait and forwards it for references

use core::ptr::NonNull;
use core::sync::atomic::AtomicU8;

use pagoda_addr::Order;

/// log2 of the bytes that one tag stands for.
pub const TAG_SHIFT: u32 = 10;

/// The source has no pages to give now. Exhaustion: nobody's fault, try later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfPages;

/// Gives whole pages to a heap and takes them back; keeps one byte of *tag* for each KiB of the
/// memory that it may ever give.
///
/// The tags are how `kfree(ptr)` learns what `ptr` is: one load, no search. The heap writes them;
/// the host only supplies the storage. A kernel whose pages live in a direct map keeps one flat
/// array over it (a thousandth of RAM; virtual memory that is backed where RAM is will do) and
/// answers [`tag`](Self::tag) through [`PageTags`].
///
/// All methods but `tag` are called without any lock of the heap held, so a source may reclaim, and
/// may even come back to the heap to do so.
///
/// # Safety
/// - A successful allocation returns memory of the promised size that nobody else uses until it is
///   given back, readable and writable, aligned to its own size (for runs: to the alignment asked
///   for), with provenance over all of it.
/// - For every byte of such memory, [`tag`](Self::tag) returns the same `Some` each time. Two
///   addresses in different KiB never share a tag. No tag is ever written by anybody but one heap,
///   and all are 0 before its first use.
pub unsafe trait PageSource {
    /// 2^`order` pages, contiguous, aligned to their size. Contents arbitrary.
    fn alloc_pages(&self, order: Order) -> Result<NonNull<u8>, OutOfPages>;

    /// Takes 2^`order` pages back.
    ///
    /// # Safety
    /// `start` and `order` are those of one [`alloc_pages`](Self::alloc_pages) or
    /// [`alloc_zeroed_pages`](Self::alloc_zeroed_pages) not yet given back, and nobody uses the
    /// memory any more.
    unsafe fn free_pages(&self, start: NonNull<u8>, order: Order);

    /// The tag of the KiB that holds `address`; none where this source never has memory. Any
    /// address may be asked for, also nonsense. On the path of every `kfree` without a size.
    fn tag(&self, address: usize) -> Option<&AtomicU8>;

    /// As [`alloc_pages`](Self::alloc_pages), contents zero. For sources that have zeroed pages in
    /// stock.
    fn alloc_zeroed_pages(&self, order: Order) -> Result<NonNull<u8>, OutOfPages> {
        let start = self.alloc_pages(order)?;
        // SAFETY: just received, of this size.
        unsafe { start.write_bytes(0, order.bytes() as usize) };
        Ok(start)
    }

    /// As [`alloc_pages`](Self::alloc_pages), and whether the contents are known to be zero, for
    /// sources that know (fresh memory of a hypervisor or of a host system, zeroed pages in stock).
    /// Asked for the chunks that blocks are cut from: what nobody has used yet need not be cleared
    /// for [`kalloc_zeroed`](crate::Heap::kalloc_zeroed).
    fn alloc_known_pages(&self, order: Order) -> Result<(NonNull<u8>, bool), OutOfPages> {
        self.alloc_pages(order).map(|start| (start, false))
    }

    /// `pages` pages of 4 KiB one behind the other, with a page in front and one behind at which
    /// every access faults; zeroed if asked for. For sources that can map: the default has none. The
    /// memory has no tags.
    fn map_pages(&self, pages: usize, zeroed: bool) -> Result<NonNull<u8>, OutOfPages> {
        let _ = (pages, zeroed);
        Err(OutOfPages)
    }

    /// Takes mapped pages back; every access to them faults from now on, for a while if possible.
    ///
    /// # Safety
    /// `start` and `pages` are those of one [`map_pages`](Self::map_pages) not yet given back, and
    /// nobody uses the memory any more.
    unsafe fn unmap_pages(&self, start: NonNull<u8>, pages: usize) {
        let _ = (start, pages);
    }

    /// Makes a run that this source gave, of order `from`, one of order `to` where it stands, if
    /// `start` is aligned to that size and the pages behind are free: they are the heap's now, and
    /// the whole comes back as one run. For sources that can; the default cannot.
    fn grow_pages(&self, start: NonNull<u8>, from: Order, to: Order) -> Result<(), OutOfPages> {
        let _ = (start, from, to);
        Err(OutOfPages)
    }
}

// SAFETY: a reference forwards to an implementer that keeps the contract.
unsafe impl<S: PageSource + ?Sized> PageSource for &S {
    fn alloc_pages(&self, order: Order) -> Result<NonNull<u8>, OutOfPages> {
        (**self).alloc_pages(order)
    }
    unsafe fn free_pages(&self, start: NonNull<u8>, order: Order) {
        // SAFETY: the caller's promise, handed on.
        unsafe { (**self).free_pages(start, order) }
    }
    #[inline]
    fn tag(&self, address: usize) -> Option<&AtomicU8> {
        (**self).tag(address)
    }
    fn alloc_zeroed_pages(&self, order: Order) -> Result<NonNull<u8>, OutOfPages> {
        (**self).alloc_zeroed_pages(order)
    }
    fn alloc_known_pages(&self, order: Order) -> Result<(NonNull<u8>, bool), OutOfPages> {
        (**self).alloc_known_pages(order)
    }
    fn map_pages(&self, pages: usize, zeroed: bool) -> Result<NonNull<u8>, OutOfPages> {
        (**self).map_pages(pages, zeroed)
    }
    unsafe fn unmap_pages(&self, start: NonNull<u8>, pages: usize) {
        // SAFETY: the caller's promise, handed on.
        unsafe { (**self).unmap_pages(start, pages) }
    }
    fn grow_pages(&self, start: NonNull<u8>, from: Order, to: Order) -> Result<(), OutOfPages> {
        (**self).grow_pages(start, from, to)
    }
}

/// A flat array of tags over one window of addresses: what most sources answer
/// [`PageSource::tag`] with.
#[derive(Debug)]
pub struct PageTags<'t> {
    base: usize,
    tags: &'t [AtomicU8],
}

impl<'t> PageTags<'t> {
    /// Tags for `tags.len()` KiB from `base` (a multiple of the page size).
    pub const fn new(base: usize, tags: &'t [AtomicU8]) -> Self {
        Self { base, tags }
    }

    /// The number of tags for a window of `bytes`.
    pub const fn required(bytes: usize) -> usize {
        bytes.div_ceil(1 << TAG_SHIFT)
    }

    /// The tag of the KiB that holds `address`, if the window covers it.
    #[inline]
    pub fn get(&self, address: usize) -> Option<&'t AtomicU8> {
        self.tags.get(address.wrapping_sub(self.base) >> TAG_SHIFT)
    }
}
