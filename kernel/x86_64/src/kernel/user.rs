//! Running programs: [`run`] enters user mode and returns when the program has trapped.
//!
//! What a program could do to the kernel on this border, and why it cannot:
//!
//! - a return address that is not canonical would make `sysret` fault in kernel mode on the user's
//!   stack: `sysret` is only used for addresses below [`USER_END`], and `iret` only for canonical
//!   ones; anything else is answered with the fault itself;
//! - flags that open SMAP (AC), run string instructions backwards (DF), single-step the kernel
//!   (TF), let interrupts in (IF) or nest tasks (NT): cleared by SFMASK on `syscall`, and by
//!   `leave_user` on every other way in; I/O privilege is never given;
//! - a GS base that looks like the kernel's: the kernel never asks which of the two it has, it
//!   knows (*kernel-gs*); the entries for NMI and machine check set their own.
#![allow(unsafe_code)] // enters user mode

use core::sync::atomic::Ordering;

use pagoda_addr::VirtAddr;
use pagoda_kernel_core::machine::{Trap, UserRegs};
use x86_64::registers::model_specific::{Efer, FsBase, KernelGsBase, LStar, Msr, SFMask, Star};
use x86_64::registers::rflags::RFlags;

use super::layout::USER_END;
use super::trap::{FIRST_IRQ, VECTORS};
use super::{big_lock, console, exit, irq, levels, percpu, smp, tables, trap};

/// What the system call entry leaves in place of a vector.
pub(crate) const SYSCALL: u64 = 0x100;

/// Addresses with no bit above these are canonical, and a program's.
const LOWER_HALF_BITS: u32 = 47;

const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u64 = 14;
const NMI: u64 = 2;
const MACHINE_CHECK: u64 = 18;
const DOUBLE_FAULT: u64 = 8;

/// Flags that are the program's own business: arithmetic, TF, DF, RF, AC, ID.
const PROGRAMS_FLAGS: u64 = 0x0025_0dd5;
/// Flags that are always set in user mode: interrupts on, and the bit that is always 1.
const USER_FLAGS: u64 = 0x202;
/// Flags that `sysret` and the trap that follows would treat differently from `iret`: TF, RF.
const NEEDS_IRET: u64 = 1 << 8 | 1 << 16;

unsafe extern "C" {
    fn enter_user(registers: *mut UserRegs, by_sysret: u32);
    fn syscall_entry();
}

/// Sets up `syscall` and `sysret` on the executing CPU.
pub(crate) fn init() {
    let entry: unsafe extern "C" fn() = syscall_entry;
    LStar::write(x86_64::VirtAddr::new(entry as usize as u64));
    SFMask::write(
        RFlags::INTERRUPT_FLAG
            | RFlags::DIRECTION_FLAG
            | RFlags::ALIGNMENT_CHECK
            | RFlags::TRAP_FLAG
            | RFlags::NESTED_TASK
            | RFlags::RESUME_FLAG
            | RFlags::IOPL_LOW
            | RFlags::IOPL_HIGH
            | RFlags::CARRY_FLAG
            | RFlags::PARITY_FLAG
            | RFlags::AUXILIARY_CARRY_FLAG
            | RFlags::ZERO_FLAG
            | RFlags::SIGN_FLAG
            | RFlags::OVERFLOW_FLAG,
    );
    // SAFETY: the selectors are those of the table that is loaded (see tables.rs): after `syscall`
    // kernel code and data, after `sysret` user code and data. The other entry, `sysenter`, stays
    // closed: a null code selector makes it fault.
    unsafe {
        Star::write_raw(tables::SYSRET_BASE, tables::KERNEL_CODE);
        Msr::new(0x174).write(0);
    }
    debug_assert!(
        Efer::read().contains(x86_64::registers::model_specific::EferFlags::SYSTEM_CALL_EXTENSIONS)
    );
}

