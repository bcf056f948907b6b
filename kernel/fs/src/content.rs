//! The bytes of a regular file.
//!
//! A file is a *base* (bytes that lie elsewhere for ever, such as an initramfs entry, used in
//! place) under *pages* of its own. Where there is a page it counts; else the base; else zeros.
//! A write to a page that lies in the base copies that page first. Pages are kept in *chunks* of
//! 64, sorted, so that a file may be huge and sparse.
//!
//! Pages come from the host's [`PageStore`], where they may be frames that
//! programs map ([`Content::frame`]): reading, writing and mapping then mean the same bytes. A page
//! of the base becomes an owned one when it is mapped.
//!
//! Invariants: `base.len() <= size`; bytes of a page at or beyond `size` are zero; `owned` is the
//! number of pages, all charged to the volume.

use alloc::sync::Arc;
use alloc::vec::Vec;

use pagoda_addr::Frame;
use pagoda_vm::{FilePage, PageStore};

use crate::volume::Volume;
use crate::{Errno, Result};

/// Bytes in a page.
pub(crate) const PAGE: u64 = 4096;
const CHUNK: u64 = 64;
/// The longest file: offsets are signed.
pub(crate) const MAX_SIZE: u64 = i64::MAX as u64;

struct Chunk {
    /// Page index divided by `CHUNK`.
    number: u64,
    /// At most `CHUNK` slots, as many as the highest page needs.
    pages: Vec<Option<FilePage>>,
}

/// See the module.
pub(crate) struct Content {
    volume: Arc<Volume>,
    size: u64,
    base: &'static [u8],
    chunks: Vec<Chunk>,
    owned: u64,
}

impl Content {
    pub(crate) fn new(volume: Arc<Volume>, base: &'static [u8]) -> Self {
        Self { volume, size: base.len() as u64, base, chunks: Vec::new(), owned: 0 }
    }

    /// Lets the file be `base`, whatever it was.
    pub(crate) fn set_base(&mut self, base: &'static [u8]) {
        self.drop_pages(0, u64::MAX);
        (self.base, self.size) = (base, base.len() as u64);
    }

