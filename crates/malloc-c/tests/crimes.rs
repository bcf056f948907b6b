//! The corpus of heap bugs: in hardened mode each is reported, with the story of the block.

#![allow(unsafe_code)] // what the tests share calls the dynamic linker

mod common;

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use common::preloaded;

const DOUBLE: &str = "double free: 0x";
const INTERIOR: &str = "not the start of a block: 0x";
const FOREIGN: &str = "of a pointer that malloc never returned: 0x";
const BEHIND: &str = "write behind a block: 0x";
const BEFORE: &str = "write before a block: 0x";
const AFTER: &str = "write after free: 0x";
const SIZE: &str = "free with a size that the block does not have: 0x";

/// Name, what must be said, and whether the story says who allocated the block.
const CRIMES: &[(&str, &str, bool)] = &[
    ("double_free_small", DOUBLE, true),
    ("double_free_small_with_others_between", DOUBLE, true),
    ("double_free_medium", DOUBLE, true),
    ("double_free_large", DOUBLE, true),
    ("double_free_by_another_thread", DOUBLE, true),
    ("double_free_of_anothers_block", DOUBLE, true),
    ("free_of_what_realloc_moved", DOUBLE, true),
    ("interior_small", INTERIOR, true),
    ("interior_small_odd", INTERIOR, true),
    ("interior_medium", INTERIOR, true),
    ("interior_large", INTERIOR, true),
    ("interior_aligned", INTERIOR, true),
    ("before_the_start", INTERIOR, true),
    ("behind_the_end", INTERIOR, true),
    ("free_of_the_stack", FOREIGN, false),
    ("free_of_a_global", FOREIGN, false),
    ("free_of_a_literal", FOREIGN, false),
    ("free_of_code", FOREIGN, false),
    ("free_of_a_mapping", FOREIGN, false),
    ("free_of_a_wild_number", FOREIGN, false),
    ("free_of_memory_never_handed_out", FOREIGN, false),
    ("one_behind_small", BEHIND, true),
    ("one_behind_a_round_size", BEHIND, true),
    ("one_behind_medium", BEHIND, true),
    ("one_behind_large", BEHIND, true),
    ("far_behind_large", "read or write behind a block: 0x", true),
    ("read_behind_large", "read or write behind a block: 0x", true),
    ("string_one_too_long", BEHIND, true),
    ("many_behind", BEHIND, true),
    ("behind_and_never_freed", BEHIND, true),
    ("behind_then_realloc", BEHIND, true),
    ("one_before_small", BEFORE, false),
    ("some_before_medium", BEFORE, false),
    ("one_before_large", BEFORE, false),
    ("write_after_free", AFTER, true),
    ("write_after_free_at_exit", AFTER, true),
    ("write_after_free_medium", AFTER, true),
    ("write_after_free_large", "use after free: 0x", true),
    ("read_after_free_large", "use after free: 0x", true),
    ("realloc_after_free", "use after free: realloc: 0x", true),
    ("realloc_of_an_interior", INTERIOR, true),
    ("realloc_of_the_stack", FOREIGN, false),
    ("size_of_a_freed_block", "use after free: malloc_usable_size: 0x", true),
    ("free_sized_wrong", SIZE, true),
    ("free_aligned_sized_wrong", SIZE, true),
    ("delete_with_a_wrong_size", SIZE, true),
    ("delete_array_interior", INTERIOR, true),
    ("written_as_if_usable_were_more", BEHIND, true),
    ("one_behind_large_made_longer", BEHIND, true),
    ("far_behind_large_made_shorter", "read or write behind a block: 0x", true),
    ("use_of_large_that_realloc_moved", "use after free: 0x", true),
];

fn criminal() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(build)
}

fn build() -> PathBuf {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("crimes");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crimes.c");
    let library = common::library();
    let built = Command::new("gcc")
        .args(["-O0", "-g", "-w", "-pthread", "-o"])
        .args([&program, &source, library])
        .arg(format!("-Wl,-rpath,{}", library.parent().expect("a folder").display()))
        .status()
        .expect("gcc runs");
    assert!(built.success());
    program
}

