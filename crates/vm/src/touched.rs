//! What a region remembers of its pages, so that the page table need not be asked.

use core::cell::Cell;

use crate::region::Window;
use crate::tree::PageNumber;

/// A window around all pages of a region that were ever made present: what lies outside needs no
/// look at the page table. May reach over the ends of the region.
#[derive(Clone)]
pub(crate) struct Touched {
    window: Cell<Window>,
    /// Some pages may be guard pages.
    guards: Cell<bool>,
    /// Some pages are, or were, memory of the program alone.
    own: Cell<bool>,
}

impl Touched {
    /// No page.
    pub(crate) const fn nothing() -> Self {
        let window = Cell::new((PageNumber::MAX, 0));
        Self { window, guards: Cell::new(false), own: Cell::new(false) }
    }

    /// The pages of `window` are, or may be, present.
    #[inline]
    pub(crate) fn add(&self, window: Window) {
        let (low, high) = self.window.get();
        if window.0 < low || window.1 > high {
            self.window.set((low.min(window.0), high.max(window.1)));
        }
    }

    /// What both know.
    pub(crate) fn join(&self, other: &Self) {
        self.add(other.window.get());
        self.guards.set(self.guards.get() || other.guards.get());
        self.own.set(self.own.get() || other.own.get());
    }

    /// There is memory of the program alone.
    #[inline]
    pub(crate) fn note_own(&self) {
        self.own.set(true);
    }

    /// Was there ever memory of the program alone?
    pub(crate) fn has_own(&self) -> bool {
        self.own.get()
    }

    /// There are guard pages.
    pub(crate) fn note_guards(&self) {
        self.guards.set(true);
    }

    /// May there be guard pages?
    pub(crate) fn has_guards(&self) -> bool {
        self.guards.get()
    }

    /// None of `window` is present any more.
    pub(crate) fn forget(&self, window: Window) {
        let (low, high) = self.window.get();
        let rest = if window.0 <= low && high <= window.1 {
            (PageNumber::MAX, 0)
        } else if window.0 <= low && window.1 > low {
            (window.1, high)
        } else if high <= window.1 && window.0 < high {
            (low, window.0)
        } else {
            return;
        };
        self.window.set(rest);
    }

    /// The part of `window` in which there may be pages; empty if there are none.
    #[inline]
    pub(crate) fn within(&self, window: Window) -> Window {
        let (low, high) = self.window.get();
        (low.max(window.0), high.min(window.1))
    }

    /// After a move from page `from` to page `to`.
    pub(crate) fn moved(&self, from: PageNumber, to: PageNumber) -> Self {
        let (low, high) = self.window.get();
        let shift = |page: PageNumber| page.saturating_sub(from).saturating_add(to);
        let window = if low < high { (shift(low), shift(high)) } else { (PageNumber::MAX, 0) };
        Self { window: Cell::new(window), ..self.clone() }
    }
}
