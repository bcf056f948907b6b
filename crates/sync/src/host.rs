//! Threads as CPUs: the back end for hosted tests and benchmarks.
#![allow(unsafe_code)] // implements the unsafe trait `Cpus`

use core::cell::Cell;
use core::sync::atomic::{Ordering::SeqCst, compiler_fence};
use std::sync::Mutex;
use std::vec::Vec;

use crate::{CpuId, Cpus, MAX_CPUS, RankTracker};

std::thread_local! {
    // Plain data, so that a pin reads it without asking whether it still lives.
    static SELF: ThreadCpu = const { ThreadCpu { id: Cell::new(None), depth: Cell::new(0) } };
    // Touched once, by which the thread gives its number back when it ends.
    static LEAVER: Leaver = const { Leaver };
    static HELD: Cell<[u16; 32]> = const { Cell::new([0; 32]) };
}

static FREE: Mutex<(usize, Vec<CpuId>)> = Mutex::new((0, Vec::new()));

struct ThreadCpu {
    id: Cell<Option<CpuId>>,
    depth: Cell<u32>,
}

struct Leaver;

impl Drop for Leaver {
    fn drop(&mut self) {
        if let Some(id) = SELF.with(|cell| cell.id.take()) {
            FREE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).1.push(id);
        }
    }
}

/// Every thread is a CPU of its own: it gets the lowest free number when it first pins, and gives
/// it back when it ends. A pin costs what a kernel pays: a thread-local count up, and down again.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThreadCpus;

impl ThreadCpus {
    #[cold]
    fn join(cell: &ThreadCpu) -> CpuId {
        let mut free = FREE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let lowest = (0..free.1.len()).min_by_key(|&index| free.1[index]);
        let id = match lowest {
            Some(index) => free.1.swap_remove(index),
            None => {
                let id = CpuId::new(free.0).expect("more threads at once than MAX_CPUS");
                free.0 += 1;
                id
            }
        };
        cell.id.set(Some(id));
        // A thread that pins for the first time while it ends keeps its number for good.
        let _ = LEAVER.try_with(|_| ());
        id
    }
}

// SAFETY: a thread is one context; its number is its own until it ends.
unsafe impl Cpus for ThreadCpus {
    fn limit(&self) -> usize {
        MAX_CPUS
    }

    #[inline]
    fn enter(&self) -> CpuId {
        SELF.with(|cell| {
            cell.depth.set(cell.depth.get() + 1);
            match cell.id.get() {
                Some(id) => id,
                None => Self::join(cell),
            }
        })
    }

    #[inline]
    unsafe fn leave(&self) {
        SELF.with(|cell| match cell.depth.get() {
            // Nearly every pin is the outermost one, and a constant waits for nothing: a count that
            // is loaded, changed and stored four times for an allocation and its free is a chain of
            // twenty cycles.
            1 => cell.depth.set(0),
            depth => {
                cell.depth.set(depth - 1);
                // Two ways that stay two, without a call for which the first would keep registers.
                compiler_fence(SeqCst);
            }
        });
    }
}

/// Checks lock ranks per thread.
#[derive(Debug)]
pub struct ThreadRanks;

impl ThreadRanks {
    fn change(rank: u8, by: i16) {
        HELD.with(|held| {
            let mut counts = held.get();
            let slot = &mut counts[usize::from(rank) / 8];
            *slot = slot.checked_add_signed(by).expect("released a lock that was not held");
            held.set(counts);
        });
    }
}

impl RankTracker for ThreadRanks {
    fn acquire(rank: u8) {
        HELD.with(|held| {
            let counts = held.get();
            if let Some(higher) = (usize::from(rank) / 8..32).find(|&slot| counts[slot] != 0) {
                panic!(
                    "lock order: a lock of rank {rank} is taken while one of rank about {} is held",
                    higher * 8
                );
            }
        });
        Self::change(rank, 1);
    }

    fn acquired_by_try(rank: u8) {
        Self::change(rank, 1);
    }

    fn release(rank: u8) {
        Self::change(rank, -1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CachePadded, PerCpu, Ranked, RawSpin};

    type Outer = lock_api::Mutex<Ranked<RawSpin, ThreadRanks, { crate::rank::HEAP }>, ()>;
    type Inner = lock_api::Mutex<Ranked<RawSpin, ThreadRanks, { crate::rank::FRAMES }>, ()>;

    #[test]
    fn locks_taken_downwards_are_fine() {
        let (outer, inner) = (Outer::new(()), Inner::new(()));
        let _heap = outer.lock();
        let _frames = inner.lock();
    }

    #[test]
    #[should_panic(expected = "lock order: a lock of rank 60 is taken")]
    fn locks_taken_upwards_stop_loudly() {
        let (outer, inner) = (Outer::new(()), Inner::new(()));
        let _frames = inner.lock();
        let _heap = outer.lock();
    }

    #[test]
    fn two_threads_never_share_a_cell() {
        let mut cells: Vec<_> = (0..MAX_CPUS).map(|_| CachePadded(Cell::new(0u64))).collect();
        let cells = PerCpu::new(&mut cells);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        let pin = ThreadCpus.pin();
                        // SAFETY: `ThreadCpus` is the only implementer used with these cells.
                        let cell = unsafe { cells.get(&pin) };
                        cell.set(cell.get() + 1);
                    }
                });
            }
        });
        // SAFETY: all threads have ended.
        let total: u64 =
            (0..MAX_CPUS).map(|i| unsafe { cells.of(CpuId::new(i).unwrap()) }.unwrap().get()).sum();
        assert_eq!(total, 40_000);
    }
}
