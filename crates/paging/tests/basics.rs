//! The cursor on a simulated machine: one thing at a time.

mod common;

use common::*;
use pagoda_emu::{Access, Mode};
use pagoda_paging::{AbsentWord, Entry, Fate, MapError, PageFlags, PageSize, PageTable};

#[test]
fn a_mapped_page_is_read_and_written_and_leaves_history() {
    let machine = machine();
    let table = PageTable::new(machine.any_format(), &machine).unwrap();
    let (cpu, frame) = (machine.cpu(0), machine.alloc_page(true).unwrap());
    machine.enter(cpu, &table);
    map(&table, 0x1234, frame, PageSize::K4, RW);
    let at = addr(0x1234);
    let mut byte = [9];
    machine.read(cpu, Mode::User, at, &mut byte).unwrap();
    assert_eq!(byte, [0]);
    assert_eq!(leaf(&table, 0x1234).flags, RW | PageFlags::ACCESSED);
    machine.write(cpu, Mode::User, at, &[7]).unwrap();
    assert_eq!(leaf(&table, 0x1234).flags, RW | PageFlags::ACCESSED | PageFlags::DIRTY);
    assert!(!machine.fetch(cpu, Mode::User, at).unwrap_err().addr.is_canonical(1));
    assert!(machine.read(cpu, Mode::Kernel, at, &mut byte).is_err(), "the kernel stays out");
    let counters = machine.counters();
    assert_eq!((counters.flushes, counters.spurious), (0, 0), "mapping needs no flush");

    machine.leave(cpu, &table);
    unmap_all(&table);
    drop(table);
    assert_eq!(machine.arena().used(), 0);
}

#[test]
fn what_is_refused_is_refused_with_its_reason_and_changes_nothing() {
    let machine = machine();
    let table = PageTable::new(machine.any_format(), &machine).unwrap();
    let frame = machine.alloc_block(PageSize::M2, true).unwrap();
    let mut cursor = table.cursor(pages(0x1000, 0x1000)).unwrap();
    let cases = [
        (0xfff, 0, PageSize::K4, MapError::Range),
        (0x1fff, 0, PageSize::M2, MapError::Range),
        (0x1001, 0, PageSize::M2, MapError::Alignment),
        (0x1000, 1, PageSize::M2, MapError::Alignment),
        (0x1000, 1 << 28, PageSize::K4, MapError::FrameTooHigh),
    ];
    for (at, above, size, error) in cases {
        let frame = frame.checked_add(above).unwrap();
        assert_eq!(cursor.map(page(at), frame, size, RW), Err(error), "{at:#x}");
    }
    cursor.map(page(0x1000), frame, PageSize::M2, RW).unwrap();
    assert_eq!(cursor.map(page(0x1001), frame, PageSize::K4, RW), Err(MapError::Occupied));
    assert_eq!(cursor.mark(page(0x1001), word(3)), Err(MapError::Occupied));
    assert_eq!(cursor.mark(page(0x1001), AbsentWord::NOTHING), Err(MapError::Occupied));
    cursor.mark(page(0x1200), word(3)).unwrap();
    assert_eq!(cursor.map(page(0x1200), frame, PageSize::M2, RW), Err(MapError::Occupied));
    assert_eq!(cursor.query(page(0x1200)), Entry::Absent(word(3)));
    drop(cursor);

    let other = PageTable::new(machine.any_format(), &machine).unwrap();
    let mut batch = other.batch();
    let mut cursor = table.cursor(pages(0x1000, 0x1000)).unwrap();
    let wrong = Err(MapError::WrongBatch);
    assert_eq!(cursor.take(pages(0x1000, 1), &mut batch, |_, _| Fate::Release), wrong);
    assert_eq!(cursor.protect(pages(0x1000, 1), RW, &mut batch), wrong);
    assert!(cursor.replace(page(0x1000), frame, RW, Fate::Keep, &mut batch).is_err());
    batch.finish();
    drop(cursor);
    for (start, count) in [(0x8_0000_0000, 1), (0x7_ffff_ffff, 2), (0x7_ffff_ffff, 1 << 51)] {
        assert_eq!(table.cursor(pages(start, count)).err(), Some(MapError::Range));
    }
    unmap_all(&table);
    drop((table, other));
    assert_eq!(machine.arena().used(), 0);
}

