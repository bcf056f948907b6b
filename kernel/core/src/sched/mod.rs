//! Threads take turns.
//!
//! The nouns: a *slot* ([`slots`]) is a thread's place in the queues; a *context* is its saved
//! kernel registers; *idle* is what a CPU does without a thread: on the boot CPU the context that
//! [`start`](fn@crate::start) was called on, on the others the one that the machine called
//! [`serve_cpu`] on.
//!
//! Kernel mode is never pre-empted: a thread leaves the CPU in [`Sched::yield_now`],
//! [`Sched::wait_until`] and [`Sched::exit`], and nowhere else.
//!
//! # Invariants
//!
//! *lock-carried-over*: the lock of the queues is taken before a switch and given back after it, by
//! whoever is switched to. So nobody, on any CPU, sees a thread in a queue before its registers are
//! saved, and a dead thread's stack is dropped only after the CPU has left it.
//!
//! *one-runner*: a context and a floating-point image are touched only by their running thread and
//! by the switch that saves or loads them, which holds the lock.
//!
//! *kicked-awake*: a CPU that idles is told (`Machine::kick`) when a thread that it may run becomes
//! ready and no CPU that is about to look will take it; a CPU that runs a thread is told when that
//! thread has to look at its signals. A kick that comes too early is only a loop too many.
//!
//! *space-held*: the CPU holds a count on the address space that it has loaded; an address space is
//! dropped only after the CPU has loaded another, or none.
//!
//! # Lock order
//!
//! The lock of the queues is the innermost of this crate: nothing but the machine is called with it
//! held.
//!
//! One queue for all CPUs: a thread goes on wherever the next CPU is free, within its affinity.
//!
//! Left out: queues per CPU, staying where the caches are warm, priorities.
#![allow(unsafe_code)] // switches contexts, carries a lock over

pub(crate) mod slots;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::sync::atomic::Ordering;

use pagoda_sync::{CpuId, SpinMutex, SpinMutexGuard};
use pagoda_vm::fallible::{NoMemory, try_push};

use crate::Space;
use crate::machine::Machine;
use crate::task::{FIRST, Thread};
use slots::{Channel, NoSlot, Patience, SlotId, Slots, Wait, Wake};

/// How long a thread runs before another one's turn, in nanoseconds.
const SLICE_NS: u64 = 10_000_000;

struct Queues<M: Machine> {
    slots: Slots<Arc<Thread<M>>>,
    cpus: Vec<Cpu<M>>,
}

/// What belongs to a CPU.
struct Cpu<M: Machine> {
    current: Option<SlotId>,
    dead: Option<Arc<Thread<M>>>,
    loaded: Option<Arc<Space<M>>>,
    /// It has found nothing to do, and has not been told otherwise since.
    idling: bool,
}

/// The scheduler.
pub(crate) struct Sched<M: Machine> {
    machine: &'static M,
    queues: SpinMutex<Queues<M>>,
    /// A context for each CPU to idle in.
    idle: Vec<UnsafeCell<M::Context>>,
}

// SAFETY: `idle` is touched only by a switch, which holds the lock (*one-runner*); everything else
// is behind the lock.
unsafe impl<M: Machine> Sync for Sched<M> {}
// SAFETY: contexts and threads may move between CPUs (`Context: Send`).
unsafe impl<M: Machine> Send for Sched<M> {}

impl<M: Machine> Sched<M> {
    pub(crate) fn new(machine: &'static M) -> core::result::Result<Self, NoMemory> {
        let (mut cpus, mut idle) = (Vec::new(), Vec::new());
        for _ in 0..machine.cpu_count() {
            try_push(&mut cpus, Cpu { current: None, dead: None, loaded: None, idling: false })?;
            try_push(&mut idle, UnsafeCell::new(machine.idle_context()))?;
        }
        Ok(Self { machine, queues: SpinMutex::new(Queues { slots: Slots::new(), cpus }), idle })
    }

