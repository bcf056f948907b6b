//! What a caller wants.

use pagoda_addr::{Order, PhysAddr};

use crate::Node;

/// What the owner uses frames for: one byte of the owner's choosing, kept in the frame table and
/// named when frames are listed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Kind(pub u8);

/// How much an allocation matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Class {
    /// Refused when no more than the reserve is left.
    #[default]
    Normal,
    /// May use the reserve: for what is needed to free memory.
    Reserve,
}

/// Can the owner give up these frames for others with the same content?
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mobility {
    /// No: the kernel's own structures.
    #[default]
    Unmovable,
    /// Yes: pages of programs.
    Movable,
}

impl Mobility {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Unmovable, Self::Movable];

    #[inline]
    pub(crate) const fn of(movable: bool) -> Self {
        if movable { Self::Movable } else { Self::Unmovable }
    }

    #[inline]
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Unmovable => Self::Movable,
            Self::Movable => Self::Unmovable,
        }
    }
}

/// A wish for contiguous frames. Build one with [`frame`](Self::frame), [`order`](Self::order) or
/// [`count`](Self::count) and refine it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Request {
    pub(crate) count: u64,
    pub(crate) align: Order,
    pub(crate) boundary: Option<Order>,
    pub(crate) below: Option<PhysAddr>,
    pub(crate) zeroed: bool,
    pub(crate) class: Class,
    pub(crate) mobility: Mobility,
    pub(crate) kind: Kind,
    pub(crate) node: Option<Node>,
    pub(crate) only: bool,
}

impl Request {
    /// One frame.
    pub const fn frame() -> Self {
        Self::count(1)
    }

    /// 2^`order` frames, aligned to their own size.
    pub const fn order(order: Order) -> Self {
        Self::count(order.count()).align(order)
    }

    /// Would any frame do?
    #[inline]
    pub(crate) const fn is_single(&self) -> bool {
        self.count == 1 && self.align.get() == 0 && self.below.is_none() && self.node.is_none()
    }

    /// The order, if any aligned block of at least 2 MiB would do.
    #[inline]
    pub(crate) const fn large(&self) -> Option<u8> {
        let order = self.align.get();
        let plain = self.below.is_none() && self.boundary.is_none() && self.node.is_none();
        if order >= 9 && self.count == self.align.count() && plain { Some(order) } else { None }
    }

    /// `count` frames in one piece, aligned to one frame.
    pub const fn count(count: u64) -> Self {
        Self {
            count,
            align: Order::PAGE,
            boundary: None,
            below: None,
            zeroed: false,
            class: Class::Normal,
            mobility: Mobility::Unmovable,
            kind: Kind(0),
            node: None,
            only: false,
        }
    }

    /// The first frame's number is a multiple of 2^`align`.
    pub const fn align(mut self, align: Order) -> Self {
        self.align = align;
        self
    }

    /// The range does not cross a multiple of 2^`boundary` frames.
    pub const fn within(mut self, boundary: Order) -> Self {
        self.boundary = Some(boundary);
        self
    }

    /// Every byte lies below `limit`.
    pub const fn below(mut self, limit: PhysAddr) -> Self {
        self.below = Some(limit);
        self
    }

    /// Every byte is zero.
    pub const fn zeroed(mut self) -> Self {
        self.zeroed = true;
        self
    }

    /// How much it matters.
    pub const fn class(mut self, class: Class) -> Self {
        self.class = class;
        self
    }

    /// Whether the frames may be moved later. A hint: see [`Mobility`].
    pub const fn mobility(mut self, mobility: Mobility) -> Self {
        self.mobility = mobility;
        self
    }

    /// What the frame table says about the frames.
    pub const fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// From this node, or, if it has none, from the one that is closest to it. Without a node, that
    /// of the asking CPU.
    pub const fn node(mut self, node: Node) -> Self {
        self.node = Some(node);
        self
    }

    /// From this node or not at all.
    pub const fn only_node(mut self, node: Node) -> Self {
        self.only = true;
        self.node(node)
    }
}
