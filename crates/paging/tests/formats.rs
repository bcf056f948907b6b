//! What machines differ in: whether they remember absence and refusals, whether a leaf has to be
//! absent before it is written anew, who writes the history, and leaves in the root.

mod common;

use common::*;
use pagoda_addr::{Frame, Page, PhysAddr, PhysMap};
use pagoda_emu::{Access, AnyFormat, Config, Machine, Mmu, Mode};
use pagoda_paging::{
    AbsentWord, Decoded, Fate, FlushRange, Format, Gain, MapError, OutOfFrames, PageFlags,
    PageSize, PageTable, Platform, Released, Remembers, Rewrite, SpaceTlb,
};
use pagoda_sync::RawSpin;

/// A host that hears of gains and does nothing, on a machine where somebody must.
#[derive(Clone, Copy)]
struct IgnoresGains<'m>(&'m Machine);

// SAFETY: the machine's.
#[allow(unsafe_code)]
unsafe impl PhysMap for IgnoresGains<'_> {
    fn ptr(&self, addr: PhysAddr) -> *mut u8 {
        self.0.ptr(addr)
    }
}

// SAFETY: the machine's; gains are no matter of safety.
#[allow(unsafe_code)]
unsafe impl Platform for IgnoresGains<'_> {
    type Lock = RawSpin;
    fn alloc_table(&self) -> Result<Frame, OutOfFrames> {
        self.0.alloc_table()
    }
    fn release(&self, item: Released) {
        self.0.release(item);
    }
    fn flush(&self, space: &SpaceTlb, what: FlushRange<'_>) {
        self.0.flush(space, what);
    }
    fn gained(&self, _: &SpaceTlb, _: FlushRange<'_>, _: Gain) {}
}

#[test]
fn a_page_that_appears_behind_the_back_of_a_cpu_that_remembers_its_absence_is_caught() {
    for machine in machines() {
        let table = PageTable::new(machine.any_format(), IgnoresGains(&machine)).unwrap();
        let cpu = machine.cpu(1);
        machine.enter(cpu, &table);
        assert!(machine.read(cpu, Mode::User, addr(5), &mut [0]).is_err());
        let frame = machine.alloc_page(true).unwrap();
        let mut cursor = table.cursor(pages(5, 1)).unwrap();
        cursor.map(page(5), frame, PageSize::K4, RW | USED).unwrap();
        drop(cursor);
        let found = message(|| machine.read(cpu, Mode::User, addr(5), &mut [0]).unwrap());
        let expected = match machine.any_format().remembers() {
            Remembers::Absence => "stale absence: cpu1",
            _ => "",
        };
        assert!(found.starts_with(expected) && found.is_empty() == expected.is_empty(), "{found}");
        machine.leave(cpu, &table);
    }
}

#[test]
fn more_rights_that_nobody_is_told_about_are_caught_where_a_fault_forgets_nothing() {
    for machine in machines() {
        let table = PageTable::new(machine.any_format(), IgnoresGains(&machine)).unwrap();
        let (cpu, frame) = (machine.cpu(1), machine.alloc_page(true).unwrap());
        let mut cursor = table.cursor(pages(5, 1)).unwrap();
        let flags = PageFlags::READ | PageFlags::USER | USED;
        cursor.map(page(5), frame, PageSize::K4, flags).unwrap();
        drop(cursor);
        machine.enter(cpu, &table);
        machine.read(cpu, Mode::User, addr(5), &mut [0]).unwrap();
        let mut batch = table.batch();
        table.cursor(pages(5, 1)).unwrap().protect(pages(5, 1), RW, &mut batch).unwrap();
        batch.finish();
        let found = message(|| machine.audit());
        if machine.any_format().remembers() == Remembers::Nothing {
            assert_eq!(found, "");
            assert!(machine.write(cpu, Mode::User, addr(5), &[1]).is_err());
            machine.write(cpu, Mode::User, addr(5), &[1]).unwrap();
        } else {
            assert!(found.starts_with("stale refusal: cpu1 still refuses"), "{found}");
        }
        machine.leave(cpu, &table);
    }
}

/// The right words, written over what CPUs know.
#[derive(Clone, Copy)]
struct NeverBreaks(AnyFormat);

