//! The tests bite: a mistake that is made on purpose stops with the message that names it. And an
//! allocation that fails, whichever it is, leaves everything as it was.

mod common;

use common::*;
use pagoda_addr::{Frame, PhysAddr, PhysMap};
use pagoda_emu::{Access, AnyFormat, Machine, Mode};
use pagoda_paging::{
    Fate, FlushRange, MapError, OutOfFrames, PageFlags, PageSize, PageTable, Platform, Released,
    SpaceTlb,
};
use pagoda_sync::RawSpin;

/// On every machine: four CPUs know pages 5 to 8 (writable) and a large page at 0x200.
fn with_touched(f: impl Fn(&Machine, &Table<'_>)) {
    machines().for_each(|machine| with_touched_on(&machine, &f));
}

fn with_touched_on(machine: &Machine, f: &impl Fn(&Machine, &Table<'_>)) {
    let table = PageTable::new(machine.any_format(), machine).unwrap();
    for at in 5..9 {
        map(&table, at, machine.alloc_page(true).unwrap(), PageSize::K4, RW);
    }
    map(&table, 0x200, machine.alloc_block(PageSize::M2, true).unwrap(), PageSize::M2, RW);
    for index in 0..4 {
        machine.enter(machine.cpu(index), &table);
        for at in [5, 6, 7, 8, 0x234] {
            access(machine, &table, machine.cpu(index), Access::Write, addr(at), false).unwrap();
        }
    }
    f(machine, &table);
    for index in 0..4 {
        machine.leave(machine.cpu(index), &table);
    }
}

fn take(table: &Table<'_>, at: u64, count: u64, fate: Fate) {
    let mut batch = table.batch();
    table
        .cursor(pages(at, count))
        .unwrap()
        .take(pages(at, count), &mut batch, |_, _| fate)
        .unwrap();
    batch.finish();
}

#[test]
fn a_left_out_flush_is_caught_whichever_change_it_belongs_to() {
    type Change = fn(&Machine, &Table<'_>);
    let changes: [(&str, Change, &str); 6] = [
        (
            "write protection",
            |_, table| protect(table, 6, 1, RW - PageFlags::WRITE),
            "still allows",
        ),
        ("no access at all", |_, table| protect(table, 6, 1, PageFlags::USER), "it is unmapped"),
        ("the kernel's now", |_, table| protect(table, 6, 1, RW - PageFlags::USER), "still allows"),
        ("unmapping", |_, table| take(table, 6, 1, Fate::Keep), "it is unmapped"),
        (
            "copy-on-write",
            |machine, table| {
                let new = machine.alloc_page(true).unwrap();
                let mut batch = table.batch();
                let mut cursor = table.cursor(pages(6, 1)).unwrap();
                cursor.replace(page(6), new, RW, Fate::Keep, &mut batch).unwrap();
                drop(cursor);
                batch.finish();
            },
            "still knows page v#0x6 as frame",
        ),
        (
            "cleaning",
            |_, table| {
                let mut batch = table.batch();
                let mut cursor = table.cursor(pages(6, 1)).unwrap();
                let clean = |_, leaf: pagoda_paging::Leaf| leaf.flags - PageFlags::DIRTY;
                cursor.change(pages(6, 1), &mut batch, clean).unwrap();
                drop(cursor);
                batch.finish();
            },
            // Where the machine does not set the bit, the page is read-only while it is clear.
            "",
        ),
    ];
    for (name, change, expected) in changes {
        for victim in [None, Some(3)] {
            with_touched(|machine, table| {
                change(machine, table);
                machine.audit();
            });
            with_touched(|machine, table| {
                machine.drop_flush(0, victim.map(|index| machine.cpu(index)));
                change(machine, table);
                let found = message(|| machine.audit());
                let expected = match (name, machine.any_format()) {
                    ("cleaning", AnyFormat::Aarch64(_)) => "still allows",
                    ("cleaning", _) => "without setting its cleared dirty bit",
                    _ => expected,
                };
                assert!(found.contains("stale") && found.contains(expected), "{name}: {found}");
                let on_use = message(|| {
                    let at = addr(6);
                    let _ = machine.translate(machine.cpu(3), Mode::User, Access::Write, at);
                });
                assert!(on_use.contains("cpu3"), "{name}: {on_use}");
            });
        }
    }
}

#[test]
fn a_frame_that_is_freed_before_the_flush_is_caught() {
    with_touched(|machine, table| {
        machine.drop_flush(0, Some(machine.cpu(2)));
        let found = message(|| take(table, 7, 1, Fate::Release));
        assert!(found.contains("is released while the TLB of cpu2 still knows"), "{found}");
        assert!(found.contains("behind page v#0x7"), "{found}");
    });
}

/// A host that flushes pages but forgets the way to them.
#[derive(Clone, Copy)]
struct KeepsTheWay<'m>(&'m Machine);

// SAFETY: the machine's, but for the mistake that the test is about, which frees no memory that
// the host could really lose.
#[allow(unsafe_code)]
unsafe impl PhysMap for KeepsTheWay<'_> {
    fn ptr(&self, addr: PhysAddr) -> *mut u8 {
        self.0.ptr(addr)
    }
}

// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Platform for KeepsTheWay<'_> {
    type Lock = RawSpin;
    fn alloc_table(&self) -> Result<Frame, OutOfFrames> {
        self.0.alloc_table()
    }
    fn release(&self, item: Released) {
        self.0.release(item);
    }
    fn flush(&self, space: &SpaceTlb, what: FlushRange<'_>) {
        self.0.flush(space, FlushRange { tables: false, ..what });
    }
    fn unwinding(&self) -> bool {
        true
    }
}

