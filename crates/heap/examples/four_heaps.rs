//! Four heaps, each mending the drawback of the one before: bump, free list, slab, magazines.
//!
//! `cargo run -p pagoda-heap --example four_heaps`; the guide's chapter on the heap shows its parts.
#![allow(unsafe_code)] // hands out raw memory

use std::alloc::Layout;
use std::cell::Cell;
use std::ptr::{NonNull, null_mut};

use pagoda_heap::{Heap, Misuse, MisuseKind, OutOfPages, PageSource, PageTags, Report};
use pagoda_sync::RawSpin;
use pagoda_sync::host::ThreadCpus;

#[allow(dead_code)]
#[path = "../src/testing.rs"]
mod testing;

/// A page for the small heaps, aligned as pages are.
#[repr(align(4096))]
struct Page([u8; 4096]);

// ANCHOR: bump
/// The next free byte, and the end.
struct Bump {
    next: Cell<usize>,
    end: usize,
}

impl Bump {
    fn alloc(&self, layout: Layout) -> Option<usize> {
        let start = self.next.get().checked_next_multiple_of(layout.align())?;
        let end = start.checked_add(layout.size())?;
        if end > self.end {
            return None;
        }
        self.next.set(end);
        Some(start)
    }
}
// ANCHOR_END: bump

// ANCHOR: list
/// A free block holds the address of the next one: no memory is needed to remember free memory.
struct FreeList {
    first: Cell<*mut Link>,
    behind: Bump,
}

struct Link {
    next: *mut Link,
    size: usize,
}

impl FreeList {
    fn alloc(&self, size: usize) -> Option<*mut u8> {
        let size = size.max(size_of::<Link>()).next_multiple_of(align_of::<Link>());
        let mut place = self.first.as_ptr();
        // SAFETY: every block on the list is free, holds a link, and is nobody else's.
        unsafe {
            while !(*place).is_null() {
                let link = *place;
                if (*link).size >= size {
                    *place = (*link).next;
                    return Some(link.cast());
                }
                place = &raw mut (*link).next;
            }
        }
        let layout = Layout::from_size_align(size, align_of::<Link>()).ok()?;
        self.behind.alloc(layout).map(|start| start as *mut u8)
    }

    /// # Safety
    /// The block is this heap's, so large, and not used any more.
    unsafe fn free(&self, block: *mut u8, size: usize) {
        let size = size.max(size_of::<Link>()).next_multiple_of(align_of::<Link>());
        let link: *mut Link = block.cast();
        // SAFETY: the block is large enough for a link, and nobody's.
        unsafe { link.write(Link { next: self.first.get(), size }) };
        self.first.set(link);
    }
}
// ANCHOR_END: list

// ANCHOR: slab
/// A page cut into objects of one size; what is free is a bit, and nothing lies in the objects.
struct Slab {
    start: usize,
    object: usize,
    free: Cell<u64>,
}

impl Slab {
    fn new(page: &Page, object: usize) -> Self {
        let count = (page.0.len() / object).min(64);
        let free = if count == 64 { u64::MAX } else { (1 << count) - 1 };
        Self { start: page.0.as_ptr() as usize, object, free: Cell::new(free) }
    }

    fn alloc(&self) -> Option<usize> {
        let free = self.free.get();
        if free == 0 {
            return None;
        }
        self.free.set(free & (free - 1));
        Some(self.start + free.trailing_zeros() as usize * self.object)
    }

    fn free(&self, address: usize) -> Result<(), &'static str> {
        let offset = address.wrapping_sub(self.start);
        if offset >= 64 * self.object || offset % self.object != 0 {
            return Err("no object of this slab begins there");
        }
        let bit = 1 << (offset / self.object);
        if self.free.get() & bit != 0 {
            return Err("free already");
        }
        self.free.set(self.free.get() | bit);
        Ok(())
    }
}
// ANCHOR_END: slab

// ANCHOR: magazine
/// What one CPU keeps at hand, before a slab that all CPUs share.
struct Magazine<'s> {
    blocks: [usize; 8],
    len: usize,
    /// In a kernel: behind a lock, which is taken once for four blocks.
    slab: &'s Slab,
    trips: usize,
}

impl Magazine<'_> {
    fn alloc(&mut self) -> Option<usize> {
        if self.len == 0 {
            self.trips += 1;
            while self.len < 4 {
                let Some(block) = self.slab.alloc() else { break };
                self.blocks[self.len] = block;
                self.len += 1;
            }
        }
        self.len = self.len.checked_sub(1)?;
        Some(self.blocks[self.len])
    }

    fn free(&mut self, block: usize) {
        if self.len == self.blocks.len() {
            self.trips += 1;
            // The oldest go: the newest are in the processor's cache.
            for oldest in &self.blocks[..4] {
                if let Err(why) = self.slab.free(*oldest) {
                    println!("{oldest:#x}: {why}");
                }
            }
            self.blocks.copy_within(4.., 0);
            self.len = 4;
        }
        self.blocks[self.len] = block;
        self.len += 1;
    }
}
// ANCHOR_END: magazine

