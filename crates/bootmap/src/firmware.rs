//! What PC firmware leaves in low memory, whether or not its map says so.

use pagoda_addr::{PhysAddr, PhysRange};

use crate::bytes::{exactly, u16_at, u32_at};
use crate::{BootMemory, RegionKind};

const LOW_MEMORY_END: u64 = 64 << 10;
const WINDOW_START: u64 = 640 << 10;
const ROM_START: u64 = 0xe0000;
const WINDOW_END: u64 = 1 << 20;
/// BIOS data area: the segment of the extended data area.
const EBDA_SEGMENT: u64 = 0x40e;
/// BIOS data area: KiB of memory below the extended data area.
const BASE_MEMORY_KIB: u64 = 0x413;
/// No BIOS lets base memory end below this; a lower claim is not one of a BIOS.
const LOWEST_EBDA: u64 = 128 << 10;

/// The ranges that a PC's firmware sits in: the first 64 KiB, the extended BIOS data area where the
/// BIOS data area tells of one, and 640 KiB to 1 MiB.
pub fn firmware_taken<M: BootMemory + ?Sized>(
    memory: &M,
) -> impl Iterator<Item = (PhysRange, RegionKind)> + Clone + use<M> {
    let between = |start, end| PhysRange::clamped(PhysAddr::new(start), end - start);
    let start = ebda_start(memory).into_iter().chain(base_memory_end(memory)).min();
    let ebda = start.map(|start| (between(start, WINDOW_START), RegionKind::Ebda));
    [
        Some((between(0, LOW_MEMORY_END), RegionKind::LowMemory)),
        ebda,
        Some((between(WINDOW_START, WINDOW_END), RegionKind::LegacyWindow)),
    ]
    .into_iter()
    .flatten()
}

/// A word of the BIOS data area.
fn word<M: BootMemory + ?Sized>(memory: &M, at: u64) -> Option<u64> {
    exactly(memory, PhysAddr::new(at), 2).and_then(|bytes| u16_at(bytes, 0)).map(u64::from)
}

/// Where the extended BIOS data area begins, if there is a BIOS that says so.
fn ebda_start<M: BootMemory + ?Sized>(memory: &M) -> Option<u64> {
    let start = word(memory, EBDA_SEGMENT)? << 4;
    (LOWEST_EBDA..WINDOW_START).contains(&start).then_some(start)
}

/// Where the memory below 640 KiB ends that the BIOS leaves to others, if it is less than all. Some
/// loaders and network ROMs lower this mark and leave the extended area where it is.
fn base_memory_end<M: BootMemory + ?Sized>(memory: &M) -> Option<u64> {
    let marked = word(memory, BASE_MEMORY_KIB)? << 10;
    (LOWEST_EBDA..WINDOW_START).contains(&marked).then_some(marked)
}

/// Looks for ACPI's root pointer where a BIOS puts it: in the first KiB of the extended BIOS data
/// area, then from 0xE0000 to 1 MiB (ACPI specification 6.5, section 5.2.5.1). Only for loaders
/// that do not say where it is, that is, where [`BootInfo::rsdp`](crate::BootInfo::rsdp) is none.
pub fn find_rsdp<M: BootMemory + ?Sized>(memory: &M) -> Option<PhysAddr> {
    let ebda = ebda_start(memory).map_or(0..0, |start| start..start + 1024);
    let places = ebda.step_by(16).chain((ROM_START..WINDOW_END).step_by(16));
    places.map(PhysAddr::new).find(|at| is_rsdp(memory, *at))
}

/// Does an ACPI root pointer stand at `address`, with the right signature and checksums?
pub fn is_rsdp<M: BootMemory + ?Sized>(memory: &M, address: PhysAddr) -> bool {
    let sums_to_zero = |bytes: &[u8]| bytes.iter().fold(0u8, |a, b| a.wrapping_add(*b)) == 0;
    let Some(old) = exactly(memory, address, 20) else {
        return false;
    };
    if !old.starts_with(b"RSD PTR ") || !sums_to_zero(old) {
        return false;
    }
    if old.get(15).is_none_or(|revision| *revision < 2) {
        return true;
    }
    let length = exactly(memory, address, 24).and_then(|bytes| u32_at(bytes, 20)).unwrap_or(0);
    if !(36..=4096).contains(&length) {
        return false;
    }
    let whole = exactly(memory, address, u64::from(length));
    whole.is_some_and(sums_to_zero)
}
