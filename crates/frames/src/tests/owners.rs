//! Who owns what, and who is told that he does not.
#![allow(unsafe_code)] // looks at freed memory

use std::vec::Vec;

use pagoda_addr::{FrameRange, Order, PhysMap};

use super::rig::{Ground, frame, frames};
use crate::*;

const GIB: u64 = 1 << 18;

fn order(order: u8) -> Request {
    Request::order(Order::new(order).unwrap())
}

#[test]
fn double_foreign_and_partial_frees_are_named() {
    // The table reaches from the first frame to the last one, and Miri's memory is real.
    let far = if cfg!(miri) { GIB } else { 1 << 28 };
    for with_table in [false, true] {
        let mut ground = Ground::new(&[(0x100, 0x1000), (far, 100)], with_table);
        let allocator = ground.allocator(0, 0);
        let block = allocator.alloc(order(4)).unwrap().into_range();
        let (first, last) = (block.start(), frame(block.end_number() - 1));
        if with_table {
            let part = FreeError::PartOf { frame: last, block };
            assert_eq!(allocator.free_range(FrameRange::single(last)), Err(part));
            let part = FreeError::PartOf { frame: first, block };
            assert_eq!(allocator.free_range(FrameRange::single(first)), Err(part));
        }
        assert_eq!(allocator.free_range(block), Ok(()));
        assert_eq!(allocator.free_range(block), Err(FreeError::DoubleFree(first)));
        let foreign = FreeError::NotManaged(frame(3));
        assert_eq!(allocator.free_range(frames(3, 1)), Err(foreign));
        let foreign = FreeError::NotManaged(frame(far + 100));
        assert_eq!(allocator.free_range(frames(far + 100, 1)), Err(foreign));
        assert_eq!(allocator.free_range(frames(3, 0)), Err(FreeError::Empty));
        assert_eq!(allocator.stats().used, 0);
        assert!(FreeError::Empty.blame() == Blame::Caller);
    }
}

#[test]
fn a_double_hand_out_is_noticed() {
    let mut ground = Ground::new(&[(1 << 20, 1024)], true);
    let allocator = ground.allocator(0, 0);
    let block = allocator.alloc(order(1)).unwrap().into_range();
    allocator.corrupt_for_test(block);
    let owned = Corruption::OwnedButFree { frame: block.start() };
    assert_eq!(allocator.free_range(block), Err(FreeError::Corrupt(owned)));
    let evidence = Corruption::HandedOutTwice { frame: block.start() };
    assert_eq!(allocator.alloc(order(1)), Err(AllocError::Corrupt(evidence)));
    // The same by way of the magazine.
    allocator.corrupt_for_test(block);
    assert_eq!(allocator.alloc(Request::frame()), Err(AllocError::Corrupt(evidence)));
}

#[test]
fn part_of_a_1_gib_block_can_be_freed_without_touching_the_rest() {
    let (size, at) = if cfg!(miri) { (Order::LARGE, 100) } else { (Order::HUGE, 1000) };
    let mut ground = Ground::new(&[(1 << 20, 2 * size.count())], true);
    let allocator = ground.allocator(0, 0);
    let block = allocator.alloc(order(size.get()).kind(Kind(7))).unwrap().into_range();
    let hole = frames(block.start().number() + at, 3);
    allocator.free_part(hole).unwrap();
    allocator.audit();
    let mut seen = Vec::new();
    allocator.table().for_each_allocated(|allocation| {
        assert_eq!((allocation.kind, allocation.refs), (Kind(7), 1));
        seen.push(allocation.range);
    });
    let rest = frames(hole.end_number(), block.end_number() - hole.end_number());
    assert_eq!(seen, [frames(block.start().number(), at), rest]);
    assert_eq!(allocator.free_part(hole), Err(FreeError::DoubleFree(hole.start())));
    for range in seen {
        allocator.free_range(range).unwrap();
    }
    allocator.audit();
    assert_eq!(allocator.available(size), 2);
}

