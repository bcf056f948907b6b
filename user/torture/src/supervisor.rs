//! The first process: starts workers, kills and stops some of them, watches all hearts, counts.

use core::sync::atomic::Ordering;
use std::process::ExitCode;

use crate::Options;
use crate::board::{Board, GAVE_UP, LANES, Op, Pulse, WORKERS, WRONG};
use crate::faults;
use crate::lane::{Lane, Life};
use crate::random::Random;
use crate::swing::Swing;
use crate::sys;

const SECOND: u64 = 1_000_000_000;
/// A thread that does nothing for this long is stuck.
const PATIENCE: u64 = 40 * SECOND;

/// What the threads of this process share, in a worker.
static SWING: Swing = Swing::new();

/// A worker's place.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    pid: usize,
    /// How many were started here.
    lives: u64,
    /// We sent a deadly signal.
    killed: bool,
}

/// A heart that was looked at.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    beat: u64,
    since: u64,
}

impl Seen {
    /// How long it has stood still, when that is too long.
    fn stuck(&mut self, pulse: &Pulse, now: u64) -> Option<u64> {
        let beat = pulse.beat.load(Ordering::Relaxed);
        if beat != self.beat || self.since == 0 || pulse.tid.load(Ordering::Relaxed) == 0 {
            *self = Self { beat, since: now };
        }
        let still = now - self.since;
        (still > PATIENCE).then_some(still / SECOND)
    }
}

struct Supervisor {
    options: Options,
    board: &'static Board,
    random: Random,
    places: Vec<Place>,
    pulse: usize,
    seen: Vec<[Seen; LANES]>,
    seen_cpus: [Seen; 64],
    killed: u64,
    stopped: u64,
    out_of_memory: u64,
    stuck: u64,
}

/// The whole run.
pub fn run(options: Options) -> ExitCode {
    let board = match Board::new() {
        Ok(board) => board,
        Err(error) => {
            eprintln!("torture: no board: error {}", error.0);
            return ExitCode::FAILURE;
        }
    };
    board.tolerant.store(options.tolerant, Ordering::SeqCst);
    sys::adopt_orphans();
    let cpus = sys::affinity().map_or(1, u64::count_ones) as usize;
    let wanted = if options.workers == 0 { (2 * cpus).max(3) } else { options.workers };
    let wanted = wanted.min(if options.ranges { LANES } else { WORKERS });
    let options = Options { workers: wanted, ..options };
    println!(
        "torture: {} s, seed {}, {wanted} {}, {cpus} CPUs",
        options.seconds,
        options.seed,
        if options.ranges { "threads" } else { "workers" },
    );
    let places = vec![Place::default(); if options.ranges { 1 } else { wanted }];
    let seen = vec![[Seen::default(); LANES]; places.len()];
    let mut all = Supervisor {
        options,
        board,
        random: Random::new(options.seed),
        places,
        pulse: 0,
        seen,
        seen_cpus: [Seen::default(); 64],
        killed: 0,
        stopped: 0,
        out_of_memory: 0,
        stuck: 0,
    };
    all.watch();
    all.finish();
    all.summary()
}

impl Supervisor {
    fn watch(&mut self) {
        let end = sys::now() + self.options.seconds * SECOND;
        while sys::now() < end && self.board.wrong.load(Ordering::SeqCst) == 0 && self.stuck == 0 {
            self.start_missing();
            while let Ok((pid @ 1.., status)) = sys::wait(-1, libc::WNOHANG) {
                self.note_end(pid, status);
            }
            self.trouble();
            self.look();
            sys::sleep(20_000_000);
        }
    }

    fn start_missing(&mut self) {
        if self.pulse == 0 {
            match sys::fork_with_library() {
                Ok(0) => beat_on_all_cpus(self.board),
                Ok(pid) => self.pulse = pid,
                Err(error) => self.refused(error.0),
            }
        }
        for worker in 0..self.places.len() {
            if self.places[worker].pid != 0 {
                continue;
            }
            for pulse in &self.board.lanes[worker] {
                pulse.tid.store(0, Ordering::SeqCst);
            }
            let Options { seed, ranges, .. } = self.options;
            let life = self.places[worker].lives;
            let life = Life { board: self.board, swing: &SWING, seed, worker, life, ranges };
            match sys::fork_with_library() {
                Ok(0) => work(life, self.options.workers),
                Ok(pid) => {
                    let place = &mut self.places[worker];
                    *place = Place { pid, lives: place.lives + 1, killed: false };
                }
                Err(error) => self.refused(error.0),
            }
        }
    }

