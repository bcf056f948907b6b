//! Directed cases of memory that several see: fork, shared objects, threads.

use std::vec::Vec;

use pagoda_addr::VirtAddr;

use super::host::{Host, TestFile};
use crate::{
    Access, Advice, Backing, FaultDone, FaultError, FutexKey, MapRequest, Place, Prot, RemapPlace,
    RemapRequest, SharedObject, VmError,
};

const RW: Prot = Prot::READ.union(Prot::WRITE);
const BASE: u64 = 0x10_0000_0000;

fn fixed<'h>(addr: u64, len: u64, prot: Prot) -> MapRequest<&'h Host> {
    MapRequest::anonymous(Place::Fixed(VirtAddr::new(addr)), len, prot)
}

fn at(addr: u64) -> VirtAddr {
    VirtAddr::new(addr)
}

#[test]
fn forked_pages_are_copied_by_the_first_writer_and_kept_by_the_last() {
    let host = Host::new(64);
    let parent = host.linux();
    host.enter(0, &parent);
    host.enter(1, &parent);
    parent.map(fixed(BASE, 0x2000, RW)).unwrap();
    host.store(0, &parent, BASE, 1).unwrap();
    host.store(1, &parent, BASE, 2).unwrap();
    let used = host.used();
    let child = parent.fork(host.table()).unwrap();
    assert_eq!(host.used(), used + 4, "only the child's tables");
    host.enter(2, &child);
    // CPU 1 knew the page as writable; a missed flush would let it write into the child's copy.
    host.store(1, &parent, BASE, 3).unwrap();
    assert_eq!(host.load(2, &child, BASE), Ok(2));
    assert_eq!(host.used(), used + 5);
    assert_eq!(child.fault(at(BASE), Access::Write), Ok(FaultDone::Copied));
    assert_eq!(host.used(), used + 5, "the last owner keeps the frame");
    assert_eq!(child.fault(at(BASE), Access::Write), Ok(FaultDone::Spurious));
    host.leave(2, &child);
    drop(child);
    host.leave(0, &parent);
    host.leave(1, &parent);
    drop(parent);
    assert_eq!(host.used(), 0);
}

#[test]
fn a_dropped_flush_at_fork_is_caught() {
    let caught = std::panic::catch_unwind(|| {
        let host = Host::new(64);
        let parent = host.linux();
        host.enter(0, &parent);
        parent.map(fixed(BASE, 0x1000, RW)).unwrap();
        host.store(0, &parent, BASE, 1).unwrap();
        host.0.drop_flush(0, None);
        let _child = parent.fork(host.table()).unwrap();
        let _ = host.store(0, &parent, BASE, 2);
    });
    let message = caught.unwrap_err();
    assert!(message.downcast_ref::<std::string::String>().unwrap().contains("stale TLB"));
}

#[test]
fn shared_memory_forked_before_the_first_touch_is_shared() {
    let host = Host::new(64);
    let parent = host.linux();
    let request = MapRequest { backing: Backing::SharedAnonymous, ..fixed(BASE, 0x3000, RW) };
    parent.map(request).unwrap();
    let child = parent.fork(host.table()).unwrap();
    host.enter(0, &parent);
    host.enter(1, &child);
    host.store(1, &child, BASE + 0x1000, 9).unwrap();
    assert_eq!(host.load(0, &parent, BASE + 0x1000), Ok(9));
    host.store(0, &parent, BASE + 0x1000, 8).unwrap();
    assert_eq!(host.load(1, &child, BASE + 0x1000), Ok(8));
    let key = parent.futex_key(at(BASE + 0x1004), true).unwrap();
    assert_eq!(key, child.futex_key(at(BASE + 0x1004), true).unwrap());
    assert!(matches!(key, FutexKey::Shared { offset: 0x1004, .. }));
    // A second mapping of the same object, by a length of zero.
    let twin = RemapRequest {
        addr: at(BASE),
        old_len: 0,
        new_len: 0x2000,
        place: RemapPlace::MayMove,
        keep_old: false,
    };
    let twin = parent.remap(twin).unwrap().as_u64();
    assert_eq!(host.load(0, &parent, twin + 0x1000), Ok(8));
    assert_eq!(parent.stats().regions, 2, "the first mapping was not cut");
    host.leave(0, &parent);
    host.leave(1, &child);
    drop((parent, child));
    assert_eq!(host.used(), 0);
}

#[test]
fn the_object_may_be_made_first_and_be_shorter_than_its_mapping() {
    let host = Host::new(64);
    let (a, b) = (host.linux(), host.linux());
    let object = SharedObject::new(&host, 70).unwrap();
    for space in [&a, &b] {
        let backing = Backing::Shared { object: object.clone(), offset: 0x1000 };
        space.map(MapRequest { backing, ..fixed(BASE, 100 * 4096, RW) }).unwrap();
    }
    host.enter(0, &a);
    host.enter(1, &b);
    host.store(0, &a, BASE + 68 * 4096, 5).unwrap();
    assert_eq!(host.load(1, &b, BASE + 68 * 4096), Ok(5));
    assert_eq!(host.load(1, &b, BASE + 69 * 4096), Err(FaultError::Bus));
    assert_eq!((a.stats().rss_shared, a.resident(at(BASE)).sole), (1, 0));
    host.leave(0, &a);
    host.leave(1, &b);
    drop((a, b));
    assert_eq!(host.used(), 1, "the object holds its page");
    drop(object);
    assert_eq!(host.used(), 0);
}

