//! What memory calls and faults cost. One static binary of plain Linux system calls, for Linux and
//! for the reference kernel; started by `cargo xtask bench linux` as the first process of both.
//!
//! `mmbench [reps=N] [mark] [case=NAME...]`: the cases of these names; none means all. Other words are
//! passed over: Linux hands what it does not know of its command line to the first process.
//! One line on standard output for each case:
//!
//! ```text
//! mmbench: case=getppid ops=1000 reps=7 min=105.01 median=105.01
//! mmbench: case=file.shared.read error=19
//! mmbench: done
//! ```
//!
//! The figures are counts of the time-stamp counter for one operation. Under QEMU's
//! `-icount shift=0` one count is one guest instruction; on silicon it is a cycle of the counter.
//! The first repetition warms up and is not counted.
//!
//! With `mark` the counted repetitions run between two calls of fixed addresses
//! ([`Marks`]), which a tracer of the machine can see.

use std::fmt::Write as _;
use std::fs;

mod cases;
mod sys;

use sys::{Errno, Map, PAGE, Result};

/// One repetition: how many counts for how many operations.
pub struct Sample {
    /// Counts of the time-stamp counter.
    pub counts: u64,
    /// Operations.
    pub ops: u64,
}

/// Times `work`, which does `ops` operations.
#[inline(always)]
pub fn timed(ops: usize, work: impl FnOnce() -> Result<()>) -> Result<Sample> {
    let before = sys::counter();
    work()?;
    let counts = sys::counter() - before;
    Ok(Sample { counts, ops: ops as u64 })
}

/// A named thing to measure; one call is one repetition.
pub struct Case {
    /// Its name: lower-case words with dots.
    pub name: &'static str,
    /// One repetition.
    pub run: fn(&Marks<'_>) -> Result<Sample>,
}

/// Where a tracer looks: a page at a fixed address whose functions do nothing. Entering
/// `AT + 16 * case` begins the case of this number, entering `AT + END` ends it.
pub struct Marks<'a> {
    page: Option<&'a Map>,
    case: usize,
}

impl Marks<'_> {
    const AT: usize = 0x1234_0000;
    const END: usize = 0x800;
    const RET: u8 = 0xc3;

    fn page() -> Result<Map> {
        let page = Map::new(Self::AT, PAGE, sys::RW, sys::PRIVATE | libc::MAP_FIXED, -1)?;
        page.fill(Self::RET);
        page.protect(0, PAGE, libc::PROT_READ | libc::PROT_EXEC)?;
        Ok(page)
    }

    /// What follows counts.
    pub fn begin(&self) {
        self.page.iter().for_each(|page| page.enter(16 * self.case));
    }

    /// What follows does not count.
    pub fn end(&self) {
        self.page.iter().for_each(|page| page.enter(Self::END));
    }
}

/// What the command line asks for.
struct Wish {
    reps: usize,
    mark: bool,
    names: Vec<String>,
}

impl Wish {
    fn from_arguments() -> Self {
        let mut wish = Self { reps: 7, mark: false, names: Vec::new() };
        for word in std::env::args().skip(1) {
            if let Some(reps) = word.strip_prefix("reps=").and_then(|n| n.parse().ok()) {
                wish.reps = reps;
            } else if word == "mark" {
                wish.mark = true;
            } else if let Some(name) = word.strip_prefix("case=") {
                wish.names.push(name.to_owned());
            }
        }
        wish
    }

    fn wants(&self, case: &Case) -> bool {
        self.names.is_empty() || self.names.iter().any(|name| name == case.name)
    }
}

/// Mappings that bring the process to a dozen regions, whatever the kernel and the linker gave it.
fn pad_regions() -> Result<Vec<Map>> {
    const REGIONS: usize = 12;
    sys::mount_proc();
    let text = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut padding = Vec::new();
    for index in text.lines().count()..REGIONS {
        // Neighbours with different protections are not merged.
        let prot = if index % 2 == 0 { libc::PROT_READ } else { libc::PROT_NONE };
        padding.push(Map::new(0, PAGE, prot, sys::PRIVATE, -1)?);
    }
    Ok(padding)
}

fn measure(case: &Case, reps: usize, marks: &Marks<'_>) -> Result<(u64, Vec<f64>)> {
    let mut figures = Vec::with_capacity(reps);
    let mut ops = 0;
    (case.run)(&Marks { page: None, ..*marks })?;
    for _ in 0..reps {
        let sample = (case.run)(marks)?;
        ops = sample.ops;
        figures.push(sample.counts as f64 / sample.ops.max(1) as f64);
    }
    figures.sort_by(f64::total_cmp);
    Ok((ops, figures))
}

fn report(case: &Case, reps: usize, marks: &Marks<'_>) -> String {
    let mut line = format!("mmbench: case={}", case.name);
    let _ = match measure(case, reps, marks) {
        Ok((ops, figures)) => {
            let min = figures.first().copied().unwrap_or(0.0);
            let median = figures.get(figures.len() / 2).copied().unwrap_or(0.0);
            write!(line, " ops={ops} reps={reps} min={min:.2} median={median:.2}")
        }
        Err(Errno(number)) => write!(line, " error={number}"),
    };
    line + "\n"
}

fn say(line: &str) {
    let _ = sys::write(1, line.as_bytes());
    sys::drain(1);
}

fn main() {
    let wish = Wish::from_arguments();
    sys::no_huge_pages();
    let padding = pad_regions();
    if let Err(error) = &padding {
        say(&format!("mmbench: no padding: {error:?}\n"));
    }
    let page = wish.mark.then(Marks::page).transpose();
    if let Err(error) = &page {
        say(&format!("mmbench: no marks: {error:?}\n"));
    }
    let page = page.ok().flatten();
    for (index, case) in cases::ALL.iter().enumerate().filter(|(_, case)| wish.wants(case)) {
        say(&report(case, wish.reps, &Marks { page: page.as_ref(), case: index }));
    }
    say("mmbench: done\n");
    if std::process::id() == 1 {
        sys::reset_machine();
    }
}
