//! The minute in which paging is turned on, on your desk: a simulated CPU with a kernel's image in
//! its RAM, and the tables for it, wrong and right.
//!
//! `cargo run -p pagoda-paging --example turning_on`; the guide's chapter on turning paging on shows
//! its parts.

use std::error::Error;

use pagoda_addr::{Frame, Page, PageRange, VirtAddr};
use pagoda_emu::{Config, Machine, Mode};
use pagoda_paging::{MapError, PageFlags, PageTable, X86_64};

type Table<'a> = PageTable<X86_64, &'a Machine>;

// ANCHOR: layout
/// All RAM, from here on.
const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
/// The kernel's image, from here on: what the linker adds to its physical address.
const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// Where the loader put the image: text, then constants, then data, two frames each.
const IMAGE: u64 = 0x20_0000;
// ANCHOR_END: layout

// ANCHOR: map
/// Maps `pages` pages at `virt` to the frames from `phys` on, with the largest pages that fit.
fn map(
    table: &Table<'_>,
    virt: u64,
    phys: u64,
    pages: u64,
    flags: PageFlags,
) -> Result<(), MapError> {
    let range = PageRange::new(Page::from_number(virt >> 12), pages).expect("in the space");
    table.cursor(range)?.map_largest(range, Frame::from_number(phys >> 12), flags)
}
// ANCHOR_END: map

/// What the CPU says to a step.
fn told<T>(result: Result<T, pagoda_emu::PageFault>) -> String {
    match result {
        Ok(_) => "works".into(),
        Err(fault) if fault.present => format!("page fault: not allowed ({:?})", fault.access),
        Err(fault) => format!("page fault: nothing there ({:?})", fault.access),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // 64 MiB from address 0; the first 4 MiB are taken: low memory and the image.
    let machine = Machine::new(Config { frames: 16384, first_frame: 0, ..Config::default() });
    for _ in 0..1024 {
        machine.alloc_page(true)?;
    }
    let cpu = machine.cpu(0);
    let fetch = |addr| told(machine.fetch(cpu, Mode::Kernel, VirtAddr::new(addr)));

    println!("== first");
    // ANCHOR: first
    let all = PageFlags::READ_WRITE | PageFlags::EXEC;
    let table = PageTable::new(machine.format(), &machine)?;
    map(&table, KERNEL_BASE + IMAGE, IMAGE, 6, all)?;
    machine.enter(cpu, &table); // CR3 and CR0.PG
    println!("the next instruction, still at {IMAGE:#x}: {}", fetch(IMAGE));
    // ANCHOR_END: first
    machine.leave(cpu, &table);

    println!("== scaffold");
    // ANCHOR: scaffold
    let scaffold = PageTable::new(machine.format(), &machine)?;
    for base in [0, DIRECT_MAP, KERNEL_BASE] {
        map(&scaffold, base, 0, 16384, all)?; // RAM, three times
    }
    machine.enter(cpu, &scaffold);
    println!("the next instruction: {}", fetch(IMAGE));
    println!("the jump:             {}", fetch(KERNEL_BASE + IMAGE));
    println!("64 MiB, three times: {} tables", scaffold.tables());
    // ANCHOR_END: scaffold

    println!("== final");
    // ANCHOR: final
    let kernel = PageTable::new(machine.format(), &machine)?;
    let (text, constants, data) = (IMAGE, IMAGE + 0x2000, IMAGE + 0x4000);
    map(&kernel, KERNEL_BASE + text, text, 2, PageFlags::READ_EXEC)?;
    map(&kernel, KERNEL_BASE + constants, constants, 2, PageFlags::READ)?;
    map(&kernel, KERNEL_BASE + data, data, 2, PageFlags::READ_WRITE)?;
    // The same memory once more through the direct map: what is sealed stays sealed there too.
    map(&kernel, DIRECT_MAP, 0, text >> 12, PageFlags::READ_WRITE)?;
    map(&kernel, DIRECT_MAP + text, text, 4, PageFlags::READ)?;
    map(&kernel, DIRECT_MAP + data, data, 16384 - (data >> 12), PageFlags::READ_WRITE)?;
    machine.leave(cpu, &scaffold);
    machine.enter(cpu, &kernel);
    drop(scaffold); // its tables are free memory again
    // ANCHOR_END: final
    let write = |addr| told(machine.write(cpu, Mode::Kernel, VirtAddr::new(addr), &[0xcc]));
    // ANCHOR: rights
    println!("run the text:                        {}", fetch(KERNEL_BASE + text));
    println!("write into the text:                 {}", write(KERNEL_BASE + text));
    println!("write into it by the direct map:     {}", write(DIRECT_MAP + text));
    println!("write data:                          {}", write(KERNEL_BASE + data));
    println!("run data:                            {}", fetch(KERNEL_BASE + data));
    println!("run a program's page, as the kernel: {}", fetch(DIRECT_MAP + 0x80_0000));
    println!("use a null pointer:                  {}", write(8));
    // ANCHOR_END: rights

    println!("== shared");
    // ANCHOR: shared
    let whole = |base: u64, bytes: u64| PageRange::new(Page::from_number(base >> 12), bytes >> 12);
    kernel.prefill(whole(DIRECT_MAP, 1 << 40).ok_or("too long")?)?; // room to grow: 1 TiB
    let program = PageTable::new_sharing_upper(&kernel)?;
    machine.leave(cpu, &kernel);
    machine.enter(cpu, &program);
    println!("in a program's table, the kernel's text: {}", fetch(KERNEL_BASE + text));
    let late = machine.alloc_page(true)?.start().as_u64();
    map(&kernel, DIRECT_MAP + (1 << 39), late, 1, PageFlags::READ_WRITE)?;
    println!("mapped by the kernel later:              {}", write(DIRECT_MAP + (1 << 39)));
    let missing = map(&kernel, 0xffff_a000_0000_0000, late, 1, PageFlags::READ_WRITE);
    println!("where no top-level entry was made:       {:?}", missing.unwrap_err());
    println!("what the program's table cost: {} frame", program.tables());
    // ANCHOR_END: shared
    machine.leave(cpu, &program);
    Ok(())
}
