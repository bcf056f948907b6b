//! Running programs: [`run`] enters user mode and has every trap served where it arrives.
//!
//! The assembly (`user.s`, `trap.s`) calls the handlers below, one for each kind of trap, on the
//! thread's stack. A handler takes the big lock, asks the thread ([`Serve`]), gives the lock back,
//! and says how to go on. System calls and page faults store a part of the registers only; the
//! program's own FS and GS bases stay in the CPU, and are exchanged when the thread is
//! ([`Border`]).
//!
//! What a program could do to the kernel on this border, and why it cannot:
//!
//! - a return address that is not canonical would make `sysret` fault in kernel mode on the user's
//!   stack: after a system call that changed nothing but `rax` the address is the one that the CPU
//!   came from, and the last page below the hole is never mapped; otherwise `sysret` is only used
//!   for addresses below [`USER_END`], and `iret` only for canonical ones; anything else is answered
//!   with the fault itself;
//! - flags that open SMAP (AC), run string instructions backwards (DF), single-step the kernel
//!   (TF), let interrupts in (IF) or nest tasks (NT): cleared by SFMASK on `syscall`, and by
//!   the entries on every other way in; I/O privilege is never given;
//! - a GS base that looks like the kernel's: the kernel never asks which of the two it has, it
//!   knows (*kernel-gs*); the entries for NMI and machine check set their own;
//! - a frame pointer that looks like the kernel's: a backtrace follows it through mapped kernel
//!   memory only, reads, and believes nothing.
#![allow(unsafe_code)] // enters user mode

use core::arch::asm;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use pagoda_addr::VirtAddr;
use pagoda_kernel_core::machine::{Resume, Serve, Trap, UserRegs};
use x86_64::registers::model_specific::{Efer, FsBase, KernelGsBase, LStar, Msr, SFMask, Star};
use x86_64::registers::rflags::RFlags;

use super::layout::USER_END;
use super::trap::{FIRST_IRQ, VECTORS};
use super::{big_lock, console, exit, irq, levels, percpu, tables, trap};

/// Addresses with no bit above these are canonical, and a program's.
const LOWER_HALF_BITS: u32 = 47;

const GENERAL_PROTECTION: u8 = 13;
const NMI: u64 = 2;
const MACHINE_CHECK: u64 = 18;
const DOUBLE_FAULT: u64 = 8;

/// Flags that are the program's own business: arithmetic, TF, DF, RF, AC, ID.
const PROGRAMS_FLAGS: u64 = 0x0025_0dd5;
/// Flags that are always set in user mode: interrupts on, and the bit that is always 1.
const USER_FLAGS: u64 = 0x202;
/// Flags that `sysret` and the trap that follows would treat differently from `iret`: TF, RF.
pub(crate) const NEEDS_IRET: u64 = 1 << 8 | 1 << 16;

/// How a program goes on; what `user.s` knows by number.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Way {
    /// Not at all.
    Ends = 0,
    Iret = 1,
    Sysret = 2,
}

/// What `enter_user` puts on the stack for the entries: the server and its handlers.
#[repr(C)]
pub(crate) struct Gate {
    pub(crate) server: *mut (),
    pub(crate) call: usize,
    pub(crate) fault: usize,
    pub(crate) trap: usize,
    pub(crate) whole: usize,
}

