//! One program's address space.
//!
//! Nouns: the *regions* say what the program was promised; the *page table* says what is there now.
//! A page that is promised and absent is made present by a *fault*.
//!
//! # Invariants
//!
//! *table-under-regions*: a leaf stands in the table only under a region that allows at least what
//! the leaf allows. Both change only with the lock of the regions held.
//!
//! *copy-on-write*: a leaf of a private region allows writing only while its frame has one
//! reference. Such a reference is ours, and only a fork of this space can add another, which needs
//! the lock; so "one" cannot change under a fault that has seen it.
//!
//! *class-marks*: a leaf marked [`ANONYMOUS`] holds memory of this program alone, one marked
//! [`SHARED`] belongs to an object that others see. One with neither is a file's, in the region of a file, and the
//! page of zeroes in anonymous memory. The resident sizes are exactly the counts of the first
//! three; the page of zeroes is not counted, as on Linux. A leaf with both marks ([`FORKED`]) counts
//! as the first: a fork has shared it, and nobody has written here since.
//!
//! *lazy*: a leaf marked [`ANONYMOUS`] that is not dirty holds what the program has said it does
//! not need. It does not allow writing, so nobody writes without the mark going; and with the lock
//! held it may be let go of at any time.
//!
//! *books*: what this space has promised is what it has told the machine's [`Commit`](crate::Commit);
//! in between a call may have charged more, which is settled when it gives up its [`Change`](crate::books::Change).
//!
//! *touched*: every leaf of a region lies in the window that the region remembers as touched.
//!
//! *flushed-before-return*: a call that takes rights away finishes its
//! [`FlushBatch`](pagoda_paging::FlushBatch) before it gives up the lock, hence before a moved or
//! copied page can be seen at two values, and before a fork's parent returns.
//!
//! *prepare-commit*: a call first checks, then allocates, then changes; an error for exhaustion
//! leaves regions and contents as they were. (As Linux does, protecting or advising a range with
//! holes acts on the part before the hole or around it, and then reports the hole; a move to a fixed
//! place first unmaps what is there; a stack that has grown for a fault stays so.)
//!
//! Lock order: the lock of the regions, then an object's, then the page table's.
//!
//! Left out: large pages, swap, and reclaim of anything but memory that was freed lazily. Anonymous
//! regions that are alike always merge; Linux keeps some apart (after moves and forks), where a later
//! `mremap` over the border then fails with `EFAULT` and here succeeds.

use lock_api::{Mutex, MutexGuard};
use pagoda_addr::{Frame, Page, PageRange, UserRange, UserRangeError, VirtAddr, VirtRange};
use pagoda_paging::{Format, PageFlags, PageTable};

use crate::ahead::Streams;
use crate::region::{Object, Region, Regions, Window};
use crate::tree::{Entry as Interval, PageNumber};
use crate::{FileObject, Layout, Limits, Locking, MapFlags, Policy, Prot, VmError, VmPlatform};

/// Mark of a leaf with memory of this program alone.
pub(crate) const ANONYMOUS: PageFlags = PageFlags::SOFT1;
/// Mark of a leaf that belongs to a shared object.
pub(crate) const SHARED: PageFlags = PageFlags::SOFT2;
/// Marks of a leaf with memory of this program alone that a fork has shared: others may hold
/// references. Without the second mark the only reference is ours, and nobody has to be asked.
pub(crate) const FORKED: PageFlags = PageFlags::SOFT1.union(PageFlags::SOFT2);

/// May a leaf of a private region with these flags allow writing: is it ours alone, for certain, and
/// not *lazy*?
pub(crate) fn may_be_written(flags: PageFlags) -> bool {
    const WHOLE: PageFlags = ANONYMOUS.union(PageFlags::DIRTY);
    flags & FORKED.union(PageFlags::DIRTY) == WHOLE
}

/// Was it freed lazily?
pub(crate) fn is_lazy(flags: PageFlags) -> bool {
    flags & ANONYMOUS.union(PageFlags::DIRTY) == ANONYMOUS
}

/// A private address space.
///
/// All methods take `&self` and lock inside; threads of one program share it.
pub struct AddressSpace<F: Format, P: VmPlatform> {
    pub(crate) table: PageTable<F, P>,
    pub(crate) layout: Layout,
    pub(crate) inner: Mutex<P::RegionLock, Inner<P>>,
}

