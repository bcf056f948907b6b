//! Random memory calls on this machine's own Linux and on an address space over the emulated
//! machine: results, maps, residency and contents have to agree.
//!
//! The Linux side is a child of this process that makes the calls it is told to make ([`real`]);
//! the other side is `pagoda-linux` over `pagoda-vm` over `pagoda-emu` ([`ours`]). After every call
//! the result and the maps are compared (neighbours with the same rights as one), and which pages
//! of private anonymous memory are present; after every sequence the contents. A sequence that
//! differs is shortened and printed.
//!
//! By default some seconds with one seed; `PAGODA_DIFF_CALLS=1000000` runs that many calls,
//! `PAGODA_DIFF_SEED=7` with another seed.
//!
//! What is known to differ, and why:
//!
//! - *kept-apart*: Linux keeps anonymous regions apart that are alike but were forked or moved (each
//!   has its own record of who shares it), so `mremap` over their border is `EFAULT`. Here they are
//!   one region, and the call goes on. The sequence ends there.
//! - *moves-many*: from 6.17 on Linux moves several regions (and holes) at once where old and new
//!   length are the same and the place is fixed; we answer `EFAULT`, as Linux did before. The
//!   sequence ends there.
//! - *half-done*: a move to a fixed place out of a range that is too long is refused by both, but
//!   Linux has emptied the place by then. The same for a second mapping (old length 0) over the page
//!   that it is asked from. Not generated.
//! - *wrong-twice*: with no type of sharing and an occupied place for `MAP_FIXED_NOREPLACE`, Linux
//!   says `EEXIST` and we say `EINVAL`. Not generated.
//! - *out-if-it-can*: what `MADV_PAGEOUT` finds depends on where Linux keeps a page at the moment.
//!   Both are made alike by `MADV_DONTNEED` on the same range.
//! - *now-all*: `mlockall` for what is mapped already would lock the child itself. Not generated.
//! - *mincore-asks-files*: for private file mappings `mincore` tells what the page cache holds, and
//!   Linux maps pages of files around a fault; so residency is compared in anonymous memory alone.
//! - *anywhere*: where a kernel puts what it may put anywhere is not compared; such calls are not
//!   generated.
#![cfg(all(target_os = "linux", target_arch = "x86_64", not(miri)))]
#![allow(unsafe_code, missing_docs)] // makes system calls, forwards unsafe traits

mod calls;
mod ours;
mod real;

use std::time::{Duration, Instant};

use calls::{Call, Random};
use ours::Ours;
use real::Real;

/// Where both sides work: a window of pages that nothing else uses.
const BASE: u64 = 0x10_0000_0000;
const PAGES: u64 = 48;
const PAGE: u64 = 4096;
/// What a call can reach: the window, and as much below and above it.
const REACH: std::ops::Range<u64> = BASE - PAGES * PAGE..BASE + 2 * PAGES * PAGE;
const CALLS_IN_SEQUENCE: usize = 60;

/// One mapping: first byte, end, rights as in `/proc/PID/maps`.
type Maps = Vec<(u64, u64, String)>;

/// Joins neighbours with the same rights.
fn push(maps: &mut Maps, start: u64, end: u64, rights: &str) {
    match maps.last_mut() {
        Some(last) if last.1 == start && last.2 == rights => last.1 = end,
        _ => maps.push((start, end, rights.to_owned())),
    }
}

/// What both sides do.
trait Side {
    /// The result register: an error as a negative number.
    fn call(&mut self, call: Call) -> i64;
    fn maps(&mut self) -> Maps;
    /// Present pages of private anonymous memory.
    fn present(&mut self, anonymous: &[bool]) -> Vec<bool>;
    /// The file is what it was at first.
    fn reset_file(&mut self);
    /// Pages that are private anonymous memory, if this side can tell.
    fn anonymous(&mut self) -> Vec<bool>;
}

enum End {
    Agree,
    /// Stopped at this call for a reason that the head of the file names.
    Explained(usize),
    Differ(usize, String),
}

