//! The tower is built: storeys 1 to 3, each on top of the one before, each with a word about what
//! is really there. What is printed here is the first half of the tour.
#![allow(unsafe_code)] // hands physical memory to its managers

use core::alloc::Layout;
use core::fmt;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, Ordering};

use log::info;
use pagoda_addr::{FrameRange, Order, PhysAddr, PhysMap, PhysRange, VirtAddr, VirtRange};
use pagoda_bootmap::{EarlyAllocator, EarlyError, RegionKind};
use pagoda_frames::{Area, FrameAllocator, FrameInfo, Setup, SetupError};
use pagoda_heap::{HeapError, PageTags};
use pagoda_kva::{Kva, KvaError};
use pagoda_paging::{MapError, OutOfFrames, PageTable, X86_64};
use pagoda_sync::CpuId;
use x86_64::registers::control::Cr3;

use super::boot_info::{self, BootError, Loaded};
use super::host::{DirectMap, KERNEL, heap};
use super::kernel_map::{self, KernelTable, Leaves, READ_WRITE};
use super::percpu::KernelCpus;
use super::stacks::Stack;
use super::{console, cpu, heap_options, layout, levels, nodes, percpu, smp};

/// Why the tower could not be built.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BuildError {
    /// What the loader left is no use.
    Boot(BootError),
    /// There is too little memory to begin with.
    Early(EarlyError),
    /// The kernel's page table.
    Map(MapError),
    /// The frame allocator.
    Frames(SetupError),
    /// The kernel heap.
    Heap(HeapError),
    /// The kernel's own ranges.
    Ranges(KvaError),
    /// Something that is built once was there already.
    Twice,
}

impl From<BootError> for BuildError {
    fn from(error: BootError) -> Self {
        Self::Boot(error)
    }
}
impl From<EarlyError> for BuildError {
    fn from(error: EarlyError) -> Self {
        Self::Early(error)
    }
}
impl From<MapError> for BuildError {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}
impl From<OutOfFrames> for BuildError {
    fn from(error: OutOfFrames) -> Self {
        Self::Map(error.into())
    }
}
impl From<HeapError> for BuildError {
    fn from(error: HeapError) -> Self {
        Self::Heap(error)
    }
}
impl From<KvaError> for BuildError {
    fn from(error: KvaError) -> Self {
        Self::Ranges(error)
    }
}
impl From<SetupError> for BuildError {
    fn from(error: SetupError) -> Self {
        Self::Frames(error)
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boot(error) => write!(f, "boot map: {error}"),
            Self::Early(error) => write!(f, "early memory: {error}"),
            Self::Map(error) => write!(f, "kernel page table: {error}"),
            Self::Frames(error) => write!(f, "frame allocator: {error}"),
            Self::Heap(error) => write!(f, "kernel heap: {error}"),
            Self::Ranges(error) => write!(f, "kernel ranges: {error}"),
            Self::Twice => f.write_str("the tower is built only once"),
        }
    }
}

/// Bytes for people.
pub(crate) struct Size(pub(crate) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes < 10 << 20 => write!(f, "{} KiB", bytes >> 10),
            bytes if bytes < 10 << 30 => write!(f, "{} MiB", bytes >> 20),
            bytes => write!(f, "{} GiB", bytes >> 30),
        }
    }
}

/// What is still needed of what the loader left. It lies in RAM that the final map shows; the rest
/// of the loader's memory is not looked at any more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handover {
    /// The kernel's command line, copied.
    pub(crate) command_line: &'static [u8],
    /// The module that calls itself `initramfs`.
    initramfs: Option<PhysRange>,
}

