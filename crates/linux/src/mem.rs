//! Memory calls: the words of Linux's ABI turned into requests of `pagoda-vm`.
//!
//! Each function takes the registers of one call and returns either the request or the error that
//! Linux gives, the checks in Linux's order, as far as they do not need the address space itself
//! (those are made by the request, in the same order). `mmap` has two steps, because the file
//! descriptor is looked up between them.
//!
//! Left out: huge pages (`MAP_HUGETLB` finds none: `ENOMEM`), protection keys, `MAP_SYNC`,
//! `MADV_REMOVE` and its like (`EINVAL`). With flags that are wrong twice, no type of sharing and an
//! occupied place for `MAP_FIXED_NOREPLACE`, Linux says `EEXIST` and this says `EINVAL`.

use pagoda_addr::VirtAddr;
use pagoda_vm::{
    Advice, Backing, Layout, Locking, MapFlags, MapRequest, Place, Prot, RemapPlace, RemapRequest,
    VmPlatform,
};

use crate::Errno;

const PAGE: u64 = 4096;

const MAP_TYPE: u64 = 0x0f;
const MAP_SHARED: u64 = 1;
const MAP_PRIVATE: u64 = 2;
const MAP_SHARED_VALIDATE: u64 = 3;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_32BIT: u64 = 0x40;
const MAP_GROWSDOWN: u64 = 0x100;
const MAP_LOCKED: u64 = 0x2000;
const MAP_NORESERVE: u64 = 0x4000;
const MAP_POPULATE: u64 = 0x8000;
const MAP_NONBLOCK: u64 = 0x1_0000;
const MAP_STACK: u64 = 0x2_0000;
const MAP_HUGETLB: u64 = 0x4_0000;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;
/// Every flag that Linux knew when it stopped ignoring what it does not know
/// (`LEGACY_MAP_MASK`): what `MAP_SHARED_VALIDATE` accepts.
const LEGACY_FLAGS: u64 = 0x0f
    | MAP_FIXED
    | MAP_ANONYMOUS
    | MAP_32BIT
    | MAP_GROWSDOWN
    | 0x800
    | 0x1000
    | MAP_LOCKED
    | MAP_NORESERVE
    | MAP_POPULATE
    | MAP_NONBLOCK
    | MAP_STACK
    | MAP_HUGETLB;

/// What kind of mapping the flags ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sharing {
    /// `MAP_PRIVATE`.
    Private,
    /// `MAP_SHARED` or `MAP_SHARED_VALIDATE`.
    Shared,
}

/// The registers of `mmap`, read but not yet checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mmap {
    addr: u64,
    len: u64,
    prot: Prot,
    flags: u64,
    /// Bytes from the start of the file; a multiple of the page size.
    pub offset: u64,
}

impl Mmap {
    /// Reads the registers. Refuses only what Linux refuses before it looks at the file descriptor.
    pub fn new(addr: u64, len: u64, prot: u64, flags: u64, offset: u64) -> Result<Self, Errno> {
        if offset % PAGE != 0 {
            return Err(Errno::EINVAL);
        }
        // Unknown bits of the protection are ignored here (and only here).
        Ok(Self { addr, len, prot: prot_bits(prot), flags, offset })
    }

    /// No file: the descriptor is not looked at.
    pub fn is_anonymous(&self) -> bool {
        self.flags & MAP_ANONYMOUS != 0
    }

    /// The rest of the checks, after the descriptor was found. Returns how the mapping is shared.
    pub fn check(&self, layout: &Layout) -> Result<Sharing, Errno> {
        if self.len == 0 {
            return Err(Errno::EINVAL);
        }
        let limit = layout.limit.as_u64();
        let len = round_up(self.len).filter(|&len| len <= limit).ok_or(Errno::ENOMEM)?;
        if self.is_fixed() {
            if self.addr > limit - len {
                return Err(Errno::ENOMEM);
            }
            if self.addr % PAGE != 0 {
                return Err(Errno::EINVAL);
            }
            if self.addr < layout.lowest.as_u64() {
                return Err(Errno::EPERM);
            }
        }
        let sharing = match self.flags & MAP_TYPE {
            MAP_PRIVATE => Sharing::Private,
            MAP_SHARED => Sharing::Shared,
            MAP_SHARED_VALIDATE if !self.is_anonymous() => {
                if self.flags & !LEGACY_FLAGS != 0 {
                    return Err(Errno::EOPNOTSUPP);
                }
                Sharing::Shared
            }
            _ => return Err(Errno::EINVAL),
        };
        // Only private memory without a file grows.
        let plain = self.is_anonymous() && sharing == Sharing::Private;
        if !plain && self.flags & MAP_GROWSDOWN != 0 {
            return Err(Errno::EINVAL);
        }
        if self.flags & MAP_HUGETLB != 0 { Err(Errno::ENOMEM) } else { Ok(sharing) }
    }

