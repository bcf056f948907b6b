//! A thread: what runs.
#![allow(unsafe_code)] // shares cells that only the running thread touches

use alloc::sync::Arc;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use pagoda_linux::Errno;
use pagoda_sync::SpinMutex;
use pagoda_vm::fallible::try_arc;

use super::Process;
use crate::kernel::Kernel;
use crate::machine::{Machine, UserRegs};
use crate::sched::slots::{Patience, SlotId};
use crate::signal::ThreadSignals;

/// CPU time, in nanoseconds. Written by the running thread alone.
///
/// The sum is exact: every span between two switches is counted. Which share of it is the
/// program's and which the kernel's is sampled, as on Linux: a span that ends in a tick goes to
/// whoever the tick met, one that ends in a switch is divided as the latest ticks were. So a system
/// call does not have to read the clock.
#[derive(Debug, Default)]
pub(crate) struct Times {
    user: AtomicU64,
    system: AtomicU64,
    stamp: AtomicU64,
    slice: AtomicU64,
    /// The kernel's share in the latest ticks, in 256ths.
    share: AtomicU32,
}

impl Times {
    const WHOLE: u32 = 256;

    /// The time since the last stamp; the next span begins.
    fn since(&self, now: u64) -> u64 {
        let stamp = self.stamp.load(Ordering::Relaxed);
        self.stamp.store(now, Ordering::Relaxed);
        now.saturating_sub(stamp)
    }
    fn add(counter: &AtomicU64, amount: u64) {
        counter.store(counter.load(Ordering::Relaxed) + amount, Ordering::Relaxed);
    }
    /// A tick came while the program ran, or while the kernel worked for it.
    pub(crate) fn sample(&self, now: u64, in_kernel: bool) {
        let span = self.since(now);
        Self::add(if in_kernel { &self.system } else { &self.user }, span);
        let share = self.share.load(Ordering::Relaxed);
        let met = if in_kernel { Self::WHOLE } else { 0 };
        self.share.store(share - share / 8 + met / 8, Ordering::Relaxed);
    }
    /// The thread leaves the CPU.
    pub(crate) fn leave(&self, now: u64) {
        let span = self.since(now);
        let share = u64::from(self.share.load(Ordering::Relaxed).min(Self::WHOLE));
        let system = (span / 256) * share + (span % 256) * share / 256;
        Self::add(&self.system, system);
        Self::add(&self.user, span - system);
    }
    pub(crate) fn start_slice(&self, now: u64) {
        self.stamp.store(now, Ordering::Relaxed);
        self.slice.store(now, Ordering::Relaxed);
    }
    pub(crate) fn slice_start(&self) -> u64 {
        self.slice.load(Ordering::Relaxed)
    }
    /// (user, system)
    pub(crate) fn get(&self) -> (u64, u64) {
        (self.user.load(Ordering::Relaxed), self.system.load(Ordering::Relaxed))
    }
}

/// A thread of a process. Its number is unique among all threads and processes; the first thread of
/// a process has the process's number.
pub(crate) struct Thread<M: Machine> {
    pub(crate) tid: u32,
    pub(crate) kernel: Arc<Kernel<M>>,
    pub(crate) process: Arc<Process<M>>,
    slot: SpinMutex<Option<SlotId>>,
    /// Touched as *one-runner* (see the scheduler) says.
    pub(crate) context: UnsafeCell<M::Context>,
    /// As `context`.
    pub(crate) fpu: UnsafeCell<M::Fpu>,
    /// The kernel stack; only kept.
    _stack: M::Stack,
    /// The registers that it starts with.
    pub(crate) start: UserRegs,
    pub(crate) signals: SpinMutex<ThreadSignals>,
    /// Something is to be looked at before the program goes on: a signal, the end, a stop.
    pub(crate) attention: AtomicBool,
    /// Where a zero is written, and a futex woken, when the thread ends.
    pub(crate) clear_child_tid: AtomicU64,
    /// The head of the list of robust futexes.
    pub(crate) robust_list: AtomicU64,
    pub(crate) times: Times,
    pub(crate) faults: AtomicU64,
    /// What is left of an order to fail, while the thread does not run.
    pub(crate) fail_nth: AtomicU64,
}

