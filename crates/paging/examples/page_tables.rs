//! From a walk by hand to a tree that many CPUs use, on your desk: the CPUs, their memory and what
//! they remember are simulated.
//!
//! `cargo run -p pagoda-paging --example page_tables`; the guide's chapter on page tables shows its
//! parts.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};

use pagoda_addr::{Page, PageRange, VirtAddr};
use pagoda_emu::{Config, Machine, Mode};
use pagoda_paging::{Fate, PageFlags, PageSize, PageTable, X86_64};

// ANCHOR: walk
const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// RAM: frames of 512 words. Frame 0 is never a table.
type Ram = Vec<[u64; 512]>;

/// The place of `addr` in the table of this level: 9 bits for each, above the 12 of the page.
fn index(addr: u64, level: u32) -> usize {
    (addr >> (12 + 9 * (level - 1))) as usize & 511
}

/// What the processor does at every access: four reads, then the byte.
fn walk(ram: &Ram, root: u64, addr: u64) -> Option<u64> {
    let mut table = root;
    for level in (1..=4).rev() {
        let entry = ram[(table >> 12) as usize][index(addr, level)];
        if entry & PRESENT == 0 {
            return None; // a page fault
        }
        table = entry & FRAME;
    }
    Some(table | addr & 0xfff)
}

/// Puts `frame` behind `page`, with a new table wherever one is missing.
fn map(ram: &mut Ram, root: u64, page: u64, frame: u64) {
    let mut table = root;
    for level in (2..=4).rev() {
        let place = index(page, level);
        if ram[(table >> 12) as usize][place] & PRESENT == 0 {
            ram.push([0; 512]); // cleared: whatever stood there would be entries
            let fresh = (ram.len() as u64 - 1) << 12;
            ram[(table >> 12) as usize][place] = fresh | PRESENT | WRITE;
        }
        table = ram[(table >> 12) as usize][place] & FRAME;
    }
    ram[(table >> 12) as usize][index(page, 1)] = frame | PRESENT | WRITE;
}
// ANCHOR_END: walk

fn by_hand() {
    println!("== walk");
    // ANCHOR: by_hand
    let mut ram: Ram = vec![[0; 512]; 2]; // frame 1 is the root
    map(&mut ram, 0x1000, 0x40_1000, 0xabc000);
    println!("0x401234 is at {:x?}", walk(&ram, 0x1000, 0x40_1234));
    println!("0x402000 is at {:x?}", walk(&ram, 0x1000, 0x40_2000));
    println!("one page, and {} tables for it", ram.len() - 1);
    // ANCHOR_END: by_hand
}

fn with_the_crate() -> Result<(), Box<dyn Error>> {
    // ANCHOR: table
    let machine = Machine::new(Config::default()); // in a kernel: your `Platform`
    let table = PageTable::new(machine.format(), &machine)?;
    // ANCHOR_END: table
    println!("== map");
    // ANCHOR: map
    let page = Page::from_number(0x401);
    let frame = machine.alloc_page(true)?;
    let flags = PageFlags::READ_WRITE | PageFlags::USER;
    table.cursor(PageRange::single(page))?.map(page, frame, PageSize::K4, flags)?;

    let cpu = machine.cpu(0);
    machine.enter(cpu, &table); // CR3 := table.root()
    let hello = VirtAddr::new(0x40_1234);
    machine.write(cpu, Mode::User, hello, b"hello")?;
    let next = VirtAddr::new(0x40_2000);
    println!("{}", machine.write(cpu, Mode::User, next, b"?").unwrap_err());
    println!("{}", machine.fetch(cpu, Mode::User, hello).unwrap_err());
    // ANCHOR_END: map

    println!("== remembered");
    // ANCHOR: remembered
    for _ in 0..1000 {
        machine.read(cpu, Mode::User, hello, &mut [0])?;
    }
    let counters = machine.counters();
    println!("{} walks, {} answers from memory", counters.walks, counters.hits);
    // ANCHOR_END: remembered
    stale(&machine, &table)?;
    machine.leave(cpu, &table);
    large(&machine)?;
    Ok(())
}

fn stale(machine: &Machine, table: &PageTable<X86_64, &Machine>) -> Result<(), Box<dyn Error>> {
    let (page, range) = (Page::from_number(0x401), PageRange::single(Page::from_number(0x401)));
    let addr = VirtAddr::new(0x40_1234);
    println!("== batch");
    // ANCHOR: batch
    let other = machine.cpu(1);
    machine.enter(other, table); // two threads of one program
    machine.read(other, Mode::User, addr, &mut [0])?;

    let mut batch = table.batch();
    table.cursor(range)?.protect(range, PageFlags::READ | PageFlags::USER, &mut batch)?;
    batch.finish(); // returns when no CPU remembers more than the table grants
    println!("{}", machine.write(other, Mode::User, addr, b"?").unwrap_err());
    println!("CPUs told: {}", machine.counters().cpu_flushes);
    // ANCHOR_END: batch

    println!("== forgotten");
    let loud = take_hook();
    set_hook(Box::new(|_| ())); // the message is printed below
    // ANCHOR: forgotten
    machine.drop_flush(0, Some(other)); // the mistake: one CPU does not hear of it
    let mistake = catch_unwind(AssertUnwindSafe(|| {
        let mut batch = table.batch();
        let mut cursor = table.cursor(range).unwrap();
        cursor.take(range, &mut batch, |_, _| Fate::Release).unwrap();
        drop(cursor);
        batch.finish(); // flushes, then gives the frame back
    }));
    // ANCHOR_END: forgotten
    set_hook(loud);
    let message = mistake.unwrap_err();
    println!("{}", message.downcast_ref::<String>().map_or("?", String::as_str));
    machine.forget(other, page);
    machine.leave(other, table);
    Ok(())
}

fn large(machine: &Machine) -> Result<(), Box<dyn Error>> {
    println!("== large");
    // ANCHOR: large
    let table = PageTable::new(machine.format(), machine)?;
    let first = Page::from_number(0x600); // 6 MiB
    let range = PageRange::new(first, 512).ok_or("too long")?;
    let frame = machine.alloc_block(PageSize::M2, true)?;
    let flags = PageFlags::READ_WRITE | PageFlags::USER;
    table.cursor(range)?.map(first, frame, PageSize::M2, flags)?;
    println!("2 MiB behind one entry, {} tables", table.tables());

    let middle = PageRange::new(Page::from_number(0x700), 1).ok_or("too long")?;
    let mut batch = table.batch();
    table.cursor(range)?.protect(middle, PageFlags::READ | PageFlags::USER, &mut batch)?;
    batch.finish();
    println!("one page in it is read-only now: {} tables", table.tables());

    let mut batch = table.batch();
    table.cursor(range)?.take(range, &mut batch, |_, _| Fate::Release)?;
    batch.finish();
    println!("all taken out: {} table", table.tables());
    // ANCHOR_END: large
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    by_hand();
    with_the_crate()
}
