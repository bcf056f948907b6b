//! Simulated CPUs.
//!
//! A CPU may use whatever it remembers at any time, so *everything* that it remembers about a page
//! is compared with the tables whenever it touches that page ([`Machine::audit`]: all of it). It
//! may remember less than the tables grant (then it faults, forgets, and the next try succeeds) but
//! never more.
//!
//! A split that was not flushed counts as stale too, though the translation is the same: some
//! processors stop when they know a page in two sizes.
//!
//! Between the change of an entry and the end of its batch a real CPU may still use what it
//! remembers; here that stops the test. Hence a test touches memory only when no batch is open, and
//! drives all CPUs from one thread.
//!
//! Left out: address-space identifiers, protection keys, speculation (a CPU remembers only what it
//! accessed), entries of other architectures.
#![allow(unsafe_code)] // implements the unsafe trait `Platform`

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use pagoda_addr::{Frame, PAGE_SIZE, Page, PhysAddr, PhysMap, VirtAddr};
use pagoda_paging::{
    FlushRange, Format, OutOfFrames, PageSize, PageTable, Platform, Released, SpaceTlb, X86_64,
};
use pagoda_sync::{CpuId, RawSpin};

use crate::PhysArena;
use crate::tlb::Cpu;
use crate::walk::{Found, Walk, Widths, walk};

/// What the machine is like.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// CPUs, from 0.
    pub cpus: usize,
    /// Frames of RAM.
    pub frames: u64,
    /// Where RAM begins.
    pub first_frame: u64,
    /// 4 or 5 levels of tables.
    pub levels: u32,
    /// Width of physical addresses.
    pub phys_bits: u32,
    /// Of the choice which TLB entries are evicted.
    pub seed: u64,
    /// Entries that a TLB keeps; more are evicted at random.
    pub tlb_entries: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cpus: 4,
            frames: 4096,
            first_frame: 0x100,
            levels: 4,
            phys_bits: 40,
            seed: 1,
            tlb_entries: usize::MAX,
        }
    }
}

/// Who accesses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mode {
    /// A program.
    User,
    /// The kernel, with SMEP, SMAP and write protection on: it never touches a program's pages.
    Kernel,
}

/// How.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// Loads.
    Read,
    /// Stores.
    Write,
    /// Executes.
    Fetch,
}

/// The exception that a CPU raises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageFault {
    /// The byte that was accessed.
    pub addr: VirtAddr,
    /// How it was accessed.
    pub access: Access,
    /// By whom.
    pub mode: Mode,
    /// Is something mapped there, and forbids it?
    pub present: bool,
}

impl fmt::Display for PageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page fault: {self:?}")
    }
}

/// What happened so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Calls of `flush`.
    pub flushes: u64,
    /// CPUs told to forget, over all flushes.
    pub cpu_flushes: u64,
    /// Pages that CPUs were told to forget one by one.
    pub page_flushes: u64,
    /// Flushes that forgot everything.
    pub full_flushes: u64,
    /// Walks that a CPU made.
    pub walks: u64,
    /// Translations that a TLB knew.
    pub hits: u64,
    /// Faults that only an out-of-date TLB entry caused: the tables allowed the access.
    pub spurious: u64,
}

/// An arena and some simulated CPUs.
pub struct Machine {
    arena: PhysArena,
    widths: Widths,
    state: Mutex<State>,
}

struct State {
    cpus: Vec<Cpu>,
    counters: Counters,
    /// The flush (counted down) that does nothing, for all CPUs or for one.
    dropped: Option<(u64, Option<CpuId>)>,
}

impl Machine {
    /// A machine.
    ///
    /// # Panics
    /// When it is to have no CPU, or more than there can be.
    pub fn new(config: Config) -> Self {
        assert!(config.cpus > 0, "a machine has a CPU");
        let cpu = |index| {
            let id = CpuId::new(index).expect("too many CPUs");
            Cpu::new(id, config.tlb_entries.max(1), config.seed)
        };
        let cpus = (0..config.cpus).map(cpu).collect();
        let state = State { cpus, counters: Counters::default(), dropped: None };
        Self {
            arena: PhysArena::new(Frame::from_number(config.first_frame), config.frames),
            widths: Widths { levels: config.levels, phys_bits: config.phys_bits },
            state: Mutex::new(state),
        }
    }

