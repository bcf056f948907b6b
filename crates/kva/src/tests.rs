//! On a simulated machine.
#![allow(unsafe_code)] // implements the unsafe trait `KernelPages`

use std::collections::BTreeMap;
use std::vec::Vec;

use pagoda_addr::{Frame, Page, PageRange, PhysAddr, PhysRange, VirtAddr};
use pagoda_emu::{Access, Config, Machine, Mode};
use pagoda_paging::{OutOfFrames, PageSize, PageTable, X86_64};
use proptest::prelude::*;

use crate::{Block, Caching, KernelPages, Kind, Kva, KvaError, Lookup, Side, Stack, Window};

// SAFETY: each frame comes from the arena once.
unsafe impl KernelPages for Machine {
    fn alloc_page(&self, zeroed: bool) -> Result<Frame, OutOfFrames> {
        Machine::alloc_page(self, zeroed)
    }
}

const START: u64 = 0xf_ffff_d000_0000;

fn window(count: u64) -> PageRange {
    PageRange::new(Page::from_number(START), count).unwrap()
}

fn with_kva<R>(
    count: u64,
    f: impl FnOnce(&Machine, &Kva<'_, X86_64, &Machine, &Machine>) -> R,
) -> R {
    let machine = Machine::new(Config::default());
    let table = PageTable::new(machine.format(), &machine).unwrap();
    let kva = Kva::new(&table, &machine, window(count)).unwrap();
    for index in 0..4 {
        machine.enter(machine.cpu(index), &table);
    }
    let result = f(&machine, &kva);
    for index in 0..4 {
        machine.leave(machine.cpu(index), &table);
    }
    assert_eq!(table.tables(), 2, "the root and the top-level table stay");
    drop(table);
    assert_eq!(machine.arena().used(), 0);
    result
}

fn write(machine: &Machine, cpu: usize, addr: VirtAddr) -> bool {
    machine.write(machine.cpu(cpu), Mode::Kernel, addr, &[1]).is_ok()
}

#[test]
fn a_stack_overflow_meets_a_guard_that_names_the_stack() {
    with_kva(1 << 18, |machine, kva| {
        let stack = kva.alloc_stack(4).unwrap();
        let other = kva.alloc_stack(1).unwrap();
        assert_eq!(stack.top().as_u64() - stack.bottom().as_u64(), 4 * 4096);
        let last = stack.top().checked_sub(1).unwrap();
        assert!(write(machine, 0, last) && write(machine, 1, stack.bottom()));
        assert!(machine.fetch(machine.cpu(0), Mode::Kernel, last).is_err());
        let below = stack.bottom().checked_sub(8).unwrap();
        assert!(!write(machine, 0, below) && !write(machine, 0, stack.top()));
        for (addr, side) in [(below, Side::Below), (stack.top(), Side::Above)] {
            let Lookup::Guard(guard) = kva.lookup(addr) else { panic!("no guard") };
            assert_eq!((guard.kind, guard.side, guard.body), (Kind::Stack, side, stack.pages()));
        }
        assert_eq!(kva.lookup(last), Lookup::Mapped);
        assert_eq!(kva.lookup(VirtAddr::new(0x1000)), Lookup::Outside);
        kva.free_stack(stack).unwrap();
        assert_eq!(kva.lookup(last), Lookup::Free);
        assert!(!write(machine, 0, last));
        machine.audit();
        kva.free_stack(other).unwrap();
    });
}

#[test]
fn a_handler_that_faults_with_the_table_locked_is_told_so() {
    with_kva(512, |_, kva| {
        let cursor = kva.cursor().unwrap();
        assert_eq!(kva.lookup(Page::from_number(START).start()), Lookup::Busy);
        drop(cursor);
    });
}

#[test]
fn a_device_window_shows_the_device_byte_for_byte_in_large_pages() {
    with_kva(1 << 18, |machine, kva| {
        let memory = PhysRange::checked(PhysAddr::new(0xe000_1804), 0x60_0000).unwrap();
        let window = kva.map_device(memory, Caching::Uncached).unwrap();
        assert_eq!(window.bytes().len(), memory.len());
        for offset in [0, 0x1f_e000, 0x5f_ffff] {
            let addr = window.bytes().start().checked_add(offset).unwrap();
            let phys = machine.translate(machine.cpu(0), Mode::Kernel, Access::Write, addr);
            assert_eq!(phys, Ok(memory.start().checked_add(offset).unwrap()));
        }
        let mut cursor = kva.cursor().unwrap();
        let middle = Page::from_number(window.pages().start().number() + 1024);
        assert_eq!(cursor.query(middle).leaf().unwrap().size, PageSize::M2);
        drop(cursor);
        let Lookup::Guard(guard) = kva.lookup(window.pages().addresses().end()) else {
            panic!("no guard")
        };
        assert_eq!((guard.kind, guard.body), (Kind::Device, window.pages()));
        kva.unmap_device(window).unwrap();
        machine.audit();
        let high = PhysRange::checked(PhysAddr::new(1 << 41), 8).unwrap();
        assert!(matches!(kva.map_device(high, Caching::Cached), Err(KvaError::Map(_))));
    });
}

#[test]
fn whichever_allocation_fails_nothing_is_left_behind() {
    with_kva(1 << 18, |machine, kva| {
        // 3 tables (two of level 1: the area crosses an edge), and the pages.
        let count = 600;
        let before = machine.arena().used();
        // The interpreter would take hours over all of them: it sees the tables and some pages.
        let seen = |fails: &u64| !cfg!(miri) || fails % 150 < 3;
        for fails in (0..count + 3).filter(seen) {
            machine.fail_after(Some(fails));
            assert_eq!(kva.alloc_stack(count), Err(KvaError::OutOfFrames), "{fails}");
            assert_eq!(machine.arena().used(), before);
        }
        machine.fail_after(Some(count + 3));
        let stack = kva.alloc_stack(count).unwrap();
        assert!(machine.arena().failure_pending());
        machine.fail_after(None);
        kva.free_stack(stack).unwrap();
        let memory = PhysRange::checked(PhysAddr::new(0xe000_0000), 0x1000).unwrap();
        for fails in 0..2 {
            machine.fail_after(Some(fails));
            let result = kva.map_device(memory, Caching::WriteCombine);
            assert_eq!(result, Err(KvaError::OutOfFrames));
            assert_eq!(machine.arena().used(), before);
        }
        machine.fail_after(None);
    });
}

#[test]
fn nothing_and_too_much_are_refused() {
    with_kva(16, |_, kva| {
        assert_eq!(kva.alloc_stack(0), Err(KvaError::Size));
        assert_eq!(kva.alloc_stack(u64::MAX), Err(KvaError::Size));
        assert_eq!(kva.alloc_contiguous(1 << 60, true), Err(KvaError::OutOfSpace));
        assert_eq!(kva.alloc_stack(15), Err(KvaError::OutOfSpace));
        let stack = kva.alloc_stack(14).unwrap();
        assert_eq!(kva.alloc_stack(1), Err(KvaError::OutOfSpace));
        kva.free_stack(stack).unwrap();
    });
}

enum Area {
    Stack(Stack),
    Block(Block),
    Device(Window),
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 64 }, ..ProptestConfig::default() })]

    #[test]
    fn areas_never_touch_and_everything_comes_back(
        steps in prop::collection::vec((0..6u8, 1..40u64, any::<prop::sample::Index>()), 1..if cfg!(miri) { 12 } else { 80 })
    ) {
        with_kva(600, |machine, kva| {
            let mut areas: BTreeMap<u64, (PageRange, Area)> = BTreeMap::new();
            let device = PhysRange::checked(PhysAddr::new(0xe000_0000), 0x10_0000).unwrap();
            for (what, count, index) in steps {
                let new = match what {
                    0 | 1 => kva.alloc_stack(count).map(|new| (new.pages(), Area::Stack(new))),
                    2 => kva
                        .alloc_contiguous(count * 4096 - 1, true)
                        .map(|new| (new.pages(), Area::Block(new))),
                    3 => kva
                        .map_device(
                            PhysRange::checked(device.start(), count * 4096).unwrap(),
                            Caching::Uncached,
                        )
                        .map(|new| (new.pages(), Area::Device(new))),
                    _ => {
                        let keys: Vec<u64> = areas.keys().copied().collect();
                        if !keys.is_empty() {
                            let (_, area) = areas.remove(index.get(&keys)).unwrap();
                            match area {
                                Area::Stack(stack) => kva.free_stack(stack).unwrap(),
                                Area::Block(block) => kva.free_contiguous(block).unwrap(),
                                Area::Device(window) => kva.unmap_device(window).unwrap(),
                            }
                        }
                        Err(KvaError::OutOfSpace)
                    }
                };
                if let Ok((pages, area)) = new {
                    prop_assert_eq!(pages.count(), count);
                    for (index, page) in pages.iter().enumerate() {
                        let addr = page.start();
                        machine
                            .translate(machine.cpu(index % 4), Mode::Kernel, Access::Write, addr)
                            .unwrap();
                    }
                    areas.insert(pages.start().number(), (pages, area));
                }
                machine.audit();
                let mut listed = Vec::new();
                kva.each_area(|guard| listed.push(guard.body));
                let model: Vec<PageRange> = areas.values().map(|(pages, _)| *pages).collect();
                prop_assert_eq!(&listed, &model);
                let mut end = START;
                for body in listed {
                    // *area-guarded*: a guard on each side, shared with nobody.
                    prop_assert!(body.start().number() > end);
                    end = body.end_number() + 1;
                }
                prop_assert!(end <= START + 600);
            }
            for (_, area) in areas.into_values() {
                match area {
                    Area::Stack(stack) => kva.free_stack(stack).unwrap(),
                    Area::Block(block) => kva.free_contiguous(block).unwrap(),
                    Area::Device(window) => kva.unmap_device(window).unwrap(),
                }
            }
            Ok(())
        })?;
    }
}
