//! Making other CPUs forget translations.
//!
//! Nouns: a *request* says what to forget; a CPU's *ticket* (in its area) is the number of the
//! request that it is asked to serve, 0 when there is none.
//!
//! One request is under way at a time: whoever wants to make one first takes the lock of the
//! requests, and serves others' while it waits for that. Then: write the request, give a ticket to
//! every CPU in the space's set but its own, send each an interrupt, forget by itself, and wait
//! until all tickets are gone. A CPU that finds a ticket, by the interrupt or because it polls
//! while it waits for a lock with interrupts off, forgets and takes its ticket away.
//!
//! *request-still*: the request changes only while no CPU has a ticket.
//!
//! *all-serve*: a CPU that is in any space's set serves within bounded time: it runs a program or
//! idles (interrupts on), or waits for a lock (polls), or runs kernel code that ends in one of
//! these. Nobody waits here with a lock held that a handler takes.
//!
//! A CPU that has meanwhile loaded another space forgets something for nothing.
#![allow(unsafe_code)] // the request is shared by hand

use core::cell::UnsafeCell;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use pagoda_addr::PageRange;
use pagoda_paging::{FlushRange, SpaceTlb};
use pagoda_sync::SpinHook;
use x86_64::instructions::tlb;

use super::percpu::{self, this};
use super::{host, lapic, trap};

/// From this many pages on, forgetting everything is cheaper than page by page.
const FLUSH_ALL_PAGES: u64 = 64;
/// Spans that a request has room for; a request for more is for everything.
const SPANS: usize = 16;

struct Request {
    spans: [Option<PageRange>; SPANS],
    everything: bool,
    global: bool,
}

struct Shared(UnsafeCell<Request>);

// SAFETY: *request-still*: written by the holder of `BUSY` while no CPU has a ticket; read by CPUs
// that have one.
unsafe impl Sync for Shared {}

static REQUEST: Shared =
    Shared(UnsafeCell::new(Request { spans: [None; SPANS], everything: false, global: false }));
static BUSY: AtomicBool = AtomicBool::new(false);
/// Requests so far.
static REQUESTS: AtomicU64 = AtomicU64::new(0);

/// Forgets on the executing CPU.
fn forget(spans: impl Iterator<Item = PageRange> + Clone, everything: bool, global: bool) {
    let pages = spans.clone().fold(0u64, |sum, span| sum.saturating_add(span.count()));
    if everything || pages > FLUSH_ALL_PAGES {
        return host::flush_all(global);
    }
    for page in spans.flat_map(|span| span.iter()) {
        tlb::flush(x86_64::VirtAddr::new_truncate(page.start().as_u64()));
    }
}

/// Serves the request that this CPU has a ticket for, if there is one. Two instructions otherwise.
#[inline]
pub(crate) fn serve() {
    if this().flush_ticket.load(Ordering::Relaxed) != 0 {
        serve_ticket();
    }
}

#[cold]
fn serve_ticket() {
    let area = this();
    if area.flush_ticket.load(Ordering::Acquire) == 0 {
        return;
    }
    // SAFETY: this CPU has a ticket (*request-still*); the writes came before it.
    let request = unsafe { &*REQUEST.0.get() };
    forget(request.spans.iter().flatten().copied(), request.everything, request.global);
    area.flush_ticket.store(0, Ordering::Release);
}

/// Returns when no CPU in the space's set remembers what `what` says.
pub(crate) fn flush(space: &SpaceTlb, what: FlushRange<'_>) {
    let me = percpu::id();
    let others = space.cpus().iter().any(|cpu| cpu != me);
    if others {
        ask_others(space, &what);
    }
    if space.cpus().contains(me) {
        forget(what.spans.iter().copied(), what.everything, what.global);
    }
    if others {
        for cpu in percpu::others() {
            while cpu.flush_ticket.load(Ordering::Acquire) != 0 {
                serve();
                spin_loop();
            }
        }
        BUSY.store(false, Ordering::Release);
    }
}

fn ask_others(space: &SpaceTlb, what: &FlushRange<'_>) {
    while BUSY.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
        serve();
        spin_loop();
    }
    // SAFETY: `BUSY` is ours, and whoever had it before waited until no CPU had a ticket
    // (*request-still*).
    let request = unsafe { &mut *REQUEST.0.get() };
    request.everything = what.everything || what.spans.len() > SPANS;
    request.global = what.global;
    for (index, place) in request.spans.iter_mut().enumerate() {
        *place = what.spans.get(index).copied();
    }
    let number = REQUESTS.fetch_add(1, Ordering::Relaxed) + 1;
    // The entries and the generation were written before the set is read here.
    fence(Ordering::SeqCst);
    for area in percpu::others().filter(|area| space.cpus().contains(area.cpu())) {
        area.flush_ticket.store(number, Ordering::Release);
        lapic::send(area.apic_id.load(Ordering::Relaxed), trap::FLUSH);
    }
}

/// What a CPU does for others while it waits for a lock: the holder may be waiting for its answer.
#[derive(Debug)]
pub(crate) struct Serve;

impl SpinHook for Serve {
    #[inline]
    fn spin() {
        serve();
    }
}