    fn refused(&mut self, error: i32) {
        self.board.refused.fetch_add(1, Ordering::Relaxed);
        if !self.options.tolerant {
            self.board.wrong(format_args!("fork of a worker answered error {error}"));
        }
    }

    /// A child has ended: was that right?
    fn note_end(&mut self, pid: usize, status: i32) {
        let (signal, code) = (status & 0x7f, status >> 8);
        let memory = self.options.tolerant
            && (matches!(signal, libc::SIGKILL | libc::SIGSEGV | libc::SIGABRT | libc::SIGBUS)
                || code == GAVE_UP as i32);
        if pid == self.pulse {
            self.pulse = 0;
            if status == 0 && self.board.stop.load(Ordering::SeqCst) {
                return;
            }
            for pulse in &self.board.cpus {
                pulse.tid.store(0, Ordering::SeqCst);
            }
        } else if let Some(place) = self.places.iter_mut().find(|place| place.pid == pid) {
            place.pid = 0;
            if place.killed && signal == libc::SIGKILL || status == 0 {
                return;
            }
        } else {
            // An orphan: its parent was killed, so that nobody checks how it ended but for this.
            if code == WRONG as i32 {
                self.board.wrong(format_args!("orphan {pid} found something wrong"));
            }
            return;
        }
        if memory {
            self.out_of_memory += 1;
        } else {
            self.board.wrong(format_args!("process {pid} ended with status {status:#x}"));
        }
    }

    /// Kills somebody, or stops him for a moment.
    fn trouble(&mut self) {
        if self.options.ranges {
            return;
        }
        let victim = self.random.below(self.places.len());
        let place = &mut self.places[victim];
        if place.pid == 0 {
            return;
        }
        match self.random.below(60) {
            0..4 => {
                place.killed = true;
                self.killed += 1;
                let _ = sys::kill(place.pid, libc::SIGKILL);
            }
            4 => {
                self.stopped += 1;
                let _ = sys::kill(place.pid, libc::SIGSTOP);
                sys::sleep(3_000_000);
                let _ = sys::kill(place.pid, libc::SIGCONT);
            }
            _ => {}
        }
    }

    /// Does everything that lives move?
    fn look(&mut self) {
        let now = sys::now();
        for worker in 0..self.places.len() {
            for lane in 0..LANES {
                let pulse = &self.board.lanes[worker][lane];
                if let Some(seconds) = self.seen[worker][lane].stuck(pulse, now) {
                    self.stuck += 1;
                    let op = Op::ALL[pulse.op.load(Ordering::Relaxed) as usize % Op::ALL.len()];
                    let tid = pulse.tid.load(Ordering::Relaxed);
                    println!(
                        "torture: STUCK: worker {worker}.{lane}, thread {tid}, in {op:?} for \
                         {seconds} s"
                    );
                    describe(tid);
                }
            }
        }
        for cpu in 0..64 {
            if let Some(seconds) = self.seen_cpus[cpu].stuck(&self.board.cpus[cpu], now) {
                self.stuck += 1;
                println!("torture: STUCK: nothing runs on CPU {cpu} for {seconds} s");
            }
        }
    }

    /// Lets all threads come to their end, and takes everybody's status.
    fn finish(&mut self) {
        self.board.stop.store(true, Ordering::SeqCst);
        let give_up = sys::now() + PATIENCE;
        loop {
            match sys::wait(-1, libc::WNOHANG) {
                Ok((0, _)) => {
                    if sys::now() > give_up {
                        let left: Vec<_> = self.places.iter().filter(|p| p.pid != 0).collect();
                        println!("torture: STUCK: do not end: {left:?}");
                        self.stuck += 1;
                        return;
                    }
                    if self.stuck != 0 || self.board.wrong.load(Ordering::SeqCst) != 0 {
                        for place in self.places.iter_mut().filter(|place| place.pid != 0) {
                            place.killed = true;
                            let _ = sys::kill(place.pid, libc::SIGKILL);
                        }
                    }
                    sys::sleep(5_000_000);
                }
                Ok((pid, status)) => self.note_end(pid, status),
                Err(_) => return,
            }
        }
    }

