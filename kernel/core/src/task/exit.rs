//! The end of threads and processes.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::{Process, Thread, Timers, Usage, WaitStatus};
use crate::kernel::Kernel;
use crate::machine::Machine;
use crate::run::Cx;
use crate::sched::slots::Channel;
use crate::signal::info::SigInfo;
use crate::signal::send::{child_end, child_info};
use crate::signal::set::{SA_NOCLDWAIT, SIG_IGN, Signal};

/// The process that inherits orphans, and whose end is the end of everything.
pub(crate) const FIRST: u32 = 1;

impl<M: Machine> Cx<'_, M> {
    /// Decides how the process ends (`exit_group`, a deadly signal) and sends all threads there.
    pub(crate) fn end_process(&self, status: WaitStatus) {
        let family = self.process.family.lock();
        self.kernel.end_threads(self.process, &family.threads, status);
    }

    /// The last thing that a thread does: lets go of what it has, and if it is the last of its
    /// process, of what the process has. `own_status` counts if nothing else was decided.
    pub(crate) fn end_thread(self, own_status: WaitStatus) {
        self.release_futexes();
        self.count_time();
        let (kernel, thread, process) = (self.kernel, self.thread, self.process);
        drop(self);
        let last = {
            let mut tables = kernel.tables.lock();
            let mut family = process.family.lock();
            tables.remove_thread(thread.tid);
            family.threads.retain(|other| other.tid != thread.tid);
            let (user, system) = thread.times.get();
            let faults = thread.faults.load(Ordering::Relaxed);
            family.usage.add(&Usage { user, system, faults, max_rss: 0 });
            family.threads.is_empty()
        };
        kernel.sched.wake(Channel::ThreadEnd(process.pid), usize::MAX);
        if last {
            process.set_ending(own_status);
            kernel.end_process(process);
        }
    }
}

impl<M: Machine> Kernel<M> {
    /// The last thread of `process` has ended; it runs this.
    fn end_process(self: &Arc<Self>, process: &Arc<Process<M>>) {
        let status = process.ending().unwrap_or(WaitStatus::exited(0));
        if let Some(space) = process.space() {
            let peak = space.stats().rss_peak;
            let mut family = process.family.lock();
            family.usage.max_rss = family.usage.max_rss.max(peak);
        }
        self.release_space(process);
        let files = process.files.lock().take();
        drop(files);
        let places = process.places.lock().take();
        drop(places);
        *process.timers.lock() = Timers::default();
        let terminal = process.family.lock().terminal.take();
        if process.session.load(Ordering::SeqCst) == process.pid {
            self.end_session(process.pid, terminal);
        }
        self.adopt_children(process.pid);
        if process.pid == FIRST {
            *self.first_status.lock() = Some(status);
            self.kill_all();
        }
        self.become_zombie(process, status);
    }

    /// Lets go of the address space, and of a parent that waits to have it back.
    pub(crate) fn release_space(&self, process: &Process<M>) {
        self.sched.load_space(None);
        let space = process.replace_space(None);
        drop(space);
        if process.borrows.swap(false, Ordering::SeqCst) {
            self.sched.wake(Channel::Vfork(process.pid), usize::MAX);
        }
    }

    /// The end is public: the parent may take the status from here on, or nobody wants it.
    fn become_zombie(&self, process: &Arc<Process<M>>, status: WaitStatus) {
        let parent_id = process.parent.load(Ordering::SeqCst);
        let parent = self.tables.lock().process(parent_id);
        let signal = Signal::new(u64::from(process.exit_signal.load(Ordering::SeqCst)));
        let unwanted = parent.as_ref().is_none_or(|parent| {
            let action = parent.signals.lock().action(Signal::CHLD);
            signal == Some(Signal::CHLD)
                && (action.handler == SIG_IGN || action.flags & SA_NOCLDWAIT != 0)
        });
        let (code, number) = child_end(status);
        let info = signal.map(|signal| child_info(process, signal, code, number));
        // Its file may be written to again.
        let executed = process.program.lock().exe.take();
        drop(executed);
        {
            let mut tables = self.tables.lock();
            process.family.lock().ended = Some(status);
            if unwanted {
                tables.remove_process(process.pid);
            }
        }
        if let (Some(parent), Some(info)) = (parent, info) {
            let _ = self.send_to_process(&parent, info);
        }
        self.sched.wake(Channel::Child(parent_id), usize::MAX);
    }

    /// The first process inherits the children of `pid`; where it is gone, zombies vanish.
    fn adopt_children(&self, pid: u32) {
        let mut next = 0;
        while let Some(child) = self.next_process(next) {
            next = child.pid + 1;
            if child.parent.load(Ordering::SeqCst) != pid {
                continue;
            }
            let heir = if pid == FIRST { 0 } else { FIRST };
            child.parent.store(heir, Ordering::SeqCst);
            child.exit_signal.store(Signal::CHLD.number(), Ordering::SeqCst);
            let zombie = child.family.lock().ended.is_some();
            if zombie && heir == 0 {
                self.tables.lock().remove_process(child.pid);
            } else if zombie {
                let heir = self.tables.lock().process(heir);
                if let Some(heir) = heir {
                    let _ = self.send_to_process(&heir, SigInfo::kernel(Signal::CHLD));
                }
                self.sched.wake(Channel::Child(FIRST), usize::MAX);
            }
        }
    }

    /// Ends every process.
    pub(crate) fn kill_all(&self) {
        let mut next = 0;
        while let Some(process) = self.next_process(next) {
            next = process.pid + 1;
            let _ = self.send_to_process(&process, SigInfo::kernel(Signal::KILL));
        }
    }

    /// The leader of a session has ended: its terminal hangs up.
    fn end_session(&self, session: u32, terminal: Option<Arc<pagoda_kernel_fs::tty::Terminal>>) {
        let Some(terminal) = terminal else { return };
        if terminal.session() != session as i32 {
            return;
        }
        let front = terminal.foreground();
        terminal.set_session(0, 0);
        let mut next = 0;
        while let Some(process) = self.next_process(next) {
            next = process.pid + 1;
            if process.session.load(Ordering::SeqCst) == session {
                let old = process.family.lock().terminal.take();
                drop(old);
            }
        }
        if front > 0 {
            self.send_to_group(front as u32, SigInfo::kernel(Signal::HUP));
            self.send_to_group(front as u32, SigInfo::kernel(Signal::CONT));
        }
    }

    /// Does nobody look after the group: has no member a parent in another group of its session?
    pub(crate) fn is_orphaned(&self, group: u32) -> bool {
        let tables = self.tables.lock();
        !tables.processes().iter().any(|process| {
            process.group.load(Ordering::Relaxed) == group
                && tables.process(process.parent.load(Ordering::Relaxed)).is_some_and(|parent| {
                    parent.group.load(Ordering::Relaxed) != group
                        && parent.session.load(Ordering::Relaxed)
                            == process.session.load(Ordering::Relaxed)
                })
        })
    }

    /// Gives back a thread that was built and will not run.
    pub(crate) fn discard_thread(&self, thread: &Arc<Thread<M>>) {
        self.sched.withdraw(thread);
    }
}