    /// Is it exactly `bytes`, in place?
    pub(crate) fn is_base(&self, bytes: &[u8]) -> bool {
        self.owned == 0 && self.size == bytes.len() as u64 && self.base == bytes
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Pages that hold something, the base's included.
    pub(crate) fn pages(&self) -> u64 {
        let base_pages = (self.base.len() as u64).div_ceil(PAGE);
        let count = |chunk: &Chunk| {
            let first = chunk.number * CHUNK;
            let slots = chunk.pages.iter().zip(first..);
            slots.filter(|(slot, index)| slot.is_some() && *index < base_pages).count() as u64
        };
        let covered = self.chunks.iter().take_while(|chunk| chunk.number * CHUNK < base_pages);
        self.owned + base_pages - covered.map(count).sum::<u64>()
    }

    /// Reads at `offset`; fewer bytes than asked only at the end of the file.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> usize {
        let there = self.size.saturating_sub(offset);
        let len = into.len().min(usize::try_from(there).unwrap_or(usize::MAX));
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let step = (PAGE as usize - within).min(len - done);
            self.read_in_page(at / PAGE, within, &mut into[done..done + step]);
            done += step;
        }
        len
    }

    /// Fills `into` from page `index`, byte `within` onwards; zeros where there is nothing.
    fn read_in_page(&self, index: u64, within: usize, into: &mut [u8]) {
        if let Some(page) = self.page(index) {
            self.store().read(page, within, into);
            return;
        }
        let from_base = self.base_from(index, within);
        let copied = from_base.len().min(into.len());
        into[..copied].copy_from_slice(&from_base[..copied]);
        into[copied..].fill(0);
    }

    /// What the base has from byte `within` of page `index` on.
    fn base_from(&self, index: u64, within: usize) -> &'static [u8] {
        let start = (index * PAGE).saturating_add(within as u64);
        let start = usize::try_from(start).unwrap_or(usize::MAX).min(self.base.len());
        &self.base[start..]
    }

    fn store(&self) -> &dyn PageStore {
        self.volume.host.pages()
    }

    /// The frame of page `index`, with a reference more for whoever maps it; none where pages cannot
    /// be mapped, and for a hole that nobody touched yet (`ahead`).
    ///
    /// # Errors
    /// [`Errno::ENXIO`]: the whole page lies beyond the end of the file; else what a write would say.
    pub(crate) fn frame(&mut self, index: u64, ahead: bool) -> Result<Option<Frame>> {
        if index.checked_mul(PAGE).is_none_or(|start| start >= self.size) {
            return Err(Errno::ENXIO);
        }
        if ahead && self.page(index).is_none() && self.base_from(index, 0).is_empty() {
            return Ok(None);
        }
        self.page_for_writing(index)?;
        Ok(self.page(index).and_then(|page| self.store().share(page)))
    }

    /// Writes at `offset`. Fewer bytes than asked when space or memory ends on the way.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        if offset >= MAX_SIZE {
            return Err(Errno::EFBIG);
        }
        let room = usize::try_from(MAX_SIZE - offset).unwrap_or(usize::MAX);
        let len = bytes.len().min(room);
        let volume = self.volume.clone();
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let step = (PAGE as usize - within).min(len - done);
            match self.page_for_writing(at / PAGE) {
                Ok(page) => volume.host.pages().write(page, within, &bytes[done..done + step]),
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
            done += step;
            self.size = self.size.max(at + step as u64);
        }
        Ok(done)
    }

    /// Sets the length. Cannot fail for want of memory.
    pub(crate) fn truncate(&mut self, len: u64) -> Result<()> {
        if len > MAX_SIZE {
            return Err(Errno::EFBIG);
        }
        // Downwards even when `len` is not below `size`: pages may have been allocated beyond it.
        if len <= self.size {
            let keep = usize::try_from(len).unwrap_or(usize::MAX).min(self.base.len());
            self.base = &self.base[..keep];
            self.drop_pages(len.div_ceil(PAGE), u64::MAX);
            self.zero_owned(len / PAGE, (len % PAGE) as usize, PAGE as usize);
        }
        self.size = len;
        Ok(())
    }

    /// Makes sure that every page of the range is there (`fallocate`). All or an error; what was
    /// allocated before the error stays allocated, which nobody can read.
    pub(crate) fn reserve(&mut self, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        let end = range_end(offset, len)?;
        self.volume.could_hold(len)?;
        for index in offset / PAGE..end.div_ceil(PAGE) {
            if self.page(index).is_none() && index * PAGE >= self.base.len() as u64 {
                self.page_for_writing(index)?;
            }
        }
        if !keep_size {
            self.size = self.size.max(end);
        }
        Ok(())
    }

    /// Makes the range read as zeros, giving whole pages back where possible.
    pub(crate) fn punch(&mut self, offset: u64, len: u64) -> Result<()> {
        let end = range_end(offset, len)?.min(self.size);
        // The base would shine through: its pages need zeros of their own. All of them first, so
        // that nothing is changed if one cannot be had.
        let base_end = end.min((self.base.len() as u64).next_multiple_of(PAGE));
        for index in offset / PAGE..base_end.div_ceil(PAGE) {
            self.page_for_writing(index)?;
        }
        let mut at = offset;
        while at < end {
            let index = at / PAGE;
            let next = ((index + 1) * PAGE).min(end);
            let in_base = index * PAGE < self.base.len() as u64;
            if !in_base && at.is_multiple_of(PAGE) && next.is_multiple_of(PAGE) {
                let last = end / PAGE;
                self.drop_pages(index, last);
                at = last * PAGE;
                continue;
            } else {
                let within = (at % PAGE) as usize;
                self.zero_owned(index, within, within + (next - at) as usize);
            }
            at = next;
        }
        Ok(())
    }

    /// The next byte at or after `from` that is data (or, with `hole`, that is in a hole; the end
    /// of the file is one). `None`: `from` is beyond the end, or no data follows.
    pub(crate) fn seek_data(&self, from: u64, hole: bool) -> Option<u64> {
        if from >= self.size {
            return None;
        }
        let mut index = from / PAGE;
        while index * PAGE < self.size {
            let data = self.page(index).is_some() || index * PAGE < self.base.len() as u64;
            if data != hole {
                return Some(from.max(index * PAGE));
            }
            index = if data { index + 1 } else { self.next_owned(index)? };
        }
        hole.then_some(self.size)
    }

    /// The first owned page after the absent page `index`.
    fn next_owned(&self, index: u64) -> Option<u64> {
        let start = self.chunks.partition_point(|chunk| chunk.number < index / CHUNK);
        self.chunks[start..].iter().find_map(|chunk| {
            let slots = chunk.pages.iter().zip(chunk.number * CHUNK..);
            slots.filter(|(slot, at)| slot.is_some() && *at > index).map(|(_, at)| at).next()
        })
    }

    fn page(&self, index: u64) -> Option<&FilePage> {
        let at = self.chunks.binary_search_by_key(&(index / CHUNK), |chunk| chunk.number).ok()?;
        self.chunks[at].pages.get((index % CHUNK) as usize)?.as_ref()
    }

    /// Page `index` as an owned page, made from what it reads as now if need be.
    fn page_for_writing(&mut self, index: u64) -> Result<&FilePage> {
        let number = index / CHUNK;
        let at = match self.chunks.binary_search_by_key(&number, |chunk| chunk.number) {
            Ok(at) => at,
            Err(at) => {
                self.chunks.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
                self.chunks.insert(at, Chunk { number, pages: Vec::new() });
                at
            }
        };
        let slot = (index % CHUNK) as usize;
        if self.chunks[at].pages.get(slot).is_none_or(Option::is_none) {
            let page = self.fresh_page(index)?;
            let pages = &mut self.chunks[at].pages;
            if pages.len() <= slot {
                if pages.try_reserve(slot + 1 - pages.len()).is_err() {
                    self.volume.host.pages().free(page);
                    self.volume.release(PAGE);
                    return Err(Errno::ENOMEM);
                }
                pages.resize_with(slot + 1, || None);
            }
            pages[slot] = Some(page);
            self.owned += 1;
        }
        self.chunks[at].pages[slot].as_ref().ok_or(Errno::EIO)
    }

    /// A charged page with what `index` reads as now.
    fn fresh_page(&self, index: u64) -> Result<FilePage> {
        self.volume.charge(PAGE)?;
        let page = self.store().alloc().map_err(|_| {
            self.volume.release(PAGE);
            Errno::ENOMEM
        })?;
        self.store().write(&page, 0, self.base_from(index, 0));
        Ok(page)
    }

    /// Gives back the owned pages `from..to`.
    fn drop_pages(&mut self, from: u64, to: u64) {
        let (volume, owned) = (&self.volume, &mut self.owned);
        let start = self.chunks.partition_point(|chunk| chunk.number < from / CHUNK);
        for chunk in &mut self.chunks[start..] {
            let first = chunk.number * CHUNK;
            if first >= to {
                break;
            }
            for (slot, index) in chunk.pages.iter_mut().zip(first..) {
                if !(from..to).contains(&index) {
                    continue;
                }
                if let Some(page) = slot.take() {
                    volume.host.pages().free(page);
                    volume.release(PAGE);
                    *owned -= 1;
                }
            }
        }
        self.chunks.retain(|chunk| chunk.pages.iter().any(Option::is_some));
    }

    /// Zeroes bytes `from..to` of page `index` if it is owned.
    fn zero_owned(&mut self, index: u64, from: usize, to: usize) {
        if let Some(page) = self.page(index) {
            self.store().clear(page, from, to - from);
        }
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        self.drop_pages(0, u64::MAX);
    }
}

fn range_end(offset: u64, len: u64) -> Result<u64> {
    offset.checked_add(len).filter(|&end| end <= MAX_SIZE).ok_or(Errno::EFBIG)
}
