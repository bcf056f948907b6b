//! What a machine is like, and what can happen on it.

use std::fmt;

use pagoda_addr::VirtAddr;

/// Which architecture's tables the CPUs walk, and the choices that it leaves to machines.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mmu {
    /// x86-64.
    X86_64,
    /// AArch64 with 4 KiB pages; the root is that of the upper half or of the lower one. Demands
    /// break-before-make; nothing but software keeps the history.
    Aarch64 {
        /// TTBR1 instead of TTBR0.
        upper: bool,
    },
    /// RISC-V; CPUs remember absence.
    RiscV {
        /// The machine sets A and D; otherwise it faults where they are clear (Svade).
        svadu: bool,
    },
}

/// What the machine is like.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Which architecture's tables the CPUs walk.
    pub mmu: Mmu,
    /// CPUs, from 0.
    pub cpus: usize,
    /// Frames of RAM.
    pub frames: u64,
    /// Where RAM begins.
    pub first_frame: u64,
    /// Levels of tables: 4 or 5, on RISC-V 3 too, on AArch64 4.
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
            mmu: Mmu::X86_64,
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
    /// The kernel, with SMEP, SMAP (PAN, SUM clear) and write protection on: it never touches a program's pages.
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

impl std::error::Error for PageFault {}

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
    /// Calls of `gained`.
    pub gains: u64,
}
