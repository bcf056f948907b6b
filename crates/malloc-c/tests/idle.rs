//! Memory goes back while the program idles, whoever freed it.

#![allow(unsafe_code)] // what the tests share calls the dynamic linker

mod common;

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

use common::preloaded;

/// The program of `idle.c`.
fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("idle");
        let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/idle.c");
        let mut compiler = Command::new("gcc");
        compiler.args(["-O1", "-pthread", "-o"]).arg(&program).arg(source);
        assert!(compiler.status().expect("gcc runs").success());
        program
    })
}

fn run(words: &[&str]) -> String {
    let Output { status, stdout, stderr } =
        preloaded(program()).args(words).output().expect("the program is there");
    assert!(status.success(), "{status}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8_lossy(&stdout).trim().to_owned()
}

#[test]
fn what_others_freed_is_back_a_second_later_though_its_owner_sleeps() {
    for who in [["1", "1"], ["4", "4"], ["1", "8"]] {
        let percent: u32 = run(&who).parse().expect("a number");
        assert!(percent >= 90, "{who:?}: {percent} %");
    }
}
