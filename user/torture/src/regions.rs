//! A lane's memory and what must be in it.
//!
//! Every page has a *tag*: zero for one that was never written (and reads as zeroes), else the
//! number that all its words follow from. So a page that shows another page's contents, an old
//! version of its own, or a piece of it is found, and the first wrong byte named.
//!
//! Half of the regions stand in a *window*, a range of addresses that no other thread of the
//! process uses: there, what was unmapped must fault.
#![allow(unsafe_code)] // writes and reads mappings that hold no Rust value

use core::sync::atomic::Ordering;

use crate::faults::{self, Fault};
use crate::lane::Lane;
use crate::sys::{self, Errno, PAGE};

/// The most pages of a region.
pub const PAGES: usize = 48;
/// The most regions of a lane.
const REGIONS: usize = 10;
/// Where the windows start; far from where a kernel places anything by itself.
const WINDOWS: usize = 0x1000_0000_0000;
const WINDOW: usize = 1 << 30;
/// Between two regions in a window.
const SPACING: usize = 4 << 20;

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// One mapping.
#[derive(Clone, Copy)]
pub struct Region {
    /// Its first address.
    pub start: usize,
    /// Pages.
    pub pages: usize,
    /// `MAP_SHARED`.
    pub shared: bool,
    /// Its place in the window, if it is there.
    pub slot: Option<usize>,
    /// What must be in each page.
    pub tags: [u64; PAGES],
}

impl Region {
    fn page(&self, index: usize) -> usize {
        self.start + index * PAGE
    }
    fn len(&self) -> usize {
        self.pages * PAGE
    }
}

/// A lane's regions.
pub struct Regions {
    /// The mappings.
    pub all: [Option<Region>; REGIONS],
    window: usize,
    only_window: bool,
}

impl Regions {
    /// None, for thread `index` of its process.
    pub fn new(index: usize, only_window: bool) -> Self {
        let window = WINDOWS + index * WINDOW;
        Self { all: [None; REGIONS], window, only_window }
    }

    fn free_slot(&self) -> Option<usize> {
        (0..REGIONS).find(|&slot| !self.all.iter().flatten().any(|r| r.slot == Some(slot)))
    }
}

/// The word at `index` of a page with this tag.
#[inline(always)]
fn word(tag: u64, index: usize) -> u64 {
    match tag {
        0 => 0,
        tag => (tag ^ index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15),
    }
}

/// Writes what a page with this tag holds.
pub fn fill(page: usize, tag: u64) {
    for index in 0..PAGE / 8 {
        // SAFETY: the caller's page is a writable mapping that holds no Rust value.
        unsafe { ((page + 8 * index) as *mut u64).write_volatile(word(tag, index)) };
    }
}

/// The first byte of a page that is not as it must be: address, expected, seen.
pub fn compare(page: usize, tag: u64) -> Option<(usize, u8, u8)> {
    (0..PAGE / 8).find_map(|index| {
        let at = page + 8 * index;
        // SAFETY: as in `fill`, readable.
        let seen = unsafe { (at as *const u64).read_volatile() };
        let expected = word(tag, index);
        let byte = ((seen ^ expected).trailing_zeros() / 8) as usize;
        (seen != expected)
            .then(|| (at + byte, expected.to_le_bytes()[byte], seen.to_le_bytes()[byte]))
    })
}

impl Lane {
    fn check_page(&self, region: &Region, index: usize) {
        let page = region.page(index);
        let tag = region.tags[index];
        self.board.pages.fetch_add(1, Ordering::Relaxed);
        let Some((at, expected, seen)) = compare(page, tag) else { return };
        let again = compare(page, tag).is_some();
        self.wrong(format_args!(
            "wrong byte at {at:#x}: expected {expected:#04x}, seen {seen:#04x}{} (page {index} of \
             {} from {:#x}, tag {tag:#x}, {})",
            if again { "" } else { ", right when read again" },
            region.pages,
            region.start,
            if region.shared { "shared" } else { "private" },
        ));
    }

    /// Compares every page of a region.
    pub fn check_region(&self, region: &Region) {
        (0..region.pages).for_each(|index| self.check_page(region, index));
    }

    /// Compares everything that this lane has.
    pub fn check_all(&self) {
        for region in self.regions.all.iter().flatten() {
            self.check_region(region);
            self.beat();
        }
    }

    /// The place of a region chosen at random.
    pub fn any_region(&mut self) -> Option<usize> {
        let start = self.random.below(REGIONS);
        (0..REGIONS).map(|i| (start + i) % REGIONS).find(|&i| self.regions.all[i].is_some())
    }

    /// Checks a region chosen at random.
    pub fn check_one(&mut self) {
        if let Some(region) = self.any_region().and_then(|place| self.regions.all[place]) {
            self.check_region(&region);
        }
    }

