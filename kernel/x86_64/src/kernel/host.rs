//! The kernel as the host of its libraries: what they ask of whoever runs them.
//!
//! | a library asks for | answered by |
//! |---|---|
//! | a pointer to physical memory (`PhysMap`) | the direct map |
//! | frames for page tables, flushes (`paging::Platform`) | the early allocator, then the frame allocator; `invlpg` or a new CR3 |
//! | counted frames for programs (`VmPlatform`) | the frame allocator and its table |
//! | pages for the heap (`PageSource`) | the frame allocator: [`heap_pages`](super::heap_pages) |
//!
//! Lock order is that of `pagoda_sync::rank`; the early allocator's lock stands where the frame
//! allocator's does.
#![allow(unsafe_code)] // implements the unsafe traits

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use lock_api::Mutex;
use pagoda_addr::{Frame, FrameRange, Order, PhysAddr, PhysMap};
use pagoda_bootmap::{EarlyAllocator, MemoryMap};
use pagoda_frames::{AllocError, Blame, FrameAllocator, Kind, Mobility, OwnedFrames, Request};
use pagoda_heap::Heap;
use pagoda_paging::{FlushRange, Platform, Released, SpaceTlb};
use pagoda_sync::{Ranked, ServingSpin, rank};
use pagoda_vm::{Commit, VmPlatform};
use x86_64::registers::control::{Cr3, Cr4, Cr4Flags};

use super::failures::{self, FailingHeap};
use super::heap_pages::{HeapPages, Tags};
use super::kernel_map::KernelTable;
use super::layout::DIRECT_MAP;
use super::once::Once;
use super::percpu::{KernelCpus, KernelRanks};
use super::shootdown::{self, Serve};
use super::spare_tables;
use super::stacks::KernelRanges;
use super::{backtrace, time};

/// The raw lock of rank `RANK`.
pub(crate) type Lock<const RANK: u8> = Ranked<ServingSpin<Serve>, KernelRanks, RANK>;
/// The kernel's frame allocator.
pub(crate) type Frames = FrameAllocator<'static, KernelCpus, DirectMap, Lock<{ rank::FRAMES }>>;
/// The kernel's heap.
pub(crate) type KernelHeap = Heap<HeapPages, KernelCpus, Lock<{ rank::HEAP }>, HeapReport>;

/// Misuse of the heap ends the machine, with names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeapReport;

impl pagoda_heap::Report for HeapReport {
    fn misuse(&self, misuse: &pagoda_heap::Misuse) {
        for (what, track) in [("allocated", misuse.allocated), ("freed", misuse.freed)] {
            let Some(track) = track else { continue };
            log::error!("heap: {what} on cpu{} at {}, by", track.cpu, track.time);
            track.frames.iter().take_while(|&&frame| frame != 0).for_each(|&frame| {
                log::error!("    {}", backtrace::Place(frame as u64));
            });
        }
        panic!("{misuse}");
    }

    fn track(&self, frames: &mut [usize]) -> u64 {
        backtrace::callers_into(frames);
        time::tsc()
    }
}

/// What a frame is used for: the byte that the frame table keeps.
pub(crate) mod kind {
    use super::Kind;

    pub(crate) const HEAP: Kind = Kind(1);
    pub(crate) const PAGE_TABLE: Kind = Kind(2);
    pub(crate) const PROGRAM: Kind = Kind(3);
    pub(crate) const KVA: Kind = Kind(4);
    pub(crate) const TEST: Kind = Kind(5);

    /// Its name in lists.
    pub(crate) fn name(kind: Kind) -> &'static str {
        match kind {
            HEAP => "heap",
            PAGE_TABLE => "page tables",
            PROGRAM => "programs' pages",
            KVA => "kernel stacks and ranges",
            TEST => "self-test",
            _ => "unknown",
        }
    }
}

/// Physical memory at a fixed distance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DirectMap;

