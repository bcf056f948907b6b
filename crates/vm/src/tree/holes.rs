//! The search for holes.

use super::{Node, PageNumber, Tree, Value};
use crate::slots::{Piece, Slots, Summary};

impl<V: Value> Tree<V> {
    /// The highest hole of `len` pages between `window.0` and `window.1`: its first page.
    pub(crate) fn highest_hole(
        &self,
        window: (PageNumber, PageNumber),
        len: u64,
    ) -> Option<PageNumber> {
        let (low, high) = window;
        let fit = |from: u64, to: u64| {
            let (from, to) = (from.max(low), to.min(high));
            (to.checked_sub(from)? >= len).then(|| to - len)
        };
        let Some(root) = self.root.as_ref().filter(|_| self.len != 0) else {
            return fit(low, high);
        };
        let (first, last) = root.ends();
        fit(last.end, high)
            .or_else(|| highest_below(root, window, len, &fit))
            .or_else(|| fit(low, first.low))
    }

    /// The lowest hole of `len` pages between `window.0` and `window.1`: its first page.
    pub(crate) fn lowest_hole(
        &self,
        window: (PageNumber, PageNumber),
        len: u64,
    ) -> Option<PageNumber> {
        let (low, high) = window;
        let fit = |from: u64, to: u64| {
            let (from, to) = (from.max(low), to.min(high));
            (to.checked_sub(from)? >= len).then_some(from)
        };
        let Some(root) = self.root.as_ref().filter(|_| self.len != 0) else {
            return fit(low, high);
        };
        let (first, last) = root.ends();
        fit(low, first.low)
            .or_else(|| lowest_below(root, window, len, &fit))
            .or_else(|| fit(last.end, high))
    }
}

impl<V: Value> Node<V> {
    /// What the first and the last piece say of themselves.
    fn ends(&self) -> (&Summary, &Summary) {
        match self {
            Self::Leaf(slots) => (slots.key(0), slots.key(slots.len().saturating_sub(1))),
            Self::Inner(slots) => (slots.key(0), slots.key(slots.len().saturating_sub(1))),
        }
    }
}

fn highest_below<V: Value>(
    node: &Node<V>,
    window: (PageNumber, PageNumber),
    len: u64,
    fit: &impl Fn(PageNumber, PageNumber) -> Option<PageNumber>,
) -> Option<PageNumber> {
    match node {
        Node::Leaf(slots) => highest_among(slots, window, fit, |_, _| None),
        Node::Inner(slots) => highest_among(slots, window, fit, |index, key| {
            let worth = key.gap >= len && key.start < window.1;
            let child = slots.get(index).filter(|_| worth)?;
            highest_below(&child.node, window, len, fit)
        }),
    }
}

#[inline]
fn highest_among<T: Piece>(
    slots: &Slots<T>,
    window: (PageNumber, PageNumber),
    fit: &impl Fn(PageNumber, PageNumber) -> Option<PageNumber>,
    inside: impl Fn(usize, &Summary) -> Option<PageNumber>,
) -> Option<PageNumber> {
    let mut above: Option<u64> = None;
    for index in (0..slots.len()).rev() {
        let key = slots.key(index);
        let between = above.and_then(|above| fit(key.end, above));
        if let Some(hole) = between.or_else(|| inside(index, key)) {
            return Some(hole);
        }
        if key.start <= window.0 {
            return None;
        }
        above = Some(key.low);
    }
    None
}

fn lowest_below<V: Value>(
    node: &Node<V>,
    window: (PageNumber, PageNumber),
    len: u64,
    fit: &impl Fn(PageNumber, PageNumber) -> Option<PageNumber>,
) -> Option<PageNumber> {
    match node {
        Node::Leaf(slots) => lowest_among(slots, window, fit, |_, _| None),
        Node::Inner(slots) => lowest_among(slots, window, fit, |index, key| {
            let worth = key.gap >= len && key.end > window.0;
            let child = slots.get(index).filter(|_| worth)?;
            lowest_below(&child.node, window, len, fit)
        }),
    }
}

#[inline]
fn lowest_among<T: Piece>(
    slots: &Slots<T>,
    window: (PageNumber, PageNumber),
    fit: &impl Fn(PageNumber, PageNumber) -> Option<PageNumber>,
    inside: impl Fn(usize, &Summary) -> Option<PageNumber>,
) -> Option<PageNumber> {
    let mut below: Option<u64> = None;
    for index in 0..slots.len() {
        let key = slots.key(index);
        let between = below.and_then(|below| fit(below, key.low));
        if let Some(hole) = between.or_else(|| inside(index, key)) {
            return Some(hole);
        }
        if key.end >= window.1 {
            return None;
        }
        below = Some(key.end);
    }
    None
}
