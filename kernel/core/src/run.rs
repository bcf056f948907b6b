//! A thread at work: serves its program's traps where they arrive, and looks at signals before the
//! program goes on.
//!
//! *attention-covers*: whatever keeps the program from going on at once (a signal, the end, a stop,
//! a call to be restarted) has set the thread's `attention`, so a trap ends with one look at one
//! flag. Time is shared out by samples (see `Times`), not read at every trap.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use pagoda_addr::VirtAddr;
use pagoda_vm::{Access, FaultError};

use crate::Space;
use crate::kernel::Kernel;
use crate::machine::{Machine, Resume, Serve, Trap, UserRegs};
use crate::signal::deliver::Next;
use crate::signal::frame::FaultWords;
use crate::signal::info::{
    BUS_ADRERR, Detail, FPE_FLTINV, FPE_INTDIV, ILL_ILLOPN, SEGV_ACCERR, SEGV_MAPERR, SI_KERNEL,
    SigInfo, TRAP_BRKPT,
};
use crate::signal::set::Signal;
use crate::task::{Process, Thread, WaitStatus};

const PAGE_FAULT: u64 = 14;
/// The flag of single steps.
const TRAP_FLAG: u64 = 0x100;
const TRAP_TRACE: i32 = 2;
const BUS_ADRALN: i32 = 1;

/// Calls that copy or replace all registers, hence cannot be served with a part of them.
#[inline]
fn needs_all_registers(number: u64) -> bool {
    use linux_raw_sys::general as nr;
    const FEW: u64 = 64;
    const fn bit(number: u32) -> u64 {
        assert!((number as u64) < FEW);
        1 << number
    }
    const LOW: u64 = bit(nr::__NR_fork)
        | bit(nr::__NR_vfork)
        | bit(nr::__NR_clone)
        | bit(nr::__NR_execve)
        | bit(nr::__NR_rt_sigreturn);
    if number < FEW {
        return LOW >> number & 1 != 0;
    }
    number == u64::from(nr::__NR_arch_prctl)
        || number == u64::from(nr::__NR_execveat)
        || number == u64::from(nr::__NR_clone3)
}

/// A thread at work in the kernel: what its system calls act on.
pub(crate) struct Cx<'a, M: Machine> {
    pub(crate) kernel: &'a Arc<Kernel<M>>,
    pub(crate) thread: &'a Arc<Thread<M>>,
    pub(crate) process: &'a Arc<Process<M>>,
    pub(crate) space: Arc<Space<M>>,
    pub(crate) regs: UserRegs,
    /// The number of a call that was interrupted and may be restarted.
    pub(crate) call: Option<u64>,
    /// A system call that waits until all registers are current.
    pub(crate) postponed: Option<u64>,
    /// `exit` was called: the thread ends with this status.
    pub(crate) exiting: Option<WaitStatus>,
}

/// All of a thread's life.
pub(crate) fn run<M: Machine>(thread: &Arc<Thread<M>>) {
    let Some(space) = thread.process.space() else { return };
    let mut cx = Cx {
        kernel: &thread.kernel,
        thread,
        process: &thread.process,
        space,
        regs: thread.start,
        call: None,
        postponed: None,
        exiting: None,
    };
    cx.kernel.machine.run_user(&mut cx);
    let status = cx.exiting.unwrap_or(WaitStatus::exited(0));
    cx.end_thread(status);
}

impl<M: Machine> Serve for Cx<'_, M> {
    #[inline]
    fn regs(&mut self) -> &mut UserRegs {
        &mut self.regs
    }

    #[inline]
    fn call(&mut self) -> Resume {
        let number = self.regs.rax;
        if let Some(word) = self.at_hand(number) {
            self.regs.rax = word;
            return self.resume();
        }
        self.longer_call(number)
    }

    #[inline]
    fn page_fault(&mut self, addr: VirtAddr, write: bool, exec: bool, present: bool) -> Resume {
        let faults = &self.thread.faults;
        faults.store(faults.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        let access = match (write, exec) {
            (true, _) => Access::Write,
            (_, true) => Access::Exec,
            _ => Access::Read,
        };
        if let Err(error) = self.space.fault(addr, access) {
            self.bad_fault(addr, write, exec, present, error);
        }
        self.resume()
    }

    fn trap(&mut self, trap: Trap) -> bool {
        match trap {
            Trap::Syscall => {
                self.postponed = Some(self.regs.rax);
            }
            Trap::PageFault { addr, write, exec, present } => {
                let _ = Serve::page_fault(self, addr, write, exec, present);
            }
            Trap::Exception { vector, code } => self.exception(vector, code),
            Trap::Interrupt => {
                let now = self.kernel.machine.monotonic_ns();
                let in_kernel = self.kernel.machine.interrupted_kernel(&self.regs);
                self.thread.times.sample(now, in_kernel);
                self.kernel.poll();
                self.kernel.ring_cpu_timers(self.thread);
                self.kernel.sched.yield_if_due(self.thread, now);
            }
        }
        self.whole()
    }

    fn whole(&mut self) -> bool {
        if let Some(number) = self.postponed.take() {
            let _ = self.system_call(number);
        }
        if self.exiting.is_some() {
            return false;
        }
        if self.resume() == Resume::Whole && self.before_program() == Next::End {
            return false;
        }
        self.exiting.is_none()
    }
}

