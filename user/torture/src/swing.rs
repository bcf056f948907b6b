//! What the threads of one process do to each other: locks of futexes, bells, signals, short-lived
//! threads, blocks of malloc, moves between CPUs.

use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use crate::board::LANES;
use crate::faults;
use crate::lane::Lane;
use crate::sys::{self, Errno};

/// The words that threads of one process share.
#[derive(Debug)]
pub struct Swing {
    lock: AtomicU32,
    /// Two words that the lock keeps equal.
    guarded: [AtomicU64; 2],
    bells: [AtomicU32; LANES],
    /// The threads that signals may be sent to.
    pub tids: [AtomicI32; LANES],
    /// Lanes of this process.
    pub lanes: AtomicU32,
}

impl Swing {
    /// Nobody holds the lock.
    pub const fn new() -> Self {
        Self {
            lock: AtomicU32::new(0),
            guarded: [const { AtomicU64::new(0) }; 2],
            bells: [const { AtomicU32::new(0) }; LANES],
            tids: [const { AtomicI32::new(0) }; LANES],
            lanes: AtomicU32::new(1),
        }
    }
}

impl Lane {
    /// Another thread of this process, or this one.
    fn sibling(&mut self) -> usize {
        self.random.below(self.swing.lanes.load(Ordering::Relaxed) as usize).min(LANES - 1)
    }

    /// Sends a signal to a thread of this process, which may be this one.
    pub fn signal_sibling(&mut self) {
        let sibling = self.sibling();
        let tid = self.swing.tids[sibling].load(Ordering::SeqCst);
        let signal = if self.random.once_in(2) { libc::SIGUSR1 } else { libc::SIGUSR2 };
        let before = faults::received();
        if tid == 0 {
            return;
        }
        match sys::signal_thread(tid, signal) {
            Ok(()) | Err(Errno(libc::ESRCH)) => {}
            Err(error) => self.refused("tgkill", error),
        }
        if sibling == self.name.1 {
            // A signal to oneself comes before the call returns.
            self.must(faults::received() > before, "a signal to this thread was not delivered");
        }
    }