/// What the lock of the regions protects.
pub(crate) struct Inner<P: VmPlatform> {
    pub(crate) regions: Regions<P>,
    pub(crate) limits: Limits,
    pub(crate) stats: SpaceStats,
    /// Start and end of the heap, in bytes.
    pub(crate) brk: (u64, u64),
    pub(crate) streams: Streams,
    /// A byte of the main stack.
    pub(crate) stack: u64,
    /// How what is mapped from now on is locked.
    pub(crate) future: Locking,
    /// Some pages may be *lazy*.
    pub(crate) lazy: bool,
    /// Pages charged to the machine's books (*books*).
    pub(crate) charged: u64,
}

/// Pages of an address space by kind. `rss` counts what is present, the others what is promised.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SpaceStats {
    /// All pages mapped.
    pub mapped: u64,
    /// The most there were.
    pub mapped_peak: u64,
    /// Private and writable, not stack.
    pub data: u64,
    /// Growing down.
    pub stack: u64,
    /// Executable and neither writable nor stack.
    pub exec: u64,
    /// Locked in memory.
    pub locked: u64,
    /// Counted in the machine's books; shared objects are counted by themselves.
    pub committed: u64,
    /// Present: the program's own memory.
    pub rss_anonymous: u64,
    /// Present: unchanged copies of files.
    pub rss_file: u64,
    /// Present: shared memory.
    pub rss_shared: u64,
    /// The most present at once.
    pub rss_peak: u64,
    /// Page tables, the root included.
    pub tables: u64,
    /// The number of regions.
    pub regions: usize,
}

impl SpaceStats {
    /// Present pages of all kinds.
    pub fn rss(&self) -> u64 {
        self.rss_anonymous + self.rss_file + self.rss_shared
    }

    /// The count that a leaf with these marks belongs to, under a region that is anonymous or not.
    #[inline]
    fn class(&mut self, anonymous: bool, flags: PageFlags) -> Option<&mut u64> {
        if flags.contains(ANONYMOUS) {
            Some(&mut self.rss_anonymous)
        } else if flags.contains(SHARED) {
            Some(&mut self.rss_shared)
        } else if anonymous {
            None
        } else {
            Some(&mut self.rss_file)
        }
    }

    #[inline]
    pub(crate) fn pages_came(&mut self, anonymous: bool, flags: PageFlags, pages: u64) {
        if let Some(count) = self.class(anonymous, flags) {
            *count += pages;
            self.rss_peak = self.rss_peak.max(self.rss());
        }
    }

    #[inline]
    pub(crate) fn pages_went(&mut self, anonymous: bool, flags: PageFlags, pages: u64) {
        if let Some(count) = self.class(anonymous, flags) {
            debug_assert!(*count >= pages, "class-marks");
            *count = count.saturating_sub(pages);
        }
    }

    /// Counts `pages` of `region` in (or out).
    pub(crate) fn promise<P: VmPlatform>(&mut self, region: &Region<P>, pages: u64, come: bool) {
        let add = |count: &mut u64| {
            *count = if come { *count + pages } else { count.saturating_sub(pages) };
        };
        add(&mut self.mapped);
        self.mapped_peak = self.mapped_peak.max(self.mapped);
        if region.flags.contains(MapFlags::LOCKED) {
            add(&mut self.locked);
        }
        if region.is_counted() {
            add(&mut self.committed);
        }
        if region.flags.contains(MapFlags::GROWS_DOWN) {
            add(&mut self.stack);
        } else if region.is_data() {
            add(&mut self.data);
        } else if region.prot.contains(Prot::EXEC) && !region.prot.contains(Prot::WRITE) {
            add(&mut self.exec);
        }
    }
}

/// What a region looks like from outside.
#[derive(Clone)]
pub struct RegionInfo {
    /// Its bytes.
    pub range: VirtRange,
    /// Protection.
    pub prot: Prot,
    /// Properties.
    pub flags: MapFlags,
    /// Shared with other address spaces (that forked off).
    pub shared: bool,
    /// Bytes from the start of the file or object; 0 for private anonymous memory.
    pub offset: u64,
    /// The file behind it.
    pub file: Option<alloc::sync::Arc<dyn FileObject>>,
    /// Overlaps the heap.
    pub heap: bool,
    /// Holds the main stack.
    pub stack: bool,
}

