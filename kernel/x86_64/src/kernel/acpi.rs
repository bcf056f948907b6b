//! Which processors are there? ACPI's table of interrupt controllers (MADT).
//!
//! Read while the low 4 GiB are still shown as the boot code mapped them: firmware puts its tables
//! where the final map may show nothing. Every byte is fetched through [`BootMemory`], lengths and
//! checksums are checked, and damage means "one processor", never a fault.
//!
//! Our own reader and not the crate `acpi`: one table is asked for, before there is an allocator;
//! the crate wants a handler that maps and unmaps physical memory, and brings an interpreter for
//! the byte code in other tables.
//!
//! Left out: x2APIC entries (more than 255 processors), interrupt source overrides, the I/O APIC.

use pagoda_addr::PhysAddr;
use pagoda_bootmap::{BootMemory, find_rsdp, is_rsdp};

use super::boot_info::{self, Loaded};
use super::once::Once;

/// Processors that are used, at most.
pub(crate) const MAX: usize = 64;
/// Bytes that every table begins with.
const HEADER: usize = 36;
/// No table of interest is longer.
const LONGEST: u32 = 64 << 10;

/// What the table says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Processors {
    /// Where the local APICs show their registers.
    pub(crate) lapic: PhysAddr,
    ids: [u8; MAX],
    count: usize,
}

static PROCESSORS: Once<Processors> = Once::new();

/// What was found; none without ACPI.
pub(crate) fn processors() -> Option<&'static Processors> {
    PROCESSORS.get()
}

impl Processors {
    /// The numbers that the processors' APICs go by, the booting one's first.
    pub(crate) fn ids(&self) -> &[u8] {
        self.ids.get(..self.count).unwrap_or_default()
    }

    fn add(&mut self, id: u8) {
        if self.ids().contains(&id) {
            return;
        }
        if let Some(place) = self.ids.get_mut(self.count) {
            *place = id;
            self.count += 1;
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The whole table at `at`, if its length and checksum are right.
fn table(at: u64) -> Option<&'static [u8]> {
    let memory = boot_info::memory();
    let header = memory.bytes(PhysAddr::new(at), HEADER as u64)?;
    let length = u32_at(header, 4).filter(|length| (HEADER as u32..=LONGEST).contains(length))?;
    let whole = memory.bytes(PhysAddr::new(at), length.into())?;
    (whole.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0).then_some(whole)
}

/// The table with this signature, by way of the root pointer and the list that it names.
fn find(loaded: &Loaded, signature: &[u8; 4]) -> Option<&'static [u8]> {
    let memory = boot_info::memory();
    let root = loaded.rsdp().filter(|at| is_rsdp(memory, *at)).or_else(|| find_rsdp(memory))?;
    let start = memory.bytes(root, 20)?;
    let long = start.get(15).is_some_and(|revision| *revision >= 2);
    let (list, width) = if long {
        (u64_at(memory.bytes(root, 36)?, 24)?, 8)
    } else {
        (u32_at(start, 16)?.into(), 4)
    };
    let entries = table(list)?.get(HEADER..)?.chunks_exact(width);
    let mut addresses = entries.filter_map(|entry| match width {
        8 => u64_at(entry, 0),
        _ => u32_at(entry, 0).map(u64::from),
    });
    addresses.find_map(|at| table(at).filter(|table| table.starts_with(signature)))
}

/// Reads the table. `boot` is the number of the APIC of the executing CPU.
pub(crate) fn read(loaded: &Loaded, boot: u8) {
    if let Some(found) = find(loaded, b"APIC").and_then(|madt| parse(madt, boot)) {
        // Read once: a second answer would be the same.
        let _ = PROCESSORS.set(found);
    }
}

fn parse(madt: &[u8], boot: u8) -> Option<Processors> {
    const PROCESSOR: u8 = 0;
    const LAPIC_ADDRESS: u8 = 5;
    const ENABLED: u32 = 1;
    let lapic = PhysAddr::new(u32_at(madt, HEADER)?.into());
    let mut found = Processors { lapic, ids: [0; MAX], count: 0 };
    found.add(boot);
    let mut rest = madt.get(HEADER + 8..)?;
    while let [kind, length, ..] = *rest {
        let Some((entry, after)) = rest.split_at_checked(usize::from(length)) else { break };
        if length < 2 {
            break;
        }
        match kind {
            PROCESSOR if u32_at(entry, 4).is_some_and(|flags| flags & ENABLED != 0) => {
                // 255 addresses all processors at once: not a number of one of them.
                if let Some(&id) = entry.get(3).filter(|id| **id != 255) {
                    found.add(id);
                }
            }
            LAPIC_ADDRESS => found.lapic = PhysAddr::new(u64_at(entry, 4)?),
            _ => {}
        }
        rest = after;
    }
    Some(found)
}