fn run(program: &Path, crime: &str) -> Output {
    preloaded(program).arg(crime).env("PAGODA_MALLOC", "hardened").output().expect("runs")
}

#[test]
fn every_crime_is_reported_with_its_story() {
    let program = criminal();
    let mut silent = Vec::new();
    for &(crime, message, told) in CRIMES {
        let run = run(program, crime);
        let said = String::from_utf8_lossy(&run.stderr);
        let story = said.contains("  allocated by thread ");
        let aborted = run.status.signal() == Some(6);
        if !aborted || !said.contains(message) || story != told {
            silent.push(format!("{crime}: {}: {said}", run.status));
        }
    }
    assert!(silent.is_empty(), "{} of {}:\n{}", silent.len(), CRIMES.len(), silent.join("\n"));
}

#[test]
fn innocents_are_left_alone() {
    let program = criminal();
    let run = run(program, "nothing_wrong");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert_eq!(String::from_utf8_lossy(&run.stdout), "well\n");
    for (program, args) in [
        (
            "bash",
            &["-c", "for i in 1 2 3; do (echo $i | cat); done; x=$(seq 999 | sort -r); echo ${#x}"]
                [..],
        ),
        ("perl", &["-e", "%h = map { $_ => \"x$_\" } 1..20000; print scalar keys %h"]),
        (
            "python3",
            &["-c", "import json; print(len(json.dumps([{str(i): i} for i in range(20000)])))"],
        ),
        ("git", &["--version"]),
        (
            "gcc",
            &[
                "-fsyntax-only",
                "-x",
                "c",
                concat!(env!("CARGO_MANIFEST_DIR"), "/tests/crimes.c"),
                "-w",
            ],
        ),
    ] {
        let run =
            preloaded(program).args(args).env("PAGODA_MALLOC", "hardened").output().expect("runs");
        assert!(run.status.success(), "{program}: {}", String::from_utf8_lossy(&run.stderr));
    }
}

#[test]
fn leaks_and_statistics_are_told_at_exit() {
    let run = preloaded(criminal()).env("PAGODA_MALLOC", "leaks,stats").output().expect("runs");
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}");
    for leak in ["never freed: 300000 bytes in 1 blocks", "never freed: 100 bytes in 1 blocks"] {
        assert!(said.contains(leak), "{said}");
    }
    assert!(said.contains("heaps of threads"), "{said}");
}

#[test]
fn a_heap_profile_is_written_at_exit() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("profile");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    let mut command = preloaded(criminal());
    command.current_dir(&folder).env("PAGODA_MALLOC", "profile");
    assert!(command.status().expect("runs").success());
    let mut files = std::fs::read_dir(&folder).expect("a folder");
    let file = files.next().expect("one file").expect("readable").path();
    let name = file.file_name().expect("a name").to_string_lossy().into_owned();
    assert!(name.starts_with("pagoda-malloc.") && name.ends_with(".heap"), "{name}");
    let profile = std::fs::read(&file).expect("readable");
    let has = |what: &[u8]| profile.windows(what.len()).any(|part| part == what);
    assert!(has(b"inuse_space") && has(criminal().to_string_lossy().as_bytes()));
    // A sample's values, packed: one block, of 300,000 bytes as a number of three digits to the base 128.
    assert!(has(&[0x12, 4, 1, 0xe0, 0xa7, 0x12]), "the large block is not told");
}

#[test]
fn a_picture_is_drawn_at_exit() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("picture");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    let mut command = preloaded(criminal());
    command.current_dir(&folder).env("PAGODA_MALLOC", "picture");
    assert!(command.status().expect("runs").success());
    let mut files = std::fs::read_dir(&folder).expect("a folder");
    let file = files.next().expect("one file").expect("readable").path();
    let picture = std::fs::read_to_string(&file).expect("readable");
    assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
    assert!(picture.contains("blocks of 112 bytes") && picture.contains("large: 1 blocks"));
}
