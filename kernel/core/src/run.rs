//! A thread's loop: run the program until it traps, serve the trap, look at signals, again.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use pagoda_addr::VirtAddr;
use pagoda_vm::{Access, FaultError};

use crate::Space;
use crate::kernel::Kernel;
use crate::machine::{Machine, Trap, UserRegs};
use crate::signal::deliver::Next;
use crate::signal::frame::FaultWords;
use crate::signal::info::{
    BUS_ADRERR, Detail, FPE_FLTINV, FPE_INTDIV, ILL_ILLOPN, SEGV_ACCERR, SEGV_MAPERR, SI_KERNEL,
    SigInfo, TRAP_BRKPT,
};
use crate::signal::set::Signal;
use crate::task::{Process, Thread, WaitStatus};

const PAGE_FAULT: u64 = 14;
const BUS_ADRALN: i32 = 1;

/// A thread at work in the kernel: what its system calls act on.
pub(crate) struct Cx<'a, M: Machine> {
    pub(crate) kernel: &'a Arc<Kernel<M>>,
    pub(crate) thread: &'a Arc<Thread<M>>,
    pub(crate) process: &'a Arc<Process<M>>,
    pub(crate) space: Arc<Space<M>>,
    pub(crate) regs: UserRegs,
    /// The number of a call that was interrupted and may be restarted.
    pub(crate) call: Option<u64>,
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
        exiting: None,
    };
    let machine = cx.kernel.machine;
    while cx.exiting.is_none() {
        let attention = thread.attention.load(Ordering::SeqCst) || cx.call.is_some();
        if attention && cx.before_program() == Next::End {
            break;
        }
        thread.times.leave(machine.monotonic_ns());
        let trap = machine.run_user(&mut cx.regs);
        let now = machine.monotonic_ns();
        thread.times.enter_kernel(now);
        cx.serve(trap, now);
    }
    let status = cx.exiting.unwrap_or(WaitStatus::exited(0));
    cx.end_thread(status);
}

impl<M: Machine> Cx<'_, M> {
    fn serve(&mut self, trap: Trap, now: u64) {
        match trap {
            Trap::Syscall => self.system_call(),
            Trap::PageFault { addr, write, exec, present } => {
                self.page_fault(addr, write, exec, present);
            }
            Trap::Exception { vector, code } => self.exception(vector, code),
            Trap::Interrupt => {
                self.kernel.poll();
                self.kernel.sched.yield_if_due(self.thread, now);
            }
        }
    }

    fn page_fault(&mut self, addr: VirtAddr, write: bool, exec: bool, present: bool) {
        let faults = &self.thread.faults;
        faults.store(faults.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        let access = match (write, exec) {
            (true, _) => Access::Write,
            (_, true) => Access::Exec,
            _ => Access::Read,
        };
        let Err(error) = self.space.fault(addr, access) else { return };
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

    /// A fault without a frame: this process ends, everybody else lives on.
    fn out_of_memory(&mut self) {
        let name = self.process.program.lock().name;
        let stats = self.space.stats();
        log::warn!(
            "out of memory: killed process {} ({}), {} KiB mapped, {} KiB resident",
            self.process.pid,
            crate::text::name(&name),
            stats.mapped * 4,
            stats.rss() * 4,
        );
        self.end_process(WaitStatus::killed(Signal::KILL.number(), false));
    }

    fn exception(&mut self, vector: u8, code: u64) {
        let rip = self.regs.rip;
        let here = Detail::Fault { addr: rip };
        let nowhere = Detail::Fault { addr: 0 };
        let (signal, si_code, detail) = match vector {
            0 => (Signal::FPE, FPE_INTDIV, here),
            1 => (Signal::TRAP, TRAP_BRKPT, here),
            3 => (Signal::TRAP, SI_KERNEL, nowhere),
            6 => (Signal::ILL, ILL_ILLOPN, here),
            7 | 16 | 19 => (Signal::FPE, FPE_FLTINV, here),
            12 => (Signal::BUS, SI_KERNEL, nowhere),
            17 => (Signal::BUS, BUS_ADRALN, nowhere),
            _ => (Signal::SEGV, SI_KERNEL, nowhere),
        };
        let words = FaultWords { error: code, vector: u64::from(vector), cr2: 0 };
        self.raise(SigInfo { signal, code: si_code, detail }, words);
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