/// Builds storeys 1 to 3 from what the loader left in `eax` and `ebx`.
pub(crate) fn build(magic: u32, info: PhysAddr) -> Result<Handover, BuildError> {
    let loaded = boot_info::read(magic, info)?;
    console::configure(loaded.command_line());
    if let Some(features) = cpu::features() {
        info!("pagoda {} on {features}", env!("CARGO_PKG_VERSION"));
    }
    smp::count(&loaded);
    levels::choose(loaded.command_line());
    storey1(&loaded)?;
    let handover = Handover {
        command_line: keep(loaded.command_line())?,
        initramfs: find_module(&loaded, b"initramfs"),
    };
    storey2_paging()?;
    storey2_frames()?;
    heap_options::obey(handover.command_line);
    storey3()?;
    Ok(handover)
}

/// What RAM is there, and who already sits in it?
fn storey1(loaded: &Loaded) -> Result<(), BuildError> {
    let map = boot_info::build_map(loaded)?;
    let name = str::from_utf8(loaded.loader_name()).ok().filter(|name| !name.is_empty());
    info!("storey 1, boot map: what RAM is there, and who sits in it?");
    info!(
        "    {} says, by {}: {} entries, {} modules",
        name.unwrap_or("the loader"),
        boot_info::protocol_name(loaded.protocol()),
        loaded.memory().count(),
        loaded.modules().count(),
    );
    for region in map.regions() {
        info!("    {region}");
    }
    info!(
        "    {} usable, {} taken, of {} RAM",
        Size(map.usable_bytes()),
        Size(map.bytes(RegionKind::is_taken)),
        Size(map.bytes(RegionKind::is_ram)),
    );
    *KERNEL.early.lock() = Some(EarlyAllocator::new(map));
    Ok(())
}

/// Copies bytes of the loader, which may lie where the final map shows nothing.
fn keep(bytes: &[u8]) -> Result<&'static [u8], BuildError> {
    if bytes.is_empty() {
        return Ok(&[]);
    }
    let room = early_bytes(bytes.len() as u64, 1, Some(PhysAddr::new(4 << 30)))?;
    let (room, _) = room.split_at_mut(bytes.len());
    for (place, byte) in room.iter_mut().zip(bytes) {
        place.write(*byte);
    }
    let copy = core::ptr::from_mut(room) as *const [u8];
    // SAFETY: every byte was just written, and nobody else has this memory.
    Ok(unsafe { &*copy })
}

/// The first module with the word `name` in its command line. A loader that gives no module a
/// command line (QEMU's, by PVH) means the first one.
fn find_module(loaded: &Loaded, name: &[u8]) -> Option<PhysRange> {
    let named = |line: &[u8]| line.split(u8::is_ascii_whitespace).any(|word| word == name);
    let nameless = loaded.modules().all(|module| module.command_line.is_empty());
    Some(loaded.modules().find(|module| nameless || named(module.command_line))?.range)
}

impl Handover {
    /// The bytes of the initramfs; empty when there is none.
    pub(crate) fn initramfs(&self) -> &'static [u8] {
        let Some(range) = self.initramfs else { return &[] };
        let inside = |ram: PhysRange| ram.contains_range(range);
        if !KERNEL.map.get().is_some_and(|map| map.ram().any(inside)) {
            log::warn!("the initramfs at {range:?} does not lie in RAM and is ignored");
            return &[];
        }
        let first = DirectMap.ptr(range.start());
        // SAFETY: RAM, shown by the direct map, taken out of the map for good as a module's:
        // nobody writes it.
        unsafe { core::slice::from_raw_parts(first, range.len() as usize) }
    }
}