#[test]
fn a_table_that_is_freed_while_a_cpu_goes_through_it_is_caught() {
    for machine in machines() {
        let platform = KeepsTheWay(&machine);
        let table = PageTable::new(machine.any_format(), platform).unwrap();
        let frame = machine.alloc_page(true).unwrap();
        let range = pages(0x1234, 1);
        let mut cursor = table.cursor(range).unwrap();
        cursor.map(page(0x1234), frame, PageSize::K4, RW | USED).unwrap();
        drop(cursor);
        machine.enter(machine.cpu(1), &table);
        machine.read(machine.cpu(1), Mode::User, addr(0x1234), &mut [0]).unwrap();
        let found = message(|| {
            let mut batch = table.batch();
            let mut cursor = table.cursor(range).unwrap();
            cursor.take(range, &mut batch, |_, _| Fate::Release).unwrap();
            drop(cursor);
            batch.finish();
        });
        assert!(found.starts_with("table p#"), "{found}");
        assert!(found.contains("cpu1 still goes through it to page v#0x1200"), "{found}");
        machine.leave(machine.cpu(1), &table);
    }
}

#[test]
fn a_global_page_in_a_programs_half_is_caught_after_the_switch() {
    for machine in machines() {
        let (one, two) = (
            PageTable::new(machine.any_format(), &machine).unwrap(),
            PageTable::new(machine.any_format(), &machine).unwrap(),
        );
        let flags = RW | USED;
        let global = flags | PageFlags::GLOBAL;
        map(&one, 5, machine.alloc_page(true).unwrap(), PageSize::K4, global);
        map(&two, 5, machine.alloc_page(true).unwrap(), PageSize::K4, flags);
        let cpu = machine.cpu(0);
        machine.enter(cpu, &one);
        machine.read(cpu, Mode::User, addr(5), &mut [0]).unwrap();
        machine.leave(cpu, &one);
        machine.enter(cpu, &two);
        let found = message(|| machine.read(cpu, Mode::User, addr(5), &mut [0]).unwrap());
        assert!(found.contains("stale TLB: cpu0 still knows page v#0x5"), "{found}");
        machine.leave(cpu, &two);
    }
}

