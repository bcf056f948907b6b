//! Disjoint intervals of pages in order, with values: a B+tree whose nodes know their longest gap.
//!
//! Nouns: an *entry* is an interval with its value; a *leaf* holds up to [`CAP`] entries, an *inner*
//! node up to [`CAP`] children, each beside the [`Summary`] of what is below it. All leaves have the
//! same depth.
//!
//! Invariants (checked by `Tree::check` in tests):
//! - *ordered*: entries are not empty, ascend and do not overlap;
//! - *summaries*: what stands beside a child is what its entries add up to;
//! - *no-empty-node*: only the root may be empty, a leaf then.
//!
//! A *hole* is a run of pages that no entry covers and no entry guards: an entry may keep a number
//! of pages below itself free ([`Value::guard`]). The search for the highest or lowest hole of a length
//! walks down only where the summaries promise one: O(log n), but for the two paths along the edges
//! of the window.
//!
//! Allocation happens in [`Tree::reserve`] alone. It walks to where entries will be inserted and puts
//! aside a node for each one on the way up that could overflow. Removal may merge nodes meanwhile,
//! but leaves [`SLACK`] places free in the merged one, so that what was reserved stays enough.
//!
//! Left out: borrowing between neighbours (two neighbours that do not fit into one node stay as they
//! are), bulk operations.
//!
//! After Bayer and McCreight, "Organization and maintenance of large ordered indices", 1972; the
//! summaries are those of an interval tree with maximum gaps.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::fallible::{NoMemory, try_box_with, try_push};
pub(crate) use crate::slots::PageNumber;
use crate::slots::{CAP, Piece, Slots, Summary};

/// Free places that a merge leaves, and the most inserts that one `reserve` prepares at one place.
pub(crate) const SLACK: usize = 4;

/// What an interval carries.
pub(crate) trait Value: Clone {
    /// Pages to keep free below the interval.
    fn guard(&self) -> u64;
}

/// An interval with its value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry<V> {
    pub(crate) start: PageNumber,
    pub(crate) end: PageNumber,
    pub(crate) value: V,
}

impl<V> Entry<V> {
    pub(crate) fn pages(&self) -> u64 {
        self.end - self.start
    }
}

impl<V: Value> Piece for Entry<V> {
    #[inline]
    fn key(&self) -> Summary {
        let low = self.start.saturating_sub(self.value.guard());
        Summary { start: self.start, low, end: self.end, gap: 0 }
    }
}

type Leaf<V> = Box<Slots<Entry<V>>>;
type Inner<V> = Box<Slots<Child<V>>>;

enum Node<V> {
    Leaf(Leaf<V>),
    Inner(Inner<V>),
}

struct Child<V> {
    sum: Summary,
    node: Node<V>,
}

impl<V> Piece for Child<V> {
    #[inline]
    fn key(&self) -> Summary {
        self.sum
    }
}

/// The tree.
pub(crate) struct Tree<V> {
    root: Option<Node<V>>,
    len: usize,
    spare: Spare<V>,
}

/// Nodes put aside by `reserve`.
struct Spare<V> {
    leaves: Vec<Leaf<V>>,
    inners: Vec<Inner<V>>,
}

impl<V> Spare<V> {
    fn leaf(&mut self) -> Leaf<V> {
        self.leaves.pop().expect("`reserve` put a leaf aside for every insert")
    }

    fn inner(&mut self) -> Inner<V> {
        self.inners.pop().expect("`reserve` put an inner node aside for every insert")
    }
}

impl<V: Value> Node<V> {
    fn len(&self) -> usize {
        match self {
            Self::Leaf(slots) => slots.len(),
            Self::Inner(slots) => slots.len(),
        }
    }

    fn summary(&self) -> Summary {
        match self {
            Self::Leaf(slots) => slots.summary(),
            Self::Inner(slots) => slots.summary(),
        }
    }

    /// The first page.
    fn start(&self) -> PageNumber {
        match self {
            Self::Leaf(slots) => slots.key(0).start,
            Self::Inner(slots) => slots.key(0).start,
        }
    }

