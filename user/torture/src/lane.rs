//! One thread's random life: what it has, and how it chooses.

use core::fmt;
use core::sync::atomic::Ordering;

use crate::board::{Board, GAVE_UP, Op, Pulse, WRONG};
use crate::random::Random;
use crate::regions::Regions;
use crate::swing::Swing;
use crate::sys::{self, Errno};

/// See the module.
pub struct Lane {
    /// What all see.
    pub board: &'static Board,
    /// What the threads of this process see.
    pub swing: &'static Swing,
    /// Which worker, which of its threads, which of the worker's lives.
    pub name: (usize, usize, u64),
    /// Where its numbers come from.
    pub random: Random,
    /// Its memory.
    pub regions: Regions,
    /// Only memory calls.
    pub quiet: bool,
}

/// What all lanes of one worker's life share.
#[derive(Clone, Copy)]
pub struct Life {
    /// What all see.
    pub board: &'static Board,
    /// What the threads of this process see.
    pub swing: &'static Swing,
    /// The run's seed.
    pub seed: u64,
    /// The worker's place.
    pub worker: usize,
    /// How often it was started before.
    pub life: u64,
    /// Only memory calls, each thread in its own range.
    pub ranges: bool,
}

impl Lane {
    /// Thread `index` of this life.
    pub fn new(life: Life, index: usize) -> Self {
        let Life { board, swing, seed, worker, life, ranges } = life;
        let place = (worker as u64) << 32 | index as u64;
        let random = Random::new(seed ^ crate::random::mix(place) ^ life << 40);
        let regions = Regions::new(index, ranges);
        Self { board, swing, name: (worker, index, life), random, regions, quiet: ranges }
    }

    /// What the supervisor watches.
    pub fn pulse(&self) -> &'static Pulse {
        &self.board.lanes[self.name.0][self.name.1]
    }

    /// Says that this lane begins an operation.
    pub fn begin(&self, op: Op) {
        let pulse = self.pulse();
        pulse.op.store(op as u32, Ordering::Relaxed);
        crate::faults::note(op as u32);
        pulse.beat.fetch_add(1, Ordering::Relaxed);
        self.board.done[op as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Still alive, in a long operation.
    pub fn beat(&self) {
        self.pulse().beat.fetch_add(1, Ordering::Relaxed);
    }

    /// Something is not as it must be: says so and ends the process.
    pub fn wrong(&self, text: fmt::Arguments<'_>) -> ! {
        let (worker, lane, life) = self.name;
        let op = Op::ALL[self.pulse().op.load(Ordering::Relaxed) as usize % Op::ALL.len()];
        self.board.wrong(format_args!("worker {worker}.{lane}, life {life}, {op:?}: {text}"));
        sys::exit(WRONG)
    }

    /// Something must hold.
    pub fn must(&self, holds: bool, text: &str) {
        if !holds {
            self.wrong(format_args!("{text}"));
        }
    }

    /// The kernel refused a call. That is right only where it may be short of memory.
    pub fn refused(&self, what: &str, error: Errno) {
        let short = matches!(error.0, libc::ENOMEM | libc::EAGAIN | libc::ENFILE | libc::ENOBUFS);
        if !self.board.tolerant() || !short {
            self.wrong(format_args!("{what} answered error {}", error.0));
        }
        self.board.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The value of a call, or none where the kernel may refuse and did.
    pub fn got<T>(&self, what: &str, answer: sys::Result<T>) -> Option<T> {
        match answer {
            Ok(value) => Some(value),
            Err(error) => {
                self.refused(what, error);
                None
            }
        }
    }

    /// A process that cannot go on for want of memory ends; wrong where there is enough.
    pub fn give_up(&self, what: &str, error: Errno) -> ! {
        self.refused(what, error);
        sys::exit(GAVE_UP)
    }

    /// Lives for this many operations.
    pub fn live(&mut self, operations: usize) {
        self.pulse().tid.store(sys::gettid(), Ordering::SeqCst);
        for _ in 0..operations {
            if self.board.stop.load(Ordering::Relaxed) {
                break;
            }
            self.step();
        }
        self.begin(Op::Check);
        self.check_all();
        self.begin(Op::Unmap);
        self.clear();
        self.pulse().tid.store(0, Ordering::SeqCst);
    }

    fn step(&mut self) {
        let choice = self.random.below(if self.quiet { 58 } else { 100 });
        let op = match choice {
            0..11 => Op::Map,
            11..25 => Op::Touch,
            25..34 => Op::Check,
            34..42 => Op::Unmap,
            42..48 => Op::Protect,
            48..53 => Op::Remap,
            53..58 => Op::Advise,
            58..61 => Op::File,
            61..66 => Op::Fork,
            66 => Op::Exec,
            67 => Op::Spawn,
            68..71 => Op::Pipe,
            71..78 => Op::Registers,
            78..83 => Op::Masks,
            83..89 => Op::Signal,
            89..92 => Op::Futex,
            92..95 => Op::Bell,
            95 => Op::Move,
            96 => Op::Sleep,
            97..99 => Op::Allocate,
            _ => Op::Thread,
        };
        self.begin(op);
        match op {
            Op::Idle => {}
            Op::Map => self.map(),
            Op::Touch => self.touch(),
            Op::Check => self.check_one(),
            Op::Unmap => self.unmap(),
            Op::Protect => self.protect(),
            Op::Remap => self.remap(),
            Op::Advise => self.advise(),
            Op::File => self.file(),
            Op::Fork => self.fork(),
            Op::Exec => self.exec(),
            Op::Spawn => self.spawn(),
            Op::Pipe => self.pipe(),
            Op::Registers => self.registers(),
            Op::Masks => self.masks(),
            Op::Signal => self.signal_sibling(),
            Op::Futex => self.futex(),
            Op::Bell => self.bell(),
            Op::Move => self.change_cpu(),
            Op::Sleep => self.sleep(),
            Op::Allocate => self.allocate(),
            Op::Thread => self.thread(),
        }
    }
}
