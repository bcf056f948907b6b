//! Event counters: `eventfd`.

use alloc::sync::Arc;

use crate::{Errno, Host, Lock, Ready, Result, Waiters};

/// The highest count; one more would be the error value.
const MAX: u64 = u64::MAX - 1;

/// A counter that is written to be added to, and read to be taken from.
pub(crate) struct EventCounter {
    count: Lock<u64>,
    /// A read takes one instead of all.
    semaphore: bool,
    waiters: Waiters,
}

impl EventCounter {
    pub(crate) fn new(host: Arc<dyn Host>, initial: u64, semaphore: bool) -> Self {
        Self { count: Lock::new(initial), semaphore, waiters: Waiters::new(host) }
    }

    pub(crate) fn waiters(&self) -> &Waiters {
        &self.waiters
    }

    pub(crate) fn read(&self, into: &mut [u8]) -> Result<usize> {
        let into = into.get_mut(..8).ok_or(Errno::EINVAL)?;
        let mut count = self.count.lock();
        let taken = match (*count, self.semaphore) {
            (0, _) => return Err(Errno::EAGAIN),
            (_, true) => 1,
            (all, false) => all,
        };
        *count -= taken;
        drop(count);
        into.copy_from_slice(&taken.to_le_bytes());
        self.waiters.wake();
        Ok(8)
    }

    pub(crate) fn write(&self, bytes: &[u8]) -> Result<usize> {
        let bytes: [u8; 8] = *bytes.first_chunk().ok_or(Errno::EINVAL)?;
        let added = u64::from_le_bytes(bytes);
        if added == u64::MAX {
            return Err(Errno::EINVAL);
        }
        let mut count = self.count.lock();
        if MAX - *count < added {
            return Err(Errno::EAGAIN);
        }
        *count += added;
        drop(count);
        self.waiters.wake();
        Ok(8)
    }

    pub(crate) fn poll(&self) -> Ready {
        let count = *self.count.lock();
        let mut ready = Ready::empty();
        if count > 0 {
            ready |= Ready::READ;
        }
        if count < MAX {
            ready |= Ready::WRITE;
        }
        ready
    }
}