#[test]
fn splitting_keeps_every_translation_and_bit() {
    let machine = machine();
    let table = PageTable::new(machine.any_format(), &machine).unwrap();
    let cpu = machine.cpu(1);
    machine.enter(cpu, &table);
    // A huge leaf over frames that are not RAM: only translated, never touched.
    let frame = pagoda_addr::Frame::from_number(1 << 20);
    map(&table, 1 << 18, frame, PageSize::G1, RW | PageFlags::SOFT2);
    let middle = (1 << 18) + 0x12345;
    machine.translate(cpu, Mode::User, Access::Write, addr(middle)).unwrap();
    let mut batch = table.batch();
    let mut cursor = table.cursor(pages(1 << 18, 1 << 18)).unwrap();
    cursor.protect(pages(middle, 1), PageFlags::READ | PageFlags::USER, &mut batch).unwrap();
    batch.finish();
    machine.audit();
    let history = PageFlags::ACCESSED | PageFlags::DIRTY | PageFlags::SOFT2;
    for (at, size, flags) in [
        (1 << 18, PageSize::M2, RW | history),
        (middle - 1, PageSize::K4, RW | history),
        (middle, PageSize::K4, PageFlags::READ | PageFlags::USER | history),
        (middle + 1, PageSize::K4, RW | history),
        ((2 << 18) - 1, PageSize::M2, RW | history),
    ] {
        let expected = frame.checked_add(at - (1 << 18)).unwrap();
        assert_eq!(cursor.query(page(at)), Entry::Mapped { frame: expected, size, flags });
    }
    drop(cursor);
    assert_eq!(table.tables(), 4);
    machine.translate(cpu, Mode::User, Access::Write, addr(middle)).unwrap_err();
    machine.translate(cpu, Mode::User, Access::Write, addr(middle + 1)).unwrap();
    let mut batch = table.batch();
    let mut taken = 0;
    let range = pages(1 << 18, 1 << 18);
    let take = |_, entry: Entry| {
        taken += entry.leaf().unwrap().size.pages();
        Fate::Keep
    };
    table.cursor(range).unwrap().take(range, &mut batch, take).unwrap();
    batch.finish();
    assert_eq!((taken, table.tables()), (1 << 18, 1));
    machine.leave(cpu, &table);
}

#[test]
fn no_access_keeps_the_frame_and_refuses_everything() {
    let machine = machine();
    let table = PageTable::new(machine.any_format(), &machine).unwrap();
    let (cpu, frame) = (machine.cpu(0), machine.alloc_page(true).unwrap());
    machine.enter(cpu, &table);
    map(&table, 5, frame, PageSize::K4, RW | PageFlags::SOFT1);
    machine.write(cpu, Mode::User, addr(5), &[42]).unwrap();
    protect(&table, 5, 1, PageFlags::USER);
    assert!(!machine.read(cpu, Mode::User, addr(5), &mut [0]).unwrap_err().present);
    let kept = PageFlags::USER | PageFlags::SOFT1 | PageFlags::ACCESSED | PageFlags::DIRTY;
    assert_eq!((leaf(&table, 5).frame, leaf(&table, 5).flags), (frame, kept));
    let flushes = machine.counters().flushes;
    protect(&table, 5, 1, RW);
    assert_eq!(machine.counters().flushes, flushes, "nobody remembered it");
    let mut byte = [0];
    machine.read(cpu, Mode::User, addr(5), &mut byte).unwrap();
    assert_eq!(byte, [42]);
    machine.leave(cpu, &table);
    unmap_all(&table);
    assert_eq!((table.tables(), machine.arena().used()), (1, 1));
}

#[test]
fn gaining_rights_costs_no_flush_but_perhaps_a_fault() {
    let machine = machine();
    let table = PageTable::new(machine.any_format(), &machine).unwrap();
    let (cpu, frame) = (machine.cpu(0), machine.alloc_page(true).unwrap());
    machine.enter(cpu, &table);
    map(&table, 5, frame, PageSize::K4, PageFlags::READ | PageFlags::USER);
    machine.read(cpu, Mode::User, addr(5), &mut [0]).unwrap();
    protect(&table, 5, 1, RW);
    assert_eq!(machine.counters().flushes, 0);
    assert!(machine.write(cpu, Mode::User, addr(5), &[1]).unwrap_err().present);
    machine.write(cpu, Mode::User, addr(5), &[1]).unwrap();
    assert_eq!(machine.counters().spurious, 1);
    machine.leave(cpu, &table);
    unmap_all(&table);
}

