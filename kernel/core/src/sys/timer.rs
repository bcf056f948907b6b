//! Timers: `setitimer`, `alarm`, and those of `timer_create`.
//!
//! Left out: timers on the CPU clock of another process, and on the clocks that wake a machine.

use core::sync::atomic::Ordering;

use pagoda_linux::Errno;

use crate::Result;
use crate::machine::Machine;
use crate::run::Cx;
use crate::signal::set::Signal;
use crate::task::{Alarm, Notify, TimerClock, Timers};

const SECOND: u64 = 1_000_000_000;
const ABSTIME: u64 = 1;
const RLIMIT_SIGPENDING: usize = 11;

impl<M: Machine> Cx<'_, M> {
    /// What a timer's clock says.
    fn timer_now(&self, clock: TimerClock) -> u64 {
        self.count_time();
        self.process.timer_clock(self.kernel.machine, clock).unwrap_or(0)
    }

    /// A timer was changed: whoever looks at them is told.
    fn timers_changed(&self) {
        let next = self.process.timers.lock().next_wall();
        self.kernel.next_alarm.fetch_min(next.unwrap_or(u64::MAX), Ordering::SeqCst);
        self.process.note_cpu_timers();
    }

    /// Sets an interval timer; returns the time that was left on it, and its interval.
    fn set_interval(&self, which: usize, value: u64, interval: u64) -> Result<(u64, u64)> {
        let clock = Timers::interval_clock(which).ok_or(Errno::EINVAL)?;
        let now = self.timer_now(clock);
        let next = if value == 0 { 0 } else { now.saturating_add(value) };
        let old = self.process.timers.lock().set_interval(which, Alarm { next, interval });
        self.timers_changed();
        Ok((whole_micros(old.left(now)), old.interval))
    }

    pub(crate) fn sys_alarm(&mut self, a: [u64; 6]) -> Result<u64> {
        let (left, _) = self.set_interval(0, u64::from(a[0] as u32) * SECOND, 0)?;
        Ok(left.div_ceil(SECOND))
    }

    fn give_interval(&self, at: u64, interval: u64, value: u64) -> Result<u64> {
        if at != 0 {
            let part = |ns: u64| [ns / SECOND, ns % SECOND / 1000];
            let ([a, b], [c, d]) = (part(interval), part(value));
            self.write_words(at, &[a, b, c, d])?;
        }
        Ok(0)
    }

    pub(crate) fn sys_setitimer(&mut self, a: [u64; 6]) -> Result<u64> {
        let words: [u64; 4] = if a[1] == 0 { [0; 4] } else { self.read_words(a[1])? };
        let [seconds, micros, value_seconds, value_micros] = words;
        let ns = |seconds: u64, micros: u64| {
            if (seconds as i64) < 0 || micros >= 1_000_000 {
                return Err(Errno::EINVAL);
            }
            Ok(seconds.saturating_mul(SECOND).saturating_add(micros * 1000))
        };
        let (interval, value) = (ns(seconds, micros)?, ns(value_seconds, value_micros)?);
        let (left, old_interval) = self.set_interval(which(a[0])?, value, interval)?;
        self.give_interval(a[2], old_interval, left)
    }

    pub(crate) fn sys_getitimer(&mut self, a: [u64; 6]) -> Result<u64> {
        let which = which(a[0])?;
        if a[1] == 0 {
            return Err(Errno::EFAULT);
        }
        let now = self.timer_now(Timers::interval_clock(which).ok_or(Errno::EINVAL)?);
        let alarm = self.process.timers.lock().interval(which);
        self.give_interval(a[1], alarm.interval, whole_micros(alarm.left(now)))
    }

    /// The clock that a timer may count.
    fn timer_clock(&self, number: u64) -> Result<TimerClock> {
        match number as i32 {
            0 | 11 => Ok(TimerClock::Real),
            1 | 7 => Ok(TimerClock::Wall),
            2 => Ok(TimerClock::Process),
            3 => Ok(TimerClock::Thread(self.thread.tid)),
            4..=6 | 8 | 9 => Err(Errno::EOPNOTSUPP),
            encoded if encoded < 0 && encoded & 3 != 3 => {
                let id = !(encoded >> 3) as u32;
                if encoded & 4 == 0 {
                    let own = id == 0 || id == self.process.pid;
                    return if own { Ok(TimerClock::Process) } else { Err(Errno::EINVAL) };
                }
                let thread = self.some_thread(u64::from(id)).map_err(|_| Errno::EINVAL)?;
                let own = thread.process.pid == self.process.pid;
                if own { Ok(TimerClock::Thread(thread.tid)) } else { Err(Errno::EINVAL) }
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// Who is told, from a `struct sigevent`; what has no value of its own is told its number.
    fn read_event(&self, at: u64) -> Result<impl FnOnce(u32) -> Notify + use<M>> {
        const SIGNAL: u32 = 0;
        const NONE: u32 = 1;
        const THREAD: u32 = 2;
        const THREAD_ID: u32 = 4;
        let notify = if at == 0 {
            None
        } else {
            let [value, kinds, tid] = self.read_words(at)?;
            let (signal, how) = (kinds as u32, (kinds >> 32) as u32);
            Some(match how {
                NONE => Notify::Nobody,
                SIGNAL | THREAD | THREAD_ID => {
                    let signal = Signal::new(u64::from(signal)).ok_or(Errno::EINVAL)?;
                    if how == THREAD_ID {
                        let thread = self.kernel.tables.lock().thread(tid as u32);
                        let own = thread.filter(|t| t.process.pid == self.process.pid);
                        Notify::Thread(own.ok_or(Errno::EINVAL)?.tid, signal, value)
                    } else {
                        Notify::Process(signal, value)
                    }
                }
                _ => return Err(Errno::EINVAL),
            })
        };
        Ok(move |id| notify.unwrap_or(Notify::Process(Signal::ALRM, u64::from(id))))
    }

    pub(crate) fn sys_timer_create(&mut self, a: [u64; 6]) -> Result<u64> {
        let clock = self.timer_clock(a[0])?;
        let notify = self.read_event(a[1])?;
        if self.process.limit(RLIMIT_SIGPENDING) == 0 {
            return Err(Errno::EAGAIN);
        }
        let made = self.process.timers.lock().make(clock, notify);
        let id = made.map_err(|_| Errno::EAGAIN)?;
        if let Err(error) = self.write_u32(a[2], id) {
            self.process.timers.lock().delete(id);
            return Err(error);
        }
        Ok(0)
    }

    /// A timer's clock and what it is set to.
    fn timer(&self, id: u64) -> Result<(TimerClock, u64, Alarm)> {
        let id = id as u32;
        let clock = self.process.timers.lock().clock_of(id).ok_or(Errno::EINVAL)?;
        let now = self.timer_now(clock);
        let alarm = self.process.timers.lock().alarm(id, now).ok_or(Errno::EINVAL)?;
        Ok((clock, now, alarm))
    }

    fn give_setting(&self, at: u64, alarm: Alarm, now: u64) -> Result<u64> {
        let left = alarm.left(now);
        let words = [alarm.interval, left].map(|ns| [ns / SECOND, ns % SECOND]);
        self.write_words(at, words.as_flattened()).map(|()| 0)
    }

    pub(crate) fn sys_timer_settime(&mut self, a: [u64; 6]) -> Result<u64> {
        let [id, flags, new_at, old_at, ..] = a;
        if new_at == 0 {
            return Err(Errno::EINVAL);
        }
        let interval = self.read_time(new_at)?;
        let value = self.read_time(new_at.checked_add(16).ok_or(Errno::EFAULT)?)?;
        let (clock, now, old) = self.timer(id)?;
        let next = match value {
            0 => 0,
            value if flags & ABSTIME == 0 => now.saturating_add(value),
            moment if clock == TimerClock::Real => {
                now.saturating_add(moment.saturating_sub(self.kernel.machine.realtime_ns())).max(1)
            }
            moment => moment,
        };
        self.process.timers.lock().set(id as u32, Alarm { next, interval });
        self.timers_changed();
        if old_at == 0 { Ok(0) } else { self.give_setting(old_at, old, now) }
    }

    pub(crate) fn sys_timer_gettime(&mut self, a: [u64; 6]) -> Result<u64> {
        let (_, now, alarm) = self.timer(a[0])?;
        self.give_setting(a[1], alarm, now)
    }

    pub(crate) fn sys_timer_getoverrun(&mut self, a: [u64; 6]) -> Result<u64> {
        self.process.timers.lock().overrun(a[0] as u32).ok_or(Errno::EINVAL)
    }

    pub(crate) fn sys_timer_delete(&mut self, a: [u64; 6]) -> Result<u64> {
        let found = self.process.timers.lock().delete(a[0] as u32);
        self.timers_changed();
        if found { Ok(0) } else { Err(Errno::EINVAL) }
    }
}

/// The index of an interval timer.
fn which(number: u64) -> Result<usize> {
    usize::try_from(number).ok().filter(|&which| which < 3).ok_or(Errno::EINVAL)
}

/// At least a microsecond while anything is left.
fn whole_micros(ns: u64) -> u64 {
    if ns == 0 { 0 } else { ns.max(1000) }
}
