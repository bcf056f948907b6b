//! The search for holes.

use super::{Node, PageNumber, Tree, Value};
use crate::slots::{Piece, Slots};

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
        let Some(root) = &self.root else { return fit(low, high) };
        fit(root.sum.end, high)
            .or_else(|| highest_below(&root.node, window, len, &fit))
            .or_else(|| fit(low, root.sum.low))
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
        let Some(root) = &self.root else { return fit(low, high) };
        fit(low, root.sum.low)
            .or_else(|| lowest_below(&root.node, window, len, &fit))
            .or_else(|| fit(root.sum.end, high))
    }
}

type Fit<'f> = &'f dyn Fn(PageNumber, PageNumber) -> Option<PageNumber>;

fn highest_below<V: Value>(
    node: &Node<V>,
    window: (PageNumber, PageNumber),
    len: u64,
    fit: Fit<'_>,
) -> Option<PageNumber> {
    match node {
        Node::Leaf(slots) => highest_among(slots, window, fit, |_| None),
        Node::Inner(slots) => highest_among(slots, window, fit, |child| {
            let worth = child.sum.gap >= len && child.sum.start < window.1;
            if worth { highest_below(&child.node, window, len, fit) } else { None }
        }),
    }
}

fn highest_among<T: Piece>(
    slots: &Slots<T>,
    window: (PageNumber, PageNumber),
    fit: Fit<'_>,
    inside: impl Fn(&T) -> Option<PageNumber>,
) -> Option<PageNumber> {
    let mut above: Option<&T> = None;
    for piece in slots.iter().rev() {
        let between = above.and_then(|above| fit(piece.end(), above.low()));
        if let Some(hole) = between.or_else(|| inside(piece)) {
            return Some(hole);
        }
        if piece.start() <= window.0 {
            return None;
        }
        above = Some(piece);
    }
    None
}

fn lowest_below<V: Value>(
    node: &Node<V>,
    window: (PageNumber, PageNumber),
    len: u64,
    fit: Fit<'_>,
) -> Option<PageNumber> {
    match node {
        Node::Leaf(slots) => lowest_among(slots, window, fit, |_| None),
        Node::Inner(slots) => lowest_among(slots, window, fit, |child| {
            let worth = child.sum.gap >= len && child.sum.end > window.0;
            if worth { lowest_below(&child.node, window, len, fit) } else { None }
        }),
    }
}

fn lowest_among<T: Piece>(
    slots: &Slots<T>,
    window: (PageNumber, PageNumber),
    fit: Fit<'_>,
    inside: impl Fn(&T) -> Option<PageNumber>,
) -> Option<PageNumber> {
    let mut below: Option<&T> = None;
    for piece in slots.iter() {
        let between = below.and_then(|below| fit(below.end(), piece.low()));
        if let Some(hole) = between.or_else(|| inside(piece)) {
            return Some(hole);
        }
        if piece.end() >= window.1 {
            return None;
        }
        below = Some(piece);
    }
    None
}
