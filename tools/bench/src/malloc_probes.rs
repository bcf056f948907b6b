//! Single facts about a malloc: what an idle program costs, whether memory goes back, what is left of a peak, how
//! many instructions the short ways take.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::malloc_programs::{Loaded, contestants};
use crate::report::{Better, Row};

/// Says something after each step, and goes on when it hears something.
const PROGRAM: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static void step(void) { char c; if (write(1, "\n", 1) != 1 || read(0, &c, 1) != 1) _exit(1); }
int main(int n, char **v) {
  if (n > 1 && !strcmp(v[1], "pairs")) {
    size_t bytes = strtoul(v[2], 0, 10);
    for (long i = 0; i < 100000; i++) { char *volatile p = malloc(bytes); *p = 1; free(p); }
    return 0;
  }
  if (n > 1 && !strcmp(v[1], "peak")) {
    enum { COUNT = 200000, TURNS = 3000000 };
    static char *all[COUNT]; static int live[COUNT]; int kept = 0; unsigned long seed = 1;
#define NEXT(limit) ((seed = seed * 6364136223846793005 + 1442695040888963407) >> 33) % (limit)
    for (int i = 0; i < COUNT; i++) {
      size_t bytes = 16 + NEXT(1000); all[i] = malloc(bytes); memset(all[i], 1, bytes);
    }
    step();
    for (int i = 0; i < COUNT; i++) if (NEXT(10) < 7) free(all[i]); else live[kept++] = i;
    for (int turn = 0; turn < TURNS; turn++) {
      int i = live[NEXT(kept)]; free(all[i]);
      size_t bytes = 16 + NEXT(1000); all[i] = malloc(bytes); memset(all[i], 1, bytes);
    }
    step();
    return 0;
  }
  char *volatile one = malloc(40);
  *one = 1;
  step();
  if (n == 1) return 0;
  long count = strtol(v[1], 0, 10); size_t held = 0; long seed = 1;
  char **all = malloc(count * sizeof *all);
  for (long i = 0; i < count; i++) {
    seed = seed * 6364136223846793005 + 1442695040888963407;
    size_t bytes = 16 + (size_t)(seed >> 33) % 2000;
    all[i] = malloc(bytes); memset(all[i], 1, bytes); held += bytes;
  }
  step();
  for (long i = 0; i < count; i++) free(all[i]);
  free(all);
  sleep(1);
  step();
  return 0;
}
"#;

/// Idle program, memory given back, instructions.
pub fn rows() -> Result<Vec<Row>> {
    let work = std::env::temp_dir().join(format!("pagoda-probe-{}", std::process::id()));
    fs::create_dir_all(&work)?;
    let result = probed(&work);
    let _ = fs::remove_dir_all(&work);
    result
}

fn probed(work: &Path) -> Result<Vec<Row>> {
    let (source, program) = (work.join("probe.c"), work.join("probe"));
    fs::write(&source, PROGRAM)?;
    let built = Command::new("cc").args(["-O1", "-o"]).arg(&program).arg(&source).status()?;
    ensure!(built.success(), "the probe does not compile");
    let mallocs = contestants()?;
    let mut rows = vec![idle(&mallocs, &program, "Rss")?, idle(&mallocs, &program, "Private")?];
    rows.push(given_back(&mallocs, &program)?);
    rows.push(after_a_peak(&mallocs, &program)?);
    match instructions(&mallocs, &program, work) {
        Ok(counted) => rows.extend(counted),
        Err(error) => eprintln!("malloc: no instruction counts: {error:#}"),
    }
    Ok(rows)
}

/// Runs the probe and looks at its memory (KiB) after each step.
fn steps(malloc: &Loaded, program: &Path, count: Option<&str>, field: &str) -> Result<Vec<f64>> {
    let mut command = Command::new(program);
    command.args(count).envs(malloc.options.iter().copied()).env_remove("LD_PRELOAD");
    if let Some(object) = &malloc.object {
        command.env("LD_PRELOAD", object);
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (mut to, from) = (child.stdin.take().context("a pipe")?, child.stdout.take());
    let mut from = BufReader::new(from.context("a pipe")?);
    let mut seen = Vec::new();
    let mut line = String::new();
    while from.read_line(&mut line)? > 0 {
        let path = format!("/proc/{}/smaps_rollup", child.id());
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let parts = text.lines().filter(|line| line.starts_with(field));
        seen.push(
            parts.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok()).sum(),
        );
        to.write_all(b"\n")?;
    }
    ensure!(child.wait()?.success(), "the probe with {} failed", malloc.name);
    Ok(seen)
}

fn informs(case: &str, unit: &'static str, better: Better, figures: &[(&str, f64)]) -> Row {
    let (ours, peers) = figures.split_first().map_or((f64::NAN, figures), |(o, p)| (o.1, p));
    let peers: BTreeMap<_, _> =
        peers.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
    Row { case: case.to_owned(), unit, better, ours, peers, gate: None, spread: 0.0 }
}