#[test]
fn a_write_after_free_is_noticed() {
    let mut ground = Ground::new(&[(1 << 20, 128)], true);
    let allocator = ground.allocator(0, 128);
    // SAFETY: the arena is filled.
    unsafe { allocator.set_poison(true) };
    for count in [1, 3] {
        let owned = allocator.alloc(Request::count(count)).unwrap();
        let last = frame(owned.range().end_number() - 1);
        allocator.free(owned).unwrap();
        let victim = allocator.map().ptr(last.start()).wrapping_add(100);
        // SAFETY: memory of the arena; the frame is free, which is the point.
        unsafe { victim.write(1) };
        let evidence = Corruption::WrittenAfterFree { frame: last };
        let again = allocator.alloc(Request::count(count));
        assert_eq!(again, Err(AllocError::Corrupt(evidence)));
    }
    let owned = allocator.alloc(Request::count(5).zeroed()).unwrap();
    allocator.free(owned).unwrap();
}

#[test]
fn a_shattered_block_is_freed_frame_by_frame() {
    let mut ground = Ground::new(&[(1 << 20, 2048)], true);
    let allocator = ground.allocator(0, 0);
    let block = allocator.alloc(order(9).kind(Kind(4))).unwrap().into_range();
    allocator.table().share(block.start()).unwrap();
    let part = frames(block.start().number(), 3);
    let whole = FreeError::PartOf { frame: block.start(), block };
    assert_eq!(allocator.shatter(part), Err(whole));
    allocator.shatter(block).unwrap();
    for frame in block.iter() {
        assert_eq!(
            allocator.table().begins(frame).map(|one| (one.kind, one.refs)),
            Some((Kind(4), 2))
        );
        assert_eq!(allocator.release(frame), Ok(false));
        assert_eq!(allocator.release(frame), Ok(true));
    }
    assert_eq!(allocator.shatter(part), Err(FreeError::DoubleFree(block.start())));
    assert_eq!(allocator.stats().used, 0);
}

#[test]
fn shared_or_mapped_frames_are_not_freed() {
    let mut ground = Ground::new(&[(1 << 20, 64)], true);
    let allocator = ground.allocator(0, 0);
    let table = allocator.table();
    let block = allocator.alloc(Request::frame()).unwrap().into_range();
    let start = block.start();
    assert_eq!(table.share(start), Ok(2));
    let shared = FreeError::Shared { frame: start, refs: 2 };
    assert_eq!(allocator.free_range(block), Err(shared));
    assert_eq!(allocator.release(start), Ok(false));
    assert_eq!(table.add_map(start), Ok(1));
    assert_eq!(allocator.free_range(block), Err(FreeError::Mapped { frame: start, maps: 1 }));
    assert_eq!(table.remove_map(start), Ok(0));
    assert_eq!(table.remove_map(start), Err(TableError::Underflow(start)));
    assert_eq!(allocator.release(start), Ok(true));
    assert_eq!(table.share(start), Err(TableError::NotAHead(start)));
    assert_eq!(table.share(frame(5)), Err(TableError::NotManaged(frame(5))));
    assert_eq!(allocator.release(start), Err(FreeError::DoubleFree(start)));
}

#[test]
fn the_owner_finds_its_kind_flags_and_link_again() {
    let mut ground = Ground::new(&[(1 << 20, 64)], true);
    let allocator = ground.allocator(0, 0);
    let table = allocator.table();
    let block = allocator.alloc(Request::count(3).kind(Kind(9))).unwrap().into_range();
    let start = block.start();
    table.set_link(start, 77).unwrap();
    assert_eq!(table.change_flags(start, 0b101, 0), Ok(0));
    assert_eq!(table.change_flags(start, 0, 0b001), Ok(0b101));
    table.set_kind(start, Kind(3)).unwrap();
    let found = table.find(frame(start.number() + 2)).unwrap();
    assert_eq!((found.range, found.kind, found.flags), (block, Kind(3), 0b100));
    assert_eq!(table.link(start), Ok(77));
    assert_eq!(table.find(frame(start.number() + 3)), None);
    allocator.free_range(block).unwrap();
}

