//! Counting.

/// Where every byte is that the heap has taken from its page source.
///
/// *heap-conservation*: `taken = live + cached + free + runs + overhead`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Bytes taken from the page source and not given back.
    pub taken: usize,
    /// Bytes of small blocks in their owners' hands, rounded up to their size class.
    pub live: usize,
    /// Bytes of small blocks waiting in per-CPU and shared caches.
    pub cached: usize,
    /// Bytes free for small blocks.
    pub free: usize,
    /// Bytes of whole-page blocks in their owners' hands.
    pub runs: usize,
    /// Bytes of the heap's own records, and of room too small for a block.
    pub overhead: usize,
}