impl Format for NeverBreaks {
    fn levels(&self) -> u32 {
        self.0.levels()
    }
    fn has_size(&self, size: PageSize) -> bool {
        self.0.has_size(size)
    }
    fn phys_bits(&self) -> u32 {
        self.0.phys_bits()
    }
    fn covers(&self, page: Page) -> bool {
        self.0.covers(page)
    }
    fn upper_half(&self, page: Page) -> bool {
        self.0.upper_half(page)
    }
    fn upper_index(&self) -> usize {
        self.0.upper_index()
    }
    fn grants(&self, flags: PageFlags) -> PageFlags {
        self.0.grants(flags)
    }
    fn leaf(&self, frame: Frame, size: PageSize, flags: PageFlags) -> u64 {
        self.0.leaf(frame, size, flags)
    }
    fn table(&self, frame: Frame, user: bool) -> u64 {
        self.0.table(frame, user)
    }
    fn absent(&self, word: AbsentWord) -> u64 {
        self.0.absent(word)
    }
    fn decode(&self, word: u64, level: u32) -> Decoded {
        self.0.decode(word, level)
    }
    fn remembers(&self) -> Remembers {
        self.0.remembers()
    }
    fn breaks_for(&self, _: Rewrite) -> bool {
        false
    }
}

#[test]
fn a_make_without_a_break_is_caught_where_the_machine_demands_one() {
    type Tree<'m> = PageTable<NeverBreaks, &'m Machine>;
    type Change = fn(&Tree<'_>, &Machine);
    let changes: [Change; 3] = [
        |table, machine| {
            let frame = machine.alloc_block(PageSize::M2, true).unwrap();
            let mut batch = table.batch();
            let mut cursor = table.cursor(pages(0x200, 512)).unwrap();
            cursor.replace(page(0x200), frame, RW, Fate::Keep, &mut batch).unwrap();
            batch.finish();
        },
        |table, _| {
            let mut batch = table.batch();
            let mut cursor = table.cursor(pages(0x200, 512)).unwrap();
            cursor.split_at(page(0x234), &mut batch).unwrap();
            batch.finish();
        },
        |table, _| {
            let (flags, range) = (RW | PageFlags::UNCACHED, pages(0x200, 512));
            let mut batch = table.batch();
            table.cursor(range).unwrap().protect(range, flags, &mut batch).unwrap();
            batch.finish();
        },
    ];
    for change in changes {
        for machine in machines() {
            let table = PageTable::new(NeverBreaks(machine.any_format()), &machine).unwrap();
            let cpu = machine.cpu(2);
            let frame = machine.alloc_block(PageSize::M2, true).unwrap();
            let mut cursor = table.cursor(pages(0x200, 512)).unwrap();
            cursor.map(page(0x200), frame, PageSize::M2, RW | USED).unwrap();
            drop(cursor);
            machine.enter(cpu, &table);
            machine.write(cpu, Mode::User, addr(0x234), &[1]).unwrap();
            let found = message(|| change(&table, &machine));
            let demands = machine.any_format().breaks_for(Rewrite::Size);
            let caught = found.starts_with("break-before-make: cpu2 knows page v#0x200");
            assert!(caught == demands && found.is_empty() != demands, "{found}");
            machine.leave(cpu, &table);
        }
    }
}

/// With three levels a leaf of 1 GiB fills an entry of the root.
#[test]
fn leaves_stand_in_the_root_where_it_has_their_level() {
    let config = Config { mmu: Mmu::RiscV { svadu: true }, levels: 3, ..Config::default() };
    let machine = Machine::new(config);
    let table = PageTable::new(machine.any_format(), &machine).unwrap();
    let (cpu, frame, range) =
        (machine.cpu(0), Frame::from_number(1 << 20), pages(1 << 18, 1 << 18));
    map(&table, 1 << 18, frame, PageSize::G1, RW);
    machine.enter(cpu, &table);
    let middle = (1 << 18) + 0x12345;
    let phys = machine.translate(cpu, Mode::User, Access::Write, addr(middle)).unwrap();
    assert_eq!((phys.block().number(), table.tables()), ((1 << 20) + 0x12345, 1));
    protect(&table, middle, 1, PageFlags::READ | PageFlags::USER);
    machine.audit();
    assert_eq!(table.tables(), 3);
    machine.translate(cpu, Mode::User, Access::Write, addr(middle)).unwrap_err();
    machine.translate(cpu, Mode::User, Access::Write, addr(middle + 1)).unwrap();
    let mut batch = table.batch();
    table.cursor(range).unwrap().take(range, &mut batch, |_, _| Fate::Keep).unwrap();
    batch.finish();
    let mut cursor = table.cursor(range).unwrap();
    cursor.map_largest(range, frame, RW).unwrap();
    let size = cursor.query(page(middle)).leaf().unwrap().size;
    drop(cursor);
    assert_eq!((size, table.tables()), (PageSize::G1, 1));
    let mut batch = table.batch();
    table.cursor(range).unwrap().take(range, &mut batch, |_, _| Fate::Keep).unwrap();
    batch.finish();
    machine.audit();
    machine.leave(cpu, &table);
}

/// *upper-half-shared*, for leaves: the sharers have copies of them.
#[test]
fn leaves_in_a_shared_root_stay_as_they_are() {
    let config = Config { mmu: Mmu::RiscV { svadu: false }, levels: 3, ..Config::default() };
    let machine = Machine::new(config);
    let kernel = PageTable::new(machine.any_format(), &machine).unwrap();
    let (half, frame) = (Page::LIMIT - (1 << 26), Frame::from_number(1 << 20));
    let (direct, rest) = (pages(half, 3 << 18), pages(half + (8 << 18), 1 << 18));
    let flags = PageFlags::READ_WRITE | PageFlags::GLOBAL | USED;
    kernel.cursor(direct).unwrap().map_largest(direct, frame, flags).unwrap();
    kernel.prefill(rest).unwrap();
    let user = PageTable::new_sharing_upper(&kernel).unwrap();
    machine.enter(machine.cpu(0), &user);
    let seen = machine.translate(machine.cpu(0), Mode::Kernel, Access::Write, addr(half + 0x123));
    assert_eq!(seen.unwrap().block().number(), (1 << 20) + 0x123);

    let all = pages(half, 1 << 26);
    let mut batch = kernel.batch();
    let mut cursor = kernel.cursor(all).unwrap();
    let sealed = Err(MapError::Sealed);
    let one = pages(half + 5, 1);
    assert_eq!(cursor.protect(one, PageFlags::READ, &mut batch), sealed);
    assert_eq!(cursor.take(one, &mut batch, |_, _| Fate::Keep), sealed);
    assert_eq!(cursor.take(all, &mut batch, |_, _| Fate::Keep), sealed);
    assert_eq!(cursor.split_at(page(half + 5), &mut batch), sealed);
    let moved =
        cursor.replace(page(half), Frame::from_number(1 << 18), flags, Fate::Keep, &mut batch);
    assert_eq!(moved, Err(MapError::Sealed));
    let fourth = page(half + (3 << 18));
    assert_eq!(cursor.map(fourth, frame, PageSize::G1, flags), sealed);
    assert_eq!(cursor.map_largest(pages(fourth.number(), 1 << 18), frame, flags), sealed);
    assert!(cursor.touch(page(half + 5), PageFlags::WRITE));
    cursor.map(rest.start(), frame, PageSize::M2, flags).unwrap();
    cursor.take(rest, &mut batch, |_, _| Fate::Keep).unwrap();
    drop(cursor);
    batch.finish();
    machine.audit();
    machine.leave(machine.cpu(0), &user);
    drop(user);
    // SAFETY: the only table that shared its half is gone, and no CPU uses either.
    #[allow(unsafe_code)]
    unsafe {
        kernel.destroy_shared();
    }
    assert_eq!(machine.arena().used(), 0);
}

/// The first access to a page without history, and the first write, where software keeps it.
#[test]
fn history_is_noted_by_the_fault_handler_or_by_the_machine() {
    for machine in machines() {
        let table = PageTable::new(machine.any_format(), &machine).unwrap();
        let (cpu, frame) = (machine.cpu(0), machine.alloc_page(true).unwrap());
        map(&table, 5, frame, PageSize::K4, RW);
        machine.enter(cpu, &table);
        let try_it = |how| access(&machine, &table, cpu, how, addr(5), false);
        assert_eq!(leaf(&table, 5).flags, RW);
        try_it(Access::Read).unwrap();
        assert_eq!(leaf(&table, 5).flags, RW | PageFlags::ACCESSED);
        try_it(Access::Write).unwrap();
        assert_eq!(leaf(&table, 5).flags, RW | USED);
        assert!(try_it(Access::Fetch).is_err());
        let mut cursor = table.cursor(pages(5, 1)).unwrap();
        assert!(!cursor.touch(page(5), PageFlags::EXEC) && !cursor.touch(page(6), PageFlags::READ));
        drop(cursor);
        assert_eq!(machine.counters().spurious, 0);
        machine.leave(cpu, &table);
    }
}
