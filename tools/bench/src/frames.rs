//! Frame allocators: ours beside the published ones. Metadata only; no frame is touched.
//!
//! The cases: *fill*: every frame once, by the frame. *free random*: all of them again, in random
//! order. *pair*: with so much in use, a random frame is freed and one allocated. *repeat*: one
//! frame, freed and allocated again. *order 9*, *1 GiB*: blocks from empty memory, taken and given
//! back. *recovered*: after 16 turnovers of what is in use, the share of the free memory that can be
//! had as 2 MiB blocks. *two threads*: each in its own frames, in bursts, or one allocating what the
//! other frees.
//!
//! Metadata, and the table, is in pages of 2 MiB, as kernels map theirs; but for
//! buddy_system_allocator's, which comes from a heap, bit by bit.
//!
//! Ours is measured as a kernel runs it: with the pin, with the caches; rows "with frame table" have
//! the table's work included, the others have no table, as the peers have none.
//!
//! Random pairs are timed when memory has settled, in windows of a million: what a processor's caches
//! have to be filled with first, and what a random fill left behind, is the same for everybody and
//! would hide what is compared. Rows "soon after a random fill" show the latter by itself.

use std::collections::BTreeMap;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};

use pagoda_addr::Order;
use pagoda_frames::Request;
use pagoda_sync::SpinMutex;

use crate::frames_peers::{Frames, GIB, Ours, everybody, on_cpu};
use crate::frames_threads::two_threads;
use crate::measure::{Contestant, Figure, Numbers, contest, figure, thread_time};
use crate::report::{Better, Row};

/// A group of rows.
type Part = fn(&mut Vec<Row>, bool);

/// Measures everything, or only the part of this name.
pub fn rows(quick: bool, only: Option<&str>) -> Vec<Row> {
    let mut rows = Vec::new();
    let parts: [(&str, Part); 6] = [
        ("fill", fill_and_free),
        ("pairs", pairs),
        ("repeat", repeats),
        ("blocks", blocks),
        ("recovered", recovered),
        ("threads", two_threads),
    ];
    for (_, part) in parts.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)) {
        part(&mut rows, quick);
    }
    rows
}

fn fill_and_free(rows: &mut Vec<Row>, quick: bool) {
    let rounds = if quick { 1 } else { 5 };
    let mut order: Vec<usize> = (0..GIB as usize).collect();
    let mut numbers = Numbers::new(3);
    for index in (1..order.len()).rev() {
        order.swap(index, numbers.below(index as u64 + 1) as usize);
    }
    let figures = everybody(GIB, |name, frames| {
        let (mut fills, mut frees) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let mut all = Vec::with_capacity(GIB as usize);
            let before = thread_time();
            while let Some(frame) = frames.alloc(0) {
                all.push(frame);
            }
            fills.push((thread_time() - before).as_nanos() as f64 / all.len() as f64);
            let shuffled: Vec<u64> = order.iter().filter_map(|&i| all.get(i).copied()).collect();
            let before = thread_time();
            for &frame in &shuffled {
                frames.free(frame, 0);
            }
            frees.push((thread_time() - before).as_nanos() as f64 / shuffled.len() as f64);
        }
        (figure(name, fills), figure(name, frees))
    });
    let (fills, frees): (Vec<_>, Vec<_>) = figures.into_iter().unzip();
    // No slower than the fastest peer that caches, which is Depot: the others inform.
    rows.push(against(Row::times("fill, 1 GiB", &fills, Some(1.0)), "Depot"));
    rows.push(against(Row::times("free random, 1 GiB", &frees, Some(1.0)), "Depot"));
}

/// Holds the row to one peer, by a gate relative to the best: the others keep no magazines and may
/// be faster or slower.
fn against(mut row: Row, peer: &str) -> Row {
    let (Some(&rival), Some(best)) = (row.peers.get(peer), row.best_peer()) else { return row };
    row.gate = row.gate.map(|gate| gate * rival / best);
    row
}

/// Holds the row to a figure of its own, whatever the peers do.
fn limited(mut row: Row, most: f64) -> Row {
    if row.best_peer().is_none() {
        row.peers.insert("limit".to_owned(), most);
    }
    row.gate = row.best_peer().map(|best| most / best);
    row
}

