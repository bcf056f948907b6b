//! Where the kernel's heap gets its pages, and where it keeps its tags.
#![allow(unsafe_code)] // hands out memory

use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU8;

use pagoda_addr::{FrameRange, Order, PAGE_SIZE, PageRange, PhysAddr, PhysMap, VirtAddr};
use pagoda_frames::{Class, Request};
use pagoda_heap::{CHUNK_ORDER, OutOfPages, PageSource, TAG_SHIFT};
use pagoda_kva::Block;
use pagoda_sync::rank;

use super::host::{DirectMap, KERNEL, kind};
use super::layout::{DIRECT_MAP, HEAP_MEMORY};
use super::percpu;

/// The heap's tags, one for each KiB of RAM that the heap may have: tags over the direct map as two
/// words, so that every `kfree` finds its byte in seven instructions.
///
/// *tags-first*: they are set once, by the boot CPU, before the frame allocator stands, hence before
/// the heap has a byte and before there is another CPU.
pub(crate) struct Tags {
    first: UnsafeCell<NonNull<AtomicU8>>,
    /// 0 until there are any.
    count: UnsafeCell<usize>,
}

// SAFETY: *tags-first*: only read when there is a second CPU.
unsafe impl Sync for Tags {}

impl Tags {
    pub(crate) const fn none() -> Self {
        Self { first: UnsafeCell::new(NonNull::dangling()), count: UnsafeCell::new(0) }
    }

    /// These from now on, for good.
    ///
    /// # Safety
    /// *tags-first*.
    pub(crate) unsafe fn set(&self, tags: &'static [AtomicU8]) {
        // SAFETY: the caller's promise: nobody else is here.
        unsafe {
            *self.first.get() = NonNull::from(tags).cast();
            *self.count.get() = tags.len();
        }
    }

    #[inline]
    fn get(&self, address: usize) -> Option<&'static AtomicU8> {
        let index = address.wrapping_sub(DIRECT_MAP as usize) >> TAG_SHIFT;
        // SAFETY: *tags-first*: nobody writes now; below the count lie tags, which stay.
        unsafe { (index < *self.count.get()).then(|| (*self.first.get()).add(index).as_ref()) }
    }
}

/// The heap's pages: frames through the direct map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeapPages;

impl HeapPages {
    fn alloc(self, order: Order, zeroed: bool) -> Result<NonNull<u8>, OutOfPages> {
        let frames = KERNEL.frames.get().ok_or(OutOfPages)?;
        let request = Request::order(order).kind(kind::HEAP).below(PhysAddr::new(HEAP_MEMORY));
        let request = if zeroed { request.zeroed() } else { request };
        // Slabs may use the reserve: the kernel needs a few words to end a program for want of
        // memory. Larger blocks may not: they hold what programs store.
        let class = if order <= CHUNK_ORDER { Class::Reserve } else { Class::Normal };
        let owned = frames.alloc(request.class(class)).map_err(|_| OutOfPages)?;
        NonNull::new(DirectMap.ptr(owned.into_range().start().start())).ok_or(OutOfPages)
    }
}

// SAFETY: blocks are runs of frames that the frame allocator gave out, seen through the direct map,
// aligned to their size; tags are a zeroed array over all memory that `alloc` asks for.
unsafe impl PageSource for HeapPages {
    fn alloc_pages(&self, order: Order) -> Result<NonNull<u8>, OutOfPages> {
        self.alloc(order, false)
    }

    fn alloc_zeroed_pages(&self, order: Order) -> Result<NonNull<u8>, OutOfPages> {
        self.alloc(order, true)
    }

    unsafe fn free_pages(&self, start: NonNull<u8>, order: Order) {
        let start = PhysAddr::new(start.as_ptr() as u64 - DIRECT_MAP).block();
        match FrameRange::new(start, order.count()) {
            Some(range) => KERNEL.give_back(range),
            None => unreachable!("the direct map ends far below the last frame"),
        }
    }

    fn map_pages(&self, pages: usize, zeroed: bool) -> Result<NonNull<u8>, OutOfPages> {
        // Whoever asks with a page table locked cannot have another one changed.
        let ranges = KERNEL.ranges.get().filter(|_| percpu::may_take(rank::PAGE_TABLE));
        let bytes = (pages as u64).checked_mul(PAGE_SIZE).ok_or(OutOfPages)?;
        let block = ranges.ok_or(OutOfPages)?.alloc_contiguous(bytes, zeroed);
        let block = block.map_err(|_| OutOfPages)?;
        // The block has no destructor: its pages are remembered by the heap, see `unmap_pages`.
        NonNull::new(block.bytes().start().as_u64() as *mut u8).ok_or(OutOfPages)
    }

    unsafe fn unmap_pages(&self, start: NonNull<u8>, pages: usize) {
        let first = VirtAddr::new(start.as_ptr() as u64).block();
        let (Some(ranges), Some(pages)) =
            (KERNEL.ranges.get(), PageRange::new(first, pages as u64))
        else {
            unreachable!("mapped by the kernel's ranges");
        };
        // SAFETY: the caller's promise: pages of a block that `map_pages` let go of.
        if let Err(error) = ranges.free_contiguous(unsafe { Block::remembered(pages) }) {
            panic!("kernel ranges: {error}");
        }
    }

    #[inline]
    fn tag(&self, address: usize) -> Option<&AtomicU8> {
        KERNEL.tags.get(address)
    }
}
