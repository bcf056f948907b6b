//! What must hold on the border to programs: each check runs a program of a few instructions
//! (`border.s`) and looks at what comes back.

use core::arch::global_asm;

use pagoda_addr::{FrameRange, Page, PageRange, PhysMap, VirtAddr};
use pagoda_frames::{OwnedFrames, Request};
use pagoda_kernel_core::machine::{Machine, Port, Resume, Serve, Trap, UserRegs};
use pagoda_paging::{Fate, PageFlags, PageSize, PageTable, X86_64};
use pagoda_sync::CpuId;

use crate::kernel::host::{DirectMap, KERNEL, Kernel, kind};
use crate::kernel::{cpu, layout, levels, serial, time, user};

global_asm!(include_str!("border.s"));

const CODE: u64 = 0x40_0000;
const DATA: u64 = 0x50_0000;
const STACK_END: u64 = DATA + 0x1000;
/// What the data page begins with.
const MARK: u64 = 0x1122_3344_5566_7788;

const CARRY_AND_SO_ON: u64 = 0x8d5;
const TRAP_FLAG: u64 = 1 << 8;
const DIRECTION_FLAG: u64 = 1 << 10;
const ALIGNMENT_FLAG: u64 = 1 << 18;

unsafe extern "C" {
    static border_start: u8;
    static border_end: u8;
    static border_system_call: u8;
    static border_read: u8;
    static border_write: u8;
    static border_call: u8;
    static border_endless: u8;
    static border_breakpoint: u8;
    static border_divide: u8;
    static border_privileged: u8;
    static border_port: u8;
    static border_flags: u8;
    static border_kernel_gs: u8;
    static border_bases: u8;
    static border_nothing: u8;
    static border_calls: u8;
    static border_set_xmm: u8;
    static border_get_xmm: u8;
}

/// An address space with a page of code and a page of data.
struct Space {
    table: PageTable<X86_64, &'static Kernel>,
    code: OwnedFrames,
    data: OwnedFrames,
}

fn page(addr: u64) -> Page {
    VirtAddr::new(addr).block()
}

impl Space {
    fn new() -> Option<Self> {
        let frames = KERNEL.frames.get()?;
        let table = KERNEL.new_page_table().ok()?;
        let code = frames.alloc(Request::frame().zeroed().kind(kind::TEST)).ok()?;
        let data = frames.alloc(Request::frame().zeroed().kind(kind::TEST)).ok()?;
        let (first, end) = (&raw const border_start, &raw const border_end);
        // SAFETY: the programs fit into a page, and both frames are this function's own.
        unsafe {
            let length = end as usize - first as usize;
            DirectMap.ptr(code.start().start()).copy_from_nonoverlapping(first, length);
            DirectMap.ptr(data.start().start()).cast::<u64>().write(MARK);
        }
        for (addr, frames, rights) in
            [(CODE, &code, PageFlags::READ_EXEC), (DATA, &data, PageFlags::READ_WRITE)]
        {
            let mut cursor = table.cursor(PageRange::single(page(addr))).ok()?;
            let flags = rights | PageFlags::USER;
            cursor.map(page(addr), frames.start(), PageSize::K4, flags).ok()?;
        }
        Some(Self { table, code, data })
    }

    fn end(self) {
        KERNEL.activate(None);
        self.table.space().leave(CpuId::BOOT);
        for addr in [CODE, DATA] {
            let mut batch = self.table.batch();
            if let Ok(mut cursor) = self.table.cursor(PageRange::single(page(addr))) {
                let _ = cursor.take(PageRange::single(page(addr)), &mut batch, |_, _| Fate::Keep);
            }
            batch.finish();
        }
        let both: [FrameRange; 2] = [self.code.into_range(), self.data.into_range()];
        both.into_iter().for_each(|range| KERNEL.give_back(range));
    }
}

