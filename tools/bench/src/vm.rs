//! Address spaces: what the calls of `pagoda-vm` cost on the host, and what of that is whose.
//!
//! The host is as a kernel would be: RAM is an arena of large pages, frames come from
//! `pagoda-frames` with its caches and its table, pages are cleared and copied. There are no other
//! CPUs, and nobody remembers a translation: a flush is a call that does nothing. Nor is there a
//! trap: a fault here is the call that a kernel's handler makes.
//!
//! Beside each operation stand its stages, measured alone in the same windows. *frame*: one from the
//! CPU's cache and back. *bytes*: clearing or copying the page. *table*: the walk, the entry, and
//! taking it out again. *books*: the promise and its end. What is left are the regions, the counts
//! and the locks.

use std::hint::black_box;
use std::mem::MaybeUninit;

use pagoda_addr::{Frame, FrameRange, Page, PageRange, PhysAddr, PhysMap, VirtAddr};
use pagoda_frames::{FrameAllocator, FrameInfo, Request, Setup, backing, required};
use pagoda_paging::{
    FlushRange, OutOfFrames, PageFlags, PageSize, PageTable, Platform, Released, SpaceTlb, X86_64,
};
use pagoda_sync::host::ThreadCpus;
use pagoda_sync::{Cpus as _, RawSpin};
use pagoda_vm::{
    Access, AddressSpace, Advice, Charge, Commit, Layout, MapRequest, Place, Policy, Prot,
    VmPlatform,
};

use crate::arena::Arena;
use crate::measure::{Contestant, contest};
use crate::report::Row;

/// Where the arena's RAM begins.
const FIRST: u64 = 1 << 18;
/// 256 MiB.
const FRAMES: u64 = 1 << 16;
const PAGE: u64 = 4096;
const BASE: u64 = 0x7000_0000_0000;
const RW: Prot = Prot::READ.union(Prot::WRITE);
const FORMAT: X86_64 = X86_64::new(4, 40, true, true);

/// RAM at a fixed distance.
#[derive(Clone, Copy)]
struct Direct(*mut u8);

// SAFETY: the arena has all frames that the allocator gives out, and lives as long as the host.
unsafe impl PhysMap for Direct {
    #[inline]
    fn ptr(&self, addr: PhysAddr) -> *mut u8 {
        self.0.wrapping_add((addr.as_u64() - FIRST * PAGE) as usize)
    }
}

struct Host {
    ram: Direct,
    frames: FrameAllocator<'static, ThreadCpus, Direct, RawSpin>,
    commit: Commit,
    _arena: Arena,
}

impl Host {
    /// Its metadata is leaked, as a kernel's is.
    fn new() -> Self {
        let arena = Arena::new((FRAMES * PAGE) as usize);
        let ram = Direct(arena.start().as_ptr());
        let range = FrameRange::new(Frame::from_number(FIRST), FRAMES).expect("a range");
        let ranges = [range];
        let layout = required(&ranges, ThreadCpus.limit()).expect("a layout");
        let bytes = layout.size() + layout.align();
        let storage = Box::leak(vec![MaybeUninit::<u8>::uninit(); bytes].into_boxed_slice());
        let skip = storage.as_ptr().align_offset(layout.align());
        let last = backing(&ranges).last().expect("a backing");
        let bytes = (last.0 + last.1) as usize;
        let entries: Vec<FrameInfo> = Vec::with_capacity(bytes / size_of::<FrameInfo>() + 4096);
        let base = Box::leak(Box::new(entries)).as_mut_ptr();
        // Parts of the array start at multiples of 8 KiB.
        let base = base.map_addr(|address| address.next_multiple_of(8192));
        let table = std::ptr::NonNull::new(base);
        let setup = Setup { ranges: &ranges, storage: &mut storage[skip..], table, reserve: 0 };
        // SAFETY: the arena is nobody else's; the table's array is leaked, and large enough.
        let frames = unsafe { FrameAllocator::new(setup, ThreadCpus, ram) };
        let frames = frames.expect("an allocator");
        Self { ram, frames, commit: Commit::new(FRAMES), _arena: arena }
    }

    fn take(&self, zeroed: bool) -> Result<Frame, OutOfFrames> {
        let request = if zeroed { Request::frame().zeroed() } else { Request::frame() };
        let owned = self.frames.alloc(request).map_err(|_| OutOfFrames)?;
        Ok(owned.into_range().start())
    }

