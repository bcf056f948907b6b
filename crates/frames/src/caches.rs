//! Single frames by way of the CPU's own magazine: no lock, no locked instruction, no interrupt flag.
//!
//! # The recycling rule
//!
//! Magazines are fast and scatter: whatever was freed last is used next, and no 2 MiB block ever
//! comes together again. Lowest-address-first heals and is slow. Both at once need one number,
//! shared by all CPUs: *P*, the place up to which the core has been emptied, lowest first. A freed
//! frame below P is what lowest-first would hand out next anyway: it goes on the CPU's stack and is
//! used again at once. A frame above P goes to the basket, and from there, in a batch, back to the
//! bitmap. P is a hint: a stale one costs order for a while, never correctness.
//!
//! ```text
//!   owner --free--> below P? --yes--> stack --full--> depot (batches of 64) --full--> core
//!                      |                ^                |
//!                      no               +----- empty ----+---- else whole words from P upwards
//!                      v                                                              |
//!                   basket ------------------------ full ---------------------------> core
//! ```
//!
//! Unmovable and movable frames have a P, a stack, a basket and a depot each; a bit per chunk says to
//! which a freed frame belongs. A request for the one does not look into the stock of the other, but
//! into the core, which gives chunks of its own or, at last, frames of the other's.
//!
//! "Below" is by the order in which zones are used: distance from the start of the best zone,
//! wrapping around, so that lower zones come after all of it.
//!
//! # Who checks what
//!
//! A frame between core and magazine changes its table entry by compare-and-swap, one between
//! magazine and owner by a plain load and store on the CPU that does it. Two CPUs that free the
//! same frame at the same moment may therefore both believe that they did; the second one to bring
//! the frame back to the core, or to hand it out, finds the entry changed and says so.
//!
//! # Draining
//!
//! Before anything is refused, this CPU's magazine, the depot and the pool of zeroed frames are
//! emptied into the core, and the
//! other CPUs are asked (`wanted`) to do the same at their next allocation or free. The asker waits
//! a little and tries once more; a CPU that runs a program meanwhile answers later. A CPU that goes
//! idle calls [`FrameAllocator::drain_cpu`] first.
//!
//! Locks: the core's, the depot's and the pool's, never one inside another.

use core::sync::atomic::compiler_fence;

use lock_api::RawMutex;
use pagoda_addr::{Frame, FrameRange, PAGE_SHIFT, PhysAddr, PhysMap};
use pagoda_sync::{CachePadded, Cpus, Pinned};

use crate::bitmap::Core;
use crate::failing::Failing;
use crate::magazine::{BATCH, Magazine, Shelf, Stock, Way};
use crate::nodes::{MAX_NODES, Nodes};
use crate::places::Near;
use crate::search::Window;
use crate::shim::{AtomicU32, AtomicU64, Ordering::*};
use crate::{
    AllocError, Class, Corruption, FrameAllocator, Kind, Mobility, Node, OwnedFrames, Request, Zone,
};

