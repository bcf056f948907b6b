//! The machine, as the portable half knows it.
#![allow(unsafe_code)] // `switch` is unsafe by contract; loads CR3

use core::fmt;
use core::sync::atomic::Ordering;

use pagoda_addr::Frame;
use pagoda_bootmap::{Region, RegionKind};
use pagoda_kernel_core::machine::{
    FrameUse, Machine, MemoryTotals, OutOfMemory, Port, Report, Serve, UserRegs,
};
use pagoda_paging::{PageTable, X86_64};
use pagoda_sync::CpuId;
use x86_64::instructions::interrupts;
use x86_64::registers::control::Cr3;
use x86_64::structures::paging::PhysFrame;

use super::context::Context;
use super::fpu::Fpu;
use super::host::{Kernel, heap, kind};
use super::stacks::Stack;
use super::{
    big_lock, cpu, failures, fpu, lapic, percpu, random, reports, serial, smp, spare_tables,
    stacks, time, user,
};

const FRAME: u64 = pagoda_addr::PAGE_SIZE;

impl Machine for Kernel {
    type Format = X86_64;
    type Stack = Stack;
    type Context = Context;
    type Fpu = Fpu;

    fn new_page_table(&'static self) -> Result<PageTable<X86_64, &'static Self>, OutOfMemory> {
        let kernel = self.table.get().ok_or(OutOfMemory)?;
        PageTable::new_sharing_upper(kernel).map_err(|_| OutOfMemory)
    }

    fn new_stack(&'static self) -> Result<Stack, OutOfMemory> {
        Stack::new()
    }

    fn new_context(
        &'static self,
        stack: &Stack,
        entry: extern "C" fn(usize) -> !,
        argument: usize,
    ) -> Context {
        Context::new(stack, entry, argument)
    }

    fn idle_context(&self) -> Context {
        Context::unused()
    }

    unsafe fn switch(&self, from: *mut Context, to: *const Context) {
        // SAFETY: the caller's promise, handed on.
        unsafe { Context::switch(from, to) }
    }

    fn run_user<S: Serve>(&self, server: &mut S) {
        user::run(server);
    }

    fn interrupted_kernel(&self, regs: &UserRegs) -> bool {
        user::interrupted_kernel(regs)
    }

    fn activate(&self, root: Option<Frame>) {
        let Some(root) = root.or_else(|| Some(self.table.get()?.root())) else { return };
        let (active, flags) = Cr3::read_raw();
        if active.start_address().as_u64() == root.start().as_u64() {
            return;
        }
        let address = x86_64::PhysAddr::new_truncate(root.start().as_u64());
        // SAFETY: a root made by `new_page_table`, which shares the kernel's half, or the kernel's
        // own: everything that the kernel uses stays where it is.
        unsafe { Cr3::write_raw(PhysFrame::containing_address(address), flags) };
    }

    fn new_fpu(&self) -> Result<Fpu, OutOfMemory> {
        Fpu::new()
    }

    fn save_fpu(&self, into: &mut Fpu) {
        into.save();
    }

    fn load_fpu(&self, from: &Fpu) {
        from.load();
    }

    fn fpu_bytes<'f>(&self, fpu: &'f Fpu) -> &'f [u8] {
        fpu.bytes()
    }

    fn set_fpu_bytes(&self, fpu: &mut Fpu, bytes: &[u8]) -> bool {
        fpu.set(bytes)
    }

    fn wait_for_interrupt(&self) {
        percpu::assert_unpinned();
        let area = percpu::this();
        // The boot CPU ticks for everybody. The others are told when there is something to do.
        let ticks = area.cpu() == CpuId::BOOT || !lapic::present();
        if !ticks {
            lapic::stop_ticks();
            heap().drain();
        }
        area.kicked.store(false, Ordering::Relaxed);
        big_lock::release();
        loop {
            // `sti` takes effect after the next instruction: an interrupt that is already waiting
            // ends the `hlt`, so none is lost in between.
            interrupts::enable_and_hlt();
            interrupts::disable();
            if area.kicked.load(Ordering::Relaxed) {
                break;
            }
        }
        big_lock::acquire();
        if !ticks {
            lapic::start_ticks();
        }
    }

    fn cpu(&self) -> CpuId {
        percpu::id()
    }

    fn cpu_count(&self) -> usize {
        percpu::started()
    }

    fn kick(&self, cpu: CpuId) {
        smp::kick(cpu);
    }

    fn may_fail(&self, yes: bool) {
        failures::serve(yes);
    }

    fn fail_nth(&self, nth: u64) -> u64 {
        failures::fail_nth(nth)
    }

    fn run_others(&self, work: extern "C" fn(usize), argument: usize) {
        smp::run_others(work, argument);
    }

    fn join_others(&self) {
        smp::join();
    }

    #[inline]
    fn monotonic_ns(&self) -> u64 {
        time::since_boot_ns()
    }

    fn realtime_ns(&self) -> u64 {
        time::realtime_ns()
    }

    fn serial_write(&self, port: Port, bytes: &[u8]) {
        serial::send(port, bytes);
    }

    fn serial_read(&self, port: Port, into: &mut [u8]) -> usize {
        serial::receive(port, into)
    }

    fn random(&self, into: &mut [u8]) {
        random::fill(into);
    }

    fn memory(&self) -> MemoryTotals {
        let frames = self.frames.get().map(|frames| frames.stats()).unwrap_or_default();
        MemoryTotals {
            total: frames.total * FRAME,
            free: frames.free * FRAME,
            // Spare page tables are kept for later, like what the allocator itself keeps.
            cached: (frames.cached + spare_tables::count() as u64) * FRAME,
            reserve: frames.reserve * FRAME,
            heap: heap().stats().taken as u64,
            page_tables: self.tables_in_use.load(Ordering::Relaxed) * FRAME,
            stacks: stacks::bytes_in_use(),
        }
    }

    fn frame_end(&self) -> u64 {
        self.map.get().map_or(0, |map| map.ram_end().as_u64() / FRAME)
    }

    fn frame_use(&self, number: u64) -> (FrameUse, u32) {
        let nothing = (FrameUse::None, 0);
        let (Some(frame), Some(frames)) = (Frame::new(number), self.frames.get()) else {
            return nothing;
        };
        if self.zero_page.load(Ordering::Relaxed) == number {
            return (FrameUse::Zero, 0);
        }
        let here = |region: &&Region| region.range.contains(frame.start());
        let managed = self.map.get().and_then(|map| map.regions().iter().find(here));
        let Some(region) = managed else { return nothing };
        if region.kind != RegionKind::Usable {
            return (FrameUse::Kernel, 0);
        }
        match frames.table().find(frame) {
            None => (FrameUse::Free, 0),
            Some(block) => {
                let used = match block.kind {
                    kind::HEAP => FrameUse::Heap,
                    kind::PAGE_TABLE => FrameUse::PageTable,
                    kind::PROGRAM => FrameUse::Program,
                    _ => FrameUse::Kernel,
                };
                (used, block.refs)
            }
        }
    }

    fn report(&self, what: Report, out: &mut dyn fmt::Write) -> fmt::Result {
        reports::write(what, out)
    }

    fn hwcap(&self) -> [u64; 2] {
        /// `HWCAP2_FSGSBASE`: programs may use the FS and GS base instructions.
        const FSGSBASE: u64 = 1 << 1;
        match cpu::features() {
            Some(cpu) => [cpu.hwcap.into(), if cpu.fsgsbase { FSGSBASE } else { 0 }],
            None => [0, 0],
        }
    }

    fn fpu_features(&self) -> u64 {
        fpu::features()
    }
}
