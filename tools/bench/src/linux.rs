//! The reference kernel beside Linux: turns what `cargo xtask bench linux` has measured into rows.
//!
//! The input is the JSON that `xtask` wrote: for each kernel the counts of guest instructions for
//! one operation of each case of `user/mmbench`, and, where the machine was traced, how many of
//! them were locked, `invlpg` or writes to CR3.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::report::{Better, Row};

/// What one kernel needed for one case.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Figure {
    median: f64,
    min: f64,
}

/// Instructions for one operation that cost more than their count says.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Events {
    instructions: f64,
    locked: f64,
    invlpg: f64,
    cr3: f64,
    msr: f64,
    io: f64,
}

#[derive(Debug, Default, Deserialize)]
struct Kernel {
    cases: BTreeMap<String, Figure>,
    #[serde(default)]
    events: BTreeMap<String, Events>,
}

/// The input.
#[derive(Debug, Deserialize)]
pub struct Raw {
    /// Names of the cases in the order in which they ran.
    order: Vec<String>,
    ours: Kernel,
    /// Ours with one page for each fault, where it would bring several.
    #[serde(default)]
    ours_single: Kernel,
    linux: Kernel,
    mitigations_off: Kernel,
    /// Version of the Linux kernel.
    version: String,
}

/// What flatters us, and what the counts leave out.
const HONESTY: &str = "\n\
    What to know of these counts:\n\n\
    - `getppid` is, with `getpid` and `gettid`, answered before the table of calls is looked at: nothing \
      else may be read off it. Any other call pays about 125 instructions of entry and dispatch. \
      The big lock around all of the kernel is not taken on a machine with one CPU, as here.\n\
    - A program that touches one page after another gets up to 32 of them with one fault. So do the \
      rows of first touch, of copies and of reuse, and those that contain such touches. \
      `faultahead=1` on the command line is Linux's way, a page for each fault: the rows that say so.\n\
    - Clearing or copying a page by `rep` counts 512 instructions on both sides, here and in Linux: \
      more than half of all that our first touch needs.\n\
    - After a fork the child runs first where no other CPU is idle; Linux lets the parent go on, whose \
      stack is then copied. What a child leaves to be copied is in the rows in which somebody writes.\n";

const LINUX: &str = "Linux";
const BARE: &str = "Linux, mitigations=off init_on_alloc=0";

/// What we hold ourselves to: the case, in words, the part of stock Linux's instructions, and of
/// Linux's without mitigations.
const GATES: &[(&str, &str, f64, f64)] = &[
    ("getppid", "getppid", 0.25, 0.3),
    ("touch", "anonymous write fault, first touch", 0.25, 0.3),
    ("munmap.page", "munmap, per touched page", 0.1, 0.12),
    ("mmap.munmap", "mmap + munmap, one page", 0.1, 0.12),
    ("mmap.touch.munmap.1m", "mmap + touch + munmap, 1 MiB", 0.25, 0.3),
    ("mprotect.flip.1m", "mprotect flip, 1 MiB, two calls", 0.1, 0.12),
    ("brk.64k", "brk +64 KiB, touch, shrink", 0.25, 0.3),
    ("fork.small", "fork + exit + wait, small", 0.25, 0.3),
    ("fork.64m", "fork + exit + wait, 64 MiB touched", 0.5, 0.5),
    ("cow.child", "copy-on-write fault", 0.25, 0.3),
    ("cow.sole", "reuse after sole ownership", 0.25, 0.3),
    ("fork.64m.rewrite", "fork, parent rewrites all 64 MiB, exit, wait", 0.5, 0.5),
];

/// The other cases in words.
const WORDS: &[(&str, &str)] = &[
    ("fork.sparse", "fork + exit + wait, 512 pages, one per 2 MiB"),
    ("read.zero", "anonymous read fault, first touch"),
    ("mremap.grow.shrink", "mremap +1 MiB in place, and back"),
    ("mremap.move.1m", "mremap, a touched 1 MiB moves"),
    ("mmap.munmap.1g", "mmap + munmap, 1 GiB"),
    ("file.private.read.1m", "private file map, 1 MiB: map, read, unmap"),
    ("file.private.write.1m", "private file map, 1 MiB: map, write, unmap"),
    ("file.shared.read.1m", "shared file map, 1 MiB: map, read, unmap"),
    ("file.shared.write.1m", "shared file map, 1 MiB: map, write, unmap"),
    ("shared.touch.1m", "shared anonymous 1 MiB: map, write, unmap"),
    ("regions.12.touch", "first touch, few regions"),
    ("regions.10000.touch", "first touch, 10,000 regions"),
    ("regions.10000.mmap.munmap", "mmap + munmap, one page, 10,000 regions"),
    ("spans.64m.mmap", "mmap, 64 MiB"),
    ("spans.64g.mmap", "mmap, 64 GiB"),
    ("spans.64m.touch", "first touch of 16 spans of 2 MiB in 64 MiB"),
    ("spans.64g.touch", "first touch of 16 spans of 2 MiB in 64 GiB"),
    ("spans.64m.mprotect", "mprotect, 16 touched spans in 64 MiB"),
    ("spans.64g.mprotect", "mprotect, 16 touched spans in 64 GiB"),
    ("spans.64m.munmap", "munmap, 16 touched spans in 64 MiB"),
    ("spans.64g.munmap", "munmap, 16 touched spans in 64 GiB"),
];

