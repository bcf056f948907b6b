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
//! Machines on which a fault forgets nothing are strict at first: a CPU that still refuses what the
//! tables allow by now stops the test, for the host was told (`gained`). After
//! [`Machine::lazy_gains`] the host does nothing then, and the test's fault handler does
//! ([`Machine::forget`]).
//!
//! Left out: address-space identifiers, protection keys, speculation (a CPU remembers only what it
//! accessed).
#![allow(unsafe_code)] // implements the unsafe trait `Platform`

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use pagoda_addr::{Frame, PAGE_SIZE, Page, PhysAddr, PhysMap, VirtAddr};
use pagoda_paging::{
    Aarch64, FlushRange, Format, Gain, OutOfFrames, PageSize, PageTable, Platform, Released, RiscV,
    SpaceTlb, X86_64,
};
use pagoda_sync::{CpuId, RawSpin};

use crate::bits::Hardware;
use crate::check::{compare, compare_gains, still_known, unbroken};
use crate::tlb::Cpu;
use crate::walk::{Found, walk};
use crate::{Access, AnyFormat, Config, Counters, Mmu, Mode, PageFault, PhysArena};

/// An arena and some simulated CPUs.
pub struct Machine {
    arena: PhysArena,
    hardware: Hardware,
    state: Mutex<State>,
}

struct State {
    cpus: Vec<Cpu>,
    counters: Counters,
    /// The flush (counted down) that does nothing, for all CPUs or for one.
    dropped: Option<(u64, Option<CpuId>)>,
    /// The host does nothing about gains.
    lazy: bool,
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
        let state = State { cpus, counters: Counters::default(), dropped: None, lazy: false };
        Self {
            arena: PhysArena::new(Frame::from_number(config.first_frame), config.frames),
            hardware: Hardware {
                mmu: config.mmu,
                levels: config.levels,
                phys_bits: config.phys_bits,
            },
            state: Mutex::new(state),
        }
    }

    /// The format that suits the machine, an x86-64 one.
    ///
    /// # Panics
    /// When the machine is another one: see [`any_format`](Self::any_format).
    pub fn format(&self) -> X86_64 {
        match self.any_format() {
            AnyFormat::X86_64(format) => format,
            other => panic!("the machine is not x86-64 but {other:?}"),
        }
    }

    /// The format that suits the machine.
    pub fn any_format(&self) -> AnyFormat {
        let Hardware { mmu, levels, phys_bits } = self.hardware;
        match mmu {
            Mmu::X86_64 => AnyFormat::X86_64(X86_64::new(levels, phys_bits, true, true)),
            Mmu::Aarch64 { upper: false } => AnyFormat::Aarch64(Aarch64::lower(phys_bits)),
            Mmu::Aarch64 { upper: true } => AnyFormat::Aarch64(Aarch64::upper(phys_bits)),
            Mmu::RiscV { .. } => AnyFormat::RiscV(RiscV::new(levels, phys_bits, true)),
        }
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
        let State { cpus, counters, lazy, .. } = &mut *state;
        let cpu = &mut cpus[cpu.index()];
        let Some(root) = cpu.root.filter(|_| self.hardware.covers(addr)) else {
            return Err(fault(false));
        };
        let mut walk = walk(&self.arena, self.hardware, root, page);
        compare(cpu, page, &walk);
        if !*lazy {
            compare_gains(cpu, self.hardware, page, &walk);
        }
        let write = access == Access::Write;
        let by_software = self.hardware.faults_for_history();
        // Does a leaf grant the access, and has it the history that the machine will not write?
        let passes = |leaf: &Found| {
            leaf.rights.allow(mode, access)
                && !(by_software && !(leaf.accessed && (leaf.dirty || !write)))
        };
        let allowed = walk.found.as_ref().is_some_and(passes);

        if cpu.absences_of(page).next().is_some() {
            counters.spurious += u64::from(allowed);
            return Err(fault(false));
        }
        // The first that is remembered; its rights may be out of date, downwards only.
        let remembered = cpu.leaves_of(page).next();
        if let Some(leaf) = remembered {
            if !passes(&leaf) {
                counters.spurious += u64::from(allowed);
                if self.hardware.fault_forgets() {
                    cpu.forget(page);
                }
                return Err(fault(true));
            }
            if !write || leaf.dirty {
                counters.hits += 1;
                return Ok(physical(&leaf, addr));
            }
        }
        counters.walks += 1;
        cpu.remember_way(page, &walk);
        if !allowed {
            if self.hardware.fault_forgets() {
                cpu.forget(page);
            } else if walk.found.is_some_and(|found| found.accessed) {
                // What refuses is remembered just as well.
                cpu.remember(page, &walk);
            } else if walk.found.is_none() && self.hardware.remembers_absence() {
                cpu.remember_absence(page, walk.end);
            }
            return Err(fault(walk.found.is_some()));
        }
        walk.mark(&self.arena, self.hardware, write);
        cpu.remember(page, &walk);
        walk.found.map(|found| physical(&found, addr)).ok_or(fault(false))
    }

    /// Compares everything that any CPU remembers with the tables: call it when no batch is open.
    ///
    /// # Panics
    /// When a CPU remembers what the tables do not grant.
    pub fn audit(&self) {
        let state = self.state();
        for cpu in &state.cpus {
            let Some(root) = cpu.root else { continue };
            let pages = cpu.leaves().map(|(page, _)| page).chain(cpu.ways().map(|(page, _)| page));
            for page in pages.chain(cpu.absences()) {
                let walk = walk(&self.arena, self.hardware, root, page);
                compare(cpu, page, &walk);
                if !state.lazy {
                    compare_gains(cpu, self.hardware, page, &walk);
                }
            }
        }
    }

    /// A fault handler's last resort: `cpu` alone forgets what it remembers of the page, absence of
    /// the way to it included (INVLPG, TLBI, SFENCE.VMA).
    pub fn forget(&self, cpu: CpuId, page: Page) {
        self.state().cpus[cpu.index()].forget(page.number());
    }

    /// From now on nobody is made to forget when the tables allow more ([`Platform::gained`]).
    pub fn lazy_gains(&self) {
        self.state().lazy = true;
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
            if self.arena.is_zero_page(frame) {
                continue;
            }
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

    /// # Panics
    /// As `release`, and when the table is not all zero.
    fn release_zeroed_table(&self, table: Frame) {
        let words = self.arena.ptr(table.start()).cast::<AtomicU64>();
        for index in 0..512 {
            // SAFETY: inside the frame; words of tables are only ever accessed as atomics.
            let word = unsafe { &*words.add(index) }.load(Ordering::Relaxed);
            assert_eq!(word, 0, "{table:?} is said to be empty, and word {index} is not");
        }
        self.release(Released::Table(table));
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
                if self.hardware.breaks_before_make() {
                    unbroken(cpu, &self.arena, self.hardware, &what);
                }
                cpu.flush(&what);
            }
        }
    }

    fn gained(&self, space: &SpaceTlb, what: FlushRange<'_>, _: Gain) {
        let mut state = self.state();
        state.counters.gains += 1;
        if state.lazy {
            return;
        }
        for cpu in space.cpus().iter() {
            if let Some(cpu) = state.cpus.get_mut(cpu.index()) {
                cpu.flush(&what);
            }
        }
    }

    fn unwinding(&self) -> bool {
        std::thread::panicking()
    }
}