    /// Takes a lock of a futex and changes what it guards.
    pub fn futex(&mut self) {
        let word = &self.swing.lock;
        for _ in 0..1 + self.random.below(10) {
            if word.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
                while word.swap(2, Ordering::Acquire) != 0 {
                    match sys::futex_wait(word, 2, 50_000_000) {
                        Ok(()) | Err(Errno(libc::EAGAIN | libc::EINTR | libc::ETIMEDOUT)) => {}
                        Err(error) => self.refused("futex wait", error),
                    }
                }
            }
            let [a, b] = [0, 1].map(|i| self.swing.guarded[i].load(Ordering::Relaxed));
            self.swing.guarded[0].store(a + 1, Ordering::Relaxed);
            if self.random.once_in(3) {
                sys::yield_now();
            }
            self.swing.guarded[1].store(b + 1, Ordering::Relaxed);
            self.must(a == b, "two threads were behind one lock");
            if word.swap(0, Ordering::Release) == 2
                && let Err(error) = sys::futex_wake(word, 1)
            {
                self.refused("futex wake", error);
            }
        }
        self.futex_answers();
    }

    /// What a futex must answer when nobody else knows it.
    fn futex_answers(&mut self) {
        let word = AtomicU32::new(7);
        match sys::futex_wait(&word, 8, 1_000_000_000) {
            Err(Errno(libc::EAGAIN)) => {}
            Err(error) => self.refused("futex wait for another value", error),
            Ok(()) => self.wrong(format_args!("futex: waited for another value")),
        }
        let ns = 1000 * self.random.below(2000) as u64;
        let start = sys::now();
        match sys::futex_wait(&word, 7, ns) {
            Err(Errno(libc::ETIMEDOUT)) => {
                self.must(sys::now() - start >= ns, "futex: timed out too early");
            }
            Err(Errno(libc::EINTR)) => {}
            Err(error) => self.refused("futex wait", error),
            Ok(()) => self.wrong(format_args!("futex: woken by nobody")),
        }
        let woken = sys::futex_wake(&word, 10);
        self.must(
            woken == Ok(0) || self.board.tolerant(),
            "futex: woke somebody who was not there",
        );
    }

    /// Rings at another thread, or waits for somebody to ring.
    pub fn bell(&mut self) {
        let other = self.sibling();
        let bell = &self.swing.bells[other];
        bell.fetch_add(1, Ordering::SeqCst);
        let answer = if self.random.once_in(4) {
            sys::futex_requeue(bell, &self.swing.bells[self.name.1])
        } else {
            sys::futex_wake(bell, 1 + self.random.below(3))
        };
        if let Err(error) = answer {
            self.refused("futex wake", error);
        }
        let mine = &self.swing.bells[self.name.1];
        let value = mine.load(Ordering::SeqCst);
        let ns = 1000 * self.random.below(3000) as u64;
        match sys::futex_wait(mine, value, ns) {
            Ok(()) | Err(Errno(libc::EAGAIN | libc::EINTR | libc::ETIMEDOUT)) => {}
            Err(error) => self.refused("futex wait", error),
        }
    }

    /// Moves to another CPU, sees that it is there, and may run everywhere again.
    pub fn change_cpu(&mut self) {
        let Ok(all) = sys::affinity() else { return };
        let cpus: u32 = all.count_ones();
        let mut rest = all;
        for _ in 0..self.random.below(cpus as usize) {
            rest &= rest - 1;
        }
        let chosen = rest.trailing_zeros();
        let Some(()) = self.got("sched_setaffinity", sys::set_affinity(1 << chosen)) else {
            return;
        };
        let seen = sys::cpu();
        if seen != Ok(chosen) && !self.board.tolerant() {
            self.wrong(format_args!("told to run on CPU {chosen}, runs on {seen:?}"));
        }
        self.pulse().cpu.store(chosen, Ordering::Relaxed);
        while let Err(error) = sys::set_affinity(all) {
            self.refused("sched_setaffinity", error);
        }
    }

    /// Sleeps for a moment.
    pub fn sleep(&mut self) {
        let ns = 1000 * self.random.below(4000) as u64;
        let (start, signals) = (sys::now(), faults::received());
        sys::sleep(ns);
        let enough = sys::now() - start >= ns || faults::received() != signals;
        self.must(enough, "slept too short");
    }

    /// Blocks of malloc keep what is written into them.
    pub fn allocate(&mut self) {
        let mut blocks: [Vec<u64>; 8] = Default::default();
        for turn in 0..24 {
            let place = self.random.below(8);
            let tag = self.random.next();
            let len = if turn % 6 == 0 { self.random.below(20_000) } else { self.random.below(64) };
            let block = &mut blocks[place];
            if let Some((first, rest)) = block.split_first() {
                let same = rest.iter().enumerate().all(|(i, word)| *word == first ^ i as u64);
                self.must(same, "a block of malloc changed");
            }
            *block = Vec::new();
            if block.try_reserve_exact(len + 1).is_err() {
                self.refused("malloc", Errno(libc::ENOMEM));
                continue;
            }
            block.push(tag);
            block.extend((0..len as u64).map(|i| tag ^ i));
        }
    }

    /// A thread that lives for a moment.
    pub fn thread(&mut self) {
        let value = self.random.next();
        let stack = (16 << 10) << self.random.below(4);
        let builder = std::thread::Builder::new().stack_size(stack);
        let work = move || {
            let mut sum = value;
            for turn in 0..200u64 {
                sum = sum.rotate_left(5) ^ turn;
                if turn % 64 == 0 {
                    sys::yield_now();
                }
            }
            sum
        };
        match builder.spawn(work) {
            Ok(thread) => {
                let sum = thread.join().unwrap_or(0);
                self.must(sum == work(), "a thread computed something else");
            }
            Err(error) => {
                self.refused("a new thread", Errno(error.raw_os_error().unwrap_or(libc::EAGAIN)));
            }
        }
    }
}
