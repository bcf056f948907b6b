//! Exceptions and interrupts that arrive in the kernel, and the frame they come with.
//!
//! An exception in the kernel is a bug: it is reported with registers and a backtrace, and the
//! machine ends. Two are special: a fault in a guard page is named a stack overflow (it arrives as
//! a double fault, since the CPU finds no stack to push the page fault on), and an NMI is a request
//! to say where everybody is, after which all go on ([`nmi`]).
#![allow(unsafe_code)] // the entry is assembly

use core::arch::global_asm;
use core::mem::offset_of;

use pagoda_addr::VirtAddr;
use pagoda_kernel_core::machine::UserRegs;
use pagoda_sync::{CpuId, SpinMutex};

use super::console::say;
use super::exit::{Exit, exit};
use super::host::heap;
use super::percpu::{self, Area};
use super::{backtrace, console, guard, irq, lapic, smp, user};

/// The vector of the first of the old controllers' 16 lines; exceptions end below it.
pub(crate) const FIRST_IRQ: u8 = 32;
/// The timer of the CPU's own controller.
pub(crate) const TICK: u8 = 48;
/// Another CPU wants this one to look into its queues.
pub(crate) const KICK: u8 = 49;
/// Another CPU wants this one to forget translations.
pub(crate) const FLUSH: u8 = 50;
/// What the CPU's own controller sends when a request has vanished.
pub(crate) const SPURIOUS: u8 = 63;
/// Vectors that have gates end here.
pub(crate) const VECTORS: u8 = 64;

const DOUBLE_FAULT: u64 = 8;
const NMI: u64 = 2;
const PAGE_FAULT: u64 = 14;

global_asm!(
    include_str!("trap.s"),
    include_str!("user.s"),
    EXCEPTION = sym exception,
    INTERRUPT = sym interrupt,
    GDT = const offset_of!(Area, gdt),
    SCRATCH = const offset_of!(Area, scratch),
    KERNEL_RSP = const offset_of!(Area, kernel_rsp),
    USER_REGS = const offset_of!(Area, user_regs),
    FAULT_RIP = const offset_of!(Area, fault_rip),
    GATE_SERVER = const offset_of!(user::Gate, server),
    GATE_CALL = const offset_of!(user::Gate, call),
    GATE_FAULT = const offset_of!(user::Gate, fault),
    GATE_TRAP = const offset_of!(user::Gate, trap),
    GATE_WHOLE = const offset_of!(user::Gate, whole),
    REGS_BYTES = const size_of::<UserRegs>(),
    NEEDS_IRET = const user::NEEDS_IRET,
    CODE_WORD = const offset_of!(UserRegs, code),
    TSS_RSP0 = const offset_of!(Area, tss) + 4, // its second field, after four reserved bytes
    RAX = const offset_of!(UserRegs, rax),
    RBX = const offset_of!(UserRegs, rbx),
    RCX = const offset_of!(UserRegs, rcx),
    RDX = const offset_of!(UserRegs, rdx),
    RSI = const offset_of!(UserRegs, rsi),
    RDI = const offset_of!(UserRegs, rdi),
    RBP = const offset_of!(UserRegs, rbp),
    RSP = const offset_of!(UserRegs, rsp),
    R8 = const offset_of!(UserRegs, r8),
    R9 = const offset_of!(UserRegs, r9),
    R10 = const offset_of!(UserRegs, r10),
    R11 = const offset_of!(UserRegs, r11),
    R12 = const offset_of!(UserRegs, r12),
    R13 = const offset_of!(UserRegs, r13),
    R14 = const offset_of!(UserRegs, r14),
    R15 = const offset_of!(UserRegs, r15),
    RIP = const offset_of!(UserRegs, rip),
    RFLAGS = const offset_of!(UserRegs, rflags),
);

unsafe extern "C" {
    /// The first of the stubs in `trap.s`, 16 bytes each.
    static trap_stubs: u8;
}

/// The address of the stub for `vector` (below [`VECTORS`]).
pub(crate) fn stub(vector: u8) -> u64 {
    &raw const trap_stubs as u64 + 16 * u64::from(vector)
}

