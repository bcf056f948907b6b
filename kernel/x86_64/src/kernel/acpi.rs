//! Which processors and interrupt controllers are there? ACPI's table of them (MADT), and from the
//! fixed table (FADT) where a timer counts.
//!
//! What stands near to what is another table's matter ([`nodes`](super::nodes)).
//!
//! Read while the low 4 GiB are still shown as the boot code mapped them: firmware puts its tables
//! where the final map may show nothing. Every byte is fetched through [`BootMemory`], lengths and
//! checksums are checked, and damage means "one processor", never a fault.
//!
//! Our own reader and not the crate `acpi`: four tables are asked for, before there is an allocator;
//! the crate wants a handler that maps and unmaps physical memory, and brings an interpreter for
//! the byte code in other tables.
//!
//! Left out: more than 64 processors, and x2APIC entries, where NMIs come in, a timer that is not
//! read by an I/O port.

use pagoda_addr::PhysAddr;
use pagoda_bootmap::{BootMemory, find_rsdp, is_rsdp};

use super::boot_info::{self, Loaded};
use super::once::Once;

/// Processors that are used, at most.
pub(crate) const MAX: usize = 64;
/// Bytes that every table begins with.
pub(super) const HEADER: usize = 36;
// Entries of the table of interrupt controllers.
const PROCESSOR: u8 = 0;
const IO_APIC: u8 = 1;
const LINE_MOVED: u8 = 2;
const LAPIC_ADDRESS: u8 = 5;
/// No table of interest is longer.
const LONGEST: u32 = 64 << 10;

/// A shared interrupt controller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IoApic {
    /// Where it shows its registers.
    pub(crate) registers: PhysAddr,
    /// The number of its first input among all controllers' inputs.
    pub(crate) first_input: u32,
}

/// Where one of the 16 lines of old comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Input {
    /// Its number among all controllers' inputs.
    pub(crate) number: u32,
    pub(crate) active_low: bool,
    pub(crate) level: bool,
}

/// What the tables say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Processors {
    /// Where the local APICs show their registers.
    pub(crate) lapic: PhysAddr,
    /// The shared controller that has the 16 lines of old.
    pub(crate) io_apic: Option<IoApic>,
    /// Where those lines come in.
    pub(crate) lines: [Input; 16],
    ids: [u8; MAX],
    count: usize,
}

static PROCESSORS: Once<Processors> = Once::new();
static PM_TIMER: Once<u16> = Once::new();

/// What was found; none without ACPI.
pub(crate) fn processors() -> Option<&'static Processors> {
    PROCESSORS.get()
}

/// The I/O port of the power management timer, if there is one.
pub(crate) fn pm_timer() -> Option<u16> {
    PM_TIMER.get().copied()
}

impl Processors {
    fn new(lapic: PhysAddr) -> Self {
        let line = |number| Input { number, active_low: false, level: false };
        let lines = core::array::from_fn(|number| line(number as u32));
        Self { lapic, io_apic: None, lines, ids: [0; MAX], count: 0 }
    }

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

    /// One entry of the table: the first byte says what it is, the second how long.
    fn entry(&mut self, entry: &[u8]) -> Option<()> {
        const ENABLED: u32 = 1;
        match *entry.first()? {
            PROCESSOR if u32_at(entry, 4)? & ENABLED != 0 => {
                // 255 addresses all processors at once: not a number of one of them.
                self.add(*entry.get(3).filter(|id| **id != 255)?);
            }
            IO_APIC => {
                let registers = PhysAddr::new(u32_at(entry, 4)?.into());
                let first_input = u32_at(entry, 8)?;
                if self.io_apic.is_none_or(|known| first_input < known.first_input) {
                    self.io_apic = Some(IoApic { registers, first_input });
                }
            }
            LINE_MOVED => {
                let flags = *entry.get(8)?;
                let moved = Input {
                    number: u32_at(entry, 4)?,
                    active_low: flags & 3 == 3,
                    level: flags >> 2 & 3 == 3,
                };
                *self.lines.get_mut(usize::from(*entry.get(3)?))? = moved;
            }
            LAPIC_ADDRESS => self.lapic = PhysAddr::new(u64_at(entry, 4)?),
            _ => {}
        }
        Some(())
    }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
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
pub(super) fn find(loaded: &Loaded, signature: &[u8; 4]) -> Option<&'static [u8]> {
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

/// Reads the tables. `boot` is the number of the APIC of the executing CPU.
pub(crate) fn read(loaded: &Loaded, boot: u8) {
    // Each is read once: a second answer would be the same.
    if let Some(found) = find(loaded, b"APIC").and_then(|madt| parse(madt, boot)) {
        let _ = PROCESSORS.set(found);
    }
    if let Some(port) = find(loaded, b"FACP").and_then(timer_port) {
        let _ = PM_TIMER.set(port);
    }
}

/// The timer's port: a word of the first version of the table, which later ones still have.
fn timer_port(fadt: &[u8]) -> Option<u16> {
    u16::try_from(u32_at(fadt, 76)?).ok().filter(|port| *port != 0)
}

fn parse(madt: &[u8], boot: u8) -> Option<Processors> {
    let mut found = Processors::new(PhysAddr::new(u32_at(madt, HEADER)?.into()));
    found.add(boot);
    for entry in entries(madt.get(HEADER + 8..)?) {
        // An entry that is too short for what it says it is tells nothing.
        let _ = found.entry(entry);
    }
    Some(found)
}

/// Entries that begin with what they are and how long they are, up to the first impossible one.
pub(super) fn entries(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    core::iter::from_fn(move || {
        let length = usize::from(*rest.get(1)?);
        let (entry, after) = rest.split_at_checked(length).filter(|_| length >= 2)?;
        rest = after;
        Some(entry)
    })
}
