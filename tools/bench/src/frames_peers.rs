//! Who is measured: our allocator and the published ones, behind one trait.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::sync::atomic::{Ordering, compiler_fence};

use bitmap_allocator::BitAlloc as _;
use pagoda_addr::{Frame, FrameRange, Order, PhysAddr, PhysMap};
use pagoda_frames::{FrameAllocator, FrameInfo, OwnedFrames, Request, Setup, backing, required};
use pagoda_sync::{CpuId, Cpus, RawSpin, SpinMutex};

use crate::measure::Numbers;

pub const GIB: u64 = 1 << 18;

/// What every contestant can do: 2^`order` frames, by number.
pub trait Frames: Sync {
    /// The first frame of a block, if there is one.
    fn alloc(&self, order: u8) -> Option<u64>;
    /// Takes a block back.
    fn free(&self, frame: u64, order: u8);
    /// Free frames that stand in the CPUs' caches, for those that can tell.
    fn cached(&self) -> u64 {
        0
    }
    /// What a kernel does before this CPU goes idle, for those that ask for it.
    fn idle(&self) {}
    /// Frees and allocates one frame so many times. Here, and not around the trait, so that every
    /// contestant is called as its users call it.
    fn repeat(&self, first: u64, turns: u64) -> u64 {
        // In a register: on its way through memory, the number would wait longer than all the rest.
        let mut mine = first;
        for _ in 0..turns {
            self.free(mine, 0);
            mine = self.alloc(0).expect("one was just freed");
        }
        mine
    }
    /// Frees one of the frames in use, at random, and allocates one, so many times. They are given
    /// by their distance from `base`.
    fn turn(&self, all: &mut [u32], base: u64, numbers: &mut Numbers, turns: u64) {
        for _ in 0..turns {
            let place = numbers.below(all.len() as u64) as usize;
            self.free(base.wrapping_add(all[place].into()), 0);
            let frame = self.alloc(0).expect("one was just freed");
            all[place] = frame.wrapping_sub(base) as u32;
        }
    }
}

/// Nobody asks for zeroed frames here.
pub struct NoMap;

// SAFETY: never asked: no request here wants zeroes.
unsafe impl PhysMap for NoMap {
    fn ptr(&self, _: PhysAddr) -> *mut u8 {
        unreachable!("no frame is touched")
    }
}

std::thread_local! {
    static CPU: Cell<CpuId> = const { Cell::new(CpuId::BOOT) };
    static PINS: Cell<u32> = const { Cell::new(0) };
}

const LARGE: usize = 2 << 20;

/// Address space of zeroes, aligned so, never unmapped, in pages of 2 MiB as far as it is touched.
fn reserve(bytes: usize, align: usize) -> *mut u8 {
    // SAFETY: a fresh mapping at an address of the system's choice.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes + align,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    assert_ne!(start, libc::MAP_FAILED, "address space");
    let start = start.map_addr(|address| address.next_multiple_of(align));
    // SAFETY: part of the mapping. Where it is refused the pages are small, for everybody.
    unsafe { libc::madvise(start, bytes, libc::MADV_HUGEPAGE) };
    start.cast()
}

/// Memory for somebody's metadata.
fn large_pages(bytes: usize) -> *mut u8 {
    reserve(bytes.next_multiple_of(LARGE), LARGE)
}

/// As many as Depot is made for.
const CPUS: usize = 16;

/// A thread as a CPU, at the price of the reference kernel's: a count up, the CPU's number, a count
/// down. The number is set before ([`on_cpu`]), as a kernel does when it starts a CPU; the main
/// thread is CPU 0.
#[derive(Clone, Copy)]
pub struct Threads;

// SAFETY: a thread is one context, and those that live at once are given different numbers.
unsafe impl Cpus for Threads {
    fn limit(&self) -> usize {
        CPUS
    }
    #[inline]
    fn enter(&self) -> CpuId {
        PINS.with(|pins| pins.set(pins.get() + 1));
        CPU.get()
    }
    #[inline]
    unsafe fn leave(&self) {
        PINS.with(|pins| match pins.get() {
            1 => pins.set(0),
            nested => {
                pins.set(nested - 1);
                compiler_fence(Ordering::SeqCst); // or both become one subtraction, which waits
            }
        });
    }
}