unsafe extern "C" {
    fn enter_user(gate: *const Gate, registers: *mut UserRegs);
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

/// Runs the program of `server` until that says that it does not go on. See the trait `Machine`.
/// The big lock is free while the program runs.
pub(crate) fn run<S: Serve>(server: &mut S) {
    big_lock::release();
    let registers: *mut UserRegs = server.regs();
    let call: extern "C" fn(&mut S) -> Resume = serve_call::<S>;
    let fault: extern "C" fn(&mut S, u64, u64) -> Resume = serve_fault::<S>;
    let trap: extern "C" fn(&mut S, u64, u64) -> Way = serve_trap::<S>;
    let whole: extern "C" fn(&mut S, u32) -> Way = serve_whole::<S>;
    let gate = Gate {
        server: core::ptr::from_mut(server).cast(),
        call: call as usize,
        fault: fault as usize,
        trap: trap as usize,
        whole: whole as usize,
    };
    // SAFETY: *one-server*: `server` is exclusively borrowed until this returns, and between the
    // entries only one handler at a time has it; its registers are always in the same place, inside
    // of it, and 16-aligned. The handlers are made for this type. What they say the program goes on
    // with was checked (`prepare`). The active page table maps the kernel like all others do.
    // Interrupts are off.
    unsafe { enter_user(&raw const gate, registers) };
}

/// A system call. Of the registers only a part is stored (*partial-frame*).
extern "C" fn serve_call<S: Serve>(server: &mut S) -> Resume {
    big_lock::acquire();
    let resume = server.call();
    big_lock::release();
    resume
}

/// A page fault. Of the registers only a part is stored (*partial-frame*).
extern "C" fn serve_fault<S: Serve>(server: &mut S, cr2: u64, code: u64) -> Resume {
    big_lock::acquire();
    let bit = |number: u32| code & 1 << number != 0;
    let resume = server.page_fault(VirtAddr::new(cr2), bit(1), bit(4), bit(0));
    big_lock::release();
    resume
}

/// Whatever needs all registers. `bases_in_cpu`: those in the registers' place are not current.
extern "C" fn serve_whole<S: Serve>(server: &mut S, bases_in_cpu: u32) -> Way {
    big_lock::acquire();
    if bases_in_cpu != 0 {
        Bases::read().store(server.regs());
    }
    let goes_on = server.whole();
    leave(server, goes_on)
}

/// Any other trap.
///
/// Interrupts are served before the big lock is taken: its holder may be waiting for an answer, and
/// as long as one interrupt is not ended no other one comes in. After a request to forget
/// translations the program goes on at once.
extern "C" fn serve_trap<S: Serve>(server: &mut S, vector: u64, code: u64) -> Way {
    let regs = server.regs();
    (regs.cs, regs.ss) = (tables::USER_CODE.into(), tables::USER_DATA.into());
    if (FIRST_IRQ.into()..VECTORS.into()).contains(&vector) {
        irq::serve(vector);
        if vector == u64::from(trap::FLUSH) {
            return Way::Iret;
        }
    }
    if vector == NMI {
        // Before the big lock is asked for: somebody may hold it for good, which is why we are asked.
        trap::nmi(|| console::say!("  a program, rip {:016x}  rsp {:016x}", regs.rip, regs.rsp));
        return Way::Iret;
    }
    big_lock::acquire();
    Bases::read().store(server.regs());
    let goes_on = server.trap(classify(vector, code));
    leave(server, goes_on)
}

/// The program goes on with what its registers are now, if it does.
fn leave<S: Serve>(server: &mut S, mut goes_on: bool) -> Way {
    while goes_on {
        percpu::assert_unpinned();
        if let Some(way) = prepare(server.regs()) {
            big_lock::release();
            return way;
        }
        goes_on = server.trap(Trap::Exception { vector: GENERAL_PROTECTION, code: 0 });
    }
    Way::Ends
}

/// Makes the registers fit to leave with, and loads the bases. None when leaving would fault.
fn prepare(regs: &mut UserRegs) -> Option<Way> {
    // A program lives in the lower half: one test for the address and both bases.
    if (regs.rip | regs.fs_base | regs.gs_base) >> LOWER_HALF_BITS != 0 && !bases_canonical(regs) {
        return None;
    }
    (regs.cs, regs.ss) = (tables::USER_CODE.into(), tables::USER_DATA.into());
    regs.rflags = regs.rflags & PROGRAMS_FLAGS | USER_FLAGS;
    Bases { fs: regs.fs_base, gs: regs.gs_base }.load();
    let differs = (regs.rcx ^ regs.rip) | (regs.r11 ^ regs.rflags) | (regs.rflags & NEEDS_IRET);
    Some(if differs == 0 && regs.rip < USER_END { Way::Sysret } else { Way::Iret })
}

/// May the address and the bases be loaded? Rarely asked: see [`prepare`].
#[cold]
fn bases_canonical(regs: &UserRegs) -> bool {
    let bits = levels::address_bits();
    [regs.rip, regs.fs_base, regs.gs_base].iter().all(|&at| VirtAddr::new(at).is_canonical(bits))
}

/// Was the program interrupted exactly where the kernel had just left it? See the trait `Machine`.
pub(crate) fn interrupted_kernel(regs: &UserRegs) -> bool {
    // After `sysret` the address is in `rcx` too.
    regs.rip == regs.rcx || regs.rip == percpu::this().fault_rip.load(Ordering::Relaxed)
}

/// A program's FS and GS bases. While the kernel runs, the CPU holds the first where programs have
/// it, and the second in the register that `swapgs` exchanges.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Bases {
    fs: u64,
    gs: u64,
}