/// Prints what the border costs, in counts of the time-stamp counter: instructions, where the
/// emulator counts those.
pub(super) fn cost() {
    const ROUNDS: u64 = 10_000;
    let Some(space) = Space::new() else { return log::warn!("selftest: no memory") };
    space.table.space().join(CpuId::BOOT);
    KERNEL.activate(Some(space.table.root()));
    let mut regs = begin(&raw const border_calls);
    let mut calls = 0;
    let before = time::tsc();
    while calls < ROUNDS {
        calls += u64::from(user::run_once(&mut regs) == Trap::Syscall);
    }
    log::info!("cost: system call and back: {}", (time::tsc() - before) / ROUNDS);
    let before = time::tsc();
    for _ in 0..ROUNDS {
        regs.rip = at(&raw const border_breakpoint);
        let _ = user::run_once(&mut regs);
    }
    log::info!("cost: exception and back: {}", (time::tsc() - before) / ROUNDS);
    let before = time::tsc();
    for _ in 0..ROUNDS {
        if let Some(Ok(owned)) = KERNEL.frames.get().map(|f| f.alloc(Request::frame())) {
            KERNEL.give_back(owned.into_range());
        }
    }
    log::info!("cost: frame allocated and freed: {}", (time::tsc() - before) / ROUNDS);
    let before = time::tsc();
    for _ in 0..ROUNDS {
        core::hint::black_box(alloc::boxed::Box::new(core::hint::black_box([0u64; 5])));
    }
    log::info!("cost: 40 bytes allocated and freed: {}", (time::tsc() - before) / ROUNDS);
    let before = time::tsc();
    for _ in 0..ROUNDS / 10 {
        let _ = core::hint::black_box(KERNEL.new_stack());
    }
    log::info!("cost: stack mapped and unmapped: {}", (time::tsc() - before) / (ROUNDS / 10));
    let before = time::tsc();
    for _ in 0..ROUNDS {
        core::hint::black_box(KERNEL.monotonic_ns());
    }
    log::info!("cost: clock read: {}", (time::tsc() - before) / ROUNDS);
    space.end();
}

/// Crosses the border as fast as possible for a few seconds, in all four ways, so that NMIs from
/// outside hit it everywhere.
pub(super) fn storm() {
    const NANOS: u64 = 4_000_000_000;
    let Some(space) = Space::new() else { return log::warn!("selftest: no memory") };
    space.table.space().join(CpuId::BOOT);
    KERNEL.activate(Some(space.table.root()));
    let end = KERNEL.monotonic_ns() + NANOS;
    let (mut calls, mut interrupts) = (0u64, 0u64);
    while KERNEL.monotonic_ns() < end {
        let mut regs = begin(&raw const border_calls);
        for _ in 0..1000 {
            match user::run_once(&mut regs) {
                Trap::Syscall => calls += 1,
                Trap::Interrupt => interrupts += 1,
                trap => panic!("{trap:?} from a program that only makes system calls"),
            }
            // Every other time by `iret`.
            regs.rcx ^= calls & 1;
        }
        let mut quick = Quick { regs: begin(&raw const border_calls), calls: 0, interrupts: 0 };
        KERNEL.run_user(&mut quick);
        let mut expected = begin(&raw const border_calls);
        expected.rip = quick.regs.rip;
        (expected.rcx, expected.r11) = (quick.regs.rcx, quick.regs.r11);
        assert_eq!((quick.calls, quick.regs), (Quick::CALLS, expected));
        (calls, interrupts) = (calls + quick.calls, interrupts + quick.interrupts);
        let (trap, regs) = run_program(&raw const border_breakpoint, |_| ());
        let mut expected = begin(&raw const border_breakpoint);
        expected.rip += 1;
        assert_eq!((trap, regs), (Trap::Exception { vector: 3, code: 0 }, expected));
    }
    log::info!("storm: {calls} system calls, {interrupts} interrupts, all registers kept");
    space.end();
}

/// Serves system calls in place, so that the program goes on by the short way, with all registers.
struct Quick {
    regs: UserRegs,
    calls: u64,
    interrupts: u64,
}

impl Quick {
    const CALLS: u64 = 1000;
}

impl Serve for Quick {
    fn regs(&mut self) -> &mut UserRegs {
        &mut self.regs
    }
    fn call(&mut self) -> Resume {
        self.calls += 1;
        if self.calls < Self::CALLS { Resume::Program } else { Resume::Whole }
    }
    fn page_fault(&mut self, addr: VirtAddr, write: bool, _: bool, _: bool) -> Resume {
        panic!("a fault (write: {write}) at {addr} from a program that only makes system calls")
    }
    fn trap(&mut self, trap: Trap) -> bool {
        assert_eq!(trap, Trap::Interrupt);
        self.interrupts += 1;
        true
    }
    fn whole(&mut self) -> bool {
        self.calls < Self::CALLS
    }
}

fn at(program: *const u8) -> u64 {
    CODE + (program as u64 - &raw const border_start as u64)
}

/// Registers to begin `program` with, all different.
fn begin(program: *const u8) -> UserRegs {
    UserRegs {
        rax: 0x101,
        rbx: 0x102,
        rcx: 0x103,
        rdx: 0x104,
        rsi: 0x105,
        rdi: 0x106,
        rbp: 0x107,
        rsp: STACK_END,
        r8: 0x108,
        r9: 0x109,
        r10: 0x10a,
        r11: 0x10b,
        r12: 0x10c,
        r13: 0x10d,
        r14: 0x10e,
        r15: 0x10f,
        rip: at(program),
        rflags: 0x202,
        fs_base: DATA + 0x100,
        gs_base: DATA + 0x200,
        ..UserRegs::default()
    }
}

