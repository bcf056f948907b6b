//! What a caller asks of an address space: places, protections, flags, limits, advice.

use alloc::sync::Arc;

use pagoda_addr::VirtAddr;

use crate::{FileObject, SharedObject, VmPlatform};

bitflags::bitflags! {
    /// What a program may do with a mapping.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Prot: u8 {
        /// Load.
        const READ = 1;
        /// Store. On every machine here a page that may be written can be read as well.
        const WRITE = 2;
        /// Fetch instructions.
        const EXEC = 4;
    }

    /// Properties of a mapping besides its protection.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct MapFlags: u16 {
        /// Grows downwards when the page below it is touched, up to the stack limit and never
        /// closer than the guard gap to what lies below.
        const GROWS_DOWN = 1;
        /// Not counted against the machine's commit policy.
        const NO_RESERVE = 2;
        /// Make the pages present at once, as far as there is memory.
        const POPULATE = 4;
        /// Kept in memory (every present page is, while there is no reclaim: accounting only).
        const LOCKED = 8;
        /// Meant as a thread's stack: no effect.
        const STACK = 16;
        /// Left out of a forked child.
        const DONT_FORK = 32;
        /// Empty in a forked child.
        const WIPE_ON_FORK = 64;
        /// Left out of core dumps: no effect here.
        const DONT_DUMP = 128;
        /// Place below 2 GiB.
        const LOW = 256;
        /// May never be written: a shared mapping of a file that was opened for reading alone.
        const NEVER_WRITE = 512;
        /// Counted in the machine's books ([`Commit`](crate::Commit)); not for callers to ask for.
        const COUNTED = 1024;
        /// With [`LOCKED`](Self::LOCKED): pages stay once they were touched, none is fetched.
        const LOCK_ON_FAULT = 2048;
    }
}

/// Where a new mapping goes. Addresses are bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Wherever there is room.
    Anywhere,
    /// There, rounded down to a page, if it is free; else wherever there is room.
    Hint(VirtAddr),
    /// Exactly there, replacing what is there.
    Fixed(VirtAddr),
    /// Exactly there, and only if nothing is there.
    FixedNoReplace(VirtAddr),
}

/// What stands behind a mapping.
pub enum Backing<P: VmPlatform> {
    /// Zeroed memory of this address space alone.
    Anonymous,
    /// Zeroed memory that forked children share.
    SharedAnonymous,
    /// A private copy of a file, from `offset` (bytes, page aligned).
    File {
        /// The file.
        object: Arc<dyn FileObject>,
        /// Bytes from the start of the file.
        offset: u64,
    },
    /// A file itself, from `offset` (bytes, page aligned): stores are in the file at once.
    SharedFile {
        /// The file.
        object: Arc<dyn FileObject>,
        /// Bytes from the start of the file.
        offset: u64,
    },
    /// Shared memory that somebody made before, from `offset` (bytes, page aligned).
    Shared {
        /// The memory.
        object: Arc<SharedObject<P>>,
        /// Bytes from the start of the object.
        offset: u64,
    },
}

/// A new mapping.
pub struct MapRequest<P: VmPlatform> {
    /// Where.
    pub place: Place,
    /// Bytes, rounded up to pages.
    pub len: u64,
    /// Protection.
    pub prot: Prot,
    /// Properties.
    pub flags: MapFlags,
    /// What stands behind it.
    pub backing: Backing<P>,
}

impl<P: VmPlatform> MapRequest<P> {
    /// `len` bytes of private zeroed memory.
    pub fn anonymous(place: Place, len: u64, prot: Prot) -> Self {
        Self { place, len, prot, flags: MapFlags::empty(), backing: Backing::Anonymous }
    }
}

/// What `remap` may do with the old and the new place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RemapPlace {
    /// Grow or shrink where it stands, or fail.
    InPlace,
    /// Move if it cannot grow where it stands.
    MayMove,
    /// Move exactly there, replacing what is there.
    Fixed(VirtAddr),
}

/// A mapping to resize or to move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemapRequest {
    /// Its first page.
    pub addr: VirtAddr,
    /// Bytes of it, rounded up to pages. Zero makes a second mapping of shared memory.
    pub old_len: u64,
    /// Bytes wanted, rounded up to pages.
    pub new_len: u64,
    /// What may be done with the place.
    pub place: RemapPlace,
    /// Leave the old mapping behind, with nothing present (for an unchanged length).
    pub keep_old: bool,
}

