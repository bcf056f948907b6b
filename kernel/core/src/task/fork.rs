//! New threads and processes.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use pagoda_linux::Errno;
use pagoda_sync::SpinMutex;
use pagoda_vm::fallible::try_arc;

use super::{Files, Parts, Process, Thread};
use crate::machine::{Machine, UserRegs};
use crate::run::Cx;
use crate::sched::slots::{Channel, Patience, Wait};
use crate::signal::frame::AltStack;
use crate::signal::set::Signal;
use crate::signal::{ProcessSignals, ThreadSignals};
use crate::{Result, Space};

pub(crate) const CLONE_VM: u64 = 0x100;
pub(crate) const CLONE_FS: u64 = 0x200;
pub(crate) const CLONE_FILES: u64 = 0x400;
pub(crate) const CLONE_SIGHAND: u64 = 0x800;
pub(crate) const CLONE_VFORK: u64 = 0x4000;
pub(crate) const CLONE_PARENT: u64 = 0x8000;
pub(crate) const CLONE_THREAD: u64 = 0x1_0000;
pub(crate) const CLONE_SYSVSEM: u64 = 0x4_0000;
pub(crate) const CLONE_SETTLS: u64 = 0x8_0000;
pub(crate) const CLONE_PARENT_SETTID: u64 = 0x10_0000;
pub(crate) const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
pub(crate) const CLONE_DETACHED: u64 = 0x40_0000;
pub(crate) const CLONE_UNTRACED: u64 = 0x80_0000;
pub(crate) const CLONE_CHILD_SETTID: u64 = 0x100_0000;
pub(crate) const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// Everything else (namespaces, process descriptors, groups of controllers) is not done.
const KNOWN: u64 = CLONE_VM
    | CLONE_FS
    | CLONE_FILES
    | CLONE_SIGHAND
    | CLONE_VFORK
    | CLONE_PARENT
    | CLONE_THREAD
    | CLONE_SYSVSEM
    | CLONE_SETTLS
    | CLONE_PARENT_SETTID
    | CLONE_CHILD_CLEARTID
    | CLONE_DETACHED
    | CLONE_UNTRACED
    | CLONE_CHILD_SETTID
    | CLONE_CLEAR_SIGHAND;

/// What `clone`, `clone3`, `fork` and `vfork` come to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CloneArgs {
    pub(crate) flags: u64,
    pub(crate) exit_signal: u64,
    /// The child's stack pointer, 0 for the parent's.
    pub(crate) stack: u64,
    pub(crate) parent_tid: u64,
    pub(crate) child_tid: u64,
    pub(crate) tls: u64,
}

impl CloneArgs {
    fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    fn check(&self) -> Result<()> {
        let thread_without_signals = self.has(CLONE_THREAD) && !self.has(CLONE_SIGHAND);
        let signals_without_memory = self.has(CLONE_SIGHAND) && !self.has(CLONE_VM);
        // A thread with files or a directory of its own is not in this data model.
        let lonely = self.has(CLONE_THREAD) && !(self.has(CLONE_FILES) && self.has(CLONE_FS));
        let contradiction = self.has(CLONE_SIGHAND) && self.has(CLONE_CLEAR_SIGHAND);
        let bad_signal = self.exit_signal > 64;
        if self.flags & !KNOWN != 0
            || thread_without_signals
            || signals_without_memory
            || lonely
            || contradiction
            || bad_signal
        {
            return Err(Errno::EINVAL);
        }
        Ok(())
    }
}

