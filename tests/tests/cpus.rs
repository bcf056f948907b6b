//! Several CPUs: programs run on all of them, contents stay right, and every frame comes back.

use pagoda_tests::{c_program, in_guest, on_linux, run, xtask_run};

const BUSYBOX: &str = "/bin/busybox";

/// The same program on machines with this many CPUs says and does what it says and does on Linux.
fn on_cpus(counts: &[u32], program: &[&str]) {
    let expected = on_linux(program, b"");
    for count in counts {
        let found = in_guest(&[&format!("--smp={count}")], program, b"");
        assert_eq!(found, expected, "(found, on Linux) for {program:?} on {count} CPUs");
    }
}

#[test]
#[ignore = "boots a machine"]
fn the_tour_passes_on_two_four_and_eight_cpus() {
    for count in [2, 4, 8] {
        let said = run(&mut xtask_run(&[&format!("--smp={count}")]), b"");
        assert_eq!(said.status, 0, "{}", said.out);
        assert!(said.out.contains(&format!("{count} CPUs, of {count}")), "{}", said.out);
        assert!(
            said.out.contains("0 did not hold") && said.out.contains(", 0 lost"),
            "{}",
            said.out
        );
    }
}

#[test]
#[ignore = "boots a machine"]
fn the_command_line_limits_the_cpus() {
    let said = run(&mut xtask_run(&["--smp=4", "--append=cpus=2"]), b"");
    assert_eq!(said.status, 0, "{}", said.out);
    assert!(said.out.contains("2 CPUs, of 4"), "{}", said.out);
}

#[test]
#[ignore = "boots a machine"]
fn pipes_and_subshells_on_many_cpus() {
    let script = "for i in 1 2 3 4 5; do echo line $i; done | while read a b; do \
                  (x=$((b * b)); echo $a $x); done | sort -r | sed s/line/row/; \
                  for i in 1 2 3 4; do (seq $((i * 500)) | md5sum) & done | sort; wait; exit 42";
    on_cpus(&[2, 4, 8], &[BUSYBOX, "sh", "-c", script]);
}

#[test]
#[ignore = "boots a machine"]
fn threads_free_what_other_threads_allocated() {
    let program = c_program("handover");
    on_cpus(&[1, 2, 4, 8], &[program.to_str().unwrap()]);
}

#[test]
#[ignore = "boots a machine"]
fn no_cpu_uses_a_translation_that_was_taken_away() {
    let program = c_program("shootdown");
    on_cpus(&[1, 2, 4, 8], &[program.to_str().unwrap()]);
    let five = in_guest(&["--smp=4", "--la57"], &[program.to_str().unwrap()], b"");
    assert_eq!(five, on_linux(&[program.to_str().unwrap()], b""), "with five levels");
}

#[test]
#[ignore = "boots a machine"]
fn a_panic_stops_all_cpus_and_says_on_which_it_was() {
    let said = run(&mut xtask_run(&["--smp=4", "--append=selftest=panic"]), b"");
    assert_ne!(said.status, 0, "{}", said.out);
    assert_eq!(said.out.matches("kernel panic").count(), 1, "{}", said.out);
}
