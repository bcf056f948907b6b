//! What the host kernel supplies.
#![allow(unsafe_code)] // declares an unsafe trait; contains no unsafe block

use pagoda_addr::{Frame, Page, PageRange, PhysMap};
use pagoda_sync::{CpuId, CpuSet, Members};

use crate::{OutOfFrames, PageSize};

/// Something that left a page table, and that no CPU knows any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Released {
    /// A table, allocated by [`Platform::alloc_table`].
    Table(Frame),
    /// A leaf's memory: one reference less to each of its frames.
    Page {
        /// The first frame.
        frame: Frame,
        /// How many: `size.pages()`.
        size: PageSize,
    },
}

/// What has to be forgotten.
#[derive(Clone, Copy, Debug)]
pub struct FlushRange<'a> {
    /// The pages, in spans in no particular order. Meaningless when `everything` is set.
    pub spans: &'a [PageRange],
    /// The whole space: too many spans to list.
    pub everything: bool,
    /// Entries for tables changed. What is remembered of the way to any page of a span (paging-structure
    /// caches, walk caches) goes as well; each unlinked table has a page of its own in `spans`.
    pub tables: bool,
    /// A page of these was [`GLOBAL`](crate::PageFlags::GLOBAL).
    pub global: bool,
    /// The space's generation that this flush establishes.
    pub generation: u64,
}

impl FlushRange<'_> {
    /// Pages in all spans; the most there are when it is `everything`. A host compares it with the
    /// count from which on forgetting all is cheaper.
    pub fn pages(&self) -> u64 {
        if self.everything {
            return Page::LIMIT;
        }
        self.spans.iter().fold(0, |sum: u64, span| sum.saturating_add(span.count()))
    }

    /// Does the flush concern this page?
    pub fn contains(&self, page: Page) -> bool {
        self.everything || self.spans.iter().any(|span| span.contains(page))
    }
}

/// What a CPU may not have noticed yet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Gain {
    /// Entries where none were: leaves, and tables when [`FlushRange::tables`] is set.
    Present,
    /// More rights, or history, in leaves that were there; perhaps new entries as well.
    Rights,
}

/// Who may remember translations of one address space.
///
/// A CPU that switches to the space calls [`join`](Self::join) *before* it loads the root; a CPU
/// that switches away calls [`leave`](Self::leave) *after* it has loaded another root (and, without
/// address-space identifiers, has thereby forgotten).
#[derive(Debug, Default)]
pub struct SpaceTlb(Members);

impl SpaceTlb {
    /// Nobody remembers anything.
    pub const fn new() -> Self {
        Self(Members::new())
    }

    /// The CPUs that may remember. To be read after the entry was written and the generation
    /// advanced; [`Platform::flush`] is called at such a moment.
    #[inline]
    pub fn cpus(&self) -> &CpuSet {
        self.0.cpus()
    }

    /// `cpu` is about to load the root. Returns the generation that it will see at least.
    #[inline]
    pub fn join(&self, cpu: CpuId) -> u64 {
        self.0.join(cpu)
    }

    /// `cpu` has loaded another root and remembers nothing of this space.
    #[inline]
    pub fn leave(&self, cpu: CpuId) {
        self.0.leave(cpu);
    }

    /// Counts the flushes of this space.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.0.generation()
    }

    /// Between writing entries and reading the set: the new generation.
    pub(crate) fn advance(&self) -> u64 {
        self.0.advance()
    }
}

/// What a host kernel supplies.
///
/// The lock is held while tables are allocated and, when a batch is full, while it flushes. If
/// flushing means to wait for other CPUs, then whoever spins on the lock has to serve the requests
/// of others meanwhile: see [`pagoda_sync::ServingSpin`].
///
/// # Safety
/// `alloc_table` returns a frame that nobody else uses, that the [`PhysMap`] reaches, and that is
/// zeroed; it stays so until `release`. `flush` returns only when no CPU in `space.cpus()` (read
/// after the call began) can use a translation that it concerns any more. `release` is called only
/// for what no CPU can reach through the table any more.
pub unsafe trait Platform: PhysMap {
    /// The lock of one page table.
    type Lock: lock_api::RawMutex;

    /// A zeroed frame for a table.
    fn alloc_table(&self) -> Result<Frame, OutOfFrames>;

    /// Takes back what left a page table. Called only after the flush, or for what was never
    /// reachable.
    fn release(&self, item: Released);

    /// As [`release`](Self::release) of a table, all of whose words are zero again: a host may keep it
    /// for the next [`alloc_table`](Self::alloc_table), which need not clear it.
    fn release_zeroed_table(&self, table: Frame) {
        self.release(Released::Table(table));
    }

    /// As [`release`](Self::release) of a 4 KiB page for each of `frames`; a host that frees many
    /// frames cheaper than one by one says how.
    fn release_pages(&self, frames: &[Frame]) {
        for &frame in frames {
            self.release(Released::Page { frame, size: PageSize::K4 });
        }
    }

    /// Makes every CPU in `space.cpus()` forget.
    fn flush(&self, space: &SpaceTlb, what: FlushRange<'_>);

    /// More is allowed than before, in a format in which a fault alone does not make a CPU notice
    /// ([`Format::remembers`](crate::Format::remembers)). Called when a cursor is dropped, with the
    /// lock still held; never on x86-64.
    ///
    /// By default every CPU forgets, so that nobody faults for nothing. A host may do less: what the
    /// machine needs so that its walks see what was written (DSB on AArch64), and nothing else, for
    /// pages for which its fault handler looks into the tables and then makes its own CPU forget.
    /// It is a matter of progress, not of safety. `what.tables`: entries for tables are new; where
    /// absence is remembered, that of the way goes too.
    fn gained(&self, space: &SpaceTlb, what: FlushRange<'_>, gain: Gain) {
        let _ = gain;
        self.flush(space, what);
    }

    /// Is a panic under way? Hosts that unwind (tests) say so, lest a second panic hides the first.
    fn unwinding(&self) -> bool {
        false
    }
}

// SAFETY: a reference forwards to an implementer that keeps the contract.
unsafe impl<P: Platform + ?Sized> Platform for &P {
    type Lock = P::Lock;

    fn alloc_table(&self) -> Result<Frame, OutOfFrames> {
        (**self).alloc_table()
    }
    fn release(&self, item: Released) {
        (**self).release(item);
    }
    fn release_zeroed_table(&self, table: Frame) {
        (**self).release_zeroed_table(table);
    }
    fn release_pages(&self, frames: &[Frame]) {
        (**self).release_pages(frames);
    }
    fn flush(&self, space: &SpaceTlb, what: FlushRange<'_>) {
        (**self).flush(space, what);
    }
    fn gained(&self, space: &SpaceTlb, what: FlushRange<'_>, gain: Gain) {
        (**self).gained(space, what, gain);
    }
    fn unwinding(&self) -> bool {
        (**self).unwinding()
    }
}
