//! A process: what threads share.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};

use pagoda_kernel_fs::tty::Terminal;
use pagoda_kernel_fs::{FdTable, Inode};
use pagoda_linux::Errno;
use pagoda_sync::SpinMutex;
use pagoda_vm::fallible::try_extend;

use super::Thread;
use super::Timers;
use super::status::WaitStatus;
use crate::machine::Machine;
use crate::signal::ProcessSignals;
use crate::{Result, Space};

/// Where paths start, and what new files do not get. Shared by `CLONE_FS`.
#[derive(Clone)]
pub(crate) struct Places {
    pub(crate) root: Arc<Inode>,
    pub(crate) cwd: Arc<Inode>,
    pub(crate) umask: u32,
}

/// Open files. Shared by `CLONE_FILES`.
pub(crate) struct Files(pub(crate) SpinMutex<FdTable>);

impl Drop for Files {
    fn drop(&mut self) {
        // One by one, so that no lock is held while a file closes.
        loop {
            let next = self.0.lock().take_next(0);
            if next.is_none() {
                break;
            }
        }
    }
}

/// In whose name a process acts.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    pub(crate) uid: [u32; 3],
    pub(crate) gid: [u32; 3],
    pub(crate) groups: Vec<u32>,
}

impl Ids {
    pub(crate) fn try_clone(&self) -> Result<Self> {
        let mut groups = Vec::new();
        try_extend(&mut groups, &self.groups).map_err(|_| Errno::ENOMEM)?;
        Ok(Self { uid: self.uid, gid: self.gid, groups })
    }
}

/// Limits by `RLIMIT_*` number: (soft, hard).
pub(crate) type Limits = [(u64, u64); 16];

/// The file that a process runs, which nobody writes to meanwhile.
pub(crate) struct Executed(Arc<Inode>);

impl Executed {
    pub(crate) fn new(node: Arc<Inode>) -> Self {
        node.note_execution(true);
        Self(node)
    }

    pub(crate) fn node(&self) -> Arc<Inode> {
        Arc::clone(&self.0)
    }
}

impl Clone for Executed {
    fn clone(&self) -> Self {
        Self::new(self.node())
    }
}

impl Drop for Executed {
    fn drop(&mut self) {
        self.0.note_execution(false);
    }
}

/// What the program is, for `/proc`.
#[derive(Default)]
pub(crate) struct Program {
    pub(crate) exe: Option<Executed>,
    pub(crate) path: Vec<u8>,
    pub(crate) name: [u8; 16],
    /// Addresses of the argument strings and of the environment strings: start, end.
    pub(crate) args: (u64, u64),
    pub(crate) env: (u64, u64),
    pub(crate) stack_start: u64,
    pub(crate) auxv: Vec<u8>,
}

impl Program {
    pub(crate) fn try_clone(&self) -> Result<Self> {
        let (mut path, mut auxv) = (Vec::new(), Vec::new());
        try_extend(&mut path, &self.path).map_err(|_| Errno::ENOMEM)?;
        try_extend(&mut auxv, &self.auxv).map_err(|_| Errno::ENOMEM)?;
        Ok(Self { exe: self.exe.clone(), path, auxv, ..*self })
    }
}

/// CPU time of children that were waited for, and page faults; nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) user: u64,
    pub(crate) system: u64,
    pub(crate) faults: u64,
    pub(crate) max_rss: u64,
}

impl Usage {
    pub(crate) fn add(&mut self, other: &Self) {
        self.user += other.user;
        self.system += other.system;
        self.faults += other.faults;
        self.max_rss = self.max_rss.max(other.max_rss);
    }
}

/// What changes when threads come and go and when parents wait. Taken after the tables' lock.
pub(crate) struct Family<M: Machine> {
    pub(crate) threads: Vec<Arc<Thread<M>>>,
    /// Set when the last thread has ended: a zombie from then on.
    pub(crate) ended: Option<WaitStatus>,
    /// A stop (its signal) or a continue that the parent has not yet heard of.
    pub(crate) stop_report: Option<u32>,
    pub(crate) continue_report: bool,
    /// Time of ended threads.
    pub(crate) usage: Usage,
    pub(crate) children_usage: Usage,
    pub(crate) terminal: Option<Arc<Terminal>>,
}

/// A process. Alive from when it is in the tables until it is waited for.
pub(crate) struct Process<M: Machine> {
    pub(crate) pid: u32,
    pub(crate) parent: AtomicU32,
    pub(crate) group: AtomicU32,
    pub(crate) session: AtomicU32,
    /// What the parent gets when it ends, 0 for nothing.
    pub(crate) exit_signal: AtomicU32,
    pub(crate) has_execed: AtomicBool,
    /// The address space is the parent's, which waits.
    pub(crate) borrows: AtomicBool,
    space: SpinMutex<Option<Arc<Space<M>>>>,
    pub(crate) files: SpinMutex<Option<Arc<Files>>>,
    pub(crate) places: SpinMutex<Option<Arc<SpinMutex<Places>>>>,
    pub(crate) signals: SpinMutex<ProcessSignals>,
    pub(crate) family: SpinMutex<Family<M>>,
    pub(crate) ids: SpinMutex<Ids>,
    pub(crate) limits: SpinMutex<Limits>,
    pub(crate) program: SpinMutex<Program>,
    pub(crate) timers: SpinMutex<Timers>,
    /// A timer counts CPU time, or a limit does: ticks look at them.
    pub(crate) counts_cpu_time: AtomicBool,
    /// The second of CPU time at which the limit was told of last.
    pub(crate) cpu_warned: AtomicU64,
    pub(crate) nice: AtomicI32,
    pub(crate) started_ns: u64,
    /// The status that all threads end with, once that is decided: 0 none, else status + 1.
    ending: AtomicU64,
    /// A thread that replaces the program; all others end.
    pub(crate) sole: AtomicU32,
    stopped: AtomicBool,
}