/// What all CPUs share besides the core.
pub(crate) struct Caches<'m, R> {
    pub(crate) stocks: &'m [CachePadded<Stock>],
    /// One more than the highest CPU that ever had any stock: most machines have fewer than planned.
    known: AtomicU32,
    depots: [Shelf<'m, R>; 2],
    /// Zeroed frames.
    pools: [Shelf<'m, R>; 2],
    /// *P*, as a distance, for unmovable and for movable frames of each node. Written under the
    /// core's lock.
    hints: CachePadded<[[AtomicU64; 2]; MAX_NODES]>,
    pub(crate) nodes: Nodes<'m>,
    pub(crate) failing: Failing,
    /// The frames that are freed fast. None if there are several nodes: the recycling rule is not
    /// the plain one then.
    pub(crate) near: Near<'m>,
    /// The first frame of the best zone.
    base: u64,
}

impl<'m, R: RawMutex> Caches<'m, R> {
    pub(crate) fn new(
        stocks: &'m [CachePadded<Stock>],
        batches: &'m mut [[u64; BATCH]],
        highest: u64,
        near: Near<'m>,
    ) -> Self {
        let (depots, pools) = batches.split_at_mut(batches.len() / 2);
        // The start of the zone that holds the highest frame.
        let ends = Zone::ALL.iter().map(|zone| zone.end());
        let base = ends.take_while(|&end| end <= highest).last().unwrap_or(0);
        Self {
            stocks,
            known: AtomicU32::new(0),
            depots: shelves(depots),
            pools: shelves(pools),
            hints: CachePadded(core::array::from_fn(|_| [AtomicU64::new(0), AtomicU64::new(0)])),
            nodes: Nodes::ONE,
            failing: Failing::default(),
            near,
            base,
        }
    }

    /// The stocks that were ever used.
    pub(crate) fn used(&self) -> impl Iterator<Item = &'m Stock> {
        let known = self.known.load(Relaxed) as usize;
        self.stocks.iter().take(known).map(|padded| &padded.0)
    }

    pub(crate) fn shelves(&self) -> impl Iterator<Item = &Shelf<'m, R>> {
        self.depots.iter().chain(&self.pools)
    }

    fn depot(&self, mobility: Mobility) -> &Shelf<'m, R> {
        let [unmovable, movable] = &self.depots;
        if mobility == Mobility::Unmovable { unmovable } else { movable }
    }

    /// What another CPU, or this one, had too much goes to the magazine, whose stack is empty.
    fn take_batches(&self, mobility: Mobility, magazine: &Magazine) -> bool {
        !self.failing.now() && self.depot(mobility).take_to(magazine)
    }

    /// What a full stack has too much, for whoever needs it; false if nothing can be kept. With
    /// several nodes, frames of one would end up on CPUs of another.
    pub(crate) fn put_batches(&self, mobility: Mobility, magazine: &Magazine) -> bool {
        self.nodes.is_one() && !self.failing.now() && self.depot(mobility).put_from(magazine)
    }

    pub(crate) fn pool(&self, mobility: Mobility) -> &Shelf<'m, R> {
        let [unmovable, movable] = &self.pools;
        if mobility == Mobility::Unmovable { unmovable } else { movable }
    }

    #[inline]
    fn hint(&self, node: Node, mobility: Mobility) -> &AtomicU64 {
        &self.hints.0[usize::from(node.0) % MAX_NODES][mobility as usize]
    }

    /// From now on, until the next refill, nothing is recycled.
    pub(crate) fn forget_hints(&self) {
        self.hints.0.iter().flatten().for_each(|hint| hint.store(0, Relaxed));
    }

    /// This CPU has stock from now on.
    pub(crate) fn note(&self, stock: &Stock) {
        self.known.fetch_max(stock.place + 1, Relaxed);
    }

    #[inline]
    fn distance(&self, frame: u64) -> u64 {
        frame.wrapping_sub(self.base)
    }

    /// Would lowest-first hand out this frame next anyway, on the CPU with this stock?
    #[inline(always)]
    pub(crate) fn way(&self, stock: &Stock, mobility: Mobility, frame: u64) -> Way {
        if !self.nodes.is_one() {
            return self.way_home(stock, mobility, frame);
        }
        self.plain_way(mobility, frame)
    }

    /// As [`way`](Self::way), where there is one node.
    #[inline(always)]
    pub(crate) fn plain_way(&self, mobility: Mobility, frame: u64) -> Way {
        let below = self.distance(frame) < self.hint(Node(0), mobility).load(Relaxed);
        if below { Way::Stack } else { Way::Basket }
    }

    /// A frame of another node is no use here.
    #[inline(never)]
    fn way_home(&self, stock: &Stock, mobility: Mobility, frame: u64) -> Way {
        let (here, node) = (stock.node(), self.nodes.of(frame));
        let below = self.distance(frame) < self.hint(node, mobility).load(Relaxed);
        if below && node == here { Way::Stack } else { Way::Basket }
    }

    pub(crate) fn set_nodes(&mut self, nodes: Nodes<'m>) {
        self.nodes = nodes;
        self.near = Near::NONE;
    }

    /// Frames in all magazines and on the shelves.
    pub(crate) fn count(&self) -> u64 {
        let kept: u64 = self.used().map(Stock::count).sum();
        kept + self.shelves().map(Shelf::count).sum::<u64>()
    }

    /// The core got frames back from `frame` upwards. Under the core's lock.
    #[inline]
    pub(crate) fn lower_hint(&self, mobility: Mobility, frame: u64) {
        let node = if self.nodes.is_one() { Node(0) } else { self.nodes.of(frame) };
        let (distance, hint) = (self.distance(frame), self.hint(node, mobility));
        if distance < hint.load(Relaxed) {
            hint.store(distance, Relaxed);
        }
    }
}

/// Marks a decision that stays a branch, however short its arms are. It hangs on the number of a
/// frame that its owner may just have fetched from far away; a branch is foretold by the processor,
/// which goes on with the next allocation meanwhile, where arithmetic on an address would wait.
#[inline(always)]
pub(crate) fn foretold() {
    compiler_fence(SeqCst);
}

fn shelves<R: RawMutex>(batches: &mut [[u64; BATCH]]) -> [Shelf<'_, R>; 2] {
    let (unmovable, movable) = batches.split_at_mut(batches.len() / 2);
    [Shelf::new(unmovable), Shelf::new(movable)]
}