    /// The format that suits the machine.
    pub fn format(&self) -> X86_64 {
        X86_64::new(self.widths.levels, self.widths.phys_bits, true, true)
    }

    /// Its memory.
    pub fn arena(&self) -> &PhysArena {
        &self.arena
    }

    /// CPU `index`.
    ///
    /// # Panics
    /// When the machine has fewer.
    pub fn cpu(&self, index: usize) -> CpuId {
        self.state().cpus[index].id
    }

    /// A frame for a page, with one reference: zeroed or full of junk.
    pub fn alloc_page(&self, zeroed: bool) -> Result<Frame, OutOfFrames> {
        self.arena.alloc(zeroed)
    }

    /// Aligned consecutive frames for a large page.
    pub fn alloc_block(&self, size: PageSize, zeroed: bool) -> Result<Frame, OutOfFrames> {
        self.arena.alloc_block(size, zeroed)
    }

    /// One reference more to `frame`.
    pub fn share(&self, frame: Frame) {
        self.arena.share(frame);
    }

    /// References to `frame`.
    pub fn refs(&self, frame: Frame) -> u32 {
        self.arena.refs(frame)
    }

    /// Loads another root (or none): forgets all that is not global. Says nothing to any
    /// [`SpaceTlb`]; see [`enter`](Self::enter).
    pub fn switch(&self, cpu: CpuId, root: Option<Frame>) {
        self.state().cpus[cpu.index()].load(root);
    }

    /// `cpu` joins the space of `table` and loads its root.
    pub fn enter<F: Format, P: Platform>(&self, cpu: CpuId, table: &PageTable<F, P>) {
        table.space().join(cpu);
        self.switch(cpu, Some(table.root()));
    }

    /// `cpu` loads no root and leaves the space of `table`.
    pub fn leave<F: Format, P: Platform>(&self, cpu: CpuId, table: &PageTable<F, P>) {
        self.switch(cpu, None);
        table.space().leave(cpu);
    }

    /// Loads `into.len()` bytes. On a fault the bytes before the faulting page were read.
    pub fn read(
        &self,
        cpu: CpuId,
        mode: Mode,
        addr: VirtAddr,
        into: &mut [u8],
    ) -> Result<(), PageFault> {
        let mut done = 0;
        while done < into.len() {
            let (from, len) = self.piece(cpu, mode, Access::Read, addr, done, into.len())?;
            // SAFETY: RAM of the arena up to the end of its frame; the two do not overlap, since
            // nobody has a Rust reference into the arena.
            unsafe { into[done..].as_mut_ptr().copy_from_nonoverlapping(from, len) };
            done += len;
        }
        Ok(())
    }

    /// Stores `bytes`. On a fault the bytes before the faulting page were written.
    pub fn write(
        &self,
        cpu: CpuId,
        mode: Mode,
        addr: VirtAddr,
        bytes: &[u8],
    ) -> Result<(), PageFault> {
        let mut done = 0;
        while done < bytes.len() {
            let (to, len) = self.piece(cpu, mode, Access::Write, addr, done, bytes.len())?;
            // SAFETY: as in `read`.
            unsafe { to.copy_from_nonoverlapping(bytes[done..].as_ptr(), len) };
            done += len;
        }
        Ok(())
    }

    /// Where byte `done` of `len` from `addr` stands, and how many up to the end of its page.
    fn piece(
        &self,
        cpu: CpuId,
        mode: Mode,
        access: Access,
        addr: VirtAddr,
        done: usize,
        len: usize,
    ) -> Result<(*mut u8, usize), PageFault> {
        // An access that wraps ends up at the lower end, as it does in hardware.
        let at = VirtAddr::new(addr.as_u64().wrapping_add(done as u64));
        let phys = self.translate(cpu, mode, access, at)?;
        let rest = (PAGE_SIZE - at.page_offset()) as usize;
        Ok((self.arena.ptr(phys), rest.min(len - done)))
    }