    fn child(self) -> Child<V> {
        Child { sum: self.summary(), node: self }
    }

    /// Inserts below; returns the new right neighbour if the node had to be split.
    fn insert(&mut self, entry: Entry<V>, spare: &mut Spare<V>) -> Option<Child<V>> {
        let page = entry.start;
        let extra = match self {
            Self::Leaf(slots) => {
                let at = slots.first_ending_above(page);
                place(slots, at, entry, || spare.leaf()).map(Self::Leaf)
            }
            Self::Inner(slots) => {
                let at = slots.last_starting_below(page);
                let extra = slots.edit(at, |child| {
                    let extra = child.node.insert(entry, spare);
                    child.refresh();
                    extra
                })?;
                extra
                    .and_then(|child| place(slots, at + 1, child, || spare.inner()))
                    .map(Self::Inner)
            }
        };
        extra.map(Node::child)
    }

    /// Removes the entry that covers `page`.
    fn remove(&mut self, page: PageNumber) -> Option<Entry<V>> {
        match self {
            Self::Leaf(slots) => {
                let at = slots.first_ending_above(page);
                if slots.get(at)?.start > page {
                    return None;
                }
                slots.remove(at)
            }
            Self::Inner(slots) => {
                let at = slots.first_ending_above(page);
                let (entry, left) = slots.edit(at, |child| {
                    let entry = child.node.remove(page);
                    child.refresh();
                    (entry, child.node.len())
                })?;
                if left == 0 {
                    slots.remove(at);
                } else if left < CAP / 2 && !merge(slots, at) && at > 0 {
                    merge(slots, at - 1);
                }
                entry
            }
        }
    }

    /// Lets `change` alter the entry that covers `page`, including its bounds.
    fn update(&mut self, page: PageNumber, change: impl FnOnce(&mut Entry<V>)) -> bool {
        match self {
            Self::Leaf(slots) => {
                let at = slots.first_ending_above(page);
                if slots.get(at).is_none_or(|entry| entry.start > page) {
                    return false;
                }
                slots.edit(at, change).is_some()
            }
            Self::Inner(slots) => {
                let at = slots.first_ending_above(page);
                let done = slots.edit(at, |child| {
                    let done = child.node.update(page, change);
                    child.refresh();
                    done
                });
                done.unwrap_or(false)
            }
        }
    }

    /// A copy with the same shape of what `keep` lets through, as `keep` alters it; none if nothing
    /// is left.
    fn copy<E: From<NoMemory>>(
        &self,
        keep: &mut impl FnMut(&Entry<V>) -> Result<Option<V>, E>,
        len: &mut usize,
    ) -> Result<Option<Self>, E> {
        Ok(match self {
            Self::Leaf(slots) => {
                let mut copy = try_box_with(Slots::default)?;
                for entry in slots.iter() {
                    if let Some(value) = keep(entry)? {
                        copy.push(Entry { start: entry.start, end: entry.end, value });
                    }
                }
                *len += copy.len();
                (copy.len() != 0).then_some(Self::Leaf(copy))
            }
            Self::Inner(slots) => {
                let mut copy = try_box_with(Slots::default)?;
                for child in slots.iter() {
                    if let Some(node) = child.node.copy(keep, len)? {
                        copy.push(node.child());
                    }
                }
                (copy.len() != 0).then_some(Self::Inner(copy))
            }
        })
    }
}

impl<V: Value> Child<V> {
    fn refresh(&mut self) {
        self.sum = self.node.summary();
    }
}

/// Puts `item` at `at`; splits a full node, the upper half going to a node from `spare`.
fn place<T: Piece>(
    slots: &mut Box<Slots<T>>,
    at: usize,
    item: T,
    spare: impl FnOnce() -> Box<Slots<T>>,
) -> Option<Box<Slots<T>>> {
    if slots.len() < CAP {
        slots.insert(at, item);
        return None;
    }
    let mut right = spare();
    slots.split_into(&mut right);
    if at <= slots.len() {
        slots.insert(at, item);
    } else {
        right.insert(at - slots.len(), item);
    }
    Some(right)
}

