//! What the kernel's own numbers say while we do things.

use std::fs;
use std::io::{Read as _, Write as _};

use crate::Tour;
use crate::space::Mapping;

/// Are we on our own kernel, where nobody else takes memory meanwhile?
pub fn on_pagoda() -> bool {
    fs::read_to_string("/proc/version").is_ok_and(|version| version.contains("Pagoda"))
}

/// The number behind `label` in a file of `/proc`, in the file's own unit.
pub fn number(file: &str, label: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(label))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn free_kib() -> Option<u64> {
    number("/proc/meminfo", "MemFree:")
}

/// Pages that are touched take frames; pages that are given back return them.
pub fn frames_follow_the_pages(tour: &mut Tour) {
    const PAGES: u64 = 1000;
    // Once for nothing: the C library allocates buffers for the reading, the kernel's heap a slab for
    // the records. Both are kept.
    let _ = free_kib();
    Mapping::new(PAGES as usize * 4096).touch(PAGES as usize);
    let (Some(total), Some(before)) = (number("/proc/meminfo", "MemTotal:"), free_kib()) else {
        return tour.step(false, "/proc/meminfo speaks of memory");
    };
    let mapping = Mapping::new(PAGES as usize * 4096);
    let mapped = free_kib().unwrap_or(0);
    mapping.touch(PAGES as usize);
    let touched = free_kib().unwrap_or(0);
    drop(mapping);
    let after = free_kib().unwrap_or(0);
    println!("    {} MiB managed, {} MiB free", total / 1024, before / 1024);
    if !on_pagoda() {
        println!("    (not our kernel: others take frames too, so nothing is counted)");
        return;
    }
    let taken = mapped.saturating_sub(touched) / 4;
    tour.step(before - mapped <= 8, "mapping 1000 pages takes no frame for them");
    tour.step(
        (PAGES..PAGES + 6).contains(&taken),
        &format!("touching them takes {taken} frames: the pages and their tables"),
    );
    tour.step(before.abs_diff(after) <= 8, "unmapping returns all of them");
}

/// Kernel objects are made in slabs, and the slabs' counts follow.
pub fn kernel_objects_come_and_go(tour: &mut Tour) {
    let before = objects();
    let mut pipes = Vec::new();
    for _ in 0..50 {
        match std::io::pipe() {
            Ok(pipe) => pipes.push(pipe),
            Err(error) => return tour.step(false, &format!("fifty pipes can be had: {error}")),
        }
    }
    let during = objects();
    let mut heard = 0;
    for (reader, writer) in &mut pipes {
        let mut word = [0; 6];
        if writer.write_all(b"pagoda").and_then(|()| reader.read_exact(&mut word)).is_ok() {
            heard += u32::from(&word == b"pagoda");
        }
    }
    tour.step(heard == 50, "fifty pipes carry a word each");
    drop(pipes);
    let (Some(before), Some(during), Some(after)) = (before, during, objects()) else { return };
    if on_pagoda() {
        let made = during.saturating_sub(before);
        tour.step(made >= 50, &format!("they were {made} objects of the kernel's heap"));
        tour.step(after < during && after.abs_diff(before) < 20, "closed, they are gone");
    }
}

/// Objects in use in all slabs.
fn objects() -> Option<u64> {
    let text = fs::read_to_string("/proc/slabinfo").ok()?;
    let active = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    Some(text.lines().skip(2).filter_map(active).sum())
}
