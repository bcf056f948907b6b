//! What the calls of an address space cost, in instructions, on a host that adds next to nothing.
//!
//! `cargo run --release -p pagoda-vm --example cost` counts every stage under valgrind's callgrind
//! (twice, with different numbers of rounds; the difference counts). `cost STAGE ROUNDS` runs one
//! stage alone, for a profile. Frames come from a stack and are not zeroed; flushing is nothing.
#![allow(unsafe_code)] // an arena of raw memory stands for RAM
use std::cell::{Cell, RefCell};
use std::hint::black_box;
use std::process::Command;

use pagoda_addr::{Frame, PhysAddr, PhysMap, VirtAddr};
use pagoda_paging::{FlushRange, OutOfFrames, PageTable, Platform, Released, SpaceTlb, X86_64};
use pagoda_sync::RawSpin;
use pagoda_vm::{Access, AddressSpace, Layout, MapRequest, Place, Prot, VmPlatform};

const FRAMES: usize = 20_000;

/// RAM, a stack of free frames, and a count for each.
struct Host {
    ram: Vec<[u64; 512]>,
    free: RefCell<Vec<u32>>,
    refs: Vec<Cell<u32>>,
}

impl Host {
    fn new() -> Self {
        let free = RefCell::new((1..FRAMES as u32).rev().collect());
        Self { ram: vec![[0; 512]; FRAMES], free, refs: vec![Cell::new(0); FRAMES] }
    }

    fn take(&self) -> Result<Frame, OutOfFrames> {
        let frame = self.free.borrow_mut().pop().ok_or(OutOfFrames)?;
        self.refs[frame as usize].set(1);
        Ok(Frame::from_number(frame.into()))
    }
}

// SAFETY: the arena is RAM from address 0 on, for as long as the host lives; one thread uses it.
unsafe impl PhysMap for Host {
    #[inline]
    fn ptr(&self, addr: PhysAddr) -> *mut u8 {
        self.ram.as_ptr().cast::<u8>().cast_mut().wrapping_add(addr.as_u64() as usize)
    }
}

// SAFETY: frames come from a stack of free ones; tables are cleared; no CPU remembers anything.
unsafe impl Platform for Host {
    type Lock = RawSpin;

    fn alloc_table(&self) -> Result<Frame, OutOfFrames> {
        let frame = self.take()?;
        // SAFETY: the frame is nobody else's.
        unsafe { self.ptr(frame.start()).write_bytes(0, 4096) };
        Ok(frame)
    }
    #[inline]
    fn release(&self, item: Released) {
        let (Released::Table(frame) | Released::Page { frame, .. }) = item;
        let refs = &self.refs[frame.number() as usize];
        refs.set(refs.get() - 1);
        if refs.get() == 0 {
            self.free.borrow_mut().push(frame.number() as u32);
        }
    }
    fn flush(&self, _: &SpaceTlb, what: FlushRange<'_>) {
        black_box(what.spans.len());
    }
}

// SAFETY: counts references.
unsafe impl VmPlatform for Host {
    type RegionLock = RawSpin;
    type ObjectLock = RawSpin;

    fn alloc_page(&self, _: bool) -> Result<Frame, OutOfFrames> {
        self.take()
    }
    #[inline]
    fn share(&self, frame: Frame) {
        let refs = &self.refs[frame.number() as usize];
        refs.set(refs.get() + 1);
    }
    #[inline]
    fn refs(&self, frame: Frame) -> u32 {
        self.refs[frame.number() as usize].get()
    }
}

type Space<'h> = AddressSpace<X86_64, &'h Host>;
const RW: Prot = Prot::READ.union(Prot::WRITE);
const BASE: u64 = 0x7000_0000_0000;

fn touch(space: &Space<'_>, start: u64, pages: u64, access: Access) {
    for page in 0..pages {
        let done = space.fault(VirtAddr::new(start + page * 4096), access);
        assert!(black_box(done).is_ok());
    }
}

fn map(space: &Space<'_>, start: u64, pages: u64) {
    let place = Place::Fixed(VirtAddr::new(start));
    space.map(MapRequest::anonymous(place, pages << 12, RW)).unwrap();
}