/// Merges child `at` with the one above it if that leaves [`SLACK`] places free.
fn merge<V: Value>(slots: &mut Slots<Child<V>>, at: usize) -> bool {
    let fits = match (slots.get(at), slots.get(at + 1)) {
        (Some(left), Some(right)) => left.node.len() + right.node.len() <= CAP - SLACK,
        _ => false,
    };
    if !fits {
        return false;
    }
    let Some(mut right) = slots.remove(at + 1) else { return false };
    let merged = slots.edit(at, |left| {
        match (&mut left.node, &mut right.node) {
            (Node::Leaf(left), Node::Leaf(right)) => left.append(right),
            (Node::Inner(left), Node::Inner(right)) => left.append(right),
            _ => debug_assert!(false, "all leaves have the same depth"),
        }
        left.refresh();
    });
    merged.is_some()
}

impl<V: Value> Tree<V> {
    pub(crate) const fn new() -> Self {
        Self { root: None, len: 0, spare: Spare { leaves: Vec::new(), inners: Vec::new() } }
    }

    /// The number of entries.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The first entry that ends above `page`: the one that covers it, or else the next one.
    #[inline]
    pub(crate) fn find(&self, page: PageNumber) -> Option<&Entry<V>> {
        let mut node = self.root.as_ref()?;
        loop {
            match node {
                Node::Leaf(slots) => return slots.get(slots.first_ending_above(page)),
                Node::Inner(slots) => node = &slots.get(slots.first_ending_above(page))?.node,
            }
        }
    }

    /// The entries that end above `page`, in order: a search for each leaf of the tree.
    pub(crate) fn from(&self, page: PageNumber) -> impl Iterator<Item = &Entry<V>> {
        let mut next = page;
        let mut leaf: Option<(&Slots<Entry<V>>, usize)> = None;
        core::iter::from_fn(move || {
            let found = leaf.and_then(|(slots, at)| Some((slots, at, slots.get(at)?)));
            let (slots, at, entry) = match found {
                Some(found) => found,
                None => {
                    let slots = self.leaf_of(next)?;
                    let at = slots.first_ending_above(next);
                    (slots, at, slots.get(at)?)
                }
            };
            (leaf, next) = (Some((slots, at + 1)), entry.end);
            Some(entry)
        })
    }

    /// The leaf with the first entry that ends above `page`.
    fn leaf_of(&self, page: PageNumber) -> Option<&Slots<Entry<V>>> {
        let mut node = self.root.as_ref()?;
        loop {
            match node {
                Node::Leaf(slots) => return Some(slots),
                Node::Inner(slots) => node = &slots.get(slots.first_ending_above(page))?.node,
            }
        }
    }

    /// The entry that covers `page`.
    #[inline]
    pub(crate) fn covering(&self, page: PageNumber) -> Option<&Entry<V>> {
        self.find(page).filter(|entry| entry.start <= page)
    }

    /// The last entry that starts below `page`.
    pub(crate) fn before(&self, page: PageNumber) -> Option<&Entry<V>> {
        let mut node = self.root.as_ref()?;
        loop {
            match node {
                Node::Leaf(slots) => return slots.before(page),
                Node::Inner(slots) => {
                    node = &slots.before(page)?.node;
                }
            }
        }
    }

    /// The last entry that starts below `page`, and the first one that does not.
    #[inline]
    pub(crate) fn neighbours(&self, page: PageNumber) -> (Option<&Entry<V>>, Option<&Entry<V>>) {
        if let Some(Node::Leaf(slots)) = &self.root {
            let above = slots.count_below(page);
            return (above.checked_sub(1).and_then(|below| slots.get(below)), slots.get(above));
        }
        let below = self.before(page);
        (below, self.find(below.map_or(page, |below| below.end.max(page))))
    }

    /// A copy of what `keep` lets through, as `keep` alters it: O(entries), nothing is searched.
    pub(crate) fn copy<E: From<NoMemory>>(
        &self,
        mut keep: impl FnMut(&Entry<V>) -> Result<Option<V>, E>,
    ) -> Result<Self, E> {
        let mut copy = Self::new();
        if let Some(root) = &self.root {
            copy.root = root.copy(&mut keep, &mut copy.len)?;
        }
        copy.shrink();
        Ok(copy)
    }

