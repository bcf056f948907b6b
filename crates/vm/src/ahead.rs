//! How many pages one fault brings: a policy.
//!
//! A *stream* is a program that touches one page after another. The first fault of a stream brings
//! its own page; a fault at the page where the last one of the stream stopped brings twice as many as that
//! one did, up to [`Policy::ahead`]. So at most as many pages come unasked as were touched in order before
//! them, and a program that jumps gets exactly its pages. Four streams are remembered for each
//! address space.

use crate::tree::PageNumber;

/// What an address space may do beyond what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// The most pages of anonymous memory that one fault makes present, its own included.
    pub ahead: u16,
}

impl Policy {
    /// A fault brings its page and no other, as Linux does for anonymous memory without huge pages.
    pub const LINUX: Self = Self { ahead: 1 };
    /// A program that walks through memory gets up to 16 pages at a time.
    pub const ADAPTIVE: Self = Self { ahead: 16 };
}

impl Default for Policy {
    fn default() -> Self {
        Self::LINUX
    }
}

const STREAMS: usize = 4;

/// The streams of one address space.
pub(crate) struct Streams {
    policy: Policy,
    /// Where each would go on.
    next: [PageNumber; STREAMS],
    /// What its last fault brought at most.
    pages: [u16; STREAMS],
    /// The one to forget next.
    oldest: usize,
}

impl Streams {
    pub(crate) const fn new(policy: Policy) -> Self {
        Self { policy, next: [PageNumber::MAX; STREAMS], pages: [0; STREAMS], oldest: 0 }
    }

    pub(crate) fn policy(&self) -> Policy {
        self.policy
    }

    /// A fault at `page`: its stream, and how many pages it may bring.
    #[inline]
    pub(crate) fn at(&mut self, page: PageNumber) -> (usize, u64) {
        if self.policy.ahead <= 1 {
            return (0, 1);
        }
        for (stream, next) in self.next.iter().enumerate() {
            if *next == page {
                let pages = self.pages[stream].saturating_mul(2).min(self.policy.ahead);
                self.pages[stream] = pages;
                return (stream, pages.into());
            }
        }
        let stream = self.oldest;
        self.oldest = (stream + 1) % STREAMS;
        self.pages[stream] = 1;
        (stream, 1)
    }

    /// The fault of this stream brought everything up to `end`.
    #[inline]
    pub(crate) fn stopped(&mut self, stream: usize, end: PageNumber) {
        self.next[stream % STREAMS] = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(streams: &mut Streams, page: u64) -> u64 {
        let (stream, pages) = streams.at(page);
        streams.stopped(stream, page + pages);
        pages
    }

    #[test]
    fn who_walks_gets_more_and_who_jumps_does_not() {
        let mut streams = Streams::new(Policy::ADAPTIVE);
        let walked: std::vec::Vec<u64> =
            [0, 1, 3, 7, 15, 31, 47].map(|page| fault(&mut streams, page)).into();
        assert_eq!(walked, [1, 2, 4, 8, 16, 16, 16]);
        assert!((0..100).all(|jump| fault(&mut streams, 1000 + 2 * jump) == 1));
    }

    #[test]
    fn streams_do_not_disturb_each_other_and_linux_has_none() {
        let mut streams = Streams::new(Policy::ADAPTIVE);
        for (page, brought) in [(0, 1), (1, 2), (3, 4)] {
            for start in [0, 1000, 2000, 3000] {
                assert_eq!(fault(&mut streams, start + page), brought);
            }
        }
        let mut linux = Streams::new(Policy::LINUX);
        assert!((0..100).all(|page| fault(&mut linux, page) == 1));
    }
}