/// Asks the early allocator, which exists between storeys 1 and 2.
fn early<T>(
    ask: impl FnOnce(&mut EarlyAllocator<'static>) -> Result<T, EarlyError>,
) -> Result<T, BuildError> {
    match KERNEL.early.lock().as_mut() {
        Some(early) => Ok(ask(early)?),
        None => Err(BuildError::Twice),
    }
}

/// Range `index` of RAM, whoever sits in it. Early allocations do not change these.
fn ram(index: usize) -> Option<PhysRange> {
    KERNEL.early.lock().as_ref()?.map().ram().nth(index)
}

fn ram_end() -> PhysAddr {
    KERNEL.early.lock().as_ref().map_or(PhysAddr::ZERO, |early| early.map().ram_end())
}

/// The table's format on this CPU.
fn format() -> X86_64 {
    match cpu::features() {
        Some(cpu) => X86_64::new(levels::count(), cpu.phys_bits.into(), cpu.nx, cpu.huge_pages),
        None => X86_64::new(4, 36, false, false),
    }
}

/// Which frame is behind this page? The kernel's own table, and the switch to it.
fn storey2_paging() -> Result<(), BuildError> {
    info!("storey 2, paging: which frame is behind this page?");
    let table = PageTable::new(format(), &KERNEL)?;
    let table = KERNEL.table.set(table).map_err(|_| BuildError::Twice)?;
    kernel_map::prefill(table, ram_end())?;
    kernel_map::map_kernel(table)?;
    for range in (0..).map_while(ram) {
        kernel_map::map_ram(table, range)?;
    }
    table.space().join(CpuId::BOOT);
    let (_, flags) = Cr3::read_raw();
    let root = table.root().start().as_u64();
    let root =
        x86_64::structures::paging::PhysFrame::containing_address(x86_64::PhysAddr::new(root));
    // SAFETY: the new table maps the running text, the boot stack, all statics and all RAM at the
    // addresses that they have in the old one. Nothing refers to the identity map.
    unsafe { Cr3::write_raw(root, flags) };
    super::host::flush_all(true);

    info!("    {} levels, {} bits of address", levels::count(), levels::address_bits());
    let mut leaves = Leaves::default();
    for range in (0..).map_while(ram) {
        leaves.count(table, layout::direct(range));
    }
    info!(
        "    direct map at {:#x}: {} pages of 1 GiB, {} of 2 MiB, {} of 4 KiB, none executable",
        layout::DIRECT_MAP,
        leaves.huge,
        leaves.large,
        leaves.small
    );
    info!(
        "    image at {}: text {} read+execute, constants {} read, data {} read+write",
        layout::text().start(),
        Size(layout::text().len()),
        Size(layout::rodata().len()),
        Size(layout::data().len()),
    );
    info!("    a guard page at {} under the boot stack", layout::boot_stack_guard().start());
    info!("    the identity map is gone; the kernel half is the same in every address space");
    Ok(())
}

/// Carves early memory and shows it through the direct map.
fn early_bytes(
    bytes: u64,
    align: u64,
    below: Option<PhysAddr>,
) -> Result<&'static mut [MaybeUninit<u8>], BuildError> {
    let range = early(|early| early.alloc(bytes, align, below))?;
    let first = DirectMap.ptr(range.start()).cast();
    // SAFETY: carved out of usable RAM for this caller alone, for good; the direct map shows it.
    Ok(unsafe { core::slice::from_raw_parts_mut(first, range.len() as usize) })
}

/// Puts memory behind `range` of the kernel's half: in one piece where there is one, else in
/// halves.
fn back(table: &KernelTable, range: VirtRange) -> Result<(), BuildError> {
    if range.is_empty() {
        return Ok(());
    }
    let align = if range.len() >= Order::LARGE.bytes() { Order::LARGE } else { Order::PAGE };
    match early(|early| early.alloc(range.len(), align.bytes(), None)) {
        Ok(frames) => Ok(kernel_map::map(table, range, frames.start(), READ_WRITE)?),
        Err(_) if range.len() > Order::PAGE.bytes() => {
            let middle = VirtAddr::new(range.start().as_u64() + range.len() / 2);
            let unit = if range.len() > Order::LARGE.bytes() { Order::LARGE } else { Order::PAGE };
            let middle = middle.align_down(unit.bytes()).max(range.start());
            let halves =
                (VirtRange::new(range.start(), middle), VirtRange::new(middle, range.end()));
            let (Some(low), Some(high)) = halves else { return Err(BuildError::Twice) };
            back(table, low)?;
            back(table, high)
        }
        Err(error) => Err(error),
    }
}

