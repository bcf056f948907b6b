//! Counting, checking, and Linux's `/proc/slabinfo`.
#![allow(unsafe_code)] // walks the list of caches

use core::fmt;
use core::sync::atomic::Ordering;

use lock_api::RawMutex;
use pagoda_sync::Cpus;

use crate::classes::CLASSES;
use crate::heap::State;
use crate::shelf::Shelf;
use crate::{Heap, Misuse, MisuseKind, PageSource, Report};

/// Where every byte is that the heap has taken from its page source.
///
/// *heap-conservation*: `taken = live + cached + free + runs + overhead`, whenever no call is in
/// progress on another CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Bytes taken from the page source and not given back.
    pub taken: usize,
    /// Bytes of small blocks and cache objects in their owners' hands, rounded up to their size
    /// class.
    pub live: usize,
    /// Bytes of small blocks waiting in per-CPU and shared caches.
    pub cached: usize,
    /// Bytes free for small blocks and cache objects.
    pub free: usize,
    /// Bytes of whole-page blocks in their owners' hands.
    pub runs: usize,
    /// Bytes of the heap's own records, and of room too small for a block.
    pub overhead: usize,
}

impl Stats {
    /// The sum of all columns; equals `taken` (*heap-conservation*).
    pub const fn accounted(&self) -> usize {
        self.live + self.cached + self.free + self.runs + self.overhead
    }

    fn add(&mut self, shelf: &Shelf) {
        self.live += shelf.live * shelf.stride;
        self.free += (shelf.objects - shelf.live) * shelf.stride;
        self.overhead += shelf.overhead;
    }
}

/// One line of slabinfo.
struct Row {
    name: &'static str,
    live: usize,
    objects: usize,
    object: usize,
    per_slab: usize,
    pages: u64,
    slabs: usize,
    active_slabs: usize,
}

impl State {
    /// The shelf `index`: classes first, caches after them.
    fn shelf(&self, index: usize) -> Option<&Shelf> {
        if let Some(shelf) = self.classes.get(index) {
            return Some(shelf);
        }
        let mut cache = self.caches?;
        for _ in CLASSES..index {
            // SAFETY: *cache-listed*; whoever has the state holds the lock.
            cache = unsafe { cache.as_ref() }.next?;
        }
        // SAFETY: as above.
        Some(&unsafe { cache.as_ref() }.shelf)
    }

    fn shelves(&self) -> impl Iterator<Item = &Shelf> {
        (0..).map_while(|index| self.shelf(index))
    }
}

impl<S: PageSource, C: Cpus, R: RawMutex, P: Report> Heap<S, C, R, P> {
    /// Where every byte is.
    pub fn stats(&self) -> Stats {
        let state = self.state.lock();
        let mut stats = Stats {
            taken: self.taken.load(Ordering::Relaxed),
            runs: state.runs,
            ..Stats::default()
        };
        state.shelves().for_each(|shelf| stats.add(shelf));
        stats
    }

    /// Walks every record of the heap and compares: bitmaps, lists, sums. Costs time in proportion
    /// to the heap. Reports what does not agree.
    ///
    /// The sum over all columns is compared by [`Stats::accounted`], which only holds still when no
    /// other CPU is in the heap.
    pub fn check(&self) -> Result<Stats, Misuse> {
        let damage = {
            let state = self.state.lock();
            state.shelves().find_map(|shelf| {
                let block = shelf.check().err()?;
                let (kind, cache) = (MisuseKind::Damaged, shelf.name);
                Some(Misuse { kind, address: block, cache, block, size: shelf.stride })
            })
        };
        match damage {
            Some(misuse) => {
                self.report.misuse(&misuse);
                Err(misuse)
            }
            None => Ok(self.stats()),
        }
    }

    /// Writes the text of Linux's `/proc/slabinfo` (version 2.1), so that `slabtop` reads it. The
    /// lock is not held while `out` is written to.
    pub fn slabinfo(&self, out: &mut impl fmt::Write) -> fmt::Result {
        out.write_str(
            "slabinfo - version: 2.1\n# name            <active_objs> <num_objs> <objsize> \
             <objperslab> <pagesperslab> : tunables <limit> <batchcount> <sharedfactor> \
             : slabdata <active_slabs> <num_slabs> <sharedavail>\n",
        )?;
        for index in 0.. {
            let Some(row) = self.state.lock().shelf(index).map(Row::of) else { break };
            row.write(out)?;
        }
        Ok(())
    }
}

impl Row {
    fn of(shelf: &Shelf) -> Self {
        Self {
            name: shelf.name,
            live: shelf.live,
            objects: shelf.objects,
            object: shelf.stride,
            per_slab: crate::slab::capacity(shelf.order.bytes() as usize, shelf.stride),
            pages: shelf.order.count(),
            slabs: shelf.slabs,
            active_slabs: shelf.slabs - shelf.empty,
        }
    }

    fn write(&self, out: &mut impl fmt::Write) -> fmt::Result {
        let Self { name, live, objects, object, per_slab, pages, slabs, active_slabs } = self;
        writeln!(
            out,
            "{name:<17} {live:6} {objects:6} {object:6} {per_slab:4} {pages:4} : tunables \
             {:4} {:4} {:4} : slabdata {active_slabs:6} {slabs:6} {:6}",
            0, 0, 0, 0
        )
    }
}