    fn let_go(&self, frame: Frame) {
        self.frames.release(frame).expect("a frame of ours");
    }
}

// SAFETY: as `Direct`.
unsafe impl PhysMap for Host {
    #[inline]
    fn ptr(&self, addr: PhysAddr) -> *mut u8 {
        self.ram.ptr(addr)
    }
}

// SAFETY: tables come zeroed from an allocator that owns all of the arena; no CPU remembers.
unsafe impl Platform for Host {
    type Lock = RawSpin;

    fn alloc_table(&self) -> Result<Frame, OutOfFrames> {
        self.take(true)
    }
    fn release(&self, item: Released) {
        let (Released::Table(frame) | Released::Page { frame, .. }) = item;
        self.let_go(frame);
    }
    fn release_pages(&self, frames: &[Frame]) {
        self.frames.release_many(frames).expect("frames of ours");
    }
    fn flush(&self, _: &SpaceTlb, what: FlushRange<'_>) {
        black_box(what.spans.len());
    }
}

// SAFETY: the allocator's table counts references.
unsafe impl VmPlatform for Host {
    type RegionLock = RawSpin;
    type ObjectLock = RawSpin;

    #[inline]
    fn alloc_page(&self, zeroed: bool) -> Result<Frame, OutOfFrames> {
        self.take(zeroed)
    }
    fn share(&self, frame: Frame) {
        self.frames.table().share(frame).expect("a frame of ours");
    }
    fn share_many(&self, frames: &[Frame]) {
        self.frames.table().share_many(frames).expect("frames of ours");
    }
    fn refs(&self, frame: Frame) -> u32 {
        self.frames.table().refs(frame).expect("a frame of ours")
    }
    #[inline]
    fn commit(&self) -> Option<&Commit> {
        Some(&self.commit)
    }
}

type Space<'h> = AddressSpace<X86_64, &'h Host>;

fn touch(space: &Space<'_>, pages: u64) {
    for page in 0..pages {
        let done = space.fault(VirtAddr::new(BASE + page * PAGE), Access::Write);
        assert!(black_box(done).is_ok());
    }
}

fn map(space: &Space<'_>, start: u64, pages: u64) {
    let place = Place::Fixed(VirtAddr::new(start));
    space.map(MapRequest::anonymous(place, pages * PAGE, RW)).expect("a mapping");
}

fn unmap(space: &Space<'_>, pages: u64) {
    space.unmap(VirtAddr::new(BASE), pages * PAGE).expect("a mapping");
}

fn empty(host: &Host) -> PageTable<X86_64, &Host> {
    PageTable::new(FORMAT, host).expect("a table")
}

/// A program with this many regions, every other one read-only, and nothing at [`BASE`].
fn program(host: &Host, regions: u64) -> Space<'_> {
    let space = AddressSpace::new(empty(host), Layout::x86_64(8 << 20));
    space.set_limits(pagoda_vm::Limits { regions: 100_000, ..pagoda_vm::Limits::default() });
    for region in 0..regions {
        map(&space, 0x40_0000 + 2 * region * PAGE, 1);
    }
    space
}

/// Runs each once, in turn, in many windows; the first is the operation, the others its stages.
fn row(name: &str, rounds: usize, mut parts: Vec<Contestant<'_>>) -> Row {
    let mut row = Row::times(name, &contest(&mut parts, rounds), None);
    row.gate = None;
    row
}