    /// Writes pages of a region, and sometimes checks all of it.
    pub fn touch(&mut self) {
        let Some(place) = self.any_region() else { return };
        let Some(mut region) = self.regions.all[place] else { return };
        for _ in 0..1 + self.random.below(12) {
            let index = self.random.below(region.pages);
            let tag = self.random.next();
            fill(region.page(index), tag);
            region.tags[index] = tag;
        }
        self.regions.all[place] = Some(region);
        if self.random.once_in(4) {
            self.check_region(&region);
        }
    }

    /// A new mapping.
    pub fn map(&mut self) {
        let Some(place) = self.regions.all.iter().position(Option::is_none) else { return };
        let pages = 1 + self.random.below(PAGES);
        let shared = self.random.once_in(5);
        let in_window = self.regions.only_window || self.random.once_in(2);
        let slot = self.regions.free_slot().filter(|_| in_window);
        let kind = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let mut flags = kind | libc::MAP_ANONYMOUS;
        if self.random.once_in(4) {
            flags |= libc::MAP_NORESERVE;
        }
        if self.random.once_in(8) {
            flags |= libc::MAP_POPULATE;
        }
        let at = slot.map_or(0, |slot| self.regions.window + slot * SPACING);
        if slot.is_some() {
            flags |= libc::MAP_FIXED;
        }
        let answer = sys::mmap(at, pages * PAGE, RW, flags, -1);
        let Some(start) = self.got("mmap", answer) else { return };
        self.must(start != 0 && start.is_multiple_of(PAGE), "mmap answered an odd address");
        self.must(slot.is_none() || start == at, "mmap did not map where it was told to");
        let region = Region { start, pages, shared, slot, tags: [0; PAGES] };
        self.regions.all[place] = Some(region);
        if self.random.once_in(6) {
            self.check_region(&region);
        }
    }

    /// Takes a region away, or its end or beginning.
    pub fn unmap(&mut self) {
        let Some(place) = self.any_region() else { return };
        let Some(mut region) = self.regions.all[place] else { return };
        self.check_region(&region);
        let count = match self.random.below(3) {
            0 => 1 + self.random.below(region.pages),
            _ => region.pages,
        };
        let from_end = self.random.once_in(2) || region.slot.is_some();
        let gone = if from_end { region.page(region.pages - count) } else { region.start };
        if self.got("munmap", sys::munmap(gone, count * PAGE)).is_none() {
            return self.check_region(&region);
        }
        if region.slot.is_some() {
            for index in [0, count / 2, count - 1] {
                self.must_fault(gone + index * PAGE, index % 2 == 1, faults::MAPERR);
            }
        }
        if !from_end {
            region.tags.copy_within(count..region.pages, 0);
            region.start += count * PAGE;
        }
        region.pages -= count;
        self.regions.all[place] = (region.pages != 0).then_some(region);
        self.check_region(&region);
    }

