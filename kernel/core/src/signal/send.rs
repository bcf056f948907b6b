//! Sending signals.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::info::{CLD_CONTINUED, CLD_DUMPED, CLD_EXITED, CLD_KILLED, CLD_STOPPED};
use super::info::{Detail, QueueFull, SigInfo};
use super::set::{Action, SA_NOCLDSTOP, SIG_DFL, SigSet, Signal};
use crate::kernel::Kernel;
use crate::machine::Machine;
use crate::sched::slots::Channel;
use crate::task::{Process, Thread, WaitStatus};

impl<M: Machine> Kernel<M> {
    /// Sends a signal to a process: some thread that does not block it will take it.
    pub(crate) fn send_to_process(
        &self,
        process: &Process<M>,
        info: SigInfo,
    ) -> Result<(), QueueFull> {
        self.send_preferably(process, info, None)
    }

    /// As [`send_to_process`](Self::send_to_process), but `first` takes it if it may.
    pub(crate) fn send_preferably(
        &self,
        process: &Process<M>,
        info: SigInfo,
        first: Option<&Arc<Thread<M>>>,
    ) -> Result<(), QueueFull> {
        let family = process.family.lock();
        if family.ended.is_some() || self.act_at_once(process, &family.threads, info.signal) {
            return Ok(());
        }
        let ignored = process.signals.lock().action(info.signal).ignores(info.signal);
        let wanted = |thread: &&Arc<Thread<M>>| {
            let own = thread.signals.lock();
            !own.mask.contains(info.signal) || own.waited.contains(info.signal)
        };
        let blocked_by_one =
            family.threads.iter().any(|thread| thread.signals.lock().mask.contains(info.signal));
        if ignored && !blocked_by_one {
            return Ok(());
        }
        process.signals.lock().pending.push(info)?;
        if let Some(taker) = first.into_iter().chain(&family.threads).find(wanted) {
            self.nudge(taker);
        }
        Ok(())
    }

    /// Sends a signal to one thread.
    pub(crate) fn send_to_thread(
        &self,
        thread: &Arc<Thread<M>>,
        info: SigInfo,
    ) -> Result<(), QueueFull> {
        let process = &thread.process;
        let family = process.family.lock();
        if family.ended.is_some() || self.act_at_once(process, &family.threads, info.signal) {
            return Ok(());
        }
        let ignored = process.signals.lock().action(info.signal).ignores(info.signal);
        let mut own = thread.signals.lock();
        if ignored && !own.mask.contains(info.signal) {
            return Ok(());
        }
        own.pending.push(info)?;
        drop(own);
        self.nudge(thread);
        Ok(())
    }

    /// Raises a signal that the running thread's own doing caused: it cannot be put off. Where it
    /// is blocked or ignored, it ends the process.
    pub(crate) fn force_signal(&self, thread: &Arc<Thread<M>>, info: SigInfo) {
        let mut shared = thread.process.signals.lock();
        let mut own = thread.signals.lock();
        let action = shared.action(info.signal);
        if own.mask.contains(info.signal) || action.ignores(info.signal) {
            shared.set_action(info.signal, Action { handler: SIG_DFL, ..Action::default() });
            own.mask.remove(info.signal);
        }
        // A fault's circumstances are the newest; what was sent from outside gives way.
        own.pending.discard(SigSet::of(info.signal));
        own.forced = Some(info);
        drop((own, shared));
        thread.attention.store(true, Ordering::SeqCst);
    }

