//! All pairs: few rows of a product of choices, such that any two values of any two choices meet in
//! one of them. Most mistakes that depend on the configuration depend on one choice or on two.
//!
//! Greedy: the row that brings the most new pairs is taken, the first of several, until no pair is
//! missing (after D. M. Cohen et al., "The AETG System", IEEE TSE 23(7), 1997, with the whole
//! product as candidates: ours has a hundred rows, and so the answer is the same each time).

use std::collections::BTreeSet;

/// One value for each choice, as an index.
pub type Row = Vec<usize>;

/// Two choices and a value for each.
type Pair = (usize, usize, usize, usize);

/// The whole product: `sizes` says how many values each choice has.
pub fn product(sizes: &[usize]) -> Vec<Row> {
    let mut rows = vec![Row::new()];
    for &size in sizes {
        let extend = |row: &Row| {
            let row = row.clone();
            (0..size).map(move |value| [row.as_slice(), &[value]].concat())
        };
        rows = rows.iter().flat_map(extend).collect();
    }
    rows
}

fn pairs(row: &[usize]) -> impl Iterator<Item = Pair> {
    (0..row.len()).flat_map(move |a| (a + 1..row.len()).map(move |b| (a, b, row[a], row[b])))
}

/// The selection.
pub fn all_pairs(sizes: &[usize]) -> Vec<Row> {
    let candidates = product(sizes);
    let mut missing: BTreeSet<Pair> = candidates.iter().flat_map(|row| pairs(row)).collect();
    let mut chosen = Vec::new();
    while !missing.is_empty() {
        let gain = |row: &&Row| pairs(row).filter(|pair| missing.contains(pair)).count();
        // `max_by_key` keeps the last of several: from behind, that is the first.
        let Some(best) = candidates.iter().rev().max_by_key(gain) else { break };
        for pair in pairs(best) {
            missing.remove(&pair);
        }
        chosen.push(best.clone());
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asked in another way than it was made: every pair of values is looked for in the rows.
    fn uncovered(sizes: &[usize], rows: &[Row]) -> usize {
        let mut count = 0;
        for a in 0..sizes.len() {
            for b in a + 1..sizes.len() {
                for (x, y) in (0..sizes[a]).flat_map(|x| (0..sizes[b]).map(move |y| (x, y))) {
                    count += usize::from(!rows.iter().any(|row| row[a] == x && row[b] == y));
                }
            }
        }
        count
    }

    #[test]
    fn every_pair_is_covered_by_few_rows() {
        for sizes in [&[4, 4, 3, 2][..], &[2, 2, 2, 2, 2], &[5, 1, 3], &[3, 3, 3, 3], &[1, 1]] {
            let rows = all_pairs(sizes);
            assert_eq!(uncovered(sizes, &rows), 0, "{sizes:?}");
            let mut largest = sizes.to_vec();
            largest.sort_by(|a, b| b.cmp(a));
            let least = largest[0] * largest[1];
            assert!((least..=least * 2).contains(&rows.len()), "{sizes:?}: {} rows", rows.len());
            assert!(rows.iter().all(|row| row.iter().zip(sizes).all(|(value, size)| value < size)));
        }
    }

    #[test]
    fn a_row_left_out_is_missed() {
        let sizes = [4, 4, 3, 2];
        let rows = all_pairs(&sizes);
        for without in 0..rows.len() {
            let fewer: Vec<Row> = [&rows[..without], &rows[without + 1..]].concat();
            assert_ne!(uncovered(&sizes, &fewer), 0, "row {without} brings nothing");
        }
    }

    #[test]
    fn the_product_is_whole() {
        let all: BTreeSet<Row> = product(&[4, 4, 3, 2]).into_iter().collect();
        assert_eq!(all.len(), 96);
    }
}
