//! Storey 1: what the loader left, read once through `pagoda-bootmap`, and the map made of it.
//!
//! The loader's bytes are read through the direct map of the low 4 GiB that `boot.s` made, which
//! the final direct map continues, so that what is read here stays readable as long as it lies in
//! RAM that nobody is given.
#![allow(unsafe_code)] // reads physical memory

use core::fmt;

use pagoda_addr::{PhysAddr, PhysRange};
use pagoda_bootmap::{BootInfo, BootInfoError, BootMemory, MapError, MemoryMap, Protocol};
use pagoda_bootmap::{Region, RegionKind, Untaken};
use pagoda_sync::{SpinMutex, SpinMutexGuard};

use super::layout::{self, DIRECT_MAP, DIRECT_MAP_BYTES};
use super::{boot, cpu};

/// As much as `boot.s` maps.
const READABLE: PhysRange = PhysRange::clamped(PhysAddr::ZERO, 4 << 30);
/// Regions that fit into the map: machines with hundreds of entries have been seen, not thousands.
const REGIONS: usize = 1024;
/// The page at which further CPUs will start.
pub(crate) const TRAMPOLINE: PhysRange = PhysRange::clamped(PhysAddr::new(0x8000), 4096);
/// What Multiboot 2 leaves in `eax`.
const MULTIBOOT2_MAGIC: u32 = 0x36d7_6289;

/// The low 4 GiB, without the kernel's own image.
pub(crate) struct LoaderMemory;

static LOADER_MEMORY: LoaderMemory = LoaderMemory;
static REGION_STORAGE: SpinMutex<[Region; REGIONS]> = SpinMutex::new([Region::EMPTY; REGIONS]);

/// The low 4 GiB, as long as `boot.s`'s tables are in use.
pub(crate) fn memory() -> &'static LoaderMemory {
    &LOADER_MEMORY
}

// ANCHOR: loader_memory
impl BootMemory for LoaderMemory {
    fn bytes(&self, start: PhysAddr, len: u64) -> Option<&[u8]> {
        let range = PhysRange::checked(start, len)?;
        if !READABLE.contains_range(range) || range.overlaps(layout::image()) {
            return None;
        }
        let first = (DIRECT_MAP + start.as_u64()) as *const u8;
        // SAFETY: the low 4 GiB are mapped from DIRECT_MAP up. What is not RAM there reads as some
        // bytes. The loader is done writing, the kernel's own statics are excluded, and no memory
        // is given to anybody before the map is built, which takes out what is referred to.
        Some(unsafe { core::slice::from_raw_parts(first, usize::try_from(len).ok()?) })
    }
}
// ANCHOR_END: loader_memory

/// What the loader said, for good.
pub(crate) type Loaded = BootInfo<'static, LoaderMemory>;

/// Why there is no memory map.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BootError {
    /// The loader's information is damaged.
    Info(BootInfoError),
    /// The map would hand out what somebody sits in.
    Untaken(Untaken),
    /// The map does not fit.
    Map(MapError),
    /// Called twice.
    Twice,
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Info(error) => error.fmt(f),
            Self::Map(error) => error.fmt(f),
            Self::Untaken(error) => error.fmt(f),
            Self::Twice => f.write_str("the memory map is built only once"),
        }
    }
}

/// Reads what the loader left, by the protocol that `magic` names.
pub(crate) fn read(magic: u32, info: PhysAddr) -> Result<Loaded, BootError> {
    let memory = &LOADER_MEMORY;
    match magic {
        boot::PVH_MAGIC => BootInfo::from_pvh(info, memory),
        MULTIBOOT2_MAGIC => BootInfo::from_multiboot2(magic, info, memory),
        _ => BootInfo::from_multiboot1(magic, info, memory),
    }
    .map_err(BootError::Info)
}

/// Builds the map: the firmware's entries less what anybody sits in, and less what the CPU or the
/// direct map cannot reach.
pub(crate) fn build_map(loaded: &Loaded) -> Result<MemoryMap<'static>, BootError> {
    let storage = REGION_STORAGE.try_lock().ok_or(BootError::Twice)?;
    let storage = SpinMutexGuard::leak(storage);
    // ANCHOR: build_map
    let own = [(layout::image(), RegionKind::Kernel), (TRAMPOLINE, RegionKind::Trampoline)];
    let mut map = loaded.memory_map(own, storage).map_err(BootError::Map)?;
    let reach = cpu::features().map_or(36, |features| features.phys_bits).min(52);
    let limit = DIRECT_MAP_BYTES.min(1 << reach);
    map.clip(PhysAddr::new(limit)).map_err(BootError::Map)?;
    // Asked in another way than it was made: does anybody sit in what would be handed out?
    map.check_taken(loaded.taken().chain(own)).map_err(BootError::Untaken)?;
    // ANCHOR_END: build_map
    Ok(map)
}

/// The protocol's name.
pub(crate) fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Multiboot1 => "Multiboot 1",
        Protocol::Multiboot2 => "Multiboot 2",
        Protocol::Pvh => "PVH",
    }
}