    /// Allocates what `inserts` (at most [`SLACK`]) inserts at or next to each of `places` can need.
    pub(crate) fn reserve(
        &mut self,
        places: &[PageNumber],
        inserts: usize,
    ) -> Result<(), NoMemory> {
        debug_assert!(inserts <= SLACK);
        // The common case: all in one leaf that has room for every insert.
        if let Some(Node::Leaf(slots)) = &self.root {
            if slots.len() + inserts <= CAP {
                return Ok(());
            }
        }
        let (mut leaves, mut inners) = (0, 0);
        for &page in places {
            let (leaf, inner) = self.overflowing(page, inserts);
            leaves += leaf;
            inners += inner;
        }
        while self.spare.leaves.len() < leaves {
            let leaf = try_box_with(Slots::default)?;
            try_push(&mut self.spare.leaves, leaf)?;
        }
        while self.spare.inners.len() < inners {
            let inner = try_box_with(Slots::default)?;
            try_push(&mut self.spare.inners, inner)?;
        }
        Ok(())
    }

    /// The leaves and inner nodes that `inserts` inserts at `page` may have to add.
    ///
    /// An insert goes to the leaf of the last entry that starts below it. That entry keeps its start
    /// while a call trims and removes what lies above, so the leaf is the one found now, or a merged
    /// one with room. Its overflow runs up through the unbroken run of full nodes above it, and may
    /// need a new root (even below the present one, should that shrink away meanwhile). Where no
    /// entry starts below, the leaf may change: every level counts.
    fn overflowing(&self, page: PageNumber, inserts: usize) -> (usize, usize) {
        let Some(root) = &self.root else { return (1, 0) };
        let (mut node, mut levels, mut run) = (root, 1, 0);
        loop {
            run = if node.len() + inserts > CAP { run + 1 } else { 0 };
            match node {
                Node::Leaf(_) => break,
                Node::Inner(slots) => match slots.get(slots.last_starting_below(page)) {
                    Some(next) => node = &next.node,
                    None => break,
                },
            }
            levels += 1;
        }
        if root.start() >= page {
            (1, levels)
        } else if run > 0 {
            (1, run)
        } else {
            (0, 0)
        }
    }

    /// Inserts an entry that overlaps no other. `reserve` was called for its start.
    pub(crate) fn insert(&mut self, entry: Entry<V>) {
        debug_assert!(entry.start < entry.end);
        self.len += 1;
        let Some(root) = &mut self.root else {
            let mut leaf = self.spare.leaf();
            leaf.insert(0, entry);
            self.root = Some(Node::Leaf(leaf));
            return;
        };
        if let Some(right) = root.insert(entry, &mut self.spare) {
            let mut top = self.spare.inner();
            if let Some(left) = self.root.take() {
                top.insert(0, left.child());
            }
            top.insert(1, right);
            self.root = Some(Node::Inner(top));
        }
    }

    /// Removes the entry that covers `page`.
    pub(crate) fn remove(&mut self, page: PageNumber) -> Option<Entry<V>> {
        let entry = self.root.as_mut()?.remove(page)?;
        self.len -= 1;
        self.shrink();
        Some(entry)
    }

    /// No root with one child. (An empty leaf is kept for the next insert, which counts on it.)
    #[inline]
    fn shrink(&mut self) {
        while let Some(Node::Inner(slots)) = &mut self.root {
            if slots.len() > 1 {
                return;
            }
            self.root = slots.remove(0).map(|only| only.node);
        }
    }

    /// Lets `change` alter the entry that covers `page`. Its bounds may change as long as the order
    /// of the entries stays.
    pub(crate) fn update(&mut self, page: PageNumber, change: impl FnOnce(&mut Entry<V>)) -> bool {
        self.root.as_mut().is_some_and(|root| root.update(page, change))
    }
}

mod holes;
#[cfg(test)]
mod tests;