// SAFETY: the direct map shows all RAM at one fixed distance, writable, for as long as the kernel
// runs. Early allocations are made below the 4 GiB that `boot.s` maps until the final map stands.
unsafe impl PhysMap for DirectMap {
    #[inline]
    fn ptr(&self, addr: PhysAddr) -> *mut u8 {
        (DIRECT_MAP + addr.as_u64()) as *mut u8
    }
}

/// The one kernel.
pub(crate) struct Kernel {
    pub(crate) early: Mutex<Lock<{ rank::FRAMES }>, Option<EarlyAllocator<'static>>>,
    /// Who sits where, once the early allocator is done.
    pub(crate) map: Once<MemoryMap<'static>>,
    pub(crate) frames: Once<Frames>,
    pub(crate) table: Once<KernelTable>,
    pub(crate) ranges: Once<KernelRanges>,
    pub(crate) tags: Tags,
    /// Frames in use as page tables of programs and of the kernel since the frame allocator stands.
    pub(crate) tables_in_use: AtomicU64,
    /// Frames that the allocator was given, free or not: never changes once it stands.
    pub(crate) total_frames: AtomicU64,
    /// What is promised to programs.
    pub(crate) commit: Commit,
    /// The number of the frame that shows zeroes to programs; 0 before there is one. The frame
    /// allocator does not know it.
    pub(crate) zero_page: AtomicU64,
}

/// The one kernel.
pub(crate) static KERNEL: Kernel = Kernel {
    early: Mutex::new(None),
    map: Once::new(),
    frames: Once::new(),
    table: Once::new(),
    ranges: Once::new(),
    tags: Tags::none(),
    tables_in_use: AtomicU64::new(0),
    total_frames: AtomicU64::new(0),
    commit: Commit::new(0),
    zero_page: AtomicU64::new(0),
};

#[global_allocator]
static HEAP: FailingHeap = FailingHeap(Heap::with_report(HeapPages, KernelCpus, HeapReport));

/// The kernel's heap.
pub(crate) fn heap() -> &'static KernelHeap {
    &HEAP.0
}

// SAFETY: see `DirectMap`.
unsafe impl PhysMap for Kernel {
    #[inline]
    fn ptr(&self, addr: PhysAddr) -> *mut u8 {
        DirectMap.ptr(addr)
    }
}

impl Kernel {
    /// Is it the page of zeroes, which nobody counts?
    #[inline]
    fn is_zero_page(&self, frame: Frame) -> bool {
        frame.number() == self.zero_page.load(Ordering::Relaxed)
    }

    /// A zeroed frame from the early allocator, from the memory that can be reached already.
    pub(crate) fn early_table(&self) -> Option<Frame> {
        let mut early = self.early.lock();
        let below = Some(PhysAddr::new(4 << 30));
        let range = early.as_mut()?.alloc(Order::PAGE.bytes(), Order::PAGE.bytes(), below).ok()?;
        // SAFETY: just carved out of usable RAM, below 4 GiB, for nobody else.
        unsafe { self.ptr(range.start()).write_bytes(0, Order::PAGE.bytes() as usize) };
        Some(range.start().block())
    }

    /// Frames, if need be after the heap has given back what it only keeps for later.
    // Always inline, and by reference: what is asked for is known where it is asked for, and need
    // neither be looked at nor written down.
    #[inline(always)]
    pub(crate) fn take(&self, request: &Request) -> Result<FrameRange, AllocError> {
        let frames = self.frames.get().ok_or(AllocError::NoMemory)?;
        if failures::strikes(failures::What::Frames) {
            return Err(AllocError::NoMemory);
        }
        match frames.alloc(*request) {
            Ok(owned) => Ok(owned.into_range()),
            Err(error) => self.take_again(request, error),
        }
    }

    #[cold]
    #[inline(never)]
    fn take_again(&self, request: &Request, error: AllocError) -> Result<FrameRange, AllocError> {
        let frames = self.frames.get().ok_or(AllocError::NoMemory)?;
        if error.blame() == Blame::Exhaustion && self.bring_home() {
            return frames.alloc(*request).map(OwnedFrames::into_range);
        }
        Err(error)
    }