/// Frames in use, and a source of random places among them. They are remembered by their distance
/// from `base`, so that the list, which is ours and not the allocator's, takes little of the
/// processor's caches.
struct InUse<'a> {
    frames: &'a dyn Frames,
    base: u64,
    all: Vec<u32>,
    numbers: Numbers,
}

impl<'a> InUse<'a> {
    /// Fills `percent` of `total` frames: first everything, then random ones are freed.
    fn new(frames: &'a dyn Frames, total: u64, percent: u64) -> Self {
        let all = Vec::with_capacity(total as usize);
        let first = frames.alloc(0).expect("a frame");
        frames.free(first, 0);
        let mut in_use =
            Self { frames, base: first.wrapping_sub(1 << 31), all, numbers: Numbers::new(17) };
        while let Some(frame) = in_use.one() {
            in_use.all.push(frame);
        }
        while in_use.all.len() as u64 > total * percent / 100 {
            let place = in_use.numbers.below(in_use.all.len() as u64) as usize;
            let frame = in_use.all.swap_remove(place);
            in_use.back(frame);
        }
        in_use
    }

    #[inline]
    fn one(&self) -> Option<u32> {
        self.frames.alloc(0).map(|frame| frame.wrapping_sub(self.base) as u32)
    }

    #[inline]
    fn back(&self, frame: u32) {
        self.frames.free(self.base.wrapping_add(frame.into()), 0);
    }

    fn turn(&mut self, turns: usize) {
        self.frames.turn(&mut self.all, self.base, &mut self.numbers, turns as u64);
    }
}

/// Turnovers of what is in use before random pairs are timed: memory is then as it stays, whoever
/// manages it. (Where the random fill put them, one in four hundred frames is left.)
const SETTLED: usize = 6;

fn pairs(rows: &mut Vec<Row>, quick: bool) {
    let rounds = if quick { 5 } else { 31 };
    for (gib, gate) in [(1, 0.65), (16, 0.8)] {
        for percent in [50, 95] {
            let all = everybody(gib * GIB, |name, frames| (name, frames));
            let table = Ours::new(gib * GIB, true);
            let mut contestants = Vec::new();
            for (name, frames) in &all {
                contestants.push(random_pairs(name, &**frames, gib, percent, SETTLED));
            }
            contestants.push(random_pairs("ours", &table, gib, percent, SETTLED));
            let mut figures = contest(&mut contestants, rounds);
            let with_table = figures.pop().into_iter();
            let case = format!("random pair, {gib} GiB, {percent} % used");
            rows.push(Row::times(&case, &figures, Some(gate)));
            let both: Vec<_> = with_table.chain(figures.into_iter().skip(1)).collect();
            let gate = (gib == 1).then_some(1.0);
            rows.push(Row::times(&format!("{case}, with frame table"), &both, gate));
            drop(contestants);
        }
    }
    unsettled(rows, rounds.min(5));
}

fn repeats(rows: &mut Vec<Row>, quick: bool) {
    let rounds = if quick { 5 } else { 31 };
    let all = everybody(GIB, |name, frames| (name, frames));
    let mut contestants: Vec<_> =
        all.iter().map(|(name, frames)| repeat(name, &**frames)).collect();
    rows.push(Row::times("repeat pair", &contest(&mut contestants, rounds), Some(0.35)));
    let table = Ours::new(GIB, true);
    let mut contestants = vec![repeat("ours", &table)];
    contestants.extend(all.iter().skip(1).map(|(name, frames)| repeat(name, &**frames)));
    let figures = contest(&mut contestants, rounds);
    rows.push(Row::times("repeat pair, with frame table", &figures, Some(1.0)));
}

/// The same pairs while memory is still being put in order: after one turnover of frames that lay
/// at random. For orientation: what is measured changes from window to window.
fn unsettled(rows: &mut Vec<Row>, rounds: usize) {
    for percent in [50, 95] {
        let all = everybody(16 * GIB, |name, frames| (name, frames));
        let mut contestants: Vec<_> = all
            .iter()
            .map(|(name, frames)| random_pairs(name, &**frames, 16, percent, 1))
            .collect();
        let figures = contest(&mut contestants, rounds);
        let case = format!("random pair, 16 GiB, {percent} % used, soon after a random fill");
        rows.push(Row::times(&case, &figures, None));
    }
}