/// What the stubs and `from_kernel` leave on the stack, lowest address first.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs)] // the architecture's own names
pub(crate) struct Frame {
    pub(crate) r15: u64,
    pub(crate) r14: u64,
    pub(crate) r13: u64,
    pub(crate) r12: u64,
    pub(crate) r11: u64,
    pub(crate) r10: u64,
    pub(crate) r9: u64,
    pub(crate) r8: u64,
    pub(crate) rbp: u64,
    pub(crate) rdi: u64,
    pub(crate) rsi: u64,
    pub(crate) rdx: u64,
    pub(crate) rcx: u64,
    pub(crate) rbx: u64,
    pub(crate) rax: u64,
    pub(crate) vector: u64,
    pub(crate) code: u64,
    pub(crate) rip: u64,
    pub(crate) cs: u64,
    pub(crate) rflags: u64,
    pub(crate) rsp: u64,
    pub(crate) ss: u64,
}

/// The name of an exception.
pub(crate) fn name(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug exception",
        NMI => "non-maskable interrupt",
        3 => "breakpoint",
        4 => "overflow",
        5 => "bound range exceeded",
        6 => "invalid opcode",
        7 => "no floating-point unit",
        DOUBLE_FAULT => "double fault",
        10 => "invalid task state",
        11 => "segment not present",
        12 => "stack segment fault",
        13 => "general protection fault",
        PAGE_FAULT => "page fault",
        16 => "floating-point error",
        17 => "alignment check",
        18 => "machine check",
        19 => "vector floating-point error",
        20 => "virtualization exception",
        21 => "control protection exception",
        _ => "unknown exception",
    }
}

/// An exception while the kernel ran. Called by `trap.s`.
extern "C" fn exception(frame: &Frame, cr2: u64) {
    if frame.vector == NMI {
        return nmi(|| report(frame));
    }
    console::urgent();
    smp::stop_others();
    let fault = VirtAddr::new(cr2);
    let on_stack = frame.vector == DOUBLE_FAULT || frame.vector == PAGE_FAULT;
    match guard::owner(fault).filter(|_| on_stack) {
        Some(over) if over.is_overflow() => {
            say!("kernel panic: kernel stack overflow: {fault} is in {over}");
        }
        Some(over) => say!("kernel panic: page fault: {fault} is in {over}"),
        None if frame.vector == PAGE_FAULT => {
            let access = match frame.code {
                code if code & 1 << 4 != 0 => "execution",
                code if code & 1 << 1 != 0 => "write",
                _ => "read",
            };
            let why = if frame.code & 1 != 0 { "not allowed" } else { "nothing is mapped" };
            say!("kernel panic: page fault: {access} at {fault}: {why}{}", guard::place(fault));
        }
        None => {
            say!(
                "kernel panic: {} in the kernel, error code {:#x}",
                name(frame.vector),
                frame.code
            );
        }
    }
    if let Some(misuse) = heap().explain(cr2 as usize).filter(|_| on_stack) {
        say!("{misuse}");
    }
    say!("on {:?}", percpu::id());
    report(frame);
    exit(Exit::Panic)
}

/// An NMI: stops this CPU if the machine is about to end; else `report` says where it is, and it goes
/// on. From outside only the boot CPU gets one, and asks the others.
///
/// Waits for nobody but other CPUs that report, each of which comes to its end: whoever is asked may
/// hold any lock, the big one and the serial line's included.
pub(crate) fn nmi(report: impl FnOnce()) {
    static REPORTS: SpinMutex<()> = SpinMutex::new(());
    smp::stop_if_told();
    if percpu::id() == CpuId::BOOT {
        lapic::nmi_to_all_others();
    }
    let _one_at_a_time = REPORTS.lock();
    let _urgent = console::Urgent::begin();
    say!("NMI: {:?} is here, and goes on:", percpu::id());
    report();
}

/// Registers and backtrace.
fn report(f: &Frame) {
    say!("  rip {:016x}  rsp {:016x}  rflags {:08x}  cs {:x}", f.rip, f.rsp, f.rflags, f.cs);
    say!("  rax {:016x}  rbx {:016x}  rcx {:016x}  rdx {:016x}", f.rax, f.rbx, f.rcx, f.rdx);
    say!("  rsi {:016x}  rdi {:016x}  rbp {:016x}  r8  {:016x}", f.rsi, f.rdi, f.rbp, f.r8);
    say!("  r9  {:016x}  r10 {:016x}  r11 {:016x}  r12 {:016x}", f.r9, f.r10, f.r11, f.r12);
    say!("  r13 {:016x}  r14 {:016x}  r15 {:016x}", f.r13, f.r14, f.r15);
    backtrace::print(f.rip, f.rbp);
}

/// An interrupt while the kernel was idle. Called by `trap.s`.
extern "C" fn interrupt(vector: u64) {
    irq::serve(vector);
}