impl<M: Machine> Cx<'_, M> {
    /// `clone`. Returns the child's number.
    pub(crate) fn clone_task(&mut self, args: CloneArgs) -> Result<u64> {
        args.check()?;
        if self.kernel.is_going_down() {
            return Err(Errno::EAGAIN);
        }
        self.check_count()?;
        let child =
            if args.has(CLONE_THREAD) { self.new_thread(&args)? } else { self.new_process(&args)? };
        let tid = child.tid;
        if args.has(CLONE_PARENT_SETTID) {
            // As on Linux: a bad address does not stop the child.
            let _ = self.write_u32(args.parent_tid, tid);
        }
        let vfork = args.has(CLONE_VFORK).then(|| Arc::clone(&child.process));
        self.kernel.sched.release(&child);
        drop(child);
        if let Some(process) = vfork {
            self.wait_for_vfork(&process);
        } else if !args.has(CLONE_VM) {
            self.kernel.sched.let_child_run(self.thread);
        }
        Ok(u64::from(tid))
    }

    /// `RLIMIT_NPROC`, which Linux applies to users other than the first.
    fn check_count(&self) -> Result<()> {
        let limit = self.process.limit(6);
        let root = self.process.ids.lock().uid[0] == 0;
        let count = self.kernel.tables.lock().thread_count() as u64;
        if count >= crate::kernel::THREADS_MAX || (!root && count >= limit) {
            return Err(Errno::EAGAIN);
        }
        Ok(())
    }

    fn wait_for_vfork(&self, child: &Process<M>) {
        let wait = Wait {
            channel: Channel::Vfork(child.pid),
            mask: !0,
            deadline: u64::MAX,
            patience: Patience::Killable,
        };
        let _ = self.kernel.sched.wait_until(self.thread, wait, || {
            (!child.borrows.load(Ordering::SeqCst)).then_some(())
        });
    }

    fn child_regs(&self, args: &CloneArgs) -> UserRegs {
        let mut regs = UserRegs { rax: 0, ..self.regs };
        if args.stack != 0 {
            regs.rsp = args.stack;
        }
        if args.has(CLONE_SETTLS) {
            regs.fs_base = args.tls;
        }
        regs
    }

    fn copy_fpu(&self) -> Result<M::Fpu> {
        let machine = self.kernel.machine;
        let mut copy = machine.new_fpu().map_err(|_| Errno::ENOMEM)?;
        let accepted =
            self.thread.with_fpu(|fpu| machine.set_fpu_bytes(&mut copy, machine.fpu_bytes(fpu)));
        if accepted { Ok(copy) } else { Err(Errno::EINVAL) }
    }

    fn check_tls(&self, args: &CloneArgs) -> Result<()> {
        let bad = args.has(CLONE_SETTLS) && args.tls >= self.space.layout().limit.as_u64();
        if bad { Err(Errno::EPERM) } else { Ok(()) }
    }

    fn child_signals(&self, shares_memory: bool) -> ThreadSignals {
        let own = self.thread.signals.lock();
        let mut signals = ThreadSignals::new(own.mask);
        // A thread or borrower with the same memory must not run on the same signal stack.
        signals.alt = if shares_memory { AltStack::NONE } else { own.alt };
        signals
    }

    fn new_thread(&mut self, args: &CloneArgs) -> Result<Arc<Thread<M>>> {
        self.check_tls(args)?;
        let fpu = self.copy_fpu()?;
        let signals = self.child_signals(true);
        let regs = self.child_regs(args);
        let tid = self.kernel.tables.lock().new_id()?;
        let thread = Thread::new(self.kernel, self.process, tid, regs, fpu, signals)?;
        self.note_child_tid(args, &thread, &self.space)?;
        self.publish(&thread, None)?;
        Ok(thread)
    }

    fn copy_space(&self) -> Result<Space<M>> {
        let table = self.kernel.machine.new_page_table().map_err(|_| Errno::ENOMEM)?;
        Ok(self.space.fork(table)?)
    }

    fn new_process(&mut self, args: &CloneArgs) -> Result<Arc<Thread<M>>> {
        self.check_tls(args)?;
        let fpu = self.copy_fpu()?;
        let shares = args.has(CLONE_VM);
        let borrows = args.has(CLONE_VFORK);
        let signals = self.child_signals(shares && !borrows);
        let regs = self.child_regs(args);
        let space = if shares {
            Arc::clone(&self.space)
        } else {
            let copy = match self.copy_space() {
                // What was freed lazily may make room.
                Err(Errno::ENOMEM) if self.kernel.let_go() != 0 => self.copy_space()?,
                copied => copied?,
            };
            try_arc(copy).map_err(|_| Errno::ENOMEM)?
        };
        let pid = self.kernel.tables.lock().new_id()?;
        let process = try_arc(Process::new(self.parts(args, pid, borrows, Arc::clone(&space))?))
            .map_err(|_| Errno::ENOMEM)?;
        let thread = Thread::new(self.kernel, &process, pid, regs, fpu, signals)?;
        self.note_child_tid(args, &thread, &space)?;
        self.publish(&thread, Some(process))?;
        Ok(thread)
    }

    fn parts(
        &self,
        args: &CloneArgs,
        pid: u32,
        borrows: bool,
        space: Arc<Space<M>>,
    ) -> Result<Parts<M>> {
        let me = self.process;
        let gone = Errno::ESRCH;
        let files = me.files().ok_or(gone)?;
        let files = if args.has(CLONE_FILES) {
            files
        } else {
            let copy = files.0.lock().try_clone()?;
            try_arc(Files(SpinMutex::new(copy))).map_err(|_| Errno::ENOMEM)?
        };
        let places = me.places.lock().clone().ok_or(gone)?;
        let places = if args.has(CLONE_FS) {
            places
        } else {
            let copy = places.lock().clone();
            try_arc(SpinMutex::new(copy)).map_err(|_| Errno::ENOMEM)?
        };
        let signals = if args.has(CLONE_CLEAR_SIGHAND) {
            ProcessSignals::new()?
        } else {
            me.signals.lock().inherit()?
        };
        let parent = if args.has(CLONE_PARENT) { me.parent.load(Ordering::SeqCst) } else { me.pid };
        let program = me.program.lock().try_clone()?;
        let ids = me.ids.lock().try_clone()?;
        Ok(Parts {
            pid,
            parent,
            group: me.group.load(Ordering::SeqCst),
            session: me.session.load(Ordering::SeqCst),
            exit_signal: Signal::new(args.exit_signal).map_or(0, Signal::number),
            borrows,
            space,
            files,
            places,
            signals,
            ids,
            limits: *me.limits.lock(),
            program,
            nice: me.nice.load(Ordering::Relaxed),
            terminal: me.family.lock().terminal.clone(),
            now: self.kernel.machine.monotonic_ns(),
        })
    }

    fn note_child_tid(&self, args: &CloneArgs, child: &Thread<M>, space: &Space<M>) -> Result<()> {
        if args.has(CLONE_CHILD_CLEARTID) {
            child.clear_child_tid.store(args.child_tid, Ordering::Relaxed);
        }
        if args.has(CLONE_CHILD_SETTID) {
            // As on Linux: a bad address does not stop the child.
            let _ = crate::user::write_to(space, args.child_tid, &child.tid.to_le_bytes());
        }
        Ok(())
    }

    /// Puts a thread that is built in full (and its process, if that is new) where everybody finds
    /// it. Reserves first; nothing fails once it is visible.
    fn publish(&self, thread: &Arc<Thread<M>>, process: Option<Arc<Process<M>>>) -> Result<()> {
        let kernel = self.kernel;
        kernel.sched.admit(thread).map_err(|_| Errno::EAGAIN)?;
        let mut tables = kernel.tables.lock();
        let mut family = thread.process.family.lock();
        let mut result = tables.reserve();
        if family.threads.try_reserve(1).is_err() {
            result = Err(Errno::ENOMEM);
        }
        // A process that is about to end, or to be replaced, gets no more threads.
        let closing = thread.process.is_ending() || thread.process.sole.load(Ordering::SeqCst) != 0;
        if closing {
            result = Err(Errno::ERESTARTNOINTR);
        }
        if let Err(error) = result {
            drop((family, tables));
            kernel.discard_thread(thread);
            return Err(error);
        }
        family.threads.push(Arc::clone(thread));
        tables.add_thread(Arc::clone(thread));
        drop(family);
        if let Some(process) = process {
            tables.add_process(process);
        }
        Ok(())
    }
}
