//! The heaps that ours is measured beside, all behind one face. A heap that needs a lock gets the
//! same one.

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, Ordering};

use pagoda_sync::SpinMutex;

use crate::arena::Arena;

/// A heap that needs exclusive access.
pub trait SingleHeap {
    /// A block of `layout`, or null.
    ///
    /// # Safety
    /// The layout's size is not zero.
    unsafe fn alloc(&mut self, layout: Layout) -> *mut u8;
    /// Takes a block back.
    ///
    /// # Safety
    /// Allocated here with the same layout, not yet freed.
    unsafe fn free(&mut self, ptr: *mut u8, layout: Layout);
}

/// A heap behind one spinning lock. Keeps its arena alive.
pub struct Locked<H>(SpinMutex<H>, #[allow(dead_code)] Option<Arena>);

// SAFETY: each peer is an allocator that keeps `GlobalAlloc`'s contract under exclusion.
unsafe impl<H: SingleHeap> GlobalAlloc for Locked<H> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { self.0.lock().alloc(layout) }
    }
    #[inline]
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { self.0.lock().free(ptr, layout) }
    }
}

/// talc.
pub type Talc = talc::base::Talc<talc::source::Manual, talc::DefaultBinning>;

impl SingleHeap for Talc {
    #[inline]
    unsafe fn alloc(&mut self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { self.allocate(layout) }.map_or(null_mut(), NonNull::as_ptr)
    }
    #[inline]
    unsafe fn free(&mut self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { self.deallocate(ptr, layout) }
    }
}

/// talc over an arena.
pub fn talc(arena: Arena) -> Locked<Talc> {
    let mut heap = Talc::new(talc::source::Manual);
    // SAFETY: the arena is nobody else's and lives as long as the heap.
    unsafe { heap.claim(arena.start().as_ptr(), arena.bytes()) }.expect("talc takes the arena");
    Locked(SpinMutex::new(heap), Some(arena))
}

/// rlsf: two-level segregated fit.
pub type Rlsf = rlsf::Tlsf<'static, u32, u32, 28, 32>;

impl SingleHeap for Rlsf {
    #[inline]
    unsafe fn alloc(&mut self, layout: Layout) -> *mut u8 {
        self.allocate(layout).map_or(null_mut(), NonNull::as_ptr)
    }
    #[inline]
    unsafe fn free(&mut self, ptr: *mut u8, layout: Layout) {
        if let Some(ptr) = NonNull::new(ptr) {
            // SAFETY: the caller's promise.
            unsafe { self.deallocate(ptr, layout.align()) }
        }
    }
}

/// rlsf over an arena.
pub fn rlsf(arena: Arena) -> Locked<Rlsf> {
    let mut heap = Rlsf::new();
    let block = NonNull::slice_from_raw_parts(arena.start(), arena.bytes());
    // SAFETY: the arena is nobody else's and lives as long as the heap.
    unsafe { heap.insert_free_block_ptr(block) }.expect("rlsf takes the arena");
    Locked(SpinMutex::new(heap), Some(arena))
}

/// One arena as dlmalloc's operating system: given once, never taken back.
pub struct Once {
    arena: Arena,
    given: AtomicBool,
}

// SAFETY: hands the whole arena out once.
unsafe impl dlmalloc::Allocator for Once {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        if size > self.arena.bytes() || self.given.swap(true, Ordering::Relaxed) {
            return (null_mut(), 0, 0);
        }
        (self.arena.start().as_ptr(), self.arena.bytes(), 1)
    }
    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        null_mut()
    }
    fn free_part(&self, _: *mut u8, _: usize, _: usize) -> bool {
        false
    }
    fn free(&self, _: *mut u8, _: usize) -> bool {
        false
    }
    fn can_release_part(&self, _: u32) -> bool {
        false
    }
    fn allocates_zeros(&self) -> bool {
        false
    }
    fn page_size(&self) -> usize {
        4096
    }
}

/// dlmalloc over an arena.
pub type Dlmalloc = dlmalloc::Dlmalloc<Once>;

impl SingleHeap for Dlmalloc {
    #[inline]
    unsafe fn alloc(&mut self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { self.malloc(layout.size(), layout.align()) }
    }
    #[inline]
    unsafe fn free(&mut self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { dlmalloc::Dlmalloc::free(self, ptr, layout.size(), layout.align()) }
    }
}

/// dlmalloc over an arena.
pub fn dlmalloc(arena: Arena) -> Locked<Dlmalloc> {
    let system = Once { arena, given: AtomicBool::new(false) };
    Locked(SpinMutex::new(dlmalloc::Dlmalloc::new_with_allocator(system)), None)
}

/// The binary buddy of buddy_system_allocator.
pub type Buddy = buddy_system_allocator::Heap<32>;

impl SingleHeap for Buddy {
    #[inline]
    unsafe fn alloc(&mut self, layout: Layout) -> *mut u8 {
        buddy_system_allocator::Heap::alloc(self, layout).map_or(null_mut(), NonNull::as_ptr)
    }
    #[inline]
    unsafe fn free(&mut self, ptr: *mut u8, layout: Layout) {
        if let Some(ptr) = NonNull::new(ptr) {
            // SAFETY: the caller's promise.
            unsafe { self.dealloc(ptr, layout) }
        }
    }
}

/// buddy_system_allocator over an arena.
pub fn buddy(arena: Arena) -> Locked<Buddy> {
    let mut heap = Buddy::new();
    // SAFETY: the arena is nobody else's and lives as long as the heap.
    unsafe { heap.init(arena.start().as_ptr() as usize, arena.bytes()) };
    Locked(SpinMutex::new(heap), Some(arena))
}

/// The first-fit list of linked_list_allocator.
pub type List = linked_list_allocator::Heap;

impl SingleHeap for List {
    #[inline]
    unsafe fn alloc(&mut self, layout: Layout) -> *mut u8 {
        self.allocate_first_fit(layout).map_or(null_mut(), NonNull::as_ptr)
    }
    #[inline]
    unsafe fn free(&mut self, ptr: *mut u8, layout: Layout) {
        if let Some(ptr) = NonNull::new(ptr) {
            // SAFETY: the caller's promise.
            unsafe { self.deallocate(ptr, layout) }
        }
    }
}

/// linked_list_allocator over an arena.
pub fn list(arena: Arena) -> Locked<List> {
    // SAFETY: the arena is nobody else's and lives as long as the heap.
    let heap = unsafe { List::new(arena.start().as_ptr(), arena.bytes()) };
    Locked(SpinMutex::new(heap), Some(arena))
}