    /// Fetches one byte of an instruction.
    pub fn fetch(&self, cpu: CpuId, mode: Mode, addr: VirtAddr) -> Result<u8, PageFault> {
        let phys = self.translate(cpu, mode, Access::Fetch, addr)?;
        // SAFETY: RAM of the arena.
        Ok(unsafe { self.arena.ptr(phys).read() })
    }

    /// Translates one access as a CPU does, TLB and all. A non-canonical address is a fault that is
    /// not present.
    ///
    /// # Panics
    /// When the CPU remembers about this page what the tables no longer grant.
    pub fn translate(
        &self,
        cpu: CpuId,
        mode: Mode,
        access: Access,
        addr: VirtAddr,
    ) -> Result<PhysAddr, PageFault> {
        let page = addr.block().number();
        let fault = |present| PageFault { addr, access, mode, present };
        let mut state = self.state();
        let State { cpus, counters, .. } = &mut *state;
        let cpu = &mut cpus[cpu.index()];
        let Some(root) = cpu.root.filter(|_| self.widths.canonical(addr)) else {
            return Err(fault(false));
        };
        let mut walk = walk(&self.arena, self.widths, root, page);
        compare(cpu, page, &walk);
        let allowed = walk.found.is_some_and(|found| found.rights.allow(mode, access));

        // The first that is remembered; its rights may be out of date, downwards only.
        let remembered = cpu.leaves_of(page).next();
        if let Some(leaf) = remembered {
            if !leaf.rights.allow(mode, access) {
                counters.spurious += u64::from(allowed);
                cpu.forget(page);
                return Err(fault(true));
            }
            if access != Access::Write || leaf.dirty {
                counters.hits += 1;
                return Ok(physical(&leaf, addr));
            }
        }
        counters.walks += 1;
        cpu.remember_way(page, &walk);
        if !allowed {
            cpu.forget(page);
            return Err(fault(walk.found.is_some()));
        }
        walk.mark(&self.arena, access == Access::Write);
        cpu.remember(page, &walk);
        walk.found.map(|found| physical(&found, addr)).ok_or(fault(false))
    }

    /// Compares everything that any CPU remembers with the tables: call it when no batch is open.
    ///
    /// # Panics
    /// When a CPU remembers what the tables do not grant.
    pub fn audit(&self) {
        for cpu in &self.state().cpus {
            let Some(root) = cpu.root else { continue };
            let pages = cpu.leaves().map(|(page, _)| page).chain(cpu.ways().map(|(page, _)| page));
            for page in pages {
                compare(cpu, page, &walk(&self.arena, self.widths, root, page));
            }
        }
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.state().counters
    }

    /// Lets the `n`-th flush from now (0: the next) do nothing, on one CPU or on all: to prove that
    /// a test would notice.
    pub fn drop_flush(&self, n: u64, on: Option<CpuId>) {
        self.state().dropped = Some((n, on));
    }