    /// The executing CPU, as an index.
    fn me(&self) -> usize {
        self.machine.cpu().index()
    }

    fn idle_context(&self) -> *mut M::Context {
        self.idle[self.me()].get()
    }

    /// Changes the queues; when that made threads ready, tells CPUs that idle.
    fn change<R>(&self, f: impl FnOnce(&mut Slots<Arc<Thread<M>>>) -> R) -> R {
        let mut queues = self.queues.lock();
        let before = queues.slots.ready_count();
        let answer = f(&mut queues.slots);
        if queues.slots.ready_count() > before {
            self.kick_idle(&mut queues);
        }
        answer
    }

    /// *kicked-awake*.
    fn kick_idle(&self, queues: &mut Queues<M>) {
        let me = self.me();
        let mut ready = queues.slots.ready_count();
        if queues.cpus[me].idling && ready > 0 {
            ready -= 1; // this CPU is awake and will look before it idles again
        }
        for (index, cpu) in queues.cpus.iter_mut().enumerate() {
            if ready == 0 {
                break;
            }
            if cpu.idling && index != me && queues.slots.first_ready(index).is_some() {
                cpu.idling = false;
                ready -= 1;
                self.kick(index);
            }
        }
    }

    fn kick(&self, cpu: usize) {
        if let Some(cpu) = CpuId::new(cpu) {
            self.machine.kick(cpu);
        }
    }

    /// Lets the other CPUs run threads too, until there are none left.
    pub(crate) fn start_others(&self) {
        let argument = core::ptr::from_ref(self).expose_provenance();
        self.machine.run_others(serve_cpu::<M>, argument);
    }

    /// There are no threads left: waits until the other CPUs have noticed.
    pub(crate) fn join_others(&self) {
        self.machine.join_others();
    }

    /// The CPUs that a thread may run on, a bit each.
    pub(crate) fn affinity(&self, thread: &Thread<M>) -> u64 {
        let queues = self.queues.lock();
        let all = all_cpus(queues.cpus.len());
        thread.slot().map_or(all, |slot| queues.slots.affinity(slot) & all)
    }

    /// Lets a thread run on these CPUs only; false, and no change, when none of them exists. A
    /// thread that runs elsewhere moves soon; the caller itself moves at once.
    pub(crate) fn set_affinity(&self, thread: &Thread<M>, affinity: u64) -> bool {
        let Some(slot) = thread.slot() else { return false };
        let mut queues = self.queues.lock();
        if affinity & all_cpus(queues.cpus.len()) == 0 {
            return false;
        }
        queues.slots.set_affinity(slot, affinity);
        let me = self.me();
        let runs_on = queues.cpus.iter().position(|cpu| cpu.current == Some(slot));
        match runs_on {
            Some(cpu) if affinity & slots::bit(cpu) != 0 => {}
            Some(cpu) if cpu == me => {
                queues.slots.make_ready(slot);
                self.leave(queues, Some(thread));
            }
            Some(cpu) => self.kick(cpu),
            None => self.kick_idle(&mut queues),
        }
        true
    }

    /// A place in the queues for a new thread; it does not run before [`release`](Self::release).
    pub(crate) fn admit(&self, thread: &Arc<Thread<M>>) -> Result<(), NoSlot> {
        let mut queues = self.queues.lock();
        let parent = queues.cpus[self.me()].current;
        let affinity = parent.map_or(!0, |slot| queues.slots.affinity(slot));
        let slot = queues.slots.admit(Arc::clone(thread), affinity)?;
        drop(queues);
        thread.set_slot(slot);
        Ok(())
    }

    /// A thread that was admitted, and will never run, gives its place back.
    pub(crate) fn withdraw(&self, thread: &Thread<M>) {
        let Some(slot) = thread.slot() else { return };
        let payload = self.queues.lock().slots.remove(slot);
        drop(payload);
    }

    /// A thread that was admitted may run now.
    pub(crate) fn release(&self, thread: &Thread<M>) {
        if let Some(slot) = thread.slot() {
            self.change(|slots| slots.make_ready(slot));
        }
    }

