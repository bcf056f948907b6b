//! The tree against a plain ordered map.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, PartialEq, Eq, Debug)]
struct Guard(u64);

impl Value for Guard {
    fn guard(&self) -> u64 {
        self.0
    }
}

impl<V: Value> Tree<V> {
    /// All entries, in order.
    pub(crate) fn entries(&self) -> Vec<Entry<V>> {
        fn walk<V: Value>(node: &Node<V>, all: &mut Vec<Entry<V>>) {
            match node {
                Node::Leaf(slots) => all.extend(slots.iter().cloned()),
                Node::Inner(slots) => slots.iter().for_each(|child| walk(&child.node, all)),
            }
        }
        let mut all = Vec::new();
        if let Some(root) = &self.root {
            walk(root, &mut all);
        }
        all
    }

    /// *ordered*, *summaries*, *no-empty-node*, and equal depth.
    pub(crate) fn check(&self) {
        fn keys<T: Piece>(slots: &Slots<T>) {
            for (index, piece) in slots.iter().enumerate() {
                assert_eq!(*slots.key(index), piece.key(), "keys");
            }
        }
        fn walk<V: Value>(node: &Node<V>) -> usize {
            match node {
                Node::Leaf(slots) => {
                    keys(slots);
                    1
                }
                Node::Inner(slots) => {
                    keys(slots);
                    let depths: Vec<_> = slots
                        .iter()
                        .map(|child| {
                            assert_eq!(child.node.summary(), child.sum, "summaries");
                            walk(&child.node)
                        })
                        .collect();
                    assert!(depths.windows(2).all(|pair| pair[0] == pair[1]), "depth");
                    depths[0] + 1
                }
            }
        }
        fn filled<V: Value>(node: &Node<V>) -> bool {
            let below = match node {
                Node::Leaf(_) => true,
                Node::Inner(slots) => slots.iter().all(|child| filled(&child.node)),
            };
            node.len() > 0 && below
        }
        if let Some(root) = &self.root {
            assert!(self.len == 0 || filled(root), "no-empty-node");
            walk(root);
        }
        let all = self.entries();
        assert_eq!(all.len(), self.len);
        assert!(all.iter().all(|entry| entry.start < entry.end), "ordered");
        assert!(all.windows(2).all(|pair| pair[0].end <= pair[1].start), "ordered");
    }
}

/// The highest and the lowest hole, by looking at every page.
fn holes(model: &BTreeMap<u64, (u64, u64)>, window: (u64, u64), len: u64) -> Vec<u64> {
    let mut taken = std::vec![false; 4096];
    let mut below = 0;
    for (&start, &(end, guard)) in model {
        let low = start.saturating_sub(guard).max(below);
        (low..end).for_each(|page| taken[page as usize] = true);
        below = end;
    }
    let last = window.1.min(4096).saturating_sub(len);
    let mut runs = 0;
    let mut starts = Vec::new();
    for page in (window.0..window.1.min(4096)).rev() {
        runs = if taken[page as usize] { 0 } else { runs + 1 };
        if runs >= len && page <= last {
            starts.push(page);
        }
    }
    starts
}

proptest! {
    #![proptest_config(crate::tests::config(60))]
    #[test]
    fn tree_and_ordered_map_agree(
        steps in prop::collection::vec((0u8..8, 0u64..4000, 1u64..9, 0u64..4), 1..crate::tests::longest(900))
    ) {
        let mut tree = Tree::new();
        let mut model: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (what, start, pages, guard) in steps {
            match what {
                0..=4 => {
                    let end = start + pages;
                    if model.range(..end).next_back().is_some_and(|(_, &(e, _))| e > start) {
                        continue;
                    }
                    tree.reserve(&[start], 1).unwrap();
                    tree.insert(Entry { start, end, value: Guard(guard) });
                    model.insert(start, (end, guard));
                }
                5 | 6 => {
                    let hit = model.range(..=start).next_back().map(|(&s, &v)| (s, v));
                    let hit = hit.filter(|&(_, (end, _))| end > start);
                    let got = tree.remove(start).map(|e| (e.start, (e.end, e.value.0)));
                    prop_assert_eq!(got, hit);
                    if let Some((s, _)) = hit {
                        model.remove(&s);
                    }
                }
                _ => {
                    let hit = model.range(..=start).next_back().map(|(&s, &v)| (s, v));
                    if let Some((s, (end, guard))) = hit.filter(|&(_, (end, _))| end > start) {
                        prop_assert!(tree.update(start, |entry| entry.start = start));
                        model.remove(&s);
                        model.insert(start, (end, guard));
                    } else {
                        prop_assert!(!tree.update(start, |_| ()));
                    }
                }
            }
            tree.check();
            let window = (start / 2, 4096 - pages * 40);
            let holes = holes(&model, window, pages * 3);
            prop_assert_eq!(tree.highest_hole(window, pages * 3), holes.first().copied());
            prop_assert_eq!(tree.lowest_hole(window, pages * 3), holes.last().copied());
            let next = model.iter().find(|(_, v)| v.0 > start).map(|(&s, _)| s);
            prop_assert_eq!(tree.find(start).map(|e| e.start), next);
            let before = model.range(..start).next_back().map(|(&s, _)| s);
            prop_assert_eq!(tree.before(start).map(|e| e.start), before);
        }
        let all: Vec<_> =
            tree.entries().into_iter().map(|e| (e.start, (e.end, e.value.0))).collect();
        prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn reserved_inserts_never_allocate_however_deep_the_tree() {
    let mut tree = Tree::new();
    const COUNT: u64 = if cfg!(miri) { 400 } else { 20_000 };
    for page in 0..COUNT {
        // A scattered order.
        let start = (page * 7919 % COUNT) * 2;
        tree.reserve(&[start], 1).unwrap();
        crate::fallible::host::fail_after(Some(0));
        tree.insert(Entry { start, end: start + 1, value: Guard(0) });
        crate::fallible::host::fail_after(None);
    }
    tree.check();
    for page in (0..2 * COUNT).rev() {
        tree.remove(page);
    }
    tree.check();
    assert_eq!(tree.len(), 0);
    assert!(tree.entries().is_empty());
}