    fn summary(&self) -> ExitCode {
        let board = self.board;
        for op in Op::ALL {
            let done = board.done[op as usize].load(Ordering::Relaxed);
            if done != 0 {
                print!("{} {done}, ", format!("{op:?}").to_lowercase());
            }
        }
        println!("faults {}", board.faults.load(Ordering::Relaxed));
        let operations: u64 = board.done.iter().map(|done| done.load(Ordering::Relaxed)).sum();
        let wrong = board.wrong.load(Ordering::SeqCst);
        let lives: u64 = self.places.iter().map(|place| place.lives).sum();
        println!(
            "torture: {operations} operations, {} pages compared, {lives} lives, {} killed, {} \
             stopped, {} refused, {} out of memory; {wrong} wrong, {} stuck",
            board.pages.load(Ordering::Relaxed),
            self.killed,
            self.stopped,
            board.refused.load(Ordering::Relaxed),
            self.out_of_memory,
            self.stuck,
        );
        ExitCode::from(u8::from(wrong != 0 || self.stuck != 0))
    }
}

/// What the kernel says about a thread.
fn describe(tid: i32) {
    for file in ["status", "wchan", "syscall"] {
        if let Ok(text) = std::fs::read_to_string(format!("/proc/{tid}/{file}")) {
            print!("{text}");
        }
    }
}

/// A worker's life: all of its threads live, then it ends.
fn work(life: Life, threads: usize) -> ! {
    faults::install();
    let mut random = Random::new(life.seed ^ life.life << 20 ^ life.worker as u64);
    let lanes = if life.ranges { threads } else { 1 + random.below(4) };
    life.swing.lanes.store(lanes as u32, Ordering::SeqCst);
    let operations = if life.ranges { usize::MAX } else { 50 + random.below(600) };
    let mut others = Vec::new();
    for lane in 1..lanes {
        let builder = std::thread::Builder::new().stack_size(128 << 10);
        match builder.spawn(move || live(life, lane, operations)) {
            Ok(thread) => others.push(thread),
            Err(_) if life.board.tolerant() => sys::exit(GAVE_UP),
            Err(error) => {
                life.board.wrong(format_args!("a lane's thread: {error}"));
                sys::exit(WRONG);
            }
        }
    }
    live(life, 0, operations);
    for thread in others {
        if thread.join().is_err() {
            sys::exit(WRONG);
        }
    }
    sys::exit(0)
}

fn live(life: Life, index: usize, operations: usize) {
    if !faults::make_signal_stack() {
        if life.board.tolerant() {
            sys::exit(GAVE_UP);
        }
        life.board.wrong(format_args!("no memory for a signal stack"));
        sys::exit(WRONG);
    }
    life.swing.tids[index].store(sys::gettid(), Ordering::SeqCst);
    Lane::new(life, index).live(operations);
    life.swing.tids[index].store(0, Ordering::SeqCst);
    faults::drop_signal_stack();
}

/// A thread on each CPU that does nothing but move on.
fn beat_on_all_cpus(board: &'static Board) -> ! {
    let all = sys::affinity().unwrap_or(1);
    let mut threads = Vec::new();
    for cpu in (0..64).filter(|cpu| all & 1 << cpu != 0) {
        let builder = std::thread::Builder::new().stack_size(64 << 10);
        let thread = builder.spawn(move || {
            let pulse = &board.cpus[cpu];
            if sys::set_affinity(1 << cpu).is_err() {
                return;
            }
            pulse.tid.store(sys::gettid(), Ordering::SeqCst);
            while !board.stop.load(Ordering::Relaxed) {
                pulse.beat.fetch_add(1, Ordering::Relaxed);
                sys::sleep(10_000_000);
            }
            pulse.tid.store(0, Ordering::SeqCst);
        });
        threads.extend(thread);
    }
    for thread in threads {
        let _ = thread.join();
    }
    sys::exit(0)
}
