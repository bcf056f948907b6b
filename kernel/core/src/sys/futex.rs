//! Futexes: sleeping until a word of memory changes.
//!
//! A waiter is put on the word's channel first and then reads the word; a waker changes the word
//! first and then wakes the channel. So one of the two always sees the other, and no table or lock
//! of futexes is needed.
//!
//! Left out: priority inheritance (`ENOSYS`), `futex_waitv`.

use core::sync::atomic::Ordering;

use pagoda_addr::VirtAddr;
use pagoda_linux::Errno;
use pagoda_vm::{FaultError, FutexKey};

use alloc::sync::Arc;

use crate::Result;
use crate::machine::Machine;
use crate::run::Cx;
use crate::sched::slots::{Channel, Patience, Wait, Wake};

const WAIT: u64 = 0;
const WAKE: u64 = 1;
const REQUEUE: u64 = 3;
const CMP_REQUEUE: u64 = 4;
const WAKE_OP: u64 = 5;
const WAIT_BITSET: u64 = 9;
const WAKE_BITSET: u64 = 10;
const PRIVATE: u64 = 128;
const CLOCK_REALTIME: u64 = 256;
const ALL: u32 = u32::MAX;

/// In a robust futex word: somebody waits; the owner has died; the owner's number.
const WAITERS: u32 = 0x8000_0000;
const OWNER_DIED: u32 = 0x4000_0000;
const OWNER: u32 = 0x3fff_ffff;
/// The most entries of a robust list that are looked at.
const ROBUST_MAX: usize = 2048;

fn fault(error: FaultError) -> Errno {
    match error {
        FaultError::OutOfMemory => Errno::ENOMEM,
        _ => Errno::EFAULT,
    }
}

fn count(word: u64) -> usize {
    usize::try_from(word as i32).unwrap_or(0)
}

