//! Finding processes and threads by number.

use alloc::sync::Arc;
use alloc::vec::Vec;

use pagoda_linux::Errno;

use super::{Process, Thread};
use crate::machine::Machine;

/// Numbers are below this; Linux's default for 64-bit machines.
const PID_LIMIT: u32 = 1 << 22;
/// Numbers below this are not given out again after the first round.
const PID_RESTART: u32 = 300;

/// All processes and threads, sorted by number. Numbers are shared between the two.
pub(crate) struct Tables<M: Machine> {
    processes: Vec<Arc<Process<M>>>,
    threads: Vec<Arc<Thread<M>>>,
    next: u32,
    /// Processes and threads made since the start, and the last number given out.
    pub(crate) made: u64,
    pub(crate) last: u32,
}

impl<M: Machine> Tables<M> {
    pub(crate) const fn new() -> Self {
        Self { processes: Vec::new(), threads: Vec::new(), next: 1, made: 0, last: 0 }
    }

    /// Room for one more of each, so that the next `add` of each cannot fail.
    pub(crate) fn reserve(&mut self) -> Result<(), Errno> {
        self.processes.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        self.threads.try_reserve(1).map_err(|_| Errno::ENOMEM)
    }

    /// A number that no process, thread, group or session has.
    pub(crate) fn new_id(&mut self) -> Result<u32, Errno> {
        for _ in 0..PID_LIMIT {
            let id = self.next;
            self.next = if id + 1 < PID_LIMIT { id + 1 } else { PID_RESTART };
            let free = self.position(id).is_err()
                && self.thread_position(id).is_err()
                && (self.made < u64::from(PID_LIMIT) - 1 || !self.names_group(id));
            if free {
                self.last = id;
                self.made += 1;
                return Ok(id);
            }
        }
        Err(Errno::EAGAIN)
    }

    fn names_group(&self, id: u32) -> bool {
        use core::sync::atomic::Ordering::Relaxed;
        self.processes.iter().any(|p| p.group.load(Relaxed) == id || p.session.load(Relaxed) == id)
    }

    fn position(&self, pid: u32) -> Result<usize, usize> {
        self.processes.binary_search_by_key(&pid, |process| process.pid)
    }

    fn thread_position(&self, tid: u32) -> Result<usize, usize> {
        self.threads.binary_search_by_key(&tid, |thread| thread.tid)
    }

    pub(crate) fn process(&self, pid: u32) -> Option<Arc<Process<M>>> {
        self.position(pid).ok().and_then(|at| self.processes.get(at)).cloned()
    }

    pub(crate) fn thread(&self, tid: u32) -> Option<Arc<Thread<M>>> {
        self.thread_position(tid).ok().and_then(|at| self.threads.get(at)).cloned()
    }

    /// The process with the lowest number that is at least `from`.
    pub(crate) fn next_process(&self, from: u32) -> Option<Arc<Process<M>>> {
        let at = self.position(from).unwrap_or_else(|at| at);
        self.processes.get(at).cloned()
    }

    pub(crate) fn processes(&self) -> &[Arc<Process<M>>] {
        &self.processes
    }

    pub(crate) fn thread_count(&self) -> usize {
        self.threads.len()
    }

    /// After a [`reserve`](Self::reserve) under the same lock, these do not allocate.
    pub(crate) fn add_process(&mut self, process: Arc<Process<M>>) {
        if let Err(at) = self.position(process.pid) {
            self.processes.insert(at, process);
        }
    }

    pub(crate) fn add_thread(&mut self, thread: Arc<Thread<M>>) {
        if let Err(at) = self.thread_position(thread.tid) {
            self.threads.insert(at, thread);
        }
    }

    pub(crate) fn remove_process(&mut self, pid: u32) -> Option<Arc<Process<M>>> {
        self.position(pid).ok().map(|at| self.processes.remove(at))
    }

    pub(crate) fn remove_thread(&mut self, tid: u32) -> Option<Arc<Thread<M>>> {
        self.thread_position(tid).ok().map(|at| self.threads.remove(at))
    }
}
