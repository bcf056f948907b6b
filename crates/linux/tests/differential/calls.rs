//! Calls, drawn at random: mostly sensible, some wrong.

use pagoda_vm::Locking;

use super::{BASE, PAGE, PAGES};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    Map {
        addr: u64,
        len: u64,
        prot: u64,
        flags: u64,
        offset: u64,
    },
    Unmap {
        addr: u64,
        len: u64,
    },
    Protect {
        addr: u64,
        len: u64,
        prot: u64,
    },
    Remap {
        addr: u64,
        old: u64,
        new: u64,
        flags: u64,
        to: u64,
    },
    Advise {
        addr: u64,
        len: u64,
        advice: u64,
    },
    Mincore {
        addr: u64,
        len: u64,
    },
    Lock {
        addr: u64,
        len: u64,
        how: Locking,
    },
    /// With 0, `munlockall`.
    LockAll {
        flags: u64,
    },
    Write {
        addr: u64,
        byte: u8,
    },
    Read {
        addr: u64,
    },
    /// Of the file.
    Truncate {
        len: u64,
    },
    /// Of the file, by `pwrite`.
    FileWrite {
        at: u64,
        byte: u8,
    },
    /// Of the file, by `pread`.
    FileRead {
        at: u64,
    },
}

/// A small generator of its own, so that a seed means the same for ever (splitmix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64, sequence: u64) -> Self {
        let mut random = Self(seed ^ sequence.wrapping_mul(0xd134_2543_de82_ef95));
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn pick(&mut self, from: &[u64]) -> u64 {
        from[self.below(from.len() as u64) as usize]
    }
}

const TOP: u64 = 1 << 47;

fn addr(random: &mut Random) -> u64 {
    let page = BASE + random.below(PAGES) * PAGE;
    match random.below(100) {
        0..93 => page,
        93..96 => page + random.pick(&[1, 2048]),
        _ => random.pick(&[
            PAGE.wrapping_neg().wrapping_mul(2),
            TOP,
            TOP - PAGE,
            TOP - 2 * PAGE,
            1 << 63,
        ]),
    }
}

fn len(random: &mut Random) -> u64 {
    match random.below(100) {
        0..90 => (1 + random.below(11)) * PAGE,
        90..95 => random.below(3 * PAGE),
        _ => random.pick(&[0, u64::MAX, PAGE.wrapping_neg(), TOP, 1 << 63, TOP - PAGE]),
    }
}

/// The next call that stays in the window and is none of those that the head of the file explains.
pub fn draw(random: &mut Random) -> Call {
    loop {
        let call = any(random);
        if fits(call) {
            return call;
        }
    }
}

fn any(random: &mut Random) -> Call {
    let (addr, len) = (addr(random), len(random));
    let page = BASE + random.below(PAGES) * PAGE;
    match random.below(60) {
        0..8 => Call::Map {
            addr,
            len,
            prot: random.pick(&[3, 3, 3, 1, 0, 3, 5, 7, 0x13]),
            flags: random.pick(&[0x22, 0x22, 0x21, 2, 2, 1, 1, 0x20, 0x23])
                | random.pick(&[0, 0, 0x4000, 0x8000])
                | random.pick(&[0x10, 0x10, 0x10_0000, 0x10_0010]),
            offset: random.pick(&[0, 0, PAGE, 3 * PAGE, 7 * PAGE, 100]),
        },
        8..12 => Call::Unmap { addr, len },
        12..18 => Call::Protect { addr, len, prot: random.pick(&[3, 3, 1, 0, 5, 5, 7, 8, 16]) },
        18..23 => {
            let flags = random.pick(&[0, 0, 3, 3, 3, 7, 2, 4, 5, 9]);
            let new = if flags == 7 { len } else { self::len(random) };
            Call::Remap { addr, old: len, new, flags, to: self::addr(random) }
        }
        23..28 => {
            let advice = [
                4, 4, 4, 4, 0, 3, 8, 8, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23, 24, 99, 102, 102,
                103,
            ];
            Call::Advise { addr, len, advice: random.pick(&advice) }
        }
        28..30 => Call::Mincore { addr, len: random.below(20) * PAGE },
        30 => {
            let how = [Locking::Off, Locking::Now, Locking::OnFault][random.below(3) as usize];
            Call::Lock { addr, len: random.below(9) * PAGE, how }
        }
        31..43 => Call::Write { addr: page, byte: random.next() as u8 },
        43..54 => Call::Read { addr: page },
        54 => Call::Truncate { len: random.below(10) * PAGE + random.pick(&[0, 0, 100]) },
        55..57 => {
            let at = random.below(8) * PAGE + random.pick(&[0, 99, 4095]);
            Call::FileWrite { at, byte: random.next() as u8 }
        }
        57 if random.below(3) == 0 => {
            Call::LockAll { flags: random.pick(&[0, 0, 0, 2, 2, 4, 6, 8]) }
        }
        _ => Call::FileRead { at: random.below(9) * PAGE + random.pick(&[0, 99, 100, 4095]) },
    }
}

/// Does the call stay in the window (or fail on both sides), and is it comparable?
fn fits(call: Call) -> bool {
    let inside = |addr: u64| (BASE..BASE + PAGES * PAGE).contains(&addr);
    let here = |addr: u64| inside(addr) || addr >= TOP;
    // Long enough to leave the window, and perhaps not refused for it.
    let long = |addr: u64, len: u64| len > 64 * PAGE && addr.wrapping_add(len) <= TOP;
    match call {
        Call::Map { addr, len, flags, .. } => {
            let typed = matches!(flags & 0x23, 0x22 | 0x21 | 2 | 1);
            let wrong_twice = flags & 0x10_0000 != 0 && !typed;
            here(addr) && !wrong_twice && !long(addr, len)
        }
        Call::Unmap { addr, len } | Call::Protect { addr, len, .. } => {
            here(addr) && !long(addr, len)
        }
        Call::Advise { addr, len, .. } => {
            here(addr) && (len <= 64 * PAGE || addr.checked_add(len).is_none())
        }
        Call::Lock { addr, .. } | Call::Mincore { addr, .. } => here(addr),
        Call::Remap { addr, old, new, flags, to } => {
            let fixed = flags & 2 != 0;
            let anywhere = matches!(flags, 1 | 5) || (fixed && !inside(to));
            let onto_itself = old == 0 && addr.wrapping_sub(to) < new;
            let half_done = fixed && (old > 64 * PAGE || onto_itself);
            let grows_far = new > 64 * PAGE && new < TOP;
            here(addr) && !anywhere && !half_done && !grows_far && !long(addr, old)
        }
        Call::LockAll { .. }
        | Call::Write { .. }
        | Call::Read { .. }
        | Call::Truncate { .. }
        | Call::FileWrite { .. }
        | Call::FileRead { .. } => true,
    }
}