impl<M: Machine> Cx<'_, M> {
    fn channel(&self, addr: u64, shared: bool) -> Result<Channel> {
        if !addr.is_multiple_of(4) {
            return Err(Errno::EINVAL);
        }
        let key = self.space.futex_key(VirtAddr::new(addr), shared).map_err(fault)?;
        Ok(match key {
            FutexKey::Private(addr) => Channel::Futex(Arc::as_ptr(&self.space).addr() as u64, addr),
            FutexKey::Shared { object, offset } => Channel::Futex(object as u64, offset),
        })
    }

    pub(crate) fn sys_futex(&mut self, a: [u64; 6]) -> Result<u64> {
        let [addr, op, value, timeout, addr2, value3] = a;
        let shared = op & PRIVATE == 0;
        let command = op & !(PRIVATE | CLOCK_REALTIME) & 0xffff_ffff;
        match command {
            WAIT | WAIT_BITSET => {
                let mask = if command == WAIT { ALL } else { value3 as u32 };
                let deadline = self.futex_deadline(command, op, timeout)?;
                self.futex_wait(addr, shared, value as u32, mask, deadline)
            }
            WAKE | WAKE_BITSET => {
                let mask = if command == WAKE { ALL } else { value3 as u32 };
                if mask == 0 {
                    return Err(Errno::EINVAL);
                }
                let channel = self.channel(addr, shared)?;
                Ok(self.kernel.sched.wake_masked(channel, mask, count(value)) as u64)
            }
            REQUEUE | CMP_REQUEUE => {
                let expected = (command == CMP_REQUEUE).then_some(value3 as u32);
                self.futex_requeue(addr, addr2, shared, count(value), count(timeout), expected)
            }
            WAKE_OP => self.futex_wake_op(a, shared),
            _ => Err(Errno::ENOSYS),
        }
    }

    fn futex_deadline(&self, command: u64, op: u64, timeout: u64) -> Result<u64> {
        if timeout == 0 {
            return Ok(u64::MAX);
        }
        let time = self.read_time(timeout)?;
        if command == WAIT {
            return Ok(self.kernel.machine.monotonic_ns().saturating_add(time));
        }
        self.absolute_deadline(u64::from(op & CLOCK_REALTIME == 0), time)
    }

    fn futex_wait(
        &self,
        addr: u64,
        shared: bool,
        value: u32,
        mask: u32,
        deadline: u64,
    ) -> Result<u64> {
        if mask == 0 {
            return Err(Errno::EINVAL);
        }
        let channel = self.channel(addr, shared)?;
        let mut seen = Ok(value);
        let wait = Wait { channel, mask, deadline, patience: Patience::Interruptible };
        let ended = self.kernel.sched.sleep_unless(self.thread, wait, || {
            seen = self.space.fetch_u32(VirtAddr::new(addr));
            seen != Ok(value)
        });
        match ended {
            Some(Wake::Woken) => Ok(0),
            Some(Wake::TimedOut) => Err(Errno::ETIMEDOUT),
            Some(Wake::Interrupted) if deadline == u64::MAX => Err(Errno::ERESTARTSYS),
            Some(Wake::Interrupted) => Err(Errno::ERESTARTNOHAND),
            None => {
                seen.map_err(fault)?;
                Err(Errno::EAGAIN)
            }
        }
    }

    fn futex_requeue(
        &self,
        from: u64,
        to: u64,
        shared: bool,
        wake: usize,
        requeue: usize,
        expected: Option<u32>,
    ) -> Result<u64> {
        let (from_channel, to_channel) = (self.channel(from, shared)?, self.channel(to, shared)?);
        if let Some(expected) = expected {
            let seen = self.space.fetch_u32(VirtAddr::new(from)).map_err(fault)?;
            if seen != expected {
                return Err(Errno::EAGAIN);
            }
        }
        let sched = &self.kernel.sched;
        let woken = sched.wake(from_channel, wake);
        let moved = sched.requeue(from_channel, to_channel, requeue);
        // Only the comparing form counts those that it moved.
        Ok(if expected.is_some() { woken + moved } else { woken } as u64)
    }

    /// Changes the second word, wakes waiters on the first, and on the second if its old value
    /// compares.
    fn futex_wake_op(&self, a: [u64; 6], shared: bool) -> Result<u64> {
        let [addr, _, wake, wake2, addr2, op] = a;
        let (first, second) = (self.channel(addr, shared)?, self.channel(addr2, shared)?);
        let field = |shift: u32, bits: u32| (op as u32 >> shift) & ((1 << bits) - 1);
        let signed = |value: u32| (value << 20) as i32 >> 20;
        let (operation, compare) = (field(28, 4), field(24, 4));
        let mut argument = signed(field(12, 12)) as u32;
        if operation & 8 != 0 {
            argument = 1u32.wrapping_shl(argument);
        }
        let against = signed(field(0, 12));
        let word = VirtAddr::new(addr2);
        let old = loop {
            let old = self.space.fetch_u32(word).map_err(fault)?;
            let new = match operation & 7 {
                0 => argument,
                1 => old.wrapping_add(argument),
                2 => old | argument,
                3 => old & !argument,
                4 => old ^ argument,
                _ => return Err(Errno::ENOSYS),
            };
            if self.space.cmpxchg_u32(word, old, new).map_err(fault)?.is_ok() {
                break old as i32;
            }
        };
        let holds = match compare {
            0 => old == against,
            1 => old != against,
            2 => old < against,
            3 => old <= against,
            4 => old > against,
            5 => old >= against,
            _ => return Err(Errno::ENOSYS),
        };
        let mut woken = self.kernel.sched.wake(first, count(wake));
        if holds {
            woken += self.kernel.sched.wake(second, count(wake2));
        }
        Ok(woken as u64)
    }

    /// What other threads may wait for when this one ends: robust futexes that it holds, and the
    /// word that tells that it is gone.
    pub(crate) fn release_futexes(&self) {
        let robust = self.thread.robust_list.swap(0, Ordering::Relaxed);
        if robust != 0 {
            // The list is the program's: it may be wrong anywhere, and then it ends there.
            let _ = self.release_robust(robust);
        }
        let clear = self.thread.clear_child_tid.swap(0, Ordering::Relaxed);
        // Only where somebody is left to see it, as on Linux: this thread, its process and the CPU
        // hold one count each.
        if clear != 0
            && Arc::strong_count(&self.space) > 3
            && self.write_u32(clear, 0).is_ok()
            && let Ok(channel) = self.channel(clear, true)
        {
            self.kernel.sched.wake(channel, 1);
        }
    }

    fn release_robust(&self, head: u64) -> Result<()> {
        let [first, offset, pending]: [u64; 3] = self.read_words(head)?;
        let mut entry = first;
        for _ in 0..ROBUST_MAX {
            // The lowest bit marks words with priority inheritance.
            let node = entry & !1;
            if node == head {
                break;
            }
            let next = self.read_u64(node)?;
            if node != pending & !1 {
                self.owner_died(node.wrapping_add(offset))?;
            }
            entry = next;
        }
        if pending & !1 != 0 {
            self.owner_died((pending & !1).wrapping_add(offset))?;
        }
        Ok(())
    }

    fn owner_died(&self, addr: u64) -> Result<()> {
        let word = VirtAddr::new(addr);
        loop {
            let old = self.space.fetch_u32(word).map_err(fault)?;
            if old & OWNER != self.thread.tid {
                return Ok(());
            }
            let new = old & WAITERS | OWNER_DIED;
            if self.space.cmpxchg_u32(word, old, new).map_err(fault)?.is_ok() {
                if old & WAITERS != 0 {
                    self.kernel.sched.wake(self.channel(addr, true)?, 1);
                }
                return Ok(());
            }
        }
    }
}
