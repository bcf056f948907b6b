//! Descriptor tables: segments, the task state with its stacks, and the 256 gates.
//!
//! Selectors are Linux's own, because programs see some of them in signal frames: 0x10 kernel code,
//! 0x18 kernel data, 0x2b user data, 0x33 user code. The place where Linux keeps 32-bit user code
//! holds a null descriptor, so that there is no way into compatibility mode.
//!
//! | gate | stack | from user mode |
//! |---|---|---|
//! | double fault | its own | - |
//! | NMI | its own | reported, the program goes on |
//! | machine check | its own | ends the machine |
//! | breakpoint, overflow | the thread's | allowed by `int3`, `into` |
//! | all others | the thread's | only by the CPU |
#![allow(unsafe_code)] // loads descriptor tables

use core::cell::UnsafeCell;

use pagoda_addr::{VirtAddr, VirtRange};
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::{lgdt, load_tss};
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::{Descriptor, DescriptorFlags, SegmentSelector};
use x86_64::structures::idt::InterruptDescriptorTable;
use x86_64::{PrivilegeLevel, VirtAddr as RawVirtAddr};

use super::once::Once;
use super::percpu::{Area, GDT_ENTRIES};
use super::{percpu, trap};

/// Kernel code.
pub(crate) const KERNEL_CODE: u16 = 0x10;
/// Kernel data: the stack segment after `syscall`.
pub(crate) const KERNEL_DATA: u16 = 0x18;
/// What `sysret` counts from: user data is 8 above, user code 16, privilege 3.
pub(crate) const SYSRET_BASE: u16 = 0x23;
/// The task state segment.
const TASK: u16 = 0x38;
/// User data, as a program sees it.
pub(crate) const USER_DATA: u16 = 0x2b;
/// User code, as a program sees it.
pub(crate) const USER_CODE: u16 = 0x33;

/// The exceptions with a stack of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnStack {
    DoubleFault = 0,
    Nmi = 1,
    MachineCheck = 2,
}

const OWN_STACK_BYTES: usize = 16 * 1024;

#[repr(C, align(4096))]
struct Stack(UnsafeCell<[u8; OWN_STACK_BYTES]>);

// SAFETY: never touched as Rust data; only its address is taken, for the CPU to use as a stack.
unsafe impl Sync for Stack {}

static OWN_STACKS: [Stack; 3] = [const { Stack(UnsafeCell::new([0; OWN_STACK_BYTES])) }; 3];

static IDT: Once<InterruptDescriptorTable> = Once::new();

/// The boot CPU's stacks that no other code ever runs on.
pub(crate) fn own_stacks() -> impl Iterator<Item = VirtRange> {
    OWN_STACKS
        .iter()
        .map(|s| VirtRange::clamped(VirtAddr::new(s.0.get() as u64), OWN_STACK_BYTES as u64))
}

/// Loads all tables on the boot CPU, and makes its own area its own.
pub(crate) fn init() {
    let mut tops = [0; 3];
    for (top, stack) in tops.iter_mut().zip(own_stacks()) {
        *top = stack.end().as_u64();
    }
    load(percpu::boot(), tops);
    // Gates lead to the code segment that is loaded now.
    let mut idt = InterruptDescriptorTable::new();
    fill(&mut idt);
    if let Ok(idt) = IDT.set(idt) {
        idt.load();
    }
}

