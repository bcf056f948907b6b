//! Random lives of many processes and threads end with every byte right and every frame returned.

use std::path::PathBuf;

use pagoda_tests::{in_guest, on_linux};

/// A program of ours.
fn program(name: &str) -> String {
    let mill = std::env::var("PAGODA_MILL").expect("run by `cargo xtask test`");
    PathBuf::from(mill).with_file_name(name).to_string_lossy().into_owned()
}

fn torture(options: &[&str], arguments: &[&str]) {
    let program = program("torture");
    let command = [&[program.as_str()], arguments].concat();
    let said = in_guest(options, &command, b"");
    assert_eq!(said.status, 0, "{}\n{}", said.out, said.err);
    assert!(said.out.contains("; 0 wrong, 0 stuck"), "{}\n{}", said.out, said.err);
}

#[test]
#[ignore = "boots a machine"]
fn torture_finds_nothing_on_linux() {
    let program = program("torture");
    for more in [&[][..], &["--ranges"]] {
        let said = on_linux(&[&[&program, "--seconds", "2"], more].concat(), b"");
        assert_eq!(said.status, 0, "{}\n{}", said.out, said.err);
    }
}

#[test]
#[ignore = "boots a machine"]
fn torture_finds_nothing_on_four_cpus() {
    torture(&["--smp=4", "--memory=512M"], &["--seconds", "15", "--seed", "7"]);
}

#[test]
#[ignore = "boots a machine"]
fn torture_finds_nothing_on_one_cpu() {
    torture(&["--memory=512M"], &["--seconds", "5", "--seed", "8"]);
}

#[test]
#[ignore = "boots a machine"]
fn threads_in_their_own_ranges_see_what_they_wrote() {
    torture(&["--smp=4", "--memory=512M"], &["--seconds", "5", "--ranges"]);
}
