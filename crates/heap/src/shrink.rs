//! Shrinkers: what the host can give up when memory is short.
//!
//! When the page source has no more, the heap first brings home what lies in its own caches
//! (`drain`), and then asks the host's shrinkers, lowest priority first, one at a time, and tries
//! again after each, before the caller hears no. No lock of the heap is held meanwhile.

use core::sync::atomic::Ordering;

use lock_api::RawMutex;
use pagoda_sync::Cpus;

use crate::{Heap, HeapError, PageSource, Report};

/// Something that can free memory when asked to: a cache of what could be made again.
pub trait Shrink: Sync {
    /// Memory is short by at least so many bytes. Frees what it can spare, to the heap or to the page
    /// source; returns the bytes freed, as far as it knows.
    ///
    /// Called from within an allocation, in the context of whoever allocates: it must not wait for a
    /// lock that such a caller may hold. What it allocates itself finds no shrinkers.
    fn shrink(&self, bytes: usize) -> usize;
}

/// Shrinkers that a heap may have.
pub(crate) const SHRINKERS: usize = 16;

/// By priority, lowest first; what is `None` is behind.
pub(crate) type Shrinkers = [(u8, Option<&'static dyn Shrink>); SHRINKERS];

impl<S: PageSource, C: Cpus, R: RawMutex, P: Report> Heap<S, C, R, P> {
    /// Adds a shrinker. Those of the lowest priority are asked first: they lose least. The same one
    /// may be added once for each of several priorities. There is room for sixteen; the error is
    /// [`HeapError::Limit`].
    pub fn add_shrinker(
        &self,
        priority: u8,
        shrinker: &'static dyn Shrink,
    ) -> Result<(), HeapError> {
        let mut state = self.state.lock();
        let all = &mut state.shrinkers;
        let used = all.iter().take_while(|(_, shrinker)| shrinker.is_some()).count();
        let slot = all.get_mut(used).filter(|_| !self.failing.now());
        let Some(slot) = slot else { return Err(HeapError::Limit) };
        *slot = (priority, Some(shrinker));
        // Stable: of equal ones the first stays first.
        let at = all[..used].partition_point(|&(other, _)| other <= priority);
        all[at..=used].rotate_right(1);
        Ok(())
    }

    /// Takes a shrinker away, for every priority. Another CPU may still be in a call of it.
    pub fn remove_shrinker(&self, shrinker: &'static dyn Shrink) {
        let mut state = self.state.lock();
        let gone = |other: &dyn Shrink| core::ptr::addr_eq(other, shrinker);
        let mut kept = [(0, None); SHRINKERS];
        let stay = state.shrinkers.iter().filter(|(_, other)| other.is_some_and(|o| !gone(o)));
        kept.iter_mut().zip(stay).for_each(|(slot, entry)| *slot = *entry);
        state.shrinkers = kept;
    }

    /// Tries to make `bytes` available: with step 0 from the heap's own caches, with each further one
    /// by the next shrinker. False when there is no further one. No lock is held.
    #[cold]
    pub(crate) fn reclaim(&self, step: usize, bytes: usize) -> bool {
        let Some(index) = step.checked_sub(1) else {
            self.squeeze();
            return true;
        };
        let shrinker = self.state.lock().shrinkers.get(index).and_then(|entry| entry.1);
        let Some(shrinker) = shrinker else { return false };
        if self.shrinking.swap(true, Ordering::Acquire) {
            // From within a shrinker; or another CPU is at it, and this one does not wait for that.
            return false;
        }
        shrinker.shrink(bytes);
        self.shrinking.store(false, Ordering::Release);
        // What was freed lies in magazines.
        self.squeeze();
        true
    }
}