fn bump(page: &Page) {
    println!("== bump");
    // ANCHOR: bump_run
    let start = page.0.as_ptr() as usize;
    let bump = Bump { next: Cell::new(start), end: start + page.0.len() };
    let offset = |size, align| {
        let layout = Layout::from_size_align(size, align).ok()?;
        bump.alloc(layout).map(|address| address - start)
    };
    println!("{:?} {:?} {:?}", offset(10, 1), offset(8, 8), offset(100, 64));
    println!("a whole page more: {:?}", offset(4096, 1));
    println!("free: there is no such thing");
    // ANCHOR_END: bump_run
}

fn list(page: &mut Page) {
    println!("== list");
    let start = page.0.as_mut_ptr().expose_provenance();
    let behind = Bump { next: Cell::new(start), end: start + 4096 };
    let list = FreeList { first: Cell::new(null_mut()), behind };
    // ANCHOR: list_run
    let offset = |block: Option<*mut u8>| block.map(|block| block as usize - start);
    let (a, b) = (list.alloc(1000), list.alloc(1000));
    println!("{:?} {:?}", offset(a), offset(b));
    for block in [a, b].into_iter().flatten() {
        // SAFETY: allocated above with this size.
        unsafe { list.free(block, 1000) };
    }
    println!("again: {:?}", offset(list.alloc(1000)));
    println!("ten bytes: {:?}, where 1000 were", offset(list.alloc(10)));
    println!("2100 bytes: {:?}", offset(list.alloc(2100)));
    // ANCHOR_END: list_run
}

fn slab(page: &Page) {
    println!("== slab");
    // ANCHOR: slab_run
    let slab = Slab::new(page, 64);
    let all: Vec<usize> = std::iter::from_fn(|| slab.alloc()).collect();
    println!("{} objects of 64 bytes in a page", all.len());
    println!("{:?}, again: {:?}", slab.free(all[7]), slab.free(all[7]));
    println!("inside: {:?}", slab.free(all[9] + 8));
    println!("the next one is number 7: {}", slab.alloc() == Some(all[7]));
    // ANCHOR_END: slab_run
}

fn magazines(page: &Page) {
    println!("== magazines");
    // ANCHOR: magazine_run
    let slab = Slab::new(page, 64);
    let mut cpu = Magazine { blocks: [0; 8], len: 0, slab: &slab, trips: 0 };
    for _ in 0..1000 {
        if let Some(block) = cpu.alloc() {
            cpu.free(block);
        }
    }
    println!("1000 pairs: {} trip to the slab", cpu.trips);
    println!("at hand: {}, in the slab: {}", cpu.len, slab.free.get().count_ones());
    // ANCHOR_END: magazine_run
}

/// Says what the heap found instead of stopping.
struct Aloud;

impl Report for Aloud {
    fn misuse(&self, misuse: &Misuse) {
        // Addresses differ from run to run.
        println!("{} in {}: {} bytes", misuse.kind, misuse.cache, misuse.size);
        if let Some(harm) = misuse.harm {
            println!("    {harm}");
        }
    }
}

fn all_of_it() -> Result<(), Box<dyn std::error::Error>> {
    println!("== heap");
    let pages = testing::Arena::new(1024);
    // ANCHOR: heap_run
    let heap: Heap<_, _, RawSpin, _> = Heap::with_report(&pages, ThreadCpus, Aloud);
    let blocks: Vec<_> =
        (0..100).map(|_| heap.kalloc(Layout::new::<[u64; 8]>())).collect::<Result<_, _>>()?;
    println!("live {}, taken {}", heap.stats().live, heap.stats().taken);
    for block in blocks {
        // SAFETY: allocated above, not used any more.
        unsafe { heap.kfree(block)? };
    }
    let stats = heap.stats();
    println!("cached {}, and the books add up: {}", stats.cached, stats.accounted() == stats.taken);
    println!("{} pages given back, {} left", heap.shrink(), heap.stats().taken);
    // ANCHOR_END: heap_run
    println!("== misuse");
    // ANCHOR: misuse_run
    heap.set_debug("FZPU,kmalloc-64")?;
    let block = heap.kalloc(Layout::new::<[u8; 61]>())?;
    // SAFETY: it is not: one byte too many, and freed twice.
    unsafe {
        block.add(61).write(0);
        let _ = heap.kfree(block);
        block.add(61).write(0xcc);
        heap.kfree(block)?;
        let _ = heap.kfree(block);
    }
    // ANCHOR_END: misuse_run
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut page = Page([0; 4096]);
    bump(&page);
    list(&mut page);
    slab(&page);
    magazines(&page);
    // The test equipment that stands for a kernel's frames.
    let _ = (NonNull::<u8>::dangling(), PageTags::required(1), OutOfPages, MisuseKind::Leak);
    fn is_source<S: PageSource>() {}
    is_source::<&testing::Arena>();
    all_of_it()
}