    fn is_fixed(&self) -> bool {
        self.flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0
    }

    /// The request, over what the caller has found behind it.
    pub fn request<P: VmPlatform>(&self, backing: Backing<P>) -> MapRequest<P> {
        let at = VirtAddr::new(self.addr);
        let place = if self.flags & MAP_FIXED_NOREPLACE != 0 {
            Place::FixedNoReplace(at)
        } else if self.flags & MAP_FIXED != 0 {
            Place::Fixed(at)
        } else if self.addr < PAGE {
            Place::Anywhere
        } else {
            Place::Hint(at)
        };
        MapRequest { place, len: self.len, prot: self.prot, flags: self.map_flags(), backing }
    }

    fn map_flags(&self) -> MapFlags {
        let pairs = [
            (MAP_32BIT, MapFlags::LOW),
            (MAP_GROWSDOWN, MapFlags::GROWS_DOWN),
            (MAP_LOCKED, MapFlags::LOCKED),
            (MAP_NORESERVE, MapFlags::NO_RESERVE),
            (MAP_STACK, MapFlags::STACK),
        ];
        let mut flags = MapFlags::empty();
        for (bit, flag) in pairs {
            flags.set(flag, self.flags & bit != 0);
        }
        // Populating "without blocking" means not populating.
        flags.set(MapFlags::POPULATE, self.flags & (MAP_POPULATE | MAP_NONBLOCK) == MAP_POPULATE);
        flags
    }
}

/// The protection, unknown bits ignored.
pub fn prot_bits(bits: u64) -> Prot {
    Prot::from_bits_truncate((bits & 7) as u8)
}

/// The registers of `mprotect`, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mprotect {
    /// The first page.
    pub addr: VirtAddr,
    /// Bytes; 0: nothing to do.
    pub len: u64,
    /// The new protection.
    pub prot: Prot,
    /// `PROT_GROWSDOWN`: from the start of the mapping at `addr`, which has to be one that grows
    /// down (else `EINVAL`).
    pub from_start: bool,
}

/// Reads the registers of `mprotect`.
pub fn mprotect(addr: u64, len: u64, prot: u64) -> Result<Mprotect, Errno> {
    const SEM: u64 = 8;
    const GROWS_DOWN: u64 = 0x0100_0000;
    const GROWS_UP: u64 = 0x0200_0000;
    let from_start = prot & GROWS_DOWN != 0;
    if from_start && prot & GROWS_UP != 0 || addr % PAGE != 0 {
        return Err(Errno::EINVAL);
    }
    let request = Mprotect { addr: VirtAddr::new(addr), len, prot: prot_bits(prot), from_start };
    if len == 0 {
        return Ok(request);
    }
    let end = round_up(len).and_then(|len| addr.checked_add(len));
    end.ok_or(Errno::ENOMEM)?;
    if prot & !(7 | SEM | GROWS_DOWN | GROWS_UP) != 0 {
        return Err(Errno::EINVAL);
    }
    // No mapping grows upwards here.
    if prot & GROWS_UP != 0 { Err(Errno::EINVAL) } else { Ok(request) }
}

/// Reads the registers of `mremap`.
pub fn mremap(
    addr: u64,
    old_len: u64,
    new_len: u64,
    flags: u64,
    new_addr: u64,
) -> Result<RemapRequest, Errno> {
    const MAYMOVE: u64 = 1;
    const FIXED: u64 = 2;
    const DONTUNMAP: u64 = 4;
    let may_move = flags & MAYMOVE != 0;
    let keep_old = flags & DONTUNMAP != 0;
    let wrong = flags & !(MAYMOVE | FIXED | DONTUNMAP) != 0
        || flags & FIXED != 0 && !may_move
        || keep_old && !may_move;
    if wrong {
        return Err(Errno::EINVAL);
    }
    let place = if flags & FIXED != 0 {
        RemapPlace::Fixed(VirtAddr::new(new_addr))
    } else if may_move {
        RemapPlace::MayMove
    } else {
        RemapPlace::InPlace
    };
    Ok(RemapRequest { addr: VirtAddr::new(addr), old_len, new_len, place, keep_old })
}

/// The meaning of an `madvise` number. What Linux accepts and answers only with speed is
/// [`Advice::Hint`].
pub fn advice(number: u64) -> Result<Advice, Errno> {
    Ok(match number {
        // NORMAL, RANDOM, SEQUENTIAL; MERGEABLE, UNMERGEABLE, HUGEPAGE, NOHUGEPAGE.
        0..=2 | 12..=15 => Advice::Hint,
        3 => Advice::WillNeed,
        4 => Advice::DontNeed,
        8 => Advice::Free,
        10 => Advice::Fork { inherit: false },
        11 => Advice::Fork { inherit: true },
        16 => Advice::Dump { include: false },
        17 => Advice::Dump { include: true },
        18 => Advice::WipeOnFork { wipe: true },
        19 => Advice::WipeOnFork { wipe: false },
        20 => Advice::Cold,
        21 => Advice::PageOut,
        22 => Advice::PopulateRead,
        23 => Advice::PopulateWrite,
        24 => Advice::DontNeedLocked,
        102 => Advice::GuardInstall,
        103 => Advice::GuardRemove,
        _ => return Err(Errno::EINVAL),
    })
}

