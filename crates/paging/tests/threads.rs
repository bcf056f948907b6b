//! Real threads as CPUs, each with a TLB of its own that it alone may touch: cursors contend for one
//! tree, and flushes wait for every CPU, also with the lock held. Every page carries its number, so
//! that a frame that is used after it went to another page, or is free, shows.
#![allow(unsafe_code)] // implements a platform; reads and writes pages through the arena

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use pagoda_addr::{Frame, Page, PageRange, PhysAddr, PhysMap};
use pagoda_emu::PhysArena;
use pagoda_paging::{
    Fate, FlushRange, Format, MapError, OutOfFrames, PageFlags, PageSize, PageTable, Platform,
    Released, RiscV, SpaceTlb, X86_64,
};
use pagoda_sync::host::ThreadCpus;
use pagoda_sync::{CachePadded, Cpus, HandOver, HandOverCell, MAX_CPUS, ServingSpin, SpinHook};

/// More than a batch holds: taking all of them flushes early, with the lock held.
const PAGES: u64 = 160;
const RW: PageFlags =
    PageFlags::READ_WRITE.union(PageFlags::USER).union(PageFlags::ACCESSED).union(PageFlags::DIRTY);

/// Requests to forget: a CPU that honours one empties its TLB.
static REQUESTS: LazyLock<HandOver<'static, ThreadCpus>> = LazyLock::new(|| {
    let cells: Box<[_]> = (0..MAX_CPUS).map(|_| CachePadded(HandOverCell::new())).collect();
    HandOver::new(Box::leak(cells))
});

std::thread_local! {
    /// Page to frame. A CPU reads and fills it between two moments in which it serves.
    static TLB: RefCell<BTreeMap<u64, Frame>> = const { RefCell::new(BTreeMap::new()) };
}

fn forget() {
    TLB.with_borrow_mut(BTreeMap::clear);
}

fn serve() {
    REQUESTS.honour(&ThreadCpus.pin(), forget);
}

struct Serve;
impl SpinHook for Serve {
    fn spin() {
        serve();
        std::thread::yield_now();
    }
}

struct Host(PhysArena);

// SAFETY: the arena's.
unsafe impl PhysMap for Host {
    fn ptr(&self, addr: PhysAddr) -> *mut u8 {
        self.0.ptr(addr)
    }
}

// SAFETY: tables come zeroed, each frame once; a flush waits until every CPU of the set has emptied
// its TLB.
unsafe impl Platform for Host {
    type Lock = ServingSpin<Serve>;

    fn alloc_table(&self) -> Result<Frame, OutOfFrames> {
        self.0.alloc(true)
    }

    fn release(&self, item: Released) {
        let (Released::Table(frame) | Released::Page { frame, .. }) = item;
        assert!(self.0.release(frame));
    }

    fn flush(&self, space: &SpaceTlb, _: FlushRange<'_>) {
        let own = ThreadCpus.pin().cpu();
        let asked: Vec<_> =
            space.cpus().iter().filter(|&cpu| cpu != own).map(|cpu| REQUESTS.post(cpu)).collect();
        forget();
        for ticket in asked {
            while !REQUESTS.is_done(ticket) {
                // Others wait for this CPU in just the same way.
                Serve::spin();
            }
        }
    }
}

impl Host {
    fn stamp(&self, frame: Frame) -> &AtomicU64 {
        // SAFETY: a frame of the arena, whose first word is reached atomically as long as pages use
        // it; the arena fills frames only before and after that.
        unsafe { AtomicU64::from_ptr(self.0.ptr(frame.start()).cast()) }
    }
}

fn pages(start: u64, count: u64) -> PageRange {
    PageRange::new(Page::from_number(start), count.min(PAGES - start)).unwrap()
}

/// One CPU: joins, works, and leaves with nothing in its TLB.
fn run<F: Format>(table: &PageTable<F, &Host>, host: &Host, seed: u64, steps: u32) -> u64 {
    serve();
    let cpu = ThreadCpus.pin().cpu();
    table.space().join(cpu);
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut hits = 0;
    for step in 0..steps {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let at = (random >> 8) % PAGES;
        match random % 256 {
            0 => take(table, pages(0, PAGES)),
            1..6 => take(table, pages(at, 2)),
            6..60 => map(table, host, at),
            _ => hits += touch(table, host, at),
        }
        // Seldom: in between, a CPU uses what it knows, asked or not.
        if step % 32 == 31 {
            std::thread::yield_now();
        }
        if step % 32 == 0 {
            serve();
        }
    }
    table.space().leave(cpu);
    REQUESTS.rest(&ThreadCpus.pin(), forget);
    hits
}

fn map<F: Format>(table: &PageTable<F, &Host>, host: &Host, at: u64) {
    let Ok(frame) = host.0.alloc(false) else { return };
    host.stamp(frame).store(at, Ordering::Relaxed);
    let mut cursor = table.cursor(pages(at, 1)).unwrap();
    let result = cursor.map(Page::from_number(at), frame, PageSize::K4, RW);
    drop(cursor);
    if let Err(error) = result {
        assert!(matches!(error, MapError::Occupied | MapError::OutOfFrames), "{error}");
        host.0.release(frame);
    }
}

fn take<F: Format>(table: &PageTable<F, &Host>, range: PageRange) {
    let mut batch = table.batch();
    table.cursor(range).unwrap().take(range, &mut batch, |_, _| Fate::Release).unwrap();
    batch.finish();
}

/// Uses the page as hardware does: through the TLB, without a lock.
fn touch<F: Format>(table: &PageTable<F, &Host>, host: &Host, at: u64) -> u64 {
    let known = TLB.with_borrow(|tlb| tlb.get(&at).copied());
    let frame = known.or_else(|| {
        let page = Page::from_number(at);
        let mut cursor = table.cursor(pages(at, 1)).unwrap();
        let leaf = cursor.query(page).leaf();
        // Filled under the lock: what is taken later is flushed later.
        if let Some(leaf) = leaf {
            TLB.with_borrow_mut(|tlb| tlb.insert(at, leaf.frame));
        }
        leaf.map(|leaf| leaf.frame)
    });
    let Some(frame) = frame else { return 0 };
    let stamp = host.stamp(frame).load(Ordering::Relaxed);
    assert_eq!(stamp, at, "{frame:?} is used as page {at:#x}, but is not that any more");
    u64::from(known.is_some())
}

fn contend<F: Format + Send + Sync>(format: F) {
    let host = Host(PhysArena::new(Frame::from_number(0x100), 4000));
    let table = PageTable::new(format, &host).unwrap();
    let hits: u64 = std::thread::scope(|scope| {
        let (table, host) = (&table, &host);
        let cpus: Vec<_> =
            (1..5).map(|seed| scope.spawn(move || run(table, host, seed, 20_000))).collect();
        cpus.into_iter().map(|cpu| cpu.join().unwrap()).sum()
    });
    assert!(hits > 0, "no TLB was ever of use");
    take(&table, pages(0, PAGES));
    assert_eq!((table.tables(), host.0.used()), (1, 1), "every frame has come back");
}

#[test]
fn nobody_uses_what_another_cpu_took_on_x86_64() {
    contend(X86_64::new(4, 40, true, true));
}

#[test]
fn nobody_uses_what_another_cpu_took_where_every_new_page_is_told_to_all() {
    contend(RiscV::SV39);
}
