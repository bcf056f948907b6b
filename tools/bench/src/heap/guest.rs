//! Instructions of the fast path, as the kernel counted them in an emulator that counts time in
//! instructions (`selftest=heap`; see `cargo xtask bench heap`).

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::report::{Better, Row};

/// The cases, as the kernel calls them, and what they may cost.
const CASES: [(&str, Option<f64>); 4] = [
    ("kalloc + kfree_sized", Some(30.0)),
    ("kalloc + kfree", Some(40.0)),
    ("kalloc + kfree_sized, size not known to the compiler", None),
    ("two pins of these", None),
];

/// A row for each count in the kernel's log.
pub fn rows(log: &Path) -> Result<Vec<Row>> {
    let log = std::fs::read_to_string(log).with_context(|| log.display().to_string())?;
    CASES.iter().map(|&(case, limit)| row(&log, case, limit)).collect()
}

fn row(log: &str, case: &str, limit: Option<f64>) -> Result<Row> {
    let after = |line: &str| Some(line.split_once("count: ")?.1.strip_prefix(case)?.to_owned());
    let number = |rest: String| rest.strip_prefix(": ")?.trim().parse().ok();
    let Some(ours) = log.lines().filter_map(after).find_map(number) else {
        bail!("the kernel has not counted {case:?}");
    };
    Ok(Row {
        case: format!("in the kernel: {case}"),
        unit: "instructions",
        better: Better::Less,
        ours,
        peers: limit.map(|limit| ("limit".to_owned(), limit)).into_iter().collect(),
        gate: limit.map(|_| 1.0),
        spread: 0.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_found_among_other_lines() {
        let log = "[ 0.1] pagoda\r\n[ 0.2] count: kalloc + kfree: 39.00\r\n\
                   [ 0.3] count: kalloc + kfree_sized: 29.00\r\n";
        assert_eq!(row(log, CASES[0].0, CASES[0].1).unwrap().ours, 29.0);
        assert!(row(log, CASES[1].0, Some(30.0)).unwrap().ratio().unwrap() > 1.0);
        assert!(row(log, CASES[3].0, None).is_err());
    }
}
