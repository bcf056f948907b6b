//! Simulated CPUs.
#![allow(unsafe_code)] // implements the unsafe trait `Platform`

use std::fmt;

use pagoda_addr::{Frame, PhysAddr, PhysMap, VirtAddr};
use pagoda_paging::{
    FlushRange, Format, OutOfFrames, PageSize, PageTable, Platform, Released, SpaceTlb,
};
use pagoda_sync::{CpuId, RawSpin};

use crate::PhysArena;

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
    /// Of the choice which cached entries a walk starts from and which are evicted.
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
}

impl Machine {
    /// A machine.
    pub fn new(_config: Config) -> Self {
        todo!()
    }

    /// Its memory.
    pub fn arena(&self) -> &PhysArena {
        &self.arena
    }

    /// CPU `index`.
    pub fn cpu(&self, _index: usize) -> CpuId {
        todo!()
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
    pub fn switch(&self, _cpu: CpuId, _root: Option<Frame>) {
        todo!()
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
        _cpu: CpuId,
        _mode: Mode,
        _addr: VirtAddr,
        _into: &mut [u8],
    ) -> Result<(), PageFault> {
        todo!()
    }

    /// Stores `bytes`. On a fault the bytes before the faulting page were written.
    pub fn write(
        &self,
        _cpu: CpuId,
        _mode: Mode,
        _addr: VirtAddr,
        _bytes: &[u8],
    ) -> Result<(), PageFault> {
        todo!()
    }

    /// Fetches one byte of an instruction.
    pub fn fetch(&self, _cpu: CpuId, _mode: Mode, _addr: VirtAddr) -> Result<u8, PageFault> {
        todo!()
    }

    /// Translates one access as a CPU does, TLB and all.
    pub fn translate(
        &self,
        _cpu: CpuId,
        _mode: Mode,
        _access: Access,
        _addr: VirtAddr,
    ) -> Result<PhysAddr, PageFault> {
        todo!()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        todo!()
    }

    /// Lets the `n`-th flush from now (0: the next) do nothing: to prove that a test would notice.
    pub fn drop_flush(&self, _n: u64) {
        todo!()
    }

    /// Lets the `count`-th allocation from now (0: the next) fail, once.
    pub fn fail_after(&self, count: Option<u64>) {
        self.arena.fail_after(count);
    }
}

// SAFETY: (skeleton)
unsafe impl PhysMap for Machine {
    fn ptr(&self, addr: PhysAddr) -> *mut u8 {
        self.arena.ptr(addr)
    }
}

// SAFETY: (skeleton)
unsafe impl Platform for Machine {
    type Lock = RawSpin;

    fn alloc_table(&self) -> Result<Frame, OutOfFrames> {
        self.arena.alloc(true)
    }
    fn release(&self, _item: Released) {
        todo!()
    }
    fn flush(&self, _space: &SpaceTlb, _what: FlushRange<'_>) {
        todo!()
    }
    fn unwinding(&self) -> bool {
        std::thread::panicking()
    }
}