/// Runs the program whose registers these are until it traps. See the trait `Machine`. The big lock
/// is free meanwhile.
///
/// Interrupts are served before the big lock is taken: its holder may be waiting for an answer, and
/// as long as one interrupt is not ended no other one comes in. After a request to forget
/// translations the program goes on at once.
///
/// Every trap of every program comes through here: about 50 instructions besides `enter_user`.
#[inline]
pub(crate) fn run(regs: &mut UserRegs) -> Trap {
    percpu::assert_unpinned();
    big_lock::release();
    let area = percpu::this();
    let vector = loop {
        if !enter(regs) {
            big_lock::acquire();
            return Trap::Exception { vector: GENERAL_PROTECTION, code: 0 };
        }
        let vector = area.vector.load(Ordering::Relaxed);
        if (FIRST_IRQ.into()..VECTORS.into()).contains(&vector) {
            irq::serve(vector);
            if vector == u64::from(trap::FLUSH) {
                continue;
            }
        }
        break vector;
    };
    big_lock::acquire();
    if vector == SYSCALL {
        return Trap::Syscall;
    }
    let code = area.code.load(Ordering::Relaxed);
    if vector == PAGE_FAULT {
        return Trap::PageFault {
            addr: VirtAddr::new(area.cr2.load(Ordering::Relaxed)),
            write: code & 1 << 1 != 0,
            exec: code & 1 << 4 != 0,
            present: code & 1 != 0,
        };
    }
    classify(vector, code)
}

/// Enters user mode once, and comes back when the program has trapped. False, and nothing was
/// entered, when that itself would fault.
#[inline]
fn enter(regs: &mut UserRegs) -> bool {
    // A program lives in the lower half: one test for the address and both bases.
    if (regs.rip | regs.fs_base | regs.gs_base) >> LOWER_HALF_BITS != 0 && !bases_canonical(regs) {
        return false;
    }
    regs.rflags = regs.rflags & PROGRAMS_FLAGS | USER_FLAGS;
    let differs = (regs.rcx ^ regs.rip) | (regs.r11 ^ regs.rflags) | (regs.rflags & NEEDS_IRET);
    let by_sysret = differs == 0 && regs.rip < USER_END;
    load_bases(regs);
    // SAFETY: the address is canonical and the flags are a program's, so leaving cannot fault; by
    // `sysret` only with an address in the lower half. `regs` is exclusively borrowed until the
    // trap entries have filled it and come back here. The active page table maps the kernel like
    // all others do. Interrupts are off.
    unsafe { enter_user(regs, u32::from(by_sysret)) };
    true
}

/// May the address and the bases be loaded? Rarely asked: see [`enter`].
#[cold]
fn bases_canonical(regs: &UserRegs) -> bool {
    let bits = levels::address_bits();
    [regs.rip, regs.fs_base, regs.gs_base].iter().all(|&at| VirtAddr::new(at).is_canonical(bits))
}

/// Loads the FS and GS bases where programs cannot write them (without FSGSBASE; with it,
/// `enter_user` does). Each time: a program changes the base that the CPU holds by loading a
/// selector, and the next program must not find that.
#[inline]
fn load_bases(regs: &UserRegs) {
    if !percpu::this().fsgsbase.load(Ordering::Relaxed) {
        load_bases_by_msr(regs);
    }
}

#[cold]
fn load_bases_by_msr(regs: &UserRegs) {
    FsBase::write(x86_64::VirtAddr::new_truncate(regs.fs_base));
    // In the kernel, the register that `swapgs` exchanges holds the program's base.
    KernelGsBase::write(x86_64::VirtAddr::new_truncate(regs.gs_base));
}

/// What the entry left in the CPU's area, in the portable half's words: interrupts, and exceptions
/// other than page faults.
#[inline(never)]
fn classify(vector: u64, code: u64) -> Trap {
    match vector {
        NMI => {
            smp::stop_if_told();
            log::warn!("NMI while a program ran");
            Trap::Interrupt
        }
        DOUBLE_FAULT | MACHINE_CHECK => {
            console::urgent();
            console::say!("kernel panic: {} while a program ran", trap::name(vector));
            exit::exit(exit::Exit::Panic)
        }
        _ => match u8::try_from(vector) {
            Ok(FIRST_IRQ..VECTORS) => Trap::Interrupt,
            Ok(vector) => Trap::Exception { vector, code },
            Err(_) => unreachable!("the stubs push vectors below 64"),
        },
    }
}
