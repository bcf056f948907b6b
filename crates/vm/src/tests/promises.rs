//! Directed cases of what is promised, locked and freed lazily.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pagoda_addr::VirtAddr;

use super::host::{Host, Space, TestFile};
use crate::{
    Access, Advice, Backing, FaultDone, FaultError, Limits, Locking, MapFlags, MapRequest,
    Overcommit, Place, Prot, RemapPlace, RemapRequest, VmError,
};

const RW: Prot = Prot::READ.union(Prot::WRITE);
const BASE: u64 = 0x10_0000_0000;

fn at(page: u64) -> VirtAddr {
    VirtAddr::new(BASE + page * 4096)
}

fn pages<'h>(first: u64, count: u64, prot: Prot) -> MapRequest<&'h Host> {
    MapRequest::anonymous(Place::Fixed(at(first)), count * 4096, prot)
}

fn resize(first: u64, old: u64, new: u64) -> RemapRequest {
    let (addr, place) = (at(first), RemapPlace::InPlace);
    RemapRequest { addr, old_len: old * 4096, new_len: new * 4096, place, keep_old: false }
}

fn counted(space: &Space<'_>, page: u64) -> bool {
    space.next_region(at(page)).unwrap().flags.contains(MapFlags::COUNTED)
}

#[test]
fn what_may_be_written_is_promised_from_the_call_that_allows_it_to_the_one_that_takes_it_away() {
    let host = Host::new(128);
    let promised = || host.2.promised();
    let space = host.linux();
    host.enter(0, &space);
    space.map(pages(0, 10, Prot::READ)).unwrap();
    space.map(MapRequest { flags: MapFlags::NO_RESERVE, ..pages(100, 10, RW) }).unwrap();
    assert_eq!(promised(), 0);
    space.protect(at(2), 4 * 4096, RW).unwrap();
    assert_eq!(promised(), 4);
    // What was written stays promised when it cannot be written any more; what was not does not.
    host.store(0, &space, at(2).as_u64(), 1).unwrap();
    space.protect(at(2), 4 * 4096, Prot::READ).unwrap();
    assert!(promised() == 4 && counted(&space, 2));
    space.map(pages(50, 3, RW)).unwrap();
    assert_eq!(promised(), 7);
    space.protect(at(50), 3 * 4096, Prot::empty()).unwrap();
    assert!(promised() == 4 && !counted(&space, 50));
    // A replacement counts once; a part of a region gives back its part.
    space.map(pages(2, 3, RW)).unwrap();
    assert_eq!(promised(), 4);
    space.unmap(at(4), 4096).unwrap();
    assert_eq!(promised(), 3);
    space.map(pages(200, 2, RW)).unwrap();
    space.remap(resize(200, 2, 5)).unwrap();
    assert_eq!(promised(), 8);
    space.remap(resize(200, 5, 1)).unwrap();
    assert_eq!(promised(), 4);
    let shared = MapRequest { backing: Backing::SharedAnonymous, ..pages(300, 7, RW) };
    space.map(shared).unwrap();
    assert_eq!(promised(), 11);
    let child = space.fork(host.table()).unwrap();
    assert_eq!(promised(), 15, "the private pages once more");
    space.unmap(at(300), 7 * 4096).unwrap();
    assert_eq!(promised(), 15, "the child still sees what is shared");
    drop(child);
    assert_eq!(promised(), 4);
    let file = Backing::File { object: TestFile::shared(1, 1 << 20), offset: 0 };
    space.map(MapRequest { backing: file, ..pages(400, 5, RW) }).unwrap();
    space.start_brk(at(1000));
    space.set_brk(at(1006));
    assert_eq!(promised(), 15);
    space.map(MapRequest { flags: MapFlags::GROWS_DOWN, ..pages(900, 1, RW) }).unwrap();
    host.store(0, &space, at(890).as_u64(), 1).unwrap();
    assert_eq!((promised(), space.stats().committed), (26, 26));
    host.leave(0, &space);
    drop(space);
    assert_eq!(promised(), 0);
}

