//! A machine on the host, for tests of the portable half.
//!
//! Kernel threads are fibers ([`fiber`]) on the host thread of the test. Programs are written in a little instruction set of their own ([`asm`]) and live in emulated
//! memory behind emulated TLBs, so that what a real program would touch through a stale or missing
//! mapping stops the test. The clock moves by instructions, and jumps when nothing can run.
#![allow(unsafe_code, dead_code)]

pub mod asm;
mod fiber;

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use pagoda_addr::{Frame, PhysAddr, PhysMap, VirtAddr};
use pagoda_emu::{Access, Config, Mode};
use pagoda_kernel_core::machine::{
    Machine, MemoryTotals, OutOfMemory, Port, Report, Resume, Serve, Trap, UserRegs,
};
use pagoda_kernel_core::{BootConfig, ExitStatus, StartError, start};
use pagoda_paging::{FlushRange, OutOfFrames, PageTable, Platform, Released, SpaceTlb, X86_64};
use pagoda_sync::{CpuId, RawSpin};
use pagoda_vm::{Commit, VmPlatform};

use fiber::{Fiber, FiberStack};

/// Instructions between two timer interrupts.
const TICK: u64 = 2000;
/// Nanoseconds that an instruction takes.
const STEP_NS: u64 = 100;

/// Plays a program: the trap that it takes, or none to let it run.
pub type Gate = Box<dyn FnMut(&HostMachine, &mut UserRegs) -> Option<Trap> + Send>;
/// Looks at every system call.
pub type Watch = Box<dyn FnMut(&mut UserRegs) + Send>;

