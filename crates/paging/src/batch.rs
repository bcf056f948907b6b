//! The duty to flush, and then to release.

use pagoda_addr::PageRange;

use crate::{Platform, Released, SpaceTlb};

/// Remembers which pages have to be flushed and what may be released afterwards.
///
/// Holds up to 64 things to release; when it is full, it flushes and releases early. To be ended
/// with [`finish`](Self::finish) before anybody relies on the change: before a system call returns,
/// before a lock that protects a move is dropped. Dropping a batch with something in it does the
/// work too, and panics in debug builds.
#[must_use = "a batch is a duty: call `finish`"]
pub struct FlushBatch<'a, P: Platform> {
    platform: &'a P,
    space: &'a SpaceTlb,
}

impl<'a, P: Platform> FlushBatch<'a, P> {
    pub(crate) fn new(platform: &'a P, space: &'a SpaceTlb) -> Self {
        Self { platform, space }
    }

    /// Flushes, then releases.
    pub fn finish(self) {
        let _ = (self.platform, self.space);
        todo!()
    }

    /// Nothing to flush and nothing to release?
    pub fn is_empty(&self) -> bool {
        todo!()
    }

    /// Adds pages to flush: for callers that changed what hardware may remember by other means.
    pub fn flush_also(&mut self, _range: PageRange) {
        todo!()
    }

    /// Releases `item` after the next flush.
    pub fn release_also(&mut self, _item: Released) {
        todo!()
    }
}