/// Runs a sequence on both sides from nothing.
fn run(real: &mut Real, ours: &mut Ours, sequence: &[Call]) -> End {
    let reset = Call::Unmap { addr: REACH.start, len: REACH.end - REACH.start };
    let _ = (real.call(reset), ours.call(reset));
    let _ = (real.call(Call::LockAll { flags: 0 }), ours.call(Call::LockAll { flags: 0 }));
    real.reset_file();
    ours.reset_file();
    for (index, &call) in sequence.iter().enumerate() {
        let (theirs, mine) = (real.call(call), ours.call(call));
        if explained(call, theirs, mine) {
            return End::Explained(index);
        }
        if theirs != mine {
            return End::Differ(index, format!("result: Linux {theirs:#x}, ours {mine:#x}"));
        }
        if let Call::Advise { addr, len, advice: 21 } = call {
            // *out-if-it-can*
            let again = Call::Advise { addr, len, advice: 4 };
            let _ = (real.call(again), ours.call(again));
        }
        let (theirs, mine) = (real.maps(), ours.maps());
        if theirs != mine {
            return End::Differ(index, format!("maps:\n  Linux {theirs:x?}\n  ours  {mine:x?}"));
        }
        let anonymous = ours.anonymous();
        let (theirs, mine) = (real.present(&anonymous), ours.present(&anonymous));
        if let Some(page) = (0..theirs.len()).find(|&page| theirs[page] != mine[page]) {
            let (theirs, addr) = (theirs[page], REACH.start + page as u64 * PAGE);
            return End::Differ(index, format!("page {addr:#x}: present on Linux: {theirs}"));
        }
    }
    for page in 0..PAGES {
        for offset in [0, 99, 100, PAGE - 1] {
            let read = Call::Read { addr: BASE + page * PAGE + offset };
            let (theirs, mine) = (real.call(read), ours.call(read));
            if theirs != mine {
                let what = format!("{read:x?}: Linux {theirs}, ours {mine}");
                return End::Differ(sequence.len().saturating_sub(1), what);
            }
        }
    }
    End::Agree
}

/// Is it *kept-apart*, or *moves-many*?
fn explained(call: Call, theirs: i64, mine: i64) -> bool {
    let Call::Remap { old, new, flags, .. } = call else { return false };
    let fault = -i64::from(libc::EFAULT);
    let many =
        flags & 2 != 0 && old.wrapping_add(PAGE - 1) / PAGE == new.wrapping_add(PAGE - 1) / PAGE;
    (theirs == fault && mine != fault) || (many && mine == fault)
}

/// Leaves out call after call as long as the rest still differs.
fn shorten(real: &mut Real, ours: &mut Ours, mut sequence: Vec<Call>) -> Vec<Call> {
    let mut index = sequence.len();
    while index > 0 {
        index -= 1;
        let mut shorter = sequence.clone();
        shorter.remove(index);
        if matches!(run(real, ours, &shorter), End::Differ(..)) {
            sequence = shorter;
        }
    }
    sequence
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn random_calls_agree_with_linux() {
    let seed = number("PAGODA_DIFF_SEED").unwrap_or(1);
    let wanted = number("PAGODA_DIFF_CALLS");
    println!("PAGODA_DIFF_SEED={seed}");
    let Some(mut real) = Real::start() else {
        return println!("this machine lets no child do what the test needs; nothing compared");
    };
    let host = ours::host();
    let mut ours = Ours::new(&host);
    let end = Instant::now() + Duration::from_secs(4);
    let (mut calls, mut explained, mut number) = (0, 0, 0);
    while wanted.map_or(Instant::now() < end, |wanted| calls < wanted) {
        let mut random = Random::new(seed, number);
        let sequence: Vec<Call> =
            std::iter::repeat_with(|| calls::draw(&mut random)).take(CALLS_IN_SEQUENCE).collect();
        match run(&mut real, &mut ours, &sequence) {
            End::Agree => calls += sequence.len() as u64,
            End::Explained(index) => {
                (calls, explained) = (calls + index as u64, explained + 1);
            }
            End::Differ(index, what) => {
                let short = shorten(&mut real, &mut ours, sequence[..=index].to_vec());
                let again = match run(&mut real, &mut ours, &short) {
                    End::Differ(_, what) => what,
                    _ => what,
                };
                for call in &short {
                    println!("  {call:x?}");
                }
                panic!("seed {seed}, sequence {number}, after {calls} calls: {again}");
            }
        }
        number += 1;
    }
    println!("{calls} calls agree; {explained} sequences ended at an explained difference");
}