/// Makes this thread the CPU with this number, from 1 on, for good.
pub fn on_cpu(number: usize) {
    CPU.set(CpuId::new(number % CPUS).expect("below the limit"));
}

/// Our allocator; its metadata stays for good, as a kernel's does.
pub struct Ours(pub FrameAllocator<'static, Threads, NoMap, RawSpin>);

impl Ours {
    /// `frames` frames from 1 GiB on, with or without a frame table.
    pub fn new(frames: u64, table: bool) -> Self {
        let start = Frame::from_number(GIB);
        let ranges = [FrameRange::new(start, frames).expect("a range")];
        let layout = required(&ranges, CPUS).expect("a layout");
        let storage = large_pages(layout.size()).cast::<MaybeUninit<u8>>();
        // SAFETY: this long, nobody else's, and never unmapped.
        let storage = unsafe { std::slice::from_raw_parts_mut(storage, layout.size()) };
        let table = table.then(|| {
            let last = backing(&ranges).last().expect("a backing");
            let base = large_pages((last.0 + last.1) as usize).cast::<FrameInfo>();
            std::ptr::NonNull::new(base).expect("not null")
        });
        let setup = Setup { ranges: &ranges, storage, table, reserve: 0 };
        // SAFETY: the frames are only numbers here; the table's array stays, and is large enough.
        let frames = unsafe { FrameAllocator::new(setup, Threads, NoMap) };
        Self(frames.expect("an allocator"))
    }
}

#[cold]
fn not_ours() -> ! {
    panic!("not a block of ours")
}

impl Ours {
    #[inline(never)]
    fn free_block(&self, frame: u64, order: u8) {
        let range = FrameRange::new(Frame::from_number(frame), 1 << order).expect("a range");
        // SAFETY: the caller gives back whole blocks, each once.
        let owned = unsafe { OwnedFrames::from_range(range) };
        self.0.free(owned).expect("a block of ours");
    }
}

impl Frames for Ours {
    #[inline]
    fn alloc(&self, order: u8) -> Option<u64> {
        let request = match order {
            0 => Request::frame(),
            _ => Request::order(Order::new(order)?),
        };
        self.0.alloc(request).ok().map(|owned| owned.into_range().start().number())
    }
    #[inline]
    fn free(&self, frame: u64, order: u8) {
        if order > 0 {
            return self.free_block(frame, order);
        }
        // By the way for owners, which is believed as the peers believe; with a table it is checked.
        // SAFETY: the caller gives back what it got, once.
        let owned =
            unsafe { OwnedFrames::from_range(FrameRange::single(Frame::from_number(frame))) };
        if self.0.free(owned).is_err() {
            not_ours();
        }
    }
    fn cached(&self) -> u64 {
        self.0.stats().cached
    }
    fn idle(&self) {
        self.0.drain_cpu().expect("an undisturbed stock");
    }
}

/// The buddy of buddy_system_allocator, behind our lock.
pub struct Buddy(SpinMutex<buddy_system_allocator::FrameAllocator<19>>);

impl Buddy {
    fn new(frames: u64) -> Self {
        let mut buddy = buddy_system_allocator::FrameAllocator::new();
        buddy.add_frame(GIB as usize, (GIB + frames) as usize);
        Self(SpinMutex::new(buddy))
    }
}

impl Frames for Buddy {
    fn alloc(&self, order: u8) -> Option<u64> {
        self.0.lock().alloc(1 << order).map(|frame| frame as u64)
    }
    fn free(&self, frame: u64, order: u8) {
        self.0.lock().dealloc(frame as usize, 1 << order);
    }
}

/// The bitmap of bitmap-allocator, behind our lock.
pub struct Bitmap(SpinMutex<&'static mut bitmap_allocator::BitAlloc16M>);

impl Bitmap {
    fn new(frames: u64) -> Self {
        // Larger than a stack: made in place, since all zeroes is its empty state.
        let layout = std::alloc::Layout::new::<bitmap_allocator::BitAlloc16M>();
        assert!(layout.align() <= LARGE);
        let zeroes = large_pages(layout.size()).cast::<bitmap_allocator::BitAlloc16M>();
        // SAFETY: an array of integers, for which zeroes are valid, in memory of its own.
        let bitmap = unsafe { &mut *zeroes };
        bitmap_allocator::BitAlloc16M::insert(bitmap, 0..frames as usize);
        Self(SpinMutex::new(bitmap))
    }
}

impl Frames for Bitmap {
    fn alloc(&self, order: u8) -> Option<u64> {
        let mut bitmap = self.0.lock();
        let frame = match order {
            0 => bitmap.alloc(),
            _ => bitmap.alloc_contiguous(None, 1 << order, usize::from(order)),
        };
        frame.map(|frame| frame as u64)
    }
    fn free(&self, frame: u64, order: u8) {
        let mut bitmap = self.0.lock();
        match order {
            0 => bitmap.dealloc(frame as usize),
            _ => bitmap.dealloc_contiguous(frame as usize, 1 << order),
        };
    }
}

/// Address is pointer; the pool is reserved address space.
pub struct Identity;

// SAFETY: the pool is a mapping of this process, and its provenance was exposed.
unsafe impl frame_alloc::Provenance for Identity {
    unsafe fn create(phys: usize) -> std::ptr::NonNull<u8> {
        std::ptr::NonNull::new(std::ptr::with_exposed_provenance_mut(phys)).expect("not null")
    }
    unsafe fn destroy<T>(pointer: std::ptr::NonNull<T>) -> usize {
        pointer.addr().get()
    }
}

/// The same numbers that ours uses. It need not be pinned.
pub struct ThreadNumber;

impl frame_alloc::CpuId for ThreadNumber {
    #[inline]
    fn current_cpu() -> usize {
        CPU.get().index()
    }
}

type Summary = frame_alloc::SummaryBuddyAllocator<19, Identity>;
type Depot = frame_alloc::DepotAllocator<Summary, ThreadNumber, CPUS>;
const BASE: frame_alloc::PageSize = frame_alloc::PageSize::from_log2(12);

/// One of frame-alloc's, over reserved address space.
pub struct Pool<A>(A);

impl<A: frame_alloc::RegionInit> Pool<A> {
    fn new(frames: u64, allocator: A) -> Self {
        let base = reserve((frames as usize) << 12, 1 << 30).expose_provenance();
        let usable = [frame_alloc::PhysRange { base, len: (frames as usize) << 12 }];
        // SAFETY: the pool is reserved for this allocator, and it is not shared yet.
        unsafe { allocator.init(base, (frames as usize) << 12, &usable) };
        Self(allocator)
    }
}

impl<A: frame_alloc::PhysicalAllocator + Sync> Frames for Pool<A> {
    fn alloc(&self, order: u8) -> Option<u64> {
        let count = std::num::NonZeroUsize::new(1 << order)?;
        self.0.allocate_physical(BASE, count).ok().map(|address| (address >> 12) as u64)
    }
    fn free(&self, frame: u64, order: u8) {
        let count = std::num::NonZeroUsize::new(1 << order).expect("not zero");
        // SAFETY: allocated with this count, freed once.
        unsafe { self.0.deallocate_physical(BASE, count, (frame << 12) as usize) };
    }
}

/// The Depot alone.
pub fn depot(frames: u64) -> Box<dyn Frames> {
    Box::new(Pool::new(frames, Depot::new(BASE, Summary::new(BASE))))
}

/// Everybody, by name. `f` is called once for each with a fresh allocator of `frames` frames.
pub fn everybody<T>(frames: u64, f: impl Fn(&'static str, Box<dyn Frames>) -> T) -> Vec<T> {
    vec![
        f("ours", Box::new(Ours::new(frames, false))),
        f("SummaryBuddy", Box::new(Pool::new(frames, Summary::new(BASE)))),
        f("Depot", depot(frames)),
        f("bitmap-allocator", Box::new(Bitmap::new(frames))),
        f("buddy_system_allocator", Box::new(Buddy::new(frames))),
    ]
}
