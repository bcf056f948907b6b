//! Programs that we did not write, and some that we did, say and do what they say and do on Linux.

use std::path::Path;
use std::process::{Command, Stdio};

use pagoda_tests::{c_program, in_guest, run, same_as_linux, xtask_run};

const BUSYBOX: &str = "/bin/busybox";

#[test]
#[ignore = "boots a machine"]
fn busybox_runs_pipes_loops_and_subshells() {
    let script = "for i in 1 2 3 4 5; do echo line $i; done | while read a b; do \
                  (x=$((b * b)); echo $a $x); done | sort -r | sed s/line/row/; \
                  echo $(seq 100 | tr '\\n' +)0 | bc 2>/dev/null; (exit 3); echo status $?; \
                  cat /etc/hostname >/dev/null && echo here; exit 42";
    same_as_linux(&[], &[BUSYBOX, "sh", "-c", script], b"");
}

#[test]
#[ignore = "boots a machine"]
fn standard_input_arrives_whole_and_ends() {
    let input: Vec<u8> = (0..100_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
    same_as_linux(&[], &[BUSYBOX, "md5sum"], &input);
    same_as_linux(&[], &[BUSYBOX, "sort", "-n"], b"3\n1\n20\n");
}

#[test]
#[ignore = "boots a machine"]
fn a_c_program_that_allocates_much_runs_unchanged() {
    let churn = c_program("churn");
    same_as_linux(&[], &[churn.to_str().unwrap()], b"");
}

#[test]
#[ignore = "boots a machine"]
fn a_rust_program_with_threads_and_panics_runs_unchanged() {
    let mill = std::env::var("PAGODA_MILL").expect("run by `cargo xtask test`");
    for cpus in ["--smp=1", "--smp=4"] {
        same_as_linux(&[cpus], &[&mill, "100000"], b"");
    }
}

#[test]
#[ignore = "boots a machine"]
fn bash_controls_jobs() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("real/jobs.sh");
    let script = script.to_str().unwrap();
    for cpus in ["--smp=1", "--smp=4"] {
        same_as_linux(&[cpus, "--file", script], &["/bin/bash-static", script], b"");
    }
}

#[test]
#[ignore = "boots a machine"]
fn files_segments_and_guards_are_seen_as_on_linux() {
    let mill = std::env::var("PAGODA_MILL").expect("run by `cargo xtask test`");
    let shares = std::path::Path::new(&mill).with_file_name("shares");
    same_as_linux(&[], &[shares.to_str().unwrap()], b"");
}

#[test]
#[ignore = "boots a machine"]
fn timers_of_every_kind_go_off_when_and_for_whom_they_should() {
    let timers = c_program("timers");
    for cpus in ["--smp=1", "--smp=4"] {
        same_as_linux(&[cpus], &[timers.to_str().unwrap()], b"");
    }
}

/// Vector registers and modes over switches, signals and forks; restarts, EINTR, exhausted stacks.
#[test]
#[ignore = "boots a machine"]
fn a_programs_state_survives_switches_signals_and_forks() {
    let state = c_program("state");
    for cpus in ["--smp=1", "--smp=4"] {
        same_as_linux(&[cpus], &[state.to_str().unwrap()], b"");
    }
}

#[test]
#[ignore = "boots a machine"]
fn forks_copy_on_write_and_share_what_is_shared() {
    let forks = c_program("forks");
    same_as_linux(&[], &[forks.to_str().unwrap()], b"");
}

#[test]
#[ignore = "boots a machine"]
fn a_handler_mends_a_segmentation_fault() {
    let recover = c_program("recover");
    same_as_linux(&[], &[recover.to_str().unwrap()], b"");
}

#[test]
#[ignore = "boots a machine"]
fn a_null_pointer_ends_the_program_and_not_the_kernel() {
    let null = c_program("null");
    let script = "/null; echo status $?; echo alive | cat; exit 5";
    let file = format!("{}:/null", null.display());
    let said = in_guest(&["--file", &file], &[BUSYBOX, "sh", "-c", script], b"");
    assert_eq!(said.out, "before\nstatus 139\nalive\n", "{}", said.err);
    assert_eq!(said.status, 5);
}

#[test]
#[ignore = "boots a machine"]
fn a_program_that_wants_more_memory_than_there_is_does_not_take_the_kernel_along() {
    let greedy = c_program("greedy");
    let script = "/greedy; s=$?; [ $s = 9 -o $s = 137 ] && echo ended well || echo ended $s; \
                  /greedy x; echo alive | cat; exit 6";
    let file = format!("{}:/greedy", greedy.display());
    let options = ["--memory=64M", "--file", &file];
    let said = in_guest(&options, &[BUSYBOX, "sh", "-c", script], b"");
    assert_eq!(said.status, 6, "{}\n{}", said.out, said.err);
    assert!(said.out.contains("ended well\n") && said.out.ends_with("alive\n"), "{}", said.out);
}

#[test]
#[ignore = "boots a machine"]
fn a_terminal_gets_the_tour_and_then_a_shell() {
    let xtask = xtask_run(&[]);
    let mut line = format!("{} run --timeout=100", xtask.get_program().display());
    for argument in xtask.get_args().skip(2) {
        line = format!("{line} {}", argument.display());
    }
    // `script` gives the command a terminal of its own.
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).stderr(Stdio::inherit());
    let input = "ls /proc | head -3; free | grep Mem; ps | grep -c '[s]h'\n\
                 cat /proc/self/maps | grep -c stack\n\
                 seq 1000 | grep 7 | wc -l\n\
                 sleep 1 & wait; echo waited $((40 + 2))\n\
                 exit\n";
    let said = run(&mut script, input.as_bytes());
    // What is typed while the machine starts arrives whole.
    let typed = input.lines().map(|line| format!("~# {line}\r"));
    let words = ["storey", "Mem:", "271", "waited 42", "every frame"].map(String::from);
    for word in words.into_iter().chain(typed) {
        assert!(said.out.contains(&word), "no {word:?} in:\n{}", said.out);
    }
    assert_eq!(said.status, 0, "{}", said.out);
}