    /// The thread that runs on this CPU.
    pub(crate) fn current(&self) -> Option<Arc<Thread<M>>> {
        let queues = self.queues.lock();
        queues.cpus[self.me()].current.and_then(|slot| queues.slots.payload(slot)).cloned()
    }

    /// Threads that exist, and threads that could run (the running ones included).
    pub(crate) fn counts(&self) -> (usize, usize) {
        let queues = self.queues.lock();
        let running = queues.cpus.iter().filter(|cpu| cpu.current.is_some()).count();
        (queues.slots.live(), queues.slots.ready_count() + running)
    }

    /// Wakes up to `limit` threads that wait on `channel`; returns how many.
    pub(crate) fn wake(&self, channel: Channel, limit: usize) -> usize {
        self.change(|slots| slots.wake(channel, !0, limit))
    }

    /// As [`wake`](Self::wake), but only waits with a common bit in `mask`.
    pub(crate) fn wake_masked(&self, channel: Channel, mask: u32, limit: usize) -> usize {
        self.change(|slots| slots.wake(channel, mask, limit))
    }

    /// Lets up to `limit` waiters on `from` wait on `to` instead; returns how many.
    pub(crate) fn requeue(&self, from: Channel, to: Channel, limit: usize) -> usize {
        self.queues.lock().slots.requeue(from, to, limit)
    }

    /// Ends the thread's wait, if its patience is that short. If its program runs on another CPU,
    /// it comes into the kernel.
    pub(crate) fn interrupt(&self, thread: &Thread<M>, fatal: bool) {
        let Some(slot) = thread.slot() else { return };
        self.change(|slots| slots.interrupt(slot, fatal));
        let queues = self.queues.lock();
        let runs_on = queues.cpus.iter().position(|cpu| cpu.current == Some(slot));
        if let Some(cpu) = runs_on.filter(|&cpu| cpu != self.me()) {
            self.kick(cpu);
        }
    }

    /// Ends the waits whose time has come.
    pub(crate) fn expire(&self, now: u64) {
        self.change(|slots| slots.expire(now));
    }

    /// No wait ends by time before this (monotonic nanoseconds).
    pub(crate) fn earliest(&self) -> u64 {
        self.queues.lock().slots.earliest()
    }

    /// Is the thread asleep?
    pub(crate) fn is_waiting(&self, thread: &Thread<M>) -> bool {
        thread.slot().is_some_and(|slot| self.queues.lock().slots.is_waiting(slot))
    }

    /// Waits until `check` has an answer. `check` is asked before every sleep, when a wake from
    /// then on can no longer be missed. It takes no lock of the queues and does not wait itself.
    pub(crate) fn wait_until<R>(
        &self,
        thread: &Thread<M>,
        wait: Wait,
        mut check: impl FnMut() -> Option<R>,
    ) -> Result<R, Wake> {
        let Some(slot) = thread.slot() else { return Err(Wake::Interrupted) };
        loop {
            self.queues.lock().slots.park(slot, wait);
            let answer = check();
            let ended = if answer.is_some() {
                None
            } else if thread.ends_wait(wait.patience) {
                Some(Wake::Interrupted)
            } else if wait.deadline <= self.machine.monotonic_ns() {
                Some(Wake::TimedOut)
            } else {
                match self.block(thread, slot) {
                    Wake::Woken => continue,
                    ended => {
                        // What it waited for may have happened as well, and goes first.
                        return check().ok_or(ended);
                    }
                }
            };
            self.queues.lock().slots.unpark(slot);
            return answer.ok_or(ended.unwrap_or(Wake::Woken));
        }
    }

