//! The kernel as one value.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use pagoda_kernel_fs::Vfs;
use pagoda_kernel_fs::tty::{Signals, Terminal};
use pagoda_sync::SpinMutex;
use pagoda_vm::Policy;

use crate::host::{CoreHost, RawInput, TerminalFeed};
use crate::machine::Machine;
use crate::sched::Sched;
use crate::signal::info::SigInfo;
use crate::signal::set::Signal;
use crate::sys::shm::Segments;
use crate::task::{Process, Tables, WaitStatus};

/// The most threads at once, whatever memory there is.
pub(crate) const THREADS_MAX: u64 = 32_768;

/// Where standard input comes from.
pub(crate) enum Console {
    /// A terminal on the line.
    Terminal(Arc<Terminal>, SpinMutex<TerminalFeed>),
    /// Bytes as they are.
    Raw(Arc<RawInput>),
}

/// Everything that the portable half has. Shared by all threads; the last count is
/// [`start`](fn@crate::start)'s.
pub(crate) struct Kernel<M: Machine> {
    pub(crate) machine: &'static M,
    pub(crate) sched: Arc<Sched<M>>,
    pub(crate) vfs: Vfs,
    pub(crate) console: Console,
    pub(crate) tables: SpinMutex<Tables<M>>,
    /// The floating-point state that a program and a handler start with.
    pub(crate) clean_fpu: SpinMutex<M::Fpu>,
    pub(crate) command_line: &'static [u8],
    /// How many pages a fault may bring.
    pub(crate) policy: Policy,
    /// Set when the first process has ended.
    pub(crate) first_status: SpinMutex<Option<WaitStatus>>,
    /// A process that a signal has continued and whose parent is to be told.
    pub(crate) report_continue: AtomicU32,
    /// No alarm goes off before this (monotonic nanoseconds).
    pub(crate) next_alarm: AtomicU64,
    /// Threads switched to since the start.
    pub(crate) switches: AtomicU64,
    /// Which system calls were missed and logged.
    missing: [AtomicU64; 8],
    pub(crate) load: SpinMutex<LoadAverage>,
    /// System V shared memory.
    pub(crate) segments: SpinMutex<Segments>,
    /// Some process may have memory that it freed lazily.
    pub(crate) lazy: AtomicBool,
}

impl<M: Machine> Kernel<M> {
    pub(crate) fn new(
        host: &CoreHost<M>,
        vfs: Vfs,
        console: Console,
        clean_fpu: M::Fpu,
        command_line: &'static [u8],
    ) -> Self {
        Self {
            machine: host.machine,
            sched: Arc::clone(&host.sched),
            vfs,
            console,
            tables: SpinMutex::new(Tables::new()),
            clean_fpu: SpinMutex::new(clean_fpu),
            command_line,
            policy: policy(command_line),
            first_status: SpinMutex::new(None),
            report_continue: AtomicU32::new(0),
            next_alarm: AtomicU64::new(u64::MAX),
            switches: AtomicU64::new(0),
            missing: [const { AtomicU64::new(0) }; 8],
            load: SpinMutex::new(LoadAverage::default()),
            segments: SpinMutex::new(Segments::new()),
            lazy: AtomicBool::new(false),
        }
    }

    /// Has the first process ended?
    pub(crate) fn is_going_down(&self) -> bool {
        self.first_status.lock().is_some()
    }

    /// What has to be done now and then, after every interrupt: input, timeouts, alarms.
    pub(crate) fn poll(&self) {
        match &self.console {
            Console::Raw(input) => input.take_in(self.machine),
            Console::Terminal(terminal, feed) => {
                feed.lock().take_in(self.machine, terminal, |signals, group| {
                    self.terminal_signals(signals, group);
                });
            }
        }
        self.let_go_in_time();
        let now = self.machine.monotonic_ns();
        self.sched.expire(now);
        if now >= self.next_alarm.load(Ordering::SeqCst) {
            self.ring_alarms(now);
        }
        let (_, runnable) = self.sched.counts();
        self.load.lock().sample(now, runnable as u64);
    }

    /// Sends what a terminal wants sent.
    pub(crate) fn terminal_signals(&self, signals: Signals, group: i32) {
        let Ok(group) = u32::try_from(group) else { return };
        if group == 0 || signals.is_empty() {
            return;
        }
        for (flag, signal) in [
            (Signals::INT, Signal::INT),
            (Signals::QUIT, Signal::QUIT),
            (Signals::TSTP, Signal::TSTP),
            (Signals::WINCH, Signal::WINCH),
            (Signals::HUP, Signal::HUP),
            (Signals::CONT, Signal::CONT),
        ] {
            if signals.contains(flag) {
                self.send_to_group(group, SigInfo::kernel(signal));
            }
        }
    }

    /// The process with the lowest number that is at least `from`. A function of its own, so that
    /// no loop over it holds the lock.
    pub(crate) fn next_process(&self, from: u32) -> Option<Arc<Process<M>>> {
        self.tables.lock().next_process(from)
    }

    /// When something happens by time alone (monotonic nanoseconds).
    pub(crate) fn next_event(&self) -> Option<u64> {
        let next = self.sched.earliest().min(self.next_alarm.load(Ordering::SeqCst));
        (next != u64::MAX).then_some(next)
    }

    /// Is this the first time that this system call is missed?
    pub(crate) fn first_miss(&self, number: u64) -> bool {
        let Some(word) = self.missing.get((number / 64) as usize) else { return false };
        let bit = 1 << (number % 64);
        word.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }
}

/// The load averages over 1, 5 and 15 minutes, in units of 1/2048, as Linux computes them: every
/// five seconds, exponentially damped.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LoadAverage {
    pub(crate) values: [u64; 3],
    next: u64,
}

impl LoadAverage {
    const ONE: u64 = 2048;
    const STEP_NS: u64 = 5_000_000_000;

    fn sample(&mut self, now: u64, runnable: u64) {
        if now < self.next {
            return;
        }
        self.next = now + Self::STEP_NS;
        // 2048 / e^(5/60), 2048 / e^(5/300), 2048 / e^(5/900)
        for (value, keep) in self.values.iter_mut().zip([1884, 2014, 2037]) {
            *value = (*value * keep + runnable * Self::ONE * (Self::ONE - keep)) / Self::ONE;
        }
    }
}

/// `faultahead=N` on the command line.
fn policy(command_line: &[u8]) -> Policy {
    let ahead = crate::start::option(command_line, b"faultahead");
    let ahead = ahead.and_then(|digits| core::str::from_utf8(digits).ok()?.parse().ok());
    ahead.map_or(Policy::ADAPTIVE, |ahead| Policy { ahead })
}
