//! Frame allocators: ours beside the published ones. Metadata only; no frame is touched.
//!
//! The cases: *fill*: every frame once, by the frame. *free random*: all of them again, in random
//! order. *pair*: with so much in use, a random frame is freed and one allocated. *repeat*: one
//! frame, freed and allocated again. *order 9*, *1 GiB*: blocks from empty memory, taken and given
//! back. *recovered*: after 16 turnovers of what is in use, the share of the free memory that can be
//! had as 2 MiB blocks. *two threads*: each in its own frames, in bursts, or one allocating what the
//! other frees.
//!
//! Ours is measured as a kernel runs it: with the pin, with the caches; "core" has no frame table, as
//! the peers have none, "table" has its work included.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, compiler_fence};

use bitmap_allocator::BitAlloc as _;
use pagoda_addr::{Frame, FrameRange, Order, PhysAddr, PhysMap};
use pagoda_frames::{FrameAllocator, FrameInfo, OwnedFrames, Request, Setup, backing, required};
use pagoda_sync::{CpuId, Cpus, RawSpin, SpinMutex};

use crate::measure::{Contestant, Figure, Numbers, contest, figure, thread_time};
use crate::report::{Better, Row};

const GIB: u64 = 1 << 18;

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
fn on_cpu(number: usize) {
    CPU.set(CpuId::new(number % CPUS).expect("below the limit"));
}

