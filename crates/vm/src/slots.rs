//! The inside of one tree node: up to [`CAP`] pieces in ascending order.

/// Pieces in a node. Sixteen: a process with a dozen regions is one leaf and no search.
pub(crate) const CAP: usize = 16;

/// Pages, as numbers: the end of the last region need not be a page that exists.
pub(crate) type PageNumber = u64;

/// What the tree needs to know of a region or of a whole subtree.
pub(crate) trait Piece {
    /// The first page.
    fn start(&self) -> PageNumber;
    /// The first page of the guard gap that the first region keeps below itself.
    fn low(&self) -> PageNumber;
    /// One past the last page.
    fn end(&self) -> PageNumber;
    /// The longest hole inside, in pages.
    fn gap(&self) -> u64;
}

/// [`Piece`] of everything below a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) start: PageNumber,
    pub(crate) low: PageNumber,
    pub(crate) end: PageNumber,
    pub(crate) gap: u64,
}

/// A short vector that never allocates. Slots below `len` are full, the others empty.
pub(crate) struct Slots<T> {
    len: usize,
    items: [Option<T>; CAP],
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { len: 0, items: [const { None }; CAP] }
    }
}

impl<T> Slots<T> {
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        self.items.get(index)?.as_ref()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.items.get_mut(index)?.as_mut()
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.items[..self.len].iter().flatten()
    }

    /// Puts `item` at `index`, moving up what is there. The node must not be full.
    pub(crate) fn insert(&mut self, index: usize, item: T) {
        debug_assert!(self.len < CAP && index <= self.len);
        self.items[index..=self.len].rotate_right(1);
        self.items[index] = Some(item);
        self.len += 1;
    }

    /// Takes out the item at `index`, moving down what is above.
    pub(crate) fn remove(&mut self, index: usize) -> Option<T> {
        if index >= self.len {
            return None;
        }
        let item = self.items[index].take();
        self.items[index..self.len].rotate_left(1);
        self.len -= 1;
        item
    }

    /// Moves the upper half to the empty node `to`.
    pub(crate) fn split_into(&mut self, to: &mut Self) {
        let half = self.len / 2;
        for (from, into) in self.items[half..self.len].iter_mut().zip(&mut to.items) {
            *into = from.take();
        }
        to.len = self.len - half;
        self.len = half;
    }

    /// Moves everything from `other`, which lies above, to the end. It must fit.
    pub(crate) fn append(&mut self, other: &mut Self) {
        debug_assert!(self.len + other.len <= CAP);
        for (into, from) in self.items[self.len..].iter_mut().zip(&mut other.items[..other.len]) {
            *into = from.take();
        }
        self.len += other.len;
        other.len = 0;
    }
}

impl<T: Piece> Slots<T> {
    /// The first piece that ends above `page`; `len` when there is none.
    #[inline]
    pub(crate) fn first_ending_above(&self, page: PageNumber) -> usize {
        self.count(|piece| piece.end() <= page)
    }

    /// The last piece that starts below `page`, or else the first piece.
    #[inline]
    pub(crate) fn last_starting_below(&self, page: PageNumber) -> usize {
        self.count(|piece| piece.start() < page).saturating_sub(1)
    }

    /// How many pieces are `before`: all up to some place, and none from there on. Four halvings.
    #[inline]
    fn count(&self, before: impl Fn(&T) -> bool) -> usize {
        let (mut low, mut high) = (0, self.len.min(CAP));
        while low < high {
            let middle = (low + high) / 2;
            match &self.items[middle] {
                Some(piece) if before(piece) => low = middle + 1,
                _ => high = middle,
            }
        }
        low
    }

    /// The last piece that starts below `page`.
    #[inline]
    pub(crate) fn before(&self, page: PageNumber) -> Option<&T> {
        self.get(self.count(|piece| piece.start() < page).checked_sub(1)?)
    }

    /// The sum over all pieces.
    pub(crate) fn summary(&self) -> Summary {
        let mut pieces = self.iter();
        let Some(first) = pieces.next() else {
            return Summary::default();
        };
        let mut sum =
            Summary { start: first.start(), low: first.low(), end: first.end(), gap: first.gap() };
        for piece in pieces {
            let between = piece.low().saturating_sub(sum.end);
            sum.gap = sum.gap.max(between).max(piece.gap());
            sum.end = piece.end();
        }
        sum
    }
}
