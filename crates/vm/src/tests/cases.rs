//! Directed cases, each named after what must hold.

use std::string::ToString;
use std::vec::Vec;

use pagoda_addr::VirtAddr;

use super::host::{Host, TestFile};
use crate::{
    Access, Advice, Backing, CStrError, FaultError, Layout, Limits, Locking, MapFlags, MapRequest,
    Place, Prot, RemapPlace, RemapRequest, VmError,
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
fn locked_memory_is_present_and_counted() {
    let host = Host::new(64);
    let space = host.linux();
    space.map(fixed(BASE, 0x4000, RW)).unwrap();
    space.set_locked(at(BASE + 0x1800), 0x1000, Locking::Now).unwrap();
    let stats = space.stats();
    assert_eq!((stats.locked, stats.rss(), stats.regions), (2, 2, 3));
    assert_eq!(space.advise(at(BASE), 0x4000, Advice::DontNeed), Err(VmError::Invalid));
    assert_eq!(space.fork(host.table()).unwrap().stats().locked, 0);
    assert_eq!(space.set_locked(at(BASE), 0x5000, Locking::Off), Err(VmError::NotMapped));
    let stats = space.stats();
    assert_eq!((stats.locked, stats.regions, stats.data), (0, 1, 4));
}

#[test]
fn the_layout_of_linux() {
    let layout = Layout::x86_64(8 << 20);
    assert_eq!(layout.limit.as_u64(), 0x7fff_ffff_f000);
    assert_eq!(layout.mmap_base.as_u64(), 0x7fff_f7ff_f000);
}

#[test]
fn a_move_that_cannot_be_is_refused_before_its_target_is_unmapped() {
    let host = Host::new(64);
    let space = host.linux();
    space.map(fixed(BASE, 0x2000, RW)).unwrap();
    space.map(fixed(BASE + 0x10_000, 0x4000, RW)).unwrap();
    let request = |old_len, new_len, to| RemapRequest {
        addr: at(BASE),
        old_len,
        new_len,
        place: RemapPlace::Fixed(at(to)),
        keep_old: false,
    };
    let target = BASE + 0x10_000;
    assert_eq!(space.remap(request(0x3000, 0x3000, target)), Err(VmError::Fault));
    assert_eq!(space.remap(request(0x2000, 1 << 47, target)), Err(VmError::Invalid));
    assert_eq!(space.remap(request(0x2000, 0x2000, BASE + 0x1000)), Err(VmError::Invalid));
    assert_eq!(space.stats().mapped, 6);
    // What is cut off may reach over the end of the mapping.
    assert_eq!(space.remap(request(0x9000, 0x1000, target)), Ok(at(target)));
    assert_eq!(space.stats().mapped, 4);
}

#[test]
fn protecting_past_the_end_of_the_space_does_what_comes_before() {
    let host = Host::new(64);
    let space = host.linux();
    space.map(fixed(BASE, 0x2000, RW)).unwrap();
    let prot = |space: &super::host::Space<'_>| space.next_region(at(BASE)).unwrap().prot;
    assert_eq!(space.protect(at(BASE), u64::MAX, Prot::READ), Err(VmError::NotMapped));
    assert_eq!(prot(&space), RW, "a length that wraps changes nothing");
    assert_eq!(space.protect(at(BASE), 1 << 47, Prot::READ), Err(VmError::NotMapped));
    assert_eq!(prot(&space), Prot::READ);
}
