//! Short words for the tests.
#![allow(dead_code, unreachable_pub)] // each test file uses some of them

use std::panic::{AssertUnwindSafe, catch_unwind};

use pagoda_addr::{Frame, Page, PageRange, PhysAddr, VirtAddr};
use pagoda_emu::{Access, AnyFormat, Config, Machine, Mmu, Mode, PageFault};
use pagoda_paging::{AbsentWord, Fate, Format, Leaf, PageFlags, PageSize, PageTable};
use pagoda_sync::CpuId;

pub type Table<'m> = PageTable<AnyFormat, &'m Machine>;

/// Every architecture, and every choice that it leaves; with the levels of tables.
pub const MMUS: [(Mmu, u32); 8] = [
    (Mmu::X86_64, 4),
    (Mmu::X86_64, 5),
    (Mmu::Aarch64 { upper: false }, 4),
    (Mmu::RiscV { svadu: false }, 3),
    (Mmu::RiscV { svadu: true }, 3),
    (Mmu::RiscV { svadu: false }, 4),
    (Mmu::RiscV { svadu: true }, 5),
    // Last: the only one whose pages do not begin at 0.
    (Mmu::Aarch64 { upper: true }, 4),
];

/// All of them whose tables cover page 0.
pub fn machines() -> impl Iterator<Item = Machine> {
    let lower = MMUS.into_iter().filter(|&(mmu, _)| mmu != Mmu::Aarch64 { upper: true });
    lower.map(|(mmu, levels)| Machine::new(Config { mmu, levels, ..Config::default() }))
}

/// One access by a program, and if it faults, what a fault handler does, and once more. A machine
/// that is strict about gains needs no flush in the handler.
pub fn access(
    machine: &Machine,
    table: &Table<'_>,
    cpu: CpuId,
    access: Access,
    at: VirtAddr,
    lazy: bool,
) -> Result<PhysAddr, PageFault> {
    let needed = match access {
        Access::Read => PageFlags::READ,
        Access::Write => PageFlags::WRITE,
        Access::Fetch => PageFlags::EXEC,
    };
    machine.translate(cpu, Mode::User, access, at).or_else(|_| {
        let page = at.block();
        table.cursor(PageRange::single(page)).unwrap().touch(page, needed);
        if lazy {
            machine.forget(cpu, page);
        }
        machine.translate(cpu, Mode::User, access, at)
    })
}

pub const RW: PageFlags = PageFlags::READ_WRITE.union(PageFlags::USER);

/// The history that nobody has to write any more.
pub const USED: PageFlags = PageFlags::ACCESSED.union(PageFlags::DIRTY);

pub fn machine() -> Machine {
    Machine::new(Config::default())
}

pub fn page(number: u64) -> Page {
    Page::from_number(number)
}

pub fn pages(start: u64, count: u64) -> PageRange {
    PageRange::new(page(start), count).unwrap()
}

pub fn addr(page: u64) -> VirtAddr {
    self::page(page).start()
}

pub fn word(value: u64) -> AbsentWord {
    AbsentWord::new(value).unwrap()
}

pub fn map(table: &Table<'_>, at: u64, frame: Frame, size: PageSize, flags: PageFlags) {
    let mut cursor = table.cursor(pages(at, size.pages())).unwrap();
    cursor.map(page(at), frame, size, flags).unwrap();
}

pub fn leaf(table: &Table<'_>, at: u64) -> Leaf {
    table.cursor(pages(at, 1)).unwrap().query(page(at)).leaf().unwrap()
}

pub fn protect(table: &Table<'_>, at: u64, count: u64, flags: PageFlags) {
    let mut batch = table.batch();
    table.cursor(pages(at, count)).unwrap().protect(pages(at, count), flags, &mut batch).unwrap();
    batch.finish();
}

/// Takes everything out of the lower half.
pub fn unmap_all(table: &Table<'_>) {
    let half = pages(0, 1 << (9 * table.tables_levels() - 1));
    let mut batch = table.batch();
    table.cursor(half).unwrap().take(half, &mut batch, |_, _| Fate::Release).unwrap();
    batch.finish();
}

/// The message of the panic that `f` ends with; empty if it does not panic.
pub fn message(f: impl FnOnce()) -> String {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(()) => String::new(),
        Err(payload) => match payload.downcast::<String>() {
            Ok(text) => *text,
            Err(payload) => payload.downcast_ref::<&str>().unwrap_or(&"?").to_string(),
        },
    }
}

trait Levels {
    fn tables_levels(&self) -> u32;
}

impl Levels for Table<'_> {
    fn tables_levels(&self) -> u32 {
        self.format().levels()
    }
}