    /// One sleep on `wait`, unless `stay` says after parking that there is nothing to sleep for;
    /// then `None`, or `Some(Woken)` if a wake had come in between.
    pub(crate) fn sleep_unless(
        &self,
        thread: &Thread<M>,
        wait: Wait,
        stay: impl FnOnce() -> bool,
    ) -> Option<Wake> {
        let slot = thread.slot()?;
        self.queues.lock().slots.park(slot, wait);
        if stay() {
            return self.queues.lock().slots.unpark(slot);
        }
        let ended = if thread.ends_wait(wait.patience) {
            Wake::Interrupted
        } else if wait.deadline <= self.machine.monotonic_ns() {
            Wake::TimedOut
        } else {
            return Some(self.block(thread, slot));
        };
        Some(self.queues.lock().slots.unpark(slot).unwrap_or(ended))
    }

    fn block(&self, thread: &Thread<M>, slot: SlotId) -> Wake {
        let mut queues = self.queues.lock();
        if queues.slots.commit(slot) {
            self.leave(queues, Some(thread));
            queues = self.queues.lock();
        }
        queues.slots.reason(slot)
    }

    /// Lets the others run first.
    pub(crate) fn yield_now(&self, thread: &Thread<M>) {
        let Some(slot) = thread.slot() else { return };
        let mut queues = self.queues.lock();
        let stays = queues.slots.affinity(slot) & slots::bit(self.me()) != 0;
        if stays && queues.slots.first_ready(self.me()).is_none() {
            return;
        }
        queues.slots.make_ready(slot);
        self.leave(queues, Some(thread));
    }

    /// Lets a child that was just made run before its parent, unless an idle CPU takes it at once. What
    /// the child gives up at once (its memory, if it starts another program or ends) the parent then
    /// need not copy, and need not wait for.
    pub(crate) fn let_child_run(&self, parent: &Thread<M>) {
        let idle = self.queues.lock().cpus.iter().any(|cpu| cpu.idling);
        if !idle {
            self.yield_now(parent);
        }
    }

    /// Lets the others run if the thread's slice is over.
    pub(crate) fn yield_if_due(&self, thread: &Thread<M>, now: u64) {
        let misplaced = self.affinity(thread) & slots::bit(self.me()) == 0;
        if misplaced || now.saturating_sub(thread.times.slice_start()) >= SLICE_NS {
            self.yield_now(thread);
            thread.times.start_slice(self.machine.monotonic_ns());
        }
    }

    /// From the idle context: runs threads until none can run. Returns the number of threads that
    /// exist.
    pub(crate) fn run_ready(&self) -> usize {
        let me = self.me();
        loop {
            let mut queues = self.queues.lock();
            if queues.slots.first_ready(me).is_none() {
                queues.cpus[me].idling = true;
                return queues.slots.live();
            }
            queues.cpus[me].idling = false;
            self.leave(queues, None);
        }
    }

    /// The thread is over. Its last count goes to whoever runs next, who drops it.
    pub(crate) fn exit(&self, thread: Arc<Thread<M>>) -> ! {
        let from = thread.context.get();
        let slot = thread.slot();
        let mut queues = self.queues.lock();
        queues.cpus[self.me()].dead = slot.and_then(|slot| queues.slots.remove(slot));
        drop(thread);
        let to = self.take_next(&mut queues);
        core::mem::forget(queues);
        // SAFETY: *lock-carried-over*: the lock is held and is given back by whoever `to` is. `from`
        // lives in the thread that `dead` keeps until then; nobody switches to it again. `to` was
        // saved by a switch or is new, and runs nowhere (*one-runner*).
        unsafe { self.machine.switch(from, to) };
        unreachable!("a dead thread was switched to");
    }

