//! What a CPU calls its own: an area found through the GS base.
//!
//! The assembly in `trap.s` knows the offsets by `offset_of`; everything else uses
//! [`this`]. Fields are atomics only so that the area may be a static: they are read and written by
//! the CPU that owns them with plain loads and stores.
//!
//! The boot CPU's is a static; those of the others are made before they are started and live for
//! good. Each area also holds the CPU's descriptor table of segments: an exception that arrives
//! while GS is a program's finds the area by asking the CPU where that table is.
#![allow(unsafe_code)] // the GS base and the unsafe trait `Cpus`

use core::arch::asm;
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};

use pagoda_kernel_core::machine::UserRegs;
use pagoda_sync::{CpuId, Cpus, MAX_CPUS, RankTracker};
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
    /// Where the program goes on after the last page fault that was served in place.
    pub(crate) fault_rip: AtomicU64,
    /// May programs write the two bases themselves (CR4.FSGSBASE)?
    pub(crate) fsgsbase: AtomicBool,
    /// Pins held (`Cpus::enter`).
    pins: AtomicU32,
    /// Lock ranks held, a bit for each rank / 10.
    ranks: AtomicU32,
    /// The CPU's number.
    id: AtomicU32,
    /// The number of its interrupt controller.
    pub(crate) apic_id: AtomicU8,
    /// Has it started?
    pub(crate) online: AtomicBool,
    /// Somebody wants something of it: it does not go on idling.
    pub(crate) kicked: AtomicBool,
    /// Its timer has ticked since it began to wait for the big lock.
    pub(crate) ticked: AtomicBool,
    /// The request for a flush that it has not served yet (see `shootdown`).
    pub(crate) flush_ticket: AtomicU64,
    /// Where its stacks for exceptions end; only while it starts.
    pub(crate) own_stacks: [AtomicU64; 3],
    /// Segments (see `tables`).
    pub(crate) gdt: UnsafeCell<[u64; GDT_ENTRIES]>,
    /// The task state segment: stacks for traps.
    pub(crate) tss: UnsafeCell<TaskStateSegment>,
}

// SAFETY: all fields but the TSS and the segments are atomics; these two are written while the CPU
// is being set up and by `enter_user` on the owning CPU, and read by that CPU's hardware.
unsafe impl Sync for Area {}

/// Entries of a table of segments.
pub(crate) const GDT_ENTRIES: usize = 9;

impl Area {
    /// The area of CPU `id`, not in use yet.
    pub(crate) const fn new(id: u32, apic_id: u8) -> Self {
        Self {
            this: AtomicPtr::new(core::ptr::null_mut()),
            kernel_rsp: AtomicU64::new(0),
            user_regs: AtomicPtr::new(core::ptr::null_mut()),
            scratch: AtomicU64::new(0),
            fault_rip: AtomicU64::new(0),
            fsgsbase: AtomicBool::new(false),
            pins: AtomicU32::new(0),
            ranks: AtomicU32::new(0),
            id: AtomicU32::new(id),
            apic_id: AtomicU8::new(apic_id),
            online: AtomicBool::new(false),
            kicked: AtomicBool::new(false),
            ticked: AtomicBool::new(false),
            flush_ticket: AtomicU64::new(0),
            own_stacks: [const { AtomicU64::new(0) }; 3],
            gdt: UnsafeCell::new([0; GDT_ENTRIES]),
            tss: UnsafeCell::new(TaskStateSegment::new()),
        }
    }

    /// Which CPU's it is.
    pub(crate) fn cpu(&self) -> CpuId {
        CpuId::new(self.id.load(Ordering::Relaxed) as usize).unwrap_or_default()
    }
}

/// The boot CPU's.
static BOOT: Area = Area::new(0, 0);
/// All areas that are in use, by CPU.
static AREAS: [AtomicPtr<Area>; MAX_CPUS] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_CPUS];
/// CPUs that there may be, at most; set before anybody asks.
static LIMIT: AtomicUsize = AtomicUsize::new(1);
/// CPUs that have started.
static STARTED: AtomicUsize = AtomicUsize::new(1);

/// The boot CPU's area.
pub(crate) fn boot() -> &'static Area {
    &BOOT
}

/// Makes `area` the executing CPU's.
pub(crate) fn init(area: &'static Area) {
    let pointer = core::ptr::from_ref(area);
    area.this.store(pointer.cast_mut(), Ordering::Relaxed);
    GsBase::write(x86_64::VirtAddr::from_ptr(pointer));
    KernelGsBase::write(x86_64::VirtAddr::zero()); // a program's, until it says otherwise
}

/// Says how many CPUs there may be. Once, before there is an allocator.
pub(crate) fn set_limit(cpus: usize) {
    LIMIT.store(cpus.clamp(1, MAX_CPUS), Ordering::Relaxed);
}

/// How many CPUs there may be.
pub(crate) fn limit() -> usize {
    LIMIT.load(Ordering::Relaxed)
}

