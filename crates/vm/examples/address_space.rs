//! What a program was promised: an address space by hand, and the same grown up, over a simulated
//! machine.
//!
//! `cargo run -p pagoda-vm --example address_space`; the guide's chapter on address spaces shows its
//! parts.
#![allow(unsafe_code)] // the platform implements unsafe traits

include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/tests/platform.rs"));

use std::collections::BTreeMap;
use std::error::Error;

use pagoda_addr::VirtAddr;
use pagoda_paging::{PageTable, X86_64};
use pagoda_vm::{AddressSpace, Layout, Limits, MapRequest, Place, Prot};

// ANCHOR: by_hand
/// What a program was promised: from each start to an end, and may it write there?
struct Promises(BTreeMap<u64, (u64, bool)>);

impl Promises {
    /// The lowest hole of `len` bytes.
    fn map(&mut self, len: u64, write: bool) -> Option<u64> {
        let mut start = 0x1_0000; // page 0 and its neighbours stay unmapped
        for (&from, &(to, _)) in &self.0 {
            if from - start >= len {
                break;
            }
            start = to;
        }
        let end = start.checked_add(len).filter(|end| *end <= 1 << 47)?;
        self.0.insert(start, (end, write));
        Some(start)
    }

    /// What the fault handler asks.
    fn allows(&self, addr: u64, write: bool) -> bool {
        let below = self.0.range(..=addr).next_back();
        below.is_some_and(|(_, &(end, may))| addr < end && (may || !write))
    }
}
// ANCHOR_END: by_hand

type Space<'a> = AddressSpace<X86_64, &'a Host>;

// ANCHOR: show
fn show(what: &str, space: &Space<'_>) {
    println!("{what}");
    let mut next = space.next_region(VirtAddr::new(0));
    while let Some(region) = next {
        println!("    {:?} {:?}", region.range, region.prot);
        next = space.next_region(region.range.end());
    }
}
// ANCHOR_END: show

fn main() -> Result<(), Box<dyn Error>> {
    println!("== by_hand");
    // ANCHOR: use_by_hand
    let mut promises = Promises(BTreeMap::new());
    let text = promises.map(0x3000, false).ok_or("full")?;
    let data = promises.map(0x1000, true).ok_or("full")?;
    println!("text at {text:#x}, data at {data:#x}");
    for (addr, write) in [(text, false), (text, true), (data + 0xfff, true), (data + 0x1000, false)]
    {
        println!("{addr:#x}, write {write:5}: {}", promises.allows(addr, write));
    }
    // ANCHOR_END: use_by_hand

    println!("== map");
    // ANCHOR: map
    let host = Host(Machine::new(Default::default()), true, Commit::new(1 << 26)); // your platform
    let table = || PageTable::new(host.0.format(), &host);
    let space = AddressSpace::new(table()?, Layout::x86_64(8 << 20));
    let rw = Prot::READ | Prot::WRITE;

    let anywhere = |len| MapRequest::anonymous(Place::Anywhere, len, rw);
    let large = space.map(anywhere(64 << 30))?;
    let small = space.map(anywhere(4 << 20))?;
    show("64 GiB, then 4 MiB:", &space);
    println!("frames used: {}", host.0.arena().used());
    // ANCHOR_END: map

    println!("== change");
    // ANCHOR: change
    let at = |from: VirtAddr, pages: u64| from.checked_add(pages << 12).ok_or("too high");
    space.unmap(large, 64 << 30)?;
    space.protect(at(small, 16)?, 16 << 12, Prot::READ)?;
    space.unmap(at(small, 512)?, 1 << 12)?;
    show("part of it read-only, one page unmapped:", &space);
    space.protect(at(small, 16)?, 16 << 12, rw)?;
    let hole = Place::FixedNoReplace(at(small, 512)?);
    space.map(MapRequest::anonymous(hole, 1 << 12, rw))?;
    show("both undone:", &space);
    // ANCHOR_END: change

    println!("== refused");
    // ANCHOR: refused
    let here = Place::FixedNoReplace(at(small, 1)?);
    println!("{:?}", space.map(MapRequest::anonymous(here, 1 << 12, rw)).unwrap_err());
    println!("{:?}", space.map(anywhere(0)).unwrap_err());
    println!("{:?}", space.map(anywhere(u64::MAX)).unwrap_err());
    println!("{:?}", space.unmap(VirtAddr::new(small.as_u64() + 8), 4096).unwrap_err());
    space.set_limits(Limits { address_space: 16 << 20, ..Limits::default() });
    println!("{:?}", space.map(anywhere(13 << 20)).unwrap_err());
    space.set_limits(Limits::default());
    host.0.fail_after(Some(0)); // memory is out from here on
    let middle = space.protect(at(small, 100)?, 1 << 12, Prot::READ);
    host.0.fail_after(None);
    println!("without a frame, a promise can still be changed: {middle:?}");
    // ANCHOR_END: refused

    println!("== end");
    // ANCHOR: end
    drop(space);
    println!("frames used: {}", host.0.arena().used());
    // ANCHOR_END: end
    Ok(())
}