/// Our allocator; its metadata is leaked, as a kernel's is.
pub struct Ours(pub FrameAllocator<'static, Threads, NoMap, RawSpin>);

impl Ours {
    /// `frames` frames from 1 GiB on, with or without a frame table.
    pub fn new(frames: u64, table: bool) -> Self {
        let start = Frame::from_number(GIB);
        let ranges = [FrameRange::new(start, frames).expect("a range")];
        let layout = required(&ranges, CPUS).expect("a layout");
        let bytes = layout.size() + layout.align();
        let storage = Box::leak(vec![MaybeUninit::<u8>::uninit(); bytes].into_boxed_slice());
        let skip = storage.as_ptr().align_offset(layout.align());
        let table = table.then(|| {
            let last = backing(&ranges).last().expect("a backing");
            let bytes = (last.0 + last.1) as usize;
            let entries: Vec<FrameInfo> = Vec::with_capacity(bytes / size_of::<FrameInfo>() + 4096);
            let base = Box::leak(Box::new(entries)).as_mut_ptr();
            // Parts of the array start at multiples of 8 KiB.
            let base = base.map_addr(|address| address.next_multiple_of(8192));
            std::ptr::NonNull::new(base).expect("not null")
        });
        let setup = Setup { ranges: &ranges, storage: &mut storage[skip..], table, reserve: 0 };
        // SAFETY: the frames are only numbers here; the table's array is leaked, and large enough.
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
pub struct Bitmap(SpinMutex<Box<bitmap_allocator::BitAlloc16M>>);

impl Bitmap {
    fn new(frames: u64) -> Self {
        // Larger than a stack: made in place, since all zeroes is its empty state.
        let layout = std::alloc::Layout::new::<bitmap_allocator::BitAlloc16M>();
        // SAFETY: an array of integers, for which zeroes are valid, allocated with its layout.
        let mut bitmap = unsafe { Box::from_raw(std::alloc::alloc_zeroed(layout).cast()) };
        bitmap_allocator::BitAlloc16M::insert(&mut bitmap, 0..frames as usize);
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

fn pool(frames: u64) -> usize {
    let bytes = (frames as usize) << 12;
    let align = 1usize << 30;
    // SAFETY: a fresh mapping at an address of the system's choice; never unmapped.
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
    assert_ne!(start, libc::MAP_FAILED, "address space for a pool");
    start.expose_provenance().next_multiple_of(align)
}

impl<A: frame_alloc::RegionInit> Pool<A> {
    fn new(frames: u64, allocator: A) -> Self {
        let base = pool(frames);
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
fn everybody<T>(frames: u64, f: impl Fn(&'static str, Box<dyn Frames>) -> T) -> Vec<T> {
    vec![
        f("ours", Box::new(Ours::new(frames, false))),
        f("SummaryBuddy", Box::new(Pool::new(frames, Summary::new(BASE)))),
        f("Depot", depot(frames)),
        f("bitmap-allocator", Box::new(Bitmap::new(frames))),
        f("buddy_system_allocator", Box::new(Buddy::new(frames))),
    ]
}

/// A group of rows.
type Part = fn(&mut Vec<Row>, bool);

/// Measures everything, or only the part of this name.
pub fn rows(quick: bool, only: Option<&str>) -> Vec<Row> {
    let mut rows = Vec::new();
    let parts: [(&str, Part); 6] = [
        ("fill", fill_and_free),
        ("pairs", pairs),
        ("repeat", repeats),
        ("blocks", blocks),
        ("recovered", recovered),
        ("threads", two_threads),
    ];
    for (_, part) in parts.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)) {
        part(&mut rows, quick);
    }
    rows
}

fn fill_and_free(rows: &mut Vec<Row>, quick: bool) {
    let rounds = if quick { 1 } else { 5 };
    let mut order: Vec<usize> = (0..GIB as usize).collect();
    let mut numbers = Numbers::new(3);
    for index in (1..order.len()).rev() {
        order.swap(index, numbers.below(index as u64 + 1) as usize);
    }
    let figures = everybody(GIB, |name, frames| {
        let (mut fills, mut frees) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let mut all = Vec::with_capacity(GIB as usize);
            let before = thread_time();
            while let Some(frame) = frames.alloc(0) {
                all.push(frame);
            }
            fills.push((thread_time() - before).as_nanos() as f64 / all.len() as f64);
            let shuffled: Vec<u64> = order.iter().filter_map(|&i| all.get(i).copied()).collect();
            let before = thread_time();
            for &frame in &shuffled {
                frames.free(frame, 0);
            }
            frees.push((thread_time() - before).as_nanos() as f64 / shuffled.len() as f64);
        }
        (figure(name, fills), figure(name, frees))
    });
    let (fills, frees): (Vec<_>, Vec<_>) = figures.into_iter().unzip();
    // No slower than the fastest peer that caches, which is Depot: the others inform.
    rows.push(against(Row::times("fill, 1 GiB", &fills, Some(1.0)), "Depot"));
    rows.push(against(Row::times("free random, 1 GiB", &frees, Some(1.0)), "Depot"));
}

/// Holds the row to one peer, by a gate relative to the best: the others keep no magazines and may
/// be faster or slower.
fn against(mut row: Row, peer: &str) -> Row {
    let (Some(&rival), Some(best)) = (row.peers.get(peer), row.best_peer()) else { return row };
    row.gate = row.gate.map(|gate| gate * rival / best);
    row
}

/// Holds the row to a figure of its own, whatever the peers do.
fn limited(mut row: Row, most: f64) -> Row {
    if row.best_peer().is_none() {
        row.peers.insert("limit".to_owned(), most);
    }
    row.gate = row.best_peer().map(|best| most / best);
    row
}

/// Frames in use, and a source of random places among them. They are remembered by their distance
/// from `base`, so that the list, which is ours and not the allocator's, takes little of the
/// processor's caches.
struct InUse<'a> {
    frames: &'a dyn Frames,
    base: u64,
    all: Vec<u32>,
    numbers: Numbers,
}

impl<'a> InUse<'a> {
    /// Fills `percent` of `total` frames: first everything, then random ones are freed.
    fn new(frames: &'a dyn Frames, total: u64, percent: u64) -> Self {
        let all = Vec::with_capacity(total as usize);
        let first = frames.alloc(0).expect("a frame");
        frames.free(first, 0);
        let mut in_use =
            Self { frames, base: first.wrapping_sub(1 << 31), all, numbers: Numbers::new(17) };
        while let Some(frame) = in_use.one() {
            in_use.all.push(frame);
        }
        while in_use.all.len() as u64 > total * percent / 100 {
            let place = in_use.numbers.below(in_use.all.len() as u64) as usize;
            let frame = in_use.all.swap_remove(place);
            in_use.back(frame);
        }
        in_use
    }

    #[inline]
    fn one(&self) -> Option<u32> {
        self.frames.alloc(0).map(|frame| frame.wrapping_sub(self.base) as u32)
    }

    #[inline]
    fn back(&self, frame: u32) {
        self.frames.free(self.base.wrapping_add(frame.into()), 0);
    }

    fn turn(&mut self, turns: usize) {
        self.frames.turn(&mut self.all, self.base, &mut self.numbers, turns as u64);
    }
}

/// Turnovers of what is in use before random pairs are timed: memory is then as it stays, whoever
/// manages it. (Where the random fill put them, one in four hundred frames is left.)
const SETTLED: usize = 6;

fn pairs(rows: &mut Vec<Row>, quick: bool) {
    let rounds = if quick { 5 } else { 31 };
    for (gib, gate) in [(1, 0.65), (16, 0.8)] {
        for percent in [50, 95] {
            let all = everybody(gib * GIB, |name, frames| (name, frames));
            let table = Ours::new(gib * GIB, true);
            let mut contestants = Vec::new();
            for (name, frames) in &all {
                contestants.push(random_pairs(name, &**frames, gib, percent, SETTLED));
            }
            contestants.push(random_pairs("ours", &table, gib, percent, SETTLED));
            let mut figures = contest(&mut contestants, rounds);
            let with_table = figures.pop().into_iter();
            let case = format!("random pair, {gib} GiB, {percent} % used");
            rows.push(Row::times(&case, &figures, Some(gate)));
            let both: Vec<_> = with_table.chain(figures.into_iter().skip(1)).collect();
            let gate = (gib == 1).then_some(1.0);
            rows.push(Row::times(&format!("{case}, with frame table"), &both, gate));
            drop(contestants);
        }
    }
    unsettled(rows, rounds.min(5));
}

fn repeats(rows: &mut Vec<Row>, quick: bool) {
    let rounds = if quick { 5 } else { 31 };
    let all = everybody(GIB, |name, frames| (name, frames));
    let mut contestants: Vec<_> =
        all.iter().map(|(name, frames)| repeat(name, &**frames)).collect();
    rows.push(Row::times("repeat pair", &contest(&mut contestants, rounds), Some(0.35)));
    let table = Ours::new(GIB, true);
    let mut contestants = vec![repeat("ours", &table)];
    contestants.extend(all.iter().skip(1).map(|(name, frames)| repeat(name, &**frames)));
    let figures = contest(&mut contestants, rounds);
    rows.push(Row::times("repeat pair, with frame table", &figures, Some(1.0)));
}

/// The same pairs while memory is still being put in order: after one turnover of frames that lay
/// at random. For orientation: what is measured changes from window to window.
fn unsettled(rows: &mut Vec<Row>, rounds: usize) {
    for percent in [50, 95] {
        let all = everybody(16 * GIB, |name, frames| (name, frames));
        let mut contestants: Vec<_> = all
            .iter()
            .map(|(name, frames)| random_pairs(name, &**frames, 16, percent, 1))
            .collect();
        let figures = contest(&mut contestants, rounds);
        let case = format!("random pair, 16 GiB, {percent} % used, soon after a random fill");
        rows.push(Row::times(&case, &figures, None));
    }
}

pub fn random_pairs<'a>(
    name: &str,
    frames: &'a dyn Frames,
    gib: u64,
    percent: u64,
    turnovers: usize,
) -> Contestant<'a> {
    let mut in_use = InUse::new(frames, gib * GIB, percent);
    in_use.turn(turnovers * in_use.all.len());
    Contestant::new(name, move || {
        // So many that the caches, which the contestants before have filled, are one's own for
        // nearly all of the window.
        const TURNS: u64 = 1_000_000;
        in_use.turn(TURNS as usize);
        TURNS
    })
}

pub fn repeat<'a>(name: &str, frames: &'a dyn Frames) -> Contestant<'a> {
    let mut frame = frames.alloc(0).expect("a frame");
    Contestant::new(name, move || {
        const TURNS: u64 = 100_000;
        frame = frames.repeat(frame, TURNS);
        TURNS
    })
}

