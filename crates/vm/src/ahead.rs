//! How many pages one fault brings: a policy.
//!
//! A *stream* is a program that touches one page after another. The first fault of a stream brings
//! its own page; a fault at the page where the last one of the stream stopped brings twice as many as that
//! one did, up to [`Policy::ahead`]. So at most as many pages come unasked as were touched in order before
//! them, and a program that jumps gets exactly its pages. Eight streams are remembered for each address
//! space, the last one used first: a malloc walks through several arenas at once.

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
    /// A program that walks through memory gets up to 32 pages at a time.
    pub const ADAPTIVE: Self = Self { ahead: 32 };
}

impl Default for Policy {
    fn default() -> Self {
        Self::LINUX
    }
}

const STREAMS: usize = 8;

/// A walk.
#[derive(Clone, Copy)]
struct Stream {
    /// Where it would go on.
    next: PageNumber,
    /// What its last fault brought at most.
    pages: u16,
}

/// The streams of one address space.
pub(crate) struct Streams {
    policy: Policy,
    /// The one that was used last stands first.
    recent: [Stream; STREAMS],
}

impl Streams {
    pub(crate) const fn new(policy: Policy) -> Self {
        let none = Stream { next: PageNumber::MAX, pages: 0 };
        Self { policy, recent: [none; STREAMS] }
    }

    pub(crate) fn policy(&self) -> Policy {
        self.policy
    }

    /// A fault at `page`: how many pages it may bring.
    #[inline]
    pub(crate) fn at(&mut self, page: PageNumber) -> u64 {
        if self.policy.ahead <= 1 {
            return 1;
        }
        // The last one is forgotten if it is none of them.
        let mut carried = Stream { next: page, pages: 0 };
        for stream in &mut self.recent {
            core::mem::swap(stream, &mut carried);
            if carried.next == page {
                break;
            }
        }
        let [first, ..] = &mut self.recent;
        let pages = if carried.next == page { carried.pages.saturating_mul(2) } else { 1 };
        first.pages = pages.clamp(1, self.policy.ahead);
        first.pages.into()
    }

    /// The last fault brought everything up to `end`.
    #[inline]
    pub(crate) fn stopped(&mut self, end: PageNumber) {
        let [first, ..] = &mut self.recent;
        first.next = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(streams: &mut Streams, page: u64) -> u64 {
        let pages = streams.at(page);
        streams.stopped(page + pages);
        pages
    }

    #[test]
    fn who_walks_gets_more_and_who_jumps_does_not() {
        let mut streams = Streams::new(Policy::ADAPTIVE);
        let walked: std::vec::Vec<u64> =
            [0, 1, 3, 7, 15, 31, 63, 95].map(|page| fault(&mut streams, page)).into();
        assert_eq!(walked, [1, 2, 4, 8, 16, 32, 32, 32]);
        assert!((0..100).all(|jump| fault(&mut streams, 1000 + 2 * jump) == 1));
    }

    #[test]
    fn streams_do_not_disturb_each_other_and_linux_has_none() {
        let mut streams = Streams::new(Policy::ADAPTIVE);
        for (page, brought) in [(0, 1), (1, 2), (3, 4)] {
            for start in 0..8 {
                assert_eq!(fault(&mut streams, 1000 * start + page), brought);
            }
        }
        // A ninth one takes the place of the one that was not used for longest.
        assert_eq!(fault(&mut streams, 7), 8);
        assert_eq!(fault(&mut streams, 9000), 1);
        assert_eq!([7007, 15, 1007].map(|page| fault(&mut streams, page)), [8, 16, 1]);
        let mut linux = Streams::new(Policy::LINUX);
        assert!((0..100).all(|page| fault(&mut linux, page) == 1));
    }
}
