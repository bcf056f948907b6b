//! Memory goes back while the program idles, whoever freed it.

#![allow(unsafe_code)] // what the tests share calls the dynamic linker

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use common::{library, preloaded, program};

fn ends(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("the program is there");
    assert!(status.success(), "{command:?}: {status}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8_lossy(&stdout).trim().to_owned()
}

fn run(words: &[&str]) -> String {
    // A program that does not end is ended.
    ends(preloaded("timeout").arg("60").arg(program("idle")).args(words))
}

/// KiB that a program held after waves, that it held a second later, and whether it had a helper then.
fn waves(command: &mut Command) -> [u64; 3] {
    let said = ends(command.arg("waves"));
    let numbers: Vec<_> = said.split(' ').filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().expect("three numbers")
}

#[test]
fn what_others_freed_is_back_a_second_later_though_its_owner_sleeps() {
    for who in [["1", "1"], ["4", "4"], ["1", "8"]] {
        let percent: u32 = run(&["burst", who[0], who[1]]).parse().expect("a number");
        assert!(percent >= 90, "{who:?}: {percent} %");
    }
}

#[test]
fn what_waits_within_budgets_is_back_when_a_program_with_threads_idles() {
    let [before, after, helper] = waves(&mut preloaded(program("idle")));
    assert!(helper == 1 && after < before / 2, "{before} KiB, then {after} KiB");
    let mut without = preloaded(program("idle"));
    let [before, after, helper] = waves(without.env("PAGODA_MALLOC", "nohelper"));
    assert!(helper == 0 && after > before * 9 / 10, "{before} KiB, then {after} KiB");
}

#[test]
fn static_programs_have_it_too() {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/idle.c");
    for compiler in ["gcc", "musl-gcc"] {
        let program = directory.join(format!("idle-{compiler}"));
        let mut built = Command::new(compiler);
        built.args(["-O1", "-static", "-pthread", "-o"]).arg(&program).arg(&source);
        ends(built.arg(library().with_extension("a")));
        let [before, after, helper] = waves(&mut Command::new(&program));
        assert!(helper == 1 && after < before / 2, "{compiler}: {before} KiB, then {after} KiB");
        for what in ["alone", "leaves", "forks"] {
            ends(Command::new("timeout").arg("60").arg(&program).arg(what));
        }
    }
}

#[test]
fn there_is_none_in_a_program_with_one_thread_or_little_memory() {
    run(&["alone"]);
    run(&["small"]);
}

#[test]
fn it_hears_no_signals_and_sleeps_while_nobody_calls() {
    run(&["signals"]);
}

#[test]
fn a_child_has_none_and_gets_its_own() {
    run(&["forks"]);
}

#[test]
fn a_program_ends_as_it_would_without() {
    run(&["leaves"]);
    for _ in 0..100 {
        run(&["exit"]);
    }
}

#[test]
fn it_keeps_no_privileges_that_the_program_gives_up() {
    if ends(Command::new("id").arg("-u")) == "0" {
        run(&["user"]);
        let open = std::fs::Permissions::from_mode(0o755);
        let own = std::env::temp_dir().join(format!("pagoda-idle-{}", std::process::id()));
        std::fs::create_dir_all(&own).expect("can write");
        for (from, to) in [(program("idle"), own.join("idle")), (library(), own.join("malloc.so"))]
        {
            std::fs::copy(from, &to).expect("can write");
            std::fs::set_permissions(to, open.clone()).expect("ours");
        }
        std::fs::set_permissions(&own, open).expect("ours");
        let mut plain = Command::new(own.join("idle"));
        ends(plain.arg("plain").env("LD_PRELOAD", own.join("malloc.so")).uid(65534).gid(65534));
        let _ = std::fs::remove_dir_all(own);
    } else {
        run(&["plain"]);
    }
}