impl<M: Machine> Cx<'_, M> {
    /// A call that is not answered [at hand](Self::at_hand).
    #[inline(never)]
    fn longer_call(&mut self, number: u64) -> Resume {
        if needs_all_registers(number) {
            self.postponed = Some(number);
            return Resume::Whole;
        }
        self.system_call(number)
    }

    /// The answer to calls that ask for a word that is at hand: no arguments, no lock, no failure.
    #[inline]
    fn at_hand(&self, number: u64) -> Option<u64> {
        use linux_raw_sys::general as nr;
        const GETPID: u64 = nr::__NR_getpid as u64;
        const GETPPID: u64 = nr::__NR_getppid as u64;
        const GETTID: u64 = nr::__NR_gettid as u64;
        match number {
            GETPID => Some(u64::from(self.process.pid)),
            GETPPID => Some(u64::from(self.process.parent.load(Ordering::Relaxed))),
            GETTID => Some(u64::from(self.thread.tid)),
            _ => None,
        }
    }

    /// One look at everything that may keep the program from going on at once.
    #[inline]
    pub(crate) fn resume(&self) -> Resume {
        // Sequentially consistent, as all uses of this flag: here a plain load.
        if self.thread.attention.load(Ordering::SeqCst) {
            return Resume::Whole;
        }
        Resume::Program
    }

    #[cold]
    fn bad_fault(
        &mut self,
        addr: VirtAddr,
        write: bool,
        exec: bool,
        present: bool,
        error: FaultError,
    ) {
        let (signal, code) = match error {
            FaultError::Unmapped => (Signal::SEGV, SEGV_MAPERR),
            FaultError::Protection => (Signal::SEGV, SEGV_ACCERR),
            FaultError::Bus => (Signal::BUS, BUS_ADRERR),
            FaultError::OutOfMemory => return self.out_of_memory(),
        };
        let user = 4;
        let error = u64::from(present) | u64::from(write) << 1 | user | u64::from(exec) << 4;
        let cr2 = addr.as_u64();
        let info = SigInfo { signal, code, detail: Detail::Fault { addr: cr2 } };
        self.raise(info, FaultWords { error, vector: PAGE_FAULT, cr2 });
    }

    fn exception(&mut self, vector: u8, code: u64) {
        let rip = self.regs.rip;
        let here = Detail::Fault { addr: rip };
        let nowhere = Detail::Fault { addr: 0 };
        let (signal, si_code, detail) = match vector {
            0 => (Signal::FPE, FPE_INTDIV, here),
            1 if self.regs.rflags & TRAP_FLAG != 0 => (Signal::TRAP, TRAP_TRACE, here),
            1 => (Signal::TRAP, TRAP_BRKPT, here),
            3 => (Signal::TRAP, SI_KERNEL, nowhere),
            6 => (Signal::ILL, ILL_ILLOPN, here),
            7 | 16 | 19 => (Signal::FPE, self.floating_point_code(vector == 19), here),
            12 => (Signal::BUS, SI_KERNEL, nowhere),
            17 => (Signal::BUS, BUS_ADRALN, nowhere),
            _ => (Signal::SEGV, SI_KERNEL, nowhere),
        };
        let words = FaultWords { error: code, vector: u64::from(vector), cr2: 0 };
        self.raise(SigInfo { signal, code: si_code, detail }, words);
    }

    /// Which of the program's floating-point exceptions it was: by the flags that are set and not
    /// masked, of the vector unit or of the old one.
    fn floating_point_code(&self, vectors: bool) -> i32 {
        const CODES: [(u32, i32); 5] = [(1, 7), (4, 3), (8, 4), (0x12, 5), (0x20, 6)];
        let machine = self.kernel.machine;
        let flags = self.thread.with_fpu(|fpu| {
            let bytes = machine.fpu_bytes(fpu);
            let half = |at: usize| {
                let half = bytes.get(at..).and_then(|rest| rest.first_chunk());
                u32::from(half.copied().map_or(0, u16::from_le_bytes))
            };
            if vectors { half(24) & !(half(24) >> 7) } else { half(2) & !half(0) }
        });
        CODES.iter().find(|(flag, _)| flags & flag != 0).map_or(FPE_FLTINV, |(_, code)| *code)
    }

    fn raise(&mut self, info: SigInfo, words: FaultWords) {
        self.thread.signals.lock().fault = words;
        if self.process.signals.lock().action(info.signal).handler <= 1 {
            let name = self.process.program.lock().name;
            log::info!(
                "{}[{}]: signal {} at ip {:x} sp {:x}, address {:x}, error {:x}",
                crate::text::name(&name),
                self.thread.tid,
                info.signal.number(),
                self.regs.rip,
                self.regs.rsp,
                words.cr2,
                words.error,
            );
        }
        self.kernel.force_signal(self.thread, info);
    }
}
