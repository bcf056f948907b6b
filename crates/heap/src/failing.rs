//! Internal failures, one at a time: every step inside the heap that may find nothing (pages, room in
//! the pool, memory for records, room in a magazine or a depot, a lock that is free) asks whether it
//! is to fail now. Only tests can say yes; elsewhere the question vanishes.

#[cfg(test)]
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Which questions are answered with yes.
pub(crate) struct Failing {
    /// Questions until the first yes; 0: none.
    #[cfg(test)]
    left: AtomicUsize,
    /// Questions answered with yes from then on.
    #[cfg(test)]
    more: AtomicUsize,
    /// Yeses so far.
    #[cfg(test)]
    failed: AtomicUsize,
}

impl Failing {
    /// Never.
    pub(crate) const fn new() -> Self {
        Self {
            #[cfg(test)]
            left: AtomicUsize::new(0),
            #[cfg(test)]
            more: AtomicUsize::new(0),
            #[cfg(test)]
            failed: AtomicUsize::new(0),
        }
    }

    /// Is this step to fail?
    #[inline(always)]
    pub(crate) fn now(&self) -> bool {
        #[cfg(test)]
        {
            let left = self.left.load(Relaxed);
            if left != 1 {
                self.left.store(left.saturating_sub(1), Relaxed);
                return false;
            }
            self.failed.fetch_add(1, Relaxed);
            let more = self.more.load(Relaxed);
            self.more.store(more.saturating_sub(1), Relaxed);
            if more <= 1 {
                self.left.store(0, Relaxed);
            }
            true
        }
        #[cfg(not(test))]
        false
    }

    /// From the `nth` question from now on (the first is 1), so many are answered with yes.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn set(&self, nth: usize, many: usize) {
        self.left.store(nth, Relaxed);
        self.more.store(many, Relaxed);
    }

    /// No more failures; how many there were.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn clear(&self) -> usize {
        self.left.store(0, Relaxed);
        self.failed.swap(0, Relaxed)
    }

    /// Failures so far.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn count(&self) -> usize {
        self.failed.load(Relaxed)
    }
}