/// An access by a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Load.
    Read,
    /// Store.
    Write,
    /// Instruction fetch.
    Exec,
}

/// What a program says about how it will use a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// Nothing to act on: NORMAL, RANDOM, SEQUENTIAL, HUGEPAGE, NOHUGEPAGE.
    Hint,
    /// Not used for some time: forgets that the pages were accessed.
    Cold,
    /// As [`Cold`](Self::Cold), and lets go of what can be had again without swap: memory that was
    /// freed lazily, unchanged pages of private file mappings.
    PageOut,
    /// Will be used soon.
    WillNeed,
    /// Contents are not needed: reads as zero (or as the file) from now on.
    DontNeed,
    /// As [`DontNeed`](Self::DontNeed), of locked memory too.
    DontNeedLocked,
    /// Contents may be dropped at any time until written again: when frames are short
    /// ([`AddressSpace::let_go`](crate::AddressSpace::let_go)).
    Free,
    /// Make present for reading.
    PopulateRead,
    /// Make present for writing.
    PopulateWrite,
    /// Every touch is a fault from now on, as of memory that is not mapped.
    GuardInstall,
    /// Not any more.
    GuardRemove,
    /// Leave out of children (or not any more).
    Fork {
        /// Children get it.
        inherit: bool,
    },
    /// Children see zeroes (or not any more).
    WipeOnFork {
        /// They do.
        wipe: bool,
    },
    /// Leave out of core dumps (or not any more).
    Dump {
        /// It is dumped.
        include: bool,
    },
}

/// How memory is kept from being reclaimed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Locking {
    /// Not at all.
    #[default]
    Off,
    /// All of it, fetched at once.
    Now,
    /// What has been touched, from then on.
    OnFault,
}

impl Locking {
    pub(crate) const FLAGS: MapFlags = MapFlags::LOCKED.union(MapFlags::LOCK_ON_FAULT);

    pub(crate) fn flags(self) -> MapFlags {
        match self {
            Self::Off => MapFlags::empty(),
            Self::Now => MapFlags::LOCKED,
            Self::OnFault => Self::FLAGS,
        }
    }
}

/// Limits of one process, in bytes. `u64::MAX` is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// All mapped addresses (`RLIMIT_AS`).
    pub address_space: u64,
    /// Private writable memory that is not a stack (`RLIMIT_DATA`).
    pub data: u64,
    /// One stack (`RLIMIT_STACK`).
    pub stack: u64,
    /// Locked memory (`RLIMIT_MEMLOCK`); 0 forbids to ask for it.
    pub locked: u64,
    /// The number of regions.
    pub regions: usize,
    /// May have what [`Commit`](crate::Commit) keeps for the administrator.
    pub privileged: bool,
}

impl Default for Limits {
    /// Linux's for the administrator: no limits but 8 MiB of stack and 65,530 regions.
    fn default() -> Self {
        Self {
            address_space: u64::MAX,
            data: u64::MAX,
            stack: 8 << 20,
            locked: u64::MAX,
            regions: 65_530,
            privileged: true,
        }
    }
}

/// Where things go in a program's half of the address space. All multiples of the page size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// The lowest address that may be mapped (Linux: 64 KiB).
    pub lowest: VirtAddr,
    /// One past the highest address that may be mapped.
    pub limit: VirtAddr,
    /// Mappings without an address go as high as possible below this.
    pub mmap_base: VirtAddr,
    /// Pages kept free below a mapping that grows down.
    pub guard_pages: u64,
}

impl Layout {
    /// A program's half on x86-64 with four levels, without randomisation, `stack_limit` bytes
    /// being kept for the stack below the limit (clamped as Linux does: at least 128 MiB, at most
    /// five sixths of the space).
    pub const fn x86_64(stack_limit: u64) -> Self {
        const LIMIT: u64 = 0x7fff_ffff_f000;
        const GUARD_PAGES: u64 = 256;
        let wanted = stack_limit.saturating_add(GUARD_PAGES * 4096);
        let gap = if wanted < 128 << 20 {
            128 << 20
        } else if wanted > LIMIT / 6 * 5 {
            LIMIT / 6 * 5
        } else {
            wanted
        };
        Self {
            lowest: VirtAddr::new(0x1_0000),
            limit: VirtAddr::new(LIMIT),
            mmap_base: VirtAddr::new((LIMIT - gap) & !4095),
            guard_pages: GUARD_PAGES,
        }
    }
}
