//! The oracle: an address space as a table of single pages, with no tree and no page table.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec::Vec;

use super::host::TestFile;
use crate::{Access, FaultError, Layout, MapFlags, Prot, VmError};

/// First and last byte of a page: enough to tell pages apart.
pub(super) type Bytes = [u8; 2];

/// The contents of a shared object.
pub(super) type Shared = Rc<RefCell<Vec<Bytes>>>;

#[derive(Clone)]
pub(super) enum Back {
    Anonymous(Bytes),
    /// File number, size, page index; what the program sees.
    File(u8, u64, u64, Bytes),
    Shared(Shared, u64),
    /// A private view of a file that others change: its contents, the index, and what the program
    /// wrote.
    Cached(Shared, u64, Option<Bytes>),
}

impl Back {
    /// What the page holds before anybody writes.
    fn reset(&mut self) {
        match self {
            Self::Anonymous(bytes) => *bytes = [0; 2],
            Self::File(id, size, index, bytes) => *bytes = file_bytes(*id, *size, *index),
            Self::Shared(..) => {}
            Self::Cached(_, _, own) => *own = None,
        }
    }

    /// What a mapping of the same object has `pages` further on, untouched.
    fn further(&self, pages: u64) -> Self {
        match self {
            Self::Anonymous(_) => Self::Anonymous([0; 2]),
            Self::File(id, size, index, _) => {
                Self::File(*id, *size, index + pages, file_bytes(*id, *size, index + pages))
            }
            Self::Shared(object, index) => Self::Shared(object.clone(), index + pages),
            Self::Cached(object, index, _) => Self::Cached(object.clone(), index + pages, None),
        }
    }

    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Anonymous(_), Self::Anonymous(_)) => true,
            (Self::File(a, _, i, _), Self::File(b, _, j, _)) => a == b && i + 1 == *j,
            (Self::Shared(a, i), Self::Shared(b, j)) => Rc::ptr_eq(a, b) && i + 1 == *j,
            (Self::Cached(a, i, _), Self::Cached(b, j, _)) => Rc::ptr_eq(a, b) && i + 1 == *j,
            _ => false,
        }
    }
}

pub(super) fn file_bytes(id: u8, size: u64, index: u64) -> Bytes {
    let start = index * 4096;
    [TestFile::byte(id, size, start), TestFile::byte(id, size, start + 4095)]
}

#[derive(Clone)]
pub(super) struct ModelPage {
    pub(super) prot: Prot,
    pub(super) flags: MapFlags,
    pub(super) back: Back,
    /// A guard page.
    pub(super) guard: bool,
    /// Freed lazily: may be zeroes from the next shortage on.
    pub(super) lazy: bool,
}

#[derive(Clone)]
pub(super) struct Model {
    pub(super) layout: Layout,
    pub(super) stack_limit: u64,
    pub(super) pages: BTreeMap<u64, ModelPage>,
    pub(super) brk: (u64, u64),
}

/// A maximal run of pages that are alike: start, end, protection, flags, shared.
pub(super) type Run = (u64, u64, Prot, MapFlags, bool);

impl Model {
    pub(super) fn new(layout: Layout, stack_limit: u64) -> Self {
        Self { layout, stack_limit, pages: BTreeMap::new(), brk: (0, 0) }
    }

    pub(super) fn limit(&self) -> u64 {
        self.layout.limit.as_u64() >> 12
    }

    fn lowest(&self) -> u64 {
        self.layout.lowest.as_u64() >> 12
    }

