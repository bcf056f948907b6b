//! Which memory and which CPUs stand together.
//!
//! A *node* is some memory and the CPUs to which it is near. The host tells once, before the
//! allocator is shared ([`FrameAllocator::with_topology`]), from what its firmware says (ACPI's SRAT
//! and SLIT): ranges, the node of each CPU, and a table of distances. A request is served from the
//! node that it names or else from that of its CPU, then from the others by distance; within a node
//! zone by zone from the top. Magazines keep frames of their CPU's node alone: frames of others that
//! are freed there go back to the core.
//!
//! An *area* is a stretch of one node's memory in one zone. Its borders are those of 2 MiB chunks: a
//! chunk that two nodes share counts with the lower one, since where a frame is taken is a matter of
//! speed alone.
//!
//! Left out: the pool of zeroed frames does not know nodes; a CPU does not change its node.

use lock_api::RawMutex;
use pagoda_addr::{FrameRange, PhysMap};
use pagoda_sync::Cpus;

use crate::places::{CHUNK_SHIFT, Directory};
use crate::search::Window;
use crate::{FrameAllocator, SetupError, Zone, ZoneStats};

/// A node's number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Node(pub u8);

/// Nodes are numbered below this.
pub const MAX_NODES: usize = 16;

/// The nodes of a machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Topology<'a> {
    /// The memory of each node, sorted and disjoint. What lies in none belongs to the node below it,
    /// or to node 0.
    pub memory: &'a [(FrameRange, Node)],
    /// The node of each CPU, by index. Those that are missing belong to node 0.
    pub cpus: &'a [Node],
    /// How far it is from each node to each: rows one after the other, as in a SLIT. Empty: every
    /// other node is as far as any.
    pub distances: &'a [u8],
}

/// A stretch of one node's memory in one zone; storage for [`FrameAllocator::with_topology`].
#[derive(Clone, Copy, Debug)]
pub struct Area {
    pub(crate) node: Node,
    pub(crate) zone: Zone,
    pub(crate) window: Window,
    /// Its frames' numbers begin here,
    pub(crate) start: u64,
    /// and end before this.
    pub(crate) end: u64,
}

impl Area {
    /// A place to be filled.
    pub const EMPTY: Self =
        Self { node: Node(0), zone: Zone::Dma, window: Window::EMPTY, start: 0, end: 0 };
}

/// What the allocator knows of nodes. Without a topology there is one, and no areas: the zones are.
pub(crate) struct Nodes<'m> {
    /// Sorted by address; none if there is one node.
    areas: &'m [Area],
    /// For each node all others, the closest first.
    orders: [[Node; MAX_NODES]; MAX_NODES],
    count: usize,
}

impl<'m> Nodes<'m> {
    pub(crate) const ONE: Self =
        Self { areas: &[], orders: [[Node(0); MAX_NODES]; MAX_NODES], count: 1 };