#[test]
fn protection_gives_no_right_to_write_what_others_share() {
    let host = Host::new(64);
    let parent = host.linux();
    parent.map(fixed(BASE, 0x1000, RW)).unwrap();
    let backing = Backing::File { object: TestFile::shared(2, 0x1000), offset: 0 };
    parent.map(MapRequest { backing, ..fixed(BASE + 0x1000, 0x1000, RW) }).unwrap();
    host.enter(0, &parent);
    host.store(0, &parent, BASE, 1).unwrap();
    host.load(0, &parent, BASE + 0x1000).unwrap();
    let child = parent.fork(host.table()).unwrap();
    host.enter(1, &child);
    for space in [&parent, &child] {
        space.protect(at(BASE), 0x2000, Prot::READ).unwrap();
        space.protect(at(BASE), 0x2000, RW).unwrap();
    }
    host.store(1, &child, BASE, 2).unwrap();
    assert_eq!(host.load(0, &parent, BASE), Ok(1));
    // Nor is a file's page the program's own before it is written.
    host.leave(1, &child);
    drop(child);
    parent.protect(at(BASE), 0x2000, Prot::READ).unwrap();
    parent.protect(at(BASE), 0x2000, RW).unwrap();
    assert_eq!((parent.stats().rss_file, parent.stats().rss_anonymous), (1, 1));
    host.store(0, &parent, BASE + 0x1000, 2).unwrap();
    assert_eq!((parent.stats().rss_file, parent.stats().rss_anonymous), (0, 2));
    host.leave(0, &parent);
}

#[test]
fn advice_about_forks_is_followed() {
    let host = Host::new(64);
    let space = host.linux();
    host.enter(0, &space);
    space.map(fixed(BASE, 0x3000, RW)).unwrap();
    for page in 0..3 {
        host.store(0, &space, BASE + page * 4096, 1).unwrap();
    }
    space.advise(at(BASE), 0x1000, Advice::Fork { inherit: false }).unwrap();
    space.advise(at(BASE + 0x1000), 0x1000, Advice::WipeOnFork { wipe: true }).unwrap();
    assert_eq!(space.stats().regions, 3);
    let child = space.fork(host.table()).unwrap();
    host.enter(1, &child);
    assert_eq!(host.load(1, &child, BASE), Err(FaultError::Unmapped));
    assert_eq!(host.load(1, &child, BASE + 0x1000), Ok(0));
    assert_eq!(host.load(1, &child, BASE + 0x2000), Ok(1));
    space.advise(at(BASE), 0x1000, Advice::Fork { inherit: true }).unwrap();
    space.advise(at(BASE), 0x2000, Advice::WipeOnFork { wipe: false }).unwrap();
    assert_eq!(space.stats().regions, 1);
    assert_eq!(space.advise(at(BASE), 0x4000, Advice::DontNeed), Err(VmError::NotMapped));
    assert_eq!(host.load(0, &space, BASE + 0x2000), Ok(0));
    host.leave(0, &space);
    host.leave(1, &child);
}

#[test]
fn a_chain_of_forks_with_writes_on_both_sides_keeps_every_view_apart() {
    let host = Host::new(512);
    let mut chain = Vec::from([host.linux()]);
    chain[0].map(fixed(BASE, 0x8000, RW)).unwrap();
    let word = |space: &super::host::Space<'_>, page: u64| {
        space.user_range(BASE + page * 4096, 1).unwrap()
    };
    for generation in 0..8u8 {
        let last = chain.last().unwrap();
        let child = last.fork(host.table()).unwrap();
        last.copy_out(&[100 + generation], word(last, 0)).unwrap();
        let page = u64::from(generation);
        child.copy_out(&[generation + 1], word(&child, page)).unwrap();
        chain.push(child);
    }
    // The ones in the middle go first.
    for index in [4, 2, 4] {
        drop(chain.remove(index));
    }
    for (space, generation) in chain.iter().zip([0u8, 1, 3, 5, 7, 8]) {
        for page in 0..8 {
            let mut byte = [0];
            space.copy_in(word(space, page), &mut byte).unwrap();
            let want = match page {
                0 if generation < 8 => 100 + generation,
                0 => 1,
                page if page < u64::from(generation) => page as u8 + 1,
                _ => 0,
            };
            assert_eq!(byte[0], want, "generation {generation}, page {page}");
        }
    }
    drop(chain);
    assert_eq!(host.used(), 0);
}

#[test]
fn threads_in_their_own_ranges_do_not_disturb_each_other() {
    let host = Host::new(2048);
    let space = host.linux();
    std::thread::scope(|scope| {
        for cpu in 0..4 {
            let (host, space) = (&host, &space);
            scope.spawn(move || {
                host.enter(cpu, space);
                let base = (cpu as u64 + 1) << 39;
                for round in 0..60 {
                    let len = 0x8000;
                    space.map(fixed(base, len, RW)).unwrap();
                    for page in 0..8 {
                        let byte = (round + page) as u8;
                        host.store(cpu, space, base + page * 4096, byte).unwrap();
                    }
                    space.protect(at(base + 0x2000), 0x2000, Prot::READ).unwrap();
                    for page in 0..8 {
                        let seen = host.load(cpu, space, base + page * 4096);
                        assert_eq!(seen, Ok((round + page) as u8));
                    }
                    space.unmap(at(base), len).unwrap();
                }
                host.leave(cpu, space);
            });
        }
    });
    assert_eq!(space.stats().rss(), 0);
    drop(space);
    assert_eq!(host.used(), 0);
}
