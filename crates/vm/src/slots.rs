//! The inside of one tree node: up to [`CAP`] pieces in ascending order.
//!
//! Pieces stay where they were put; what is sorted is a list of places, four bits each, in one
//! word. So inserting and removing moves no piece, and searching looks at the *keys*, copies of what
//! the search wants to know, side by side. Invariant *keys*: the key in a place is what the piece
//! there says of itself; whoever changes a piece goes through [`Slots::edit`].

/// Pieces in a node. Sixteen: a process with a dozen regions is one leaf, and a list of places is
/// one word.
pub(crate) const CAP: usize = 16;

/// Pages, as numbers: the end of the last region need not be a page that exists.
pub(crate) type PageNumber = u64;

/// What the tree needs to know of a region or of a whole subtree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Summary {
    /// The first page.
    pub(crate) start: PageNumber,
    /// The first page of the guard gap that the first region keeps below itself.
    pub(crate) low: PageNumber,
    /// One past the last page.
    pub(crate) end: PageNumber,
    /// The longest hole inside, in pages.
    pub(crate) gap: u64,
}

/// What can stand in a node.
pub(crate) trait Piece {
    /// What the tree needs to know of it.
    fn key(&self) -> Summary;
}

/// A list of the numbers below 16, each once, four bits each, the first lowest.
#[derive(Clone, Copy)]
struct Order(u64);

impl Order {
    const ASCENDING: Self = Self(0xfedc_ba98_7654_3210);

    #[inline(always)]
    fn get(self, index: usize) -> usize {
        (self.0 >> (4 * index)) as usize & 15
    }

    /// Moves the number at `from` to `to`, which is not above it.
    #[inline]
    fn pull(&mut self, from: usize, to: usize) {
        let moved = self.0 >> (4 * from) & 15;
        // Everything from `to` up to `from` goes one up.
        let between = Self::mask(from) & !Self::mask(to);
        let above = self.0 & !Self::mask(from) & !(15 << (4 * from));
        self.0 = (self.0 & Self::mask(to)) | moved << (4 * to) | (self.0 & between) << 4 | above;
    }

    /// Moves the number at `from` to `to`, which is not below it.
    #[inline]
    fn push(&mut self, from: usize, to: usize) {
        let moved = self.0 >> (4 * from) & 15;
        let below = self.0 & Self::mask(from);
        let between = self.0 >> 4 & Self::mask(to) & !Self::mask(from);
        let above = self.0 & !Self::mask(to) & !(15 << (4 * to));
        self.0 = below | between | moved << (4 * to) | above;
    }

    /// The numbers below `index`.
    #[inline(always)]
    fn mask(index: usize) -> u64 {
        (1 << (4 * index)) - 1
    }
}

/// A short vector that never allocates.
///
/// The places of the first `len` numbers of the order are full, the others empty.
pub(crate) struct Slots<T> {
    len: usize,
    order: Order,
    keys: [Summary; CAP],
    items: [Option<T>; CAP],
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self {
            len: 0,
            order: Order::ASCENDING,
            keys: [Summary::default(); CAP],
            items: [const { None }; CAP],
        }
    }
}

impl<T> Slots<T> {
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        if index >= self.len {
            return None;
        }
        self.items[self.order.get(index)].as_ref()
    }

    /// The key of the piece at `index`, which is below `len`.
    #[inline(always)]
    pub(crate) fn key(&self, index: usize) -> &Summary {
        &self.keys[self.order.get(index % CAP)]
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        (0..self.len).filter_map(|index| self.items[self.order.get(index)].as_ref())
    }

    /// Takes out the item at `index`.
    pub(crate) fn remove(&mut self, index: usize) -> Option<T> {
        if index >= self.len {
            return None;
        }
        self.len -= 1;
        self.order.push(index, self.len);
        self.items[self.order.get(self.len)].take()
    }
}