pub fn random_pairs<'a>(
    name: &str,
    frames: &'a dyn Frames,
    gib: u64,
    percent: u64,
    turnovers: usize,
) -> Contestant<'a> {
    let mut in_use = InUse::new(frames, gib * GIB, percent);
    in_use.turn(turnovers * in_use.all.len());
    Contestant::new(name, move || {
        // So many that the caches, which the contestants before have filled, are one's own for
        // nearly all of the window.
        const TURNS: u64 = 1_000_000;
        in_use.turn(TURNS as usize);
        TURNS
    })
}

pub fn repeat<'a>(name: &str, frames: &'a dyn Frames) -> Contestant<'a> {
    let mut frame = frames.alloc(0).expect("a frame");
    Contestant::new(name, move || {
        const TURNS: u64 = 100_000;
        frame = frames.repeat(frame, TURNS);
        TURNS
    })
}

fn blocks(rows: &mut Vec<Row>, quick: bool) {
    let rounds = if quick { 3 } else { 15 };
    for (case, gib, order, gate) in [
        ("order 9, empty 1 GiB", 1, 9, Some(1.0)),
        ("order 9, empty 16 GiB", 16, 9, Some(1.0)),
        ("1 GiB blocks, empty 16 GiB", 16, 18, None::<f64>),
    ] {
        let all = everybody(gib * GIB, |name, frames| (name, frames));
        let mut contestants: Vec<_> = all
            .iter()
            .map(|(name, frames)| {
                Contestant::new(*name, move || {
                    let mut taken = Vec::with_capacity(8192);
                    let mut operations = 0;
                    for _ in 0..4 {
                        while let Some(frame) = frames.alloc(order) {
                            taken.push(frame);
                        }
                        operations += 2 * taken.len() as u64;
                        for frame in taken.drain(..) {
                            frames.free(frame, order);
                        }
                    }
                    operations
                })
            })
            .collect();
        let row = Row::times(case, &contest(&mut contestants, rounds), gate);
        rows.push(if order == 18 { limited(row, 200.0) } else { row });
    }
    ranges(rows, rounds);
}

/// Contiguous ranges and large blocks of ours in fragmented memory; the peers cannot do the former.
/// Where single frames are in use at random there is no longer range: what is measured is how fast
/// that is found out. Where pieces are in use at random, there are some.
fn ranges(rows: &mut Vec<Row>, rounds: usize) {
    let ours = Ours::new(GIB, false);
    let in_use = InUse::new(&ours, GIB, 50);
    for count in [3, 37, 1000] {
        rows.push(range(&ours, count, rounds, "50 % random use"));
    }
    drop(in_use);
    for (count, piece) in [(37, 64), (1000, 1024)] {
        let ours = Ours::new(GIB, false);
        half_in_pieces(&ours, piece);
        let use_ = format!("50 % in use in random pieces of {piece}");
        rows.push(range(&ours, count, rounds, &use_));
    }
    rows.push(limited(
        Row::times(
            "order 9, 16 GiB after 16 turnovers at 50 %, drains included",
            &[fragmented(rounds.min(5))],
            None,
        ),
        200.0,
    ));
}

/// One contiguous range, again and again.
fn range(ours: &Ours, count: u64, rounds: usize, used: &str) -> Row {
    let align = Order::new(2).expect("an order");
    let mut refused = 0;
    let mut one = [Contestant::new("ours", || {
        for _ in 0..200 {
            match ours.0.alloc(Request::count(count).align(align)) {
                Ok(owned) => ours.0.free(owned).expect("ours"),
                Err(_) => refused += 1,
            }
        }
        200
    })];
    let figures = contest(&mut one, rounds);
    drop(one);
    let note = if refused > 0 { " (there is none: refused)" } else { "" };
    let case = format!("{count} frames, aligned to 4, {used}, alloc + free{note}");
    limited(Row::times(&case, &figures, None), 5000.0)
}

