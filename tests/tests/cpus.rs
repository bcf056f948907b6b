//! Several CPUs: programs run on all of them, contents stay right, and every frame comes back.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

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

#[test]
#[ignore = "boots a machine"]
fn an_nmi_makes_every_cpu_say_where_it_is() {
    let said = run(&mut xtask_run(&["--smp=4", "--append=selftest=where"]), b"");
    assert_eq!(said.status, 0, "{}", said.out);
    for cpu in 0..4 {
        let here = format!("NMI: cpu{cpu} is here, and goes on:");
        assert_eq!(said.out.matches(&here).count(), 1, "{}", said.out);
    }
    assert!(said.out.contains("kernel::smp::park"), "{}", said.out);
}

/// Whether the emulator's monitor says that a CPU runs a program.
fn runs_a_program(monitor: &mut UnixStream) -> bool {
    let mut said = Vec::new();
    let patience = Some(std::time::Duration::from_millis(200));
    if monitor
        .set_read_timeout(patience)
        .and_then(|()| monitor.write_all(b"info registers -a\n"))
        .is_err()
    {
        return false;
    }
    // It says all, and waits then.
    let _ = monitor.read_to_end(&mut said);
    String::from_utf8_lossy(&said).contains("CPL=3")
}

#[test]
#[ignore = "boots a machine"]
fn an_nmi_from_outside_finds_programs_and_does_them_no_harm() {
    let socket = std::env::temp_dir().join(format!("pagoda-monitor-{}", std::process::id()));
    let monitor = format!("--monitor={}", socket.display());
    let script = "(i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo $i) & \
                  i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo $i; wait";
    let asker = std::thread::spawn({
        let socket = socket.clone();
        move || {
            let mut asked = 0;
            for _ in 0..500 {
                std::thread::sleep(std::time::Duration::from_millis(50));
                let Ok(mut monitor) = UnixStream::connect(&socket) else {
                    // Not there yet, or not there any more.
                    if asked > 0 {
                        break;
                    }
                    continue;
                };
                // The firmware, and the kernel's first steps, have no answer to an NMI.
                if asked == 0 && !runs_a_program(&mut monitor) {
                    continue;
                }
                asked += u32::from(monitor.write_all(b"nmi\n").is_ok());
                // Who hangs up at once may not have been heard.
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            asked
        }
    });
    let said = in_guest(&["--smp=2", "--log", &monitor], &[BUSYBOX, "sh", "-c", script], b"");
    assert_eq!((said.status, said.out.as_str()), (0, "100000\n100000\n"), "{}", said.err);
    assert!(asker.join().unwrap() > 0);
    let _ = std::fs::remove_file(socket);
    assert!(said.err.contains("a program, rip 0000"), "{}", said.err);
    assert!(said.err.contains("NMI: cpu1 is here"), "{}", said.err);
}

#[test]
#[ignore = "boots a machine"]
fn proc_lists_the_cpus_that_a_process_may_use() {
    let script = "grep Cpus_ /proc/self/status; taskset 5 grep Cpus_ /proc/self/status";
    let said = in_guest(&["--smp=4"], &[BUSYBOX, "sh", "-c", script], b"");
    let all = "Cpus_allowed:\tf\nCpus_allowed_list:\t0-3\n";
    assert_eq!(said.out, format!("{all}Cpus_allowed:\t5\nCpus_allowed_list:\t0,2\n"));
}
