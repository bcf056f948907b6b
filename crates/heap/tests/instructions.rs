//! What is off costs nothing, counted in instructions: this program runs itself under callgrind.
//!
//! `cargo test --release -p pagoda-heap --test instructions -- --ignored` (needs valgrind).
#![allow(unsafe_code)] // the example frees blocks

use std::process::Command;

use pagoda_heap::{Misuse, MisuseKind, OutOfPages, PageSource, PageTags, Report};

#[allow(dead_code, unused_imports)]
#[path = "../examples/count.rs"]
mod count;

/// Says to the program under callgrind what it is to do.
const KIND: &str = "PAGODA_HEAP_COUNT";

/// What runs under callgrind.
#[test]
fn work() {
    if let Ok(kind) = std::env::var(KIND) {
        count::work(&kind);
    }
}

/// Instructions of a million turns of `function`.
fn counted(kind: &str, function: &str) -> u64 {
    let program = std::env::current_exe().expect("this program");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(format!("--toggle-collect=*count::{function}*"))
        .arg(program)
        .args(["--exact", "work", "--test-threads=1"])
        .env(KIND, kind)
        .output()
        .expect("valgrind runs");
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find_map(|line| line.split_once("Collected : "));
    let number = line.and_then(|(_, number)| number.trim().parse().ok());
    number.unwrap_or_else(|| panic!("no count of {kind}: {text}"))
}

#[test]
#[ignore = "needs valgrind"]
fn debug_modes_of_others_add_no_instruction_to_a_pair() {
    const TURNS: u64 = 1_000_000;
    let [off, elsewhere, plain, pins] =
        [("sized", "sized"), ("guarded", "sized"), ("unsized", "unsized_"), ("pin", "pin")]
            .map(|(kind, function)| counted(kind, function));
    println!("a pair: {off}, with modes elsewhere {elsewhere}, plain {plain}, two pins {pins}");
    assert!(off > TURNS && pins > TURNS, "nothing was counted");
    // The first calls of all fill the magazine.
    assert_eq!(off / TURNS, elsewhere / TURNS);
    assert!(off.abs_diff(elsewhere) < TURNS / 50, "{off} and {elsewhere}");
    assert!(cfg!(debug_assertions) || off - pins <= 22 * TURNS, "{off} with pins of {pins}");
}
