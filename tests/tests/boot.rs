//! The machine boots by every way and size, and ends with every frame returned.

use pagoda_tests::{run, xtask_run};

fn tour(boot: &str, memory: &str) {
    let (boot, memory) = (format!("--boot={boot}"), format!("--memory={memory}"));
    let said = run(&mut xtask_run(&[&boot, &memory]), b"");
    assert_eq!(said.status, 0, "{}\n{}", said.out, said.err);
    for word in ["every frame", "storey"] {
        assert!(said.out.contains(word), "no word {word:?} in:\n{}", said.out);
    }
}

#[test]
#[ignore = "boots a machine"]
fn the_tour_passes_by_multiboot1_in_32_mib() {
    tour("multiboot1", "32M");
}

#[test]
#[ignore = "boots a machine"]
fn the_tour_passes_by_multiboot1_in_256_mib() {
    tour("multiboot1", "256M");
}

#[test]
#[ignore = "boots a machine"]
fn the_tour_passes_by_multiboot1_in_4_gib() {
    tour("multiboot1", "4G");
}

#[test]
#[ignore = "boots a machine"]
fn the_tour_passes_by_multiboot2_in_32_mib() {
    tour("multiboot2", "32M");
}

#[test]
#[ignore = "boots a machine"]
fn the_tour_passes_by_multiboot2_in_256_mib() {
    tour("multiboot2", "256M");
}

#[test]
#[ignore = "boots a machine"]
fn the_tour_passes_by_multiboot2_in_4_gib() {
    tour("multiboot2", "4G");
}
