//! Memory: `mmap` and its kin, in terms of the address space.
//!
//! Left out: shared mappings of files (`ENODEV`), huge pages, protection keys, `MADV_REMOVE`.

use alloc::sync::Arc;

use pagoda_addr::{PAGE_SIZE, VirtAddr};
use pagoda_linux::Errno;
use pagoda_vm::fallible::{try_arc, try_extend};
use pagoda_vm::{
    Advice, Backing, FileObject, MapFlags, MapRequest, Place, Prot, RemapPlace, RemapRequest,
    VmError,
};

use crate::Result;
use crate::machine::Machine;
use crate::run::Cx;
use crate::task::exec::NodeObject;

const MAP_SHARED: u64 = 1;
const MAP_PRIVATE: u64 = 2;
const MAP_SHARED_VALIDATE: u64 = 3;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_HUGETLB: u64 = 0x4_0000;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;

/// Linux's number for a failure in an address space.
pub(crate) fn vm_errno(error: VmError) -> Errno {
    match error {
        VmError::Invalid => Errno::EINVAL,
        VmError::Exists => Errno::EEXIST,
        VmError::Denied => Errno::EACCES,
        VmError::Fault => Errno::EFAULT,
        VmError::TooLow => Errno::EPERM,
        VmError::Overflow => Errno::EOVERFLOW,
        VmError::Unsupported => Errno::EOPNOTSUPP,
        VmError::OutOfRange
        | VmError::NotMapped
        | VmError::NoSpace
        | VmError::Limit
        | VmError::TooManyRegions
        | VmError::OutOfMemory => Errno::ENOMEM,
    }
}

fn prot_of(bits: u64) -> Result<Prot> {
    // Bits 24 and 25 ask for growth of stacks; nobody uses them.
    if bits & !7 != 0 {
        return Err(Errno::EINVAL);
    }
    let mut prot = Prot::from_bits_truncate(bits as u8);
    if prot.contains(Prot::WRITE) {
        prot |= Prot::READ;
    }
    Ok(prot)
}

fn map_flags(bits: u64) -> MapFlags {
    let mut flags = MapFlags::empty();
    for (bit, flag) in [
        (0x40, MapFlags::LOW),
        (0x100, MapFlags::GROWS_DOWN),
        (0x2000, MapFlags::LOCKED | MapFlags::POPULATE),
        (0x4000, MapFlags::NO_RESERVE),
        (0x8000, MapFlags::POPULATE),
        (0x2_0000, MapFlags::STACK),
    ] {
        if bits & bit != 0 {
            flags |= flag;
        }
    }
    flags
}

