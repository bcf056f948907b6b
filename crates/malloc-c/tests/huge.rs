//! Huge pages stand where memory is dense, and nowhere else.

#![allow(unsafe_code)] // what the tests share calls the dynamic linker

mod common;

use common::{preloaded, program};

/// What the program of `huge.c` prints.
fn run<const N: usize>(options: &str, word: &str) -> [u64; N] {
    let mut command = preloaded(program("huge"));
    let output = command.arg(word).env("PAGODA_MALLOC", options).output().expect("it is there");
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).expect("numbers");
    let numbers: Vec<_> = said.split_whitespace().map(|word| word.parse().unwrap()).collect();
    numbers.try_into().expect("so many numbers")
}

#[test]
fn a_dense_heap_gets_huge_pages_and_is_little_larger_for_it() {
    let [huge, resident, left, probe] = run("", "dense");
    let [none, plain, plain_left, _] = run("nohuge", "dense");
    // A system may have none, or have run out of them.
    if probe >= 30 << 10 {
        assert!(huge >= 24 << 10, "{huge} KiB");
    }
    assert_eq!(none, 0);
    assert!(resident <= plain + (2 << 10) + 512, "{resident} KiB, without {plain} KiB");
    assert!(left <= plain_left + 512, "{left} KiB, without {plain_left} KiB");
}

#[test]
fn a_crowd_of_threads_gets_none() {
    let ([with], [without]) = (run("", "crowd"), run("nohuge", "crowd"));
    assert!(with <= without + 512, "{with} KiB, without {without} KiB");
}
