//! Reading and writing a program's memory on its behalf.
//!
//! The kernel never uses a program's addresses: it walks the page table in software and goes to the
//! frame, with the same rights that the program has. An absent page is made present as by a fault of
//! the program, and the copy goes on from there. That fault may ask a file for a page: callers hold
//! no lock that a [`FileObject`](crate::FileObject) takes (a `write` to a file from a mapping of the
//! same file would wait for itself); they copy into memory of their own first.

use pagoda_addr::{Frame, PageRange};
use pagoda_addr::{Page, UserRange, VirtAddr};
use pagoda_paging::{Entry, Format, PageFlags};

use crate::memory::{self, PAGE};
use crate::region::Object;
use crate::space::{Inner, number};
use crate::{Access, AddressSpace, CStrError, CopyError, FaultError, VmPlatform};

/// What identifies a futex word.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FutexKey {
    /// An address of this address space.
    Private(u64),
    /// A word in shared memory.
    Shared {
        /// The object, as long as it is mapped.
        object: usize,
        /// Bytes from its start.
        offset: u64,
    },
}

impl<F: Format, P: VmPlatform> AddressSpace<F, P> {
    /// The frame behind `page`, made present for `access`. Stays valid while the lock is held.
    fn frame_for(
        &self,
        inner: &mut Inner<P>,
        page: Page,
        access: Access,
    ) -> Result<Frame, FaultError> {
        let needed = match access {
            Access::Write => PageFlags::WRITE,
            _ => PageFlags::READ,
        } | PageFlags::USER;
        let mut faulted = false;
        loop {
            // The cursor is gone again before the fault takes its own.
            let entry = self
                .table
                .cursor(PageRange::single(page))
                .map_err(|_| FaultError::Unmapped)?
                .query(page);
            match entry {
                Entry::Mapped { frame, flags, .. } if flags.contains(needed) => return Ok(frame),
                // A fault that succeeded leaves the page usable; anything else is a refusal.
                _ if faulted => return Err(FaultError::Protection),
                _ => self.fault_in(inner, page.number(), access)?,
            };
            faulted = true;
        }
    }

    /// Calls `each` with the frame, the offset in it and the bytes done so far, for every page of
    /// the range in turn; `each` says how many bytes it did, fewer than there are to stop.
    fn for_pages(
        &self,
        range: UserRange,
        access: Access,
        mut each: impl FnMut(Frame, usize, usize, usize),
    ) -> Result<(), CopyError> {
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
        let mut done = 0;
        let mut inner = self.lock();
        while done < len {
            let addr = VirtAddr::new(range.start().as_u64() + done as u64);
            let offset = addr.page_offset() as usize;
            let part = (PAGE - offset).min(len - done);
            let frame = self
                .claimed(addr)
                .and_then(|page| self.frame_for(&mut inner, page, access))
                .map_err(|error| CopyError { done, error })?;
            each(frame, offset, done, part);
            done += part;
        }
        Ok(())
    }

    /// The page of an address that lies in the program's half.
    fn claimed(&self, addr: VirtAddr) -> Result<Page, FaultError> {
        if addr < self.layout.limit { Ok(addr.block()) } else { Err(FaultError::Unmapped) }
    }

    /// Copies from the program, as many bytes as both sides have.
    pub fn copy_in(&self, from: UserRange, into: &mut [u8]) -> Result<(), CopyError> {
        let from = shortened(from, into.len());
        self.for_pages(from, Access::Read, |frame, offset, done, part| {
            memory::read(self.platform(), frame, offset, &mut into[done..done + part]);
        })
    }

    /// Copies to the program, as many bytes as both sides have.
    pub fn copy_out(&self, from: &[u8], to: UserRange) -> Result<(), CopyError> {
        let to = shortened(to, from.len());
        self.for_pages(to, Access::Write, |frame, offset, done, part| {
            memory::write(self.platform(), frame, offset, &from[done..done + part]);
        })
    }