/// Puts memory behind the frame table where RAM is: in 2 MiB pages where they fit.
fn back_frame_table(table: &KernelTable, ranges: &[FrameRange]) -> Result<u64, BuildError> {
    let mut total = 0;
    for (offset, bytes) in pagoda_frames::backing(ranges) {
        total += bytes;
        let start = VirtAddr::new(layout::FRAME_TABLE + offset);
        let range = VirtRange::clamped(start, bytes);
        let large = Order::LARGE.bytes();
        let inner_start = start.align_up(large).unwrap_or(start);
        let inner_end = range.end().align_down(large);
        if inner_start >= inner_end {
            back(table, range)?;
            continue;
        }
        for (from, to) in [(start, inner_start), (inner_start, inner_end), (inner_end, range.end())]
        {
            back(table, VirtRange::new(from, to).unwrap_or_default())?;
        }
    }
    Ok(total)
}

/// Room for a list of ranges, in early memory.
struct RangeList {
    room: &'static mut [MaybeUninit<FrameRange>],
    used: usize,
}

impl RangeList {
    fn new(places: usize) -> Result<Self, BuildError> {
        let bytes = early_bytes((places * size_of::<FrameRange>()) as u64, 4096, None)?;
        let room = core::ptr::slice_from_raw_parts_mut(bytes.as_mut_ptr().cast(), places);
        // SAFETY: `bytes` is at least as long, page-aligned, and this caller's alone.
        Ok(Self { room: unsafe { &mut *room }, used: 0 })
    }

    fn fill(&mut self, ranges: impl Iterator<Item = PhysRange>) -> Result<(), BuildError> {
        self.used = 0;
        for range in ranges {
            let place = self.room.get_mut(self.used).ok_or(BuildError::Twice)?;
            place.write(range.blocks_inside());
            self.used += 1;
        }
        Ok(())
    }

    fn get(&self) -> &[FrameRange] {
        // SAFETY: the first `used` places were written by `fill`.
        unsafe { core::slice::from_raw_parts(self.room.as_ptr().cast(), self.used) }
    }
}

/// Which 4 KiB of RAM are free?
fn storey2_frames() -> Result<(), BuildError> {
    info!("storey 2, frames: which 4 KiB of RAM are free?");
    let table = KERNEL.table.get().ok_or(BuildError::Twice)?;
    let places = early(|early| Ok(early.map().regions().len()))? + 16;

    let mut ranges = RangeList::new(places)?;
    ranges.fill((0..).map_while(ram))?;
    let table_bytes = back_frame_table(table, ranges.get())?;
    let cpus = percpu::limit();
    // For all RAM, in one piece or in many: what is left when all this is carved needs less.
    let needed = pagoda_frames::required(ranges.get(), cpus)?;
    let slack = (places * 64 + 4096) as u64;
    let storage = early_bytes(needed.size() as u64 + slack, needed.align() as u64, None)?;
    let metadata_bytes = storage.len() as u64;

    let window = heap_window();
    let tags = early_bytes(PageTags::required(window as usize) as u64, 4096, None)?;
    let tags_bytes = tags.len() as u64;
    // SAFETY: the memory is this function's own, and this long.
    unsafe { tags.as_mut_ptr().write_bytes(0, tags.len()) };
    // SAFETY: just filled; a byte is as good as an atomic byte, and nobody else has this memory.
    let tags = unsafe { &*(core::ptr::from_mut(tags) as *const [AtomicU8]) };
    // SAFETY: *tags-first*: the boot CPU, once; the frame allocator is made below.
    unsafe { KERNEL.tags.set(tags) };

    let areas = room_for_areas()?;
    let zero = KERNEL.early_table().map_or(0, |frame| frame.number());
    KERNEL.zero_page.store(zero, Ordering::Relaxed);

    let map = KERNEL.early.lock().take().ok_or(BuildError::Twice)?.finish();
    let map = KERNEL.map.set(map).map_err(|_| BuildError::Twice)?;
    ranges.fill(map.usable())?;
    let total: u64 = ranges.get().iter().map(|range| range.count()).sum();
    let setup = Setup {
        ranges: ranges.get(),
        storage,
        table: NonNull::new(layout::FRAME_TABLE as *mut FrameInfo),
        reserve: (total / 128).clamp(64, 2048),
    };
    // SAFETY: what the map calls usable is RAM that nobody sits in: whoever does was taken out, the
    // early allocations too, and the early allocator is gone. The direct map shows all of it. The
    // frame table is backed for all RAM, a superset of these ranges.
    let frames = unsafe { FrameAllocator::new(setup, KernelCpus, DirectMap) }?;
    let frames = match nodes::found() {
        Some(found) => frames.with_topology(&found.topology(), areas)?,
        None => frames,
    };
    let frames = KERNEL.frames.set(frames).map_err(|_| BuildError::Twice)?;
    let stats = frames.stats();
    KERNEL.total_frames.store(stats.total, Ordering::Relaxed);
    KERNEL.commit.set_total(stats.total);
    info!(
        "    {} frames free ({}), {} of them kept for the kernel",
        stats.free,
        Size(stats.free << 12),
        stats.reserve
    );
    info!(
        "    they cost {} of bitmaps, a frame table of {} at {:#x}, heap tags of {}",
        Size(metadata_bytes),
        Size(table_bytes),
        layout::FRAME_TABLE,
        Size(tags_bytes)
    );
    if nodes::found().is_some() {
        for node in frames.nodes() {
            let stats = frames.node_stats(node);
            info!("    node {}: {} frames, {} of them free", node.0, stats.total, stats.free);
        }
    }
    Ok(())
}

