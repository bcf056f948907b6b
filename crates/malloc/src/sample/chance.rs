//! Numbers for the dice, and what a throw is worth. `core` has no logarithm: both functions are summed up
//! here, to more digits than anybody needs who throws dice.

use core::f64::consts::LN_2;

/// How many blocks and bytes samples stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Sum {
    /// In parts of [`PARTS`].
    parts: u64,
    bytes: u64,
}

/// A block has so many parts: estimates are no whole numbers, sums of whole numbers are exact.
const PARTS: f64 = 1024.0;

impl Sum {
    pub const NOTHING: Self = Self { parts: 0, bytes: 0 };

    pub fn blocks(self) -> u64 {
        (self.parts + PARTS as u64 / 2) / PARTS as u64
    }

    pub fn bytes(self) -> u64 {
        self.bytes
    }

    pub fn add(&mut self, other: Self) {
        self.parts = self.parts.wrapping_add(other.parts);
        self.bytes = self.bytes.wrapping_add(other.bytes);
    }

    pub fn subtract(&mut self, other: Self) {
        self.parts = self.parts.wrapping_sub(other.parts);
        self.bytes = self.bytes.wrapping_sub(other.bytes);
    }
}

/// What a sample of so many bytes stands for: each of its kind is one with probability `p`, so that it is
/// `1 / p` of them.
pub fn worth(bytes: usize, interval: usize) -> Sum {
    let p = chosen((bytes as f64 + 1.0) / interval.max(1) as f64);
    Sum { parts: (PARTS / p + 0.5) as u64, bytes: (bytes as f64 / p + 0.5) as u64 }
}

/// `1 - exp(-x)`, for positive numbers.
fn chosen(x: f64) -> f64 {
    if x < 1.0 / 32.0 {
        // The difference of two numbers that are nearly equal would have few digits.
        return x * (1.0 - x / 2.0 * (1.0 - x / 3.0 * (1.0 - x / 4.0 * (1.0 - x / 5.0))));
    }
    let halvings = (x / LN_2) as u64;
    if halvings > 60 {
        return 1.0;
    }
    let rest = x - halvings as f64 * LN_2;
    let power = (1..20).rev().fold(1.0, |sum, n| 1.0 + rest / f64::from(n) * sum);
    1.0 - 1.0 / (power * (1_u64 << halvings) as f64)
}

/// `-ln(x)`, for numbers above zero, up to one.
fn minus_ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let halvings = 1023.0 - (bits >> 52) as f64;
    let mantissa = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
    // ln(m) = 2 artanh((m - 1) / (m + 1)).
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let sum = (0..16).rev().fold(0.0, |sum, n| sum * s * s + 1.0 / f64::from(2 * n + 1));
    halvings * LN_2 - 2.0 * s * sum
}

/// A thread's numbers: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Luck(u64);

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn mixed(mut number: u64) -> u64 {
    number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

impl Luck {
    /// Nothing was drawn yet.
    pub const NONE: Self = Self(0);

    /// The numbers of a heap.
    pub fn new(seed: usize, heap: usize) -> Self {
        Self(mixed(seed as u64 ^ mixed(heap as u64 + 1)) | 1)
    }

    /// Bytes until the next sample: the whole part of an exponentially distributed number. A block that
    /// counts `n` is reached with probability `1 - exp(-n / interval)`.
    pub fn distance(&mut self, process: u64, interval: usize) -> usize {
        self.0 = self.0.wrapping_add(STEP);
        let number = mixed(self.0 ^ process.wrapping_mul(STEP).rotate_left(32));
        let uniform = ((number >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        (minus_ln(uniform) * interval as f64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithm_and_power_agree_with_the_libraries() {
        for n in (1..100_000_u32).step_by(if cfg!(miri) { 997 } else { 1 }) {
            let x = f64::from(n) / 99_999.0;
            assert!((minus_ln(x) + x.ln()).abs() < 1e-12, "ln {x}");
            for x in [x, 50.0 * x, 1e-6 * x] {
                let right = -(-x).exp_m1();
                assert!((chosen(x) / right - 1.0).abs() < 1e-9, "{x}: {} {right}", chosen(x));
            }
        }
        assert_eq!((minus_ln(1.0), chosen(1e9)), (0.0, 1.0));
        assert!((minus_ln(f64::powi(0.5, 53)) - 53.0 * LN_2).abs() < 1e-12);
    }

    #[test]
    fn distances_are_exponential_with_the_mean_that_was_asked_for() {
        const INTERVAL: usize = 1 << 19;
        const DRAWN: usize = if cfg!(miri) { 1000 } else { 100_000 };
        let mut luck = Luck::new(12345, 0);
        let drawn: Vec<_> = (0..DRAWN).map(|_| luck.distance(1, INTERVAL)).collect();
        let mean = drawn.iter().sum::<usize>() as f64 / DRAWN as f64;
        // The standard deviation of the mean is interval / sqrt(drawn).
        assert!((mean / INTERVAL as f64 - 1.0).abs() < 5.0 / (DRAWN as f64).sqrt(), "{mean}");
        for share in [0.01, 0.1, 0.5, 1.0, 3.0] {
            let below = drawn.iter().filter(|&&d| (d as f64) < share * INTERVAL as f64).count();
            let p = 1.0 - f64::exp(-share);
            let sigma = (p * (1.0 - p) / DRAWN as f64).sqrt();
            let found = below as f64 / DRAWN as f64;
            assert!((found - p).abs() < 5.0 * sigma, "{share}: {found}, not {p}");
        }
    }

    #[test]
    fn processes_and_heaps_draw_numbers_of_their_own() {
        let first = |seed, heap, process| Luck::new(seed, heap).distance(process, 1 << 30);
        let all = [first(1, 0, 1), first(2, 0, 1), first(1, 1, 1), first(1, 0, 2)];
        for (index, number) in all.iter().enumerate() {
            assert!(!all[..index].contains(number), "{all:?}");
        }
    }

    #[test]
    fn a_sample_of_a_large_block_is_one_and_of_a_small_one_many() {
        let large = worth(100 << 20, 512 << 10);
        assert_eq!((large.blocks(), large.bytes()), (1, 100 << 20));
        let small = worth(63, 64 << 10);
        assert!((1024..1026).contains(&small.blocks()), "{small:?}");
        assert!((63 * 1024..63 * 1026).contains(&small.bytes()), "{small:?}");
        assert_eq!(worth(0, 1000).bytes(), 0);
        let mut sum = Sum::NOTHING;
        sum.add(small);
        sum.add(large);
        sum.subtract(small);
        assert_eq!(sum, large);
    }
}
