//! Steps of random sequences: what is done, drawn at random.

use std::vec;

use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Anonymous,
    Shared,
    File(u8),
    /// A file in frames, which others change; shared or not.
    Cached(bool),
    Stack,
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    MoveTo {
        addr: u64,
        old: u64,
        new: u64,
        to: u64,
    },
    Map {
        place: u8,
        addr: u64,
        len: u64,
        prot: u8,
        kind: Kind,
        populate: bool,
    },
    Unmap {
        addr: u64,
        len: u64,
    },
    Protect {
        addr: u64,
        len: u64,
        prot: u8,
    },
    Remap {
        addr: u64,
        old: u64,
        new: u64,
        may_move: bool,
    },
    DontNeed {
        addr: u64,
        len: u64,
    },
    /// Lazily.
    Free {
        addr: u64,
        len: u64,
    },
    Cool {
        addr: u64,
        len: u64,
        out: bool,
    },
    /// Frames are short.
    LetGo,
    Guard {
        addr: u64,
        len: u64,
        install: bool,
    },
    Brk {
        to: u64,
    },
    Load {
        cpu: usize,
        page: u64,
        last: bool,
    },
    Store {
        cpu: usize,
        page: u64,
        last: bool,
        byte: u8,
    },
    /// Stores to (or loads from) forty pages in a row, as far as that is possible.
    Sweep {
        cpu: usize,
        store: bool,
        byte: u8,
    },
    Copy {
        page: u64,
        byte: u8,
    },
    /// The file gets this many pages.
    Resize {
        pages: u64,
    },
    Fork,
    Drop,
    Next,
}

/// Mostly sensible addresses; now and then nonsense.
fn addr() -> impl Strategy<Value = u64> {
    prop_oneof![
        // Most calls meet in a few pages.
        30 => (0x20u64..0x48).prop_map(|page| page * 4096),
        10 => (0u64..0x204).prop_map(|page| page * 4096),
        1 => (0u64..0x204).prop_map(|page| page * 4096 + 8),
        1 => prop::sample::select(vec![u64::MAX, u64::MAX - 4095, 1 << 47, 1 << 63]),
    ]
}

fn len() -> impl Strategy<Value = u64> {
    prop_oneof![
        20 => (1u64..24).prop_map(|pages| pages * 4096),
        3 => (1u64..200).prop_map(|pages| pages * 4096),
        2 => 0u64..9000,
        1 => prop::sample::select(vec![0, u64::MAX, u64::MAX - 4095, 1 << 47, 1 << 63]),
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        5 => Just(Kind::Anonymous),
        2 => Just(Kind::Shared),
        3 => (1u8..4).prop_map(Kind::File),
        2 => any::<bool>().prop_map(Kind::Cached),
        1 => Just(Kind::Stack),
    ]
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let prot = 0u8..8;
    let page = prop_oneof![3 => 0x20u64..0x48, 1 => 0x8u64..0x202].boxed();
    prop_oneof![
        6 => (0u8..8, addr(), len(), prop_oneof![3 => Just(3u8), 1 => prot.clone()], kind(), any::<bool>())
            .prop_map(|(place, addr, len, prot, kind, populate)|
                Step::Map { place, addr, len, prot, kind, populate }),
        4 => (addr(), len()).prop_map(|(addr, len)| Step::Unmap { addr, len }),
        4 => (addr(), len(), prot).prop_map(|(addr, len, prot)| Step::Protect { addr, len, prot }),
        3 => (addr(), len(), len(), any::<bool>())
            .prop_map(|(addr, old, new, may_move)| Step::Remap { addr, old, new, may_move }),
        2 => (addr(), len(), len(), addr())
            .prop_map(|(addr, old, new, to)| Step::MoveTo { addr, old, new, to }),
        3 => (addr(), len()).prop_map(|(addr, len)| Step::DontNeed { addr, len }),
        2 => (addr(), len()).prop_map(|(addr, len)| Step::Free { addr, len }),
        1 => (addr(), len(), any::<bool>()).prop_map(|(addr, len, out)| Step::Cool { addr, len, out }),
        1 => Just(Step::LetGo),
        2 => (addr(), len(), prop::bool::weighted(0.7))
            .prop_map(|(addr, len, install)| Step::Guard { addr, len, install }),
        1 => (0u64..0x60000).prop_map(|to| Step::Brk { to: to + 0x40000 }),
        12 => (0usize..4, page.clone(), any::<bool>())
            .prop_map(|(cpu, page, last)| Step::Load { cpu, page, last }),
        20 => (0usize..4, page.clone(), any::<bool>(), any::<u8>())
            .prop_map(|(cpu, page, last, byte)| Step::Store { cpu, page, last, byte }),
        4 => (page, any::<u8>()).prop_map(|(page, byte)| Step::Copy { page, byte }),
        4 => (0usize..4, any::<bool>(), any::<u8>())
            .prop_map(|(cpu, store, byte)| Step::Sweep { cpu, store, byte }),
        2 => (0u64..16).prop_map(|pages| Step::Resize { pages }),
        3 => Just(Step::Fork),
        1 => Just(Step::Drop),
        2 => Just(Step::Next),
    ]
}
