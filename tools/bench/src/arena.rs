//! Memory for allocators under test: an arena of known size, and a page source over it.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::AtomicU8;

use pagoda_heap::{Order, OutOfPages, PageSource, PageTags};

/// Bytes, aligned to 2 MiB, touched once so that page faults stay out of the figures; in large pages
/// where the system gives any, as a kernel's direct map is.
pub struct Arena {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: only an owner of memory; what is done with it is the user's business.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// `bytes` bytes, touched.
    pub fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes, 2 << 20).expect("a layout");
        // SAFETY: `bytes` is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).expect("memory for an arena");
        // A wish; what comes of it is the same for everybody who is measured.
        // SAFETY: the whole arena is ours.
        unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        // SAFETY: the whole arena is ours.
        unsafe { start.write_bytes(1, bytes) };
        Self { start, bytes }
    }

    /// The first byte.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// The size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let layout = Layout::from_size_align(self.bytes, 2 << 20).expect("a layout");
        // SAFETY: allocated with this layout in `new`.
        unsafe { dealloc(self.start.as_ptr(), layout) };
    }
}

/// A page source over an arena: a plain binary buddy. Its tags lie in the arena's first bytes, so
/// that whoever fills the arena pays for them.
pub struct Pages {
    arena: Arena,
    tags: &'static [AtomicU8],
    free: Mutex<Vec<Vec<usize>>>,
}

const ORDERS: usize = 15;

impl Pages {
    /// All of `arena` but the tags.
    pub fn new(arena: Arena) -> Self {
        let tag_count = PageTags::required(arena.bytes());
        let tag_bytes = tag_count.next_multiple_of(4096);
        // SAFETY: inside the arena, which lives as long as `self` (the slice does not escape); all
        // bytes are valid as atomics once cleared.
        let tags = unsafe {
            arena.start().write_bytes(0, tag_bytes);
            std::slice::from_raw_parts(arena.start().as_ptr().cast(), tag_count)
        };
        let mut free = vec![Vec::new(); ORDERS];
        let (mut page, end) = (tag_bytes / 4096, arena.bytes() / 4096);
        while page < end {
            let mut order = (page.trailing_zeros() as usize).min(ORDERS - 1);
            while page + (1 << order) > end {
                order -= 1;
            }
            free[order].push(page);
            page += 1 << order;
        }
        for list in &mut free {
            list.reverse();
        }
        Self { arena, tags, free: Mutex::new(free) }
    }
}

// SAFETY: blocks come from disjoint, naturally aligned pieces of the arena, each given to one owner
// until it comes back; the tags are a flat array over the arena, zeroed at first.
unsafe impl PageSource for Pages {
    fn alloc_pages(&self, order: Order) -> Result<NonNull<u8>, OutOfPages> {
        let wanted = usize::from(order.get());
        let mut free = self.free.lock().expect("no panic inside");
        let from = (wanted..ORDERS).find(|&order| !free[order].is_empty()).ok_or(OutOfPages)?;
        let page = free[from].pop().ok_or(OutOfPages)?;
        for smaller in (wanted..from).rev() {
            free[smaller].push(page + (1 << smaller));
        }
        // SAFETY: `page` lies inside the arena.
        Ok(unsafe { self.arena.start().add(page * 4096) })
    }

    unsafe fn free_pages(&self, start: NonNull<u8>, order: Order) {
        let mut page = (start.addr().get() - self.arena.start().addr().get()) / 4096;
        let mut order = usize::from(order.get());
        let mut free = self.free.lock().expect("no panic inside");
        while order + 1 < ORDERS {
            let buddy = page ^ (1 << order);
            // Linear, but short: lists are cut down by every merge.
            let Some(at) = free[order].iter().rposition(|&other| other == buddy) else { break };
            free[order].swap_remove(at);
            page &= !(1 << order);
            order += 1;
        }
        free[order].push(page);
    }

    #[inline]
    fn tag(&self, address: usize) -> Option<&AtomicU8> {
        PageTags::new(self.arena.start().addr().get(), self.tags).get(address)
    }
}