/// All rows.
pub fn rows(quick: bool) -> Vec<Row> {
    const PAGES: u64 = 256;
    let rounds = if quick { 5 } else { 101 };
    let host = Host::new();
    let host = &host;
    let frame = || {
        Contestant::new("(frame)", || {
            for _ in 0..1000 {
                let frame = host.take(false).expect("a frame");
                host.let_go(black_box(frame));
            }
            1000
        })
    };
    let of_frames = host.frames.alloc(Request::frame()).expect("a frame").into_range().start();
    let other = host.frames.alloc(Request::frame()).expect("a frame").into_range().start();
    let cleared = || {
        Contestant::new("(bytes)", move || {
            for _ in 0..1000 {
                // SAFETY: the frame is this function's own.
                unsafe { host.ptr(of_frames.start()).write_bytes(0, PAGE as usize) };
                black_box(host.ptr(of_frames.start()));
            }
            1000
        })
    };
    let copied = || {
        Contestant::new("(bytes)", move || {
            for _ in 0..1000 {
                let (from, to) = (host.ptr(of_frames.start()), host.ptr(other.start()));
                // SAFETY: both frames are this function's own.
                unsafe { from.copy_to_nonoverlapping(black_box(to), PAGE as usize) };
            }
            1000
        })
    };
    let plain = empty(host);
    let range = PageRange::new(Page::from_number(BASE / PAGE), PAGES).expect("a range");
    let entries = || {
        Contestant::new("(table)", || {
            for page in range.iter() {
                let mut cursor = plain.cursor(PageRange::single(page)).expect("a cursor");
                let flags = PageFlags::READ_WRITE | PageFlags::USER;
                cursor.map(page, of_frames, PageSize::K4, flags).expect("a table");
            }
            let mut batch = plain.batch();
            let mut cursor = plain.cursor(range).expect("a cursor");
            let keep = |_, _| pagoda_paging::Fate::Keep;
            cursor.take(range, &mut batch, keep).expect("small pages");
            drop(cursor);
            batch.finish();
            PAGES
        })
    };

    let mut rows = Vec::new();
    for (name, policy) in [("one page at a time", Policy::LINUX), ("ahead", Policy::ADAPTIVE)] {
        let space = program(host, 12);
        space.set_policy(policy);
        let work = || {
            map(&space, BASE, PAGES);
            touch(&space, PAGES);
            unmap(&space, PAGES);
            PAGES
        };
        let parts = vec![Contestant::new("ours", work), frame(), cleared(), entries()];
        rows.push(row(&format!("touch and unmap, a page ({name})"), rounds, parts));
    }
    for regions in [10, 10_000] {
        let space = program(host, regions);
        let work = || {
            for _ in 0..100 {
                map(&space, BASE, 1);
                unmap(&space, 1);
            }
            100
        };
        let name = format!("map and unmap one page, {regions} regions");
        let books = Contestant::new("(books)", || {
            for _ in 0..1000 {
                let charge = Charge { pages: 1, mapped: 100, privileged: true };
                assert!(black_box(&host.commit).charge(charge));
                black_box(&host.commit).release(1);
            }
            1000
        });
        rows.push(row(&name, rounds, vec![Contestant::new("ours", work), books]));
        let work = || {
            map(&space, BASE, PAGES);
            touch(&space, PAGES);
            unmap(&space, PAGES);
            PAGES
        };
        let name = format!("touch and unmap, a page, {regions} regions");
        rows.push(row(&name, rounds, vec![Contestant::new("ours", work)]));
    }
    let space = program(host, 12);
    map(&space, BASE, PAGES);
    touch(&space, PAGES);
    let work = || {
        for prot in [Prot::READ, RW] {
            space.protect(VirtAddr::new(BASE), PAGES * PAGE, prot).expect("a mapping");
        }
        1
    };
    rows.push(row("protect flip, 256 pages", rounds, vec![Contestant::new("ours", work)]));
    let work = || {
        space.advise(VirtAddr::new(BASE), PAGES * PAGE, Advice::Free).expect("a mapping");
        touch(&space, PAGES);
        PAGES
    };
    let freed = Contestant::new("ours", work);
    rows.push(row("freed lazily and written again, a page", rounds, vec![freed]));
    let work = || {
        drop(black_box(space.fork(empty(host)).expect("a child")));
        1
    };
    let tables = Contestant::new("(table)", || {
        drop(black_box(empty(host)));
        1
    });
    rows.push(row("fork and drop, 256 pages", rounds, vec![Contestant::new("ours", work), tables]));
    let work = || {
        let child = space.fork(empty(host)).expect("a child");
        touch(&child, PAGES);
        PAGES
    };
    let parts = vec![Contestant::new("ours", work), frame(), copied(), entries()];
    rows.push(row("fork, the child writes, drop, a page", rounds, parts));
    let work = || {
        drop(black_box(space.fork(empty(host)).expect("a child")));
        touch(&space, PAGES);
        PAGES
    };
    rows.push(row(
        "fork, drop, the parent writes, a page",
        rounds,
        vec![Contestant::new("ours", work)],
    ));
    rows
}
