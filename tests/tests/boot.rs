//! The machine boots by every way and size, and ends with every frame returned.

use std::process::Command;

use pagoda_tests::{c_program, in_guest, on_linux, run, same_as_linux, xtask_run};

/// The tour passes on this machine, and its log says all of `words`.
fn tour_on(options: &[&str], words: &[&str]) {
    let said = run(&mut xtask_run(options), b"");
    assert_eq!(said.status, 0, "{}\n{}", said.out, said.err);
    for word in ["every frame returned", "storey 4", ", 0 did not hold"].iter().chain(words) {
        assert!(said.out.contains(word), "no word {word:?} in:\n{}", said.out);
    }
}

#[test]
#[ignore = "boots a machine"]
fn the_tour_passes_wherever_any_two_choices_meet() {
    let xtask = std::env::var_os("PAGODA_XTASK").expect("run by `cargo xtask test`");
    let said = run(Command::new(xtask).args(["matrix", "--pairs", "--jobs=2"]), b"");
    assert_eq!(said.status, 0, "{}", said.out);
    let last = said.out.lines().last().unwrap_or_default();
    let passed: u32 = last.strip_suffix(" passed, 0 failed").unwrap().parse().unwrap();
    // As many as the two largest choices have pairs: ways to boot, numbers of CPUs.
    assert!(passed >= 16, "{last}");
}

#[test]
#[ignore = "boots a machine"]
fn the_tour_passes_by_pvh_on_a_pc() {
    tour_on(&["--boot=pvh", "--smp=2"], &["by PVH", "2 CPUs, of 2", "by the timer's channel 2"]);
}

#[test]
#[ignore = "boots a machine"]
fn the_tour_passes_by_pvh_on_a_machine_without_a_pcs_past() {
    let words = ["by PVH", "4 CPUs, of 4", "by the timer's channel 0"];
    tour_on(&["--machine=microvm", "--smp=4"], &words);
}

#[test]
#[ignore = "boots a machine"]
fn no_old_timer_no_old_interrupt_controller_and_no_clock_chip_are_needed() {
    let options = ["--machine=microvm,pit=off,pic=off,rtc=off", "--smp=2"];
    tour_on(&options, &["by the CPU's own timer", "it is 1970", "2 CPUs, of 2"]);
    same_as_linux(&options, &["/bin/busybox", "sh", "-c", "cat; echo late >&2; exit 7"], b"in\n");
}

#[test]
#[ignore = "boots a machine"]
fn acpis_timer_measures_the_clock_where_the_old_one_is_missing() {
    tour_on(&["--machine=pc,pit=off"], &["by ACPI's timer"]);
}

#[test]
#[ignore = "boots a machine"]
fn the_old_interrupt_controller_serves_where_acpi_names_no_other() {
    let options = ["--machine=pc,acpi=off"];
    tour_on(&options, &["1 CPUs, of 1"]);
    same_as_linux(&options, &["/bin/busybox", "sh", "-c", "cat; sleep 0.1; exit 7"], b"in\n");
}

#[test]
#[ignore = "boots a machine"]
fn one_serial_line_is_enough() {
    for machine in ["pc", "microvm"] {
        let machine = format!("--machine={machine}");
        let program = ["/bin/busybox", "sh", "-c", "echo one; echo two >&2; exit 7"];
        let (found, linux) =
            (in_guest(&["--one-line", &machine], &program, b""), on_linux(&program, b""));
        assert_eq!(found.status, linux.status, "{}", found.err);
        // Standard error has no line of its own.
        assert_eq!(found.out, linux.out + &linux.err, "{}", found.err);
    }
}

#[test]
#[ignore = "boots a machine"]
fn page_tables_have_five_levels_on_every_cpu_that_can() {
    let words = ["5 levels, 57 bits of address", "4 CPUs, of 4"];
    tour_on(&["--la57", "--smp=4"], &words);
    tour_on(&["--la57", "--machine=microvm", "--smp=4", "--memory=16M"], &words);
}

#[test]
#[ignore = "boots a machine"]
fn five_levels_can_be_refused() {
    tour_on(&["--la57", "--append=la57=off"], &["4 levels, 48 bits of address"]);
}

#[test]
#[ignore = "boots a machine"]
fn programs_live_in_the_same_addresses_with_five_levels() {
    let program = c_program("wide");
    for options in [&[][..], &["--la57"]] {
        let said = in_guest(options, &[program.to_str().unwrap()], b"");
        assert_eq!((said.status, said.out.as_str()), (139, "low\n"), "{}", said.err);
    }
}

/// The seconds that the kernel's log puts before the line with `word`.
fn seconds(log: &str, word: &str) -> f64 {
    let line = log.lines().find(|line| line.contains(word)).expect(word);
    let stamp = line.trim_start().strip_prefix('[').and_then(|line| line.split(']').next());
    stamp.expect("a stamp").trim().parse().expect("a number")
}

#[test]
#[ignore = "boots a machine"]
fn four_tebibytes_boot_in_seconds_and_come_back_whole() {
    let machines: [&[&str]; 3] = [
        // All memory but the first 4 GiB lies above 1 TiB.
        &["--memory=4T"],
        &["--memory=4T", "--machine=q35", "--cpu=max,vendor=GenuineIntel", "--la57", "--smp=2"],
        &["--memory=4T", "--machine=microvm"],
    ];
    for machine in machines {
        let mut options = machine.to_vec();
        options.push("--append=selftest=huge");
        let said = run(&mut xtask_run(&options), b"");
        assert_eq!(said.status, 0, "{}\n{}", said.out, said.err);
        let blocks = said.out.split("16 blocks of 1 GiB, the first at 0x").nth(1).expect("blocks");
        let first = u64::from_str_radix(blocks.split(',').next().unwrap_or_default(), 16).unwrap();
        assert!(first > 4000 << 30, "{first:#x} is not near the top");
        assert!(said.out.contains(", 0 lost"), "{}", said.out);
        let time = seconds(&said.out, "storey 4, processes");
        assert!(time < 5.0, "{machine:?}: {time} s");
    }
}

#[test]
#[ignore = "boots a machine"]
fn the_border_holds_and_lines_interrupt_whatever_the_controller() {
    for options in [
        &["--machine=pc,acpi=off"][..],
        &["--machine=microvm", "--smp=2"],
        &["--machine=microvm,pit=off,pic=off,rtc=off", "--la57"],
    ] {
        let mut options = options.to_vec();
        options.push("--append=selftest");
        tour_on(&options, &["every serial line interrupts: ok"]);
    }
}
