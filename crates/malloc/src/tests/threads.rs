//! Several threads: blocks freed elsewhere, threads that end, and what a fork leaves behind.

use std::sync::mpsc;
use std::thread;

use super::rig::{Rig, SOME, Sent, check_and_free, must_be_empty, rig};

fn make(rig: &Rig, number: usize) -> Sent {
    let bytes = match number % 16 {
        0 => 2000 + number % 9000,
        1 => 150_000,
        _ => 1 + number % 700,
    };
    let at = rig.alloc(bytes);
    assert!(!at.is_null());
    unsafe { at.write_bytes(number as u8, bytes) };
    Sent(at, bytes, number as u8)
}

const ROUNDS: usize = if cfg!(miri) { 60 } else { 20_000 };

#[test]
fn what_one_thread_allocates_another_may_free() {
    let rig = rig();
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::sync_channel::<Sent>(300);
        scope.spawn(|| {
            for number in 0..ROUNDS {
                sender.send(make(&rig, number)).unwrap();
            }
            drop(sender);
            rig.thread_ends();
        });
        scope.spawn(|| {
            let receiver = receiver;
            let mut own = Vec::new();
            for (number, sent) in receiver.iter().enumerate() {
                check_and_free(&rig, sent);
                own.push(make(&rig, number));
                if own.len() > 50 {
                    check_and_free(&rig, own.swap_remove(number % 50));
                }
            }
            own.into_iter().for_each(|sent| check_and_free(&rig, sent));
            rig.thread_ends();
        });
    });
    must_be_empty(&rig);
}

/// A block that has been at hand, and is the program's now.
fn tied(rig: &Rig, bytes: usize) -> *mut u8 {
    let free_and_take = |at: *mut u8| unsafe {
        rig.free(at);
        rig.alloc(bytes)
    };
    (0..4).fold(rig.alloc(bytes), |at, _| free_and_take(at))
}

#[test]
fn a_block_that_was_at_hand_may_go_to_other_threads_and_come_back() {
    const BYTES: usize = 4000;
    let rig = rig();
    let at = tied(&rig, BYTES);
    let elsewhere = |work: &(dyn Fn() + Sync)| {
        thread::scope(|scope| {
            let work = || {
                work();
                rig.thread_ends();
            };
            scope.spawn(work).join().unwrap();
        });
    };
    let sent = at as usize;
    // It is tied to the other, given to the program there and freed here.
    elsewhere(&|| {
        unsafe { rig.free(tied(&rig, BYTES)) };
        unsafe { rig.free(sent as *mut u8) };
    });
    // What waits there went back when the thread ended; what comes now may be the same block, or not.
    let blocks = [0; 4].map(|_| tied(&rig, BYTES));
    for (number, &block) in blocks.iter().enumerate() {
        unsafe { block.write_bytes(number as u8, BYTES) };
    }
    for (number, &block) in blocks.iter().enumerate() {
        assert!((0..BYTES).all(|byte| unsafe { *block.add(byte) } == number as u8));
        let block = block as usize;
        elsewhere(&|| unsafe { rig.free(block as *mut u8) });
    }
    must_be_empty(&rig);
}

#[test]
fn a_block_that_was_at_hand_may_change_its_size() {
    const BYTES: usize = 40_000;
    for bytes in [BYTES / 2, BYTES + 30_000, 2 * BYTES, 5 * BYTES] {
        let rig = rig();
        let at = tied(&rig, BYTES);
        let resized = unsafe { rig.realloc(at, bytes) };
        unsafe { resized.write_bytes(1, bytes) };
        // Its place waits for it, and is asked for its old size.
        let [one, two] = [tied(&rig, BYTES), tied(&rig, BYTES)];
        for at in [one, two] {
            assert!(unsafe { rig.usable(at) } >= BYTES);
            unsafe { at.write_bytes(2, BYTES) };
        }
        assert!((0..bytes).all(|byte| unsafe { *resized.add(byte) } == 1), "{bytes}");
        unsafe { rig.free(resized) };
        assert!(unsafe { rig.usable(rig.alloc(bytes)) } >= bytes);
        for at in [one, two] {
            unsafe { rig.free(at) };
            assert!(unsafe { rig.usable(rig.alloc(BYTES)) } >= BYTES);
        }
    }
}

#[test]
fn of_slabs_that_come_home_whole_some_stay_for_who_wants_them() {
    let rig = rig();
    let of_a_slab = crate::UNIT_BYTES / 64;
    let wave = || {
        let all: Vec<_> = (0..8 * of_a_slab).map(|_| rig.alloc(64) as usize).collect();
        thread::scope(|scope| {
            scope.spawn(|| {
                all.into_iter().for_each(|at| unsafe { rig.free(at as *mut u8) });
                rig.thread_ends();
            });
        });
    };
    for _ in 0..3 {
        wave();
        let at = rig.alloc(64);
        let slabs = rig.stats().slab_bytes() / crate::UNIT_BYTES;
        assert!((4..=5).contains(&slabs), "four, and perhaps the head: {slabs}");
        unsafe { rig.free(at) };
    }
    rig.trim(0);
    assert_eq!(rig.stats().slab_bytes(), 0, "not for ever");
    must_be_empty(&rig);
}

