//! What goes off by time: the interval timers of a process (`setitimer`, `alarm`) and the timers
//! that it makes (`timer_create`).
//!
//! An [`Alarm`] is a moment on some clock and an interval. Those on the wall's clock are looked at
//! when one of them is due (`Kernel::next_alarm`); those that count CPU time at every tick that
//! meets a thread of the process, so they go off at the first tick behind their moment, as Linux's
//! do without a high-resolution timer.
//!
//! *one-pending*: a timer has at most one signal pending. What goes off meanwhile is counted, and
//! told as the overrun when the signal is delivered.
//!
//! The lock of a process's timers is taken last; nothing is sent while it is held.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use pagoda_vm::fallible::{NoMemory, try_push};

use super::{Process, Thread, Usage, WaitStatus};
use crate::kernel::Kernel;
use crate::machine::Machine;
use crate::signal::info::{Detail, SI_TIMER, SigInfo};
use crate::signal::set::Signal;

/// The most timers that a process makes.
const LIMIT: usize = 1024;
/// After some went off, the next wait at least this long (nanoseconds): a timer of a nanosecond must
/// not keep the machine from everything else. What they miss is their overrun.
const REST: u64 = 250_000;
/// The largest overrun that is told.
const OVERRUN_MAX: u64 = i32::MAX as u64;
const RLIMIT_CPU: usize = 0;
const SECOND: u64 = 1_000_000_000;

/// What a timer counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TimerClock {
    /// Monotonic nanoseconds.
    Wall,
    /// As `Wall`, but the program says absolute moments by the real-time clock. That is never set
    /// here, so the two differ by a constant.
    Real,
    /// What the process's programs have used.
    User,
    /// What the process has used.
    Process,
    /// What this thread has used.
    Thread(u32),
}

impl TimerClock {
    fn is_wall(self) -> bool {
        matches!(self, Self::Wall | Self::Real)
    }
}

/// Who is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Notify {
    Nobody,
    Process(Signal, u64),
    Thread(u32, Signal, u64),
}

/// A moment and an interval; nanoseconds of some clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Alarm {
    /// 0 for off.
    pub(crate) next: u64,
    /// 0 for once.
    pub(crate) interval: u64,
}

impl Alarm {
    /// How often it has gone off by `now`; it waits for the next time afterwards.
    fn expire(&mut self, now: u64) -> u64 {
        if self.next == 0 || self.next > now {
            return 0;
        }
        let Some(more) = (now - self.next).checked_div(self.interval) else {
            self.next = 0;
            return 1;
        };
        self.next = self.next.saturating_add((more + 1).saturating_mul(self.interval));
        more + 1
    }

    /// Time left at `now`: at least a nanosecond while it is set.
    pub(crate) fn left(&self, now: u64) -> u64 {
        if self.next == 0 { 0 } else { self.next.saturating_sub(now).max(1) }
    }
}

/// One that the program has made.
#[derive(Clone, Copy, Debug)]
struct Timer {
    id: u32,
    clock: TimerClock,
    notify: Notify,
    alarm: Alarm,
    /// How often it went off while its signal was pending.
    missed: u64,
    /// The overrun of the signal delivered last.
    told: u64,
}

/// All of a process.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    /// By `ITIMER_*` number: real, virtual, profiling.
    intervals: [Alarm; 3],
    /// In the order of their numbers.
    made: Vec<Timer>,
    next_id: u32,
}

/// The clocks and signals of the interval timers.
const INTERVALS: [(TimerClock, Signal); 3] = [
    (TimerClock::Wall, Signal::ALRM),
    (TimerClock::User, Signal::VTALRM),
    (TimerClock::Process, Signal::PROF),
];

/// What has gone off.
enum Due {
    Interval(Signal),
    Made { id: u32, notify: Notify, times: u64 },
}

/// Why a timer cannot be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NoTimer;

impl From<NoMemory> for NoTimer {
    fn from(_: NoMemory) -> Self {
        Self
    }
}

impl Timers {
    /// The clock of an interval timer.
    pub(crate) fn interval_clock(which: usize) -> Option<TimerClock> {
        INTERVALS.get(which).map(|(clock, _)| *clock)
    }