    /// Brings home what all CPUs only keep for later. Says whether that can have helped.
    #[cold]
    pub(crate) fn bring_home(&self) -> bool {
        // SAFETY: *one-in-kernel*: the other CPUs run programs, idle, or wait for the big lock;
        // handlers neither allocate nor free.
        unsafe { heap().drain_stopped() };
        let given = heap().shrink() + spare_tables::trim();
        let Some(frames) = self.frames.get() else { return false };
        let cached = frames.stats().cached;
        // SAFETY: as above.
        if let Err(error) = unsafe { frames.drain_stopped() } {
            panic!("frames: {error}");
        }
        given > 0 || cached > 0
    }

    /// Gives frames back. A free that the allocator refuses is somebody's bug: the evidence ends
    /// the machine.
    #[inline]
    pub(crate) fn give_back(&self, range: FrameRange) {
        match self.frames.get().map(|frames| frames.free_range(range)) {
            Some(Ok(())) => {}
            Some(Err(error)) => panic!("frames: {error}"),
            None => panic!("frames {range:?} given back before there is a frame allocator"),
        }
    }

    /// `pages` without the page of zeroes, which nobody counts, and which the frame allocator does not
    /// know: what lies between its appearances.
    #[inline]
    fn counted<'p>(&self, pages: &'p [Frame]) -> impl Iterator<Item = &'p [Frame]> + use<'p> {
        let zero = self.zero_page.load(Ordering::Relaxed);
        let parts = pages.split(move |page| page.number() == zero);
        parts.filter(|part| !part.is_empty())
    }

    /// One reference less to a page of a program, or one page table less.
    #[inline]
    fn let_go(&self, frame: Frame) {
        if self.is_zero_page(frame) {
            return;
        }
        match self.frames.get().map(|frames| frames.release(frame)) {
            Some(Ok(_)) => {}
            Some(Err(error)) => panic!("frames: {error}"),
            None => panic!("{frame:?} released before there is a frame allocator"),
        }
    }
}

// SAFETY: tables come zeroed from allocators that own all RAM. `flush` makes every CPU in the
// space's set forget before it returns; a CPU that left the set loaded another root before that.
unsafe impl Platform for Kernel {
    type Lock = Lock<{ rank::PAGE_TABLE }>;

    #[inline]
    fn alloc_table(&self) -> Result<Frame, pagoda_paging::OutOfFrames> {
        if self.frames.get().is_none() {
            return self.early_table().ok_or(pagoda_paging::OutOfFrames);
        }
        let table = match spare_tables::take() {
            Some(table) => table,
            None => {
                let table = self.take(const { &Request::frame().zeroed().kind(kind::PAGE_TABLE) });
                table.map_err(|_| pagoda_paging::OutOfFrames)?.start()
            }
        };
        self.tables_in_use.fetch_add(1, Ordering::Relaxed);
        Ok(table)
    }

    #[inline]
    fn release_zeroed_table(&self, table: Frame) {
        self.tables_in_use.fetch_sub(1, Ordering::Relaxed);
        if !spare_tables::keep(table) {
            self.give_back(FrameRange::single(table));
        }
    }

    fn release_pages(&self, pages: &[Frame]) {
        let Some(frames) = self.frames.get() else {
            panic!("pages released before there is a frame allocator");
        };
        let mut rest = pages;
        if pages.first().is_some_and(|&page| !self.is_zero_page(page)) {
            match frames.release_many(pages) {
                Ok(_) => return,
                Err((place, _)) => rest = pages.get(place..).unwrap_or_default(),
            }
        }
        // There is the page of zeroes in it, or a mistake, which is met again.
        for part in self.counted(rest) {
            if let Err((_, error)) = frames.release_many(part) {
                panic!("frames: {error}");
            }
        }
    }