impl<F: Format, P: VmPlatform> AddressSpace<F, P> {
    /// An empty address space over an empty page table.
    pub fn new(table: PageTable<F, P>, layout: Layout) -> Self {
        let inner = Inner {
            regions: Regions::new(),
            limits: Limits::default(),
            stats: SpaceStats::default(),
            brk: (0, 0),
            streams: Streams::new(Policy::LINUX),
            stack: 0,
            future: Locking::Off,
            lazy: false,
            charged: 0,
        };
        Self { table, layout, inner: Mutex::new(inner) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, P::RegionLock, Inner<P>> {
        self.inner.lock()
    }

    pub(crate) fn platform(&self) -> &P {
        self.table.platform()
    }

    /// The page table: its root to load, its [`SpaceTlb`](pagoda_paging::SpaceTlb) to join. Whoever
    /// changes entries of the program's half breaks the space's invariants.
    pub fn table(&self) -> &PageTable<F, P> {
        &self.table
    }

    /// The frame that hardware starts from.
    pub fn root(&self) -> Frame {
        self.table.root()
    }

    /// Where things go.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The claim of a program about `len` bytes at `addr`, checked against the end of its half.
    pub fn user_range(&self, addr: u64, len: u64) -> Result<UserRange, UserRangeError> {
        UserRange::new(addr, len, self.layout.limit)
    }

    /// Pages in use.
    pub fn stats(&self) -> SpaceStats {
        let inner = self.lock();
        SpaceStats { tables: self.table.tables(), regions: inner.regions.len(), ..inner.stats }
    }

    /// The limits.
    pub fn limits(&self) -> Limits {
        self.lock().limits
    }

    /// Other limits; what is already there stays.
    pub fn set_limits(&self, limits: Limits) {
        self.lock().limits = limits;
    }

    /// Another policy, from now on and for children.
    pub fn set_policy(&self, policy: Policy) {
        self.lock().streams = Streams::new(policy);
    }

    /// Says that the region around `addr` is the main stack, for [`RegionInfo::stack`].
    pub fn set_stack(&self, addr: VirtAddr) {
        self.lock().stack = addr.as_u64();
    }

    /// The first region that ends above `from`. To list all, start at zero and go on from the end
    /// of each: no lock is held in between.
    pub fn next_region(&self, from: VirtAddr) -> Option<RegionInfo> {
        let inner = self.lock();
        inner.regions.find(from.block().number()).map(|entry| inner.describe(entry))
    }

    /// Takes everything out of the table in `window`, counts it out, and returns it after the flush,
    /// which is done.
    pub(crate) fn drop_pages(&self, inner: &mut Inner<P>, window: Window) -> Result<(), VmError> {
        let Inner { regions, stats, .. } = inner;
        // One pass for each run of regions of one kind: what is not marked is of that kind.
        let mut run: Option<(Window, bool)> = None;
        for entry in regions.within(window) {
            let anonymous = entry.value.is_anonymous();
            let part = (entry.start.max(window.0), entry.end.min(window.1));
            let (from, to) = entry.value.touched.within(part);
            entry.value.touched.forget(part);
            if from >= to {
                continue;
            }
            run = Some(match run {
                Some((before, kind)) if kind == anonymous => ((before.0, to), kind),
                _ => {
                    if let Some((before, kind)) = run {
                        self.drop_run(stats, before, kind)?;
                    }
                    ((from, to), anonymous)
                }
            });
        }
        match run {
            Some((last, kind)) => self.drop_run(stats, last, kind),
            None => Ok(()),
        }
    }

    /// As [`drop_pages`](Self::drop_pages), for regions that are all anonymous, or none of them.
    #[inline(never)]
    pub(crate) fn drop_run(
        &self,
        stats: &mut SpaceStats,
        window: Window,
        anonymous: bool,
    ) -> Result<(), VmError> {
        let Some(range) = pages(window).filter(|range| !range.is_empty()) else { return Ok(()) };
        let mut batch = self.table.batch();
        let taken = {
            let mut cursor = self.table.cursor(range).map_err(|_| VmError::OutOfRange)?;
            cursor.take_all(range, &mut batch, |flags, pages| {
                stats.pages_went(anonymous, flags, pages);
            })
        };
        batch.flush_now();
        taken.map_err(|_| VmError::OutOfMemory)
    }

    /// Unmaps everything and returns every frame. The heap's bounds and the limits stay.
    pub fn clear(&self) {
        let mut inner = self.change();
        let inner = &mut *inner;
        // Leaves are 4 KiB, so nothing has to be split, and taking them out cannot fail.
        // What a panic left half done is not looked at too closely.
        let unwinding = self.platform().unwinding();
        // In debug builds every second time, so that both ways are tested.
        if cfg!(debug_assertions) && !unwinding && self.table.root().number() % 2 == 0 {
            let taken = self.drop_pages(inner, (0, self.layout.limit.block().number()));
            debug_assert!(taken.is_ok() && inner.stats.rss() == 0, "class-marks");
        }
        // All at once: tables need not be looked through, neither for pages nor to see whether they
        // are empty.
        let mut batch = self.table.batch();
        if let Some(all) = pages((0, self.layout.limit.block().number())) {
            if let Ok(mut cursor) = self.table.cursor(all) {
                let windows = inner.regions.all().filter_map(|entry| {
                    let window = entry.value.touched.within((entry.start, entry.end));
                    pages(window).filter(|range| !range.is_empty())
                });
                let taken = cursor.take_known(windows, &mut batch, |_, _| {});
                debug_assert!(taken.is_ok(), "nothing to split");
            }
        }
        batch.flush_now();
        inner.regions = Regions::new();
        inner.stats = SpaceStats {
            mapped_peak: inner.stats.mapped_peak,
            rss_peak: inner.stats.rss_peak,
            ..SpaceStats::default()
        };
        inner.lazy = false;
    }
}

impl<F: Format, P: VmPlatform> Drop for AddressSpace<F, P> {
    fn drop(&mut self) {
        self.clear();
    }
}

impl<P: VmPlatform> Inner<P> {
    fn describe(&self, entry: &Interval<Region<P>>) -> RegionInfo {
        let range = pages((entry.start, entry.end)).unwrap_or_default().addresses();
        let region = &entry.value;
        let (heap_start, heap_end) = self.brk;
        let anonymous = matches!(region.object, Object::Anonymous);
        RegionInfo {
            range,
            prot: region.prot,
            flags: region.flags,
            shared: region.is_shared(),
            offset: if anonymous { 0 } else { region.index(entry.start).saturating_mul(4096) },
            file: region.file().cloned(),
            heap: anonymous
                && range.start().as_u64() < heap_end
                && range.end().as_u64() > heap_start,
            stack: range.contains(VirtAddr::new(self.stack)),
        }
    }

    /// May `pages` more be mapped with the kind of `region`, `replaced` of them going away?
    pub(crate) fn may_expand(&self, region: &Region<P>, pages: u64, replaced: u64) -> bool {
        let fits = |used: u64, limit: u64| {
            used.saturating_sub(replaced).saturating_add(pages) <= limit >> 12
        };
        fits(self.stats.mapped, self.limits.address_space)
            && (!region.is_data() || fits(self.stats.data, self.limits.data))
    }

    /// Counts in every region in `window`.
    pub(crate) fn count_in(&mut self, window: Window) {
        for entry in self.regions.within(window) {
            let pages = entry.end.min(window.1) - entry.start.max(window.0);
            self.stats.promise(&entry.value, pages, true);
        }
    }

    /// Counts out every region in `window`.
    pub(crate) fn count_out(&mut self, window: Window) {
        for entry in self.regions.within(window) {
            let pages = entry.end.min(window.1) - entry.start.max(window.0);
            self.stats.promise(&entry.value, pages, false);
        }
    }
}

/// The window as a range of pages.
pub(crate) fn pages(window: Window) -> Option<PageRange> {
    PageRange::between(Page::new(window.0)?, Page::new(window.1)?)
}

/// The page as a number that an address was made of.
pub(crate) fn number(addr: VirtAddr) -> PageNumber {
    addr.block().number()
}

/// Pages that `bytes` need.
pub(crate) fn page_count(bytes: u64) -> u64 {
    (bytes >> 12) + u64::from(bytes & 4095 != 0)
}

/// As [`page_count`], but a length in the last page of the 64-bit numbers rounds to zero, as
/// Linux's rounding does.
pub(crate) fn page_count_wrapping(bytes: u64) -> u64 {
    bytes.wrapping_add(4095) >> 12
}

/// The rights and properties of a leaf under a region with this protection, writing aside.
pub(crate) fn leaf_flags(prot: Prot) -> PageFlags {
    let mut flags = PageFlags::USER;
    if !prot.is_empty() {
        flags |= PageFlags::READ;
    }
    if prot.contains(Prot::EXEC) {
        flags |= PageFlags::EXEC;
    }
    flags
}
