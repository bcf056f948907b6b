//! Counting, checking, and Linux's `/proc/slabinfo`.
#![allow(unsafe_code)] // walks the list of caches

use core::fmt;
use core::sync::atomic::Ordering;

use lock_api::RawMutex;
use pagoda_sync::Cpus;

use crate::cache::CacheShelf;
use crate::chunk::{CHUNK, CHUNK_OVERHEAD, GRANULE};
use crate::classes::{CLASSES, NAMES, SIZES, SLAB_CLASSES, Tag};
use crate::heap::State;
use crate::magazine::some_area;
use crate::shelf::Shelf;
use crate::slab::capacity;
use crate::sync::observe;
use crate::{Heap, Misuse, MisuseKind, PageSource, Report};
use pagoda_addr::PAGE_SHIFT;

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
    /// Bytes of small blocks waiting in per-CPU and shared caches, or in quarantine.
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
    pages: usize,
    slabs: usize,
    active_slabs: usize,
}

impl State {
    /// Object cache `index`, newest first.
    fn cache(&self, index: usize) -> Option<&CacheShelf> {
        let mut cache = self.caches?;
        for _ in 0..index {
            // SAFETY: *cache-listed*; whoever has the state holds the lock.
            cache = unsafe { cache.as_ref() }.next?;
        }
        // SAFETY: as above.
        Some(unsafe { cache.as_ref() })
    }

    /// Bytes of objects in the magazines of caches.
    fn in_locals(&self) -> usize {
        let (mut bytes, mut next) = (0, self.caches);
        while let Some(cache) = next {
            // SAFETY: *cache-listed*; whoever has the state holds the lock.
            let cache = unsafe { cache.as_ref() };
            bytes += cache.locals.map_or(0, |locals| locals.len()) * cache.shelf.stride;
            next = cache.next;
        }
        bytes
    }

    fn shelves(&self) -> impl Iterator<Item = &Shelf> {
        self.shelves.iter().chain((0..).map_while(|index| Some(&self.cache(index)?.shelf)))
    }

    /// Line `index` of slabinfo: classes first, caches after them.
    fn row(&self, index: usize) -> Option<Row> {
        if let Some(shelf) = self.shelves.get(index) {
            return Some(Row::of(shelf));
        }
        if let Some(&blocks) = self.middle.get(index - SLAB_CLASSES) {
            let (name, object) = (NAMES[index], usize::from(SIZES[index]));
            let (pages, per_slab) = (CHUNK >> PAGE_SHIFT, CHUNK / object);
            // They are cut from chunks that they share with others: as many as they would fill.
            let slabs = blocks.div_ceil(per_slab);
            return Some(Row {
                name,
                live: blocks,
                objects: blocks,
                object,
                per_slab,
                pages,
                slabs,
                active_slabs: slabs,
            });
        }
        let cache = self.cache(index - CLASSES)?;
        let mut row = Row::of(&cache.shelf);
        let cached = cache.locals.map_or(cache.waiting, |locals| locals.len());
        row.live = row.live.saturating_sub(cached);
        Some(row)
    }
}

impl<S: PageSource, C: Cpus, R: RawMutex, P: Report> Heap<S, C, R, P> {
    /// Where every byte is.
    pub fn stats(&self) -> Stats {
        let mut cached = 0;
        for (class, &size) in SIZES.iter().enumerate() {
            cached += self.cached(class) * usize::from(size);
        }
        let state = self.state.lock();
        cached += state.quarantine.bytes() + state.in_locals();
        let mut stats = Stats {
            taken: self.taken.load(Ordering::Relaxed),
            live: state.unclassed,
            cached,
            free: state.pool.free * GRANULE,
            runs: state.runs,
            overhead: state.pool.count * CHUNK_OVERHEAD + state.own,
        };
        for (blocks, size) in state.middle.iter().zip(&SIZES[SLAB_CLASSES..]) {
            stats.live += blocks * usize::from(*size);
        }
        state.shelves().for_each(|shelf| stats.add(shelf));
        // What lies in magazines and depots is out of its shelf, but in nobody's hands.
        stats.live = stats.live.saturating_sub(cached + state.mapped.bytes());
        stats.overhead += state.mapped.bytes();
        stats
    }

    /// Blocks of a class in magazines and in the depot.
    pub(crate) fn cached(&self, class: usize) -> usize {
        let in_depot = self.depots[class].lock().len();
        let _state = self.state.lock();
        let areas = self.areas.iter().take(self.cpus.limit()).filter_map(|area| {
            // SAFETY: an area is given back under the lock that is held; see *magazine-own*.
            some_area(area.load(observe())).map(|area| unsafe { area.as_ref() })
        });
        in_depot + areas.map(|area| area.of(class as u8).len()).sum::<usize>()
    }

    /// Walks every record of the heap and compares: bitmaps, lists, sums. Costs time in proportion
    /// to the heap. Reports what does not agree.
    ///
    /// The sum over all columns is compared by [`Stats::accounted`], which only holds still when no
    /// other CPU is in the heap.
    pub fn check(&self) -> Result<Stats, MisuseKind> {
        let damage = {
            let state = self.state.lock();
            let kind = MisuseKind::Damaged;
            let pool = state.pool.check().err().map(|damage| {
                let block = damage.0;
                Misuse { cache: "kmalloc-pool", block, ..Misuse::at(kind, block) }
            });
            pool.or_else(|| {
                state.shelves().find_map(|shelf| {
                    let block = shelf.check().err()?;
                    let cache = shelf.name;
                    let size = shelf.stride;
                    Some(Misuse { cache, block, size, ..Misuse::at(kind, block) })
                })
            })
        };
        match damage {
            Some(misuse) => Err(self.tell(misuse)),
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
            let row = self.state.lock().row(index);
            let Some(mut row) = row else { break };
            if index < CLASSES {
                // What lies in magazines and the depot is in nobody's hands.
                row.live = row.live.saturating_sub(self.cached(index));
            }
            row.write(out)?;
        }
        Ok(())
    }
}

impl Row {
    fn of(shelf: &Shelf) -> Self {
        // The slabs of a size class are of different lengths: their mean, so that a reader who
        // multiplies gets the whole.
        let whole = shelf.objects * shelf.stride + shelf.overhead;
        let (span, per_slab) = match (shelf.tag, shelf.slabs) {
            (Tag::Cache(order), _) => {
                let span = order.bytes() as usize;
                (span, capacity(span, shelf.stride))
            }
            (_, 0) => (shelf.span_wanted(), capacity(shelf.span_wanted(), shelf.stride)),
            (_, slabs) => (whole.div_ceil(slabs), shelf.objects.div_ceil(slabs)),
        };
        Self {
            name: shelf.name,
            live: shelf.live,
            objects: shelf.objects,
            object: shelf.stride,
            per_slab,
            pages: span.div_ceil(1 << PAGE_SHIFT),
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