/// A program of a dozen regions and 60 pages.
fn small<'h>(host: &'h Host) -> Space<'h> {
    let table = PageTable::new(X86_64::new(4, 40, true, true), host).unwrap();
    let space = AddressSpace::new(table, Layout::x86_64(8 << 20));
    for region in 0..12 {
        let start =
            if region < 8 { 0x40_0000 + region * 0x1_0000 } else { BASE + region * 0x2_0000 };
        map(&space, start, 8);
        touch(&space, start, 5, Access::Write);
    }
    space
}

type Stage = (&'static str, u64, fn(&Host, u64));

/// Name, operations in a round, rounds.
const STAGES: &[Stage] = &[
    ("first touch, a page", 256, |host, rounds| {
        let space = small(host);
        for _ in 0..rounds {
            map(&space, BASE, 256);
            touch(&space, BASE, 256, Access::Write);
            space.unmap(VirtAddr::new(BASE), 1 << 20).unwrap();
        }
    }),
    ("map + unmap, one page", 1, |host, rounds| {
        let space = small(host);
        for _ in 0..rounds {
            let at = space.map(MapRequest::anonymous(Place::Anywhere, 4096, RW)).unwrap();
            space.unmap(at, 4096).unwrap();
        }
    }),
    ("protect flip of 256 pages", 1, |host, rounds| {
        let space = small(host);
        map(&space, BASE, 256);
        touch(&space, BASE, 256, Access::Write);
        for _ in 0..rounds {
            space.protect(VirtAddr::new(BASE), 1 << 20, Prot::READ).unwrap();
            space.protect(VirtAddr::new(BASE), 1 << 20, RW).unwrap();
        }
    }),
    ("advise away + touch, a page", 256, |host, rounds| {
        let space = small(host);
        map(&space, BASE, 512);
        for _ in 0..rounds {
            touch(&space, BASE, 256, Access::Write);
            space.advise(VirtAddr::new(BASE), 1 << 20, pagoda_vm::Advice::DontNeed).unwrap();
        }
    }),
    ("fork + drop, 60 pages", 1, |host, rounds| {
        let space = small(host);
        for _ in 0..rounds {
            let table = PageTable::new(X86_64::new(4, 40, true, true), host).unwrap();
            drop(black_box(space.fork(table).unwrap()));
        }
    }),
    ("fork + drop, 4096 pages more", 1, |host, rounds| {
        let space = small(host);
        map(&space, BASE, 4096);
        touch(&space, BASE, 4096, Access::Write);
        for _ in 0..rounds {
            let table = PageTable::new(X86_64::new(4, 40, true, true), host).unwrap();
            drop(black_box(space.fork(table).unwrap()));
        }
    }),
    ("fork + write of 256 pages + drop", 256, |host, rounds| {
        let space = small(host);
        map(&space, BASE, 256);
        touch(&space, BASE, 256, Access::Write);
        for _ in 0..rounds {
            let table = PageTable::new(X86_64::new(4, 40, true, true), host).unwrap();
            let child = space.fork(table).unwrap();
            touch(&child, BASE, 256, Access::Write);
        }
    }),
    ("writing again after the child is gone, a page", 256, |host, rounds| {
        let space = small(host);
        map(&space, BASE, 256);
        touch(&space, BASE, 256, Access::Write);
        for _ in 0..rounds {
            let table = PageTable::new(X86_64::new(4, 40, true, true), host).unwrap();
            drop(black_box(space.fork(table).unwrap()));
            touch(&space, BASE, 256, Access::Write);
        }
    }),
];

/// Instructions of `rounds` rounds of the stage, all included.
fn count(stage: usize, rounds: u64) -> Option<u64> {
    let me = std::env::current_exe().ok()?;
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(me);
    let output = valgrind.args([stage.to_string(), rounds.to_string()]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    text.split("Collected :").nth(1)?.split_whitespace().next()?.parse().ok()
}

fn main() {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>().ok());
    if let (Some(Some(stage)), Some(Some(rounds))) = (args.next(), args.next()) {
        let run = STAGES.get(stage as usize).expect("a stage").2;
        return run(&Host::new(), rounds);
    }
    for (stage, (name, operations, _)) in STAGES.iter().enumerate() {
        match (count(stage, 2), count(stage, 6)) {
            (Some(few), Some(many)) => {
                println!("{name:48} {:>9}", many.saturating_sub(few) / 4 / operations);
            }
            _ => println!("{name:48} (needs valgrind)"),
        }
    }
}
