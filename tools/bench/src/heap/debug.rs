//! What each debug mode, and hardened free lists, cost: a pair of 64 bytes, and the log-uniform churn, in
//! heaps of ours.

use super::{ARENA_BYTES, Churn, Ours, Pair, Sizes, Work, ours};
use crate::arena::Arena;
use crate::measure::{Contestant, contest};
use crate::report::Row;

/// Debug options, as `set_debug` takes them, and what they are called here.
const MODES: [(&str, &str); 8] = [
    ("", "off"),
    (HARDENED, "none, free lists hardened"),
    ("F", "F: every free inspected"),
    ("Z", "Z: red zones"),
    ("P", "P: poison"),
    ("U", "U: tracks"),
    ("Q", "Q: quarantine"),
    ("FZPUQ", "FZPUQ: all of them"),
];

/// Stands among the options for what is none.
const HARDENED: &str = "hardened";

/// Two rows for each mode.
pub fn rows(rounds: usize) -> Vec<Row> {
    let heaps: Vec<Ours> = MODES
        .iter()
        .map(|(option, _)| {
            let heap = ours(Arena::new(ARENA_BYTES));
            match *option {
                HARDENED => heap.harden(0x5eed_5eed_5eed_5eed),
                option => heap.set_debug(option).expect("a mode that there is"),
            }
            heap
        })
        .collect();
    let pair = costs(&heaps, rounds, "pair 64 B", |heap| Pair(64).contestant("", heap));
    let churn = costs(&heaps, rounds, "churn, log-uniform", |heap| {
        Churn(Sizes::LogUniform).contestant("", heap)
    });
    pair.into_iter().chain(churn).collect()
}

fn costs<'a>(
    heaps: &'a [Ours],
    rounds: usize,
    case: &str,
    work: impl Fn(&'a Ours) -> Contestant<'a>,
) -> Vec<Row> {
    let mut all: Vec<_> = heaps.iter().map(work).collect();
    let figures = contest(&mut all, rounds);
    let named = MODES.iter().zip(&figures);
    named
        .map(|((_, mode), figure)| {
            let case = format!("{case}, debug mode {mode}");
            Row::times(&case, std::slice::from_ref(figure), None)
        })
        .collect()
}