/// Runs until something else than a device interrupts.
fn run_on(regs: &mut UserRegs) -> Trap {
    loop {
        match user::run_once(regs) {
            Trap::Interrupt => {}
            trap => return trap,
        }
    }
}

fn run_program(program: *const u8, set: impl FnOnce(&mut UserRegs)) -> (Trap, UserRegs) {
    let mut regs = begin(program);
    set(&mut regs);
    (run_on(&mut regs), regs)
}

/// Runs all checks; panics at the first that does not hold.
pub(super) fn run() {
    let Some(space) = Space::new() else { return log::warn!("selftest: no memory") };
    space.table.space().join(CpuId::BOOT);
    KERNEL.activate(Some(space.table.root()));
    let checks: [(&str, fn()); 10] = [
        ("system calls keep all registers", system_calls),
        ("faults say where and how", faults),
        ("exceptions have their numbers", exceptions),
        ("the timer interrupts an endless loop", timer),
        ("every serial line interrupts", lines),
        ("no flag of a program reaches the kernel", flags),
        ("no GS base of a program reaches the kernel", gs),
        ("bad return addresses are answered with the fault", addresses),
        ("FS and GS bases are the program's own", bases),
        ("vector registers are kept and exchanged", vectors),
    ];
    for (name, check) in checks {
        check();
        log::info!("selftest: {name}: ok");
    }
    space.end();
}

fn system_calls() {
    let (trap, mut regs) = run_program(&raw const border_system_call, |_| ());
    assert_eq!(trap, Trap::Syscall);
    let mut expected = begin(&raw const border_system_call);
    expected.rip += 2;
    (expected.rcx, expected.r11) = (expected.rip, expected.rflags);
    assert_eq!(regs, expected);
    // On by `sysret`, then by `iret` because `rcx` is another value.
    assert_eq!(run_on(&mut regs), Trap::Exception { vector: 6, code: 0 });
    assert_eq!(regs, expected);
    regs.rcx = 7;
    assert_eq!(run_on(&mut regs), Trap::Exception { vector: 6, code: 0 });
    assert_eq!(regs.rcx, 7);
}

fn faults() {
    let fault = |addr, write, exec, present| Trap::PageFault {
        addr: VirtAddr::new(addr),
        write,
        exec,
        present,
    };
    let text = layout::text().start().as_u64();
    let nx = cpu::features().is_some_and(|cpu| cpu.nx);
    for (program, addr, expected) in [
        (&raw const border_read, 0x6000, fault(0x6000, false, false, false)),
        (&raw const border_write, 0x6008, fault(0x6008, true, false, false)),
        (&raw const border_write, CODE, fault(CODE, true, false, true)),
        (&raw const border_read, text, fault(text, false, false, true)),
        (&raw const border_call, text, fault(text, false, nx, true)),
        (&raw const border_call, DATA, fault(DATA, false, true, true)),
    ] {
        assert_eq!(run_program(program, |regs| regs.rdi = addr).0, expected);
    }
}

fn exceptions() {
    let exception = |vector, code| Trap::Exception { vector, code };
    for (program, expected) in [
        (&raw const border_breakpoint, exception(3, 0)),
        (&raw const border_divide, exception(0, 0)),
        (&raw const border_privileged, exception(13, 0)),
        (&raw const border_port, exception(13, 0)),
    ] {
        assert_eq!(run_program(program, |_| ()).0, expected);
    }
    // A non-canonical data address is a general protection fault too.
    let (trap, _) = run_program(&raw const border_read, |regs| regs.rdi = 1 << 62);
    assert_eq!(trap, exception(13, 0));
    // A single step ends after one instruction.
    let (trap, regs) = run_program(&raw const border_nothing, |regs| regs.rflags |= TRAP_FLAG);
    assert_eq!((trap, regs.rip), (exception(1, 0), at(&raw const border_nothing) + 1));
}

fn timer() {
    let before = time::ticks();
    let mut regs = begin(&raw const border_endless);
    while time::ticks() < before + 3 {
        assert_eq!(user::run_once(&mut regs), Trap::Interrupt);
        assert_eq!(regs.rip, at(&raw const border_endless));
    }
    let before = time::ticks();
    while time::ticks() < before + 3 {
        KERNEL.wait_for_interrupt();
    }
}

