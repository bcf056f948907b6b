//! Two threads: each in its own frames, in bursts, or one allocating what the other frees.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use pagoda_sync::SpinMutex;

use crate::frames_peers::{Frames, GIB, Ours, everybody, on_cpu};
use crate::measure::{figure, in_turn, stay_on, thread_time};
use crate::report::Row;

pub fn two_threads(rows: &mut Vec<Row>, quick: bool) {
    let turns = if quick { 200_000 } else { 2_000_000 };
    let rounds = if quick { 1 } else { 5 };
    let works: [(&str, Work); 2] = [("pairs", pair_work), ("bursts of 256", burst_work)];
    for (what, work) in works {
        let figures = everybody(GIB, |name, frames| {
            let samples = (0..rounds).map(|_| together(&[&*frames, &*frames], turns, work));
            figure(name, samples.collect())
        });
        rows.push(Row::times(&format!("two threads, {what}"), &figures, None));
        // In turn, in short windows: the ratio is what counts, and the machine's speed drifts.
        let shared = Ours::new(GIB, false);
        let (one, two) = (Ours::new(GIB / 2, false), Ours::new(GIB / 2, false));
        let (mut both, mut apart) = (Vec::new(), Vec::new());
        for _ in 0..if quick { 15 } else { 61 } {
            both.push(together(&[&shared, &shared], turns / 2, work));
            apart.push(together(&[&one, &two], turns / 2, work));
        }
        let figures = in_turn(("ours", both), ("two allocators of ours", apart));
        let case = format!("two threads, {what}, beside two independent allocators");
        rows.push(Row::times(&case, &figures, Some(1.0 / 0.95)));
    }
    hand_overs(rows, quick);
}

fn hand_overs(rows: &mut Vec<Row>, quick: bool) {
    let turns = if quick { 200_000 } else { 2_000_000 };
    let rounds = if quick { 1 } else { 5 };
    let figures = everybody(GIB, |name, frames| {
        let samples = (0..rounds).map(|_| hand_over(&*frames, turns));
        figure(name, samples.collect())
    });
    rows.push(Row::times("two threads, one allocates what the other frees", &figures, None));
    // The same two threads, each with an allocator of its own: one passes through it what it
    // received in the other case. What remains of the difference is the handing over of frames.
    let shared = Ours::new(GIB, false);
    let (one, two) = (Ours::new(GIB, false), Ours::new(GIB, false));
    let (mut both, mut apart) = (Vec::new(), Vec::new());
    // Many windows: how often the two wait for each other is different in each of them.
    for _ in 0..if quick { 9 } else { 101 } {
        both.push(hand_over(&shared, turns / 2));
        apart.push(hand_over_apart(&one, &two, turns / 2));
    }
    let figures = in_turn(("ours", both), ("two allocators of ours", apart));
    let case = "two threads, one allocates what the other frees, beside two independent allocators";
    rows.push(Row::times(case, &figures, Some(1.0 / 0.95)));
}

fn pair_work(frames: &dyn Frames, turns: u64) {
    for _ in 0..turns {
        let frame = frames.alloc(0).expect("a frame");
        frames.free(std::hint::black_box(frame), 0);
    }
}

fn burst_work(frames: &dyn Frames, turns: u64) {
    let mut burst = [0; 256];
    for _ in 0..turns / 256 {
        for frame in &mut burst {
            *frame = frames.alloc(0).expect("a frame");
        }
        for &frame in &burst {
            frames.free(frame, 0);
        }
    }
}

/// What a thread does so many times.
type Work = fn(&dyn Frames, u64);

/// CPU time per pair with one thread for each of `frames`.
fn together(frames: &[&dyn Frames], turns: u64, work: Work) -> f64 {
    let barrier = Barrier::new(frames.len());
    let spent: u128 = std::thread::scope(|scope| {
        let workers: Vec<_> = frames
            .iter()
            .enumerate()
            .map(|(place, &frames)| {
                let barrier = &barrier;
                scope.spawn(move || {
                    on_cpu(place + 1);
                    stay_on(place);
                    work(frames, turns / 10);
                    barrier.wait();
                    let before = thread_time();
                    work(frames, turns);
                    (thread_time() - before).as_nanos()
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker")).sum()
    });
    spent as f64 / (frames.len() as u64 * turns) as f64
}

/// One thread allocates, the other frees, in batches of 512 through a buffer.
fn hand_over(frames: &dyn Frames, turns: u64) -> f64 {
    pass_on(
        turns,
        |buffer| buffer.extend((0..512).map(|_| frames.alloc(0).expect("a frame"))),
        |buffer| buffer.drain(..).for_each(|frame| frames.free(frame, 0)),
    )
}

/// The same work and the same buffers, number by number, but each thread gives back to its own allocator
/// what it took there: each does half of what it does in [`hand_over`] of both kinds. What it took it keeps in
/// a list of its own meanwhile, which costs it some tenths of a nanosecond.
fn hand_over_apart(one: &dyn Frames, two: &dyn Frames, turns: u64) -> f64 {
    let (mut kept, mut others) = (Vec::with_capacity(256), Vec::with_capacity(256));
    pass_on(
        turns,
        move |buffer| {
            buffer.extend((0..256).map(|_| {
                let frame = one.alloc(0).expect("a frame");
                kept.push(frame);
                frame
            }));
            buffer.extend(kept.drain(..).inspect(|&frame| one.free(frame, 0)));
        },
        move |buffer| {
            let mut numbers = buffer.drain(..).map(std::hint::black_box);
            others.extend(numbers.by_ref().take(256).map(|_| two.alloc(0).expect("a frame")));
            others.drain(..).zip(numbers).for_each(|(frame, _)| two.free(frame, 0));
        },
    )
}

/// Buffers between the two threads.
const RING: usize = 4;

/// CPU time of both threads for each of `turns` numbers that go from `produce` to `consume`. What the
/// two spend waiting for each other is left out: it is more than all the rest.
fn pass_on(
    turns: u64,
    mut produce: impl FnMut(&mut Vec<u64>) + Send,
    mut consume: impl FnMut(&mut Vec<u64>) + Send,
) -> f64 {
    let buffers: [SpinMutex<Vec<u64>>; RING] =
        std::array::from_fn(|_| SpinMutex::new(Vec::with_capacity(512)));
    let full = [const { AtomicBool::new(false) }; RING];
    let wait = |flag: &AtomicBool, value: bool| {
        while flag.load(Ordering::Acquire) != value {
            std::thread::sleep(std::time::Duration::from_micros(20));
        }
    };
    let (wait, full, buffers) = (&wait, &full, &buffers);
    let batches = (turns / 512) as usize;
    let spent: u128 = std::thread::scope(|scope| {
        let producer = scope.spawn(move || {
            on_cpu(1);
            stay_on(0);
            let mut spent = 0;
            for batch in 0..batches {
                wait(&full[batch % RING], false);
                let before = thread_time();
                produce(&mut buffers[batch % RING].lock());
                spent += (thread_time() - before).as_nanos();
                full[batch % RING].store(true, Ordering::Release);
            }
            spent
        });
        let consumer = scope.spawn(move || {
            on_cpu(2);
            stay_on(1);
            let mut spent = 0;
            for batch in 0..batches {
                wait(&full[batch % RING], true);
                let before = thread_time();
                consume(&mut buffers[batch % RING].lock());
                spent += (thread_time() - before).as_nanos();
                full[batch % RING].store(false, Ordering::Release);
            }
            spent
        });
        producer.join().expect("producer") + consumer.join().expect("consumer")
    });
    spent as f64 / (batches * 512) as f64
}
