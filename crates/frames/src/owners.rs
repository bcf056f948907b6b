//! Who holds an allocation: references, mappings, and the owner's own marks.
//!
//! Whoever holds a reference may add one or drop its own; the last one is not taken away but owns
//! the allocation alone, and gives it back. So a frame with one owner needs no locked instruction.
//!
//! Kinds are best said when memory is asked for, and owners are counted where the head is. Whoever
//! changes the kind, or uses mappings, flags or the link, has the head opened (`entry.rs`), and it is
//! a little slower to give back.

use pagoda_addr::{Frame, FrameRange};

use crate::entry::{Entry, FLAGS_SHIFT, HEAD, MAX_MAPS, MAX_OWNERS, MORE, may_share, others};
use crate::shim::{AtomicU32, Ordering::*};
use crate::{FrameTable, Kind, TableError};

impl FrameTable<'_> {
    #[inline]
    fn head(&self, frame: Frame) -> Result<Entry<'_>, TableError> {
        match self.entry(frame.number()) {
            Some(entry) if entry.state().load(Relaxed) & HEAD != 0 => Ok(entry),
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
            Some(head) if may_share(head.state().load(Relaxed)) => {
                Ok(others(head.state().fetch_add(1, Relaxed)) + 2)
            }
            _ => self.share_open(frame),
        }
    }

    /// As [`share`](Self::share), where the head says more, or will by then.
    #[inline(never)]
    fn share_open(&self, frame: Frame) -> Result<u32, TableError> {
        let head = self.head(frame)?;
        head.open();
        match head.state().load(Relaxed) {
            state if state & HEAD == 0 => Err(self.no_head(frame)),
            state if others(state) + 1 >= MAX_OWNERS => Err(TableError::TooMany(frame)),
            _ => Ok(others(head.state().fetch_add(1, Relaxed)) + 2),
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
        let mut state = head.state().load(Acquire);
        while state & HEAD != 0 {
            if others(state) == 0 {
                return Ok(true);
            }
            match head.state().compare_exchange_weak(state, state - 1, AcqRel, Acquire) {
                Ok(_) => return Ok(false),
                Err(now) => state = now,
            }
        }
        Err(self.no_head(frame))
    }

    /// How many owners the allocation that begins at `frame` has.
    #[inline]
    pub fn refs(&self, frame: Frame) -> Result<u32, TableError> {
        // Acquire: who sees that it is the only owner sees what the others did before they left.
        Ok(others(self.head(frame)?.state().load(Acquire)) + 1)
    }

    /// One more page-table entry shows the allocation; returns how many do now.
    #[inline]
    pub fn add_map(&self, frame: Frame) -> Result<u32, TableError> {
        raise(self.opened(frame)?.maps(), frame)
    }

    /// One page-table entry less; returns how many are left.
    #[inline]
    pub fn remove_map(&self, frame: Frame) -> Result<u32, TableError> {
        lower(self.head(frame)?.maps(), frame)
    }

    /// Changes what the owner uses the allocation for.
    pub fn set_kind(&self, frame: Frame, kind: Kind) -> Result<(), TableError> {
        let change = |old: u32| Some(old & !0xff | u32::from(kind.0));
        let _ = self.opened(frame)?.traits().fetch_update(AcqRel, Relaxed, change);
        Ok(())
    }

    /// Sets and clears flags of the owner; returns what they were.
    pub fn change_flags(&self, frame: Frame, set: u8, clear: u8) -> Result<u8, TableError> {
        let change = |old: u32| {
            let (set, clear) = (u32::from(set) << FLAGS_SHIFT, u32::from(clear) << FLAGS_SHIFT);
            Some(old & !clear | set)
        };
        let traits = self.opened(frame)?.traits();
        let old = traits.fetch_update(AcqRel, Relaxed, change).unwrap_or_else(|same| same);
        Ok((old >> FLAGS_SHIFT) as u8)
    }

    /// The owner's word.
    #[inline]
    pub fn link(&self, frame: Frame) -> Result<u32, TableError> {
        let head = self.head(frame)?;
        let open = head.state().load(Relaxed) & MORE != 0;
        Ok(if open { head.link().load(Acquire) } else { 0 })
    }

    /// Changes the owner's word.
    #[inline]
    pub fn set_link(&self, frame: Frame, link: u32) -> Result<(), TableError> {
        self.opened(frame)?.link().store(link, Release);
        Ok(())
    }

    /// A head whose other cells are about to say something.
    fn opened(&self, frame: Frame) -> Result<Entry<'_>, TableError> {
        let head = self.head(frame)?;
        head.open();
        Ok(head)
    }
}

fn raise(count: &AtomicU32, frame: Frame) -> Result<u32, TableError> {
    match count.fetch_update(Relaxed, Relaxed, |old| (old < MAX_MAPS).then(|| old + 1)) {
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