fn blocks(rows: &mut Vec<Row>, quick: bool) {
    let rounds = if quick { 3 } else { 15 };
    for (case, gib, order, gate) in [
        ("order 9, empty 1 GiB", 1, 9, Some(1.0)),
        ("order 9, empty 16 GiB", 16, 9, Some(1.0)),
        ("1 GiB blocks, empty 16 GiB", 16, 18, None::<f64>),
    ] {
        let all = everybody(gib * GIB, |name, frames| (name, frames));
        let mut contestants: Vec<_> = all
            .iter()
            .map(|(name, frames)| {
                Contestant::new(*name, move || {
                    let mut taken = Vec::with_capacity(8192);
                    let mut operations = 0;
                    for _ in 0..4 {
                        while let Some(frame) = frames.alloc(order) {
                            taken.push(frame);
                        }
                        operations += 2 * taken.len() as u64;
                        for frame in taken.drain(..) {
                            frames.free(frame, order);
                        }
                    }
                    operations
                })
            })
            .collect();
        let row = Row::times(case, &contest(&mut contestants, rounds), gate);
        rows.push(if order == 18 { limited(row, 200.0) } else { row });
    }
    ranges(rows, rounds);
}

/// Contiguous ranges and large blocks of ours in fragmented memory; the peers cannot do the former.
/// Where single frames are in use at random there is no longer range: what is measured is how fast
/// that is found out. Where pieces are in use at random, there are some.
fn ranges(rows: &mut Vec<Row>, rounds: usize) {
    let ours = Ours::new(GIB, false);
    let in_use = InUse::new(&ours, GIB, 50);
    for count in [3, 37, 1000] {
        rows.push(range(&ours, count, rounds, "50 % random use"));
    }
    drop(in_use);
    for (count, piece) in [(37, 64), (1000, 1024)] {
        let ours = Ours::new(GIB, false);
        half_in_pieces(&ours, piece);
        let use_ = format!("50 % in use in random pieces of {piece}");
        rows.push(range(&ours, count, rounds, &use_));
    }
    rows.push(limited(
        Row::times(
            "order 9, 16 GiB after 16 turnovers at 50 %, drains included",
            &[fragmented(rounds.min(5))],
            None,
        ),
        200.0,
    ));
}

