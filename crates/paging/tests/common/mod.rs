//! Short words for the tests.
#![allow(dead_code, unreachable_pub)] // each test file uses some of them

use pagoda_addr::{Frame, Page, PageRange, VirtAddr};
use pagoda_emu::{Config, Machine};
use pagoda_paging::{AbsentWord, Fate, Leaf, PageFlags, PageSize, PageTable, X86_64};

pub type Table<'m> = PageTable<X86_64, &'m Machine>;

pub const RW: PageFlags = PageFlags::READ_WRITE.union(PageFlags::USER);

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

trait Levels {
    fn tables_levels(&self) -> u32;
}

impl Levels for Table<'_> {
    fn tables_levels(&self) -> u32 {
        pagoda_paging::Format::levels(self.format())
    }
}
