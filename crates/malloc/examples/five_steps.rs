//! A malloc from nothing in five steps, each given the same work: the guide's chapter on malloc shows
//! its parts. `cargo run -p pagoda-malloc --example five_steps`
#![allow(unsafe_code)] // allocators

use std::alloc::{GlobalAlloc, Layout};

use pagoda_malloc::Malloc;

/// A malloc of one thread, and what it has cost so far.
trait Step {
    fn alloc(&mut self, bytes: usize) -> *mut u8;
    /// # Safety
    /// Allocated here, with that size, and not freed yet.
    unsafe fn free(&mut self, at: *mut u8, bytes: usize);
    /// KiB that lie between the first and the last byte ever used.
    fn taken(&self) -> usize;
    /// Free blocks looked at so far.
    fn looks(&self) -> usize {
        0
    }
}

// ANCHOR: ground
/// What the system gave: one long stretch of addresses. A page of it costs nothing until it is touched.
struct Ground {
    start: *mut u8,
    used: usize,
}

const BYTES: usize = 1 << 30;

impl Ground {
    fn new() -> Self {
        let layout = Layout::from_size_align(BYTES, 1 << 14).expect("a layout");
        // SAFETY: the layout is not empty.
        Self { start: unsafe { std::alloc::alloc_zeroed(layout) }, used: 0 }
    }

    fn more(&mut self, bytes: usize) -> *mut u8 {
        let at = self.start.wrapping_add(self.used);
        self.used += bytes;
        assert!(self.used <= BYTES, "out of memory");
        at
    }
}
// ANCHOR_END: ground

// ANCHOR: bump
/// Step 1: the next free byte.
struct Bump(Ground);

impl Step for Bump {
    fn alloc(&mut self, bytes: usize) -> *mut u8 {
        self.0.more(bytes.next_multiple_of(16))
    }
    unsafe fn free(&mut self, _: *mut u8, _: usize) {}
    // ANCHOR_END: bump
    fn taken(&self) -> usize {
        self.0.used >> 10
    }
}

// ANCHOR: list
/// Step 2: freed blocks are linked through themselves; the first that is large enough is taken.
struct List {
    ground: Ground,
    first: *mut Free,
    looks: usize,
}

struct Free {
    next: *mut Free,
    bytes: usize,
}

impl Step for List {
    fn alloc(&mut self, bytes: usize) -> *mut u8 {
        let bytes = bytes.next_multiple_of(16);
        let mut link: *mut *mut Free = &raw mut self.first;
        // SAFETY: the list holds freed blocks, which are ours, and large enough for a `Free`.
        unsafe {
            while !(*link).is_null() {
                self.looks += 1;
                let free = *link;
                if (*free).bytes >= bytes {
                    let rest = (*free).bytes - bytes;
                    *link = (*free).next;
                    if rest > 0 {
                        self.free(free.cast::<u8>().add(bytes), rest);
                    }
                    return free.cast();
                }
                link = &raw mut (*free).next;
            }
        }
        self.ground.more(bytes)
    }
    unsafe fn free(&mut self, at: *mut u8, bytes: usize) {
        let free = Free { next: self.first, bytes: bytes.next_multiple_of(16) };
        // SAFETY: the block is ours again, and has room for two words.
        unsafe { at.cast::<Free>().write(free) };
        self.first = at.cast();
    }
    // ANCHOR_END: list
    fn taken(&self) -> usize {
        self.ground.used >> 10
    }
    fn looks(&self) -> usize {
        self.looks
    }
}

// ANCHOR: classes
/// Step 3: a list for each size, in steps of 16 bytes: the first block always fits.
struct Classes {
    ground: Ground,
    first: [*mut Free; 256],
}

impl Step for Classes {
    fn alloc(&mut self, bytes: usize) -> *mut u8 {
        let class = bytes.div_ceil(16);
        let free = self.first[class];
        if free.is_null() {
            return self.ground.more(class * 16);
        }
        // SAFETY: a freed block.
        self.first[class] = unsafe { (*free).next };
        free.cast()
    }
    unsafe fn free(&mut self, at: *mut u8, bytes: usize) {
        let class = bytes.div_ceil(16);
        // SAFETY: the block is ours again.
        unsafe { at.cast::<Free>().write(Free { next: self.first[class], bytes }) };
        self.first[class] = at.cast();
    }
    // ANCHOR_END: classes
    fn taken(&self) -> usize {
        self.ground.used >> 10
    }
}

// ANCHOR: slabs
const SLAB: usize = 16 << 10;

/// Step 4: 16 KiB of one size at a time, with a header apart. An empty slab serves any size.
struct Slabs {
    ground: Ground,
    headers: Vec<Header>,
    /// For each size: slabs with room, the one in use last.
    room: [Vec<usize>; 256],
    empty: Vec<usize>,
}

#[derive(Clone, Default)]
struct Header {
    free: Vec<u16>,
    carved: usize,
    used: usize,
    class: usize,
}