#[test]
fn a_copy_on_write_break_moves_every_cpu_to_the_new_frame() {
    let machine = machine();
    let table = PageTable::new(machine.any_format(), &machine).unwrap();
    let (old, new) = (machine.alloc_page(true).unwrap(), machine.alloc_page(true).unwrap());
    machine.share(old);
    map(&table, 5, old, PageSize::K4, PageFlags::READ | PageFlags::USER);
    for index in 0..4 {
        machine.enter(machine.cpu(index), &table);
        machine.read(machine.cpu(index), Mode::User, addr(5), &mut [0]).unwrap();
    }
    let mut batch = table.batch();
    let mut cursor = table.cursor(pages(5, 1)).unwrap();
    let before = cursor.replace(page(5), new, RW, Fate::Release, &mut batch).unwrap();
    assert_eq!(before.frame, old);
    drop(cursor);
    assert_eq!(machine.refs(old), 2, "not before the flush");
    batch.finish();
    assert_eq!(machine.refs(old), 1);
    machine.write(machine.cpu(0), Mode::User, addr(5), &[3]).unwrap();
    let mut byte = [0];
    machine.read(machine.cpu(3), Mode::User, addr(5), &mut byte).unwrap();
    assert_eq!(byte, [3]);
    for index in 0..4 {
        machine.leave(machine.cpu(index), &table);
    }
    unmap_all(&table);
    machine.arena().release(old);
    drop(table);
    assert_eq!(machine.arena().used(), 0);
}

#[test]
fn the_next_used_entry_is_found_whatever_lies_between() {
    let machine = machine();
    let table = PageTable::new(machine.any_format(), &machine).unwrap();
    let frame = machine.alloc_block(PageSize::M2, true).unwrap();
    let far = 0x7_ffff_0000;
    let mut cursor = table.cursor(pages(0, 0x7_ffff_ffff)).unwrap();
    cursor.mark(page(far), word(77)).unwrap();
    cursor.prepare(pages(1 << 30, 1)).unwrap();
    assert_eq!(cursor.next_used(page(0)), Some((page(far), Entry::Absent(word(77)))));
    cursor.map(page(0x40_0000), frame, PageSize::M2, RW).unwrap();
    let third = frame.checked_add(3).unwrap();
    let entry = Entry::Mapped { frame: third, size: PageSize::M2, flags: RW };
    assert_eq!(cursor.next_used(page(0x40_0003)), Some((page(0x40_0003), entry)));
    assert_eq!(cursor.next_used(page(0x40_0200)).unwrap().0, page(far));
    assert_eq!(cursor.next_used(page(far + 1)), None);
    cursor.mark(page(far), AbsentWord::NOTHING).unwrap();
    assert_eq!(cursor.next_used(page(0x40_0200)), None);
    drop(cursor);
    unmap_all(&table);
    assert_eq!(table.tables(), 1, "empty tables went back as well");
}

#[test]
fn one_cursor_does_many_things_one_after_another() {
    let machine = machine();
    let table = PageTable::new(machine.any_format(), &machine).unwrap();
    let frames = [0; 3].map(|_| machine.alloc_page(true).unwrap());
    let mut batch = table.batch();
    let mut cursor = table.cursor(pages(0, 1 << 35)).unwrap();
    for at in [0x1000, 0x1200, 1 << 30] {
        for frame in frames {
            cursor.map(page(at), frame, PageSize::K4, RW).unwrap();
            assert_eq!(cursor.query(page(at)).leaf().unwrap().frame, frame);
            // The tables below the root go with the only entry, and the cursor must not use them.
            cursor.take(pages(at, 1), &mut batch, |_, _| Fate::Keep).unwrap();
            assert_eq!(cursor.query(page(at)), Entry::NOTHING);
        }
    }
    cursor.map(page(0x1000), frames[2], PageSize::K4, RW).unwrap();
    assert_eq!(cursor.next_used(page(0)).unwrap().0, page(0x1000));
    drop(cursor);
    batch.finish();
    assert_eq!(table.tables(), 4);
}

