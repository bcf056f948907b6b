//! Epochs, hand-over and serving locks on real threads, and what debug builds assert.
#![allow(unsafe_code)] // implements unsafe traits

use std::boxed::Box;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::vec::Vec;

use lock_api::RawMutex;

use crate::host::ThreadCpus;
use crate::{
    CachePadded, CpuId, Cpus, Deferral, EpochCell, Epochs, HandOver, HandOverCell, MAX_CPUS,
    RawSpin, Serving, ServingSpin, SpinHook,
};

/// Objects by number; freeing one is remembered.
struct Numbers {
    links: Vec<Mutex<Option<usize>>>,
    freed: Vec<AtomicBool>,
}

impl Numbers {
    fn new(count: usize) -> Self {
        let links = (0..count).map(|_| Mutex::new(None)).collect();
        Self { links, freed: (0..count).map(|_| AtomicBool::new(false)).collect() }
    }
}

// SAFETY: the links are kept.
unsafe impl Deferral for Numbers {
    type Item = usize;
    fn set_next(&self, item: usize, next: Option<usize>) {
        *self.links[item].lock().unwrap() = next;
    }
    fn next(&self, item: usize) -> Option<usize> {
        *self.links[item].lock().unwrap()
    }
    fn reclaim(&self, item: usize) {
        assert!(!self.freed[item].swap(true, Ordering::SeqCst), "object {item} was freed twice");
    }
}

fn cells<T>(cell: impl Fn() -> T) -> Box<[CachePadded<T>]> {
    (0..MAX_CPUS).map(|_| CachePadded(cell())).collect()
}

type TestEpochs<'s> = Epochs<'s, ThreadCpus, Numbers>;

fn epochs(cells: &mut [CachePadded<EpochCell<usize>>], count: usize) -> TestEpochs<'_> {
    // SAFETY: `ThreadCpus` alone.
    unsafe { Epochs::new(cells, Numbers::new(count)) }
}

#[test]
fn what_is_deferred_waits_for_two_epochs_and_goes_once() {
    let mut cells = cells(EpochCell::new);
    let mut epochs = epochs(&mut cells, 10);
    let pin = ThreadCpus.pin();
    epochs.enter(&pin);
    let mut freed = 0;
    for item in 0..9 {
        // SAFETY: nobody can find it.
        unsafe { epochs.defer(&pin, item) };
        freed += epochs.reclaim(&pin);
        epochs.quiesce(&pin);
        assert!(!epochs.deferral().freed[item].load(Ordering::SeqCst));
        assert!(item < 2 || epochs.deferral().freed[item - 2].load(Ordering::SeqCst));
        assert_eq!(freed + epochs.deferred(&pin), item + 1, "deferred = freed + waiting");
    }
    epochs.leave(&pin);
    drop(pin);
    assert_eq!(freed + epochs.drain(), 9);
    let freed = epochs.deferral().freed.iter().filter(|freed| freed.load(Ordering::SeqCst));
    assert_eq!(freed.count(), 9);
}

#[test]
fn a_reader_holds_everything_up_and_a_resting_cpu_nothing() {
    let mut cells = cells(EpochCell::new);
    let epochs = epochs(&mut cells, 1);
    let steps = AtomicUsize::new(0);
    let wait_for = |step| {
        while steps.load(Ordering::SeqCst) != step {
            std::thread::yield_now()
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let pin = ThreadCpus.pin();
            epochs.enter(&pin);
            let reading = epochs.read(&pin);
            steps.store(1, Ordering::SeqCst);
            wait_for(2);
            drop(reading);
            epochs.leave(&pin);
            steps.store(3, Ordering::SeqCst);
            wait_for(4);
        });
        wait_for(1);
        let pin = ThreadCpus.pin();
        // SAFETY: nobody can find it.
        unsafe { epochs.defer(&pin, 0) };
        assert_eq!((0..10).map(|_| epochs.reclaim(&pin)).sum::<usize>(), 0);
        steps.store(2, Ordering::SeqCst);
        wait_for(3);
        assert_eq!((0..10).map(|_| epochs.reclaim(&pin)).sum::<usize>(), 1);
        steps.store(4, Ordering::SeqCst);
    });
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "is said to hold no reference, but 1 reading guards are alive")]
fn a_quiescent_state_with_a_reference_is_reported() {
    let mut cells = cells(EpochCell::new);
    let epochs = epochs(&mut cells, 1);
    let pin = ThreadCpus.pin();
    epochs.enter(&pin);
    let _reading = epochs.read(&pin);
    epochs.leave(&pin);
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "reads while it rests")]
fn reading_at_rest_is_reported() {
    let mut cells = cells(EpochCell::new);
    let epochs = epochs(&mut cells, 1);
    let pin = ThreadCpus.pin();
    let _reading = epochs.read(&pin);
}

#[test]
fn a_busy_owner_honours_requests_at_its_pins() {
    let cells = cells(HandOverCell::new);
    let requests = HandOver::<ThreadCpus>::new(&cells);
    let (drains, owner) = (AtomicU64::new(0), AtomicUsize::new(usize::MAX));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let drain = || {
                drains.fetch_add(1, Ordering::SeqCst);
            };
            loop {
                let pin = ThreadCpus.pin();
                requests.honour(&pin, drain);
                owner.store(pin.cpu().index(), Ordering::SeqCst);
                if stop.load(Ordering::SeqCst) {
                    return requests.rest(&pin, drain);
                }
            }
        });
        while owner.load(Ordering::SeqCst) == usize::MAX {
            std::thread::yield_now();
        }
        let cpu = CpuId::new(owner.load(Ordering::SeqCst)).unwrap();
        for asked in 1..=100 {
            let ticket = requests.post(cpu);
            while !requests.is_done(ticket) {
                std::thread::yield_now();
            }
            assert_eq!(drains.load(Ordering::SeqCst), asked);
        }
        stop.store(true, Ordering::SeqCst);
    });
    let cpu = CpuId::new(owner.into_inner()).unwrap();
    assert!(requests.is_done(requests.post(cpu)), "it rests");
}

static REQUESTED: AtomicBool = AtomicBool::new(false);
static SERVED: AtomicBool = AtomicBool::new(false);

struct Serve;
impl SpinHook for Serve {
    fn spin() {
        if REQUESTED.load(Ordering::SeqCst) {
            SERVED.store(true, Ordering::SeqCst);
        }
    }
}

/// The holder waits for the waiter: with a plain lock both would wait for ever.
#[test]
fn who_waits_for_a_serving_lock_serves_its_holder() {
    assert_eq!(size_of::<ServingSpin<Serve>>(), size_of::<RawSpin>());
    let lock = lock_api::Mutex::<ServingSpin<Serve>, u32>::new(0);
    std::thread::scope(|scope| {
        let mut held = lock.lock();
        scope.spawn(|| *lock.lock() += 1);
        REQUESTED.store(true, Ordering::SeqCst);
        while !SERVED.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        *held += 1;
    });
    assert_eq!(*lock.lock(), 2);
}

struct Ignore;
impl SpinHook for Ignore {
    fn spin() {
        std::thread::yield_now();
    }
}

#[test]
fn a_serving_lock_excludes() {
    let lock = lock_api::Mutex::<Serving<RawSpin, Ignore>, u64>::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..1000).for_each(|_| *lock.lock() += 1));
        }
    });
    assert_eq!(lock.into_inner(), 4000);
    let raw = Serving::<RawSpin, Ignore>::INIT;
    assert!(raw.try_lock() && raw.is_locked() && !raw.try_lock());
}
