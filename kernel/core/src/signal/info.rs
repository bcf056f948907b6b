//! What a program is told about a signal (`siginfo_t`), and the signals that wait to be told.

use alloc::vec::Vec;

use super::set::{SigSet, Signal};

pub(crate) const SI_USER: i32 = 0;
pub(crate) const SI_KERNEL: i32 = 0x80;
pub(crate) const SI_TIMER: i32 = -2;
pub(crate) const SI_TKILL: i32 = -6;
pub(crate) const SEGV_MAPERR: i32 = 1;
pub(crate) const SEGV_ACCERR: i32 = 2;
pub(crate) const BUS_ADRERR: i32 = 2;
pub(crate) const FPE_INTDIV: i32 = 1;
pub(crate) const FPE_FLTINV: i32 = 7;
pub(crate) const ILL_ILLOPN: i32 = 2;
pub(crate) const TRAP_BRKPT: i32 = 1;
pub(crate) const CLD_EXITED: i32 = 1;
pub(crate) const CLD_KILLED: i32 = 2;
pub(crate) const CLD_DUMPED: i32 = 3;
pub(crate) const CLD_STOPPED: i32 = 5;
pub(crate) const CLD_CONTINUED: i32 = 6;

/// The part of a `siginfo_t` that depends on who sent it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Detail {
    /// The kernel, with nothing to add.
    Nothing,
    /// A process, by `kill` and its kin.
    Sender { pid: u32, uid: u32 },
    /// A process, with a value.
    Queued { pid: u32, uid: u32, value: u64 },
    /// A timer that the program made; how often it went off besides.
    Timer { id: u32, overrun: u32, value: u64 },
    /// The program's own access to this address.
    Fault { addr: u64 },
    /// A child changed.
    Child { pid: u32, uid: u32, status: i32, user_ticks: u64, system_ticks: u64 },
}

/// A signal with its circumstances.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SigInfo {
    pub(crate) signal: Signal,
    pub(crate) code: i32,
    pub(crate) detail: Detail,
}

impl SigInfo {
    /// Bytes of a `siginfo_t`.
    pub(crate) const SIZE: usize = 128;

    pub(crate) fn kernel(signal: Signal) -> Self {
        Self { signal, code: SI_KERNEL, detail: Detail::Nothing }
    }

    /// The layout of x86-64 Linux.
    pub(crate) fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let mut put = |at: usize, value: &[u8]| {
            if let Some(to) = bytes.get_mut(at..at + value.len()) {
                to.copy_from_slice(value);
            }
        };
        put(0, &self.signal.number().to_le_bytes());
        put(8, &self.code.to_le_bytes());
        match self.detail {
            Detail::Nothing => {}
            Detail::Sender { pid, uid } => {
                put(16, &pid.to_le_bytes());
                put(20, &uid.to_le_bytes());
            }
            Detail::Queued { pid, uid, value } => {
                put(16, &pid.to_le_bytes());
                put(20, &uid.to_le_bytes());
                put(24, &value.to_le_bytes());
            }
            Detail::Timer { id, overrun, value } => {
                put(16, &id.to_le_bytes());
                put(20, &overrun.to_le_bytes());
                put(24, &value.to_le_bytes());
            }
            Detail::Fault { addr } => put(16, &addr.to_le_bytes()),
            Detail::Child { pid, uid, status, user_ticks, system_ticks } => {
                put(16, &pid.to_le_bytes());
                put(20, &uid.to_le_bytes());
                put(24, &status.to_le_bytes());
                put(32, &user_ticks.to_le_bytes());
                put(40, &system_ticks.to_le_bytes());
            }
        }
        bytes
    }
}

/// Signals that have arrived and are not yet delivered.
///
/// Standard signals are pending once, with the circumstances of the first; real-time signals queue,
/// and so does what timers send, each of which sees to it that it is there once.
/// A standard signal always fits: without memory for its circumstances it arrives without them.
#[derive(Debug)]
pub(crate) struct Pending {
    set: SigSet,
    infos: Vec<SigInfo>,
}

/// No memory, or more than [`Pending::LIMIT`] signals queued.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct QueueFull;

impl Pending {
    /// The most signals with circumstances that one queue holds.
    pub(crate) const LIMIT: usize = 1024;

    pub(crate) const fn new() -> Self {
        Self { set: SigSet::EMPTY, infos: Vec::new() }
    }

    pub(crate) fn set(&self) -> SigSet {
        self.set
    }

    /// Adds a signal.
    pub(crate) fn push(&mut self, info: SigInfo) -> Result<(), QueueFull> {
        let of_timer = matches!(info.detail, Detail::Timer { .. });
        let queues = of_timer || info.signal >= Signal::RT_MIN;
        if !queues && self.set.contains(info.signal) {
            return Ok(());
        }
        let room = self.infos.len() < Self::LIMIT && self.infos.try_reserve(1).is_ok();
        if room {
            self.infos.push(info);
        } else if queues && info.code < 0 && info.code != SI_TKILL {
            return Err(QueueFull);
        }
        self.set.insert(info.signal);
        Ok(())
    }

    /// Is a signal of this timer there?
    pub(crate) fn has_timer(&self, timer: u32) -> bool {
        let of_timer =
            |info: &SigInfo| matches!(info.detail, Detail::Timer { id, .. } if id == timer);
        self.infos.iter().any(of_timer)
    }

    /// Takes the next signal that is in `from`.
    pub(crate) fn take(&mut self, from: SigSet) -> Option<SigInfo> {
        let signal = self.set.and(from).first()?;
        let Some(at) = self.infos.iter().position(|info| info.signal == signal) else {
            self.set.remove(signal);
            return Some(SigInfo { signal, code: SI_USER, detail: Detail::Nothing });
        };
        let info = self.infos.remove(at);
        if !self.infos.iter().any(|other| other.signal == signal) {
            self.set.remove(signal);
        }
        Some(info)
    }

    /// Forgets all signals in `these`.
    pub(crate) fn discard(&mut self, these: SigSet) {
        self.set = self.set.without(these);
        self.infos.retain(|info| !these.contains(info.signal));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_signals_merge_and_real_time_signals_queue() {
        let mut pending = Pending::new();
        for value in 0..3 {
            let detail = Detail::Queued { pid: 1, uid: 0, value };
            pending.push(SigInfo { signal: Signal::USR1, code: -1, detail }).unwrap();
            let real_time = Signal::new(40).unwrap();
            pending.push(SigInfo { signal: real_time, code: -1, detail }).unwrap();
        }
        let all = SigSet(!0);
        assert_eq!(pending.take(all).unwrap().signal, Signal::USR1);
        for value in 0..3 {
            let info = pending.take(all).unwrap();
            assert_eq!(info.detail, Detail::Queued { pid: 1, uid: 0, value });
        }
        assert_eq!(pending.take(all), None);
        assert!(pending.set().is_empty());
    }

    #[test]
    fn a_fault_address_stands_at_offset_16() {
        let detail = Detail::Fault { addr: 0x1122_3344_5566 };
        let bytes = SigInfo { signal: Signal::SEGV, code: SEGV_MAPERR, detail }.to_bytes();
        assert_eq!(bytes[0], 11);
        assert_eq!(bytes[8], 1);
        assert_eq!(bytes[16..24], 0x1122_3344_5566u64.to_le_bytes());
    }
}
