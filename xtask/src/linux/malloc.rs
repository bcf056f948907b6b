//! `cargo xtask bench malloc`: first one allocating program (`mixed.c`) runs in machines that count
//! instructions: with pagoda-malloc and with the C library's malloc, as the first process of our kernel
//! and of Linux. Then the measuring program runs, with these counts among its rows.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Bench, Kind, figures};
use crate::build;

/// The command.
pub fn bench(arguments: &[String]) -> Result<()> {
    let mut all = vec!["malloc".to_owned()];
    // The other parts need no machine.
    let only = arguments.iter().skip_while(|word| *word != "--only").nth(1);
    if only.is_none_or(|part| part == "machines") {
        let counts = count()?;
        all.extend(["--machines".to_owned(), counts.to_string_lossy().into_owned()]);
    }
    all.extend(arguments.iter().cloned());
    build::bench(&all)
}

/// Runs the program everywhere; returns the path of the counts.
fn count() -> Result<PathBuf> {
    let mut bench = Bench::prepare()?;
    let archive = build::malloc_archive()?;
    let mut json = String::new();
    for (name, kind, archive) in [
        ("ours", Kind::Ours, Some(archive.as_path())),
        ("ours_glibc", Kind::Ours, None),
        ("linux_pagoda", Kind::Linux, Some(archive.as_path())),
        ("linux", Kind::Linux, None),
    ] {
        eprintln!("bench: mixed sizes, {name}");
        bench.program = compile(&bench.dir, archive)?;
        let figures = figures(&bench.boot(kind, "", None)?)?;
        let figure = figures.cases.get("malloc").context("the program counted nothing")?;
        let comma = if json.is_empty() { "" } else { ",\n" };
        let _ = write!(json, "{comma}\"{name}\": {}", figure.median);
    }
    let path = bench.dir.join("malloc-machines.json");
    fs::write(&path, format!("{{{json}}}\n"))?;
    Ok(path)
}

/// The program as a static binary, with the C library's malloc or with ours before it.
fn compile(dir: &Path, archive: Option<&Path>) -> Result<PathBuf> {
    let source = build::root().join("xtask/src/linux/mixed.c");
    let program = dir.join("mixed");
    let mut compiler = Command::new("gcc");
    compiler.args(["-O2", "-static", "-o"]).arg(&program).arg(source).args(archive);
    ensure!(compiler.status().context("gcc does not run")?.success(), "mixed.c does not compile");
    Ok(program)
}
