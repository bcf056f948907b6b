//! How things are timed: peers side by side, in turn, in many short windows of thread CPU time.
//!
//! A machine with neighbours changes its speed from second to second, so a figure alone means
//! little; figures from interleaved windows of one run can be compared. The median of the windows
//! is reported, and the spread (from the first to the third quartile) beside it.

use std::time::Duration;

/// Thread CPU time so far.
pub fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Keeps this thread on one of the machine's CPUs, one after the other, as long as the system allows it.
/// Two threads that mostly wait for each other would else share one.
pub fn stay_on(place: usize) {
    // SAFETY: plain bits, which the calls fill and read.
    unsafe {
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        let bytes = size_of_val(&allowed);
        if libc::sched_getaffinity(0, bytes, &mut allowed) != 0 {
            return;
        }
        let cpus: Vec<_> =
            (0..libc::CPU_SETSIZE as usize).filter(|&cpu| libc::CPU_ISSET(cpu, &allowed)).collect();
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpus[place % cpus.len()], &mut one);
        libc::sched_setaffinity(0, bytes, &one);
    }
}

/// One of several that are measured against each other: a name, and the work. The work does as many
/// operations as it likes and returns their number.
pub struct Contestant<'a> {
    /// Name in the table.
    pub name: String,
    /// One window of work; returns the number of operations done.
    pub work: Box<dyn FnMut() -> u64 + 'a>,
    /// What is done before each window, and not timed.
    pub before: Box<dyn FnMut() + 'a>,
}

impl<'a> Contestant<'a> {
    /// A contestant of this name.
    pub fn new(name: impl Into<String>, work: impl FnMut() -> u64 + 'a) -> Self {
        Self { name: name.into(), work: Box::new(work), before: Box::new(|| ()) }
    }
}

/// What a contestant's windows came to, in nanoseconds per operation.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Name in the table.
    pub name: String,
    /// The median window.
    pub median: f64,
    /// The first and third quartile: how noisy the machine was.
    pub quartiles: (f64, f64),
}

/// Runs everybody's work `rounds` times in turn (after one round that does not count).
pub fn contest(contestants: &mut [Contestant<'_>], rounds: usize) -> Vec<Figure> {
    let mut samples = vec![Vec::with_capacity(rounds); contestants.len()];
    for round in 0..=rounds {
        for (contestant, samples) in contestants.iter_mut().zip(&mut samples) {
            (contestant.before)();
            let before = thread_time();
            let operations = (contestant.work)();
            let spent = thread_time() - before;
            if round > 0 && operations > 0 {
                samples.push(spent.as_nanos() as f64 / operations as f64);
            }
        }
    }
    contestants
        .iter()
        .zip(samples)
        .map(|(contestant, samples)| figure(&contestant.name, samples))
        .collect()
}

/// The median and quartiles of `samples`; not-a-number when there are none.
pub fn figure(name: &str, mut samples: Vec<f64>) -> Figure {
    samples.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let index = (samples.len() as f64 * part) as usize;
        samples.get(index.min(samples.len().wrapping_sub(1))).copied().unwrap_or(f64::NAN)
    };
    Figure { name: name.to_owned(), median: at(0.5), quartiles: (at(0.25), at(0.75)) }
}

/// Two that were measured in turn, window by window, on a machine whose speed drifts: the two windows one
/// after the other whose ratio is the median of all ratios. The quartiles are those of all windows.
pub fn in_turn(one: (&str, Vec<f64>), other: (&str, Vec<f64>)) -> [Figure; 2] {
    let mut pairs: Vec<_> = one.1.iter().copied().zip(other.1.iter().copied()).collect();
    pairs.sort_by(|a, b| f64::total_cmp(&(a.0 / a.1), &(b.0 / b.1)));
    let (first, second) = pairs.get(pairs.len() / 2).copied().unwrap_or((f64::NAN, f64::NAN));
    let [one, other] = [one, other].map(|(name, samples)| figure(name, samples));
    [Figure { median: first, ..one }, Figure { median: second, ..other }]
}

/// Whose samples were taken in turn with those of a `base`, round by round, on a machine whose speed drifts: the
/// median of the ratios within a round, in units of the base's median. The quartiles are those of all samples.
pub fn beside(base: &[f64], name: &str, samples: Vec<f64>) -> Figure {
    let unit = figure("", base.to_vec()).median;
    Figure { median: ratio(base, &samples) * unit, ..figure(name, samples) }
}

/// The median of the ratios of samples to those of a base, round by round.
pub fn ratio(base: &[f64], samples: &[f64]) -> f64 {
    figure("", samples.iter().zip(base).map(|(sample, base)| sample / base).collect()).median
}

/// A reproducible source of numbers (xorshift64*, Vigna 2016).
pub struct Numbers(u64);

impl Numbers {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next number.
    #[inline]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// The next number below `limit`.
    #[inline]
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }
}
