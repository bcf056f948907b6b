//! What a process may ask for: `PAGODA_MALLOC=word,word` in its environment.

use core::sync::atomic::Ordering;

use crate::allocator::Allocator;
use crate::system::{Local, System};

/// The words, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options(u32);

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

    /// Whether all of `other` was asked for.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// As a number, and back.
    pub(crate) const fn bits(self) -> u32 {
        self.0
    }

    pub(crate) const fn from_bits(bits: u32) -> Self {
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
                _ => Self::NONE,
            })
        })
    }
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
}