#[test]
fn everybody_frees_everybodys() {
    let rig = rig();
    let shared = std::sync::Mutex::new(Vec::<Sent>::new());
    thread::scope(|scope| {
        for seed in 0..4_usize {
            let (rig, shared) = (&rig, &shared);
            scope.spawn(move || {
                for number in 0..ROUNDS {
                    let sent = make(rig, number.wrapping_mul(seed * 2 + 1));
                    let mut shared = shared.lock().unwrap();
                    shared.push(sent);
                    if shared.len() > 200 {
                        let index = number * 7919 % shared.len();
                        let other = shared.swap_remove(index);
                        drop(shared);
                        check_and_free(rig, other);
                    }
                }
                rig.thread_ends();
            });
        }
    });
    shared.into_inner().unwrap().into_iter().for_each(|sent| check_and_free(&rig, sent));
    must_be_empty(&rig);
}

#[test]
fn the_heap_of_a_thread_that_ended_is_used_again() {
    let rig = rig();
    for _ in 0..20 {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    let kept = make(&rig, 5);
                    rig.thread_ends();
                    kept
                })
                .join()
                .map(|kept| check_and_free(&rig, kept))
                .unwrap();
        });
    }
    assert!(rig.stats().heaps <= 2);
    must_be_empty(&rig);
}

#[test]
fn blocks_of_a_thread_that_ended_are_given_back_by_whoever_frees_them() {
    let rig = rig();
    let all = thread::scope(|scope| {
        scope
            .spawn(|| {
                let all: Vec<_> = (0..2000).map(|n| make(&rig, n * 16 + 2)).collect();
                rig.thread_ends();
                all
            })
            .join()
            .unwrap()
    });
    let before = rig.stats().footprint();
    all.into_iter().for_each(|sent| check_and_free(&rig, sent));
    assert!(rig.stats().footprint() < before / 2);
    must_be_empty(&rig);
}

#[test]
fn after_a_fork_the_child_goes_on_without_the_other_threads() {
    let rig = rig();
    let (to_main, from_thread) = mpsc::channel();
    let (to_thread, from_main) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let rig = &rig;
        scope.spawn(move || {
            let all: Vec<_> = (0..1000 / SOME).map(|n| make(rig, n * 16 + 2)).collect();
            to_main.send(all).unwrap();
            // Stays where it is: in the child it does not exist.
            from_main.recv().unwrap();
        });
        let theirs = from_thread.recv().unwrap();
        let mine: Vec<_> = (0..1000 / SOME).map(|n| make(rig, n * 16 + 3)).collect();
        rig.before_fork();
        rig.after_fork_in_child();
        theirs.into_iter().for_each(|sent| check_and_free(rig, sent));
        mine.into_iter().for_each(|sent| check_and_free(rig, sent));
        let again: Vec<_> = (0..5000 / SOME).map(|n| make(rig, n)).collect();
        again.into_iter().for_each(|sent| check_and_free(rig, sent));
        to_thread.send(()).unwrap();
    });
    super::rig::check_arenas(&rig);
}

#[test]
fn after_a_fork_the_parent_goes_on_as_before() {
    let rig = rig();
    let all: Vec<_> = (0..100).map(|n| make(&rig, n)).collect();
    rig.before_fork();
    rig.after_fork_in_parent();
    all.into_iter().for_each(|sent| check_and_free(&rig, sent));
    must_be_empty(&rig);
}

#[test]
fn a_heap_is_taken_over_only_when_its_thread_is_gone_from_this_process() {
    use std::sync::atomic::Ordering::Relaxed;
    let rig = rig();
    rig.system.process.store(1, Relaxed);
    let kept = make(&rig, 5);
    let mine = rig.own_heap().map(|heap| heap as *const crate::Heap as usize);
    let theirs = || {
        thread::scope(|scope| {
            let heap = || {
                let _ = make(&rig, 5);
                rig.own_heap().map(|heap| heap as *const crate::Heap as usize)
            };
            scope.spawn(heap).join().unwrap()
        })
    };
    // A child of a fork that nobody announced: all numbers of threads are the parent's.
    rig.system.process.store(2, Relaxed);
    rig.system.alone.store(true, Relaxed);
    let other = theirs();
    assert_ne!(other, mine);
    // In their own process, a thread that ended without a word leaves its heap to the next.
    assert_eq!(theirs(), other);
    assert_ne!(theirs(), mine);
    check_and_free(&rig, kept);
}