    #[inline]
    fn release(&self, item: Released) {
        match item {
            Released::Table(frame) => {
                self.tables_in_use.fetch_sub(1, Ordering::Relaxed);
                self.give_back(FrameRange::single(frame));
            }
            Released::Page { frame, .. } => self.let_go(frame),
        }
    }

    #[inline]
    fn flush(&self, space: &SpaceTlb, what: FlushRange<'_>) {
        shootdown::flush(space, what);
    }
}

/// Clears a frame that is the caller's alone.
#[inline]
fn clear(frame: Frame) {
    // SAFETY: managed memory, 512 words, that nobody else uses; DF is clear in the kernel.
    unsafe {
        asm!("rep stosq", inout("rcx") pagoda_addr::PAGE_SIZE / 8 => _,
            inout("rdi") DirectMap.ptr(frame.start()) => _, in("rax") 0u64,
            options(nostack, preserves_flags));
    }
}

/// Forgets every translation; global ones too if asked.
pub(crate) fn flush_all(global: bool) {
    let cr4 = Cr4::read();
    if global && cr4.contains(Cr4Flags::PAGE_GLOBAL) {
        // SAFETY: the bit only decides what survives a change of CR3; switching it forgets all.
        unsafe {
            Cr4::write(cr4 - Cr4Flags::PAGE_GLOBAL);
            Cr4::write(cr4);
        }
        return;
    }
    let (frame, flags) = Cr3::read_raw();
    // SAFETY: the same root as before.
    unsafe { Cr3::write_raw(frame, flags) };
}

// SAFETY: pages come from the frame allocator with one reference, which its table counts; the last
// release frees.
unsafe impl VmPlatform for Kernel {
    type RegionLock = Lock<{ rank::REGIONS }>;
    type ObjectLock = Lock<{ rank::OBJECT }>;

    #[inline]
    fn alloc_page(&self, zeroed: bool) -> Result<Frame, pagoda_vm::OutOfFrames> {
        const PAGE: &Request = &Request::frame().kind(kind::PROGRAM).mobility(Mobility::Movable);
        let frame = self.take(PAGE).map_err(|_| pagoda_vm::OutOfFrames)?.start();
        if zeroed {
            // Here, where a frame is known to be one: a third of what the general way costs besides.
            clear(frame);
        }
        Ok(frame)
    }

    #[inline]
    fn share(&self, frame: Frame) {
        if self.is_zero_page(frame) {
            return;
        }
        match self.frames.get().map(|frames| frames.table().share(frame)) {
            Some(Ok(_)) => {}
            Some(Err(error)) => panic!("frames: {frame:?} cannot be shared: {error}"),
            None => panic!("{frame:?} shared before there is a frame allocator"),
        }
    }

    fn share_many(&self, pages: &[Frame]) {
        let Some(frames) = self.frames.get() else {
            panic!("pages shared before there is a frame allocator");
        };
        let table = frames.table();
        let zero_first = pages.first().is_some_and(|&page| self.is_zero_page(page));
        if !zero_first && table.share_many(pages).is_ok() {
            return;
        }
        // Nothing was shared: there is the page of zeroes in it, or a mistake, which is met again.
        for part in self.counted(pages) {
            if let Err(error) = table.share_many(part) {
                panic!("frames: pages cannot be shared: {error}");
            }
        }
    }

    #[inline]
    fn zero_page(&self) -> Option<Frame> {
        Frame::new(self.zero_page.load(Ordering::Relaxed)).filter(|frame| frame.number() != 0)
    }

    #[inline]
    fn refs(&self, frame: Frame) -> u32 {
        if self.is_zero_page(frame) {
            return u32::MAX;
        }
        match self.frames.get().map(|frames| frames.table().refs(frame)) {
            Some(Ok(refs)) => refs,
            Some(Err(error)) => panic!("frames: {frame:?} has no owners: {error}"),
            None => 0,
        }
    }

    #[inline]
    fn commit(&self) -> Option<&Commit> {
        Some(&self.commit)
    }
}
