//! The border between programs and the kernel holds, and each classic mistake is named.

use pagoda_tests::{Said, run, xtask_run};

fn boot(append: &str, more: &[&str]) -> Said {
    let append = format!("--append={append}");
    let mut arguments = vec![append.as_str()];
    arguments.extend(more);
    run(&mut xtask_run(&arguments), b"")
}

/// Makes the mistake `name` and demands a report that says all of `words`.
fn mistake(name: &str, words: &[&str]) {
    let said = boot(&format!("selftest={name}"), &[]);
    assert_ne!(said.status, 0, "{}", said.out);
    for word in words {
        assert!(said.out.contains(word), "no {word:?} in:\n{}", said.out);
    }
}

fn border(options: &[&str]) {
    let said = boot("selftest", options);
    assert_eq!(said.out.matches(": ok").count(), 10, "{}", said.out);
    assert!(said.out.contains(", 0 lost"), "{}", said.out);
}

#[test]
#[ignore = "boots a machine"]
fn the_border_holds_on_a_modern_cpu() {
    border(&["--cpu=max"]);
    border(&["--cpu=max", "--la57"]);
}

#[test]
#[ignore = "boots a machine"]
fn the_border_holds_on_the_first_64_bit_cpus() {
    border(&["--cpu=qemu64"]);
}

#[test]
#[ignore = "boots a machine"]
fn the_boot_stack_has_a_guard_too() {
    mistake("bootstack", &["kernel stack overflow", "boot stack", "recurse"]);
}

#[test]
#[ignore = "boots a machine"]
fn a_thread_that_overflows_its_stack_is_told_from_others() {
    mistake("stack", &["kernel stack overflow", "under a thread's kernel stack"]);
}

#[test]
#[ignore = "boots a machine"]
fn kernel_text_is_read_only_through_the_direct_map_too() {
    mistake("alias", &["page fault: write", "not allowed"]);
}

#[test]
#[ignore = "boots a machine"]
fn data_is_not_executed() {
    mistake("execute", &["page fault: execution", "not allowed"]);
}

#[test]
#[ignore = "boots a machine"]
fn a_block_freed_twice_is_named() {
    mistake("kfree", &["double free", "40-byte block"]);
}

#[test]
#[ignore = "boots a machine"]
fn a_write_behind_a_sampled_block_or_after_its_free_is_named() {
    mistake("overrun", &["guard page above a block", "write behind a block", "40-byte block"]);
    mistake("afterfree", &["page fault: write", "write after free", "40-byte block"]);
}

#[test]
#[ignore = "boots a machine"]
fn locks_are_taken_downwards_only() {
    mistake("rank", &["lock of rank 60 taken while holding"]);
}

#[test]
#[ignore = "boots a machine"]
fn nobody_switches_while_pinned() {
    mistake("pinned", &["switched while pinned"]);
}

#[test]
#[ignore = "boots a machine"]
fn a_lost_frame_fails_the_run() {
    mistake("leak", &["1 frames were not returned", "1 frames as self-test", "1 lost"]);
}
