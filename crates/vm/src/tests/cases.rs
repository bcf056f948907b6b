//! Directed cases, each named after what must hold.

use std::string::ToString;
use std::vec::Vec;

use pagoda_addr::VirtAddr;

use super::host::{Host, TestFile};
use crate::{
    Access, Advice, Backing, CStrError, FaultDone, FaultError, FutexKey, Layout, Limits, MapFlags,
    MapRequest, Place, Prot, RemapPlace, RemapRequest, SharedObject, VmError,
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
fn mappings_without_an_address_go_top_down_and_merge() {
    let host = Host::new(64);
    let space = host.linux();
    let base = space.layout().mmap_base.as_u64();
    for n in 1..=5 {
        let got = space.map(MapRequest::anonymous(Place::Anywhere, 1, RW)).unwrap();
        assert_eq!(got.as_u64(), base - n * 4096);
    }
    assert_eq!(space.stats().regions, 1);
    let other = space.map(MapRequest::anonymous(Place::Anywhere, 4096, Prot::READ)).unwrap();
    assert_eq!(other.as_u64(), base - 6 * 4096);
    assert_eq!(space.stats().regions, 2);
    // The first hole from above that is large enough.
    space.unmap(at(base - 2 * 4096), 4096).unwrap();
    let got = space.map(MapRequest::anonymous(Place::Anywhere, 4096, RW)).unwrap();
    assert_eq!(got.as_u64(), base - 2 * 4096);
}

#[test]
fn untouched_memory_costs_no_frame_however_large() {
    let host = Host::new(64);
    let space = host.linux();
    host.enter(0, &space);
    let used = host.used();
    let flushes = host.0.counters().flushes;
    let len = 64 << 30;
    let addr = space.map(MapRequest::anonymous(Place::Anywhere, len, RW)).unwrap();
    space.protect(addr, len, Prot::READ).unwrap();
    space.protect(at(addr.as_u64() + (1 << 30)), 1 << 30, Prot::empty()).unwrap();
    space.advise(addr, len, Advice::DontNeed).unwrap();
    let child = space.fork(host.table()).unwrap();
    drop(child);
    space.unmap(addr, len).unwrap();
    assert_eq!(host.used(), used);
    assert_eq!(host.0.counters().flushes, flushes);
    host.leave(0, &space);
}

#[test]
fn demand_zero_even_where_frames_hold_junk() {
    let host = Host::new(64);
    let space = host.linux();
    host.enter(0, &space);
    space.map(fixed(BASE, 0x4000, RW)).unwrap();
    for offset in [0, 1, 4095] {
        assert_eq!(host.load(0, &space, BASE + 0x1000 + offset), Ok(0));
    }
    host.store(0, &space, BASE, 7).unwrap();
    space.advise(at(BASE), 0x4000, Advice::DontNeed).unwrap();
    assert_eq!(host.load(0, &space, BASE), Ok(0), "DONTNEED zeroes");
    assert_eq!(space.stats().rss_anonymous, 1);
    host.leave(0, &space);
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
fn private_file_pages_end_in_zeroes_and_then_in_sigbus() {
    let host = Host::new(64);
    let space = host.linux();
    host.enter(0, &space);
    let file = TestFile::shared(3, 0x1802);
    let backing = Backing::File { object: file, offset: 0 };
    space.map(MapRequest { backing, ..fixed(BASE, 0x4000, RW) }).unwrap();
    assert_eq!(host.load(0, &space, BASE + 0x1801), Ok(TestFile::byte(3, 0x1802, 0x1801)));
    assert_eq!(host.load(0, &space, BASE + 0x1802), Ok(0));
    assert_eq!(host.load(0, &space, BASE + 0x2000), Err(FaultError::Bus));
    assert_eq!((space.stats().rss_file, space.stats().rss_anonymous), (1, 0));
    host.store(0, &space, BASE + 0x1000, 1).unwrap();
    host.store(0, &space, BASE, 1).unwrap();
    assert_eq!((space.stats().rss_file, space.stats().rss_anonymous), (0, 2));
    host.leave(0, &space);
}

#[test]
fn a_parked_page_keeps_its_contents_and_refuses_every_access() {
    let host = Host::new(64);
    let space = host.linux();
    host.enter(0, &space);
    space.map(fixed(BASE, 0x1000, RW)).unwrap();
    host.store(0, &space, BASE, 5).unwrap();
    space.protect(at(BASE), 0x1000, Prot::empty()).unwrap();
    assert_eq!(host.load(0, &space, BASE), Err(FaultError::Protection));
    assert_eq!(space.fetch_u32(at(BASE)), Err(FaultError::Protection));
    space.protect(at(BASE), 0x1000, Prot::READ).unwrap();
    assert_eq!(host.load(0, &space, BASE), Ok(5));
    assert_eq!(host.store(0, &space, BASE, 6), Err(FaultError::Protection));
    assert_eq!(space.fault(at(BASE), Access::Exec), Err(FaultError::Protection));
    let walks = host.0.counters();
    space.protect(at(BASE), 0x1000, RW).unwrap();
    host.store(0, &space, BASE, 6).unwrap();
    assert_eq!(host.0.counters().flushes, walks.flushes, "more rights need no flush");
    host.leave(0, &space);
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
fn the_stack_grows_to_its_limit_and_not_into_its_neighbour() {
    let host = Host::new(64);
    let space = host.linux();
    host.enter(0, &space);
    let flags = MapFlags::GROWS_DOWN;
    space.map(MapRequest { flags, ..fixed(BASE, 0x2000, RW) }).unwrap();
    host.store(0, &space, BASE - 0x5000, 1).unwrap();
    assert_eq!(space.stats().stack, 7);
    assert_eq!(host.store(0, &space, BASE - (8 << 20), 1), Err(FaultError::Unmapped));
    // A neighbour 512 KiB below the stack: less than the guard gap of 1 MiB.
    space.map(fixed(BASE - 0x80_000 - 0x5000, 0x1000, RW)).unwrap();
    assert_eq!(host.store(0, &space, BASE - 0x6000, 1), Err(FaultError::Unmapped));
    // Nor does a mapping without an address land in the gap.
    let hint = Place::Hint(at(BASE - 0x8000));
    let got = space.map(MapRequest::anonymous(hint, 0x1000, RW)).unwrap();
    assert_ne!(got, at(BASE - 0x8000));
    space.set_limits(Limits { stack: 0x4000, ..Limits::default() });
    assert_eq!(host.store(0, &space, BASE - 0x6000, 1), Err(FaultError::Unmapped));
    host.leave(0, &space);
}

#[test]
fn limits_are_kept_and_a_replacement_counts_only_what_it_adds() {
    let host = Host::new(64);
    let space = host.linux();
    let limits = Limits { address_space: 0x10_000, data: 0x6000, ..Limits::default() };
    space.set_limits(limits);
    space.map(fixed(BASE, 0x6000, RW)).unwrap();
    assert_eq!(space.map(fixed(BASE + 0x10_0000, 0x1000, RW)), Err(VmError::Limit));
    space.map(fixed(BASE + 0x10_0000, 0xa000, Prot::READ)).unwrap();
    assert_eq!(space.map(fixed(BASE + 0x20_0000, 1, Prot::READ)), Err(VmError::Limit));
    assert_eq!(space.protect(at(BASE + 0x10_0000), 0x1000, RW), Err(VmError::Limit));
    space.map(fixed(BASE, 0x6000, RW)).unwrap();
    assert_eq!(space.stats().mapped, 16);
    space.start_brk(at(BASE + 0x100_0000));
    assert_eq!(space.set_brk(at(BASE + 0x100_1000)), at(BASE + 0x100_0000));
}

#[test]
fn too_many_regions_are_refused_before_anything_changes() {
    let host = Host::new(64);
    let space = host.linux();
    space.set_limits(Limits { regions: 3, ..Limits::default() });
    space.map(fixed(BASE, 0x5000, RW)).unwrap();
    space.protect(at(BASE + 0x1000), 0x1000, Prot::READ).unwrap();
    assert_eq!(space.protect(at(BASE + 0x3000), 0x1000, Prot::READ), Err(VmError::TooManyRegions));
    assert_eq!(space.unmap(at(BASE + 0x3000), 0x1000), Err(VmError::TooManyRegions));
    assert_eq!(space.stats().regions, 3);
    space.unmap(at(BASE + 0x4000), 0x1000).unwrap();
}

#[test]
fn hostile_arguments_are_refused() {
    let host = Host::new(64);
    let space = host.linux();
    let limit = space.layout().limit.as_u64();
    assert_eq!(space.map(fixed(limit - 0x1000, 0x2000, RW)), Err(VmError::OutOfRange));
    assert_eq!(space.map(fixed(limit, 0x1000, RW)), Err(VmError::OutOfRange));
    assert!(space.map(fixed(limit - 0x1000, 0x1000, RW)).is_ok());
    assert_eq!(space.map(fixed(u64::MAX - 4095, 0x1000, RW)), Err(VmError::OutOfRange));
    assert_eq!(space.map(fixed(BASE + 1, 0x1000, RW)), Err(VmError::Invalid));
    assert_eq!(space.map(fixed(0, 0x1000, RW)), Err(VmError::TooLow));
    assert_eq!(space.map(fixed(BASE, u64::MAX, RW)), Err(VmError::NoSpace));
    let backing = Backing::File { object: TestFile::shared(1, 1), offset: i64::MAX as u64 & !4095 };
    assert_eq!(
        space.map(MapRequest { backing, ..fixed(BASE, 0x2000, RW) }),
        Err(VmError::Overflow)
    );
    for addr in [limit, 1 << 47, 0xffff_8000_0000_0000, u64::MAX] {
        assert_eq!(space.fault(at(addr), Access::Read), Err(FaultError::Unmapped));
        assert_eq!(space.fetch_u32(at(addr & !3)), Err(FaultError::Unmapped));
        let mut buffer = [0; 8];
        assert_eq!(
            space.read_cstr(at(addr), &mut buffer),
            Err(CStrError::Fault(FaultError::Unmapped))
        );
    }
    assert!(space.user_range(limit - 1, 2).is_err());
}

#[test]
fn strings_words_and_ranges_are_copied_across_pages() {
    let host = Host::new(64);
    let space = host.linux();
    space.map(fixed(BASE, 0x2000, RW)).unwrap();
    let text = b"across the border\0";
    let start = BASE + 0x1000 - 5;
    space.copy_out(text, space.user_range(start, text.len() as u64).unwrap()).unwrap();
    let mut buffer = [0xff; 64];
    assert_eq!(space.read_cstr(at(start), &mut buffer), Ok(text.len() - 1));
    assert_eq!(&buffer[..17], &text[..17]);
    assert_eq!(space.read_cstr(at(start), &mut buffer[..9]), Err(CStrError::TooLong));
    let tail = space.user_range(BASE + 0x1ffe, 4).unwrap();
    let error = space.copy_in(tail, &mut buffer).unwrap_err();
    assert_eq!((error.done, error.error), (2, FaultError::Unmapped));
    assert_eq!(error.error.to_string(), "address not mapped");
    assert_eq!(space.cmpxchg_u32(at(BASE), 0, 77), Ok(Ok(0)));
    assert_eq!(space.cmpxchg_u32(at(BASE), 0, 78), Ok(Err(77)));
    assert_eq!(space.fetch_u32(at(BASE)), Ok(77));
    space.zero(space.user_range(BASE, 0x2000).unwrap()).unwrap();
    assert_eq!(space.fetch_u32(at(BASE)), Ok(0));
}

#[test]
fn a_moved_mapping_brings_its_contents_and_leaves_nothing_behind() {
    let host = Host::new(256);
    let space = host.linux();
    host.enter(0, &space);
    host.enter(1, &space);
    space.map(fixed(BASE, 0x10_000, RW)).unwrap();
    space.map(fixed(BASE + 0x10_000, 0x1000, Prot::READ)).unwrap();
    for page in (0..16).step_by(3) {
        host.store(1, &space, BASE + page * 4096, page as u8 + 1).unwrap();
    }
    let (used, rss) = (host.used(), space.stats().rss());
    let to = BASE + (4 << 30);
    let request = RemapRequest {
        addr: at(BASE),
        old_len: 0x10_000,
        new_len: 0x20_000,
        place: RemapPlace::Fixed(at(to)),
        keep_old: false,
    };
    assert_eq!(space.remap(request), Ok(at(to)));
    host.0.audit();
    assert_eq!(space.stats().rss(), rss);
    assert!(host.used() <= used + 2);
    for page in 0..32 {
        let want = if page < 16 && page % 3 == 0 { page as u8 + 1 } else { 0 };
        assert_eq!(host.load(1, &space, to + page * 4096), Ok(want));
        assert_eq!(host.load(0, &space, BASE + (page % 16) * 4096), Err(FaultError::Unmapped));
    }
    // And leave the old place mapped and empty.
    let request = RemapRequest {
        addr: at(to),
        old_len: 0x20_000,
        new_len: 0x20_000,
        place: RemapPlace::MayMove,
        keep_old: true,
    };
    let third = space.remap(request).unwrap().as_u64();
    assert_eq!(host.load(0, &space, third + 3 * 4096), Ok(4));
    assert_eq!(host.load(0, &space, to + 3 * 4096), Ok(0));
    host.leave(0, &space);
    host.leave(1, &space);
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
    assert_eq!(space.advise(at(BASE), 0x4000, Advice::Free), Err(VmError::NotMapped));
    assert_eq!(host.load(0, &space, BASE + 0x2000), Ok(0));
    host.leave(0, &space);
    host.leave(1, &child);
}

#[test]
fn no_frames_end_the_program_and_not_the_kernel() {
    let host = Host::new(24);
    let space = host.linux();
    host.enter(0, &space);
    space.map(fixed(BASE, 1 << 20, RW)).unwrap();
    let stored: Vec<_> =
        (0..256).map(|page| host.store(0, &space, BASE + page * 4096, 1)).collect();
    assert_eq!(stored.iter().filter(|r| r.is_ok()).count(), 20);
    assert!(stored[20..].iter().all(|r| *r == Err(FaultError::OutOfMemory)));
    space.unmap(at(BASE), 0x2000).unwrap();
    assert_eq!(space.fork(host.table()).err(), Some(VmError::OutOfMemory));
    space.clear();
    assert_eq!(host.used(), 1, "the root");
    assert_eq!(space.stats().mapped, 0);
    host.leave(0, &space);
}

#[test]
fn the_layout_of_linux() {
    let layout = Layout::x86_64(8 << 20);
    assert_eq!(layout.limit.as_u64(), 0x7fff_ffff_f000);
    assert_eq!(layout.mmap_base.as_u64(), 0x7fff_f7ff_f000);
}