    pub(crate) fn interval(&self, which: usize) -> Alarm {
        self.intervals.get(which).copied().unwrap_or_default()
    }

    /// Sets an interval timer; returns what it was.
    pub(crate) fn set_interval(&mut self, which: usize, new: Alarm) -> Alarm {
        let slot = self.intervals.get_mut(which);
        slot.map_or_else(Alarm::default, |slot| core::mem::replace(slot, new))
    }

    /// A new timer, which is off. `notify` is told the number that the timer gets.
    pub(crate) fn make(
        &mut self,
        clock: TimerClock,
        notify: impl FnOnce(u32) -> Notify,
    ) -> Result<u32, NoTimer> {
        if self.made.len() >= LIMIT {
            return Err(NoTimer);
        }
        let id = self.next_id;
        let next_id = id.checked_add(1).filter(|&next| next <= i32::MAX as u32).ok_or(NoTimer)?;
        let timer =
            Timer { id, clock, notify: notify(id), alarm: Alarm::default(), missed: 0, told: 0 };
        try_push(&mut self.made, timer)?;
        self.next_id = next_id;
        Ok(id)
    }

    fn find(&mut self, id: u32) -> Option<&mut Timer> {
        let at = self.made.binary_search_by_key(&id, |timer| timer.id).ok()?;
        self.made.get_mut(at)
    }

    /// False: there is none of this number.
    pub(crate) fn delete(&mut self, id: u32) -> bool {
        let found = self.made.binary_search_by_key(&id, |timer| timer.id);
        found.map(|at| self.made.remove(at)).is_ok()
    }

    /// A new program has none of the timers that the old one made. The interval timers go on.
    pub(crate) fn delete_made(&mut self) {
        self.made = Vec::new();
    }

    pub(crate) fn clock_of(&mut self, id: u32) -> Option<TimerClock> {
        self.find(id).map(|timer| timer.clock)
    }

    /// What a timer is set to, brought up to `now` on its clock where nobody is told.
    pub(crate) fn alarm(&mut self, id: u32, now: u64) -> Option<Alarm> {
        let timer = self.find(id)?;
        if timer.notify == Notify::Nobody {
            timer.alarm.expire(now);
        }
        Some(timer.alarm)
    }

    /// Sets a timer; what it went off before is forgotten.
    pub(crate) fn set(&mut self, id: u32, alarm: Alarm) {
        if let Some(timer) = self.find(id) {
            (timer.alarm, timer.missed, timer.told) = (alarm, 0, 0);
        }
    }

    /// The overrun of the last signal.
    pub(crate) fn overrun(&mut self, id: u32) -> Option<u64> {
        self.find(id).map(|timer| timer.told)
    }

    /// A timer's signal is being delivered: its overrun.
    fn delivered(&mut self, id: u32) -> u64 {
        self.find(id).map_or(0, |timer| {
            timer.told = core::mem::take(&mut timer.missed).min(OVERRUN_MAX);
            timer.told
        })
    }

    /// Counts what has gone off: all of it where the last signal is `pending` still.
    fn count(&mut self, id: u32, times: u64, pending: bool) {
        if let Some(timer) = self.find(id) {
            let old = if pending { timer.missed } else { 0 };
            timer.missed = old.saturating_add(times - u64::from(!pending));
        }
    }

    /// The next moment of the wall's clock at which one goes off.
    pub(crate) fn next_wall(&self) -> Option<u64> {
        let intervals = INTERVALS.iter().zip(&self.intervals).map(|((clock, _), a)| (*clock, a));
        let made = self.made.iter().filter(|timer| timer.notify != Notify::Nobody);
        let all = intervals.chain(made.map(|timer| (timer.clock, &timer.alarm)));
        let set = all.filter(|(clock, alarm)| clock.is_wall() && alarm.next != 0);
        set.map(|(_, alarm)| alarm.next).min()
    }

    /// Does one count CPU time?
    pub(crate) fn counts_cpu_time(&self) -> bool {
        let interval = self.intervals.iter().skip(1).any(|alarm| alarm.next != 0);
        interval || self.made.iter().any(|t| !t.clock.is_wall() && t.alarm.next != 0)
    }