pub struct Stack(&'static HostMachine, FiberStack);

impl Drop for Stack {
    fn drop(&mut self) {
        self.0.stacks.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Default)]
pub struct Lines {
    pub terminal_out: Vec<u8>,
    pub error_out: Vec<u8>,
    pub terminal_in: VecDeque<u8>,
    pub control_in: VecDeque<u8>,
}

pub struct HostMachine {
    pub emu: pagoda_emu::Machine,
    pub commit: Commit,
    pub lines: Mutex<Lines>,
    clock: AtomicU64,
    wake: Mutex<Option<u64>>,
    fpu: Mutex<[u8; 512]>,
    idle: AtomicU64,
    pub stacks: AtomicU64,
    pub stack_limit: AtomicU64,
    random: AtomicU64,
    /// Called for every system call that a program makes, before the kernel sees it.
    pub watch: Mutex<Option<Watch>>,
    /// Asked before a program runs.
    pub gate: Mutex<Option<Gate>>,
}

// SAFETY: the emulated machine keeps the contract.
unsafe impl PhysMap for HostMachine {
    fn ptr(&self, addr: PhysAddr) -> *mut u8 {
        self.emu.ptr(addr)
    }
}

// SAFETY: as above.
unsafe impl Platform for HostMachine {
    type Lock = RawSpin;
    fn alloc_table(&self) -> Result<Frame, OutOfFrames> {
        self.emu.alloc_table()
    }
    fn release(&self, item: Released) {
        self.emu.release(item);
    }
    fn flush(&self, space: &SpaceTlb, what: FlushRange<'_>) {
        self.emu.flush(space, what);
    }
}

// SAFETY: as above.
unsafe impl VmPlatform for HostMachine {
    type RegionLock = RawSpin;
    type ObjectLock = RawSpin;
    fn alloc_page(&self, zeroed: bool) -> Result<Frame, OutOfFrames> {
        self.emu.alloc_page(zeroed)
    }
    fn share(&self, frame: Frame) {
        self.emu.share(frame);
    }
    fn refs(&self, frame: Frame) -> u32 {
        self.emu.refs(frame)
    }
    fn commit(&self) -> Option<&Commit> {
        Some(&self.commit)
    }
}

impl Machine for HostMachine {
    type Format = X86_64;
    type Stack = Stack;
    type Context = Fiber;
    type Fpu = Box<[u8; 512]>;

    fn new_page_table(&'static self) -> Result<PageTable<X86_64, &'static Self>, OutOfMemory> {
        PageTable::new(self.emu.format(), self).map_err(|_| OutOfMemory)
    }

    fn new_stack(&'static self) -> Result<Stack, OutOfMemory> {
        if self.stacks.load(Ordering::SeqCst) >= self.stack_limit.load(Ordering::SeqCst) {
            return Err(OutOfMemory);
        }
        self.stacks.fetch_add(1, Ordering::SeqCst);
        Ok(Stack(self, FiberStack::new()))
    }

    fn new_context(
        &'static self,
        stack: &Stack,
        entry: extern "C" fn(usize) -> !,
        argument: usize,
    ) -> Fiber {
        Fiber::new(&stack.1, entry, argument)
    }

    fn idle_context(&self) -> Fiber {
        Fiber::default()
    }

    unsafe fn switch(&self, from: *mut Fiber, to: *const Fiber) {
        // SAFETY: the caller's promise is the same.
        unsafe { fiber::switch(from, to) };
    }

    fn run_user<S: Serve>(&self, server: &mut S) {
        let mut goes_on = server.whole();
        while goes_on {
            let regs = server.regs();
            self.idle.store(0, Ordering::SeqCst);
            let gated = self.gate.lock().unwrap().as_mut().and_then(|gate| gate(self, regs));
            let trap = match gated {
                Some(trap) => {
                    self.clock.fetch_add(TICK * STEP_NS, Ordering::SeqCst);
                    trap
                }
                None => asm::run(self, regs, TICK),
            };
            if std::env::var_os("TRACE").is_some() {
                eprintln!("{trap:?} {regs:x?}");
            }
            if trap == Trap::Syscall
                && let Some(watch) = &mut *self.watch.lock().unwrap()
            {
                watch(regs);
            }
            // *partial-frame*: what need not be current is not.
            let stored = *regs;
            let resume = match trap {
                Trap::Syscall => {
                    *regs = partial(&stored);
                    let resume = server.call();
                    let rax = server.regs().rax;
                    assert_eq!(*server.regs(), UserRegs { rax, ..partial(&stored) });
                    *server.regs() = UserRegs { rax, ..stored };
                    resume
                }
                Trap::PageFault { addr, write, exec, present } => {
                    server.page_fault(addr, write, exec, present)
                }
                trap => {
                    goes_on = server.trap(trap);
                    continue;
                }
            };
            goes_on = resume == Resume::Program || server.whole();
        }
    }

    fn activate(&self, root: Option<Frame>) {
        self.emu.switch(CpuId::BOOT, root);
    }

    fn new_fpu(&self) -> Result<Self::Fpu, OutOfMemory> {
        Ok(Box::new([0; 512]))
    }
    fn save_fpu(&self, into: &mut Self::Fpu) {
        **into = *self.fpu.lock().unwrap();
    }
    fn load_fpu(&self, from: &Self::Fpu) {
        *self.fpu.lock().unwrap() = **from;
    }
    fn fpu_bytes<'f>(&self, fpu: &'f Self::Fpu) -> &'f [u8] {
        &fpu[..]
    }
    fn set_fpu_bytes(&self, fpu: &mut Self::Fpu, bytes: &[u8]) -> bool {
        match bytes.try_into() {
            Ok(bytes) => {
                **fpu = bytes;
                true
            }
            Err(_) => false,
        }
    }

    fn wait_for_interrupt(&self) {
        let idle = self.idle.fetch_add(1, Ordering::SeqCst);
        assert!(idle < 10_000, "nothing can run and nothing will happen:\n{}", self.output());
        let mut wake = self.wake.lock().unwrap();
        let now = self.clock.load(Ordering::SeqCst);
        let next = wake.take().unwrap_or(now + 1_000_000).max(now + 1000);
        self.clock.store(next, Ordering::SeqCst);
    }
    fn wake_at(&self, deadline: Option<u64>) {
        *self.wake.lock().unwrap() = deadline;
    }

    fn monotonic_ns(&self) -> u64 {
        self.clock.load(Ordering::SeqCst)
    }
    fn realtime_ns(&self) -> u64 {
        1_700_000_000_000_000_000 + self.monotonic_ns()
    }

    fn serial_write(&self, port: Port, bytes: &[u8]) {
        let mut lines = self.lines.lock().unwrap();
        match port {
            Port::Terminal => lines.terminal_out.extend(bytes),
            Port::Error => lines.error_out.extend(bytes),
            Port::Control => {}
        }
    }
    fn serial_read(&self, port: Port, into: &mut [u8]) -> usize {
        let mut lines = self.lines.lock().unwrap();
        let from = match port {
            Port::Terminal => &mut lines.terminal_in,
            Port::Control => &mut lines.control_in,
            Port::Error => return 0,
        };
        let count = into.len().min(from.len());
        for (to, byte) in into.iter_mut().zip(from.drain(..count)) {
            *to = byte;
        }
        count
    }

    fn random(&self, into: &mut [u8]) {
        for byte in into {
            let old = self.random.load(Ordering::SeqCst);
            let new = old.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            self.random.store(new, Ordering::SeqCst);
            *byte = (new >> 33) as u8;
        }
    }

    fn memory(&self) -> MemoryTotals {
        let (used, free) = (self.emu.arena().used() * 4096, self.emu.arena().free() * 4096);
        MemoryTotals { total: used + free, free, ..MemoryTotals::default() }
    }

    fn report(&self, what: Report, out: &mut dyn std::fmt::Write) -> std::fmt::Result {
        if what == Report::BuddyInfo {
            writeln!(out, "Node 0, zone   Normal      1      2      3")?;
        }
        Ok(())
    }
}