/// Reads the register of `mlockall`: what happens to what is mapped, and to what will be.
pub fn mlockall(flags: u64) -> Result<(Option<Locking>, Locking), Errno> {
    const CURRENT: u64 = 1;
    const FUTURE: u64 = 2;
    const ONFAULT: u64 = 4;
    if flags == 0 || flags & !(CURRENT | FUTURE | ONFAULT) != 0 || flags == ONFAULT {
        return Err(Errno::EINVAL);
    }
    let locking = if flags & ONFAULT != 0 { Locking::OnFault } else { Locking::Now };
    let future = if flags & FUTURE != 0 { locking } else { Locking::Off };
    Ok(((flags & CURRENT != 0).then_some(locking), future))
}

fn round_up(len: u64) -> Option<u64> {
    len.checked_next_multiple_of(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout::x86_64(8 << 20);
    const ANON: u64 = MAP_PRIVATE | MAP_ANONYMOUS;

    fn check(addr: u64, len: u64, flags: u64, offset: u64) -> Result<Sharing, Errno> {
        Mmap::new(addr, len, 3, flags, offset)?.check(&LAYOUT)
    }

    #[test]
    fn mmap_refuses_in_the_order_of_linux() {
        assert_eq!(check(0, 4096, ANON, 0), Ok(Sharing::Private));
        assert_eq!(check(0, 4096, MAP_SHARED | MAP_ANONYMOUS, 0), Ok(Sharing::Shared));
        assert_eq!(check(0, 0, ANON, 1), Err(Errno::EINVAL));
        assert_eq!(check(0, 0, ANON, 0), Err(Errno::EINVAL));
        assert_eq!(check(0, u64::MAX, ANON, 0), Err(Errno::ENOMEM));
        assert_eq!(check(0, 1 << 47, ANON, 0), Err(Errno::ENOMEM));
        // Too large comes before "no such type", which comes last.
        assert_eq!(check(0, 1 << 47, MAP_ANONYMOUS, 0), Err(Errno::ENOMEM));
        assert_eq!(check(0, 4096, MAP_ANONYMOUS, 0), Err(Errno::EINVAL));
        assert_eq!(check(1, 4096, ANON | MAP_FIXED, 0), Err(Errno::EINVAL));
        assert_eq!(check(0, 4096, ANON | MAP_FIXED, 0), Err(Errno::EPERM));
        assert_eq!(check(1 << 47, 4096, ANON | MAP_FIXED, 0), Err(Errno::ENOMEM));
        assert_eq!(check(u64::MAX, 4096, ANON | MAP_FIXED_NOREPLACE, 0), Err(Errno::ENOMEM));
        assert_eq!(check(0, 4096, MAP_SHARED_VALIDATE | MAP_ANONYMOUS, 0), Err(Errno::EINVAL));
        assert_eq!(check(0, 4096, MAP_SHARED_VALIDATE | 0x8_0000, 0), Err(Errno::EOPNOTSUPP));
    }

    #[test]
    fn mprotect_and_mremap_refuse_in_the_order_of_linux() {
        assert_eq!(mprotect(1, 0, 0x10), Err(Errno::EINVAL));
        assert!(mprotect(4096, 0, 0x10).is_ok(), "no length, no look at the protection");
        assert_eq!(mprotect(4096, u64::MAX, 0x10), Err(Errno::ENOMEM));
        assert_eq!(mprotect(4096, 1, 0x10), Err(Errno::EINVAL));
        assert_eq!(mprotect(4096, 1, 0x300_0001), Err(Errno::EINVAL));
        assert_eq!(mremap(4096, 1, 1, 2, 0).unwrap_err(), Errno::EINVAL);
        assert_eq!(mremap(4096, 1, 1, 4, 0).unwrap_err(), Errno::EINVAL);
        assert_eq!(mremap(4096, 1, 2, 8, 0).unwrap_err(), Errno::EINVAL);
        assert_eq!(mremap(4096, 1, 2, 1, 0).unwrap().place, RemapPlace::MayMove);
        assert_eq!(advice(9), Err(Errno::EINVAL));
        for flags in [0, 4, 8, 9] {
            assert_eq!(mlockall(flags), Err(Errno::EINVAL));
        }
        assert_eq!(mlockall(1), Ok((Some(Locking::Now), Locking::Off)));
        assert_eq!(mlockall(6), Ok((None, Locking::OnFault)));
        assert_eq!(mlockall(7), Ok((Some(Locking::OnFault), Locking::OnFault)));
    }
}