    /// One that has gone off, if there is one whose clock `now` knows.
    fn take_due(&mut self, now: impl Fn(TimerClock) -> Option<u64>) -> Option<Due> {
        for (alarm, (clock, signal)) in self.intervals.iter_mut().zip(INTERVALS) {
            if now(clock).is_some_and(|now| alarm.expire(now) != 0) {
                return Some(Due::Interval(signal));
            }
        }
        for timer in &mut self.made {
            let Some(now) = now(timer.clock) else { continue };
            let times = timer.alarm.expire(now);
            if times != 0 && timer.notify != Notify::Nobody {
                return Some(Due::Made { id: timer.id, notify: timer.notify, times });
            }
        }
        None
    }
}

impl<M: Machine> Process<M> {
    /// What one of its clocks says; none for a thread that is gone.
    pub(crate) fn timer_clock(&self, machine: &M, clock: TimerClock) -> Option<u64> {
        match clock {
            TimerClock::Wall | TimerClock::Real => Some(machine.monotonic_ns()),
            TimerClock::User => Some(self.cpu_time().user),
            TimerClock::Process => {
                let Usage { user, system, .. } = self.cpu_time();
                Some(user + system)
            }
            TimerClock::Thread(tid) => {
                let family = self.family.lock();
                let thread = family.threads.iter().find(|thread| thread.tid == tid)?;
                let (user, system) = thread.times.get();
                Some(user + system)
            }
        }
    }

    /// Remembers whether ticks have to be looked at: after every change of a timer or of the limit.
    pub(crate) fn note_cpu_timers(&self) {
        let limited = self.limit(RLIMIT_CPU) != u64::MAX;
        let counts = limited || self.timers.lock().counts_cpu_time();
        self.counts_cpu_time.store(counts, Ordering::SeqCst);
    }
}

impl<M: Machine> Kernel<M> {
    /// Sends what is due by the wall's clock, and finds out when the next is.
    pub(crate) fn ring_alarms(&self, now: u64) {
        self.next_alarm.store(u64::MAX, Ordering::SeqCst);
        let mut from = 0;
        while let Some(process) = self.next_process(from) {
            from = process.pid + 1;
            let wall = |clock: TimerClock| clock.is_wall().then_some(now);
            loop {
                // A statement of its own, so that nothing is sent under the lock.
                let due = process.timers.lock().take_due(wall);
                let Some(due) = due else { break };
                self.ring(&process, due, None);
            }
            let next = process.timers.lock().next_wall().unwrap_or(u64::MAX);
            self.next_alarm.fetch_min(next.max(now.saturating_add(REST)), Ordering::SeqCst);
        }
    }

    /// A tick has met `thread`: sends what is due by CPU time, if anything is.
    pub(crate) fn ring_cpu_timers(&self, thread: &Arc<Thread<M>>) {
        let process = &thread.process;
        if !process.counts_cpu_time.load(Ordering::SeqCst) {
            return;
        }
        // The clocks are read before the timers' lock is taken, which is the last.
        let used = process.cpu_time();
        let (user, system) = thread.times.get();
        let clocks = |clock| match clock {
            TimerClock::User => Some(used.user),
            TimerClock::Process => Some(used.user + used.system),
            TimerClock::Thread(tid) if tid == thread.tid => Some(user + system),
            _ => None,
        };
        loop {
            let due = process.timers.lock().take_due(clocks);
            let Some(due) = due else { break };
            self.ring(process, due, Some(thread));
        }
        self.enforce_cpu_limit(process, (used.user + used.system) / SECOND);
        process.note_cpu_timers();
    }

    /// `RLIMIT_CPU`: beyond the soft limit a signal each second, beyond the hard one the end.
    fn enforce_cpu_limit(&self, process: &Arc<Process<M>>, seconds: u64) {
        let (soft, hard) = {
            let limits = process.limits.lock();
            limits.get(RLIMIT_CPU).copied().unwrap_or((u64::MAX, u64::MAX))
        };
        if seconds >= hard {
            let family = process.family.lock();
            let status = WaitStatus::killed(Signal::KILL.number(), false);
            self.end_threads(process, &family.threads, status);
        } else if seconds >= soft && process.cpu_warned.swap(seconds, Ordering::SeqCst) != seconds {
            let _ = self.send_to_process(process, SigInfo::kernel(Signal::XCPU));
        }
    }