    /// What a signal does on arrival, whoever blocks it. True when nothing is left to deliver.
    fn act_at_once(
        &self,
        process: &Process<M>,
        threads: &[Arc<Thread<M>>],
        signal: Signal,
    ) -> bool {
        if signal == Signal::KILL {
            self.end_threads(process, threads, WaitStatus::killed(signal.number(), false));
            return true;
        }
        let drop_everywhere = |these: SigSet| {
            process.signals.lock().pending.discard(these);
            for thread in threads {
                thread.signals.lock().pending.discard(these);
            }
        };
        if signal == Signal::CONT {
            drop_everywhere(SigSet::STOPS);
            if process.set_stopped(false) {
                self.sched.wake(Channel::Continue(process.pid), usize::MAX);
                self.report_continue.store(process.pid, Ordering::SeqCst);
            }
        } else if SigSet::STOPS.contains(signal) {
            drop_everywhere(SigSet::of(Signal::CONT));
        }
        false
    }

    /// Ends all threads of a process. Called with its family locked.
    pub(crate) fn end_threads(
        &self,
        process: &Process<M>,
        threads: &[Arc<Thread<M>>],
        status: WaitStatus,
    ) {
        process.set_ending(status);
        process.set_stopped(false);
        self.sched.wake(Channel::Continue(process.pid), usize::MAX);
        for thread in threads {
            thread.notify(true);
        }
    }

    fn nudge(&self, thread: &Arc<Thread<M>>) {
        thread.notify(false);
        self.sched.wake(Channel::Signal(thread.tid), 1);
    }

    /// Sends a signal to every process of a group; false if there is none.
    pub(crate) fn send_to_group(&self, group: u32, info: SigInfo) -> bool {
        let mut found = false;
        let mut next = 0;
        while let Some(process) = self.next_process(next) {
            next = process.pid + 1;
            if process.group.load(Ordering::Relaxed) == group {
                found = true;
                self.signal_and_report(&process, info);
            }
        }
        found
    }

    /// As [`send_to_process`](Self::send_to_process), and tells the parent where that continued the
    /// process. Called without locks.
    pub(crate) fn signal_and_report(&self, process: &Arc<Process<M>>, info: SigInfo) {
        let _ = self.send_to_process(process, info);
        self.after_sending();
    }

    /// The part of sending that looks at other processes: to be called, without locks, after
    /// signals were sent.
    pub(crate) fn after_sending(&self) {
        let pid = self.report_continue.swap(0, Ordering::SeqCst);
        if pid == 0 {
            return;
        }
        let Some(process) = self.tables.lock().process(pid) else { return };
        {
            let mut family = process.family.lock();
            family.stop_report = None;
            family.continue_report = true;
        }
        self.tell_parent(&process, CLD_CONTINUED, Signal::CONT.number() as i32);
    }

    /// Tells the parent that a child stopped or goes on.
    pub(crate) fn tell_parent(&self, child: &Arc<Process<M>>, code: i32, status: i32) {
        let parent_id = child.parent.load(Ordering::SeqCst);
        let Some(parent) = self.tables.lock().process(parent_id) else { return };
        let quiet = parent.signals.lock().action(Signal::CHLD).flags & SA_NOCLDSTOP != 0;
        if !(quiet && matches!(code, CLD_STOPPED | CLD_CONTINUED)) {
            let _ = self.send_to_process(&parent, child_info(child, Signal::CHLD, code, status));
        }
        self.sched.wake(Channel::Child(parent_id), usize::MAX);
    }
}

/// The circumstances of `SIGCHLD` (or of another exit signal).
pub(crate) fn child_info<M: Machine>(
    child: &Process<M>,
    signal: Signal,
    code: i32,
    status: i32,
) -> SigInfo {
    let usage = child.usage();
    let uid = child.ids.lock().uid[0];
    SigInfo {
        signal,
        code,
        detail: Detail::Child {
            pid: child.pid,
            uid,
            status,
            user_ticks: usage.user / 10_000_000,
            system_ticks: usage.system / 10_000_000,
        },
    }
}

/// `si_code` and `si_status` of an ended child.
pub(crate) fn child_end(status: WaitStatus) -> (i32, i32) {
    match status.signal() {
        0 => (CLD_EXITED, status.code() as i32),
        signal if status.core() => (CLD_DUMPED, signal as i32),
        signal => (CLD_KILLED, signal as i32),
    }
}
