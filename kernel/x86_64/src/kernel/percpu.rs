//! What a CPU calls its own: an area found through the GS base.
//!
//! The assembly in `trap.s` knows the offsets by `offset_of`; everything else uses
//! [`this`]. Fields are atomics only so that the area may be a static: they are read and written by
//! the CPU that owns them with plain loads and stores.
//!
//! One CPU is started, so there is one area. A second one needs its own, reached in the same way.
#![allow(unsafe_code)] // the GS base and the unsafe trait `Cpus`

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use pagoda_kernel_core::machine::UserRegs;
use pagoda_sync::{CpuId, Cpus, RankTracker};
use x86_64::registers::model_specific::{GsBase, KernelGsBase};
use x86_64::structures::tss::TaskStateSegment;

/// One CPU's own area.
#[repr(C)]
pub(crate) struct Area {
    /// The area's own address, so that one load from GS gives a pointer.
    this: AtomicPtr<Area>,
    /// Where `enter_user` left the kernel stack; a trap from user mode goes on there.
    pub(crate) kernel_rsp: AtomicU64,
    /// The registers of the program that runs, filled by the trap entry.
    pub(crate) user_regs: AtomicPtr<UserRegs>,
    /// One register's worth of room for the entries.
    pub(crate) scratch: AtomicU64,
    /// Of the last trap from user mode: its vector ([`super::user::SYSCALL`] for a system call).
    pub(crate) vector: AtomicU64,
    /// Of the last trap from user mode: its error code.
    pub(crate) code: AtomicU64,
    /// Of the last trap from user mode: CR2, read before anything could overwrite it.
    pub(crate) cr2: AtomicU64,
    /// May programs write the two bases themselves (CR4.FSGSBASE)?
    pub(crate) fsgsbase: AtomicBool,
    /// Pins held (`Cpus::enter`).
    pins: AtomicU32,
    /// Lock ranks held, a bit for each rank / 10.
    ranks: AtomicU32,
    /// The CPU's number.
    id: AtomicU32,
    /// The task state segment: stacks for traps.
    pub(crate) tss: UnsafeCell<TaskStateSegment>,
}

// SAFETY: all fields but the TSS are atomics; the TSS is written while the CPU is being set up and
// by `enter_user` on the owning CPU, and read by that CPU's hardware.
unsafe impl Sync for Area {}

/// The boot CPU's.
pub(crate) static BOOT: Area = Area {
    this: AtomicPtr::new(core::ptr::null_mut()),
    kernel_rsp: AtomicU64::new(0),
    user_regs: AtomicPtr::new(core::ptr::null_mut()),
    scratch: AtomicU64::new(0),
    vector: AtomicU64::new(0),
    code: AtomicU64::new(0),
    cr2: AtomicU64::new(0),
    fsgsbase: AtomicBool::new(false),
    pins: AtomicU32::new(0),
    ranks: AtomicU32::new(0),
    id: AtomicU32::new(0),
    tss: UnsafeCell::new(TaskStateSegment::new()),
};

/// Makes [`BOOT`] the executing CPU's area.
pub(crate) fn init() {
    BOOT.this.store((&raw const BOOT).cast_mut(), Ordering::Relaxed);
    GsBase::write(x86_64::VirtAddr::from_ptr(&raw const BOOT));
    KernelGsBase::write(x86_64::VirtAddr::zero()); // a program's, until it says otherwise
}

/// The executing CPU's area. Two instructions.
#[inline]
pub(crate) fn this() -> &'static Area {
    let area: *const Area;
    // SAFETY: *kernel-gs*: the GS base is the address of this CPU's area, whose first field holds
    // the same address. Areas are statics.
    unsafe {
        asm!("mov {}, gs:[0]", out(reg) area, options(nostack, preserves_flags, readonly));
        &*area
    }
}

/// The kernel's [`Cpus`]: a count in the CPU's area. The kernel is never pre-empted, so the count
/// serves to assert, not to protect.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct KernelCpus;

// SAFETY: *pin-exclusive*: kernel code is never pre-empted and stays on its CPU until it switches
// or waits, which asserts that nothing is pinned; interrupt handlers do not pin.
unsafe impl Cpus for KernelCpus {
    #[inline]
    fn limit(&self) -> usize {
        1
    }

    #[inline]
    fn enter(&self) -> CpuId {
        let area = this();
        area.pins.store(area.pins.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        CpuId::BOOT
    }

    #[inline]
    unsafe fn leave(&self) {
        let area = this();
        area.pins.store(area.pins.load(Ordering::Relaxed).wrapping_sub(1), Ordering::Relaxed);
    }
}

/// Stops loudly when somebody is about to switch or wait while pinned or with a lock held.
#[inline]
pub(crate) fn assert_unpinned() {
    let area = this();
    if area.pins.load(Ordering::Relaxed) | area.ranks.load(Ordering::Relaxed) != 0 {
        held(area);
    }
}

/// Says what [`assert_unpinned`] has found.
#[cold]
fn held(area: &Area) -> ! {
    assert!(area.pins.load(Ordering::Relaxed) == 0, "switched while pinned to a CPU");
    panic!("switched with a lock held");
}

/// Checks *rank-ascending* for the kernel's locks. Ranks are multiples of ten below 320.
#[derive(Debug)]
pub(crate) struct KernelRanks;

impl RankTracker for KernelRanks {
    #[inline]
    fn acquire(rank: u8) {
        let area = this();
        let held = area.ranks.load(Ordering::Relaxed);
        let bit = 1 << (rank / 10);
        assert!(held < bit, "lock of rank {rank} taken while holding ranks {held:#b} (tens)");
        area.ranks.store(held | bit, Ordering::Relaxed);
    }

    #[inline]
    fn acquired_by_try(rank: u8) {
        let area = this();
        area.ranks.store(area.ranks.load(Ordering::Relaxed) | 1 << (rank / 10), Ordering::Relaxed);
    }

    #[inline]
    fn release(rank: u8) {
        let area = this();
        let held = area.ranks.load(Ordering::Relaxed);
        area.ranks.store(held & !(1 << (rank / 10)), Ordering::Relaxed);
    }
}