/// One contiguous range, again and again.
fn range(ours: &Ours, count: u64, rounds: usize, used: &str) -> Row {
    let align = Order::new(2).expect("an order");
    let mut refused = 0;
    let mut one = [Contestant::new("ours", || {
        for _ in 0..200 {
            match ours.0.alloc(Request::count(count).align(align)) {
                Ok(owned) => ours.0.free(owned).expect("ours"),
                Err(_) => refused += 1,
            }
        }
        200
    })];
    let figures = contest(&mut one, rounds);
    drop(one);
    let note = if refused > 0 { " (there is none: refused)" } else { "" };
    let case = format!("{count} frames, aligned to 4, {used}, alloc + free{note}");
    limited(Row::times(&case, &figures, None), 5000.0)
}

/// Takes everything and gives half of it back, in aligned pieces of so many frames, at random.
fn half_in_pieces(ours: &Ours, piece: u64) {
    let mut numbers = Numbers::new(23);
    let mut all: Vec<u64> = std::iter::from_fn(|| ours.alloc(0)).collect();
    all.sort_unstable();
    let mut pieces: Vec<&[u64]> = all.chunks(piece as usize).collect();
    for _ in 0..pieces.len() / 2 {
        let place = numbers.below(pieces.len() as u64) as usize;
        pieces.swap_remove(place).iter().for_each(|&frame| ours.free(frame, 0));
    }
    ours.idle();
}

/// 2 MiB blocks out of memory that was in use at random: all that there are, until one is refused
/// although every cache was drained, and back. Between two rounds the caches fill up again.
fn fragmented(rounds: usize) -> Figure {
    let ours = Ours::new(16 * GIB, false);
    let mut in_use = InUse::new(&ours, 16 * GIB, 50);
    in_use.turn(in_use.all.len() * 16);
    let samples = (0..rounds).map(|_| {
        in_use.turn(10_000);
        let before = thread_time();
        let mut taken = Vec::with_capacity(8192);
        while let Some(frame) = ours.alloc(9) {
            taken.push(frame);
        }
        let count = 2 * taken.len() + 1;
        for frame in taken {
            ours.free(frame, 9);
        }
        (thread_time() - before).as_nanos() as f64 / count as f64
    });
    figure("ours", samples.collect())
}

fn recovered(rows: &mut Vec<Row>, quick: bool) {
    // Fewer turnovers than these say nothing: what was filled first is still where it was.
    let turnovers = 16;
    for free in [50, 20, 10] {
        for threads in [1u64, 8] {
            if quick && threads == 8 && free == 20 {
                continue;
            }
            let parts = everybody(GIB, |name, frames| {
                // The slowest have no caches, so that eight CPUs change nothing for them.
                let alone = threads > 1 && matches!(name, "buddy_system_allocator");
                let part =
                    if alone { f64::NAN } else { recover(&*frames, free, turnovers, threads) };
                (name.to_owned(), part)
            });
            let mut parts: BTreeMap<String, f64> = parts.into_iter().collect();
            parts.retain(|_, part| part.is_finite());
            let ours = parts.remove("ours").expect("ours");
            let best = parts.values().copied().fold(0.0, f64::max);
            rows.push(Row {
                case: format!(
                    "recovered as 2 MiB after {turnovers} turnovers, {free} % free, {threads} CPUs (ours: at least 98)"
                ),
                unit: "%",
                better: Better::More,
                ours,
                peers: parts,
                gate: Some(98.0 / best),
                spread: 0.0,
            });
        }
    }
}

