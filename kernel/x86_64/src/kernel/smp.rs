//! Starting the other CPUs, giving them work, and stopping them.
//!
//! [`start`] brings up one CPU after another, by INIT and start-up messages to the page that the
//! boot map keeps free for this ([`TRAMPOLINE`], `smp.s`). A CPU sets up what is its own (area,
//! tables, features, controller) and *parks*: it waits with interrupts on, outside the big lock,
//! and forgets translations when asked. [`run_others`] lets all of them call a function, with the
//! big lock held, and [`join`] waits until all have come back and are parked again.
//!
//! A CPU that does not answer in time is reset and not counted, nor are those after it tried with
//! its number: numbers stay dense.
//!
//! [`stop_others`] is for the end of the machine: an NMI, and no way back.
//!
//! `cpus=N` on the command line uses at most N.
//!
//! Left out: taking CPUs away while the kernel runs, clocks that differ between CPUs.
#![allow(unsafe_code)] // starts CPUs

use alloc::alloc::{Layout, alloc};
use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use pagoda_addr::{PhysMap, VirtAddr};
use pagoda_sync::CpuId;
use x86_64::instructions::{hlt, interrupts};
use x86_64::registers::control::Cr4Flags;
use x86_64::registers::model_specific::{Efer, EferFlags};

use super::boot_info::{Loaded, TRAMPOLINE};
use super::host::{DirectMap, KERNEL, heap};
use super::percpu::{self, Area};
use super::{
    acpi, big_lock, cpu, fpu, lapic, layout, levels, nodes, shootdown, tables, time, trap, user,
};

const TRAMPOLINE_AT: u64 = TRAMPOLINE.start().as_u64();
/// Pages of a CPU's own stacks: one to park and idle on, three for exceptions.
const STACK_PAGES: u64 = 8;
const OWN_STACK_PAGES: u64 = 4;
/// How long a CPU may take to start.
const PATIENCE_NS: u64 = 3_000_000_000;

global_asm!(
    include_str!("smp.s"),
    TRAMPOLINE = const TRAMPOLINE_AT,
    OTHER_ENTRY = sym other_entry,
);

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_words: u8;
    static trampoline_end: u8;
    static boot_tables: u8;
    static boot_root_of_five: u8;
}

/// What the trampoline finds behind its code.
#[repr(C)]
struct Words {
    boot_tables: u64,
    efer: u64,
    root: u64,
    stack: u64,
    area: u64,
    cr4: u64,
}

/// What the parked CPUs are to do; null: nothing.
static WORK: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());
static ARGUMENT: AtomicUsize = AtomicUsize::new(0);
/// Counts calls of [`run_others`], so that no CPU does the same work twice.
static ROUND: AtomicU64 = AtomicU64::new(0);
/// CPUs that have not come back from their work.
static WORKING: AtomicUsize = AtomicUsize::new(0);
static STOPPING: AtomicBool = AtomicBool::new(false);

/// Finds out how many CPUs there may be. Before there is an allocator, while the loader's memory
/// can be read.
pub(crate) fn count(loaded: &Loaded) {
    let boot = cpu::apic_id();
    percpu::boot().apic_id.store(boot, Ordering::Relaxed);
    acpi::read(loaded, boot);
    nodes::read(loaded);
    time::init_by_acpi();
    let there = acpi::processors().map_or(1, |processors| processors.ids().len());
    let allowed = loaded
        .command_line()
        .split(u8::is_ascii_whitespace)
        .rev()
        .find_map(|word| str::from_utf8(word.strip_prefix(b"cpus=")?).ok()?.parse().ok())
        .unwrap_or(usize::MAX);
    percpu::set_limit(there.min(allowed.max(1)));
}

/// Starts the other CPUs. Called once, by the boot CPU.
pub(crate) fn start() {
    let there = acpi::processors().map_or(1, |processors| processors.ids().len());
    if lapic::present() && percpu::limit() > 1 {
        start_all();
    }
    let started = percpu::started();
    log::info!("    {started} CPUs, of {there} in the machine");
}

fn start_all() {
    let Some(processors) = acpi::processors() else { return };
    debug_assert_eq!(lapic::id(), percpu::boot().apic_id.load(Ordering::Relaxed));
    let length = &raw const trampoline_end as usize - &raw const trampoline as usize;
    debug_assert!(length as u64 <= TRAMPOLINE.len());
    if !KERNEL.map.get().is_some_and(|map| map.ram().any(|ram| ram.contains_range(TRAMPOLINE))) {
        return log::warn!("there is no memory where further CPUs start");
    }
    // SAFETY: the page is RAM that the boot map keeps free for this; the code lies in the image.
    unsafe {
        let page = DirectMap.ptr(TRAMPOLINE.start());
        page.copy_from_nonoverlapping(&raw const trampoline, length);
    }
    for &apic_id in processors.ids().iter().skip(1) {
        let number = percpu::started();
        if number >= percpu::limit() {
            break;
        }
        match prepare(number, apic_id) {
            Some((area, stack)) => start_one(area, stack),
            None => return log::warn!("no memory for CPU {number}"),
        }
    }
}

/// An area with its stacks; where the stack to park on ends. All of it for good.
fn prepare(number: usize, apic_id: u8) -> Option<(&'static Area, u64)> {
    let ranges = KERNEL.ranges.get()?;
    let stack_end = |pages| {
        let stack = ranges.alloc_stack(pages).ok()?;
        Some(stack.pages().addresses().end().as_u64())
    };
    // SAFETY: the layout has a size.
    let place: *mut Area = unsafe { alloc(Layout::new::<Area>()) }.cast();
    if place.is_null() {
        return None;
    }
    // SAFETY: fresh memory of the right size and alignment, never given back.
    let area: &'static Area = unsafe {
        place.write(Area::new(u32::try_from(number).ok()?, apic_id));
        &*place
    };
    for place in &area.own_stacks {
        place.store(stack_end(OWN_STACK_PAGES)?, Ordering::Relaxed);
    }
    Some((area, stack_end(STACK_PAGES)?))
}

