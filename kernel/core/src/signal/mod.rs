//! Signals: what is asked for ([`set`]), what has arrived ([`info`]), how it is sent ([`send`]),
//! how it is delivered ([`deliver`]), what a program then finds on its stack ([`frame`]).
//!
//! # Invariants
//!
//! *pending-noticed*: whoever makes a signal pending that some thread does not block sets that
//! thread's attention flag afterwards; the thread clears the flag before it looks at what is
//! pending. So a thread never enters its program with a deliverable signal unnoticed.
//!
//! # Lock order
//!
//! tables, then family, then a process's signals, then a thread's signals, then the queues.
//!
//! Left out: tables of actions shared between processes (`CLONE_SIGHAND` without `CLONE_THREAD`
//! copies), core files (the bit in the wait status is set), tracing.

pub(crate) mod deliver;
pub(crate) mod frame;
pub(crate) mod info;
pub(crate) mod send;
pub(crate) mod set;

use alloc::boxed::Box;

use pagoda_linux::Errno;
use pagoda_vm::fallible::try_box_with;

use crate::Result;
use frame::{AltStack, FaultWords};
use info::{Pending, SigInfo};
use set::{Action, SIG_DFL, SIG_IGN, SigSet, Signal};

/// A wait that a call goes on with after a signal without a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SleepRestart {
    /// Monotonic nanoseconds.
    pub(crate) deadline: u64,
    /// Where the rest of the time is written when it is cut short again; 0 for nowhere.
    pub(crate) remaining_at: u64,
}

/// A thread's part.
#[derive(Debug)]
pub(crate) struct ThreadSignals {
    pub(crate) mask: SigSet,
    /// The mask to return to, while a call has its own (`sigsuspend`, `ppoll`, `pselect6`).
    pub(crate) saved_mask: Option<SigSet>,
    /// Signals that `rt_sigtimedwait` waits for.
    pub(crate) waited: SigSet,
    pub(crate) pending: Pending,
    /// The signal of a fault that the thread has just made. It goes before all others, whose frames
    /// would else stand between it and its cause, and needs no memory to keep its circumstances.
    pub(crate) forced: Option<SigInfo>,
    pub(crate) alt: AltStack,
    pub(crate) fault: FaultWords,
    pub(crate) restart: Option<SleepRestart>,
}

impl ThreadSignals {
    pub(crate) const fn new(mask: SigSet) -> Self {
        Self {
            mask,
            saved_mask: None,
            waited: SigSet::EMPTY,
            pending: Pending::new(),
            forced: None,
            alt: AltStack::NONE,
            fault: FaultWords { error: 0, vector: 0, cr2: 0 },
            restart: None,
        }
    }

    /// Sets the mask, without what nobody can block.
    pub(crate) fn set_mask(&mut self, mask: SigSet) {
        self.mask = mask.without(SigSet::UNBLOCKABLE);
    }
}

/// A process's part.
#[derive(Debug)]
pub(crate) struct ProcessSignals {
    /// Apart: it is large, and what holds it is moved about when a process is made.
    actions: Box<[Action; 64]>,
    pub(crate) pending: Pending,
}

impl ProcessSignals {
    pub(crate) fn new() -> Result<Self> {
        let actions = try_box_with(|| [Action::default(); 64]).map_err(|_| Errno::ENOMEM)?;
        Ok(Self { actions, pending: Pending::new() })
    }

    /// A child's: the same actions, nothing pending.
    pub(crate) fn inherit(&self) -> Result<Self> {
        let actions = try_box_with(|| *self.actions).map_err(|_| Errno::ENOMEM)?;
        Ok(Self { actions, pending: Pending::new() })
    }

    pub(crate) fn action(&self, signal: Signal) -> Action {
        self.actions.get(signal.index()).copied().unwrap_or_default()
    }

    pub(crate) fn set_action(&mut self, signal: Signal, action: Action) {
        if let Some(slot) = self.actions.get_mut(signal.index()) {
            *slot = action;
        }
    }

    /// A new program: handlers are gone, ignored signals stay ignored.
    pub(crate) fn reset_handlers(&mut self) {
        for action in self.actions.iter_mut() {
            let handler = if action.handler == SIG_IGN { SIG_IGN } else { SIG_DFL };
            *action = Action { handler, ..Action::default() };
        }
    }

    /// (ignored, caught), for `/proc`.
    pub(crate) fn summary(&self) -> (SigSet, SigSet) {
        let mut sets = (SigSet::EMPTY, SigSet::EMPTY);
        for number in 1..=64 {
            let Some(signal) = Signal::new(number) else { continue };
            match self.action(signal).handler {
                SIG_DFL => {}
                SIG_IGN => sets.0.insert(signal),
                _ => sets.1.insert(signal),
            }
        }
        sets
    }
}