/// An idle program with one malloc: at most 64 KiB more than with glibc's. How many pages around a touched
/// one come with it depends on where the loader put a file: so many rounds, interleaved, and their mean.
fn idle(mallocs: &[Loaded], program: &Path, field: &str) -> Result<Row> {
    const ROUNDS: u32 = 401;
    let mut figures: Vec<_> = mallocs.iter().map(|malloc| (malloc.name, 0.0)).collect();
    for _ in 0..ROUNDS {
        for (malloc, (_, mean)) in mallocs.iter().zip(&mut figures) {
            let first = steps(malloc, program, None, field)?.first().copied();
            *mean += first.unwrap_or(f64::NAN) / f64::from(ROUNDS);
        }
    }
    let what = if field == "Rss" { "resident" } else { "private" };
    let mut row = informs(&format!("idle program, {what}"), "KiB", Better::Less, &figures);
    if field == "Rss" {
        row.gate = row.best_peer().map(|glibc| (glibc + 64.0) / glibc);
    }
    Ok(row)
}

/// What part of 100 MiB in blocks of 16 to 2015 bytes is back with the system a second after the last
/// was freed, without a call.
fn given_back(mallocs: &[Loaded], program: &Path) -> Result<Row> {
    let mut figures = vec![];
    for malloc in mallocs {
        let seen = steps(malloc, program, Some("103000"), "Rss")?;
        ensure!(seen.len() == 3, "the probe has three steps");
        figures.push((malloc.name, 100.0 * (seen[1] - seen[2]) / (seen[1] - seen[0])));
    }
    let case = "100 MiB freed, back after 1 s";
    let mut row = informs(case, "%", Better::More, &figures);
    row.peers = row.peers.into_iter().map(|(name, part)| (inform(&name), part)).collect();
    row.peers.insert("goal".into(), 90.0);
    row.gate = Some(1.0);
    Ok(row)
}

/// What is resident of a program that had 200,000 blocks of 16 to 1015 bytes, has freed seven of ten, here and
/// there, and goes on replacing the others.
fn after_a_peak(mallocs: &[Loaded], program: &Path) -> Result<Row> {
    let mut figures = vec![];
    for malloc in mallocs {
        let seen = steps(malloc, program, Some("peak"), "Rss")?;
        ensure!(seen.len() == 2, "the probe has two steps");
        figures.push((malloc.name, seen[1] / 1024.0));
    }
    Ok(informs("107 MiB, 70 % freed, the rest in use", "MiB", Better::Less, &figures))
}

/// A name that is no peer of a gate.
fn inform(name: &str) -> String {
    if name.starts_with('(') { name.to_owned() } else { format!("({name})") }
}

/// Instructions of `malloc` and `free` by themselves, counted by callgrind over 100,000 pairs.
fn instructions(mallocs: &[Loaded], program: &Path, work: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for bytes in [64, 1024] {
        let (mut allocs, mut frees) = (Vec::new(), Vec::new());
        for malloc in mallocs {
            let counts = count(malloc, program, bytes, work)?;
            allocs.push((malloc.name, counts.0));
            frees.push((malloc.name, counts.1));
        }
        for (what, goal, figures) in [("malloc", 16.0, allocs), ("free", 18.0, frees)] {
            let case = format!("{what}({bytes}), the short way");
            let mut row = informs(&case, "instructions", Better::Less, &figures);
            row.peers = row.peers.into_iter().map(|(name, n)| (inform(&name), n)).collect();
            row.peers.insert("goal".into(), goal);
            row.gate = Some(1.0);
            rows.push(row);
        }
    }
    Ok(rows)
}

fn count(malloc: &Loaded, program: &Path, bytes: u32, work: &Path) -> Result<(f64, f64)> {
    let spent = |function: &str| -> Result<f64> {
        let out = work.join("callgrind");
        let mut command = Command::new("valgrind");
        command.args([
            "--quiet",
            "--tool=callgrind",
            "--soname-synonyms=somalloc=nouserintercepts",
        ]);
        command.arg(format!("--toggle-collect={function}"));
        command.arg(format!("--callgrind-out-file={}", out.display()));
        command.arg(program).args(["pairs", &bytes.to_string()]);
        command.envs(malloc.options.iter().copied()).env_remove("LD_PRELOAD");
        if let Some(object) = &malloc.object {
            command.env("LD_PRELOAD", object);
        }
        ensure!(command.status().context("valgrind is not installed")?.success(), "valgrind fails");
        let text = fs::read_to_string(&out)?;
        let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
        let total: f64 = total.context("callgrind wrote no total")?.trim().parse()?;
        Ok((total / 100_000.0).floor())
    };
    Ok((spent("malloc")?, spent("free")?))
}