    /// Lets the `count`-th allocation from now (0: the next) fail, once.
    pub fn fail_after(&self, count: Option<u64>) {
        self.arena.fail_after(count);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn physical(leaf: &Found, addr: VirtAddr) -> PhysAddr {
    let frame = leaf.frame_of(addr.block().number());
    PhysAddr::new((frame << pagoda_addr::PAGE_SHIFT) + addr.page_offset())
}

/// Stops when `cpu` remembers about `page` what `walk`, fresh from the tables, does not grant.
fn compare(cpu: &Cpu, page: u64, walk: &Walk) {
    let id = cpu.id;
    let name = Page::from_number(page);
    for leaf in cpu.leaves_of(page) {
        let frame = leaf.frame_of(page);
        let Some(found) = walk.found else {
            panic!(
                "stale TLB: {id:?} still knows page {name:?} as frame {frame:#x}; it is unmapped"
            );
        };
        let now = found.frame_of(page);
        assert!(
            now == frame,
            "stale TLB: {id:?} still knows page {name:?} as frame {frame:#x}; it is {now:#x} now"
        );
        assert!(
            leaf.size == found.size,
            "stale TLB: {id:?} still knows page {name:?} as part of {:?}; the tables have {:?}",
            leaf.size,
            found.size
        );
        assert!(
            !leaf.rights.exceed(found.rights),
            "stale TLB: {id:?} still allows {:?} on page {name:?}; the tables say {:?}",
            leaf.rights,
            found.rights
        );
        assert!(
            !leaf.dirty || found.dirty,
            "stale TLB: {id:?} would write page {name:?} without setting its cleared dirty bit"
        );
    }
    for way in cpu.ways_of(page) {
        let now = walk.ways.iter().find(|now| now.level == way.level);
        let good = now.is_some_and(|now| now.table == way.table && !way.rights.exceed(now.rights));
        assert!(
            good,
            "stale paging-structure cache: {id:?} still goes to page {name:?} through table {:?} of \
             level {}; the tables say {now:?}",
            way.table, way.level
        );
    }
}

// SAFETY: the arena keeps the contract.
unsafe impl PhysMap for Machine {
    #[inline]
    fn ptr(&self, addr: PhysAddr) -> *mut u8 {
        self.arena.ptr(addr)
    }
}

// SAFETY: tables come zeroed from the arena, each frame once; a flush makes every CPU of the set
// forget before it returns (unless a test asked for the mistake).
unsafe impl Platform for Machine {
    type Lock = RawSpin;

    fn alloc_table(&self) -> Result<Frame, OutOfFrames> {
        self.arena.alloc(true)
    }

    /// # Panics
    /// When a CPU still knows the table, or a frame to which this was the last reference.
    fn release(&self, item: Released) {
        let (first, count) = match item {
            Released::Table(frame) => (frame.number(), 1),
            Released::Page { frame, size } => (frame.number(), size.pages()),
        };
        let state = self.state();
        for number in first..first + count {
            let frame = Frame::from_number(number);
            if self.arena.refs(frame) > 1 && !matches!(item, Released::Table(_)) {
                self.arena.release(frame);
                continue;
            }
            for cpu in &state.cpus {
                still_known(cpu, frame);
            }
            self.arena.release(frame);
        }
    }

    fn flush(&self, space: &SpaceTlb, what: FlushRange<'_>) {
        assert!(what.generation <= space.generation(), "the generation was not advanced yet");
        let mut state = self.state();
        let mut skipped = None;
        match &mut state.dropped {
            Some((0, on)) => {
                skipped = Some(*on);
                state.dropped = None;
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
        state.counters.flushes += 1;
        state.counters.full_flushes += u64::from(what.everything);
        for cpu in space.cpus().iter() {
            if skipped == Some(None) || skipped == Some(Some(cpu)) {
                continue;
            }
            state.counters.cpu_flushes += 1;
            if !what.everything {
                state.counters.page_flushes += what.pages();
            }
            if let Some(cpu) = state.cpus.get_mut(cpu.index()) {
                cpu.flush(&what);
            }
        }
    }

    fn unwinding(&self) -> bool {
        std::thread::panicking()
    }
}

/// Stops when `cpu` knows `frame`, which is about to be free.
fn still_known(cpu: &Cpu, frame: Frame) {
    let id = cpu.id;
    assert!(cpu.root != Some(frame), "root {frame:?} is released while {id:?} uses it");
    for (page, leaf) in cpu.leaves() {
        let page = Page::from_number(page);
        let behind = leaf.frame.number()..leaf.frame.number() + leaf.size.pages();
        assert!(
            !behind.contains(&frame.number()),
            "frame {frame:?} is released while the TLB of {id:?} still knows it behind page {page:?}"
        );
    }
    for (page, way) in cpu.ways() {
        let page = Page::from_number(page);
        assert!(
            way.table != frame,
            "table {frame:?} is released while {id:?} still goes through it to page {page:?}"
        );
    }
}
