//! The texts of `/proc`, read as those programs read them that know Linux's.

use std::string::String;
use std::vec::Vec;

use super::{heap, layout};
use crate::testing::{Arena, Ledger};

/// What `slabtop` keeps of a line.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Line {
    name: String,
    active: u32,
    objects: u32,
    size: u32,
    per_slab: u32,
    pages: u32,
    active_slabs: u32,
    slabs: u32,
}

/// Reads as procps does: the version in the first line, comments begin with `#`, and every other line
/// is one `scanf` of `%s %u %u %u %u %u : tunables %u %u %u : slabdata %u %u %u`, a name of at most 63
/// bytes. (White space in a format matches any.)
fn slabtop(text: &str) -> Vec<Line> {
    let mut lines = text.lines();
    let version = lines.next().unwrap().strip_prefix("slabinfo - version: ").unwrap();
    let (major, minor) = version.split_once('.').unwrap();
    assert_eq!((major.parse(), minor.parse()), (Ok(2), Ok(1)));
    let rows = lines.filter(|line| !line.starts_with('#'));
    rows.map(|line| {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap();
        assert!(name.len() < 64, "{name}");
        let mut rest = Vec::new();
        for word in words {
            match word {
                ":" | "tunables" | "slabdata" => rest.push(Err(word)),
                number => rest.push(Ok(number.parse::<u32>().unwrap())),
            }
        }
        let [
            Ok(active),
            Ok(objects),
            Ok(size),
            Ok(per_slab),
            Ok(pages),
            Err(":"),
            Err("tunables"),
            Ok(_),
            Ok(_),
            Ok(_),
            Err(":"),
            Err("slabdata"),
            Ok(active_slabs),
            Ok(slabs),
            Ok(_),
        ] = rest[..]
        else {
            panic!("{line}");
        };
        let name = String::from(name);
        Line { name, active, objects, size, per_slab, pages, active_slabs, slabs }
    })
    .collect()
}

#[test]
fn slabtop_reads_slabinfo_and_its_sums_are_right() {
    let (arena, ledger) = (Arena::new(1024), Ledger::default());
    let heap = heap(&arena, &ledger);
    let cache = heap.cache("a-typed-cache", || [0u64; 40]).unwrap();
    let objects: Vec<_> = (0..100).map(|_| cache.alloc().unwrap()).collect();
    for (size, count) in [(96, 1000), (150, 50), (1500, 30), (8192, 3)] {
        for _ in 0..count {
            heap.kalloc(layout(size, 8)).unwrap();
        }
    }
    let mut text = String::new();
    heap.slabinfo(&mut text).unwrap();
    let comment = "# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> \
                   : tunables <limit> <batchcount> <sharedfactor> \
                   : slabdata <active_slabs> <num_slabs> <sharedavail>";
    assert_eq!(text.lines().nth(1), Some(comment), "Linux's second line");
    let lines = slabtop(&text);
    assert_eq!(lines.len(), crate::classes::CLASSES + 1);
    for line in &lines {
        assert!(line.active <= line.objects && line.active_slabs <= line.slabs, "{line:?}");
        // What slabtop multiplies and divides with.
        assert!(line.size > 0 && line.per_slab > 0 && line.pages > 0, "{line:?}");
        // Middle blocks have no slabs of their own, which might be less than full.
        let (slabs, most) = (line.slabs, line.slabs * line.per_slab);
        let least = if line.size > 1024 { 0 } else { most.saturating_sub(slabs * 2) };
        assert!((least..=most).contains(&line.objects), "{line:?}");
        assert!(line.pages * 4096 >= line.per_slab * line.size, "{line:?}");
    }
    let find = |name: &str| lines.iter().find(|line| line.name == name).unwrap();
    for (name, active) in
        [("kmalloc-96", 1000), ("kmalloc-160", 50), ("kmalloc-1536", 30), ("kmalloc-8k", 3)]
    {
        assert_eq!(find(name).active, active, "{name}");
    }
    assert_eq!((find("a-typed-cache").active, find("a-typed-cache").size), (100, 320));
    // "Active / Total Size" is near what the heap has taken for small blocks.
    let total: u32 = lines.iter().map(|line| line.slabs * line.pages * 4096).sum();
    assert!((total as usize) < 3 * heap.stats().taken, "{total}");
    drop(objects);
}

#[test]
fn vmallocinfo_has_linuxs_fields() {
    let (arena, ledger) = (Arena::new(1024), Ledger::default());
    arena.let_map(2000);
    let heap = heap(&arena, &ledger);
    heap.set_debug("U,nothing").unwrap();
    let sizes = [2 << 20, (1 << 20) + 1, 3 << 20];
    let blocks = sizes.map(|size| heap.kalloc(layout(size, 8)).unwrap().as_ptr() as usize);
    let mut text = String::new();
    heap.vmallocinfo(&mut text).unwrap();
    let mut seen = Vec::new();
    for line in text.lines() {
        // 0x%px-0x%px %7lu %pS pages=%u vmalloc
        let (from, rest) = line.split_once('-').unwrap();
        let mut words = rest.split_whitespace();
        let to = words.next().unwrap();
        assert_eq!((from.len(), to.len()), (18, 18), "{line}");
        let hex = |word: &str| usize::from_str_radix(word.strip_prefix("0x").unwrap(), 16).unwrap();
        let bytes: usize = words.next().unwrap().parse().unwrap();
        assert_eq!(hex(to) - hex(from), bytes);
        let caller = words.next().unwrap();
        assert!(hex(caller) > 0x1000, "who asked, where that is known: {line}");
        let pages = words.next().unwrap().strip_prefix("pages=").unwrap();
        assert_eq!((pages.parse::<usize>().unwrap() + 1) * 4096, bytes, "and a guard page");
        assert_eq!((words.next(), words.next()), (Some("vmalloc"), None));
        seen.push(hex(from));
    }
    seen.reverse();
    assert_eq!(seen, blocks, "the newest first");
}