// SAFETY: the cells are touched by the thread that runs, and by the switch that saves or loads it,
// with the lock of the queues held (*one-runner*); the stack is only kept and dropped. Everything
// else is `Sync` by itself.
unsafe impl<M: Machine> Sync for Thread<M> {}
// SAFETY: contexts, images and stacks may move between CPUs: the machine says `Send`.
unsafe impl<M: Machine> Send for Thread<M> {}

impl<M: Machine> Thread<M> {
    /// A thread that is in no queue and in no table yet.
    pub(crate) fn new(
        kernel: &Arc<Kernel<M>>,
        process: &Arc<Process<M>>,
        tid: u32,
        start: UserRegs,
        fpu: M::Fpu,
        signals: ThreadSignals,
    ) -> Result<Arc<Self>, Errno> {
        let machine = kernel.machine;
        let stack = machine.new_stack().map_err(|_| Errno::ENOMEM)?;
        let thread = try_arc(Self {
            tid,
            kernel: Arc::clone(kernel),
            process: Arc::clone(process),
            slot: SpinMutex::new(None),
            context: UnsafeCell::new(machine.idle_context()),
            fpu: UnsafeCell::new(fpu),
            _stack: stack,
            start,
            signals: SpinMutex::new(signals),
            attention: AtomicBool::new(true),
            clear_child_tid: AtomicU64::new(0),
            robust_list: AtomicU64::new(0),
            times: Times::default(),
            faults: AtomicU64::new(0),
            fail_nth: AtomicU64::new(0),
        })
        .map_err(|_| Errno::ENOMEM)?;
        let argument = Arc::as_ptr(&thread).expose_provenance();
        let context = machine.new_context(&thread._stack, entry::<M>, argument);
        // SAFETY: nobody else knows the thread yet.
        unsafe { *thread.context.get() = context };
        Ok(thread)
    }

    pub(crate) fn slot(&self) -> Option<SlotId> {
        *self.slot.lock()
    }

    pub(crate) fn set_slot(&self, slot: SlotId) {
        *self.slot.lock() = Some(slot);
    }

    /// Is there a reason not to go on waiting?
    pub(crate) fn ends_wait(&self, patience: Patience) -> bool {
        if patience == Patience::Never || !self.attention.load(Ordering::SeqCst) {
            return false;
        }
        if self.process.is_ending() {
            return true;
        }
        patience == Patience::Interruptible && self.has_signal()
    }

    /// Makes the thread look at its signals before its program goes on, and ends its wait if it is
    /// one that a signal (`fatal`: the end of the process) ends.
    pub(crate) fn notify(&self, fatal: bool) {
        self.attention.store(true, Ordering::SeqCst);
        self.kernel.sched.interrupt(self, fatal);
    }

    /// Is a signal to be delivered, or a stop to be made?
    pub(crate) fn has_signal(&self) -> bool {
        if self.process.is_stopped() {
            return true;
        }
        let shared = self.process.signals.lock().pending.set();
        let own = self.signals.lock();
        !own.pending.set().or(shared).without(own.mask).is_empty()
    }

    /// Runs `f` with the floating-point image, brought up to date. For the running thread only.
    pub(crate) fn with_fpu<R>(&self, f: impl FnOnce(&mut M::Fpu) -> R) -> R {
        debug_assert!(self.kernel.sched.current().is_some_and(|me| me.tid == self.tid));
        // SAFETY: *one-runner*: the caller is the running thread, and nothing that `f` does
        // switches.
        let fpu = unsafe { &mut *self.fpu.get() };
        self.kernel.machine.save_fpu(fpu);
        f(fpu)
    }
}

/// Where a new thread begins: `argument` is the address of its [`Thread`], which its slot keeps.
extern "C" fn entry<M: Machine>(argument: usize) -> ! {
    let pointer: *const Thread<M> = core::ptr::with_exposed_provenance(argument);
    // SAFETY: the pointer came from an `Arc` in `new`; the slot holds a count until `exit`, so the
    // count can be raised and the value made.
    let thread = unsafe {
        Arc::increment_strong_count(pointer);
        Arc::from_raw(pointer)
    };
    thread.kernel.sched.arrive(Some(&thread));
    crate::run::run(&thread);
    let sched: *const crate::sched::Sched<M> = Arc::as_ptr(&thread.kernel.sched);
    // SAFETY: the scheduler outlives every thread: the kernel holds it until no thread is left.
    unsafe { (*sched).exit(thread) }
}