/// Ours against ours: a case, the one it may exceed, and by how much.
const GROWTH: &[(&str, &str, &str)] = &[
    ("regions.10000.touch", "regions.12.touch", "ours: first touch, 10,000 regions over few"),
    ("spans.64g.mmap", "spans.64m.mmap", "ours: mmap, 64 GiB over 64 MiB"),
    ("spans.64g.mprotect", "spans.64m.mprotect", "ours: mprotect, 16 spans in 64 GiB over 64 MiB"),
    ("spans.64g.munmap", "spans.64m.munmap", "ours: munmap, 16 spans in 64 GiB over 64 MiB"),
];
const GROWTH_LIMIT: f64 = 1.5;

impl Raw {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("in {}", path.display()))
    }

    /// The rows: gates against stock Linux, then without mitigations, then ours as Linux does it, then
    /// ours against ours.
    pub fn rows(&self) -> Vec<Row> {
        let stock = self.order.iter().map(|case| {
            let gate = GATES.iter().find(|gate| gate.0 == case).map(|gate| gate.2);
            self.row(case, words(case).to_owned(), &[(LINUX, &self.linux)], gate)
        });
        let bare = GATES.iter().map(|(case, words, _, gate)| {
            let peers = [(BARE, &self.mitigations_off)];
            self.row(case, format!("{words} (mitigations off)"), &peers, Some(*gate))
        });
        let single = self.order.iter().filter_map(|case| {
            let ours = self.ours_single.cases.get(case)?;
            let words = format!("{}, one page for each fault", words(case));
            let row = self.row(case, words, &[(LINUX, &self.linux)], None);
            let spread = (ours.median - ours.min) / ours.median;
            Some(Row { ours: ours.median, spread, ..row })
        });
        let growth = GROWTH.iter().map(|(large, small, words)| {
            let mut row = self.row(large, (*words).to_owned(), &[], Some(GROWTH_LIMIT));
            let small = self.ours.cases.get(*small);
            row.peers.extend(small.map(|figure| ("ours, the small one".to_owned(), figure.median)));
            row
        });
        stock.chain(bare).chain(single).chain(growth).collect()
    }

    fn row(&self, case: &str, words: String, peers: &[(&str, &Kernel)], gate: Option<f64>) -> Row {
        let ours = self.ours.cases.get(case);
        let figures = peers.iter().filter_map(|(name, kernel)| {
            Some(((*name).to_owned(), kernel.cases.get(case)?.median))
        });
        Row {
            case: words,
            unit: "instructions",
            better: Better::Less,
            // What we cannot do is no number, and keeps no gate.
            ours: ours.map_or(f64::NAN, |figure| figure.median),
            peers: figures.collect(),
            gate,
            spread: ours.map_or(0.0, |figure| (figure.median - figure.min) / figure.median),
        }
    }

    /// What the counts do not say, as Markdown: the machine, and the dear instructions beside each
    /// row.
    pub fn notes(&self) -> String {
        let mut text = format!(
            "\nGuest instructions for one operation, median of the repetitions, QEMU TCG with \
             `-icount shift=0`, one CPU, 512 MiB, Linux {}, the same static binary \
             (`user/mmbench`) as the first process of each kernel. Instructions say nothing about \
             caches and TLB misses.\n",
            self.version
        );
        text += HONESTY;
        if self.ours.events.is_empty() {
            return text;
        }
        text += "\nInstructions that cost more than one, in one operation, ours / Linux:\n\n\
                 | case | all | locked | INVLPG | CR3 writes | WRMSR | port I/O |\n\
                 |---|---|---|---|---|---|---|\n";
        for case in &self.order {
            let none = Events::default();
            let ours = self.ours.events.get(case).unwrap_or(&none);
            let linux = self.linux.events.get(case).unwrap_or(&none);
            let pair = |of: fn(&Events) -> f64| format!("{:.1} / {:.1}", of(ours), of(linux));
            let _ = writeln!(
                text,
                "| {} | {:.0} / {:.0} | {} | {} | {} | {} | {} |",
                words(case),
                ours.instructions,
                linux.instructions,
                pair(|e| e.locked),
                pair(|e| e.invlpg),
                pair(|e| e.cr3),
                pair(|e| e.msr),
                pair(|e| e.io),
            );
        }
        text += "\nOne CPU: there are no inter-processor interrupts, and Linux has taken most of its lock \
                 prefixes out at boot, as it does where it finds one CPU; ours keeps them.\n";
        text
    }
}

fn words(case: &str) -> &str {
    let gated = GATES.iter().find(|gate| gate.0 == case).map(|gate| gate.1);
    gated.or_else(|| WORDS.iter().find(|pair| pair.0 == case).map(|pair| pair.1)).unwrap_or(case)
}
