//! Which memory and which CPUs stand together? ACPI's tables of affinity (SRAT) and of distances
//! (SLIT).
//!
//! A *domain* is a number of the firmware's for what stands together; a *node* is the frame
//! allocator's, counted from 0 in the order of the domains. A machine without the tables, or with one
//! domain, has one node.
//!
//! Read while the loader's memory can be read, kept until the frame allocator is there. What the
//! tables say twice, in pieces that overlap, or beyond what fits here, is left out with a warning:
//! which node a frame belongs to is a matter of speed alone.
//!
//! Left out: memory that may come later (hot-plug ranges), memory that only devices are near to, and
//! entries of the ACPI 6 table of latencies (HMAT). A CPU that does not start shifts the nodes of those
//! after it.

use pagoda_addr::{FrameRange, PhysAddr, PhysRange};
use pagoda_frames::{MAX_NODES, Node, Topology};

use super::acpi::{self, HEADER, u32_at, u64_at};
use super::boot_info::Loaded;
use super::once::Once;

/// Pieces of memory, at most.
const PIECES: usize = 32;
const APIC: u8 = 0;
const MEMORY: u8 = 1;
const X2APIC: u8 = 2;
const ENABLED: u32 = 1;
/// May come later, and is not there yet.
const HOT_PLUG: u32 = 2;

/// What the tables say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    memory: [(FrameRange, Node); PIECES],
    pieces: usize,
    cpus: [Node; acpi::MAX],
    distances: [u8; MAX_NODES * MAX_NODES],
    domains: Domains,
}

/// The firmware's numbers, smallest first; their places are the nodes.
#[derive(Clone, Copy, Debug, Default)]
struct Domains {
    numbers: [u32; MAX_NODES],
    count: usize,
}

static FOUND: Once<Found> = Once::new();

/// What was found; none on a machine with one node.
pub(crate) fn found() -> Option<&'static Found> {
    FOUND.get()
}

impl Found {
    /// The same for the frame allocator.
    pub(crate) fn topology(&self) -> Topology<'_> {
        let nodes = self.domains.count;
        Topology {
            memory: self.memory.get(..self.pieces).unwrap_or_default(),
            cpus: &self.cpus,
            distances: self.distances.get(..nodes * nodes).unwrap_or_default(),
        }
    }

    /// How many areas the frame allocator may need.
    pub(crate) fn areas(&self) -> usize {
        self.pieces + 3
    }
}

impl Domains {
    fn get(&self) -> &[u32] {
        self.numbers.get(..self.count).unwrap_or_default()
    }

    fn node(&self, domain: u32) -> Option<Node> {
        self.get().binary_search(&domain).ok().map(|place| Node(place as u8))
    }

    fn add(&mut self, domain: u32) {
        let Err(place) = self.get().binary_search(&domain) else { return };
        if self.count == MAX_NODES {
            return log::warn!("more than {MAX_NODES} nodes: domain {domain} counts with another");
        }
        self.count += 1;
        self.numbers[place..self.count].rotate_right(1);
        self.numbers[place] = domain;
    }
}

/// An entry of the table of affinity.
enum Affinity {
    Cpu { apic_id: u32, domain: u32 },
    Memory { range: PhysRange, domain: u32 },
}

/// None: not in use, or of no interest, or too short.
fn affinity(entry: &[u8], revision: u8) -> Option<Affinity> {
    let enabled = |at| Some(u32_at(entry, at)? & (ENABLED | HOT_PLUG) == ENABLED);
    match *entry.first()? {
        APIC if enabled(4)? => {
            // Before the second version of the table, a domain was a byte.
            let high = if revision < 2 { 0 } else { u32_at(entry, 8)? & !0xff };
            let domain = high | u32::from(*entry.get(2)?);
            Some(Affinity::Cpu { apic_id: (*entry.get(3)?).into(), domain })
        }
        X2APIC if enabled(12)? => {
            Some(Affinity::Cpu { apic_id: u32_at(entry, 8)?, domain: u32_at(entry, 4)? })
        }
        MEMORY if enabled(28)? => {
            let low = u32_at(entry, 2)?;
            let domain = if revision < 2 { low & 0xff } else { low };
            let range = PhysRange::clamped(PhysAddr::new(u64_at(entry, 8)?), u64_at(entry, 16)?);
            (!range.is_empty()).then_some(Affinity::Memory { range, domain })
        }
        _ => None,
    }
}