/// Room for what the frame allocator knows of nodes.
fn room_for_areas() -> Result<&'static mut [Area], BuildError> {
    let Some(found) = nodes::found() else { return Ok(&mut []) };
    let (count, align) = (found.areas(), align_of::<Area>() as u64);
    let bytes = early_bytes((count * size_of::<Area>()) as u64, align, None)?;
    let first: *mut Area = bytes.as_mut_ptr().cast();
    for place in 0..count {
        // SAFETY: `bytes` has room for so many, so aligned, and is this caller's alone.
        unsafe { first.add(place).write(Area::EMPTY) };
    }
    // SAFETY: just filled.
    Ok(unsafe { core::slice::from_raw_parts_mut(first, count) })
}

/// From physical address 0 to the end of the memory that the heap may have.
fn heap_window() -> u64 {
    let limit = PhysRange::clamped(PhysAddr::ZERO, layout::HEAP_MEMORY);
    let last = (0..).map_while(ram).filter_map(|range| range.intersection(limit)).last();
    last.map_or(0, |range| range.end().as_u64())
}

/// How does the kernel get 40 bytes, or a guarded stack? Both are taken, shown and given back.
fn storey3() -> Result<(), BuildError> {
    info!(
        "storey 3, heap and kernel ranges: how does the kernel get 40 bytes, or a guarded stack?"
    );
    let layout = Layout::new::<[u64; 5]>();
    let block = heap().kalloc(layout)?;
    let stats = heap().stats();
    info!(
        "    kalloc(40) = {:#x}: {} of {} bytes taken from the frames are live",
        block.as_ptr() as u64,
        stats.live,
        stats.taken
    );
    // SAFETY: just received, used by nobody.
    if let Err(misuse) = unsafe { heap().kfree_sized(block, layout) } {
        log::error!("    {misuse}");
    }
    let table = KERNEL.table.get().ok_or(BuildError::Twice)?;
    let ranges = Kva::new(table, &KERNEL, layout::kva().blocks_touched())?;
    KERNEL.ranges.set(ranges).map_err(|_| BuildError::Twice)?;
    match Stack::new() {
        Ok(stack) => info!(
            "    a thread's stack at {}, {}, a guard page on either side",
            stack.range().start(),
            Size(stack.range().len())
        ),
        Err(_) => log::warn!("    no memory for a stack"),
    }
    Ok(())
}