/// The part of the free memory outside the caches that comes as 2 MiB blocks after the turnovers.
/// The threads take turns, so that all their caches are in play on however few processors; then
/// what stands in the caches is counted, and they go idle.
fn recover(frames: &dyn Frames, free: u64, turnovers: u64, threads: u64) -> f64 {
    let in_use = SpinMutex::new(InUse::new(frames, GIB, 100 - free));
    let count = in_use.lock().all.len() as u64;
    let barrier = Barrier::new(threads as usize);
    let cached = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (in_use, barrier, cached) = (&in_use, &barrier, &cached);
            scope.spawn(move || {
                on_cpu(thread as usize + 1);
                for slice in 0..turnovers * 8 {
                    if slice % threads == thread {
                        let mut in_use = in_use.lock();
                        in_use.turn(count as usize / 8);
                    }
                    barrier.wait();
                }
                if barrier.wait().is_leader() {
                    cached.store(frames.cached(), Ordering::Relaxed);
                }
                barrier.wait();
                frames.idle();
            });
        }
    });
    let free_frames = GIB - count;
    let mut blocks = 0;
    while frames.alloc(9).is_some() {
        blocks += 1;
    }
    // Never more than all of it, though the caches give theirs back too.
    let outside = free_frames - cached.load(Ordering::Relaxed);
    (100.0 * (blocks * 512) as f64 / outside as f64).min(100.0)
}

fn two_threads(rows: &mut Vec<Row>, quick: bool) {
    let turns = if quick { 200_000 } else { 2_000_000 };
    let rounds = if quick { 1 } else { 5 };
    let works: [(&str, Work); 2] = [("pairs", pair_work), ("bursts of 256", burst_work)];
    for (what, work) in works {
        let figures = everybody(GIB, |name, frames| {
            let samples = (0..rounds).map(|_| together(&[&*frames, &*frames], turns, work));
            figure(name, samples.collect())
        });
        rows.push(Row::times(&format!("two threads, {what}"), &figures, None));
        // In turn, in short windows: the ratio is what counts, and the machine's speed drifts.
        let shared = Ours::new(GIB, false);
        let (one, two) = (Ours::new(GIB / 2, false), Ours::new(GIB / 2, false));
        let (mut both, mut apart) = (Vec::new(), Vec::new());
        for _ in 0..if quick { 15 } else { 61 } {
            both.push(together(&[&shared, &shared], turns / 2, work));
            apart.push(together(&[&one, &two], turns / 2, work));
        }
        let figures = [figure("ours", both), figure("two allocators of ours", apart)];
        let case = format!("two threads, {what}, beside two independent allocators");
        rows.push(Row::times(&case, &figures, Some(1.0 / 0.95)));
    }
    hand_overs(rows, quick);
}

fn hand_overs(rows: &mut Vec<Row>, quick: bool) {
    let turns = if quick { 200_000 } else { 2_000_000 };
    let rounds = if quick { 1 } else { 5 };
    let figures = everybody(GIB, |name, frames| {
        let samples = (0..rounds).map(|_| hand_over(&*frames, turns));
        figure(name, samples.collect())
    });
    rows.push(Row::times("two threads, one allocates what the other frees", &figures, None));
    // The same two threads, each with an allocator of its own: one passes through it what it
    // received in the other case. What remains of the difference is the handing over of frames.
    let shared = Ours::new(GIB, false);
    let (one, two) = (Ours::new(GIB, false), Ours::new(GIB, false));
    let (mut both, mut apart) = (Vec::new(), Vec::new());
    for _ in 0..if quick { 9 } else { 31 } {
        both.push(hand_over(&shared, turns / 2));
        apart.push(hand_over_apart(&one, &two, turns / 2));
    }
    let figures = [figure("ours", both), figure("two allocators of ours", apart)];
    let case = "two threads, one allocates what the other frees, beside two independent allocators";
    rows.push(Row::times(case, &figures, Some(1.0 / 0.95)));
}