    #[inline]
    pub(crate) fn is_one(&self) -> bool {
        self.areas.is_empty()
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The node of a frame.
    pub(crate) fn of(&self, frame: u64) -> Node {
        let after = self.areas.partition_point(|area| area.start <= frame);
        self.areas.get(after.saturating_sub(1)).map_or(Node(0), |area| area.node)
    }

    /// Calls `look` for area by area as seen from `node`, until it finds something.
    #[inline]
    pub(crate) fn in_order<T>(
        &self,
        zones: &[Window; Zone::ALL.len()],
        node: Node,
        mut look: impl FnMut(Area) -> Option<T>,
    ) -> Option<T> {
        if self.is_one() {
            let zones = Zone::ALL.iter().zip(zones).rev().filter(|(_, window)| !window.is_empty());
            let mut areas = zones.map(|(&zone, &window)| Area { zone, window, ..Area::EMPTY });
            return areas.find_map(look);
        }
        let order = self.orders.get(usize::from(node.0)).unwrap_or(&self.orders[0]);
        order.iter().take(self.count).find_map(|&node| {
            Zone::ALL.iter().rev().find_map(|&zone| {
                let areas = self.areas.iter();
                let mut areas = areas.filter(|area| area.node == node && area.zone == zone);
                areas.find_map(|area| look(*area))
            })
        })
    }

    /// The areas of a node in a zone; without nodes, the zone, given its window.
    pub(crate) fn areas(
        &self,
        node: Node,
        zone: Zone,
        window: Window,
    ) -> impl Iterator<Item = Area> {
        let start = if zone == Zone::Dma { 0 } else { Zone::ALL[zone as usize - 1].end() };
        let whole = Area { node: Node(0), zone, window, start, end: zone.end() };
        let whole = self.is_one().then_some(whole);
        let areas = self.areas.iter().copied().chain(whole);
        areas.filter(move |area| area.node == node && area.zone == zone)
    }

    fn new(
        topology: &Topology<'_>,
        directory: Directory<'m>,
        storage: &'m mut [Area],
    ) -> Result<Self, SetupError> {
        let named = topology.memory.iter().map(|(_, node)| node).chain(topology.cpus);
        let highest = named.copied().max().unwrap_or_default();
        let count = usize::from(highest.0) + 1;
        if count > MAX_NODES {
            return Err(SetupError::NoSuchNode(highest));
        }
        let row = topology.distances.len().isqrt();
        if row * row != topology.distances.len() || row > 0 && row < count {
            return Err(SetupError::Distances);
        }
        let distance = |from: usize, to: usize| match topology.distances.get(from * row + to) {
            Some(&distance) if row > 0 => distance,
            _ => u8::from(from != to),
        };
        let mut orders = Self::ONE.orders;
        for (from, order) in orders.iter_mut().enumerate().take(count) {
            let mut rest: [usize; MAX_NODES] = core::array::from_fn(|node| node);
            let rest = rest.get_mut(..count).unwrap_or_default();
            // Itself first, whatever the table says; the same distance: upwards from here.
            let after = |to: usize| (to + count - from) % count;
            rest.sort_unstable_by_key(|&to| (to != from, distance(from, to), after(to)));
            order.iter_mut().zip(rest).for_each(|(slot, node)| *slot = Node(*node as u8));
        }
        let areas = Self::cut(topology, directory, storage)?;
        Ok(Self { areas, orders, count })
    }

    /// Writes the areas, lowest first.
    fn cut(
        topology: &Topology<'_>,
        directory: Directory<'m>,
        storage: &'m mut [Area],
    ) -> Result<&'m [Area], SetupError> {
        let mut end = 0;
        for (range, _) in topology.memory {
            if range.start().number() < end {
                return Err(SetupError::Unsorted(*range));
            }
            end = range.end_number();
        }
        // Where a node or a zone begins; what is below the first one belongs to node 0.
        let begins = |place: usize| -> u64 {
            let chunk = |frame: u64| frame.div_ceil(1 << CHUNK_SHIFT) << CHUNK_SHIFT;
            topology.memory.get(place).map_or(u64::MAX, |(range, _)| chunk(range.start().number()))
        };
        let (mut start, mut node, mut place, mut needed) = (0, Node(0), 0, 0);
        let total = directory.index_from(u64::MAX);
        loop {
            while begins(place) <= start && place < topology.memory.len() {
                node = topology.memory[place].1;
                place += 1;
            }
            // More of the same.
            while topology.memory.get(place).is_some_and(|(_, next)| *next == node) {
                place += 1;
            }
            let zone =
                Zone::ALL.into_iter().find(|zone| start < zone.end()).unwrap_or(Zone::Normal);
            let end = begins(place).min(zone.end());
            let (first, after) = (directory.index_from(start), directory.index_from(end));
            if after > first {
                if let Some(slot) = storage.get_mut(needed) {
                    *slot = Area { node, zone, window: Window::new(first, after), start, end };
                }
                needed += 1;
            }
            if after >= total || end == u64::MAX {
                break;
            }
            start = end;
        }
        if needed > storage.len() {
            return Err(SetupError::Areas(needed));
        }
        let (areas, _) = storage.split_at_mut(needed);
        Ok(areas)
    }
}

impl<'m, C: Cpus, M: PhysMap, R: RawMutex> FrameAllocator<'m, C, M, R> {
    /// The same allocator on a machine with several nodes. `areas` is storage: as many as the ranges
    /// of `topology.memory`, and three, are enough.
    ///
    /// # Errors
    /// [`SetupError::Unsorted`], [`SetupError::NoSuchNode`], [`SetupError::Distances`], or
    /// [`SetupError::Areas`] with the number that is needed.
    pub fn with_topology(
        mut self,
        topology: &Topology<'_>,
        areas: &'m mut [Area],
    ) -> Result<Self, SetupError> {
        let nodes = Nodes::new(topology, self.table.directory(), areas)?;
        self.caches.set_nodes(nodes);
        for (stock, node) in self.caches.stocks.iter().zip(topology.cpus) {
            stock.set_node(*node);
        }
        Ok(self)
    }

    /// The nodes.
    pub fn nodes(&self) -> impl Iterator<Item = Node> + use<C, M, R> {
        (0..self.caches.nodes.count()).map(|node| Node(node as u8))
    }

    /// The node to which a frame belongs.
    pub fn node_of(&self, frame: pagoda_addr::Frame) -> Node {
        self.caches.nodes.of(frame.number())
    }

    /// The frames of a node. O(chunks).
    pub fn node_stats(&self, node: Node) -> ZoneStats {
        let mut sum = ZoneStats::default();
        for zone in Zone::ALL {
            self.areas_of(node, zone).for_each(|area| {
                let part = self.area_stats(&area);
                sum.total += part.total;
                sum.free += part.free;
            });
        }
        sum
    }
}
