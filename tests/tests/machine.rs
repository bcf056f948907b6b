//! The border between programs and the kernel holds, and each classic mistake is named.

use pagoda_tests::{Said, in_guest, run, xtask_run};

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

/// Free pages of each zone, by node.
fn free_by_node(zoneinfo: &str) -> Vec<u64> {
    let (mut free, mut node) = (Vec::new(), 0);
    for line in zoneinfo.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["Node", number, "zone", _] => {
                node = number.trim_end_matches(',').parse().unwrap();
                free.resize(free.len().max(node + 1), 0);
            }
            ["pages", "free", count] => free[node] += count.parse::<u64>().unwrap(),
            _ => {}
        }
    }
    free
}

#[test]
#[ignore = "boots a machine"]
fn memory_comes_from_the_node_of_the_cpu_and_goes_back_there() {
    const PAGES: u64 = (64 << 20) / 4096;
    let script = "cat /proc/zoneinfo; dd if=/dev/zero of=/tmp/file bs=1M count=64 2>/dev/null; \
                  echo TAKEN; cat /proc/zoneinfo; rm /tmp/file; echo GIVEN; cat /proc/zoneinfo";
    for cpu in 0..3 {
        let mask = (1 << cpu).to_string();
        let program = ["/bin/busybox", "taskset", &mask, "/bin/busybox", "sh", "-c", script];
        let said = in_guest(&["--smp=3", "--nodes=3", "--memory=512M"], &program, b"");
        assert_eq!(said.status, 0, "{}", said.err);
        let (before, rest) = said.out.split_once("TAKEN").unwrap();
        let (taken, given) = rest.split_once("GIVEN").unwrap();
        let [before, taken, given] = [before, taken, given].map(free_by_node);
        assert_eq!((before.len(), taken.len(), given.len()), (3, 3, 3), "{}", said.out);
        for node in 0..3 {
            let gone = before[node].saturating_sub(taken[node]);
            if node == cpu {
                assert!(gone > PAGES * 9 / 10, "node {node} gave {gone} of {PAGES}");
            } else {
                assert!(gone < PAGES / 20, "node {node} gave {gone} to CPU {cpu}");
            }
            let kept = before[node].saturating_sub(given[node]);
            assert!(kept < PAGES / 20, "node {node} did not get {kept} back");
        }
    }
}

#[test]
#[ignore = "boots a machine"]
fn nodes_are_known_however_the_machine_is_booted() {
    for boot in ["multiboot1", "multiboot2", "pvh"] {
        let options = [&format!("--boot={boot}"), "--smp=2", "--nodes=2", "--memory=6G"];
        let said = in_guest(&options, &["/bin/busybox", "cat", "/proc/buddyinfo"], b"");
        assert_eq!(said.status, 0, "{}", said.err);
        let zones: Vec<_> = said.out.lines().filter_map(|line| line.get(..22)).collect();
        let expected =
            ["Node 0, zone      DMA ", "Node 0, zone    DMA32 ", "Node 1, zone   Normal "];
        assert_eq!(zones, expected, "{}", said.out);
    }
}

#[test]
#[ignore = "boots a machine"]
fn a_hardened_heap_carries_the_tour() {
    let said = boot("slab_harden", &["--smp=2"]);
    assert_eq!(said.status, 0, "{}", said.out);
    assert!(said.out.contains("free lists are encoded and shuffled"), "{}", said.out);
    assert!(said.out.contains(", 0 lost"), "{}", said.out);
}
