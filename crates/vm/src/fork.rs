//! Fork: a second space that sees the same bytes until either side writes.
//!
//! Plain copy of the page table: every present leaf of a region that the child inherits is entered
//! into the child's table with one more reference to its frame; private leaves lose the right to
//! write on both sides, and are marked ([`FORKED`]). The parent's stale writable translations are gone before fork returns.

use pagoda_paging::{Cursor, FlushBatch, Format, PageFlags, PageTable};

use crate::ahead::Streams;
use crate::guard::copy_guards;
use crate::region::Window;
use crate::space::{ANONYMOUS, FORKED, Inner, pages};
use crate::{AddressSpace, Locking, MapFlags, VmError, VmPlatform};

/// Pages between regions over which a run goes on.
const NEAR: u64 = 32;

/// What the leaves of a region become in the child.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Kind {
    shared: bool,
    anonymous: bool,
}

impl<F: Format, P: VmPlatform> AddressSpace<F, P> {
    /// A copy of this space over `table`, an empty page table. On failure this space is as before
    /// (a page may have lost the right to write that the next write gets back).
    pub fn fork(&self, table: PageTable<F, P>) -> Result<Self, VmError> {
        let child = Self::new(table, self.layout);
        let mut parent = self.lock();
        let parent = &mut *parent;
        {
            let mut inner = child.inner.try_lock().ok_or(VmError::Invalid)?;
            let inner = &mut *inner;
            inner.limits = parent.limits;
            inner.brk = parent.brk;
            inner.stack = parent.stack;
            inner.lazy = parent.lazy;
            inner.streams = Streams::new(parent.streams.policy());
            self.copy_regions(parent, inner)?;
            let mut batch = self.table.batch();
            let copied = self.copy_leaves(parent, inner, &child.table, &mut batch);
            batch.flush_now();
            copied?;
        }
        Ok(child)
    }

    /// The regions that the child inherits, with its counts: the shape of the tree is copied, and
    /// nothing is searched.
    fn copy_regions(&self, parent: &Inner<P>, child: &mut Inner<P>) -> Result<(), VmError> {
        let mut locked = false;
        let (stats, charged) = (&mut child.stats, &mut child.charged);
        child.regions = parent.regions.copy(|entry| {
            let region = &entry.value;
            if region.flags.contains(MapFlags::DONT_FORK) {
                return Ok(None);
            }
            if region.is_counted() {
                if !parent.may_charge(self.platform(), entry.pages()) {
                    return Err(VmError::OutOfMemory);
                }
                *charged += entry.pages();
            }
            let region = region.clone();
            if region.flags.contains(MapFlags::WIPE_ON_FORK) {
                region.touched.forget((0, u64::MAX));
            }
            locked |= region.flags.contains(MapFlags::LOCKED);
            stats.promise(&region, entry.pages(), true);
            Ok(Some(region))
        })?;
        if locked {
            // Memory locks are not inherited, and regions may be alike without.
            let all = (0, u64::MAX);
            child.regions.change(all, |region| {
                let locked = region.flags.contains(MapFlags::LOCKED);
                region.flags.remove(Locking::FLAGS);
                locked
            });
            child.stats.locked = 0;
        }
        Ok(())
    }

    fn copy_leaves(
        &self,
        parent: &Inner<P>,
        child: &mut Inner<P>,
        table: &PageTable<F, P>,
        batch: &mut FlushBatch<'_, P>,
    ) -> Result<(), VmError> {
        let all = pages((0, self.layout.limit.block().number())).ok_or(VmError::Invalid)?;
        let mut from = self.table.cursor(all).map_err(|_| VmError::OutOfRange)?;
        // Nobody else knows the child's table; trying keeps two locks of one rank from looking like
        // a deadlock.
        let mut to = table.try_cursor(all).ok_or(VmError::Invalid)?;
        // One pass for each run of regions of one kind that follow each other closely.
        let mut run: Option<(Window, Kind)> = None;
        for entry in parent.regions.all() {
            let region = &entry.value;
            let stays = region.flags.intersects(MapFlags::DONT_FORK | MapFlags::WIPE_ON_FORK);
            let window = region.touched.within((entry.start, entry.end));
            if !stays && window.0 >= window.1 {
                continue;
            }
            let kind = Kind { shared: region.is_shared(), anonymous: region.is_anonymous() };
            let alone = stays || region.touched.has_guards();
            match &mut run {
                Some((before, same)) if !alone && *same == kind && window.0 - before.1 < NEAR => {
                    before.1 = window.1;
                    continue;
                }
                _ => {}
            }
            if let Some((before, kind)) = run.take() {
                self.copy_run(before, kind, child, &mut from, &mut to, batch)?;
            }
            if stays {
                continue;
            }
            if alone {
                self.copy_run(window, kind, child, &mut from, &mut to, batch)?;
                copy_guards(&mut from, &mut to, window)?;
            } else {
                run = Some((window, kind));
            }
        }
        run.map_or(Ok(()), |(last, kind)| {
            self.copy_run(last, kind, child, &mut from, &mut to, batch)
        })
    }

    /// The leaves of a window in which all regions are of one kind.
    fn copy_run(
        &self,
        window: Window,
        kind: Kind,
        child: &mut Inner<P>,
        from: &mut Cursor<'_, F, P>,
        to: &mut Cursor<'_, F, P>,
        batch: &mut FlushBatch<'_, P>,
    ) -> Result<(), VmError> {
        let range = pages(window).ok_or(VmError::Invalid)?;
        let decide = |old: PageFlags| match old.contains(ANONYMOUS) {
            _ if kind.shared => old,
            true => (old - PageFlags::WRITE) | FORKED,
            false => old - PageFlags::WRITE,
        };
        let copied = from.copy_to(range, to, batch, decide, |flags, frames| {
            self.platform().share_many(frames);
            child.stats.pages_came(kind.anonymous, flags, frames.len() as u64);
        });
        copied.map_err(|_| VmError::OutOfMemory)
    }
}