#[test]
fn where_every_promise_is_kept_none_is_made_that_cannot_be() {
    let host = Host::new(128);
    host.2.set_total(400);
    host.2.set_mode(Overcommit::Never);
    let space = host.linux();
    space.map(MapRequest { flags: MapFlags::NO_RESERVE, ..pages(0, 90, RW) }).unwrap();
    assert_eq!(host.2.promised(), 90, "no exceptions");
    let regions = space.stats().regions;
    assert_eq!(space.map(pages(500, 110, RW)), Err(VmError::OutOfMemory));
    assert_eq!(space.remap(resize(0, 90, 200)), Err(VmError::OutOfMemory));
    space.map(pages(500, 110, Prot::READ)).unwrap();
    assert_eq!(space.protect(at(500), 110 * 4096, RW), Err(VmError::OutOfMemory));
    let shared = MapRequest { backing: Backing::SharedAnonymous, ..pages(700, 110, RW) };
    assert_eq!(space.map(shared), Err(VmError::OutOfMemory));
    assert_eq!((host.2.promised(), space.stats().regions), (90, regions + 1));
    // A child of the same size does not fit if the parent has more than half.
    space.map(pages(900, 15, RW)).unwrap();
    assert_eq!(space.fork(host.table()).err(), Some(VmError::OutOfMemory));
    assert_eq!(host.2.promised(), 105);
    host.2.set_mode(Overcommit::Always);
    drop(space.fork(host.table()).unwrap());
    space.map(pages(2000, 1 << 30, RW)).unwrap();
    host.2.set_mode(Overcommit::Heuristic);
    assert_eq!(space.map(pages(1000, 401, RW)), Err(VmError::OutOfMemory));
    drop(space);
    assert_eq!(host.2.promised(), 0);
}

/// Eight pages with a byte each, freed lazily.
fn freed<'h>(host: &'h Host) -> Space<'h> {
    let space = host.linux();
    host.enter(0, &space);
    space.map(pages(0, 8, RW)).unwrap();
    (0..8).for_each(|page| host.store(0, &space, at(page).as_u64(), 7).unwrap());
    space.advise(at(0), 8 * 4096, Advice::Free).unwrap();
    space
}

#[test]
fn what_was_freed_lazily_stays_until_frames_are_short_and_what_is_written_again_for_good() {
    let host = Host::new(64);
    let space = freed(&host);
    let used = host.used();
    assert_eq!((space.stats().rss(), space.resident(at(0)).lazy), (8, 8));
    assert_eq!(host.load(0, &space, at(0).as_u64()), Ok(7));
    // By the program, and by the kernel for it.
    host.store(0, &space, at(1).as_u64() + 1, 8).unwrap();
    space.copy_out(&[9], space.user_range(at(2).as_u64() + 1, 1).unwrap()).unwrap();
    assert_eq!(space.fault(at(3), Access::Write), Ok(FaultDone::Copied));
    // Rights that come back do not make it wanted.
    space.protect(at(0), 8 * 4096, Prot::READ).unwrap();
    space.protect(at(0), 8 * 4096, RW).unwrap();
    assert_eq!(space.resident(at(0)).lazy, 5);
    assert_eq!((space.let_go(), space.let_go()), (5, 0));
    assert_eq!((host.used(), space.stats().rss()), (used - 5, 3));
    let byte = |page: u64, offset| host.load(0, &space, at(page).as_u64() + offset).unwrap();
    assert_eq!([byte(0, 0), byte(1, 0), byte(1, 1), byte(2, 0), byte(2, 1)], [0, 7, 8, 7, 9]);
    assert_eq!([byte(3, 0), byte(4, 0)], [7, 0]);
    host.leave(0, &space);
}

#[test]
fn a_fault_that_finds_no_frame_takes_what_was_freed_lazily() {
    let host = Host::new(64);
    let space = freed(&host);
    space.map(pages(100, 100, RW)).unwrap();
    let mut got = 0;
    while host.store(0, &space, at(100 + got).as_u64(), 1).is_ok() {
        got += 1;
    }
    assert_eq!(space.resident(at(0)).present, 0);
    assert_eq!(host.used(), 64, "all of them");
    assert_eq!(host.load(0, &space, at(0).as_u64()), Err(FaultError::OutOfMemory));
    host.leave(0, &space);
}

