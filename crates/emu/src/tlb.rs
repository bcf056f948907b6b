//! What one CPU remembers: translations, and the way to them.

use std::collections::{BTreeMap, BTreeSet};

use pagoda_addr::{Frame, PageRange};
use pagoda_paging::{FlushRange, PageSize};
use pagoda_sync::CpuId;

use crate::walk::{Found, Walk, Way};

/// A CPU: the root that it has loaded and what it remembers of it. Forgets only when told, or by
/// chance when there is no room.
pub(crate) struct Cpu {
    pub(crate) id: CpuId,
    pub(crate) root: Option<Frame>,
    /// By size and first page.
    leaves: BTreeMap<(PageSize, u64), Found>,
    /// By level of the table and first page behind it.
    ways: BTreeMap<(u32, u64), Way>,
    /// Entries that were absent, on machines that remember that: level and first page behind.
    absences: BTreeSet<(u32, u64)>,
    capacity: usize,
    random: u64,
}

impl Cpu {
    pub(crate) fn new(id: CpuId, capacity: usize, seed: u64) -> Self {
        let random = (seed ^ (id.index() as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1;
        let (leaves, ways) = (BTreeMap::new(), BTreeMap::new());
        Self { id, root: None, leaves, ways, absences: BTreeSet::new(), capacity, random }
    }

    /// Loads a root: everything but global pages is forgotten.
    pub(crate) fn load(&mut self, root: Option<Frame>) {
        self.root = root;
        self.ways.clear();
        self.absences.clear();
        self.leaves.retain(|_, leaf| leaf.global);
    }

    /// Everything that is remembered about `page`: of several sizes at once, perhaps.
    pub(crate) fn leaves_of(&self, page: u64) -> impl Iterator<Item = Found> + '_ {
        PageSize::ALL
            .into_iter()
            .filter_map(move |size| self.leaves.get(&(size, page & !(size.pages() - 1))).copied())
    }

    /// Every remembered table on the way to `page`.
    pub(crate) fn ways_of(&self, page: u64) -> impl Iterator<Item = Way> + '_ {
        (1..5).filter_map(move |level| self.ways.get(&(level, first(page, level))).copied())
    }

    /// The levels in which the entry over `page` is remembered as absent.
    pub(crate) fn absences_of(&self, page: u64) -> impl Iterator<Item = u32> + '_ {
        (1..6).filter(move |&level| self.absences.contains(&(level, first(page, level - 1))))
    }

    /// The first page behind each entry that is remembered as absent.
    pub(crate) fn absences(&self) -> impl Iterator<Item = u64> + '_ {
        self.absences.iter().map(|&(_, page)| page)
    }

    /// Remembers that the entry of `level` over `page` is absent.
    pub(crate) fn remember_absence(&mut self, page: u64, level: u32) {
        self.absences.insert((level, first(page, level - 1)));
    }

    /// All that is remembered, by first page.
    pub(crate) fn leaves(&self) -> impl Iterator<Item = (u64, Found)> + '_ {
        self.leaves.iter().map(|(&(_, page), &leaf)| (page, leaf))
    }

    /// All remembered tables, by the first page behind each.
    pub(crate) fn ways(&self) -> impl Iterator<Item = (u64, Way)> + '_ {
        self.ways.iter().map(|(&(_, page), &way)| (page, way))
    }

    /// Forgets one page: as a fault on it does, or its handler.
    pub(crate) fn forget(&mut self, page: u64) {
        for size in PageSize::ALL {
            self.leaves.remove(&(size, page & !(size.pages() - 1)));
        }
        for level in 1..6 {
            self.absences.remove(&(level, first(page, level - 1)));
        }
    }

    /// Remembers the tables on the way to `page`, also when the way ended in a fault.
    pub(crate) fn remember_way(&mut self, page: u64, walk: &Walk) {
        for way in &walk.ways {
            self.ways.insert((way.level, first(page, way.level)), *way);
        }
    }

    /// Remembers the leaf that a walk to `page` found.
    pub(crate) fn remember(&mut self, page: u64, walk: &Walk) {
        let Some(found) = walk.found else { return };
        self.leaves.insert((found.size, page & !(found.size.pages() - 1)), found);
        while self.leaves.len() > self.capacity {
            let victim = self.draw() as usize % self.leaves.len();
            let Some(&key) = self.leaves.keys().nth(victim) else { return };
            self.leaves.remove(&key);
        }
    }

    /// Does what a host does at least when it is asked for `what`, and nothing beyond it: global
    /// pages stay unless they are mentioned, and so does the way unless tables are.
    pub(crate) fn flush(&mut self, what: &FlushRange<'_>) {
        let concerned = |start: u64, count: u64| {
            what.everything
                || what.spans.iter().any(|span| overlaps(span, start, start.saturating_add(count)))
        };
        self.leaves.retain(|&(size, page), leaf| {
            (leaf.global && !what.global) || !concerned(page, size.pages())
        });
        if what.tables || what.everything {
            self.ways.retain(|&(level, page), _| !concerned(page, covered(level)));
        }
        // Without tables, only absent entries that can have become one of the leaves.
        let inside = |start: u64, end: u64| {
            let holds =
                |span: &PageRange| span.start().number() <= start && end <= span.end_number();
            what.spans.iter().any(holds)
        };
        self.absences.retain(|&(level, page)| {
            let count = covered(level - 1);
            let gone =
                inside(page, page.saturating_add(count)) || (what.tables && concerned(page, count));
            !gone && !what.everything
        });
    }

    /// xorshift64.
    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// Pages behind a table of `level`.
fn covered(level: u32) -> u64 {
    1 << (9 * level)
}

/// The first page behind the table of `level` on the way to `page`.
fn first(page: u64, level: u32) -> u64 {
    page & !(covered(level) - 1)
}

fn overlaps(span: &PageRange, start: u64, end: u64) -> bool {
    span.start().number() < end && start < span.end_number()
}
