//! Asking another CPU to give up what it keeps.
//!
//! Only the owner touches its per-CPU cell ([`PerCpu`](crate::PerCpu)), so whoever needs what lies in
//! another CPU's cache asks: it *posts* a request, and the owner *honours* it at its next pin, before
//! it uses the cell, by draining the cell into a place that all share.
//!
//! A CPU that rests (user mode for long, idle) does not pin. It drains before it rests, so that
//! whatever is asked of it then is done already.
//!
//! # Invariants
//!
//! *done-means-drained*: when [`HandOver::is_done`] says yes to a ticket, everything that lay in the
//! cell when the ticket was drawn has been drained, and the drainer's writes are visible. What came
//! into the cell later may be there.
//!
//! The owner's fast path is two plain loads of its own line; nobody writes to it but who posts.
//!
//! Left out: waking a CPU that stays in a loop without pinning (an interrupt is the host's).
#![allow(unsafe_code)] // `Sync` for cells that their owners alone write

use core::marker::PhantomData;

use crate::shim::{AtomicU64, Ordering};
use crate::{CachePadded, CpuId, Cpus, Pinned};

/// What `done` says while the CPU rests: every ticket is honoured.
const RESTING: u64 = u64::MAX;

/// One CPU's part of [`HandOver`].
#[derive(Debug)]
pub struct HandOverCell {
    /// Tickets drawn.
    asked: AtomicU64,
    /// Tickets honoured; `RESTING`: all. Written by the owner alone.
    done: AtomicU64,
}

impl HandOverCell {
    /// A CPU that rests: it keeps nothing yet.
    #[cfg(not(all(loom, test)))]
    pub const fn new() -> Self {
        Self { asked: AtomicU64::new(0), done: AtomicU64::new(RESTING) }
    }

    #[cfg(all(loom, test))]
    pub(crate) fn new() -> Self {
        Self { asked: AtomicU64::new(0), done: AtomicU64::new(RESTING) }
    }
}

impl Default for HandOverCell {
    fn default() -> Self {
        Self::new()
    }
}

/// A request to one CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "ask `HandOver::is_done` with it"]
pub struct Ticket {
    cpu: CpuId,
    number: u64,
}

/// Requests to the CPUs of `C`, with one [`HandOverCell`] for each in storage of the caller.
#[derive(Debug)]
pub struct HandOver<'s, C: Cpus> {
    cells: &'s [CachePadded<HandOverCell>],
    _cpus: PhantomData<fn(&C)>,
}

impl<'s, C: Cpus> HandOver<'s, C> {
    /// For as many CPUs as there are cells, which all rest.
    pub const fn new(cells: &'s [CachePadded<HandOverCell>]) -> Self {
        Self { cells, _cpus: PhantomData }
    }

    /// # Panics
    /// When there are fewer cells than CPUs: a bug of the caller.
    #[inline]
    fn cell(&self, cpu: CpuId) -> &HandOverCell {
        &self.cells[cpu.index()].0
    }

    /// At every pin, before the CPU's cell is used: calls `drain` if somebody asked. True if so.
    /// A CPU that rested does so no longer.
    #[inline]
    pub fn honour(&self, pin: &Pinned<'_, C>, drain: impl FnOnce()) -> bool {
        let cell = self.cell(pin.cpu());
        let asked = cell.asked.load(Ordering::Relaxed);
        if asked == cell.done.load(Ordering::Relaxed) {
            return false;
        }
        self.honour_now(cell, drain)
    }

    #[cold]
    fn honour_now(&self, cell: &HandOverCell, drain: impl FnOnce()) -> bool {
        // What was asked up to here is answered by the drain that follows; what is asked during it
        // waits for the next.
        let asked = cell.asked.load(Ordering::Acquire);
        let rested = cell.done.load(Ordering::Relaxed) == RESTING;
        if !rested {
            drain();
        }
        // After a rest the cell was empty when all these tickets were drawn: nothing to drain.
        cell.done.store(asked, Ordering::Release);
        !rested
    }

    /// The CPU will not pin for a while: calls `drain`, and everything asked from now on is done
    /// already. The cell must not be used before the next [`honour`](Self::honour).
    pub fn rest(&self, pin: &Pinned<'_, C>, drain: impl FnOnce()) {
        drain();
        self.cell(pin.cpu()).done.store(RESTING, Ordering::Release);
    }

    /// Asks `cpu` to drain its cell.
    pub fn post(&self, cpu: CpuId) -> Ticket {
        let number = self.cell(cpu).asked.fetch_add(1, Ordering::AcqRel) + 1;
        Ticket { cpu, number }
    }

    /// *done-means-drained*.
    pub fn is_done(&self, ticket: Ticket) -> bool {
        self.cell(ticket.cpu).done.load(Ordering::Acquire) >= ticket.number
    }
}
