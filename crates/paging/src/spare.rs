//! Tables allocated aside, before an operation may need them (*prepare-commit*).

use core::sync::atomic::Ordering;

use pagoda_addr::Frame;

use crate::slot::slot;
use crate::{OutOfFrames, Platform};

/// Zeroed tables that nobody can reach yet, chained through their first words (the number of the
/// next frame plus one; 0 ends the chain). What is left over goes back when the value is dropped.
pub(crate) struct Spare<'p, P: Platform> {
    platform: &'p P,
    first: Option<Frame>,
}

impl<'p, P: Platform> Spare<'p, P> {
    /// `count` tables or none.
    pub(crate) fn allocate(platform: &'p P, count: u64) -> Result<Self, OutOfFrames> {
        let mut spare = Self { platform, first: None };
        for _ in 0..count {
            let table = platform.alloc_table()?;
            let next = spare.first.map_or(0, |frame| frame.number() + 1);
            slot(platform, table, 0).store(next, Ordering::Relaxed);
            spare.first = Some(table);
        }
        Ok(spare)
    }

    /// One of them, zeroed. Whoever counted right never hears no.
    pub(crate) fn pop(&mut self) -> Result<Frame, OutOfFrames> {
        let Some(table) = self.first else {
            debug_assert!(false, "fewer tables were prepared than are needed");
            return self.platform.alloc_table();
        };
        let next = slot(self.platform, table, 0).swap(0, Ordering::Relaxed);
        self.first = next.checked_sub(1).and_then(Frame::new);
        Ok(table)
    }
}

impl<P: Platform> Drop for Spare<'_, P> {
    fn drop(&mut self) {
        while self.first.is_some() {
            let Ok(table) = self.pop() else { return };
            self.platform.release_zeroed_table(table);
        }
    }
}
