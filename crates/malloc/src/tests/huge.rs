//! Which regions may have huge pages.

use std::sync::atomic::Ordering::Relaxed;

use super::rig::{Rig, must_be_empty, roomy_rig as roomy};
use crate::huge::{FROM, REGION};
use crate::{Options, UNIT_BYTES};

/// What was said since the last call of regions behind a start: their distance from it.
fn said(rig: &Rig, start: *mut u8) -> Vec<(usize, bool)> {
    let said = std::mem::take(&mut *rig.system.huge.lock().unwrap());
    let behind =
        said.into_iter().filter_map(|(at, may)| Some((at.checked_sub(start as usize)?, may)));
    behind.map(|(at, may)| (at / REGION, may)).collect()
}

/// The same, each once: one purge may follow another.
fn once(rig: &Rig, start: *mut u8) -> Vec<(usize, bool)> {
    let mut said = said(rig, start);
    said.sort_unstable();
    said.dedup();
    said
}

fn fill(rig: &Rig, bytes: usize, total: usize) -> Vec<*mut u8> {
    let all: Vec<_> = (0..total / bytes).map(|_| rig.alloc(bytes)).collect();
    assert!(all.iter().all(|at| !at.is_null()));
    all
}

const FIRST: usize = FROM / REGION;

#[test]
#[cfg_attr(miri, ignore = "megabytes")]
fn a_heap_that_grows_gets_them_behind_the_first_sixteen_mebibytes() {
    let rig = roomy(Options::NONE);
    // The last region has units that were never taken: it is not opened anew, but goes on.
    for opened in [&[0, 1, 2][..], &[0, 1]] {
        let all = fill(&rig, 1024, FROM + 5 * REGION / 2);
        let small = rig.window.memory(0);
        let opened: Vec<_> = opened.iter().map(|number| (FIRST + number, true)).collect();
        assert_eq!(said(&rig, small), opened);
        all.into_iter().for_each(|at| unsafe { rig.free(at) });
        must_be_empty(&rig);
        let gone: Vec<_> = (FIRST..FIRST + 3).map(|region| (region, false)).collect();
        assert_eq!(once(&rig, small), gone, "or a touch would bring all of them back");
    }
}

#[test]
#[cfg_attr(miri, ignore = "megabytes")]
fn an_arena_gets_them_where_half_of_it_is_live() {
    // All arenas together have 32 MiB: here they begin at once.
    let rig = roomy(Options::NONE);
    fill(&rig, 16, 16).into_iter().for_each(|at| unsafe { rig.free(at) });
    rig.window.set_huge_from(0);
    let all = fill(&rig, 20_000, 3 * REGION / 2);
    assert_eq!(said(&rig, rig.window.medium()), [(0, true), (1, true)]);
    all.into_iter().for_each(|at| unsafe { rig.free(at) });
    rig.trim(0);
    assert_eq!(once(&rig, rig.window.medium()), [(0, false), (1, false)]);
    // A quarter of what is below the second region is live, and the holes are too small for what comes.
    let all = fill(&rig, 20_000, REGION);
    let is_kept = |index: usize| index % 4 == 0;
    let halves = all.into_iter().enumerate().partition::<Vec<_>, _>(|(index, _)| is_kept(*index));
    halves.1.into_iter().for_each(|(_, at)| unsafe { rig.free(at) });
    said(&rig, rig.window.medium());
    let others = fill(&rig, 120_000, REGION / 4);
    assert_eq!(said(&rig, rig.window.medium()), [(1, false)]);
    let kept = halves.0.into_iter().map(|(_, at)| at);
    kept.chain(others).for_each(|at| unsafe { rig.free(at) });
    must_be_empty(&rig);
}

#[test]
#[cfg_attr(miri, ignore = "megabytes")]
fn slabs_that_foretell_no_more_of_their_kind_open_no_huge_page() {
    let rig = roomy(Options::NONE);
    unsafe { rig.free(rig.alloc(16)) };
    let take = |dense| rig.pool.take(&rig.window, &rig.system, dense).unwrap();
    let units = (FROM + 2 * REGION) / UNIT_BYTES;
    while (take(false) as usize) < units - 1 {}
    assert_eq!(said(&rig, rig.window.memory(0)), []);
    assert_eq!(take(true) as usize, units);
    assert_eq!(said(&rig, rig.window.memory(0)), [(FIRST + 2, true)]);
    let before = rig.system.decommitted.load(Relaxed);
    // What went back is opened anew, by whoever comes.
    (1..=units as u32).rev().for_each(|unit| {
        rig.pool.give(&rig.window, &rig.system, unit);
    });
    rig.pool.trim(&rig.window, &rig.system, 0);
    let whole = FROM + 3 * REGION - UNIT_BYTES;
    assert_eq!(rig.system.decommitted.load(Relaxed) - before, whole, "with what was never taken");
    let gone: Vec<_> = (FIRST..FIRST + 3).map(|region| (region, false)).collect();
    assert_eq!(once(&rig, rig.window.memory(0)), gone);
    while (take(false) as usize) < units {}
    let anew: Vec<_> = (FIRST..FIRST + 2).map(|region| (region, false)).collect();
    assert_eq!(said(&rig, rig.window.memory(0)), anew, "the third has never been taken whole");
}

#[test]
#[cfg_attr(miri, ignore = "megabytes")]
fn who_wants_none_gets_none() {
    let rig = roomy(Options::NO_HUGE);
    let all = fill(&rig, 1024, FROM + 2 * REGION);
    all.into_iter().for_each(|at| unsafe { rig.free(at) });
    assert_eq!(rig.system.huge.lock().unwrap().len(), 0);
    must_be_empty(&rig);
}
