//! The heap as an allocator of the crate `allocator-api2`, whose trait stands for the standard
//! library's until that is stable.
#![allow(unsafe_code)] // implements the unsafe trait `Allocator`

use core::alloc::Layout;
use core::ptr::NonNull;

use allocator_api2::alloc::{AllocError, Allocator};
use lock_api::RawMutex;
use pagoda_sync::Cpus;

use crate::{Heap, PageSource, Report};

/// A `Vec`, a `Box`, a map may live in a heap that is nobody's global one. Use it by reference.
///
/// ```standalone_crate
/// # #[allow(dead_code)] #[path = "testing.rs"] mod testing;
/// # use pagoda_heap::{Heap, Misuse, MisuseKind, OutOfPages, PageSource, PageTags, Report};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let pages = testing::Arena::new(64);
/// use allocator_api2::{boxed::Box, vec::Vec};
/// use pagoda_sync::{RawSpin, host::ThreadCpus};
///
/// let heap: Heap<_, _, RawSpin> = Heap::new(&pages, ThreadCpus);
/// let mut numbers = Vec::new_in(&heap);
/// numbers.try_reserve(1000).map_err(|_| "no memory for the numbers")?;
/// numbers.extend([1_u64, 2, 3]);
/// let sum = Box::try_new_in(numbers.iter().sum::<u64>(), &heap).map_err(|_| "nor for their sum")?;
/// assert_eq!(*sum, 6);
/// assert!(heap.stats().live > 1000 * 8);
/// drop((numbers, sum));
/// assert_eq!(heap.stats().live, 0);
/// # Ok(())
/// # }
/// ```
// SAFETY: blocks are as large and as aligned as their layout asks, and stay where they are, however
// the heap is moved, until they are freed: its records of them lie in the source's pages.
unsafe impl<S: PageSource, C: Cpus, R: RawMutex, P: Report> Allocator for Heap<S, C, R, P> {
    #[inline]
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        let block = self.kalloc(layout).map_err(|_| AllocError)?;
        Ok(NonNull::slice_from_raw_parts(block, layout.size()))
    }

    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        let block = self.kalloc_zeroed(layout).map_err(|_| AllocError)?;
        Ok(NonNull::slice_from_raw_parts(block, layout.size()))
    }

    #[inline]
    unsafe fn deallocate(&self, ptr: NonNull<u8>, layout: Layout) {
        // The misuse, if any, has been reported; there is nobody here to tell.
        // SAFETY: the caller's promise is the one that `kfree_sized` asks for.
        let _ = unsafe { self.kfree_sized(ptr, layout) };
    }

    unsafe fn grow(
        &self,
        ptr: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's promise.
        unsafe { self.change(ptr, old, new) }
    }

    unsafe fn grow_zeroed(
        &self,
        ptr: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's promise.
        let block = unsafe { self.change(ptr, old, new)? };
        let more = new.size().saturating_sub(old.size());
        // SAFETY: the block holds the new layout, which is the old one and so much more.
        unsafe { block.cast::<u8>().add(new.size() - more).write_bytes(0, more) };
        Ok(block)
    }

    unsafe fn shrink(
        &self,
        ptr: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's promise.
        unsafe { self.change(ptr, old, new) }
    }
}

impl<S: PageSource, C: Cpus, R: RawMutex, P: Report> Heap<S, C, R, P> {
    /// Another size, and perhaps another alignment.
    ///
    /// # Safety
    /// As for [`krealloc`](Self::krealloc).
    unsafe fn change(
        &self,
        ptr: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        let block = if old.align() == new.align() {
            // SAFETY: the caller's promise.
            unsafe { self.krealloc(ptr, old, new.size()) }.map_err(|_| AllocError)?
        } else {
            let block = self.kalloc(new).map_err(|_| AllocError)?;
            // SAFETY: both are live and hold so much; the new one is nobody else's. The old one is
            // given up.
            unsafe {
                block.copy_from_nonoverlapping(ptr, old.size().min(new.size()));
                self.deallocate(ptr, old);
            }
            block
        };
        Ok(NonNull::slice_from_raw_parts(block, new.size()))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use allocator_api2::boxed::Box;
    use allocator_api2::vec::Vec;

    use super::*;
    use crate::testing::{Arena, Ledger};
    use crate::tests::{heap, layout};

    #[test]
    fn collections_live_in_a_heap_and_leave_nothing() {
        let (arena, ledger) = (Arena::new(128), Ledger::default());
        let heap = heap(&arena, &ledger);
        let mut lists = Vec::new_in(&heap);
        for count in 0..if cfg!(miri) { 4 } else { 40_usize } {
            let mut list = Vec::new_in(&heap);
            list.extend((0..count * 20).map(|number| number as u32));
            list.truncate(count * 10);
            list.shrink_to_fit();
            lists.push(Box::new_in(list, &heap));
        }
        for (count, list) in lists.iter().enumerate() {
            assert!(list.iter().copied().eq(0..count as u32 * 10));
        }
        let mut huge = Vec::<u8, _>::new_in(&heap);
        assert!(huge.try_reserve(1 << 20).is_err(), "the arena is smaller than that");
        drop((lists, huge));
        assert_eq!(heap.stats().live, 0);
        heap.shrink();
        assert_eq!(arena.pages_out(), 0);
        assert!(ledger.is_clean());
    }

    #[test]
    fn blocks_grow_and_shrink_with_their_contents_also_to_other_alignments() {
        let (arena, ledger) = (Arena::new(128), Ledger::default());
        let heap = heap(&arena, &ledger);
        let steps = [(10, 1), (100, 8), (100, 64), (5000, 64), (40_000, 8), (300, 256), (20, 2)];
        let mut old = layout(4, 4);
        let mut block: NonNull<u8> = heap.allocate(old).unwrap().cast();
        // SAFETY: live, and so large.
        unsafe { block.write_bytes(7, 4) };
        for (size, align) in steps {
            let new = layout(size, align);
            // SAFETY: live, with this layout.
            let changed = unsafe {
                match new.size() >= old.size() {
                    true => heap.grow_zeroed(block, old, new),
                    false => Allocator::shrink(&heap, block, old, new),
                }
            }
            .unwrap();
            assert_eq!(changed.len(), size);
            block = changed.cast();
            assert_eq!(block.as_ptr() as usize % align, 0);
            // SAFETY: live, so large, and all of it was written.
            let bytes = unsafe { core::slice::from_raw_parts(block.as_ptr(), size) };
            assert!(bytes[..4] == [7; 4] && bytes[4..].iter().all(|&byte| byte == 0));
            old = new;
        }
        // SAFETY: live, with this layout.
        unsafe { heap.deallocate(block, old) };
        assert_eq!(heap.stats().live, 0);
        assert!(ledger.is_clean());
    }
}