impl Bases {
    /// The CPU's.
    fn read() -> Self {
        if !percpu::this().fsgsbase.load(Ordering::Relaxed) {
            return Self { fs: FsBase::read().as_u64(), gs: KernelGsBase::read().as_u64() };
        }
        let (fs, gs);
        // SAFETY: the instructions exist (CR4.FSGSBASE). Nothing happens between the two `swapgs`
        // but an NMI, which sets its own GS base and puts ours back.
        unsafe {
            asm!("rdfsbase {}", "swapgs", "rdgsbase {}", "swapgs", out(reg) fs, out(reg) gs,
                options(nostack, preserves_flags));
        }
        Self { fs, gs }
    }

    fn store(self, regs: &mut UserRegs) {
        (regs.fs_base, regs.gs_base) = (self.fs, self.gs);
    }

    /// Makes them the CPU's. Both are canonical: read from the CPU, or checked by [`prepare`].
    fn load(self) {
        if !percpu::this().fsgsbase.load(Ordering::Relaxed) {
            FsBase::write(x86_64::VirtAddr::new_truncate(self.fs));
            KernelGsBase::write(x86_64::VirtAddr::new_truncate(self.gs));
            return;
        }
        // SAFETY: as in `read`; canonical, so nothing faults.
        unsafe {
            asm!("wrfsbase {}", "swapgs", "wrgsbase {}", "swapgs", in(reg) self.fs,
                in(reg) self.gs, options(nostack, preserves_flags));
        }
    }
}

/// What a CPU holds for the program of the thread that runs on it, and a thread takes with it: where
/// the entries go on, and the bases.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Border {
    kernel_rsp: u64,
    user_regs: Option<NonNull<UserRegs>>,
    bases: Bases,
}

// SAFETY: the pointer is only ever handed to the entries of the CPU that the thread runs on.
unsafe impl Send for Border {}

impl Border {
    /// Of a thread that has never entered a program.
    pub(crate) const fn none() -> Self {
        Self { kernel_rsp: 0, user_regs: None, bases: Bases { fs: 0, gs: 0 } }
    }

    /// The executing CPU's.
    pub(crate) fn take() -> Self {
        let area = percpu::this();
        Self {
            kernel_rsp: area.kernel_rsp.load(Ordering::Relaxed),
            user_regs: NonNull::new(area.user_regs.load(Ordering::Relaxed)),
            bases: Bases::read(),
        }
    }

    /// Makes it the executing CPU's.
    pub(crate) fn put(self) {
        let Some(user_regs) = self.user_regs else { return };
        let area = percpu::this();
        area.kernel_rsp.store(self.kernel_rsp, Ordering::Relaxed);
        area.user_regs.store(user_regs.as_ptr(), Ordering::Relaxed);
        let end = x86_64::VirtAddr::from_ptr(user_regs.as_ptr().wrapping_add(1));
        // SAFETY: the area is this CPU's; the processor reads the field when it leaves user mode,
        // which it is not in, and nobody has a reference to it. It lies at a multiple of four.
        unsafe { (&raw mut (*area.tss.get()).privilege_stack_table[0]).write_unaligned(end) };
        self.bases.load();
    }
}

/// Runs a program once, until it traps: for self-tests. The registers are all current afterwards.
pub(crate) fn run_once(regs: &mut UserRegs) -> Trap {
    struct Once<'r> {
        regs: &'r mut UserRegs,
        trap: Option<Trap>,
    }
    impl Serve for Once<'_> {
        fn regs(&mut self) -> &mut UserRegs {
            self.regs
        }
        fn call(&mut self) -> Resume {
            self.trap = Some(Trap::Syscall);
            Resume::Whole
        }
        fn page_fault(&mut self, addr: VirtAddr, write: bool, exec: bool, present: bool) -> Resume {
            self.trap = Some(Trap::PageFault { addr, write, exec, present });
            Resume::Whole
        }
        fn trap(&mut self, trap: Trap) -> bool {
            self.trap = Some(trap);
            false
        }
        fn whole(&mut self) -> bool {
            self.trap.is_none()
        }
    }
    let mut once = Once { regs, trap: None };
    run(&mut once);
    once.trap.unwrap_or(Trap::Interrupt)
}

/// A vector in the portable half's words: interrupts, and exceptions other than page faults.
#[inline(never)]
fn classify(vector: u64, code: u64) -> Trap {
    match vector {
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
