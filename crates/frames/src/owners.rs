//! Who holds an allocation: references, mappings, and the owner's own marks.
//!
//! Whoever holds a reference may add one or drop its own; the last one is not taken away but owns
//! the allocation alone, and gives it back. So a frame with one owner needs no locked instruction.

use pagoda_addr::{Frame, FrameRange};

use crate::entry::{BUSY, FLAGS_SHIFT, FrameInfo, HEAD, MAX_COUNT, OWNER, OWNERS, owners};
use crate::shim::{AtomicU32, Ordering::*};
use crate::{FrameTable, Kind, TableError};

impl FrameTable<'_> {
    #[inline]
    fn head(&self, frame: Frame) -> Result<&FrameInfo, TableError> {
        match self.entry(frame.number()) {
            Some(entry) if entry.word.load(Relaxed) & HEAD != 0 => Ok(entry),
            _ => Err(self.no_head(frame)),
        }
    }

    #[cold]
    fn no_head(&self, frame: Frame) -> TableError {
        if !self.is_present() {
            TableError::NoTable
        } else if self.directory().first_foreign(FrameRange::single(frame)).is_some() {
            TableError::NotManaged(frame)
        } else {
            TableError::NotAHead(frame)
        }
    }

    /// One more owner for the allocation that begins at `frame`; returns how many there are now.
    /// Only for somebody who is an owner already.
    ///
    /// # Errors
    /// [`TableError`]; nothing has changed then.
    #[inline]
    pub fn share(&self, frame: Frame) -> Result<u32, TableError> {
        match self.entry(frame.number()) {
            Some(head) if (head.word.load(Relaxed) as i64) < BUSY => {
                Ok(owners(head.word.fetch_add(OWNER, Relaxed)) + 1)
            }
            Some(head) if head.word.load(Relaxed) & HEAD != 0 => Err(TableError::TooMany(frame)),
            _ => Err(self.no_head(frame)),
        }
    }

    /// One owner less. True when the caller was the only one: it still is, and must now
    /// [`free_range`](crate::FrameAllocator::free_range) the allocation.
    ///
    /// # Errors
    /// [`TableError`]; nothing has changed then.
    #[inline]
    pub fn release(&self, frame: Frame) -> Result<bool, TableError> {
        let head = self.head(frame)?;
        // Release what this owner did, acquire what the others did before they left.
        let mut word = head.word.load(Acquire);
        while word & HEAD != 0 {
            if word & OWNERS == 0 {
                return Ok(true);
            }
            match head.word.compare_exchange_weak(word, word - OWNER, AcqRel, Acquire) {
                Ok(_) => return Ok(false),
                Err(now) => word = now,
            }
        }
        Err(self.no_head(frame))
    }

    /// How many owners the allocation that begins at `frame` has.
    #[inline]
    pub fn refs(&self, frame: Frame) -> Result<u32, TableError> {
        // Acquire: who sees that it is the only owner sees what the others did before they left.
        Ok(owners(self.head(frame)?.word.load(Acquire)))
    }

    /// One more page-table entry shows the allocation; returns how many do now.
    #[inline]
    pub fn add_map(&self, frame: Frame) -> Result<u32, TableError> {
        raise(&self.head(frame)?.maps, frame)
    }

    /// One page-table entry less; returns how many are left.
    #[inline]
    pub fn remove_map(&self, frame: Frame) -> Result<u32, TableError> {
        lower(&self.head(frame)?.maps, frame)
    }

    /// Changes what the owner uses the allocation for.
    pub fn set_kind(&self, frame: Frame, kind: Kind) -> Result<(), TableError> {
        let word = &self.head(frame)?.word;
        let _ = word.fetch_update(AcqRel, Relaxed, |old| Some(old & !0xff | u64::from(kind.0)));
        Ok(())
    }

    /// Sets and clears flags of the owner; returns what they were.
    pub fn change_flags(&self, frame: Frame, set: u8, clear: u8) -> Result<u8, TableError> {
        let word = &self.head(frame)?.word;
        let change = |old: u64| {
            let (set, clear) = (u64::from(set) << FLAGS_SHIFT, u64::from(clear) << FLAGS_SHIFT);
            Some(old & !clear | set)
        };
        let old = word.fetch_update(AcqRel, Relaxed, change).unwrap_or_else(|same| same);
        Ok((old >> FLAGS_SHIFT) as u8)
    }

    /// The owner's word.
    #[inline]
    pub fn link(&self, frame: Frame) -> Result<u32, TableError> {
        Ok(self.head(frame)?.link.load(Acquire))
    }

    /// Changes the owner's word.
    #[inline]
    pub fn set_link(&self, frame: Frame, link: u32) -> Result<(), TableError> {
        self.head(frame)?.link.store(link, Release);
        Ok(())
    }
}

fn raise(count: &AtomicU32, frame: Frame) -> Result<u32, TableError> {
    match count.fetch_update(Relaxed, Relaxed, |old| (old < MAX_COUNT).then(|| old + 1)) {
        Ok(old) => Ok(old + 1),
        Err(_) => Err(TableError::TooMany(frame)),
    }
}

fn lower(count: &AtomicU32, frame: Frame) -> Result<u32, TableError> {
    match count.fetch_update(AcqRel, Relaxed, |old| old.checked_sub(1)) {
        Ok(old) => Ok(old - 1),
        Err(_) => Err(TableError::Underflow(frame)),
    }
}
