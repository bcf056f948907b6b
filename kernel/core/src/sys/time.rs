//! Clocks, sleeping, and time spent.
//!
//! Left out: setting the clock, sleeping by CPU time.

use core::sync::atomic::Ordering;

use pagoda_linux::Errno;

use crate::Result;
use crate::machine::Machine;
use crate::run::Cx;
use crate::sched::slots::{Channel, Patience, Wait, Wake};
use crate::signal::SleepRestart;
use crate::task::Usage;

const SECOND: u64 = 1_000_000_000;
const REALTIME: u64 = 0;
const MONOTONIC: u64 = 1;
const ABSTIME: u64 = 1;

/// Bytes of a `struct rusage`.
pub(super) const RUSAGE: usize = 144;

/// `struct rusage`.
pub(super) fn rusage(usage: &Usage) -> [u8; RUSAGE] {
    let mut bytes = [0; RUSAGE];
    let micros = |ns: u64| [ns / SECOND, ns % SECOND / 1000];
    let [user, user_part] = micros(usage.user);
    let [system, system_part] = micros(usage.system);
    let words = [user, user_part, system, system_part, usage.max_rss * 4, 0, 0, 0, usage.faults];
    for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

impl<M: Machine> Cx<'_, M> {
    /// Counts the time that this thread has used up to now.
    pub(crate) fn count_time(&self) {
        self.thread.times.leave(self.kernel.machine.monotonic_ns());
    }

    fn clock(&self, clock: u64) -> Result<u64> {
        let machine = self.kernel.machine;
        match clock as i32 {
            // Real, real coarse, atomic time (no leap seconds known).
            0 | 5 | 8 | 11 => Ok(machine.realtime_ns()),
            // Monotonic, raw, coarse, since boot.
            1 | 4 | 6 | 7 | 9 => Ok(machine.monotonic_ns()),
            2 => {
                self.count_time();
                let usage = self.process.cpu_time();
                Ok(usage.user + usage.system)
            }
            3 => {
                self.count_time();
                let (user, system) = self.thread.times.get();
                Ok(user + system)
            }
            // A process's or thread's clock, by number: complemented, shifted by three.
            encoded if encoded < 0 => self.cpu_clock(encoded),
            _ => Err(Errno::EINVAL),
        }
    }

    fn cpu_clock(&self, encoded: i32) -> Result<u64> {
        let id = !(encoded >> 3) as u32;
        let thread_clock = encoded & 4 != 0;
        if encoded & 3 == 3 {
            return Err(Errno::EINVAL);
        }
        self.count_time();
        if thread_clock {
            let thread = self.some_thread(u64::from(id)).map_err(|_| Errno::EINVAL)?;
            let (user, system) = thread.times.get();
            return Ok(user + system);
        }
        let process = self.some_process(u64::from(id)).map_err(|_| Errno::EINVAL)?;
        let usage = process.cpu_time();
        Ok(usage.user + usage.system)
    }

    fn give_time(&self, at: u64, ns: u64) -> Result<u64> {
        self.write_words(at, &[ns / SECOND, ns % SECOND]).map(|()| 0)
    }

    /// Seconds and nanoseconds from memory, as nanoseconds.
    pub(super) fn read_time(&self, at: u64) -> Result<u64> {
        let [seconds, nanoseconds] = self.read_words(at)?;
        if (seconds as i64) < 0 || nanoseconds >= SECOND {
            return Err(Errno::EINVAL);
        }
        Ok(seconds.saturating_mul(SECOND).saturating_add(nanoseconds))
    }

    /// The monotonic deadline that lies the time at `at` ahead.
    pub(super) fn relative_deadline(&self, at: u64) -> Result<u64> {
        let span = self.read_time(at)?;
        Ok(self.kernel.machine.monotonic_ns().saturating_add(span))
    }

    /// The monotonic deadline for a moment on `clock`.
    pub(super) fn absolute_deadline(&self, clock: u64, moment: u64) -> Result<u64> {
        let now = self.clock(clock)?;
        Ok(self.kernel.machine.monotonic_ns().saturating_add(moment.saturating_sub(now)))
    }

    pub(crate) fn sys_clock_gettime(&mut self, a: [u64; 6]) -> Result<u64> {
        let now = self.clock(a[0])?;
        self.give_time(a[1], now)
    }

    pub(crate) fn sys_clock_getres(&mut self, a: [u64; 6]) -> Result<u64> {
        self.clock(a[0])?;
        let coarse = matches!(a[0], 5 | 6);
        if a[1] == 0 { Ok(0) } else { self.give_time(a[1], if coarse { 4_000_000 } else { 1 }) }
    }

    pub(crate) fn sys_clock_nanosleep(&mut self, a: [u64; 6]) -> Result<u64> {
        let [clock, flags, request, remaining_at, ..] = a;
        if !matches!(clock, REALTIME | MONOTONIC | 2 | 7 | 8 | 9 | 11) || flags & !ABSTIME != 0 {
            return Err(Errno::EINVAL);
        }
        let span = self.read_time(request)?;
        if flags & ABSTIME != 0 {
            let deadline = self.absolute_deadline(clock, span)?;
            return match self.sleep(deadline) {
                Wake::TimedOut => Ok(0),
                _ => Err(Errno::ERESTARTNOHAND),
            };
        }
        let deadline = self.kernel.machine.monotonic_ns().saturating_add(span);
        self.relative_sleep(SleepRestart { deadline, remaining_at })
    }

    fn sleep(&self, deadline: u64) -> Wake {
        let wait =
            Wait { channel: Channel::Time, mask: !0, deadline, patience: Patience::Interruptible };
        let ended = self.kernel.sched.wait_until(self.thread, wait, || None::<()>);
        ended.err().unwrap_or(Wake::TimedOut)
    }

    fn relative_sleep(&self, sleep: SleepRestart) -> Result<u64> {
        if self.sleep(sleep.deadline) == Wake::TimedOut {
            return Ok(0);
        }
        if sleep.remaining_at != 0 {
            let now = self.kernel.machine.monotonic_ns();
            self.give_time(sleep.remaining_at, sleep.deadline.saturating_sub(now))?;
        }
        self.thread.signals.lock().restart = Some(sleep);
        Err(Errno::ERESTART_RESTARTBLOCK)
    }

    pub(crate) fn sys_restart_syscall(&mut self) -> Result<u64> {
        let sleep = self.thread.signals.lock().restart.take();
        self.relative_sleep(sleep.ok_or(Errno::EINTR)?)
    }

    pub(crate) fn sys_gettimeofday(&mut self, a: [u64; 6]) -> Result<u64> {
        let now = self.kernel.machine.realtime_ns();
        if a[0] != 0 {
            self.write_words(a[0], &[now / SECOND, now % SECOND / 1000])?;
        }
        if a[1] != 0 {
            self.write_u64(a[1], 0)?;
        }
        Ok(0)
    }

    pub(crate) fn sys_time(&mut self, a: [u64; 6]) -> Result<u64> {
        let now = self.kernel.machine.realtime_ns() / SECOND;
        if a[0] != 0 {
            self.write_u64(a[0], now)?;
        }
        Ok(now)
    }

    pub(crate) fn sys_times(&mut self, a: [u64; 6]) -> Result<u64> {
        self.count_time();
        let own = self.process.cpu_time();
        let children = self.process.family.lock().children_usage;
        let ticks = |ns: u64| ns / 10_000_000;
        if a[0] != 0 {
            let words = [own.user, own.system, children.user, children.system].map(ticks);
            self.write_words(a[0], &words)?;
        }
        Ok(ticks(self.kernel.machine.monotonic_ns()))
    }

    pub(crate) fn sys_getrusage(&mut self, a: [u64; 6]) -> Result<u64> {
        self.count_time();
        let usage = match a[0] as i32 {
            0 => self.process.usage(),
            -1 => self.process.family.lock().children_usage,
            1 => {
                let (user, system) = self.thread.times.get();
                let faults = self.thread.faults.load(Ordering::Relaxed);
                Usage { user, system, faults, max_rss: self.space.stats().rss_peak }
            }
            _ => return Err(Errno::EINVAL),
        };
        self.write_bytes(a[1], &rusage(&usage)).map(|()| 0)
    }
}