/// Starts one CPU and waits until it is there.
fn start_one(area: &'static Area, stack: u64) {
    let Some(table) = KERNEL.table.get() else { return };
    let efer = Efer::read() & (EferFlags::LONG_MODE_ENABLE | EferFlags::NO_EXECUTE_ENABLE);
    let five = levels::count() == 5;
    let tables = if five { &raw const boot_root_of_five } else { &raw const boot_tables };
    let tables = VirtAddr::new(tables as u64);
    let mut cr4 = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION;
    cr4.set(Cr4Flags::L5_PAGING, five);
    let words = Words {
        boot_tables: layout::image_phys(tables).as_u64(),
        efer: efer.bits(),
        root: table.root().start().as_u64(),
        stack,
        area: core::ptr::from_ref(area) as u64,
        cr4: cr4.bits(),
    };
    let offset = &raw const trampoline_words as usize - &raw const trampoline as usize;
    // SAFETY: inside the trampoline's page, aligned to eight; no CPU runs there: the one before has
    // answered or was reset.
    unsafe { DirectMap.ptr(TRAMPOLINE.start()).add(offset).cast::<Words>().write_volatile(words) };
    // Before it loads the root.
    table.space().join(area.cpu());
    let apic_id = area.apic_id.load(Ordering::Relaxed);
    let is_there = |wait_ns: u64| {
        let start = time::since_boot_ns();
        while !area.online.load(Ordering::Acquire) {
            if time::since_boot_ns() - start > wait_ns {
                return false;
            }
            core::hint::spin_loop();
        }
        true
    };
    lapic::reset(apic_id);
    is_there(10_000_000);
    let page = (TRAMPOLINE_AT / pagoda_addr::PAGE_SIZE) as u8;
    lapic::start_up(apic_id, page);
    if !is_there(10_000_000) {
        lapic::start_up(apic_id, page);
    }
    if is_there(PATIENCE_NS) {
        percpu::publish(area);
    } else {
        lapic::reset(apic_id);
        table.space().leave(area.cpu());
        log::warn!("the CPU with APIC {apic_id} does not start");
    }
}

/// A further CPU's first Rust code, on its own stack and the final table.
extern "C" fn other_entry(area: &'static Area) -> ! {
    let [a, b, c] = &area.own_stacks;
    let tops = [a, b, c].map(|top| top.load(Ordering::Relaxed));
    tables::load(area, tops);
    cpu::init_other();
    fpu::init_other();
    user::init();
    lapic::enable();
    area.online.store(true, Ordering::Release);
    park()
}

/// What a CPU does that has nothing to do.
fn park() -> ! {
    let mut done = 0;
    loop {
        let round = ROUND.load(Ordering::Acquire);
        let work = WORK.load(Ordering::Acquire);
        if round == done || work.is_null() {
            interrupts::enable_and_hlt();
            interrupts::disable();
            shootdown::serve();
            continue;
        }
        done = round;
        // SAFETY: `run_others` stored it: a function of this type.
        let work: extern "C" fn(usize) = unsafe { core::mem::transmute(work) };
        big_lock::acquire();
        work(ARGUMENT.load(Ordering::Relaxed));
        heap().drain();
        if let Some(Err(error)) = KERNEL.frames.get().map(|frames| frames.drain_cpu()) {
            panic!("frames: {error}");
        }
        WORKING.fetch_sub(1, Ordering::Release);
        big_lock::release();
    }
}

/// Lets every other CPU call `work(argument)`. The caller holds the big lock, and calls [`join`]
/// before the next time.
pub(crate) fn run_others(work: extern "C" fn(usize), argument: usize) {
    WORKING.store(percpu::started() - 1, Ordering::Relaxed);
    ARGUMENT.store(argument, Ordering::Relaxed);
    WORK.store(work as *mut (), Ordering::Release);
    ROUND.fetch_add(1, Ordering::Release);
    kick_others();
}

/// Waits until every other CPU has come back from its work. Gives the big lock away meanwhile.
pub(crate) fn join() {
    while WORKING.load(Ordering::Acquire) != 0 {
        kick_others();
        big_lock::release();
        for _ in 0..1000 {
            shootdown::serve();
            core::hint::spin_loop();
        }
        big_lock::acquire();
    }
    WORK.store(core::ptr::null_mut(), Ordering::Release);
}

fn kick_others() {
    for area in percpu::others() {
        lapic::send(area.apic_id.load(Ordering::Relaxed), trap::KICK);
    }
}

/// Makes another CPU enter the kernel, or leave idle, soon.
pub(crate) fn kick(cpu: CpuId) {
    if let Some(area) = percpu::of(cpu).filter(|_| cpu != percpu::id()) {
        lapic::send(area.apic_id.load(Ordering::Relaxed), trap::KICK);
    }
}

/// Makes this CPU enter the kernel again as soon as it has left it.
pub(crate) fn kick_self() {
    lapic::send(percpu::this().apic_id.load(Ordering::Relaxed), trap::KICK);
}

/// Ends what the other CPUs do, for good: the machine is about to end.
pub(crate) fn stop_others() {
    if percpu::started() > 1 && !STOPPING.swap(true, Ordering::SeqCst) {
        lapic::nmi_to_all_others();
    }
}

/// On an NMI: stops here if that is what it was for.
pub(crate) fn stop_if_told() {
    if STOPPING.load(Ordering::SeqCst) {
        interrupts::disable();
        loop {
            hlt();
        }
    }
}