impl<M: Machine> Cx<'_, M> {
    pub(crate) fn sys_mmap(&mut self, a: [u64; 6]) -> Result<u64> {
        let [addr, len, prot, flags, fd, offset] = a;
        if len == 0 || offset % PAGE_SIZE != 0 {
            return Err(Errno::EINVAL);
        }
        if flags & MAP_HUGETLB != 0 {
            return Err(Errno::ENOMEM);
        }
        if offset.checked_add(len).is_none() {
            return Err(Errno::EOVERFLOW);
        }
        let shared = match flags & 3 {
            MAP_PRIVATE => false,
            MAP_SHARED | MAP_SHARED_VALIDATE => true,
            _ => return Err(Errno::EINVAL),
        };
        let backing = if flags & MAP_ANONYMOUS != 0 {
            anonymous(shared)
        } else {
            self.file_backing(fd, offset, shared)?
        };
        let at = VirtAddr::new(addr);
        let place = if flags & MAP_FIXED_NOREPLACE != 0 {
            Place::FixedNoReplace(at)
        } else if flags & MAP_FIXED != 0 {
            Place::Fixed(at)
        } else if addr == 0 {
            Place::Anywhere
        } else {
            Place::Hint(at)
        };
        let request =
            MapRequest { place, len, prot: prot_of(prot & 7)?, flags: map_flags(flags), backing };
        self.space.map(request).map(VirtAddr::as_u64).map_err(vm_errno)
    }

    fn file_backing(&self, fd: u64, offset: u64, shared: bool) -> Result<Backing<&'static M>> {
        let file = self.file(fd)?;
        if file.is_zero_device() {
            return Ok(anonymous(shared));
        }
        let node = file.mappable()?;
        if shared {
            return Err(Errno::ENODEV);
        }
        let mut path = alloc::vec::Vec::new();
        let places = self.process.places().ok_or(Errno::EBADF)?;
        let described = file.describe(&places.root).unwrap_or_default();
        try_extend(&mut path, &described).map_err(|_| Errno::ENOMEM)?;
        let object: Arc<dyn FileObject> =
            try_arc(NodeObject { node, path }).map_err(|_| Errno::ENOMEM)?;
        Ok(Backing::File { object, offset })
    }

    pub(crate) fn sys_munmap(&mut self, a: [u64; 6]) -> Result<u64> {
        self.space.unmap(VirtAddr::new(a[0]), a[1]).map(|()| 0).map_err(vm_errno)
    }

    pub(crate) fn sys_mprotect(&mut self, a: [u64; 6]) -> Result<u64> {
        let prot = prot_of(a[2])?;
        self.space.protect(VirtAddr::new(a[0]), a[1], prot).map(|()| 0).map_err(vm_errno)
    }

    pub(crate) fn sys_mremap(&mut self, a: [u64; 6]) -> Result<u64> {
        const MAYMOVE: u64 = 1;
        const FIXED: u64 = 2;
        const DONTUNMAP: u64 = 4;
        let [addr, old_len, new_len, flags, new_addr, _] = a;
        let may_move = flags & MAYMOVE != 0;
        if flags & !7 != 0 || flags & (FIXED | DONTUNMAP) != 0 && !may_move || new_len == 0 {
            return Err(Errno::EINVAL);
        }
        let place = if flags & FIXED != 0 {
            RemapPlace::Fixed(VirtAddr::new(new_addr))
        } else if may_move {
            RemapPlace::MayMove
        } else {
            RemapPlace::InPlace
        };
        let request = RemapRequest {
            addr: VirtAddr::new(addr),
            old_len,
            new_len,
            place,
            keep_old: flags & DONTUNMAP != 0,
        };
        let moved = self.space.remap(request).map_err(|error| match error {
            VmError::NotMapped => Errno::EFAULT,
            other => vm_errno(other),
        })?;
        Ok(moved.as_u64())
    }

    pub(crate) fn sys_brk(&mut self, a: [u64; 6]) -> Result<u64> {
        Ok(self.space.set_brk(VirtAddr::new(a[0])).as_u64())
    }

    pub(crate) fn sys_madvise(&mut self, a: [u64; 6]) -> Result<u64> {
        let advice = match a[2] {
            0..=2 | 12..=15 | 20 | 21 => Advice::Hint,
            3 => Advice::WillNeed,
            4 => Advice::DontNeed,
            8 => Advice::Free,
            10 => Advice::Fork { inherit: false },
            11 => Advice::Fork { inherit: true },
            16 => Advice::Dump { include: false },
            17 => Advice::Dump { include: true },
            18 => Advice::WipeOnFork { wipe: true },
            19 => Advice::WipeOnFork { wipe: false },
            22 => Advice::PopulateRead,
            23 => Advice::PopulateWrite,
            _ => return Err(Errno::EINVAL),
        };
        let len = a[1].checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::EINVAL)?;
        self.space.advise(VirtAddr::new(a[0]), len, advice).map(|()| 0).map_err(vm_errno)
    }

    pub(crate) fn sys_mincore(&mut self, a: [u64; 6]) -> Result<u64> {
        let [addr, len, vector, ..] = a;
        let len = len.checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::ENOMEM)?;
        let limit = self.space.layout().limit.as_u64();
        if addr % PAGE_SIZE != 0 {
            return Err(Errno::EINVAL);
        }
        if addr.checked_add(len).is_none_or(|end| end > limit) {
            return Err(Errno::ENOMEM);
        }
        // Piece by piece: the vector is the program's memory, and the walk holds locks.
        let mut done = 0;
        while done < len {
            let part = (len - done).min(256 * PAGE_SIZE);
            let mut present = [0u8; 256];
            let mut slots = present.iter_mut();
            let walked = self.space.residency(VirtAddr::new(addr + done), part, |is_there| {
                if let Some(slot) = slots.next() {
                    *slot = u8::from(is_there);
                }
            });
            walked.map_err(vm_errno)?;
            let count = (part / PAGE_SIZE) as usize;
            let at = vector.checked_add(done / PAGE_SIZE).ok_or(Errno::EFAULT)?;
            self.write_bytes(at, present.get(..count).unwrap_or_default())?;
            done += part;
        }
        Ok(0)
    }

    /// Nothing is ever behind: private mappings are not written back, shared memory is memory.
    pub(crate) fn sys_msync(&mut self, a: [u64; 6]) -> Result<u64> {
        let [addr, len, flags, ..] = a;
        let both = flags & 1 != 0 && flags & 4 != 0;
        if addr % PAGE_SIZE != 0 || flags & !7 != 0 || both {
            return Err(Errno::EINVAL);
        }
        let len = len.checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::ENOMEM)?;
        self.all_mapped(addr, len)
    }

    /// Every present page stays in memory anyway: locking makes pages present, and no more.
    pub(crate) fn sys_mlock(&mut self, a: [u64; 6]) -> Result<u64> {
        let start = a[0] & !(PAGE_SIZE - 1);
        let end = a[0].checked_add(a[1]).and_then(|end| end.checked_next_multiple_of(PAGE_SIZE));
        let end = end.ok_or(Errno::EINVAL)?;
        self.all_mapped(start, end - start)
    }

    fn all_mapped(&self, addr: u64, len: u64) -> Result<u64> {
        let end = addr.checked_add(len).ok_or(Errno::ENOMEM)?;
        let mut at = addr;
        while at < end {
            let region = self.space.next_region(VirtAddr::new(at)).ok_or(Errno::ENOMEM)?;
            if region.range.start().as_u64() > at {
                return Err(Errno::ENOMEM);
            }
            at = region.range.end().as_u64();
        }
        Ok(0)
    }

    pub(crate) fn sys_membarrier(&mut self, a: [u64; 6]) -> Result<u64> {
        const QUERY: u64 = 0;
        const COMMANDS: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4;
        match a[0] {
            QUERY => Ok(COMMANDS),
            // One CPU: whoever runs sees everything that was written before.
            command if command.is_power_of_two() && command & COMMANDS != 0 => Ok(0),
            _ => Err(Errno::EINVAL),
        }
    }
}

fn anonymous<P: pagoda_vm::VmPlatform>(shared: bool) -> Backing<P> {
    if shared { Backing::SharedAnonymous } else { Backing::Anonymous }
}