    /// An access must end in a fault of this kind.
    fn must_fault(&self, at: usize, write: bool, code: i32) {
        let seen = faults::probe(at, write);
        let expected = Some(Fault { signal: libc::SIGSEGV, code, address: at });
        if seen != expected {
            let what = if write { "writing" } else { "reading" };
            self.wrong(format_args!("{what} {at:#x}: expected {expected:x?}, seen {seen:x?}"));
        }
        self.board.faults.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes rights away and gives them back; the contents stay.
    pub fn protect(&mut self) {
        let Some(place) = self.any_region() else { return };
        let Some(region) = self.regions.all[place] else { return };
        let first = self.random.below(region.pages);
        let count = 1 + self.random.below(region.pages - first);
        let (at, len) = (region.page(first), count * PAGE);
        let none = self.random.once_in(2);
        let prot = if none { libc::PROT_NONE } else { libc::PROT_READ };
        let Some(()) = self.got("mprotect", sys::mprotect(at, len, prot)) else {
            return self.check_region(&region);
        };
        let victim = at + self.random.below(count) * PAGE + self.random.below(PAGE);
        self.must_fault(victim, true, faults::ACCERR);
        if none {
            self.must_fault(victim, false, faults::ACCERR);
        } else {
            self.check_region(&region);
        }
        while let Err(error) = sys::mprotect(at, len, RW) {
            self.refused("mprotect", error);
        }
        self.check_region(&region);
    }

    /// Grows, shrinks and moves a region.
    pub fn remap(&mut self) {
        let Some(place) = self.any_region() else { return };
        let Some(mut region) = self.regions.all[place] else { return };
        let pages = 1 + self.random.below(PAGES);
        // More of a shared mapping than its object has is another story.
        let pages = if region.shared { pages.min(region.pages) } else { pages };
        let target = self.regions.free_slot().filter(|_| region.slot.is_some());
        let target = target.filter(|_| self.random.once_in(2));
        let (flags, to) = match (region.slot, target) {
            (_, Some(slot)) => {
                let to = self.regions.window + slot * SPACING;
                (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, to)
            }
            (Some(_), None) => (0, 0),
            (None, None) => (libc::MREMAP_MAYMOVE, 0),
        };
        let old = (region.start, region.len());
        let answer = sys::mremap(region.start, region.len(), pages * PAGE, flags, to);
        let Some(start) = self.got("mremap", answer) else {
            // A move to a smaller place cuts off first, on Linux too, and may then fail.
            if target.is_some() && pages < region.pages {
                let cut = faults::probe(region.page(pages), false).is_some();
                region.pages = if cut { pages } else { region.pages };
                self.regions.all[place] = Some(region);
            }
            return self.check_region(&region);
        };
        if let Some(slot) = target {
            self.must(start == to, "mremap did not move where it was told to");
            self.must_fault(old.0 + old.1 - PAGE, true, faults::MAPERR);
            region.slot = Some(slot);
        }
        if pages > region.pages {
            region.tags[region.pages..pages].fill(0);
        }
        region.start = start;
        region.pages = pages;
        self.regions.all[place] = Some(region);
        self.check_region(&region);
    }

    /// Gives contents back, or says that they will be needed.
    pub fn advise(&mut self) {
        let Some(place) = self.any_region() else { return };
        let Some(mut region) = self.regions.all[place] else { return };
        let first = self.random.below(region.pages);
        let count = 1 + self.random.below(region.pages - first);
        let (at, len) = (region.page(first), count * PAGE);
        match self.random.below(3) {
            0 | 1 if !region.shared => {
                if self.got("madvise", sys::madvise(at, len, libc::MADV_DONTNEED)).is_some() {
                    region.tags[first..first + count].fill(0);
                }
            }
            2 if !region.shared => {
                let _ = self.got("madvise", sys::madvise(at, len, libc::MADV_FREE));
                for index in first..first + count {
                    // Each page is as it was or empty, and nothing in between; it may become empty
                    // until it is written again.
                    let (page, tag) = (region.page(index), region.tags[index]);
                    if compare(page, tag).is_some() {
                        region.tags[index] = 0;
                    } else if tag != 0 {
                        fill(page, tag);
                    }
                }
            }
            // What is shared stays.
            _ => {
                let _ = self.got("madvise", sys::madvise(at, len, libc::MADV_DONTNEED));
            }
        }
        self.regions.all[place] = Some(region);
        self.check_region(&region);
    }

    /// Unmaps everything.
    pub fn clear(&mut self) {
        for place in 0..REGIONS {
            let Some(region) = self.regions.all[place].take() else { continue };
            while let Err(error) = sys::munmap(region.start, region.len()) {
                self.refused("munmap", error);
            }
        }
    }

    /// A file in memory, mapped shared and privately; what is written one way is read the other.
    pub fn file(&mut self) {
        let pages = 1 + self.random.below(8);
        let len = pages * PAGE;
        let Some(file) = self.got("memfd_create", sys::memory_file(len)) else { return };
        let maps =
            [libc::MAP_SHARED, libc::MAP_PRIVATE].map(|kind| sys::mmap(0, len, RW, kind, file));
        if let [Ok(shared), Ok(private)] = maps {
            self.file_mapped(file, pages, shared, private);
        }
        // A kernel may have no shared views of files.
        for map in maps.into_iter().filter(|&map| map != Err(Errno(libc::ENODEV))) {
            if let Some(at) = self.got("mmap of a file", map) {
                while let Err(error) = sys::munmap(at, len) {
                    self.refused("munmap", error);
                }
            }
        }
        sys::close(file);
    }

    fn file_mapped(&mut self, file: i32, pages: usize, shared: usize, private: usize) {
        let page = self.random.below(pages);
        let (first, second) = (self.random.next(), self.random.next());
        let must_hold = |at: usize, tag: u64, what: &str| {
            if let Some((at, expected, seen)) = compare(at, tag) {
                self.wrong(format_args!(
                    "{what} at {at:#x}: expected {expected:#04x}, seen {seen:#04x}"
                ));
            }
        };
        fill(shared + page * PAGE, first);
        must_hold(private + page * PAGE, first, "a private view of a file");
        fill(private + page * PAGE, second);
        must_hold(shared + page * PAGE, first, "a file written through a private view");
        must_hold(private + page * PAGE, second, "a private view that was written");
        let mut bytes = [0u8; PAGE];
        let mut done = 0;
        while done < PAGE {
            match sys::read_at(file, &mut bytes[done..], page * PAGE + done) {
                // Short where the second page of the buffer finds no memory, and only there.
                Ok(count) if count != 0 && (done + count == PAGE || self.board.tolerant()) => {
                    done += count;
                }
                Ok(count) => self.wrong(format_args!("pread at byte {done} gave {count} bytes")),
                Err(error) => return self.refused("pread", error),
            }
        }
        must_hold(bytes.as_ptr() as usize, first, "a page read from a file");
    }
}