#[test]
fn a_full_batch_flushes_before_it_releases() {
    for machine in machines() {
        let table = PageTable::new(machine.any_format(), &machine).unwrap();
        let cpu = machine.cpu(0);
        machine.enter(cpu, &table);
        // Scattered: every leaf has a table of its own, and all of them go.
        for at in 0..300 {
            let at = at * 1024;
            map(&table, at, machine.alloc_page(true).unwrap(), PageSize::K4, RW | USED);
            machine.read(cpu, Mode::User, addr(at), &mut [0]).unwrap();
        }
        take(&table, 0, 300 * 1024, Fate::Release);
        machine.audit();
        assert_eq!((table.tables(), machine.arena().used()), (1, 1));
        let counters = machine.counters();
        assert!(counters.flushes <= 300 / 16 + 300 / 128 + 1, "{counters:?}");
        machine.leave(cpu, &table);
    }
}

/// What the tree lists, and the frames in use: all that an operation could change.
fn snapshot(machine: &Machine, table: &Table<'_>) -> (Vec<(u64, pagoda_paging::Entry)>, u64, u64) {
    let half = pages(0, 1 << 35);
    let mut cursor = table.cursor(half).unwrap();
    let (mut list, mut from) = (Vec::new(), page(0));
    while let Some((at, entry)) = cursor.next_used(from) {
        list.push((at.number(), entry));
        let step = entry.leaf().map_or(1, |leaf| leaf.size.pages());
        from = page(at.number() + step);
    }
    drop(cursor);
    (list, table.tables(), machine.arena().used())
}

#[test]
fn after_a_failed_allocation_everything_is_as_before() {
    type Operation = fn(&Table<'_>) -> Result<(), MapError>;
    let operations: [(&str, u64, Operation); 7] = [
        ("map", 3, |table| {
            let mut cursor = table.cursor(pages(1 << 30, 1)).unwrap();
            cursor.map(page(1 << 30), Frame::from_number(1), PageSize::K4, RW)
        }),
        ("mark", 3, |table| table.cursor(pages(1 << 30, 1)).unwrap().mark(page(1 << 30), word(9))),
        ("prepare", 8, |table| {
            let range = pages((1 << 27) - 600, 2000);
            table.cursor(range).unwrap().prepare(range)
        }),
        ("map_largest", 4, |table| {
            let range = pages((3 << 18) - 513, (1 << 18) + 1026);
            let frame = Frame::from_number((9 << 18) - 513);
            table.cursor(range).unwrap().map_largest(range, frame, RW)
        }),
        ("protect", 4, |table| {
            let range = pages((1 << 18) + 3, 5000);
            let mut batch = table.batch();
            let mut cursor = table.cursor(range).unwrap();
            let result = cursor.protect(range, PageFlags::READ | PageFlags::USER, &mut batch);
            drop(cursor);
            batch.finish();
            result
        }),
        ("split_at", 2, |table| {
            let mut batch = table.batch();
            let mut cursor = table.cursor(pages((1 << 18) + 3, 1)).unwrap();
            let result = cursor.split_at(page((1 << 18) + 3), &mut batch);
            drop(cursor);
            batch.finish();
            result
        }),
        ("take", 4, |table| {
            let range = pages((1 << 18) + 3, 5000);
            let mut batch = table.batch();
            let mut cursor = table.cursor(range).unwrap();
            let result = cursor.take(range, &mut batch, |_, _| Fate::Keep);
            drop(cursor);
            batch.finish();
            result
        }),
    ];
    for (name, allocations, operation) in operations {
        let machine = machine();
        let table = PageTable::new(machine.any_format(), &machine).unwrap();
        map(&table, 1 << 18, Frame::from_number(1 << 18), PageSize::G1, RW);
        let before = snapshot(&machine, &table);
        for count in 0..allocations {
            machine.fail_after(Some(count));
            assert_eq!(operation(&table), Err(MapError::OutOfFrames), "{name} {count}");
            assert_eq!(snapshot(&machine, &table), before, "{name} {count}");
        }
        machine.fail_after(Some(allocations));
        assert_eq!(operation(&table), Ok(()), "{name}");
        assert!(machine.arena().failure_pending(), "{name} allocates more than it was said");
    }
    let machine = machine();
    let table = PageTable::new(machine.any_format(), &machine).unwrap();
    machine.fail_after(Some(0));
    assert!(PageTable::new_sharing_upper(&table).is_err());
    assert_eq!(machine.arena().used(), 1);
}