#[test]
fn threads_share_a_table() {
    let machine = machine();
    let table = PageTable::new(machine.any_format(), &machine).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (table, machine) = (&table, &machine);
            scope.spawn(move || {
                for round in 0..200 {
                    // Neighbours in the same tables, and ranges of their own.
                    let at = (round % 5) * 1024 + thread * 2;
                    map(table, at, machine.alloc_page(false).unwrap(), PageSize::K4, RW);
                    map(table, at + 1, machine.alloc_page(false).unwrap(), PageSize::K4, RW);
                    protect(table, at, 1, PageFlags::READ);
                    let mut batch = table.batch();
                    let mut taken = 0;
                    let range = pages(at, 2);
                    let count = |_, _| {
                        taken += 1;
                        Fate::Release
                    };
                    table.cursor(range).unwrap().take(range, &mut batch, count).unwrap();
                    batch.finish();
                    assert_eq!(taken, 2);
                }
            });
        }
    });
    assert_eq!((table.tables(), machine.arena().used()), (1, 1));
}

#[test]
fn a_table_that_was_always_empty_is_flushed_before_it_is_freed() {
    let machine = machine();
    let table = PageTable::new(machine.any_format(), &machine).unwrap();
    table.cursor(pages(5, 1)).unwrap().prepare(pages(5, 1)).unwrap();
    machine.enter(machine.cpu(0), &table);
    assert!(machine.read(machine.cpu(0), Mode::User, addr(5), &mut [0]).is_err());
    unmap_all(&table);
    assert_eq!((table.tables(), machine.counters().flushes), (1, 1));
    machine.leave(machine.cpu(0), &table);
}

#[test]
fn a_direct_map_uses_the_largest_pages_that_fit() {
    let machine = machine();
    let table = PageTable::new(machine.any_format(), &machine).unwrap();
    let base = 0xf_ffff_8000_0000 + 0x100;
    let frame = pagoda_addr::Frame::from_number(0x100);
    let range = pages(base, (2 << 18) - 0x100 + 0x203);
    let mut cursor = table.cursor(range).unwrap();
    cursor.map_largest(range, frame, PageFlags::READ_WRITE).unwrap();
    let sizes = [
        (0x100, PageSize::K4),
        (0x1ff, PageSize::K4),
        (0x200, PageSize::M2),
        (0x3_ffff, PageSize::M2),
        (0x4_0000, PageSize::G1),
        (0x8_0000, PageSize::M2),
        (0x8_0200, PageSize::K4),
        (0x8_0202, PageSize::K4),
    ];
    for (number, size) in sizes {
        let entry = cursor.query(page(0xf_ffff_8000_0000 + number)).leaf().unwrap();
        assert_eq!((entry.frame.number(), entry.size), (number, size));
    }
    assert_eq!(cursor.query(page(base + range.count())), Entry::NOTHING);
    assert_eq!(cursor.map_largest(pages(base, 4), frame, PageFlags::READ), Err(MapError::Occupied));
    drop(cursor);
    assert_eq!(table.tables(), 6);
    let mut misaligned = table.cursor(pages(0, 1 << 18)).unwrap();
    misaligned.map_largest(pages(0, 1024), frame, RW).unwrap();
    assert_eq!(misaligned.query(page(512)).leaf().unwrap().size, PageSize::K4);
}

#[test]
fn five_levels_reach_where_four_cannot() {
    let config = pagoda_emu::Config { levels: 5, ..Default::default() };
    let machine = pagoda_emu::Machine::new(config);
    let table = PageTable::new(machine.any_format(), &machine).unwrap();
    let (cpu, frame) = (machine.cpu(0), machine.alloc_page(true).unwrap());
    machine.enter(cpu, &table);
    let high = 0xff_ffff_ff00;
    map(&table, high, frame, PageSize::K4, RW);
    machine.write(cpu, Mode::User, addr(high), &[1]).unwrap();
    assert_eq!(table.tables(), 5);
    machine.leave(cpu, &table);
    unmap_all(&table);
    assert_eq!(table.tables(), 1);
}

