//! Signal numbers, sets of them, what a program asked to be done about each.

/// A signal number, 1 to 64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Signal(u8);

#[allow(dead_code)] // the whole table, whoever sends them
impl Signal {
    pub(crate) const HUP: Self = Self(1);
    pub(crate) const INT: Self = Self(2);
    pub(crate) const QUIT: Self = Self(3);
    pub(crate) const ILL: Self = Self(4);
    pub(crate) const TRAP: Self = Self(5);
    pub(crate) const ABRT: Self = Self(6);
    pub(crate) const BUS: Self = Self(7);
    pub(crate) const FPE: Self = Self(8);
    pub(crate) const KILL: Self = Self(9);
    pub(crate) const USR1: Self = Self(10);
    pub(crate) const SEGV: Self = Self(11);
    pub(crate) const USR2: Self = Self(12);
    pub(crate) const PIPE: Self = Self(13);
    pub(crate) const ALRM: Self = Self(14);
    pub(crate) const TERM: Self = Self(15);
    pub(crate) const CHLD: Self = Self(17);
    pub(crate) const CONT: Self = Self(18);
    pub(crate) const STOP: Self = Self(19);
    pub(crate) const TSTP: Self = Self(20);
    pub(crate) const TTIN: Self = Self(21);
    pub(crate) const TTOU: Self = Self(22);
    pub(crate) const URG: Self = Self(23);
    pub(crate) const XCPU: Self = Self(24);
    pub(crate) const XFSZ: Self = Self(25);
    pub(crate) const VTALRM: Self = Self(26);
    pub(crate) const PROF: Self = Self(27);
    pub(crate) const WINCH: Self = Self(28);
    pub(crate) const SYS: Self = Self(31);
    /// The first real-time signal: from here on signals queue.
    pub(crate) const RT_MIN: Self = Self(32);

    /// The signal with this number, if there is one.
    pub(crate) fn new(number: u64) -> Option<Self> {
        if (1..=64).contains(&number) { Some(Self(number as u8)) } else { None }
    }

    pub(crate) fn number(self) -> u32 {
        u32::from(self.0)
    }

    /// Index into a table of 64.
    pub(crate) fn index(self) -> usize {
        usize::from(self.0 - 1)
    }

    /// What happens without a handler.
    pub(crate) fn default(self) -> Default {
        match self {
            Self::QUIT
            | Self::ILL
            | Self::TRAP
            | Self::ABRT
            | Self::BUS
            | Self::FPE
            | Self::SEGV
            | Self::XCPU
            | Self::XFSZ
            | Self::SYS => Default::Core,
            Self::CHLD | Self::URG | Self::WINCH => Default::Ignore,
            Self::CONT => Default::Continue,
            Self::STOP | Self::TSTP | Self::TTIN | Self::TTOU => Default::Stop,
            _ => Default::Terminate,
        }
    }
}

/// The default action of a signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Default {
    /// Ends the process.
    Terminate,
    /// Ends the process with the core-dump bit (no core is written).
    Core,
    /// Nothing.
    Ignore,
    /// Stops the process.
    Stop,
    /// Continues the process.
    Continue,
}

/// A set of signals, bit `n - 1` for signal `n`, as programs pass it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, core::default::Default)]
pub(crate) struct SigSet(pub(crate) u64);

impl SigSet {
    pub(crate) const EMPTY: Self = Self(0);
    /// The two that nobody can block, catch or ignore.
    pub(crate) const UNBLOCKABLE: Self = Self(1 << 8 | 1 << 18);
    /// The four that stop a process.
    pub(crate) const STOPS: Self = Self(1 << 18 | 1 << 19 | 1 << 20 | 1 << 21);
    /// Those that a fault of the program itself raises; they are delivered first.
    pub(crate) const SYNCHRONOUS: Self =
        Self(1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 10 | 1 << 30);

    pub(crate) fn of(signal: Signal) -> Self {
        Self(1 << signal.index())
    }
    pub(crate) fn contains(self, signal: Signal) -> bool {
        self.0 & Self::of(signal).0 != 0
    }
    pub(crate) fn insert(&mut self, signal: Signal) {
        self.0 |= Self::of(signal).0;
    }
    pub(crate) fn remove(&mut self, signal: Signal) {
        self.0 &= !Self::of(signal).0;
    }
    pub(crate) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
    pub(crate) fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// The signal to deliver next: faults first, then the lowest number.
    pub(crate) fn first(self) -> Option<Signal> {
        let urgent = self.and(Self::SYNCHRONOUS);
        let from = if urgent.is_empty() { self.0 } else { urgent.0 };
        Signal::new(u64::from(from.trailing_zeros()) + 1)
    }
}

pub(crate) const SIG_DFL: u64 = 0;
pub(crate) const SIG_IGN: u64 = 1;
pub(crate) const SA_NOCLDSTOP: u64 = 1;
pub(crate) const SA_NOCLDWAIT: u64 = 2;
pub(crate) const SA_ONSTACK: u64 = 0x0800_0000;
pub(crate) const SA_RESTART: u64 = 0x1000_0000;
pub(crate) const SA_NODEFER: u64 = 0x4000_0000;
pub(crate) const SA_RESETHAND: u64 = 0x8000_0000;
pub(crate) const SA_RESTORER: u64 = 0x0400_0000;

/// What a program asked to be done about a signal; in memory four words in this order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, core::default::Default)]
pub(crate) struct Action {
    pub(crate) handler: u64,
    pub(crate) flags: u64,
    pub(crate) restorer: u64,
    pub(crate) mask: SigSet,
}

impl Action {
    pub(crate) const SIZE: usize = 32;

    pub(crate) fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let words = [self.handler, self.flags, self.restorer, self.mask.0];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let mut words = [0; 4];
        for (word, from) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = from.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
        }
        let [handler, flags, restorer, mask] = words;
        Self { handler, flags, restorer, mask: SigSet(mask) }
    }

    /// Does the signal vanish on arrival?
    pub(crate) fn ignores(&self, signal: Signal) -> bool {
        self.handler == SIG_IGN || (self.handler == SIG_DFL && signal.default() == Default::Ignore)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_delivered_before_lower_numbers() {
        let mut set = SigSet::EMPTY;
        set.insert(Signal::HUP);
        set.insert(Signal::SEGV);
        assert_eq!(set.first(), Some(Signal::SEGV));
        set.remove(Signal::SEGV);
        assert_eq!(set.first(), Some(Signal::HUP));
        set.remove(Signal::HUP);
        assert_eq!(set.first(), None);
        assert_eq!(Signal::new(0), None);
        assert_eq!(Signal::new(65), None);
    }

    #[test]
    fn an_action_survives_its_bytes() {
        let action = Action { handler: 0x401000, flags: SA_RESTORER, restorer: 7, mask: SigSet(9) };
        assert_eq!(Action::from_bytes(&action.to_bytes()), action);
    }

    #[test]
    fn the_named_sets_hold_the_signals_that_they_name() {
        assert!(
            SigSet::UNBLOCKABLE.contains(Signal::KILL)
                && SigSet::UNBLOCKABLE.contains(Signal::STOP)
        );
        for signal in [Signal::STOP, Signal::TSTP, Signal::TTIN, Signal::TTOU] {
            assert!(SigSet::STOPS.contains(signal));
        }
        for s in [Signal::SEGV, Signal::BUS, Signal::ILL, Signal::TRAP, Signal::FPE, Signal::SYS] {
            assert!(SigSet::SYNCHRONOUS.contains(s));
        }
    }
}
