//! What a process may ask for: `PAGODA_MALLOC=word,word` in its environment.

use core::sync::atomic::Ordering;

use crate::allocator::Allocator;
use crate::system::{Local, System};

/// The words, as bits; above them, a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options(u64);

impl Options {
    /// Nothing asked for.
    pub const NONE: Self = Self(0);
    /// `hardened`: see [`crate::hardened`].
    pub const HARDENED: Self = Self(1);
    /// `stats`: statistics on standard error at exit.
    pub const STATS: Self = Self(2);
    /// `leaks`: at exit, what was never freed, by the place that allocated it. Brings `hardened`.
    pub const LEAKS: Self = Self(4);

    /// `profile`: at exit, a heap profile of what is live. Brings `hardened`.
    pub const PROFILE: Self = Self(8);

    /// `picture`: at exit, a picture of the memory.
    pub const PICTURE: Self = Self(16);

    /// `nohelper`: no thread of our own gives back what is idle. So it is in hardened mode.
    pub const NO_HELPER: Self = Self(32);

    /// `nohuge`: no huge pages anywhere.
    pub const NO_HUGE: Self = Self(64);

    /// `sample`, `sample=BYTES`: at exit, a heap profile by sampling. Not in hardened mode.
    pub const SAMPLE: Self = Self(128);

    /// What `sample` means: 512 KiB.
    const INTERVAL: u32 = 512 << 10;
    const WORDS: u64 = u32::MAX as u64;

    /// [`Options::SAMPLE`], where one byte in so many is told of; zero: none.
    pub const fn sampling(interval: u32) -> Self {
        if interval == 0 { Self::NONE } else { Self(Self::SAMPLE.0 | (interval as u64) << 32) }
    }

    /// Bytes for each of which there is a sample, on average; zero when nothing is sampled.
    pub const fn interval(self) -> usize {
        (self.0 >> 32) as usize
    }

    /// What is left of options that exclude each other.
    pub(crate) const fn settled(self) -> Self {
        let sampled = self.has(Self::SAMPLE) && !self.has(Self::HARDENED) && self.interval() > 0;
        if sampled { self } else { Self(self.0 & Self::WORDS & !Self::SAMPLE.0) }
    }

    /// Whether any of `other` was asked for.
    pub(crate) const fn has_any(self, other: Self) -> bool {
        self.0 & other.0 & Self::WORDS != 0
    }

    /// Whether all of `other` was asked for.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 & Self::WORDS == other.0 & Self::WORDS
    }

    /// Both. Of two numbers the other's.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        let keep = if other.interval() == 0 { u64::MAX } else { Self::WORDS };
        Self(self.0 & keep | other.0)
    }

    /// As a number, and back.
    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Reads the words after `PAGODA_MALLOC=`. Unknown ones are passed over: a newer library may know
    /// them.
    pub fn parse(words: &[u8]) -> Self {
        words.split(|&byte| byte == b',').fold(Self::NONE, |all, word| {
            all.with(match word {
                b"hardened" => Self::HARDENED,
                b"stats" => Self::STATS,
                b"leaks" => Self::LEAKS.with(Self::HARDENED),
                b"picture" => Self::PICTURE,
                b"nohelper" => Self::NO_HELPER,
                b"nohuge" => Self::NO_HUGE,
                b"profile" => Self::PROFILE.with(Self::HARDENED),
                b"sample" => Self::sampling(Self::INTERVAL),
                _ => match word.strip_prefix(b"sample=") {
                    Some(digits) => Self::sampling(number(digits)),
                    None => Self::NONE,
                },
            })
        })
    }
}

/// A number that fits, or the largest; zero if it is none.
fn number(digits: &[u8]) -> u32 {
    let read = |sum: Option<u32>, &digit: &u8| {
        let digit = digit.is_ascii_digit().then(|| u32::from(digit - b'0'))?;
        Some(sum?.saturating_mul(10).saturating_add(digit))
    };
    digits.iter().fold(Some(0), read).unwrap_or(0)
}

impl<S: System, L: Local> Allocator<S, L> {
    /// What the process was asked to do beside its work; nothing before the first allocation.
    #[inline]
    pub fn options(&self) -> Options {
        Options::from_bits(self.options.load(Ordering::Relaxed))
    }

    /// The system below.
    pub fn system(&self) -> &S {
        &self.system
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_and_unknown_ones_passed_over() {
        let options = Options::parse(b"stats,tomorrow,hardened");
        assert!(options.has(Options::HARDENED) && options.has(Options::STATS));
        assert!(!options.has(Options::LEAKS));
        assert!(Options::parse(b"leaks").has(Options::HARDENED));
        assert!(Options::parse(b"profile").has(Options::HARDENED.with(Options::PROFILE)));
        assert_eq!(Options::parse(b"nohelper"), Options::NO_HELPER);
        assert_eq!(Options::parse(b"nohuge"), Options::NO_HUGE);
        assert_eq!(Options::parse(b""), Options::NONE);
    }

    #[test]
    fn an_interval_is_read_and_hardened_mode_has_no_use_for_it() {
        assert_eq!(Options::parse(b"sample").interval(), 512 << 10);
        assert_eq!(Options::parse(b"sample=1000,stats,sample=70").interval(), 70);
        assert_eq!(Options::parse(b"sample=99999999999").interval(), u32::MAX as usize);
        for none in [&b"sample=0"[..], b"sample=", b"sample=1k", b"sampled", b"sample=-1"] {
            assert_eq!(Options::parse(none), Options::NONE);
        }
        let both = Options::parse(b"sample=7,profile");
        assert_eq!(both.settled(), Options::HARDENED.with(Options::PROFILE));
        let sampled = Options::parse(b"stats,sample=7").settled();
        assert!(sampled.has(Options::SAMPLE) && sampled.has(Options::STATS));
        assert!(sampled.has_any(Options::SAMPLE.with(Options::HARDENED)));
        assert!(!Options::STATS.has_any(Options::SAMPLE.with(Options::HARDENED)));
    }
}