    /// Sends a timer's signal. `first` gets it before other threads, where the whole process may.
    fn ring(&self, process: &Arc<Process<M>>, due: Due, first: Option<&Arc<Thread<M>>>) {
        let (id, notify, times) = match due {
            Due::Interval(signal) => {
                let _ = self.send_preferably(process, SigInfo::kernel(signal), first);
                return;
            }
            Due::Made { id, notify, times } => (id, notify, times),
        };
        let info = |signal, value| SigInfo {
            signal,
            code: SI_TIMER,
            detail: Detail::Timer { id, overrun: 0, value },
        };
        match notify {
            Notify::Nobody => {}
            Notify::Process(signal, value) => {
                let pending = process.signals.lock().pending.has_timer(id);
                process.timers.lock().count(id, times, pending);
                if !pending {
                    let _ = self.send_preferably(process, info(signal, value), first);
                }
            }
            Notify::Thread(tid, signal, value) => {
                let thread = self.tables.lock().thread(tid);
                let Some(thread) = thread.filter(|thread| Arc::ptr_eq(&thread.process, process))
                else {
                    return;
                };
                let pending = thread.signals.lock().pending.has_timer(id);
                process.timers.lock().count(id, times, pending);
                if !pending {
                    let _ = self.send_to_thread(&thread, info(signal, value));
                }
            }
        }
    }

    /// What a signal that is about to be delivered says: a timer's tells its overrun.
    pub(crate) fn complete_info(&self, process: &Process<M>, info: SigInfo) -> SigInfo {
        let Detail::Timer { id, value, .. } = info.detail else { return info };
        let overrun = process.timers.lock().delivered(id) as u32;
        SigInfo { detail: Detail::Timer { id, overrun, value }, ..info }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_counts_what_it_missed_and_stays_in_step() {
        let mut alarm = Alarm { next: 100, interval: 30 };
        assert_eq!(alarm.expire(99), 0);
        assert_eq!(alarm.expire(100), 1);
        assert_eq!(alarm.next, 130);
        assert_eq!(alarm.expire(195), 3);
        assert_eq!((alarm.next, alarm.left(195)), (220, 25));
        let mut once = Alarm { next: 5, interval: 0 };
        assert_eq!((once.expire(9), once.expire(10), once.left(10)), (1, 0, 0));
        let mut last = Alarm { next: u64::MAX - 1, interval: u64::MAX };
        assert_eq!(last.expire(u64::MAX), 1);
    }

    #[test]
    fn what_goes_off_while_its_signal_waits_is_the_overrun() {
        let mut timers = Timers::default();
        let signal = Signal::USR1;
        let id = timers.make(TimerClock::Wall, |_| Notify::Process(signal, 7)).unwrap();
        timers.set(id, Alarm { next: 10, interval: 10 });
        assert_eq!(timers.next_wall(), Some(10));
        let due = timers.take_due(|_| Some(35));
        let Some(Due::Made { times, .. }) = due else { panic!("it was due") };
        timers.count(id, times, false);
        timers.count(id, 4, true);
        assert_eq!((times, timers.delivered(id), timers.overrun(id)), (3, 6, Some(6)));
        timers.count(id, 1, false);
        assert_eq!((timers.delivered(id), timers.overrun(id)), (0, Some(0)));
        assert!(timers.delete(id) && !timers.delete(id));
        assert_eq!((timers.overrun(id), timers.next_wall()), (None, None));
    }

    #[test]
    fn timers_are_bounded() {
        let mut timers = Timers::default();
        for id in 0..LIMIT as u32 {
            assert_eq!(timers.make(TimerClock::Wall, |_| Notify::Nobody), Ok(id));
        }
        assert_eq!(timers.make(TimerClock::Wall, |_| Notify::Nobody), Err(NoTimer));
    }
}
