//! When the kernel itself does wrong it stops loudly and names the culprit.

use pagoda_tests::{Said, run, xtask_run};

fn selftest(name: &str) -> Said {
    let append = format!("--append=selftest={name}");
    let said = run(&mut xtask_run(&[&append]), b"");
    assert_ne!(said.status, 0, "{}", said.out);
    said
}

#[test]
#[ignore = "boots a machine"]
fn a_kernel_stack_overflow_is_reported_as_such() {
    let said = selftest("stack");
    assert!(said.out.contains("stack overflow"), "{}", said.out);
}

#[test]
#[ignore = "boots a machine"]
fn a_panic_prints_a_backtrace_with_names() {
    let said = selftest("panic");
    assert!(said.out.contains("panic"), "{}", said.out);
    assert!(said.out.contains("pagoda_kernel::"), "no names in:\n{}", said.out);
}

#[test]
#[ignore = "boots a machine"]
fn a_frame_freed_twice_is_named() {
    let said = selftest("doublefree");
    assert!(said.out.contains("free"), "{}", said.out);
}

#[test]
#[ignore = "boots a machine"]
fn kernel_text_cannot_be_written() {
    let said = selftest("text");
    assert!(said.out.contains("page fault"), "{}", said.out);
}