#[test]
fn every_space_sees_what_the_kernel_maps_in_its_half() {
    let machine = machine();
    let kernel = PageTable::new(machine.any_format(), &machine).unwrap();
    let half = 0xf_ffff_8000_0000;
    kernel.prefill(pages(half, 1 << 28)).unwrap();
    let user = PageTable::new_sharing_upper(&kernel).unwrap();
    assert_eq!(kernel.prefill(pages(half, 1 << 29)), Err(MapError::Sealed));
    kernel.prefill(pages(half, 1 << 27)).unwrap();
    let frame = machine.alloc_page(true).unwrap();
    let flags = PageFlags::READ_WRITE | PageFlags::GLOBAL;
    map(&kernel, half + 7, frame, PageSize::K4, flags);
    let mut cursor = kernel.cursor(pages(half, 1 << 30)).unwrap();
    assert_eq!(
        cursor.map(page(half + (1 << 29)), frame, PageSize::K4, flags),
        Err(MapError::Sealed)
    );
    drop(cursor);
    assert_eq!(user.cursor(pages(half, 1)).err(), Some(MapError::Range));

    let cpu = machine.cpu(2);
    kernel.space().join(cpu);
    machine.enter(cpu, &user);
    machine.write(cpu, Mode::Kernel, addr(half + 7), &[1]).unwrap();
    machine.switch(cpu, Some(kernel.root()));
    machine.audit();
    machine.enter(cpu, &user);
    let mut batch = kernel.batch();
    let mut cursor = kernel.cursor(pages(half, 8)).unwrap();
    cursor.take(pages(half, 8), &mut batch, |_, _| Fate::Release).unwrap();
    drop(cursor);
    batch.finish();
    assert!(machine.read(cpu, Mode::Kernel, addr(half + 7), &mut [0]).is_err());
    assert_eq!(kernel.tables(), 3, "the two top-level tables stay");
    machine.leave(cpu, &user);
    kernel.space().leave(cpu);
    drop(user);
    // SAFETY: the only table that shared its half is gone, and no CPU uses either.
    #[allow(unsafe_code)]
    unsafe {
        kernel.destroy_shared();
    }
    assert_eq!(machine.arena().used(), 0);
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "dropped without `finish`")]
fn a_forgotten_batch_is_reported() {
    let machine = machine();
    let table = PageTable::new(machine.any_format(), &machine).unwrap();
    map(&table, 5, machine.alloc_page(true).unwrap(), PageSize::K4, RW);
    let mut batch = table.batch();
    let mut cursor = table.cursor(pages(5, 1)).unwrap();
    cursor.take(pages(5, 1), &mut batch, |_, _| Fate::Release).unwrap();
    drop(cursor);
    drop(batch);
}

#[test]
fn what_is_known_is_taken_and_what_was_forgotten_is_found() {
    // Windows as they are, with one left out, with one twice, the wrong way round, and one too large.
    let used = [pages(3, 4), pages(510, 5), pages(1 << 20, 1), pages((1 << 25) + 7, 300)];
    let [a, b, c, d] = used;
    let all = [
        vec![a, b, c, d],
        vec![a, b, d],
        vec![a, c, c, d],
        vec![d, c, b, a],
        vec![pages(0, 1 << 26)],
        vec![],
        vec![a, b, pages(1 << 19, 1), c, d],
    ];
    for machine in machines() {
        for windows in &all {
            let table = PageTable::new(machine.any_format(), &machine).unwrap();
            let whole = pages(0, 1 << 26);
            let mut cursor = table.cursor(whole).unwrap();
            for range in used {
                for at in range.start().number()..range.end_number() {
                    let frame = machine.alloc_page(true).unwrap();
                    cursor.map(page(at), frame, PageSize::K4, RW).unwrap();
                }
            }
            cursor.mark(page(9), word(5)).unwrap();
            let mut batch = table.batch();
            let mut gone = 0;
            cursor
                .take_known(windows.iter().copied(), &mut batch, |_, count| gone += count)
                .unwrap();
            drop(cursor);
            batch.finish();
            assert_eq!((gone, table.tables(), table.words()), (310, 1, 0));
            drop(table);
            assert_eq!(machine.arena().used(), 0);
        }
    }
}
