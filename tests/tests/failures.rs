//! The kernel runs out of memory, or is made to believe so, and nobody is harmed but those who
//! wanted some: no wrong byte, no lost frame, nothing stuck.

use std::path::PathBuf;

use pagoda_tests::{Said, c_program, in_guest};

const BUSYBOX: &str = "/bin/busybox";

/// Words for a shell that take it some time and no memory: until those have ended whose parents
/// were killed.
const REST: &str = "i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done";

/// Our torture in the machine.
fn torture(options: &[&str], arguments: &[&str]) -> Said {
    let mill = std::env::var("PAGODA_MILL").expect("run by `cargo xtask test`");
    let program = PathBuf::from(mill).with_file_name("torture");
    let said = in_guest(options, &[&[program.to_str().unwrap()], arguments].concat(), b"");
    assert_eq!(said.status, 0, "{}\n{}", said.out, said.err);
    said
}

#[test]
#[ignore = "boots a machine"]
fn every_allocation_of_small_works_fails_once() {
    let said = torture(&["--log"], &["--sweep"]);
    assert!(said.out.contains("sweep: 0 wrong"), "{}", said.out);
    assert_eq!(said.out.matches("whole true").count(), 11, "{}", said.out);
    assert!(said.err.contains("failed on purpose"), "{}", said.err);
}

#[test]
#[ignore = "boots a machine"]
fn torture_finds_nothing_wrong_when_allocations_fail() {
    for every in [400, 61, 17] {
        let append = format!("--append=fail_every={every}");
        let options = ["--smp=4", "--memory=512M", &append];
        let said = torture(&options, &["--seconds", "5", "--tolerant"]);
        assert!(said.out.contains("; 0 wrong, 0 stuck"), "{}", said.out);
        assert!(!said.out.contains(" 0 refused"), "{}", said.out);
    }
}

#[test]
#[ignore = "boots a machine"]
fn ranges_stay_right_when_allocations_fail() {
    let options = ["--smp=4", "--memory=512M", "--append=fail_every=3001,after=500"];
    let said = torture(&options, &["--seconds", "5", "--ranges", "--tolerant"]);
    assert!(said.out.contains("; 0 wrong, 0 stuck"), "{}", said.out);
}

/// Runs a script in a shell on a machine of 64 MiB, with one program; the shell must live on.
fn shell_lives(cpus: &str, program: &str, script: &str) -> String {
    let file = format!("{}:/{program}", c_program(program).display());
    let options = [cpus, "--memory=64M", "--file", &file];
    let script = format!("{script}; {REST}; echo alive | cat; exit 6");
    let said = in_guest(&options, &[BUSYBOX, "sh", "-c", &script], b"");
    assert_eq!(said.status, 6, "{}\n{}", said.out, said.err);
    assert!(said.out.ends_with("alive\n"), "{}\n{}", said.out, said.err);
    said.out
}

#[test]
#[ignore = "boots a machine"]
fn a_fork_bomb_ends_in_errors_and_the_shell_lives() {
    let out = shell_lives("--smp=4", "bomb", "/bomb; echo bomb $?");
    // The first of them may be among those who are killed for want of memory.
    assert!(!out.contains("odd errors") || out.contains(" 0 odd errors"), "{out}");
}

#[test]
#[ignore = "boots a machine"]
fn all_cpus_run_out_of_memory_at_once_and_the_shell_lives() {
    let script = "for i in 1 2 3 4 5 6; do /greedy $i & done; wait; for i in 1 2 3 4; do /greedy & done; wait";
    shell_lives("--smp=4", "greedy", script);
}