/// The way of an interrupt from a device to the boot CPU. Nothing else shows when it is broken: what
/// has arrived is also found at the next tick.
fn lines() {
    for line in [Port::Terminal, Port::Control, Port::Error] {
        let (before, start) = (serial::interrupts(), time::ticks());
        if !serial::call(line, true) {
            continue;
        }
        while serial::interrupts() == before {
            assert!(time::ticks() < start + 100, "{line:?} does not interrupt");
            KERNEL.wait_for_interrupt();
        }
        serial::call(line, false);
    }
}

fn flags() {
    let kernels = || {
        x86_64::registers::rflags::read_raw()
            & (DIRECTION_FLAG | ALIGNMENT_FLAG | TRAP_FLAG | 0x4000 | 0x200)
    };
    let (trap, mut regs) = run_program(&raw const border_flags, |_| ());
    assert_eq!((trap, kernels()), (Trap::Syscall, 0));
    assert_eq!(regs.rflags & (DIRECTION_FLAG | ALIGNMENT_FLAG), DIRECTION_FLAG | ALIGNMENT_FLAG);
    assert_eq!(run_on(&mut regs), Trap::Exception { vector: 3, code: 0 });
    assert_eq!(kernels(), 0);
    // Arithmetic flags are kept; interrupts stay on, I/O privilege stays none.
    let (_, regs) = run_program(&raw const border_breakpoint, |regs| {
        regs.rflags = CARRY_AND_SO_ON | 0x3000;
    });
    assert_eq!(regs.rflags & !(1 << 16), CARRY_AND_SO_ON | 0x202);
}

fn gs() {
    if !cpu::features().is_some_and(|cpu| cpu.fsgsbase) {
        return;
    }
    let base = layout::data().start().as_u64();
    let (trap, mut regs) = run_program(&raw const border_kernel_gs, |regs| regs.rdi = base);
    assert_eq!((trap, regs.gs_base), (Trap::Syscall, base));
    assert_eq!(run_on(&mut regs), Trap::Exception { vector: 3, code: 0 });
    assert_eq!(regs.gs_base, base);
}

fn addresses() {
    for rip in [1 << (levels::address_bits() - 1), (1 << 63) + 5] {
        let (trap, _) = run_program(&raw const border_nothing, |regs| regs.rip = rip);
        assert_eq!(trap, Trap::Exception { vector: 13, code: 0 });
        let (trap, _) = run_program(&raw const border_nothing, |regs| {
            // As if a system call had come from there: the case for `sysret`.
            (regs.rip, regs.rcx, regs.r11) = (rip, rip, regs.rflags);
        });
        assert_eq!(trap, Trap::Exception { vector: 13, code: 0 });
    }
    let kernel = layout::text().start().as_u64();
    let (trap, _) = run_program(&raw const border_nothing, |regs| {
        (regs.rip, regs.rcx, regs.r11) = (kernel, kernel, regs.rflags);
    });
    assert!(matches!(trap, Trap::PageFault { present: true, .. }), "{trap:?}");
}

fn bases() {
    let (trap, regs) = run_program(&raw const border_bases, |regs| {
        (regs.fs_base, regs.gs_base) = (DATA, DATA);
    });
    assert_eq!((trap, regs.rax, regs.rbx), (Trap::Syscall, MARK, MARK));
    assert_eq!((regs.fs_base, regs.gs_base), (DATA, DATA));
    let (trap, regs) = run_program(&raw const border_bases, |regs| {
        (regs.fs_base, regs.gs_base) = (DATA + 8, DATA + 16);
    });
    assert_eq!((trap, regs.rax, regs.rbx), (Trap::Syscall, 0, 0));
}

fn vectors() {
    let (Ok(mut one), Ok(mut other)) = (KERNEL.new_fpu(), KERNEL.new_fpu()) else { return };
    KERNEL.load_fpu(&one);
    let (_, _) = run_program(&raw const border_set_xmm, |regs| regs.rax = 0xabcd);
    KERNEL.save_fpu(&mut one);
    KERNEL.load_fpu(&other);
    let (_, regs) = run_program(&raw const border_get_xmm, |_| ());
    assert_eq!(regs.rax, 0, "a fresh program's registers are not clean");
    KERNEL.save_fpu(&mut other);
    KERNEL.load_fpu(&one);
    let (_, regs) = run_program(&raw const border_get_xmm, |_| ());
    assert_eq!(regs.rax, 0xabcd, "registers were lost in an exchange");
    assert!(KERNEL.set_fpu_bytes(&mut other, KERNEL.fpu_bytes(&one)));
    KERNEL.load_fpu(&other);
    let (_, regs) = run_program(&raw const border_get_xmm, |_| ());
    assert_eq!(regs.rax, 0xabcd, "registers were lost in a copy");
    let mut damaged = [0; 1024];
    damaged[24..28].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(!KERNEL.set_fpu_bytes(&mut other, &damaged), "reserved MXCSR bits were taken");
}