#[test]
fn what_others_share_or_keep_locked_is_not_freed() {
    let host = Host::new(64);
    let space = freed(&host);
    space.set_locked(at(0), 2 * 4096, Locking::OnFault).unwrap();
    assert_eq!(space.let_go(), 6);
    assert_eq!(host.load(0, &space, at(1).as_u64()), Ok(7));
    space.set_locked(at(0), 2 * 4096, Locking::Off).unwrap();
    assert_eq!(space.let_go(), 2);
    (0..8).for_each(|page| host.store(0, &space, at(page).as_u64(), 5).unwrap());
    let child = space.fork(host.table()).unwrap();
    space.advise(at(0), 8 * 4096, Advice::Free).unwrap();
    assert_eq!((space.let_go(), child.let_go()), (0, 0));
    host.enter(1, &child);
    assert_eq!(
        (host.load(0, &space, at(3).as_u64()), host.load(1, &child, at(3).as_u64())),
        (Ok(5), Ok(5))
    );
    // A fork after the advice hands on what may go; each side lets go of its own.
    (0..8).for_each(|page| host.store(0, &space, at(page).as_u64(), 6).unwrap());
    space.advise(at(0), 8 * 4096, Advice::Free).unwrap();
    let second = space.fork(host.table()).unwrap();
    assert_eq!((space.let_go(), second.resident(at(0)).lazy), (8, 8));
    host.enter(2, &second);
    assert_eq!(host.load(2, &second, at(3).as_u64()), Ok(6));
    assert_eq!(host.load(0, &space, at(3).as_u64()), Ok(0));
    (0..3).zip([&space, &child, &second]).for_each(|(cpu, space)| host.leave(cpu, space));
}

#[test]
fn guard_pages_between_what_was_freed_lazily_stay() {
    let host = Host::new(64);
    let space = freed(&host);
    space.advise(at(3), 4096, Advice::GuardInstall).unwrap();
    assert_eq!(space.let_go(), 7);
    assert_eq!(host.load(0, &space, at(3).as_u64()), Err(FaultError::Unmapped));
    assert_eq!(host.load(0, &space, at(4).as_u64()), Ok(0));
    host.leave(0, &space);
}

#[test]
fn a_dropped_flush_at_lazy_freeing_is_caught() {
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let host = Host::new(64);
        let space = host.linux();
        host.enter(0, &space);
        space.map(pages(0, 1, RW)).unwrap();
        host.store(0, &space, at(0).as_u64(), 7).unwrap();
        host.0.drop_flush(0, None);
        space.advise(at(0), 4096, Advice::Free).unwrap();
        // The CPU believes that it may write: the page would go with what is written to it.
        let _ = host.store(0, &space, at(0).as_u64(), 8);
    }));
    assert!(caught.is_err());
}

#[test]
fn advice_that_memory_is_cold_is_seen_and_locked_memory_refuses_it() {
    let host = Host::new(64);
    let space = freed(&host);
    (0..8).for_each(|page| host.store(0, &space, at(page).as_u64(), 1).unwrap());
    assert_eq!(space.resident(at(0)).accessed, 8);
    space.advise(at(0), 4 * 4096, Advice::Cold).unwrap();
    assert_eq!((space.resident(at(0)).accessed, space.stats().rss()), (4, 8));
    space.advise(at(0), 2 * 4096, Advice::Free).unwrap();
    // Without swap only what can be had again goes.
    space.advise(at(0), 8 * 4096, Advice::PageOut).unwrap();
    assert_eq!((space.stats().rss(), space.resident(at(0)).accessed), (6, 0));
    let backing = Backing::File { object: TestFile::shared(2, 8 * 4096), offset: 0 };
    space.map(MapRequest { backing, ..pages(100, 8, RW) }).unwrap();
    host.load(0, &space, at(100).as_u64()).unwrap();
    host.store(0, &space, at(103).as_u64(), 77).unwrap();
    space.advise(at(100), 8 * 4096, Advice::PageOut).unwrap();
    assert_eq!((space.stats().rss_file, host.load(0, &space, at(103).as_u64())), (0, Ok(77)));
    space.set_locked(at(0), 8 * 4096, Locking::Now).unwrap();
    for advice in [Advice::Cold, Advice::PageOut, Advice::Free, Advice::DontNeed] {
        assert_eq!(space.advise(at(0), 8 * 4096, advice), Err(VmError::Invalid), "{advice:?}");
    }
    space.advise(at(0), 4096, Advice::DontNeedLocked).unwrap();
    assert_eq!(host.load(0, &space, at(0).as_u64()), Ok(0));
    host.leave(0, &space);
}