impl<T: Piece> Slots<T> {
    /// Puts `item` at `index`. The node must not be full.
    #[inline]
    pub(crate) fn insert(&mut self, index: usize, item: T) {
        debug_assert!(self.len < CAP && index <= self.len);
        self.order.pull(self.len, index);
        let place = self.order.get(index);
        self.keys[place] = item.key();
        self.items[place] = Some(item);
        self.len += 1;
    }

    /// Puts `item` behind all others. The node must not be full.
    #[inline]
    pub(crate) fn push(&mut self, item: T) {
        debug_assert!(self.len < CAP);
        let place = self.order.get(self.len);
        self.keys[place] = item.key();
        self.items[place] = Some(item);
        self.len += 1;
    }

    /// Lets `change` alter the item at `index`.
    #[inline]
    pub(crate) fn edit<R>(&mut self, index: usize, change: impl FnOnce(&mut T) -> R) -> Option<R> {
        if index >= self.len {
            return None;
        }
        let place = self.order.get(index);
        let item = self.items[place].as_mut()?;
        let result = change(item);
        self.keys[place] = item.key();
        Some(result)
    }

    /// Moves the upper half to the empty node `to`.
    pub(crate) fn split_into(&mut self, to: &mut Self) {
        let half = self.len / 2;
        for index in half..self.len {
            if let Some(item) = self.items[self.order.get(index)].take() {
                to.insert(to.len, item);
            }
        }
        self.len = half;
    }

    /// Moves everything from `other`, which lies above, to the end. It must fit.
    pub(crate) fn append(&mut self, other: &mut Self) {
        debug_assert!(self.len + other.len <= CAP);
        for index in 0..other.len {
            if let Some(item) = other.items[other.order.get(index)].take() {
                self.insert(self.len, item);
            }
        }
        other.len = 0;
    }

    /// The first piece that ends above `page`; `len` when there is none.
    #[inline]
    pub(crate) fn first_ending_above(&self, page: PageNumber) -> usize {
        self.count(|key| key.end <= page)
    }

    /// The last piece that starts below `page`, or else the first piece.
    #[inline]
    pub(crate) fn last_starting_below(&self, page: PageNumber) -> usize {
        self.count_below(page).saturating_sub(1)
    }

    /// How many pieces start below `page`.
    #[inline]
    pub(crate) fn count_below(&self, page: PageNumber) -> usize {
        self.count(|key| key.start < page)
    }

    /// How many pieces are `before`: all up to some place, and none from there on. Four halvings.
    #[inline(always)]
    fn count(&self, before: impl Fn(&Summary) -> bool) -> usize {
        let (mut low, mut high) = (0, self.len);
        while low < high {
            let middle = (low + high) / 2;
            if before(self.key(middle)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The last piece that starts below `page`.
    #[inline]
    pub(crate) fn before(&self, page: PageNumber) -> Option<&T> {
        self.get(self.count_below(page).checked_sub(1)?)
    }

    /// The sum over all pieces.
    pub(crate) fn summary(&self) -> Summary {
        if self.len == 0 {
            return Summary::default();
        }
        let mut sum = *self.key(0);
        let mut order = self.order.0 >> 4;
        for _ in 1..self.len {
            let key = &self.keys[order as usize & 15];
            order >>= 4;
            sum.gap = sum.gap.max(key.low.saturating_sub(sum.end)).max(key.gap);
            sum.end = key.end;
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_a_list_in_which_numbers_move() {
        for from in 0..CAP {
            for to in 0..CAP {
                let mut order = Order(0x3210_fedc_ba98_7654);
                let mut list: std::vec::Vec<usize> = (0..CAP).map(|i| order.get(i)).collect();
                let moved = list.remove(from);
                list.insert(to, moved);
                if to <= from {
                    order.pull(from, to)
                } else {
                    order.push(from, to)
                }
                let got: std::vec::Vec<usize> = (0..CAP).map(|i| order.get(i)).collect();
                assert_eq!(got, list, "{from} to {to}");
            }
        }
    }
}