/// What of the registers is current in a system call, and rubbish.
fn partial(regs: &UserRegs) -> UserRegs {
    let &UserRegs { rax, rdi, rsi, rdx, r10, r8, r9, rip, rsp, rflags, .. } = regs;
    let bad = 0xbad;
    let rubbish = UserRegs {
        rbx: bad,
        rbp: bad,
        r12: bad,
        r13: bad,
        r14: bad,
        r15: bad,
        fs_base: bad,
        gs_base: bad,
        ..UserRegs::default()
    };
    UserRegs { rax, rdi, rsi, rdx, r10, r8, r9, rip, rsp, rflags, ..rubbish }
}

impl HostMachine {
    pub fn new(frames: u64) -> &'static Self {
        let config = Config { cpus: 1, frames, ..Config::default() };
        Box::leak(Box::new(Self {
            commit: Commit::new(config.frames),
            emu: pagoda_emu::Machine::new(config),
            lines: Mutex::default(),
            clock: AtomicU64::new(1_000_000_000),
            wake: Mutex::new(None),
            fpu: Mutex::new([0; 512]),
            idle: AtomicU64::new(0),
            stacks: AtomicU64::new(0),
            stack_limit: AtomicU64::new(400),
            random: AtomicU64::new(42),
            watch: Mutex::new(None),
            gate: Mutex::new(None),
        }))
    }

    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.lines.lock().unwrap().terminal_out).into_owned()
    }

    pub fn tick(&self) {
        self.clock.fetch_add(STEP_NS, Ordering::SeqCst);
    }

    pub fn swap_fpu_word(&self, new: Option<u64>) -> u64 {
        let mut fpu = self.fpu.lock().unwrap();
        let old = u64::from_le_bytes(fpu[..8].try_into().unwrap());
        if let Some(new) = new {
            fpu[..8].copy_from_slice(&new.to_le_bytes());
        }
        old
    }

    /// As [`new`](Self::new), but gone afterwards.
    pub fn scoped<R>(frames: u64, f: impl FnOnce(&'static Self) -> R) -> R {
        let machine = Self::new(frames);
        let answer = f(machine);
        let pointer = std::ptr::from_ref(machine).cast_mut();
        // SAFETY: `new` leaked a box; what `f` has made of the reference is its own business, and
        // the kernel keeps nothing when `start` is back.
        drop(unsafe { Box::from_raw(pointer) });
        answer
    }

    /// Runs an initramfs and checks that everything came back.
    pub fn boot(
        &'static self,
        command_line: &'static str,
        archive: Vec<u8>,
    ) -> Result<ExitStatus, StartError> {
        let used = self.emu.arena().used();
        let config = BootConfig {
            command_line: command_line.as_bytes(),
            initramfs: Box::leak(archive.into_boxed_slice()),
        };
        let status = start(self, config);
        // A failure that nobody met is not the next test's.
        pagoda_vm::fallible::host::fail_after(None);
        let archive = std::ptr::from_ref(config.initramfs).cast_mut();
        // SAFETY: it was leaked above, and the kernel that borrowed it is gone.
        drop(unsafe { Box::from_raw(archive) });
        assert_eq!(self.emu.arena().used(), used, "frames were lost");
        assert_eq!(self.stacks.load(Ordering::SeqCst), 0, "stacks were lost");
        self.emu.audit();
        status
    }
}