    /// Makes a range present and writable, so that a copy to it right afterwards neither faults
    /// nor needs memory.
    pub fn prepare_copy_out(&self, range: UserRange) -> Result<(), CopyError> {
        self.for_pages(range, Access::Write, |_, _, _, _| {})
    }

    /// Clears a range of the program.
    pub fn zero(&self, range: UserRange) -> Result<(), CopyError> {
        self.for_pages(range, Access::Write, |frame, offset, _, part| {
            memory::clear(self.platform(), frame, offset, part);
        })
    }

    /// Reads a string up to its terminator, which is not stored; returns its length in bytes.
    pub fn read_cstr(&self, from: VirtAddr, into: &mut [u8]) -> Result<usize, CStrError> {
        let mut inner = self.lock();
        let mut done = 0;
        while done < into.len() {
            let addr =
                from.checked_add(done as u64).ok_or(CStrError::Fault(FaultError::Unmapped))?;
            let frame = self
                .claimed(addr)
                .and_then(|page| self.frame_for(&mut inner, page, Access::Read))
                .map_err(CStrError::Fault)?;
            let offset = addr.page_offset() as usize;
            let part = (PAGE - offset).min(into.len() - done);
            let bytes = &mut into[done..done + part];
            memory::read(self.platform(), frame, offset, bytes);
            if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
                return Ok(done + end);
            }
            done += part;
        }
        Err(CStrError::TooLong)
    }

    /// Reads an aligned word atomically. An address that is not a multiple of four is refused as
    /// [`FaultError::Bus`].
    pub fn fetch_u32(&self, addr: VirtAddr) -> Result<u32, FaultError> {
        self.with_word(addr, Access::Read, |platform, frame, offset| {
            memory::load_u32(platform, frame, offset)
        })
    }

    /// Replaces an aligned word by `new` if it is `old`, atomically towards all CPUs. Returns
    /// `Ok(Err(seen))` when it was another.
    pub fn cmpxchg_u32(
        &self,
        addr: VirtAddr,
        old: u32,
        new: u32,
    ) -> Result<Result<u32, u32>, FaultError> {
        self.with_word(addr, Access::Write, |platform, frame, offset| {
            memory::cmpxchg_u32(platform, frame, offset, old, new)
        })
    }

    fn with_word<T>(
        &self,
        addr: VirtAddr,
        access: Access,
        act: impl FnOnce(&P, Frame, usize) -> T,
    ) -> Result<T, FaultError> {
        if !addr.is_aligned(4) {
            return Err(FaultError::Bus);
        }
        let page = self.claimed(addr)?;
        let mut inner = self.lock();
        let frame = self.frame_for(&mut inner, page, access)?;
        Ok(act(self.platform(), frame, addr.page_offset() as usize))
    }

    /// What two waiters on the same word have in common. `shared`: the word may lie in memory that
    /// processes share; then its region is looked up.
    pub fn futex_key(&self, addr: VirtAddr, shared: bool) -> Result<FutexKey, FaultError> {
        self.claimed(addr)?;
        let private = FutexKey::Private(addr.as_u64());
        if !shared {
            return Ok(private);
        }
        let inner = self.lock();
        let page = number(addr);
        let region = &inner.regions.covering(page).ok_or(FaultError::Unmapped)?.value;
        Ok(match &region.object {
            Object::Shared(object) => FutexKey::Shared {
                object: alloc::sync::Arc::as_ptr(object).addr(),
                offset: region.index(page).wrapping_mul(PAGE as u64) + addr.page_offset(),
            },
            Object::SharedFile(file) => FutexKey::Shared {
                object: file.key(),
                offset: region.index(page).wrapping_mul(PAGE as u64) + addr.page_offset(),
            },
            _ => private,
        })
    }
}

/// The first `len` bytes of the range.
fn shortened(range: UserRange, len: usize) -> UserRange {
    if range.len() <= len as u64 {
        return range;
    }
    UserRange::new(range.start().as_u64(), len as u64, range.range().end()).unwrap_or(range)
}