#[test]
fn what_was_said_of_a_frame_is_forgotten_with_its_owner() {
    let mut ground = Ground::new(&[(1 << 20, 64)], true);
    let allocator = ground.allocator(0, 0);
    let table = allocator.table();
    for by_range in [false, true] {
        let first = allocator.alloc(Request::frame().kind(Kind(9))).unwrap().into_range();
        let start = first.start();
        table.add_map(start).unwrap();
        table.set_link(start, 5).unwrap();
        table.change_flags(start, 1, 0).unwrap();
        assert_eq!(table.begins(start).map(|one| (one.kind, one.flags)), Some((Kind(9), 1)));
        table.set_kind(start, Kind(2)).unwrap();
        table.remove_map(start).unwrap();
        if by_range {
            allocator.free_range(first).unwrap();
        } else {
            assert_eq!(allocator.release_many(&[start]), Ok(1));
        }
        assert_eq!(allocator.free_range(first), Err(FreeError::DoubleFree(start)));
        let second = allocator.alloc(Request::frame().kind(Kind(3))).unwrap();
        assert_eq!(second.start(), start);
        let now = Allocation { range: first, kind: Kind(3), flags: 0, refs: 1, maps: 0 };
        assert_eq!(table.begins(start), Some(now));
        assert_eq!(table.link(start), Ok(0));
        allocator.audit();
        allocator.free(second).unwrap();
    }
}

#[test]
fn a_frame_may_have_very_many_owners_but_not_more() {
    let mut ground = Ground::new(&[(1 << 20, 64)], true);
    let allocator = ground.allocator(0, 0);
    let table = allocator.table();
    let owned = allocator.alloc(Request::frame().kind(Kind(9))).unwrap().into_range();
    let (start, list) = (owned.start(), [owned.start()]);
    allocator.set_owners(start, 1 << 20);
    assert_eq!(table.share(start), Ok((1 << 20) + 1));
    table.share_many(&list).unwrap();
    assert_eq!(table.refs(start), Ok((1 << 20) + 2));
    assert_eq!(table.begins(start).map(|one| one.kind), Some(Kind(9)));
    assert_eq!(allocator.release_many(&list), Ok(0));
    allocator.set_owners(start, 1 << 28);
    assert_eq!(table.share(start), Err(TableError::TooMany(start)));
    assert_eq!(table.share_many(&list), Err(TableError::TooMany(start)));
    assert_eq!(table.release(start), Ok(false));
    assert_eq!(table.share(start), Ok(1 << 28));
    allocator.set_owners(start, 2);
    assert_eq!(allocator.release(start), Ok(false));
    assert_eq!(allocator.release(start), Ok(true));
    assert_eq!(allocator.stats().used, 0);
    allocator.audit();
}

#[test]
fn parts_inherit_owners_and_mappings() {
    let mut ground = Ground::new(&[(1 << 20, 64)], true);
    let allocator = ground.allocator(0, 0);
    let table = allocator.table();
    for (count, at) in [(3, 1), (3, 2), (4, 1), (7, 3), (7, 4), (8, 5)] {
        let owned = allocator.alloc(Request::count(count).kind(Kind(6))).unwrap();
        let start = owned.start();
        table.share(start).unwrap();
        table.add_map(start).unwrap();
        let (low, high) = allocator.split(owned, at).unwrap();
        for part in [low, high] {
            let range = part.into_range();
            let whole = Allocation { range, kind: Kind(6), flags: 0, refs: 2, maps: 1 };
            assert_eq!(table.begins(range.start()), Some(whole));
            allocator.audit();
            assert_eq!(table.remove_map(range.start()), Ok(0));
            assert_eq!(allocator.release(range.start()), Ok(false));
            assert_eq!(allocator.release(range.start()), Ok(true));
        }
        allocator.audit();
        assert_eq!(allocator.stats().used, 0);
    }
}