/// A cpio archive (newc) of files: path, mode, bytes.
pub fn archive(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut entry = |ino: u32, name: &str, mode: u32, data: &[u8]| {
        out.extend(b"070701");
        let name_len = name.len() as u32 + 1;
        for field in [ino, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, 0, 0, name_len, 0] {
            out.extend(format!("{field:08x}").bytes());
        }
        out.extend(name.bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(data);
        out.resize(out.len().next_multiple_of(4), 0);
    };
    let mut ino = 1;
    let mut made = std::collections::BTreeSet::new();
    for (path, mode, data) in files {
        let path = path.trim_start_matches('/');
        for (at, _) in path.match_indices('/') {
            if made.insert(path[..at].to_string()) {
                entry(ino, &path[..at], 0o040755, b"");
                ino += 1;
            }
        }
        entry(ino, path, 0o100000 | mode, data);
        ino += 1;
    }
    entry(0, "TRAILER!!!", 0, b"");
    out
}

/// Boots one program as the first process, in raw mode.
pub fn run(program: Vec<u8>) -> (ExitStatus, String) {
    run_with(program, &[], 4096)
}

/// As [`run`], with more files.
pub fn run_with(
    program: Vec<u8>,
    more: &[(&str, u32, &[u8])],
    frames: u64,
) -> (ExitStatus, String) {
    let machine = HostMachine::new(frames);
    let mut files = vec![("bin/tour", 0o755, &program[..])];
    files.extend(more);
    let status = machine.boot("stdio=raw", archive(&files));
    (status.unwrap(), machine.output())
}

/// How a program's memory is accessed by its instructions.
pub fn load(machine: &HostMachine, addr: u64, into: &mut [u8]) -> Result<(), Trap> {
    machine.emu.read(CpuId::BOOT, Mode::User, VirtAddr::new(addr), into).map_err(trap)
}

pub fn store(machine: &HostMachine, addr: u64, bytes: &[u8]) -> Result<(), Trap> {
    machine.emu.write(CpuId::BOOT, Mode::User, VirtAddr::new(addr), bytes).map_err(trap)
}

pub fn fetch(machine: &HostMachine, addr: u64) -> Result<u8, Trap> {
    machine.emu.fetch(CpuId::BOOT, Mode::User, VirtAddr::new(addr)).map_err(trap)
}

fn trap(fault: pagoda_emu::PageFault) -> Trap {
    Trap::PageFault {
        addr: fault.addr,
        write: fault.access == Access::Write,
        exec: fault.access == Access::Fetch,
        present: fault.present,
    }
}
