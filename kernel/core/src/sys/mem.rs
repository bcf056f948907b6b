//! Memory: `mmap` and its kin, in terms of the address space.
//!
//! Left out: huge pages, protection keys, `MADV_REMOVE`.

use pagoda_addr::{PAGE_SIZE, VirtAddr};
use pagoda_kernel_fs::OpenFile;
use pagoda_linux::{Errno, Mmap, Sharing};
use pagoda_vm::fallible::try_extend;
use pagoda_vm::{Advice, Backing, Locking, MapFlags, VmError};

use crate::Result;
use crate::machine::Machine;
use crate::run::Cx;
use crate::task::exec::NodeObject;

impl<M: Machine> Cx<'_, M> {
    pub(crate) fn sys_mmap(&mut self, a: [u64; 6]) -> Result<u64> {
        let [addr, len, prot, flags, fd, offset] = a;
        let request = Mmap::new(addr, len, prot, flags, offset)?;
        let file = if request.is_anonymous() { None } else { Some(self.file(fd)?) };
        let shared = request.check(&self.space.layout())? == Sharing::Shared;
        let (backing, never_write) = match file {
            None => (anonymous(shared), false),
            Some(file) => self.file_backing(&file, offset, shared, prot & 2 != 0)?,
        };
        let mut request = request.request(backing);
        request.flags.set(MapFlags::NEVER_WRITE, never_write);
        Ok(self.space.map(request)?.as_u64())
    }

    fn file_backing(
        &self,
        file: &OpenFile,
        offset: u64,
        shared: bool,
        write: bool,
    ) -> Result<(Backing<&'static M>, bool)> {
        if file.is_zero_device() {
            return Ok((anonymous(shared), false));
        }
        if shared && write && !file.flags().writable() {
            return Err(Errno::EACCES);
        }
        let node = file.mappable()?;
        if shared && write {
            node.may_map_writable()?;
        }
        let writable = shared && file.flags().writable() && node.may_map_writable().is_ok();
        let mut path = alloc::vec::Vec::new();
        let places = self.process.places().ok_or(Errno::EBADF)?;
        let described = file.describe(&places.root).unwrap_or_default();
        try_extend(&mut path, &described).map_err(|_| Errno::ENOMEM)?;
        let object = NodeObject::mapping(node, path, writable)?;
        Ok(if shared {
            (Backing::SharedFile { object, offset }, !writable)
        } else {
            (Backing::File { object, offset }, false)
        })
    }

    pub(crate) fn sys_munmap(&mut self, a: [u64; 6]) -> Result<u64> {
        self.space.unmap(VirtAddr::new(a[0]), a[1])?;
        Ok(0)
    }

    pub(crate) fn sys_mprotect(&mut self, a: [u64; 6]) -> Result<u64> {
        let mut request = pagoda_linux::mprotect(a[0], a[1], a[2])?;
        if request.from_start {
            let region = self.space.next_region(request.addr).ok_or(Errno::ENOMEM)?;
            if !region.flags.contains(MapFlags::GROWS_DOWN) {
                return Err(Errno::EINVAL);
            }
            let start = region.range.start();
            request.len += request.addr.as_u64().saturating_sub(start.as_u64());
            request.addr = start;
        }
        if request.len != 0 {
            self.space.protect(request.addr, request.len, request.prot)?;
        }
        Ok(0)
    }

    pub(crate) fn sys_mremap(&mut self, a: [u64; 6]) -> Result<u64> {
        let request = pagoda_linux::mremap(a[0], a[1], a[2], a[3], a[4])?;
        let moved = self.space.remap(request).map_err(|error| match error {
            VmError::NotMapped => Errno::EFAULT,
            other => other.into(),
        })?;
        Ok(moved.as_u64())
    }

    pub(crate) fn sys_brk(&mut self, a: [u64; 6]) -> Result<u64> {
        Ok(self.space.set_brk(VirtAddr::new(a[0])).as_u64())
    }

    pub(crate) fn sys_madvise(&mut self, a: [u64; 6]) -> Result<u64> {
        let advice = pagoda_linux::advice(a[2])?;
        let len = a[1].checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::EINVAL)?;
        if advice == Advice::Free {
            self.kernel.note_lazy();
        }
        self.space.advise(VirtAddr::new(a[0]), len, advice)?;
        Ok(0)
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
            walked?;
            let count = (part / PAGE_SIZE) as usize;
            let at = vector.checked_add(done / PAGE_SIZE).ok_or(Errno::EFAULT)?;
            self.write_bytes(at, present.get(..count).unwrap_or_default())?;
            done += part;
        }
        Ok(0)
    }

    /// Nothing is ever behind: the pages that a shared mapping shows are the file.
    pub(crate) fn sys_msync(&mut self, a: [u64; 6]) -> Result<u64> {
        let [addr, len, flags, ..] = a;
        let both = flags & 1 != 0 && flags & 4 != 0;
        if addr % PAGE_SIZE != 0 || flags & !7 != 0 || both {
            return Err(Errno::EINVAL);
        }
        let len = len.checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::ENOMEM)?;
        self.all_mapped(addr, len)
    }

    pub(crate) fn sys_mlock(&mut self, a: [u64; 6], locking: Locking) -> Result<u64> {
        let start = a[0] & !(PAGE_SIZE - 1);
        let end = a[0].checked_add(a[1]).and_then(|end| end.checked_next_multiple_of(PAGE_SIZE));
        let len = end.and_then(|end| end.checked_sub(start)).ok_or(Errno::EINVAL)?;
        self.space.set_locked(VirtAddr::new(start), len, locking)?;
        Ok(0)
    }

    pub(crate) fn sys_mlock2(&mut self, a: [u64; 6]) -> Result<u64> {
        const ONFAULT: u64 = 1;
        match a[2] {
            0 => self.sys_mlock(a, Locking::Now),
            ONFAULT => self.sys_mlock(a, Locking::OnFault),
            _ => Err(Errno::EINVAL),
        }
    }

    pub(crate) fn sys_mlockall(&mut self, a: [u64; 6]) -> Result<u64> {
        let (now, future) = pagoda_linux::mlockall(a[0])?;
        self.space.set_all_locked(now, future)?;
        Ok(0)
    }

    pub(crate) fn sys_munlockall(&mut self) -> Result<u64> {
        self.space.set_all_locked(Some(Locking::Off), Locking::Off)?;
        Ok(0)
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