/// Makes `area` the executing CPU's own, and loads all tables there. `tops` are the ends of the
/// stacks of [`OwnStack`], in its order.
pub(crate) fn load(area: &'static Area, tops: [u64; 3]) {
    percpu::init(area);
    // SAFETY: the area's TSS is not loaded yet and no other reference to it exists. All its fields
    // may lie at any multiple of four; whole fields are assigned, none is borrowed.
    let tss = unsafe { &mut *area.tss.get() };
    let mut stacks = [RawVirtAddr::zero(); 7];
    for (place, top) in stacks.iter_mut().zip(tops) {
        *place = RawVirtAddr::new(top);
    }
    tss.interrupt_stack_table = stacks;

    // SAFETY: the TSS lives as long as the area, for good.
    let (low, high) = match unsafe { Descriptor::tss_segment_unchecked(area.tss.get()) } {
        Descriptor::SystemSegment(low, high) => (low, high),
        Descriptor::UserSegment(low) => (low, 0),
    };
    let gdt: [u64; GDT_ENTRIES] = [
        0,
        0,                                     // 0x08: unused
        DescriptorFlags::KERNEL_CODE64.bits(), // 0x10
        DescriptorFlags::KERNEL_DATA.bits(),   // 0x18
        0,                                     // 0x20: no 32-bit user code
        DescriptorFlags::USER_DATA.bits(),     // 0x28
        DescriptorFlags::USER_CODE64.bits(),   // 0x30
        low,                                   // 0x38: the task
        high,
    ];
    let pointer = DescriptorTablePointer {
        limit: (size_of_val(&gdt) - 1) as u16,
        base: RawVirtAddr::from_ptr(area.gdt.get()),
    };
    // SAFETY: the table is not loaded yet and no reference to it exists; from now on only the CPU
    // writes it (the task's busy bit). It lives for good and holds what `user.rs` relies on.
    unsafe {
        *area.gdt.get() = gdt;
        lgdt(&pointer);
    }
    let kernel = |selector: u16| SegmentSelector::new(selector / 8, PrivilegeLevel::Ring0);
    // SAFETY: the selectors name the code, data and task segments just loaded; null is allowed for
    // the data segments, which 64-bit mode ignores.
    unsafe {
        CS::set_reg(kernel(KERNEL_CODE));
        SS::set_reg(kernel(KERNEL_DATA));
        DS::set_reg(SegmentSelector::NULL);
        ES::set_reg(SegmentSelector::NULL);
        load_tss(kernel(TASK));
    }
    if let Some(idt) = IDT.get() {
        idt.load();
    }
}

fn fill(idt: &mut InterruptDescriptorTable) {
    /// Sets one gate to its stub in `trap.s`.
    macro_rules! gate {
        ($entry:expr, $vector:expr) => {
            // SAFETY: the stub for this vector expects exactly the frame that the CPU pushes for
            // it, saves every register and returns with `iretq`.
            unsafe { $entry.set_handler_addr(RawVirtAddr::new(trap::stub($vector))) }
        };
        ($entry:expr, $vector:expr, $stack:expr) => {{
            let options = gate!($entry, $vector);
            // SAFETY: the slot of the table of stacks was filled above, and only this vector has it.
            unsafe { options.set_stack_index($stack as u16) }
        }};
    }
    gate!(idt.divide_error, 0);
    gate!(idt.debug, 1);
    gate!(idt.non_maskable_interrupt, 2, OwnStack::Nmi);
    gate!(idt.breakpoint, 3).set_privilege_level(PrivilegeLevel::Ring3);
    gate!(idt.overflow, 4).set_privilege_level(PrivilegeLevel::Ring3);
    gate!(idt.bound_range_exceeded, 5);
    gate!(idt.invalid_opcode, 6);
    gate!(idt.device_not_available, 7);
    gate!(idt.double_fault, 8, OwnStack::DoubleFault);
    gate!(idt.invalid_tss, 10);
    gate!(idt.segment_not_present, 11);
    gate!(idt.stack_segment_fault, 12);
    gate!(idt.general_protection_fault, 13);
    gate!(idt.page_fault, 14);
    gate!(idt.x87_floating_point, 16);
    gate!(idt.alignment_check, 17);
    gate!(idt.machine_check, 18, OwnStack::MachineCheck);
    gate!(idt.simd_floating_point, 19);
    gate!(idt.virtualization, 20);
    gate!(idt.cp_protection_exception, 21);
    gate!(idt.vmm_communication_exception, 29);
    gate!(idt.security_exception, 30);
    for vector in trap::FIRST_IRQ..trap::VECTORS {
        gate!(idt[vector], vector);
    }
}