/// A further CPU has started; they start in the order of their numbers.
pub(crate) fn publish(area: &'static Area) {
    AREAS[area.cpu().index()].store(core::ptr::from_ref(area).cast_mut(), Ordering::Release);
    STARTED.store(area.cpu().index() + 1, Ordering::Release);
}

/// CPUs that have started.
pub(crate) fn started() -> usize {
    STARTED.load(Ordering::Acquire)
}

/// The area of a CPU that has started.
pub(crate) fn of(cpu: CpuId) -> Option<&'static Area> {
    if cpu == CpuId::BOOT {
        return Some(&BOOT);
    }
    let area = AREAS[cpu.index()].load(Ordering::Acquire);
    // SAFETY: null, or what `publish` stored: an area that lives for good.
    unsafe { area.as_ref() }
}

/// The areas of all CPUs that have started but this one's.
pub(crate) fn others() -> impl Iterator<Item = &'static Area> {
    let me = id();
    (0..started()).filter_map(CpuId::new).filter(move |&cpu| cpu != me).filter_map(of)
}

/// The executing CPU.
#[inline]
pub(crate) fn id() -> CpuId {
    this().cpu()
}

/// The executing CPU's area. Two instructions.
#[inline]
pub(crate) fn this() -> &'static Area {
    let area: *const Area;
    // SAFETY: *kernel-gs*: the GS base is the address of this CPU's area, whose first field holds
    // the same address. Areas live for good.
    unsafe {
        asm!("mov {}, gs:[0]", out(reg) area, options(nostack, preserves_flags, readonly));
        &*area
    }
}

/// The kernel's [`Cpus`]: a count in the CPU's area. The kernel is never pre-empted, so the count
/// serves to assert, not to protect: no switch while pinned, no pin in a handler of hard interrupts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct KernelCpus;

// SAFETY: *pin-exclusive*: kernel code is never pre-empted and stays on its CPU until it switches
// or waits, which asserts that nothing is pinned; interrupt handlers do not pin.
unsafe impl Cpus for KernelCpus {
    #[inline]
    fn limit(&self) -> usize {
        limit()
    }

    /// Two instructions.
    #[inline]
    fn enter(&self) -> CpuId {
        let id: u64;
        // SAFETY: *kernel-gs*: the fields of this CPU's area. What is done while pinned stays
        // behind this: the assembly counts as a use of memory.
        unsafe {
            asm!(
                "inc dword ptr gs:[{pins}]",
                "mov {id:e}, dword ptr gs:[{number}]",
                id = lateout(reg) id,
                pins = const offset_of!(Area, pins),
                number = const offset_of!(Area, id),
                options(nostack),
            );
            core::hint::assert_unchecked(id < MAX_CPUS as u64);
        }
        CpuId::new(id as usize).unwrap_or_default()
    }

    /// Three instructions. Nearly every pin is the outermost one, and a constant waits for nothing: a
    /// count that is loaded, changed and stored by each step is a chain of twenty cycles for an
    /// allocation and its free.
    #[inline]
    unsafe fn leave(&self) {
        // SAFETY: as in `enter`.
        unsafe {
            asm!(
                "cmp dword ptr gs:[{pins}], 1",
                "jne {nested}",
                "mov dword ptr gs:[{pins}], 0",
                nested = label { leave_nested() },
                pins = const offset_of!(Area, pins),
                options(nostack),
            );
        }
    }
}

/// The end of a pin that is not the only one.
#[cold]
#[inline(never)]
fn leave_nested() {
    let pins = &this().pins;
    let before = pins.load(Ordering::Relaxed);
    assert!(before & IN_HANDLER == 0, "a handler of hard interrupts allocated, freed or pinned");
    pins.store(before.wrapping_sub(1), Ordering::Relaxed);
}

/// Set in [`Area::pins`] while a handler of hard interrupts runs on the CPU: whoever pins then
/// stops loudly. (And nobody else is stopped: the count of pins is compared with 1 in any case.)
const IN_HANDLER: u32 = 1 << 31;

/// A handler of hard interrupts runs `inside`.
#[inline]
pub(crate) fn in_handler<T>(inside: impl FnOnce() -> T) -> T {
    let pins = &this().pins;
    pins.store(pins.load(Ordering::Relaxed) | IN_HANDLER, Ordering::Relaxed);
    let value = inside();
    pins.store(pins.load(Ordering::Relaxed) & !IN_HANDLER, Ordering::Relaxed);
    value
}

/// Stops loudly when somebody is about to switch or wait while pinned or with a lock held.
#[inline]
pub(crate) fn assert_unpinned() {
    let area = this();
    if area.pins.load(Ordering::Relaxed) | area.ranks.load(Ordering::Relaxed) != 0 {
        held(area);
    }
}

/// May the executing CPU take a lock of this rank, with what it holds?
pub(crate) fn may_take(rank: u8) -> bool {
    this().ranks.load(Ordering::Relaxed) < 1 << (rank / 10)
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
