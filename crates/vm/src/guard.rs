//! Guard pages (`MADV_GUARD_INSTALL`): pages of a region that nobody can touch, without a region of
//! their own.
//!
//! A guard page is a word in the absent entry ([`GUARD`]). It survives what only drops contents,
//! goes with a move and a fork, and leaves with its region, or when it is told to.

use pagoda_addr::{Page, PageRange};
use pagoda_paging::{AbsentWord, Cursor, Entry, Format};

use crate::region::Window;
use crate::space::{Inner, pages};
use crate::tree::PageNumber;
use crate::{AddressSpace, VmError, VmPlatform};

/// The word of a guard page. Others may come (a place in swap): the low bits say which.
const GUARD: u64 = 1;

impl<F: Format, P: VmPlatform> AddressSpace<F, P> {
    /// Makes every page of `part`, which lies in one region, a guard page; what was there is gone.
    pub(crate) fn install_guards(&self, inner: &mut Inner<P>, part: Window) -> Result<(), VmError> {
        let range = pages(part).ok_or(VmError::Invalid)?;
        let word = AbsentWord::new(GUARD).ok_or(VmError::Unsupported)?;
        // All tables first: nothing is lost if one cannot be had.
        self.prepare(inner, part, range)?;
        self.drop_pages(inner, part)?;
        // Dropping gives back tables that became empty.
        self.prepare(inner, part, range)?;
        let mut cursor = self.table.cursor(range).map_err(|_| VmError::OutOfRange)?;
        for page in range.iter() {
            cursor.mark(page, word).map_err(|_| VmError::OutOfMemory)?;
        }
        if let Some(entry) = inner.regions.covering(part.0) {
            entry.value.touched.add(part);
            entry.value.touched.note_guards();
        }
        Ok(())
    }

    fn prepare(&self, inner: &Inner<P>, part: Window, range: PageRange) -> Result<(), VmError> {
        // Tables without anything in them are found again by their region.
        if let Some(entry) = inner.regions.covering(part.0) {
            entry.value.touched.add(part);
        }
        let mut cursor = self.table.cursor(range).map_err(|_| VmError::OutOfRange)?;
        cursor.prepare(range).map_err(|_| VmError::OutOfMemory)
    }

    /// Makes the guard pages of `part` ordinary ones.
    pub(crate) fn remove_guards(&self, part: Window) -> Result<(), VmError> {
        let range = pages(part).ok_or(VmError::Invalid)?;
        let mut cursor = self.table.cursor(range).map_err(|_| VmError::OutOfRange)?;
        let mut next = range.start().number();
        while let Some(page) = next_guard(&mut cursor, (next, part.1)) {
            cursor.mark(page, AbsentWord::NOTHING).map_err(|_| VmError::OutOfMemory)?;
            next = page.number() + 1;
        }
        Ok(())
    }

    /// Drops the contents of `part`, which lies in one region with guard pages, and leaves those.
    #[cold]
    pub(crate) fn drop_between_guards(
        &self,
        inner: &mut Inner<P>,
        part: Window,
    ) -> Result<(), VmError> {
        let mut from = part.0;
        while from < part.1 {
            let range = pages((from, part.1)).ok_or(VmError::Invalid)?;
            let guard = {
                let mut cursor = self.table.cursor(range).map_err(|_| VmError::OutOfRange)?;
                next_guard(&mut cursor, (from, part.1)).map_or(part.1, Page::number)
            };
            self.drop_pages(inner, (from, guard))?;
            from = guard + 1;
        }
        Ok(())
    }
}

/// Gives `to`, at the same pages, the guard pages of `window` in `from`.
#[cold]
pub(crate) fn copy_guards<F: Format, P: VmPlatform>(
    from: &mut Cursor<'_, F, P>,
    to: &mut Cursor<'_, F, P>,
    window: Window,
) -> Result<(), VmError> {
    let word = AbsentWord::new(GUARD).ok_or(VmError::Unsupported)?;
    let mut next = window.0;
    while let Some(page) = next_guard(from, (next, window.1)) {
        to.mark(page, word).map_err(|_| VmError::OutOfMemory)?;
        next = page.number() + 1;
    }
    Ok(())
}

/// Is this entry a guard page?
#[inline]
pub(crate) fn is_guard(entry: Entry) -> bool {
    matches!(entry, Entry::Absent(word) if !word.is_nothing())
}

/// The first guard page of `window`, O(present).
fn next_guard<F: Format, P: VmPlatform>(
    cursor: &mut Cursor<'_, F, P>,
    window: (PageNumber, PageNumber),
) -> Option<Page> {
    let mut next = Page::new(window.0);
    while let Some((page, entry)) = next.and_then(|from| cursor.next_used(from)) {
        if page.number() >= window.1 {
            return None;
        }
        if is_guard(entry) {
            return Some(page);
        }
        next = page.checked_add(1);
    }
    None
}