impl<'m, C: Cpus, M: PhysMap, R: RawMutex> FrameAllocator<'m, C, M, R> {
    #[inline]
    pub(crate) fn stock(&self, pin: &Pinned<'_, C>) -> Option<&'m Stock> {
        let stock = self.caches.stocks.get(pin.cpu().index()).map(|padded| &padded.0);
        stock.filter(|_| !self.caches.failing.now())
    }

    /// One frame. Budget when the stack has one: about twenty plain instructions, and ten more for
    /// the table's entry.
    #[inline(always)]
    pub(crate) fn alloc_single(
        &self,
        kind: Kind,
        class: Class,
        mobility: Mobility,
    ) -> Result<OwnedFrames, AllocError> {
        let number = match self.pop_cached(kind, mobility) {
            Some(number) => number,
            None => self.alloc_single_slow(kind, class, mobility)?,
        };
        // Frames in magazines come from ranges, whose frames have valid numbers.
        Ok(OwnedFrames::new(FrameRange::single(PhysAddr::new(number << PAGE_SHIFT).block())))
    }

    #[inline(always)]
    fn pop_cached(&self, kind: Kind, mobility: Mobility) -> Option<u64> {
        let pin = self.cpus.pin();
        let stock = self.stock(&pin).filter(|stock| stock.wanted.load(Relaxed) == 0)?;
        let magazine = stock.of(mobility);
        let number = magazine.peek()?;
        if self.poisons() || !self.table.try_own_cached(number, kind) {
            return None;
        }
        magazine.drop_top();
        Some(number)
    }

    /// A frame that was taken from a magazine gets an owner.
    #[inline(always)]
    pub(crate) fn hand_out(&self, frame: u64, kind: Kind) -> Result<u64, AllocError> {
        self.table.own_cached(frame, kind).map_err(AllocError::Corrupt)?;
        let range = FrameRange::single(Frame::new(frame).unwrap_or_default());
        self.check_poison(range).map_err(AllocError::Corrupt)?;
        Ok(frame)
    }

    #[cold]
    #[inline(never)]
    fn alloc_single_slow(
        &self,
        kind: Kind,
        class: Class,
        mobility: Mobility,
    ) -> Result<u64, AllocError> {
        let pin = &self.cpus.pin();
        let request = &Request::frame().kind(kind).class(class).mobility(mobility);
        let number = |owned: OwnedFrames| owned.into_range().start().number();
        let Some(stock) = self.stock(pin) else { return self.alloc_shared(request).map(number) };
        self.honour(stock).map_err(AllocError::Corrupt)?;
        let magazine = stock.of(mobility);
        if magazine.peek().is_some() {
            // Stock of one's own.
        } else if self.caches.take_batches(mobility, magazine) {
            // Stock of another CPU, which now is one's own.
        } else {
            let mut core = self.core.lock();
            match self.room(&core, request) {
                Err(_) => {
                    drop(core);
                    return self.alloc_shared_pinned(pin, request).map(number);
                }
                Ok(room) => {
                    let push = |frame| _ = magazine.push(Way::Stack, frame);
                    let claimed = self.claim_lowest(&mut core, room, stock.node(), mobility, push);
                    claimed.map_err(AllocError::Corrupt)?;
                }
            }
        }
        match magazine.pop() {
            Some(frame) => self.hand_out(frame, kind),
            None => self.alloc_shared_pinned(pin, request).map(number),
        }
    }

    /// How many frames a request of this class may take out of the core.
    fn room(&self, core: &Core<'m>, request: &Request) -> Result<usize, AllocError> {
        let free = core.free_frames();
        let reserve = self.reserve.load(Relaxed);
        match request.class {
            _ if free == 0 || self.caches.failing.now() => Err(AllocError::NoMemory),
            Class::Normal if free <= reserve => Err(AllocError::Reserved),
            // What lies above the reserve may be taken for stock; of the reserve only what is used.
            _ => Ok(free.saturating_sub(reserve).clamp(1, BATCH as u64) as usize),
        }
    }

    /// Up to `room` of the lowest frames, by whole words, the lowest one last.
    pub(crate) fn claim_lowest(
        &self,
        core: &mut Core<'m>,
        room: usize,
        node: Node,
        mobility: Mobility,
        mut each: impl FnMut(u64),
    ) -> Result<(), Corruption> {
        let mut claimed = [(0, 0); BATCH];
        let mut words = 0;
        let dma_only = self.zones.iter().skip(1).all(Window::is_empty);
        let from = self.caches.nodes.in_order(&self.zones, node, |area| {
            // Of the lowest zone take no stock, unless it is all there is.
            let room = if area.zone == Zone::Dma && !dma_only { 1 } else { room };
            core.claim(area.window, room, mobility, |index, bits| {
                claimed[words] = (index, bits);
                words += 1;
            });
            (words > 0).then_some(area.node)
        });
        let claimed = &claimed[..words];
        if let (Some(node), Some(&(index, bits))) = (from, claimed.last()) {
            let last = core.directory.frame(index) + 63 - u64::from(bits.leading_zeros());
            // What is to leave is no use to anybody.
            let hint = self.caches.distance(last).wrapping_add(1);
            let hint = if core.away.leaving { 0 } else { hint };
            self.caches.hint(node, mobility).store(hint, Relaxed);
        }
        let mut found = Ok(());
        for &(index, mut bits) in claimed.iter().rev() {
            let base = core.directory.frame(index);
            if let Err(evidence) = self.table.cache_free(base, &mut bits) {
                found = Err(evidence);
            }
            while bits != 0 {
                let top = 63 - bits.leading_zeros();
                bits ^= 1 << top;
                each(base + u64::from(top));
            }
        }
        found
    }
}