    /// Goes to the next thread, or to idle, and comes back when it is `from`'s turn again. `from`
    /// is in its queue already (or is idle, which is in none).
    fn leave(&self, mut queues: SpinMutexGuard<'_, Queues<M>>, from: Option<&Thread<M>>) {
        let saved = from.map_or_else(|| self.idle_context(), |thread| thread.context.get());
        if let Some(thread) = from {
            // SAFETY: *one-runner*: the thread runs here, and this is its switch.
            self.machine.save_fpu(unsafe { &mut *thread.fpu.get() });
            thread.times.leave(self.machine.monotonic_ns());
            thread.fail_nth.store(self.machine.fail_nth(0), Ordering::Relaxed);
        }
        let to = self.take_next(&mut queues);
        if core::ptr::eq(saved, to) {
            self.serve(from);
            return;
        }
        core::mem::forget(queues);
        // SAFETY: as in `exit`; `saved` lives in a thread that its slot keeps, or in `self`.
        unsafe { self.machine.switch(saved, to) };
        self.arrive(from);
    }

    /// Takes the next thread from the queue and makes it current: where its registers are.
    fn take_next(&self, queues: &mut Queues<M>) -> *mut M::Context {
        let me = self.me();
        let next = queues.slots.next_ready(me);
        queues.cpus[me].current = next;
        self.kick_idle(queues);
        match next.and_then(|slot| queues.slots.payload(slot)) {
            Some(thread) => thread.context.get(),
            None => self.idle_context(),
        }
    }

    /// First thing after a switch: takes over the lock and gives it back, lets go of the dead,
    /// loads what belongs to `me` (`None`: idle).
    pub(crate) fn arrive(&self, me: Option<&Thread<M>>) {
        // SAFETY: *lock-carried-over*: whoever switched here left the lock held for us.
        let mut queues = unsafe { self.queues.make_guard_unchecked() };
        let dead = queues.cpus[self.me()].dead.take();
        drop(queues);
        let space = me.and_then(|thread| thread.process.space());
        self.load_space(space);
        if let Some(thread) = me {
            // SAFETY: *one-runner*: the thread runs here, and this is its switch.
            self.machine.load_fpu(unsafe { &*thread.fpu.get() });
            thread.times.start_slice(self.machine.monotonic_ns());
            thread.kernel.switches.fetch_add(1, Ordering::Relaxed);
        }
        drop(dead);
        self.serve(me);
    }

    /// Tells the machine for whom it allocates from now on.
    fn serve(&self, thread: Option<&Thread<M>>) {
        let nth = thread.map_or(0, |thread| thread.fail_nth.load(Ordering::Relaxed));
        self.machine.fail_nth(nth);
        self.machine.may_fail(thread.is_some_and(|thread| thread.process.pid != FIRST));
    }

    /// Makes `space` (`None`: the kernel's own) the active one of this CPU.
    pub(crate) fn load_space(&self, space: Option<Arc<Space<M>>>) {
        let mut queues = self.queues.lock();
        let here = &mut queues.cpus[self.me()];
        let same = match (&here.loaded, &space) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            _ => false,
        };
        if same {
            return;
        }
        let cpu = self.machine.cpu();
        if let Some(new) = &space {
            new.table().space().join(cpu);
        }
        self.machine.activate(space.as_ref().map(|space| space.root()));
        if let Some(old) = &here.loaded {
            old.table().space().leave(cpu);
        }
        let old = core::mem::replace(&mut here.loaded, space);
        drop(queues);
        drop(old);
    }
}

/// A bit for each of the first `count` CPUs.
fn all_cpus(count: usize) -> u64 {
    (0..count).fold(0, |all, cpu| all | slots::bit(cpu))
}

/// What the other CPUs do: run threads until there are none. `argument` is the address of the
/// scheduler.
extern "C" fn serve_cpu<M: Machine>(argument: usize) {
    let sched: *const Sched<M> = core::ptr::with_exposed_provenance(argument);
    // SAFETY: the pointer came from a reference in `start_others`; the scheduler lives until
    // `join_others` has returned, which waits for this call.
    let sched = unsafe { &*sched };
    while sched.run_ready() != 0 {
        sched.machine.wait_for_interrupt();
    }
}

/// A wait without a deadline that any signal ends.
pub(crate) fn interruptible(channel: Channel) -> Wait {
    Wait { channel, mask: !0, deadline: u64::MAX, patience: Patience::Interruptible }
}
