//! Internal failures, one at a time: every step that may find nothing asks whether it is to fail now.
//! Only tests can say yes; elsewhere the question vanishes.

#[cfg(test)]
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Which question is answered with yes.
#[derive(Default)]
pub(crate) struct Failing {
    /// Questions until then; 0: none.
    #[cfg(test)]
    left: AtomicU64,
}

impl Failing {
    /// Is this step to fail?
    #[inline(always)]
    pub(crate) fn now(&self) -> bool {
        #[cfg(test)]
        {
            let left = self.left.load(Relaxed);
            self.left.store(left.saturating_sub(1), Relaxed);
            left == 1
        }
        #[cfg(not(test))]
        false
    }

    /// The `nth` question from now on is answered with yes; 0: none.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn set(&self, nth: u64) {
        self.left.store(nth, Relaxed);
    }

    /// Is a yes still to come?
    #[cfg(all(test, not(loom)))]
    pub(crate) fn is_set(&self) -> bool {
        self.left.load(Relaxed) != 0
    }
}