fn pair_work(frames: &dyn Frames, turns: u64) {
    for _ in 0..turns {
        let frame = frames.alloc(0).expect("a frame");
        frames.free(std::hint::black_box(frame), 0);
    }
}

fn burst_work(frames: &dyn Frames, turns: u64) {
    let mut burst = [0; 256];
    for _ in 0..turns / 256 {
        for frame in &mut burst {
            *frame = frames.alloc(0).expect("a frame");
        }
        for &frame in &burst {
            frames.free(frame, 0);
        }
    }
}

/// What a thread does so many times.
type Work = fn(&dyn Frames, u64);

/// CPU time per pair with one thread for each of `frames`.
fn together(frames: &[&dyn Frames], turns: u64, work: Work) -> f64 {
    let barrier = Barrier::new(frames.len());
    let spent: u128 = std::thread::scope(|scope| {
        let workers: Vec<_> = frames
            .iter()
            .enumerate()
            .map(|(place, &frames)| {
                let barrier = &barrier;
                scope.spawn(move || {
                    on_cpu(place + 1);
                    work(frames, turns / 10);
                    barrier.wait();
                    let before = thread_time();
                    work(frames, turns);
                    (thread_time() - before).as_nanos()
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker")).sum()
    });
    spent as f64 / (frames.len() as u64 * turns) as f64
}

/// One thread allocates, the other frees, in batches of 512 through a buffer.
fn hand_over(frames: &dyn Frames, turns: u64) -> f64 {
    pass_on(
        turns,
        |buffer| buffer.extend((0..512).map(|_| frames.alloc(0).expect("a frame"))),
        |buffer| buffer.drain(..).for_each(|frame| frames.free(frame, 0)),
    )
}

/// The same work and the same buffers, but each thread gives back to its own allocator what it took
/// there: each does half of what it does in [`hand_over`] of both kinds.
fn hand_over_apart(one: &dyn Frames, two: &dyn Frames, turns: u64) -> f64 {
    let mut kept = Vec::with_capacity(512);
    let half = |frames: &dyn Frames, kept: &mut Vec<u64>| {
        kept.extend((0..256).map(|_| frames.alloc(0).expect("a frame")));
        kept.drain(..).for_each(|frame| frames.free(frame, 0));
    };
    pass_on(
        turns,
        move |buffer| {
            half(one, &mut kept);
            buffer.extend(0..512);
        },
        {
            let mut kept = Vec::with_capacity(512);
            move |buffer| {
                half(two, &mut kept);
                buffer.clear();
            }
        },
    )
}

/// CPU time of both threads for each of `turns` numbers that go from `produce` to `consume`.
fn pass_on(
    turns: u64,
    mut produce: impl FnMut(&mut Vec<u64>) + Send,
    mut consume: impl FnMut(&mut Vec<u64>) + Send,
) -> f64 {
    let buffers: [SpinMutex<Vec<u64>>; 2] =
        [SpinMutex::new(Vec::with_capacity(512)), SpinMutex::new(Vec::with_capacity(512))];
    let full = [AtomicBool::new(false), AtomicBool::new(false)];
    let wait = |flag: &AtomicBool, value: bool| {
        while flag.load(Ordering::Acquire) != value {
            std::thread::sleep(std::time::Duration::from_micros(20));
        }
    };
    let (wait, full, buffers) = (&wait, &full, &buffers);
    let batches = (turns / 512) as usize;
    let spent: u128 = std::thread::scope(|scope| {
        let producer = scope.spawn(move || {
            on_cpu(1);
            let before = thread_time();
            for batch in 0..batches {
                wait(&full[batch % 2], false);
                produce(&mut buffers[batch % 2].lock());
                full[batch % 2].store(true, Ordering::Release);
            }
            (thread_time() - before).as_nanos()
        });
        let consumer = scope.spawn(move || {
            on_cpu(2);
            let before = thread_time();
            for batch in 0..batches {
                wait(&full[batch % 2], true);
                consume(&mut buffers[batch % 2].lock());
                full[batch % 2].store(false, Ordering::Release);
            }
            (thread_time() - before).as_nanos()
        });
        producer.join().expect("producer") + consumer.join().expect("consumer")
    });
    spent as f64 / (batches * 512) as f64
}