/// Takes everything and gives half of it back, in aligned pieces of so many frames, at random.
fn half_in_pieces(ours: &Ours, piece: u64) {
    let mut numbers = Numbers::new(23);
    let mut all: Vec<u64> = std::iter::from_fn(|| ours.alloc(0)).collect();
    all.sort_unstable();
    let mut pieces: Vec<&[u64]> = all.chunks(piece as usize).collect();
    for _ in 0..pieces.len() / 2 {
        let place = numbers.below(pieces.len() as u64) as usize;
        pieces.swap_remove(place).iter().for_each(|&frame| ours.free(frame, 0));
    }
    ours.idle();
}

/// 2 MiB blocks out of memory that was in use at random: all that there are, until one is refused
/// although every cache was drained, and back. Between two rounds the caches fill up again.
fn fragmented(rounds: usize) -> Figure {
    let ours = Ours::new(16 * GIB, false);
    let mut in_use = InUse::new(&ours, 16 * GIB, 50);
    in_use.turn(in_use.all.len() * 16);
    let samples = (0..rounds).map(|_| {
        in_use.turn(10_000);
        let before = thread_time();
        let mut taken = Vec::with_capacity(8192);
        while let Some(frame) = ours.alloc(9) {
            taken.push(frame);
        }
        let count = 2 * taken.len() + 1;
        for frame in taken {
            ours.free(frame, 9);
        }
        (thread_time() - before).as_nanos() as f64 / count as f64
    });
    figure("ours", samples.collect())
}

fn recovered(rows: &mut Vec<Row>, quick: bool) {
    // Fewer turnovers than these say nothing: what was filled first is still where it was.
    let turnovers = 16;
    for free in [50, 20, 10] {
        for threads in [1u64, 8] {
            if quick && threads == 8 && free == 20 {
                continue;
            }
            let parts = everybody(GIB, |name, frames| {
                // The slowest have no caches, so that eight CPUs change nothing for them.
                let alone = threads > 1 && matches!(name, "buddy_system_allocator");
                let part =
                    if alone { f64::NAN } else { recover(&*frames, free, turnovers, threads) };
                (name.to_owned(), part)
            });
            let mut parts: BTreeMap<String, f64> = parts.into_iter().collect();
            parts.retain(|_, part| part.is_finite());
            let ours = parts.remove("ours").expect("ours");
            let best = parts.values().copied().fold(0.0, f64::max);
            rows.push(Row {
                case: format!(
                    "recovered as 2 MiB after {turnovers} turnovers, {free} % free, {threads} CPUs (ours: at least 98)"
                ),
                unit: "%",
                better: Better::More,
                ours,
                peers: parts,
                gate: Some(98.0 / best),
                spread: 0.0,
            });
        }
    }
}

/// The part of the free memory outside the caches that comes as 2 MiB blocks after the turnovers.
/// The threads take turns, so that all their caches are in play on however few processors; then
/// what stands in the caches is counted, and they go idle.
fn recover(frames: &dyn Frames, free: u64, turnovers: u64, threads: u64) -> f64 {
    let in_use = SpinMutex::new(InUse::new(frames, GIB, 100 - free));
    let count = in_use.lock().all.len() as u64;
    let barrier = Barrier::new(threads as usize);
    let cached = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (in_use, barrier, cached) = (&in_use, &barrier, &cached);
            scope.spawn(move || {
                on_cpu(thread as usize + 1);
                for slice in 0..turnovers * 8 {
                    if slice % threads == thread {
                        let mut in_use = in_use.lock();
                        in_use.turn(count as usize / 8);
                    }
                    barrier.wait();
                }
                if barrier.wait().is_leader() {
                    cached.store(frames.cached(), Ordering::Relaxed);
                }
                barrier.wait();
                frames.idle();
            });
        }
    });
    let free_frames = GIB - count;
    let mut blocks = 0;
    while frames.alloc(9).is_some() {
        blocks += 1;
    }
    // Never more than all of it, though the caches give theirs back too.
    let outside = free_frames - cached.load(Ordering::Relaxed);
    (100.0 * (blocks * 512) as f64 / outside as f64).min(100.0)
}
