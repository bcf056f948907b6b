//! Faults as a feature: memory that exists when it is touched, copies that are made when somebody
//! writes, files that are memory; over a simulated machine.
//!
//! `cargo run -p pagoda-vm --example faults`; the guide's chapter on faults shows its parts.
#![allow(unsafe_code)] // the platform implements unsafe traits

include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/tests/platform.rs"));

use std::error::Error;
use std::sync::Arc;

use pagoda_addr::VirtAddr;
use pagoda_emu::Mode;
use pagoda_paging::{PageTable, X86_64};
use pagoda_vm::{
    Access, AddressSpace, Backing, FaultError, FileObject, Layout, MapFlags, MapRequest, Place,
    Policy, Prot, ReadError,
};

type Space<'a> = AddressSpace<X86_64, &'a Host>;

// ANCHOR: store
/// A program's store instruction, and the kernel behind it: try, fault, try again.
fn store(host: &Host, cpu: usize, space: &Space<'_>, addr: VirtAddr) -> Result<u32, FaultError> {
    let mut faults = 0;
    while host.0.write(host.0.cpu(cpu), Mode::User, addr, &[7]).is_err() {
        space.fault(addr, Access::Write)?; // an error is a signal for the program
        faults += 1;
    }
    Ok(faults)
}
// ANCHOR_END: store

// ANCHOR: file
/// A file of 5000 bytes.
struct Poem;

impl FileObject for Poem {
    fn size(&self) -> u64 {
        5000
    }
    fn read_page(&self, index: u64, into: &mut [u8; 4096]) -> Result<(), ReadError> {
        into.fill(b'a' + index as u8); // called by the first touch of the page
        Ok(())
    }
}
// ANCHOR_END: file

fn main() -> Result<(), Box<dyn Error>> {
    let host = Host(Machine::new(Default::default()), true, Commit::new(1 << 26));
    let table = || PageTable::new(host.0.format(), &host);
    let rw = Prot::READ | Prot::WRITE;
    let space = AddressSpace::new(table()?, Layout::x86_64(8 << 20));
    host.0.enter(host.0.cpu(0), space.table());

    println!("== touch");
    // ANCHOR: touch
    let addr = space.map(MapRequest::anonymous(Place::Anywhere, 64 << 30, rw))?;
    let page = |n: u64| addr.checked_add(n << 12).ok_or("too high");
    println!("mapped:         {} frames", host.0.arena().used());
    space.fault(addr, Access::Read)?;
    println!("one page read:  {} frames", host.0.arena().used());
    let (first, second) = (store(&host, 0, &space, addr)?, store(&host, 0, &space, addr)?);
    println!("faults of the first store: {first}, of the second: {second}");
    println!("written:        {} frames", host.0.arena().used());
    // ANCHOR_END: touch

    println!("== ahead");
    // ANCHOR: ahead
    let walk = |policy, from: u64| -> Result<u32, Box<dyn Error>> {
        space.set_policy(policy);
        let faults = (from..from + 256).map(|n| Ok(store(&host, 0, &space, page(n)?)?));
        faults.sum::<Result<u32, Box<dyn Error>>>()
    };
    println!("256 pages one after the other, a page each: {} faults", walk(Policy::LINUX, 1000)?);
    println!(
        "the same with runs of up to 32 pages:       {} faults",
        walk(Policy::ADAPTIVE, 2000)?
    );
    // ANCHOR_END: ahead

    println!("== signals");
    // ANCHOR: signals
    let read_only = space.map(MapRequest::anonymous(Place::Anywhere, 4096, Prot::READ))?;
    for (what, addr) in [("a null pointer", VirtAddr::new(0)), ("read-only memory", read_only)] {
        println!("write to {what}: {}", store(&host, 0, &space, addr).unwrap_err());
    }
    // ANCHOR_END: signals

    println!("== fork");
    // ANCHOR: fork
    let before = host.0.arena().used();
    let child = space.fork(table()?)?;
    host.0.enter(host.0.cpu(1), child.table());
    let cost = host.0.arena().used() - before;
    println!("the child's memory: {cost} frames, {} of them tables", child.table().tables());
    let shared = host.0.arena().used();
    store(&host, 1, &child, addr)?;
    println!("the child wrote:    {} frame more", host.0.arena().used() - shared);
    store(&host, 0, &space, addr)?;
    println!("the parent too:     {} frame more, still", host.0.arena().used() - shared);
    // ANCHOR_END: fork
    host.0.leave(host.0.cpu(1), child.table());
    drop(child);

    println!("== stack");
    // ANCHOR: stack
    let top = VirtAddr::new(0x7fff_ffff_e000);
    let first = Place::Fixed(VirtAddr::new(top.as_u64() - 4096));
    let stack = MapRequest::anonymous(first, 4096, rw);
    space.map(MapRequest { flags: MapFlags::GROWS_DOWN, ..stack })?;
    let below = |bytes: u64| VirtAddr::new(top.as_u64() - bytes);
    store(&host, 0, &space, below(1 << 20))?;
    println!("1 MiB below the top:  it has grown");
    println!("9 MiB below the top:  {}", store(&host, 0, &space, below(9 << 20)).unwrap_err());
    // ANCHOR_END: stack

    println!("== file");
    // ANCHOR: map_file
    let backing = Backing::File { object: Arc::new(Poem), offset: 0 };
    let request = MapRequest { backing, ..MapRequest::anonymous(Place::Anywhere, 3 << 12, rw) };
    let poem = space.map(request)?;
    let read = |at: u64| -> Result<u8, FaultError> {
        let addr = VirtAddr::new(poem.as_u64() + at);
        let mut byte = [0];
        while host.0.read(host.0.cpu(0), Mode::User, addr, &mut byte).is_err() {
            space.fault(addr, Access::Read)?;
        }
        Ok(byte[0])
    };
    println!("byte 0: {}, byte 4096: {}", read(0)? as char, read(4096)? as char);
    println!("byte 5000, behind the end but in its last page: {}", read(5000)?);
    println!("byte 8192: {}", read(8192).unwrap_err());
    // ANCHOR_END: map_file

    println!("== out");
    // ANCHOR: out
    let refused = (0..).find_map(|n| store(&host, 0, &space, page(10_000 + n).ok()?).err());
    println!("{:?}: the kernel ends the program and goes on", refused.ok_or("endless")?);
    host.0.leave(host.0.cpu(0), space.table());
    drop(space);
    println!("{} frames used", host.0.arena().used());
    // ANCHOR_END: out
    Ok(())
}