/// What a process starts from.
pub(crate) struct Parts<M: Machine> {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    pub(crate) group: u32,
    pub(crate) session: u32,
    pub(crate) exit_signal: u32,
    pub(crate) borrows: bool,
    pub(crate) space: Arc<Space<M>>,
    pub(crate) files: Arc<Files>,
    pub(crate) places: Arc<SpinMutex<Places>>,
    pub(crate) signals: ProcessSignals,
    pub(crate) ids: Ids,
    pub(crate) limits: Limits,
    pub(crate) program: Program,
    pub(crate) nice: i32,
    pub(crate) terminal: Option<Arc<Terminal>>,
    pub(crate) now: u64,
}

impl<M: Machine> Process<M> {
    pub(crate) fn new(parts: Parts<M>) -> Self {
        Self {
            pid: parts.pid,
            parent: AtomicU32::new(parts.parent),
            group: AtomicU32::new(parts.group),
            session: AtomicU32::new(parts.session),
            exit_signal: AtomicU32::new(parts.exit_signal),
            has_execed: AtomicBool::new(false),
            borrows: AtomicBool::new(parts.borrows),
            space: SpinMutex::new(Some(parts.space)),
            files: SpinMutex::new(Some(parts.files)),
            places: SpinMutex::new(Some(parts.places)),
            signals: SpinMutex::new(parts.signals),
            family: SpinMutex::new(Family {
                threads: Vec::new(),
                ended: None,
                stop_report: None,
                continue_report: false,
                usage: Usage::default(),
                children_usage: Usage::default(),
                terminal: parts.terminal,
            }),
            ids: SpinMutex::new(parts.ids),
            limits: SpinMutex::new(parts.limits),
            program: SpinMutex::new(parts.program),
            timers: SpinMutex::default(),
            counts_cpu_time: AtomicBool::new(parts.limits[0].0 != u64::MAX),
            cpu_warned: AtomicU64::new(u64::MAX),
            nice: AtomicI32::new(parts.nice),
            started_ns: parts.now,
            ending: AtomicU64::new(0),
            sole: AtomicU32::new(0),
            stopped: AtomicBool::new(false),
        }
    }

    /// The address space; none once the last thread has ended.
    pub(crate) fn space(&self) -> Option<Arc<Space<M>>> {
        self.space.lock().clone()
    }

    /// Puts another address space (or none) in, and hands the old one out.
    pub(crate) fn replace_space(&self, new: Option<Arc<Space<M>>>) -> Option<Arc<Space<M>>> {
        core::mem::replace(&mut *self.space.lock(), new)
    }

    /// Is it decided that the process ends?
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst) != 0
    }

    /// The status that was decided first.
    pub(crate) fn ending(&self) -> Option<WaitStatus> {
        let word = self.ending.load(Ordering::SeqCst);
        word.checked_sub(1).map(|status| WaitStatus(status as u32))
    }

    /// Decides that the process ends, unless that was decided before.
    pub(crate) fn set_ending(&self, status: WaitStatus) {
        let word = u64::from(status.0) + 1;
        let _ = self.ending.compare_exchange(0, word, Ordering::SeqCst, Ordering::SeqCst);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Returns whether that is news.
    pub(crate) fn set_stopped(&self, stopped: bool) -> bool {
        self.stopped.swap(stopped, Ordering::SeqCst) != stopped
    }

    /// The open files; none once the process has ended.
    pub(crate) fn files(&self) -> Option<Arc<Files>> {
        self.files.lock().clone()
    }

    /// A copy of where paths start.
    pub(crate) fn places(&self) -> Option<Places> {
        let places = self.places.lock().clone()?;
        let copy = places.lock().clone();
        Some(copy)
    }

    /// Time and faults of all its threads, ended and running.
    pub(crate) fn cpu_time(&self) -> Usage {
        let family = self.family.lock();
        let mut usage = family.usage;
        for thread in &family.threads {
            let (user, system) = thread.times.get();
            let faults = thread.faults.load(Ordering::Relaxed);
            usage.add(&Usage { user, system, faults, max_rss: 0 });
        }
        usage
    }

    /// As [`cpu_time`](Self::cpu_time), with the memory it had.
    pub(crate) fn usage(&self) -> Usage {
        let mut usage = self.cpu_time();
        if let Some(space) = self.space() {
            usage.max_rss = usage.max_rss.max(space.stats().rss_peak);
        }
        usage
    }

    /// Tells `space` which limits bind it: the process's, and those that bind all but the superuser.
    pub(crate) fn bind(&self, space: &crate::Space<M>) {
        const DATA: usize = 2;
        const STACK: usize = 3;
        const MEMLOCK: usize = 8;
        const AS: usize = 9;
        let root = self.ids.lock().uid[1] == 0;
        let mut limits = space.limits();
        limits.data = self.limit(DATA);
        limits.stack = self.limit(STACK);
        limits.address_space = self.limit(AS);
        limits.locked = if root { u64::MAX } else { self.limit(MEMLOCK) };
        limits.privileged = root;
        space.set_limits(limits);
    }

    /// A soft limit.
    pub(crate) fn limit(&self, resource: usize) -> u64 {
        self.limits.lock().get(resource).map_or(u64::MAX, |limit| limit.0)
    }
}