/// Reads the tables; [`acpi::read`] was called before.
pub(crate) fn read(loaded: &Loaded) {
    let Some(srat) = acpi::find(loaded, b"SRAT") else { return };
    let slit = acpi::find(loaded, b"SLIT");
    if let Some(found) = parse(srat, slit).filter(|found| found.domains.count > 1) {
        // Once: a second answer would be the same.
        let _ = FOUND.set(found);
    }
}

fn parse(srat: &[u8], slit: Option<&[u8]>) -> Option<Found> {
    let revision = *srat.get(8)?;
    let entries = || {
        let entries = acpi::entries(srat.get(HEADER + 12..).unwrap_or_default());
        entries.filter_map(move |entry| affinity(entry, revision))
    };
    let mut domains = Domains::default();
    // Nodes are where there is memory; a CPU elsewhere counts with the first one.
    for entry in entries() {
        if let Affinity::Memory { domain, .. } = entry {
            domains.add(domain);
        }
    }
    let mut found = Found {
        memory: [(FrameRange::default(), Node(0)); PIECES],
        pieces: 0,
        cpus: [Node(0); acpi::MAX],
        distances: [0; MAX_NODES * MAX_NODES],
        domains,
    };
    let ids = acpi::processors().map_or(&[][..], |processors| processors.ids());
    for entry in entries() {
        match entry {
            Affinity::Memory { range, domain } => found.add(range, domain),
            Affinity::Cpu { apic_id, domain } => {
                let place = ids.iter().position(|id| u32::from(*id) == apic_id);
                if let Some(slot) = place.and_then(|place| found.cpus.get_mut(place)) {
                    *slot = domains.node(domain).unwrap_or_default();
                }
            }
        }
    }
    found.set_distances(slit);
    Some(found)
}

impl Found {
    /// Puts a piece of memory in its place.
    fn add(&mut self, range: PhysRange, domain: u32) {
        let (frames, Some(node)) = (range.blocks_inside(), self.domains.node(domain)) else {
            return;
        };
        let known = self.memory.get(..self.pieces).unwrap_or_default();
        let place = known.partition_point(|(other, _)| other.start() < frames.start());
        let disjoint = |(other, _): &(FrameRange, Node)| {
            other.end_number() <= frames.start().number()
                || frames.end_number() <= other.start().number()
        };
        if self.pieces == PIECES || !known.iter().all(disjoint) {
            return log::warn!("nodes: {range:?} of domain {domain} is left out");
        }
        self.pieces += 1;
        self.memory[place..self.pieces].rotate_right(1);
        self.memory[place] = (frames, node);
    }

    /// Copies the rows and columns of the domains that are nodes. Without a table, or with one that
    /// is too short: 10 at home, 20 elsewhere, as the specification has it.
    fn set_distances(&mut self, slit: Option<&[u8]>) {
        let rows = slit.and_then(|slit| u64_at(slit, HEADER)).unwrap_or(0) as usize;
        let matrix = slit.and_then(|slit| slit.get(HEADER + 8..)).unwrap_or_default();
        let nodes = self.domains.count;
        for from in 0..nodes {
            for to in 0..nodes {
                let [row, column] = [from, to].map(|node| self.domains.numbers[node] as usize);
                let said = (row < rows && column < rows)
                    .then(|| matrix.get(row.checked_mul(rows)?.checked_add(column)?))
                    .flatten();
                self.distances[from * nodes + to] =
                    said.copied().unwrap_or(if from == to { 10 } else { 20 });
            }
        }
    }
}
