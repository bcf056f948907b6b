//! What Rust's standard library does with threads: scoped and joined ones, channels, locks and
//! condition variables, thread-local values, timeouts, panics that are caught or that end a thread.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Barrier, Condvar, Mutex, RwLock};
use std::time::{Duration, Instant};

thread_local! {
    static TURNS: Cell<u64> = const { Cell::new(0) };
}

/// Everything, one line each; a line does not depend on who ran when.
pub fn work() {
    std::panic::set_hook(Box::new(|_| {}));
    println!("channels passed {}", channels());
    println!("a barrier and locks counted {:?}", meetings());
    println!("a queue of boxes summed {}", handed_over());
    println!("caught {:?}", caught());
    println!("waited in vain, but not for ever: {}", in_vain());
    println!("thread-local turns {:?}", turns());
    let _ = std::panic::take_hook();
}

/// Eight senders, four of them on a channel with little room, and one receiver.
fn channels() -> u64 {
    let (free, from_free) = mpsc::channel::<Vec<u64>>();
    let (tight, from_tight) = mpsc::sync_channel::<u64>(3);
    let mut threads = Vec::new();
    for sender in 0..4u64 {
        let (free, tight) = (free.clone(), tight.clone());
        threads.push(std::thread::spawn(move || {
            for turn in 0..500 {
                free.send(vec![sender * turn; (turn % 90) as usize]).expect("a receiver");
            }
        }));
        threads.push(std::thread::spawn(move || {
            for turn in 0..500 {
                tight.send(sender ^ turn).expect("a receiver");
            }
        }));
    }
    drop((free, tight));
    let tight = std::thread::spawn(move || from_tight.iter().sum::<u64>());
    let sum = from_free.iter().map(|list| list.iter().sum::<u64>()).sum::<u64>();
    threads.into_iter().for_each(|thread| thread.join().expect("a sender ends well"));
    sum + tight.join().expect("the receiver ends well")
}

/// Eight threads that meet five hundred times.
fn meetings() -> (u64, u64, u64) {
    let barrier = Barrier::new(8);
    let (locked, shared, loose) = (Mutex::new(0), RwLock::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..500 {
                    if barrier.wait().is_leader() {
                        *shared.write().expect("not poisoned") += 1;
                    }
                    barrier.wait();
                    let seen: u64 = *shared.read().expect("not poisoned");
                    *locked.lock().expect("not poisoned") += seen;
                    barrier.wait();
                    loose.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let locked: u64 = *locked.lock().expect("not poisoned");
    let shared: u64 = *shared.read().expect("not poisoned");
    (locked, shared, loose.into_inner())
}

/// Boxes that one thread makes and another drops, by a queue behind a condition variable.
fn handed_over() -> u64 {
    let queue = Arc::new((Mutex::new(Vec::<Box<[u64; 40]>>::new()), Condvar::new()));
    let makers: Vec<_> = (0..4u64)
        .map(|maker| {
            let queue = Arc::clone(&queue);
            std::thread::spawn(move || {
                for turn in 0..400 {
                    queue.0.lock().expect("not poisoned").push(Box::new([maker + turn; 40]));
                    queue.1.notify_one();
                }
            })
        })
        .collect();
    let mut sum = 0;
    for _ in 0..1600 {
        let mut boxes = queue.0.lock().expect("not poisoned");
        while boxes.is_empty() {
            boxes = queue.1.wait(boxes).expect("not poisoned");
        }
        sum += boxes.pop().map_or(0, |b| b.iter().sum());
    }
    makers.into_iter().for_each(|maker| maker.join().expect("a maker ends well"));
    sum
}

/// Panics: caught in place, with destructors run on the way; one that ends a thread; one that
/// poisons a lock.
fn caught() -> (String, u64, String, bool) {
    struct Bell<'a>(&'a AtomicU64);
    impl Drop for Bell<'_> {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    fn deep(level: u64, bells: &AtomicU64) -> u64 {
        let _bell = Bell(bells);
        if level == 0 {
            std::panic::panic_any(String::from("the bottom"));
        }
        deep(level - 1, bells) + 1
    }
    let bells = AtomicU64::new(0);
    let words = |cause: Box<dyn std::any::Any + Send>| {
        let text = cause.downcast_ref::<String>().cloned();
        text.or_else(|| cause.downcast_ref::<&str>().map(|&text| text.to_owned()))
            .unwrap_or_default()
    };
    let first = catch_unwind(AssertUnwindSafe(|| deep(50, &bells))).map_err(words);
    let lock = Arc::new(Mutex::new(0));
    let poisoner = Arc::clone(&lock);
    let second = std::thread::spawn(move || {
        let _guard = poisoner.lock().expect("not poisoned yet");
        panic!("the thread is over");
    });
    let second = second.join().map_err(words);
    let bells = bells.into_inner();
    (first.err().unwrap_or_default(), bells, second.err().unwrap_or_default(), lock.is_poisoned())
}

/// Waits that end by time alone, not too early.
fn in_vain() -> bool {
    const SPAN: Duration = Duration::from_millis(30);
    let start = Instant::now();
    let (_keep, never) = mpsc::channel::<()>();
    let timed_out = never.recv_timeout(SPAN) == Err(RecvTimeoutError::Timeout);
    std::thread::park_timeout(SPAN);
    let sleeper = std::thread::spawn(std::thread::park);
    std::thread::sleep(SPAN);
    sleeper.thread().unpark();
    sleeper.join().is_ok() && timed_out && start.elapsed() >= 2 * SPAN
}

/// Each of forty threads, which come and go, has its own.
fn turns() -> Vec<u64> {
    let mut all = Vec::new();
    for group in 0..5u64 {
        let threads: Vec<_> = (0..8)
            .map(|index| {
                std::thread::spawn(move || {
                    (0..=group * index).for_each(|_| TURNS.set(TURNS.get() + 1));
                    TURNS.get()
                })
            })
            .collect();
        let sum = threads.into_iter().map(|thread| thread.join().expect("ends well")).sum();
        all.push(sum);
    }
    all
}
