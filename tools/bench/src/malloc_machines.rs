//! The same allocating program on the reference kernel with our malloc, and on Linux with the C library's:
//! turns what `cargo xtask bench malloc` has counted into a row.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::report::{Better, Row};

/// Guest instructions for 64 MiB in mixed sizes, each page touched.
#[derive(Debug, Deserialize)]
struct Counts {
    ours: f64,
    ours_glibc: f64,
    linux_pagoda: f64,
    linux: f64,
}

/// The row: at most a quarter.
pub fn row(from: &Path) -> Result<Row> {
    let text = std::fs::read_to_string(from);
    let text = text.with_context(|| format!("cannot read {}", from.display()))?;
    let counts: Counts =
        serde_json::from_str(&text).with_context(|| format!("in {}", from.display()))?;
    let peers = [
        ("glibc on Linux", counts.linux),
        ("(ours on Linux)", counts.linux_pagoda),
        ("(glibc on Pagoda's kernel)", counts.ours_glibc),
    ];
    Ok(Row {
        case: "64 MiB in mixed sizes, first touch, on Pagoda's kernel".to_owned(),
        unit: "instructions",
        better: Better::Less,
        ours: counts.ours,
        peers: peers.map(|(name, count)| (name.to_owned(), count)).into(),
        gate: Some(0.25),
        spread: 0.0,
    })
}
