//! What stops a test.

use pagoda_addr::{Frame, Page, PageRange};
use pagoda_paging::FlushRange;

use crate::PhysArena;
use crate::bits::Hardware;
use crate::tlb::Cpu;
use crate::walk::{Walk, walk};

/// Stops when `cpu` remembers about `page` what `walk`, fresh from the tables, does not grant.
pub(crate) fn compare(cpu: &Cpu, page: u64, walk: &Walk) {
    let id = cpu.id;
    let name = Page::from_number(page);
    for leaf in cpu.leaves_of(page) {
        let frame = leaf.frame_of(page);
        let Some(found) = walk.found else {
            panic!(
                "stale TLB: {id:?} still knows page {name:?} as frame {frame:#x}; it is unmapped"
            );
        };
        let now = found.frame_of(page);
        assert!(
            now == frame,
            "stale TLB: {id:?} still knows page {name:?} as frame {frame:#x}; it is {now:#x} now"
        );
        assert!(
            leaf.size == found.size,
            "stale TLB: {id:?} still knows page {name:?} as part of {:?}; the tables have {:?}",
            leaf.size,
            found.size
        );
        assert!(
            !leaf.rights.exceed(found.rights),
            "stale TLB: {id:?} still allows {:?} on page {name:?}; the tables say {:?}",
            leaf.rights,
            found.rights
        );
        assert!(
            leaf.memory == found.memory,
            "stale TLB: {id:?} still knows page {name:?} as memory of type {}; it is {} now",
            leaf.memory,
            found.memory
        );
        assert!(
            !leaf.dirty || found.dirty,
            "stale TLB: {id:?} would write page {name:?} without setting its cleared dirty bit"
        );
    }
    for way in cpu.ways_of(page) {
        let now = walk.ways.iter().find(|now| now.level == way.level);
        let good = now.is_some_and(|now| now.table == way.table && !way.rights.exceed(now.rights));
        assert!(
            good,
            "stale paging-structure cache: {id:?} still goes to page {name:?} through table {:?} of \
             level {}; the tables say {now:?}",
            way.table, way.level
        );
    }
}

/// Stops when `cpu` still refuses about `page` what `walk` grants, and no fault would make it forget.
pub(crate) fn compare_gains(cpu: &Cpu, hardware: Hardware, page: u64, walk: &Walk) {
    if hardware.fault_forgets() {
        return;
    }
    let (id, name) = (cpu.id, Page::from_number(page));
    for level in cpu.absences_of(page) {
        assert!(
            walk.found.is_none() && walk.end >= level,
            "stale absence: {id:?} still takes the entry of level {level} over page {name:?} as absent"
        );
    }
    let Some(found) = walk.found else { return };
    for leaf in cpu.leaves_of(page) {
        let clean = hardware.faults_for_history() && found.dirty && !leaf.dirty;
        assert!(
            !found.rights.exceed(leaf.rights) && !clean,
            "stale refusal: {id:?} still refuses on page {name:?} more than {:?}",
            found.rights
        );
    }
}

/// Stops when a flush finds that `cpu` knows a leaf that was made another without being absent in
/// between.
pub(crate) fn unbroken(cpu: &Cpu, arena: &PhysArena, hardware: Hardware, what: &FlushRange<'_>) {
    let Some(root) = cpu.root else { return };
    for (page, leaf) in cpu.leaves() {
        let leaf_range = PageRange::new(Page::from_number(page), leaf.size.pages());
        let span = |span: &PageRange| {
            leaf_range.is_some_and(|leaf| {
                leaf.start() < Page::from_number(span.end_number().min(Page::LIMIT - 1))
                    && span.start().number() < leaf.end_number()
            })
        };
        if !what.everything && !what.spans.iter().any(span) {
            continue;
        }
        let Some(found) = walk(arena, hardware, root, page).found else { continue };
        let same = (leaf.frame_of(page), leaf.size, leaf.memory, leaf.global)
            == (found.frame_of(page), found.size, found.memory, found.global);
        assert!(
            same,
            "break-before-make: {:?} knows page {:?} as {leaf:?} while the tables have {found:?}",
            cpu.id,
            Page::from_number(page)
        );
    }
}

/// Stops when `cpu` knows `frame`, which is about to be free. (Not while a test that has failed
/// already is cleaned up.)
pub(crate) fn still_known(cpu: &Cpu, frame: Frame) {
    if std::thread::panicking() {
        return;
    }
    let id = cpu.id;
    assert!(cpu.root != Some(frame), "root {frame:?} is released while {id:?} uses it");
    for (page, leaf) in cpu.leaves() {
        let page = Page::from_number(page);
        let behind = leaf.frame.number()..leaf.frame.number() + leaf.size.pages();
        assert!(
            !behind.contains(&frame.number()),
            "frame {frame:?} is released while the TLB of {id:?} still knows it behind page {page:?}"
        );
    }
    for (page, way) in cpu.ways() {
        let page = Page::from_number(page);
        assert!(
            way.table != frame,
            "table {frame:?} is released while {id:?} still goes through it to page {page:?}"
        );
    }
}