impl Header {
    fn is_full(&self) -> bool {
        self.free.is_empty() && (self.carved + 1) * self.class * 16 > SLAB
    }
}

impl Slabs {
    fn slab(&mut self) -> usize {
        self.empty.pop().unwrap_or_else(|| {
            self.ground.more(SLAB);
            self.headers.push(Header::default());
            self.headers.len() - 1
        })
    }
}

impl Step for Slabs {
    fn alloc(&mut self, bytes: usize) -> *mut u8 {
        let class = bytes.div_ceil(16);
        let number = match self.room[class].last() {
            Some(&number) => number,
            None => {
                let number = self.slab();
                self.headers[number] = Header { class, ..Header::default() };
                self.room[class].push(number);
                number
            }
        };
        let header = &mut self.headers[number];
        let block = header.free.pop().map_or_else(
            || {
                header.carved += 1;
                header.carved - 1
            },
            usize::from,
        );
        header.used += 1;
        if header.is_full() {
            self.room[class].pop();
        }
        self.ground.start.wrapping_add(number * SLAB + block * class * 16)
    }
    unsafe fn free(&mut self, at: *mut u8, _: usize) {
        let offset = at as usize - self.ground.start as usize;
        let header = &mut self.headers[offset / SLAB];
        let (was_full, class) = (header.is_full(), header.class);
        header.free.push((offset % SLAB / (class * 16)) as u16);
        header.used -= 1;
        if header.used == 0 {
            self.room[class].retain(|&number| number != offset / SLAB);
            self.empty.push(offset / SLAB);
        } else if was_full {
            self.room[class].push(offset / SLAB);
        }
    }
    // ANCHOR_END: slabs
    fn taken(&self) -> usize {
        self.ground.used >> 10
    }
}

/// Step 5: the crate.
struct Ours {
    before: usize,
    most: usize,
}

impl Ours {
    fn new() -> Self {
        Self { before: Malloc.stats().footprint(), most: 0 }
    }
}

impl Step for Ours {
    fn alloc(&mut self, bytes: usize) -> *mut u8 {
        let layout = Layout::from_size_align(bytes, 16).expect("a layout");
        // SAFETY: no size is zero.
        unsafe { Malloc.alloc(layout) }
    }
    unsafe fn free(&mut self, at: *mut u8, bytes: usize) {
        let layout = Layout::from_size_align(bytes, 16).expect("a layout");
        // SAFETY: the caller's promise.
        unsafe { Malloc.dealloc(at, layout) }
    }
    fn taken(&self) -> usize {
        Malloc.stats().footprint().saturating_sub(self.before).max(self.most) >> 10
    }
}

// ANCHOR: work
/// 3,000 live blocks of 16 to 527 bytes, replaced 12,000 times; then all but each tenth are freed, and
/// 1,000 blocks of 2,000 bytes are wanted.
fn work(name: &str, step: &mut dyn Step) {
    let mut random = 42_u64;
    let mut below = |limit: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((random >> 33) % limit) as usize
    };
    let mut live: Vec<(*mut u8, usize)> = Vec::new();
    let mut held = 0;
    for turn in 0..15_000 {
        let bytes = 16 + below(512);
        let block = (step.alloc(bytes), bytes);
        if turn < 3000 {
            live.push(block);
        } else {
            let (old, bytes) = std::mem::replace(&mut live[below(3000)], block);
            // SAFETY: live, and freed once.
            unsafe { step.free(old, bytes) };
        }
    }
    held += live.iter().map(|block| block.1).sum::<usize>();
    let (first, looks) = (step.taken(), step.looks());
    for (index, &(at, bytes)) in live.iter().enumerate() {
        if index % 10 != 0 {
            // SAFETY: as above.
            unsafe { step.free(at, bytes) };
        }
    }
    (0..1000).for_each(|_| {
        step.alloc(2000);
    });
    println!("{name}");
    println!("  holds {} KiB, and has taken {first} KiB for it", held >> 10);
    if looks > 0 {
        println!("  looked at {} free blocks for each request", looks / 15_000);
    }
    println!("  then 1953 KiB of another size: {} KiB in all", step.taken());
}
// ANCHOR_END: work

fn main() {
    println!("== bump");
    work("a bump", &mut Bump(Ground::new()));
    println!("== list");
    let (ground, first) = (Ground::new(), std::ptr::null_mut());
    work("a free list", &mut List { ground, first, looks: 0 });
    println!("== classes");
    work(
        "a list for each size",
        &mut Classes { ground: Ground::new(), first: [std::ptr::null_mut(); 256] },
    );
    println!("== slabs");
    let (room, empty) = (std::array::from_fn(|_| Vec::new()), Vec::new());
    work("slabs", &mut Slabs { ground: Ground::new(), headers: Vec::new(), room, empty });
    println!("== ours");
    work("pagoda-malloc", &mut Ours::new());
}
