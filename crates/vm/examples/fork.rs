//! An address space over the software MMU, forked: who shares what, before and after a write.
#![allow(unsafe_code)] // implements unsafe traits by forwarding to the emulated machine
use pagoda_addr::{Frame, PhysAddr, PhysMap, VirtAddr};
use pagoda_emu::{Machine, Mode};
use pagoda_paging::{FlushRange, OutOfFrames, PageTable, Platform, Released, SpaceTlb, X86_64};
use pagoda_sync::RawSpin;
use pagoda_vm::{Access, AddressSpace, Layout, MapRequest, Place, Prot, VmPlatform};

struct Host(Machine);
#[rustfmt::skip] // SAFETY: forwards to the machine.
unsafe impl PhysMap for Host {
    fn ptr(&self, addr: PhysAddr) -> *mut u8 { self.0.ptr(addr) }
}
#[rustfmt::skip] // SAFETY: forwards to the machine.
unsafe impl Platform for Host {
    type Lock = RawSpin;
    fn alloc_table(&self) -> Result<Frame, OutOfFrames> { self.0.alloc_table() }
    fn release(&self, item: Released) { self.0.release(item) }
    fn flush(&self, space: &SpaceTlb, what: FlushRange<'_>) { self.0.flush(space, what) }
}
#[rustfmt::skip] // SAFETY: the emulated RAM counts references.
unsafe impl VmPlatform for Host {
    type RegionLock = RawSpin;
    type ObjectLock = RawSpin;
    fn alloc_page(&self, zeroed: bool) -> Result<Frame, OutOfFrames> { self.0.alloc_page(zeroed) }
    fn share(&self, frame: Frame) { self.0.share(frame) }
    fn refs(&self, frame: Frame) -> u32 { self.0.refs(frame) }
}

// As an instruction of a program: try, fault, try again.
fn store(host: &Host, cpu: usize, space: &AddressSpace<X86_64, &Host>, addr: VirtAddr, byte: u8) {
    while host.0.write(host.0.cpu(cpu), Mode::User, addr, &[byte]).is_err() {
        space.fault(addr, Access::Write).expect("a mapped page");
    }
}

fn main() {
    let host = Host(Machine::new(pagoda_emu::Config { frames: 256, ..Default::default() }));
    let table = || PageTable::new(host.0.format(), &host).expect("a frame for the root");
    let parent = AddressSpace::new(table(), Layout::x86_64(8 << 20));
    let request = MapRequest::anonymous(Place::Anywhere, 64 << 30, Prot::READ | Prot::WRITE);
    let addr = parent.map(request).expect("a hole");
    host.0.enter(host.0.cpu(0), parent.table());
    (0..8).for_each(|page| store(&host, 0, &parent, addr.checked_add(page << 12).unwrap(), 1));
    let show = |what: &str, space: &AddressSpace<X86_64, &Host>| {
        let (there, frames) = (space.resident(addr), host.0.arena().used());
        println!("{what}: {} pages, {} its own; {frames} frames", there.present, there.sole);
    };
    show("64 GiB mapped, 8 pages touched", &parent);
    let child = parent.fork(table()).expect("memory for the tables");
    show("after the fork the parent has  ", &parent);
    host.0.enter(host.0.cpu(1), child.table());
    store(&host, 1, &child, addr, 2);
    show("the child wrote one; it has    ", &child);
    host.0.leave(host.0.cpu(0), parent.table());
    host.0.leave(host.0.cpu(1), child.table());
    drop((parent, child));
    println!("both are gone: {} frames", host.0.arena().used());
}
