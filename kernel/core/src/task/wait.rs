//! Waiting for children.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use pagoda_linux::Errno;

use super::{Process, Usage, WaitStatus};
use crate::machine::Machine;
use crate::run::Cx;
use crate::sched::interruptible;
use crate::sched::slots::Channel;

/// Which children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitFor {
    Any,
    Pid(u32),
    Group(u32),
}

/// Do not wait.
pub(crate) const WNOHANG: u32 = 1;
/// Stopped children too.
pub(crate) const WUNTRACED: u32 = 2;
/// Ended children (`waitid`).
pub(crate) const WEXITED: u32 = 4;
/// Continued children too.
pub(crate) const WCONTINUED: u32 = 8;
/// Leave the child as it is.
pub(crate) const WNOWAIT: u32 = 0x0100_0000;

/// A child's news.
#[derive(Clone, Copy, Debug)]
pub(crate) struct News {
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) status: WaitStatus,
    pub(crate) usage: Usage,
}

impl<M: Machine> Cx<'_, M> {
    /// Waits for news of a child, which will be written to `answers` (address, 0 for nowhere, and
    /// bytes); none where `WNOHANG` is set and there are none.
    pub(crate) fn wait_for_child(
        &self,
        which: WaitFor,
        options: u32,
        answers: [(u64, usize); 2],
    ) -> Result<Option<News>, Errno> {
        let me = self.process.pid;
        // A child's end is told once: first there must be memory for the answer.
        let look = || {
            for (addr, len) in answers {
                if addr != 0 && self.make_room(addr, len as u64) == Err(Errno::ENOMEM) {
                    return Err(Errno::ENOMEM);
                }
            }
            self.look_for_child(which, options)
        };
        if options & WNOHANG != 0 {
            return look();
        }
        let wait = interruptible(Channel::Child(me));
        let found = self.kernel.sched.wait_until(self.thread, wait, || look().transpose());
        match found {
            Ok(news) => news.map(Some),
            Err(_) => Err(Errno::ERESTARTSYS),
        }
    }

    /// `Err`: there is no such child. `Ok(None)`: none has news.
    fn look_for_child(&self, which: WaitFor, options: u32) -> Result<Option<News>, Errno> {
        let me = self.process.pid;
        let mut tables = self.kernel.tables.lock();
        let mut any = false;
        let mut ready = None;
        for child in tables.processes() {
            let mine = child.parent.load(Ordering::SeqCst) == me
                && match which {
                    WaitFor::Any => true,
                    WaitFor::Pid(pid) => child.pid == pid,
                    WaitFor::Group(group) => child.group.load(Ordering::Relaxed) == group,
                };
            if !mine {
                continue;
            }
            any = true;
            if let Some(status) = take_news(child, options) {
                ready = Some((Arc::clone(child), status));
                break;
            }
        }
        let Some((child, status)) = ready else {
            return if any { Ok(None) } else { Err(Errno::ECHILD) };
        };
        let usage = child.usage();
        let news = News { pid: child.pid, uid: child.ids.lock().uid[0], status, usage };
        let ended = child.family.lock().ended.is_some();
        if ended && options & WNOWAIT == 0 {
            tables.remove_process(child.pid);
            drop(tables);
            let grandchildren = child.family.lock().children_usage;
            let mut family = self.process.family.lock();
            family.children_usage.add(&usage);
            family.children_usage.add(&grandchildren);
        }
        Ok(Some(news))
    }
}

fn take_news<M: Machine>(child: &Process<M>, options: u32) -> Option<WaitStatus> {
    let mut family = child.family.lock();
    let keep = options & WNOWAIT != 0;
    if family.ended.is_some() {
        return family.ended.filter(|_| options & WEXITED != 0);
    }
    if let Some(signal) = family.stop_report.filter(|_| options & WUNTRACED != 0) {
        if !keep {
            family.stop_report = None;
        }
        return Some(WaitStatus::stopped(signal));
    }
    if family.continue_report && options & WCONTINUED != 0 {
        family.continue_report = keep;
        return Some(WaitStatus::CONTINUED);
    }
    None
}