#[test]
fn what_is_mapped_in_future_can_be_locked_at_once_or_as_it_is_touched() {
    let host = Host::new(256);
    let space = host.linux();
    space.map(pages(0, 2, RW)).unwrap();
    space.set_all_locked(None, Locking::Now).unwrap();
    assert_eq!(space.stats().locked, 0, "what was there before is left alone");
    space.map(pages(100, 3, RW)).unwrap();
    space.start_brk(at(1000));
    assert_eq!(space.set_brk(at(1002)), at(1002));
    assert_eq!((space.stats().locked, space.stats().rss()), (5, 5));
    space.remap(resize(100, 3, 4)).unwrap();
    assert_eq!((space.stats().locked, space.stats().rss()), (6, 6));
    let child = space.fork(host.table()).unwrap();
    child.map(pages(200, 1, RW)).unwrap();
    assert_eq!(child.stats().locked, 0, "locks are not inherited, nor is the wish for them");
    space.set_all_locked(Some(Locking::OnFault), Locking::OnFault).unwrap();
    space.map(pages(300, 5, RW)).unwrap();
    assert_eq!((space.stats().locked, space.stats().rss()), (13, 6));
    assert_eq!(space.advise(at(300), 4096, Advice::DontNeed), Err(VmError::Invalid));
    // The limit: a mapping is refused, and asking for more.
    space.set_limits(Limits { locked: 15 * 4096, ..Limits::default() });
    assert_eq!(space.map(pages(400, 3, RW)), Err(VmError::LockLimit));
    assert_eq!(space.remap(resize(300, 5, 8)), Err(VmError::LockLimit));
    assert_eq!(space.set_brk(at(1005)), at(1002));
    space.map(pages(400, 2, RW)).unwrap();
    space.set_all_locked(Some(Locking::Off), Locking::Off).unwrap();
    space.map(pages(500, 3, RW)).unwrap();
    assert_eq!(space.set_locked(at(300), 5 * 4096, Locking::Now), Ok(()));
    assert_eq!(space.stats().locked, 5);
    assert_eq!(space.set_all_locked(Some(Locking::Now), Locking::Off), Err(VmError::OutOfMemory));
    space.set_limits(Limits { locked: 0, ..Limits::default() });
    assert_eq!(space.set_locked(at(300), 4096, Locking::Now), Err(VmError::LockDenied));
    assert_eq!(space.set_all_locked(None, Locking::Now), Err(VmError::LockDenied));
    let wish = MapRequest { flags: MapFlags::LOCKED, ..pages(600, 1, RW) };
    assert_eq!(space.map(wish), Err(VmError::LockDenied));
    assert_eq!(space.set_locked(at(300), 5 * 4096, Locking::Off), Ok(()));
}

#[test]
fn what_cannot_be_had_in_one_locked_region_does_not_stop_the_next() {
    let host = Host::new(256);
    let space = host.linux();
    space.set_all_locked(None, Locking::Now).unwrap();
    // A private mapping of three pages of a file that has one, and memory behind it.
    let backing = Backing::File { object: TestFile::shared(2, 0x1000), offset: 0 };
    space.map(MapRequest { backing, ..pages(10, 3, Prot::READ) }).unwrap();
    space.map(pages(13, 2, Prot::empty())).unwrap();
    assert_eq!(space.stats().rss(), 1);
    space.protect(at(10), 5 * 4096, RW).unwrap();
    assert_eq!(space.resident(at(13)).present, 2, "as Linux does, region by region");
}