    /// All runs, lowest first.
    pub(super) fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let mut last: Option<(u64, &ModelPage)> = None;
        for (&number, page) in &self.pages {
            let joins = last.is_some_and(|(before, it)| {
                before + 1 == number
                    && it.prot == page.prot
                    && it.flags == page.flags
                    && it.back.same(&page.back)
            });
            match runs.last_mut() {
                Some(run) if joins => run.1 = number + 1,
                _ => {
                    let shared = matches!(page.back, Back::Shared(..));
                    runs.push((number, number + 1, page.prot, page.flags, shared));
                }
            }
            last = Some((number, page));
        }
        runs
    }

    /// Is a mapping possible at each page, guard gaps counted?
    fn usable(&self) -> Vec<bool> {
        let mut usable = std::vec![true; self.limit() as usize];
        let mut below = 0;
        for (start, end, _, flags, _) in self.runs() {
            let guard =
                if flags.contains(MapFlags::GROWS_DOWN) { self.layout.guard_pages } else { 0 };
            let low = start.saturating_sub(guard).max(below);
            usable[low as usize..end as usize].fill(false);
            below = end;
        }
        usable
    }

    pub(super) fn hole(&self, hint: Option<u64>, len: u64) -> Result<u64, VmError> {
        let usable = self.usable();
        let fits = |start: u64| {
            start + len <= self.limit() && (start..start + len).all(|page| usable[page as usize])
        };
        if len > self.limit() {
            return Err(VmError::NoSpace);
        }
        if let Some(hint) = hint.filter(|&hint| hint != 0) {
            let hint = hint.max(self.lowest());
            // The hint is checked against the guard of what lies above alone.
            if hint + len <= self.limit()
                && self.pages.range(hint..hint + len).next().is_none()
                && fits(hint)
            {
                return Ok(hint);
            }
        }
        let base = self.layout.mmap_base.as_u64() >> 12;
        let down = (self.lowest()..base).rev().find(|&start| start + len <= base && fits(start));
        let up = || (self.limit() / 3 + 1..self.limit()).find(|&start| fits(start));
        down.or_else(up).ok_or(VmError::NoSpace)
    }

    pub(super) fn insert(
        &mut self,
        start: u64,
        len: u64,
        prot: Prot,
        flags: MapFlags,
        back: impl Fn(u64) -> Back,
    ) {
        for page in 0..len {
            let (back, guard, lazy) = (back(page), false, false);
            self.pages.insert(start + page, ModelPage { prot, flags, back, guard, lazy });
        }
    }

    /// The file has this many pages from now on: what was written for oneself beyond is gone.
    pub(super) fn truncated(&mut self, file: &Shared, pages: u64) {
        for page in self.pages.values_mut() {
            match &mut page.back {
                Back::Cached(object, index, own) if Rc::ptr_eq(object, file) && *index >= pages => {
                    *own = None;
                }
                _ => {}
            }
        }
    }

    pub(super) fn unmap(&mut self, addr: u64, len: u64) -> Result<(), VmError> {
        let limit = self.limit() << 12;
        if addr % 4096 != 0 || addr > limit || len == 0 || len > limit - addr {
            return Err(VmError::Invalid);
        }
        self.remove(addr >> 12, (addr + len).div_ceil(4096));
        Ok(())
    }

    pub(super) fn remove(&mut self, from: u64, to: u64) {
        self.pages.retain(|page, _| !(from..to).contains(page));
    }

    pub(super) fn protect(&mut self, addr: u64, len: u64, prot: Prot) -> Result<(), VmError> {
        if addr % 4096 != 0 {
            return Err(VmError::Invalid);
        }
        if len == 0 {
            return Ok(());
        }
        let first = addr >> 12;
        let end = first.saturating_add(len.div_ceil(4096));
        // A length that wraps changes nothing.
        let wraps = len.checked_add(4095).is_none_or(|len| addr.checked_add(len & !4095).is_none());
        if wraps {
            return Err(VmError::NotMapped);
        }
        for page in first..end {
            self.pages.get_mut(&page).ok_or(VmError::NotMapped)?.prot = prot;
        }
        Ok(())
    }

    /// Guard pages, or ordinary ones again.
    pub(super) fn guard(&mut self, addr: u64, len: u64, install: bool) -> Result<(), VmError> {
        self.advise(addr, len, |page| {
            page.guard = install;
            if install {
                (page.lazy, _) = (false, page.back.reset());
            }
            Ok(())
        })
    }

    pub(super) fn dont_need(&mut self, addr: u64, len: u64) -> Result<(), VmError> {
        self.advise(addr, len, |page| {
            (page.lazy, _) = (false, page.back.reset());
            Ok(())
        })
    }

    pub(super) fn free_lazily(&mut self, addr: u64, len: u64) -> Result<(), VmError> {
        self.advise(addr, len, |page| {
            page.lazy = true;
            if matches!(page.back, Back::Anonymous(_)) { Ok(()) } else { Err(VmError::Invalid) }
        })
    }

    pub(super) fn advise(
        &mut self,
        addr: u64,
        len: u64,
        act: impl Fn(&mut ModelPage) -> Result<(), VmError>,
    ) -> Result<(), VmError> {
        if addr % 4096 != 0 {
            return Err(VmError::Invalid);
        }
        if len == 0 {
            return Ok(());
        }
        let len = len.checked_add(4095).ok_or(VmError::Invalid)? & !4095;
        let end = addr.checked_add(len).ok_or(VmError::Invalid)? >> 12;
        let mut result = if end > self.limit() { Err(VmError::NotMapped) } else { Ok(()) };
        for page in addr >> 12..end.min(self.limit()) {
            match self.pages.get_mut(&page) {
                Some(page) => act(page)?,
                None => result = Err(VmError::NotMapped),
            }
        }
        result
    }

    fn run_of(&self, page: u64) -> Option<Run> {
        self.runs().into_iter().find(|run| run.0 <= page && page < run.1)
    }

    /// Growing in place, shrinking, or moving to a hole; never to a fixed place.
    pub(super) fn remap(
        &mut self,
        addr: u64,
        old_len: u64,
        new_len: u64,
        may_move: bool,
    ) -> Result<u64, VmError> {
        let pages = |len: u64| len.wrapping_add(4095) >> 12;
        let (old, new, start) = (pages(old_len), pages(new_len), addr >> 12);
        if addr % 4096 != 0 || new == 0 || new > self.limit() {
            return Err(VmError::Invalid);
        }
        let run = self.run_of(start).ok_or(VmError::Fault)?;
        if new <= old {
            if new < old {
                if start.saturating_add(old) > self.limit() {
                    return Err(VmError::Invalid);
                }
                self.remove(start + new, start + old);
            }
            return Ok(addr);
        }
        let first = self.pages[&start].clone();
        if old == 0 && !run.4 {
            return Err(VmError::Invalid);
        }
        if old > run.1 - start {
            return Err(VmError::Fault);
        }
        let back = |page: u64| first.back.further(page);
        let free = self.pages.range(start + old..start + new).next().is_none();
        if old != 0 && start + old == run.1 && start + new <= self.limit() && free {
            for page in old..new {
                self.pages.insert(
                    start + page,
                    ModelPage { back: back(page), guard: false, ..first.clone() },
                );
            }
            return Ok(addr);
        }
        if !may_move {
            return Err(VmError::NoSpace);
        }
        let to = self.hole(None, new)?;
        self.relocate(start, old, to, new);
        Ok(to << 12)
    }

    /// Moving to a fixed place.
    pub(super) fn move_to(
        &mut self,
        addr: u64,
        old_len: u64,
        new_len: u64,
        to: u64,
    ) -> Result<u64, VmError> {
        let pages = |len: u64| len.wrapping_add(4095) >> 12;
        let (mut old, new, start) = (pages(old_len), pages(new_len), addr >> 12);
        if addr % 4096 != 0 || new == 0 {
            return Err(VmError::Invalid);
        }
        if to % 4096 != 0 || new > self.limit() || to >> 12 > self.limit() - new {
            return Err(VmError::Invalid);
        }
        let target = to >> 12;
        let old_end = addr.wrapping_add(old << 12) >> 12;
        if start < target + new && target < old_end {
            return Err(VmError::Invalid);
        }
        if target < self.lowest() {
            return Err(VmError::TooLow);
        }
        let run = self.run_of(start).ok_or(VmError::Fault)?;
        if (target..target + new).contains(&start) {
            return Err(VmError::Fault);
        }
        if old == 0 && !run.4 {
            return Err(VmError::Invalid);
        }
        if old.min(new) > run.1 - start {
            return Err(VmError::Fault);
        }
        if start.saturating_add(old) > self.limit() {
            return Err(VmError::Invalid);
        }
        self.remove(target, target + new);
        if old > new {
            self.remove(start + new, start + old);
            old = new;
        }
        self.relocate(start, old, target, new);
        Ok(to)
    }

    fn relocate(&mut self, start: u64, old: u64, to: u64, new: u64) {
        let first = self.pages[&start].clone();
        for page in 0..new {
            let moved = if page < old { self.pages.remove(&(start + page)) } else { None };
            let fresh = || {
                let back = first.back.further(page);
                ModelPage { back, guard: false, ..first.clone() }
            };
            let moved = moved.unwrap_or_else(fresh);
            self.pages.insert(to + page, moved);
        }
    }

    pub(super) fn set_brk(&mut self, wanted: u64) {
        let (start, current) = self.brk;
        if wanted < start || wanted > self.limit() << 12 {
            return;
        }
        let (old, new) = (current.div_ceil(4096), wanted.div_ceil(4096));
        if new < old {
            self.remove(new, old);
        } else if new > old {
            let usable = self.usable();
            let free = |page: u64| usable.get(page as usize).copied().unwrap_or(true);
            if !(old..new + 1).all(free) {
                return;
            }
            let prot = Prot::READ | Prot::WRITE;
            self.insert(old, new - old, prot, MapFlags::empty(), |_| Back::Anonymous([0; 2]));
        }
        self.brk.1 = wanted;
    }

    /// What an access must see: the page's bytes, or the error. Grows a stack.
    pub(super) fn access(
        &mut self,
        page: u64,
        access: Access,
    ) -> Result<&mut ModelPage, FaultError> {
        if page >= self.limit() {
            return Err(FaultError::Unmapped);
        }
        if !self.pages.contains_key(&page) {
            self.grow(page).ok_or(FaultError::Unmapped)?;
        }
        let found = self.pages.get_mut(&page).ok_or(FaultError::Unmapped)?;
        let allowed = match access {
            Access::Read => !found.prot.is_empty(),
            Access::Write => found.prot.contains(Prot::WRITE),
            Access::Exec => found.prot.contains(Prot::EXEC),
        };
        if !allowed {
            return Err(FaultError::Protection);
        }
        if found.guard {
            return Err(FaultError::Unmapped);
        }
        let beyond = match &found.back {
            Back::Anonymous(_) => false,
            Back::File(_, size, index, _) => index * 4096 >= *size,
            Back::Shared(object, index) | Back::Cached(object, index, _) => {
                *index >= object.borrow().len() as u64
            }
        };
        if beyond { Err(FaultError::Bus) } else { Ok(found) }
    }

    fn grow(&mut self, page: u64) -> Option<()> {
        let (&above, it) = self.pages.range(page..).next()?;
        let it = it.clone();
        if !it.flags.contains(MapFlags::GROWS_DOWN) || page < self.lowest() {
            return None;
        }
        let end = self.run_of(above)?.1;
        if (end - page) * 4096 > self.stack_limit {
            return None;
        }
        if let Some((&below, neighbour)) = self.pages.range(..page).next_back() {
            if !neighbour.flags.contains(MapFlags::GROWS_DOWN)
                && !neighbour.prot.is_empty()
                && page - (below + 1) < self.layout.guard_pages
            {
                return None;
            }
        }
        self.insert(page, above - page, it.prot, it.flags, |_| Back::Anonymous([0; 2]));
        Some(())
    }

    pub(super) fn read(&mut self, page: u64, last: bool) -> Result<u8, FaultError> {
        let found = self.access(page, Access::Read)?;
        let at = usize::from(last);
        Ok(match &found.back {
            Back::Anonymous(bytes) | Back::File(_, _, _, bytes) => bytes[at],
            Back::Shared(object, index) => object.borrow()[*index as usize][at],
            Back::Cached(object, index, own) => {
                own.unwrap_or_else(|| object.borrow()[*index as usize])[at]
            }
        })
    }

    pub(super) fn write(&mut self, page: u64, last: bool, byte: u8) -> Result<(), FaultError> {
        let found = self.access(page, Access::Write)?;
        found.lazy = false;
        let at = usize::from(last);
        match &mut found.back {
            Back::Anonymous(bytes) | Back::File(_, _, _, bytes) => bytes[at] = byte,
            Back::Shared(object, index) => object.borrow_mut()[*index as usize][at] = byte,
            Back::Cached(object, index, own) => {
                own.get_or_insert_with(|| object.borrow()[*index as usize])[at] = byte;
            }
        }
        Ok(())
    }
}
