//! System V shared memory: `shmget`, `shmat`, `shmdt`, `shmctl`.
//!
//! A *segment* is a memory file with a key and a number; attaching maps it shared. What is attached
//! is counted by looking at the regions of all processes, so that forks and ends need no record. A
//! segment that was removed stays until nobody has it attached any more; that is noticed at the next
//! call.
//!
//! A segment's size is promised (`Commit`) while it exists, unless it was made with `SHM_NORESERVE`.
//!
//! Left out: huge pages, limits on the number of segments besides memory.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use pagoda_addr::VirtAddr;
use pagoda_kernel_fs::{Inode, OpenFlags, TextBuffer};
use pagoda_linux::Errno;
use pagoda_vm::fallible::try_push;
use pagoda_vm::{
    Backing, Charge, Commit, MapFlags, MapRequest, Overcommit, Place, Prot, RegionInfo, VmError,
};

use crate::Result;
use crate::host::file_key;
use crate::kernel::Kernel;
use crate::machine::Machine;
use crate::run::Cx;
use crate::task::exec::NodeObject;

const IPC_PRIVATE: i32 = 0;
const IPC_CREAT: u64 = 0o1000;
const IPC_EXCL: u64 = 0o2000;
const SHM_HUGETLB: u64 = 0o4000;
const SHM_NORESERVE: u64 = 0o10000;
const SHM_RDONLY: u64 = 0o10000;
const SHM_RND: u64 = 0o20000;
const SHM_REMAP: u64 = 0o40000;
const SHM_EXEC: u64 = 0o100_000;
/// The largest segment, as Linux has it.
const SHMMAX: u64 = u64::MAX - (1 << 24);
/// Numbers of segments are this plus the place in the list, times a generation.
const SEGMENTS: usize = 4096;

/// A segment of shared memory.
struct Segment {
    id: i32,
    key: i32,
    node: Arc<Inode>,
    size: u64,
    mode: u32,
    owner: (u32, u32),
    creator: (u32, u32),
    /// Attached, detached, changed: seconds.
    times: [i64; 3],
    creator_pid: u32,
    last_pid: u32,
    removed: bool,
    /// Pages in the machine's books.
    charged: u64,
}

/// All segments.
#[derive(Default)]
pub(crate) struct Segments {
    list: Vec<Segment>,
    next: i32,
}

impl Segments {
    pub(crate) const fn new() -> Self {
        Self { list: Vec::new(), next: 0 }
    }

    /// Forgets what was removed and is attached nowhere.
    fn tidy(&mut self, books: Option<&Commit>) {
        self.list.retain(|segment| {
            let stays = !segment.removed || segment.node.is_mapped();
            if let Some(books) = books.filter(|_| !stays) {
                books.release(segment.charged);
            }
            stays
        });
    }

    fn get(&mut self, id: i32, books: Option<&Commit>) -> Result<&mut Segment> {
        self.tidy(books);
        self.list.iter_mut().find(|segment| segment.id == id).ok_or(Errno::EINVAL)
    }

    /// The segment whose memory this file is.
    fn of_file(&self, key: usize) -> Option<&Segment> {
        self.list.iter().find(|segment| file_key(&segment.node) == key)
    }
}

impl Segment {
    /// May somebody with this identity do all of `wanted` (4 read, 2 write)?
    fn permits(&self, (uid, gid): (u32, u32), wanted: u32) -> Result<()> {
        let granted = if uid == 0 {
            6
        } else if uid == self.owner.0 || uid == self.creator.0 {
            self.mode >> 6
        } else if gid == self.owner.1 || gid == self.creator.1 {
            self.mode >> 3
        } else {
            self.mode
        };
        if granted & wanted == wanted { Ok(()) } else { Err(Errno::EACCES) }
    }

    fn owned_by(&self, uid: u32) -> Result<()> {
        let owner = uid == 0 || uid == self.owner.0 || uid == self.creator.0;
        if owner { Ok(()) } else { Err(Errno::EPERM) }
    }
}

/// The file behind a region, as a number.
fn key_of(region: &RegionInfo) -> Option<usize> {
    region.file.as_ref().filter(|_| region.shared).map(|file| file.key())
}

impl<M: Machine> Cx<'_, M> {
    fn identity(&self) -> (u32, u32) {
        let ids = self.process.ids.lock();
        (ids.uid[1], ids.gid[1])
    }

    fn seconds(&self) -> i64 {
        (self.kernel.machine.realtime_ns() / 1_000_000_000) as i64
    }

    pub(crate) fn sys_shmget(&mut self, a: [u64; 6]) -> Result<u64> {
        let (key, size, flags) = (a[0] as i32, a[1], a[2]);
        let identity = self.identity();
        {
            let mut segments = self.kernel.segments.lock();
            segments.tidy(self.books());
            let found = segments.list.iter().find(|s| s.key == key && !s.removed);
            if let Some(segment) = found.filter(|_| key != IPC_PRIVATE) {
                if flags & IPC_CREAT != 0 && flags & IPC_EXCL != 0 {
                    return Err(Errno::EEXIST);
                }
                if size > segment.size {
                    return Err(Errno::EINVAL);
                }
                let wanted = (flags >> 6 | flags >> 3 | flags) as u32 & 6;
                segment.permits(identity, wanted)?;
                return Ok(segment.id as u64);
            }
            if key != IPC_PRIVATE && flags & IPC_CREAT == 0 {
                return Err(Errno::ENOENT);
            }
            if size == 0 || size > SHMMAX {
                return Err(Errno::EINVAL);
            }
            if segments.list.len() >= SEGMENTS {
                return Err(Errno::ENOSPC);
            }
        }
        if flags & SHM_HUGETLB != 0 {
            return Err(Errno::ENOMEM);
        }
        let charged = self.charge_segment(size, flags)?;
        let made = self.new_segment(key, size, flags, charged);
        if let Some(books) = self.books().filter(|_| made.is_err()) {
            books.release(charged);
        }
        made
    }

    fn books(&self) -> Option<&'static Commit> {
        self.kernel.machine.commit()
    }

    /// Promises a segment of `size` bytes, if that is to be.
    fn charge_segment(&self, size: u64, flags: u64) -> Result<u64> {
        let Some(books) = self.books() else { return Ok(0) };
        if flags & SHM_NORESERVE != 0 && books.mode() != Overcommit::Never {
            return Ok(0);
        }
        let pages = size.div_ceil(4096);
        let (mapped, privileged) = (self.space.stats().mapped, self.identity().0 == 0);
        if !books.charge(Charge { pages, mapped, privileged }) {
            return Err(Errno::ENOMEM);
        }
        Ok(pages)
    }

    fn new_segment(&self, key: i32, size: u64, flags: u64, charged: u64) -> Result<u64> {
        let identity = self.identity();
        let file = self.kernel.vfs.memory_file(OpenFlags::RDWR)?;
        file.truncate(size).map_err(|_| Errno::EINVAL)?;
        let node = Arc::clone(file.node());
        let now = self.seconds();
        let mut segments = self.kernel.segments.lock();
        let id = segments.next;
        let segment = Segment {
            id,
            key,
            node,
            size,
            mode: flags as u32 & 0o777,
            owner: identity,
            creator: identity,
            times: [0, 0, now],
            creator_pid: self.process.pid,
            last_pid: 0,
            removed: false,
            charged,
        };
        try_push(&mut segments.list, segment).map_err(|_| Errno::ENOMEM)?;
        segments.next = (id + 1) & i32::MAX;
        Ok(id as u64)
    }

    pub(crate) fn sys_shmat(&mut self, a: [u64; 6]) -> Result<u64> {
        let (id, mut addr, flags) = (a[0] as i32, a[1], a[2]);
        if id < 0 {
            return Err(Errno::EINVAL);
        }
        let mut place = Place::Anywhere;
        if addr != 0 {
            if !addr.is_multiple_of(4096) {
                if flags & SHM_RND == 0 {
                    return Err(Errno::EINVAL);
                }
                addr &= !4095;
                if addr == 0 && flags & SHM_REMAP != 0 {
                    return Err(Errno::EINVAL);
                }
            }
            let at = VirtAddr::new(addr);
            let replace = flags & SHM_REMAP != 0;
            place = if replace { Place::Fixed(at) } else { Place::FixedNoReplace(at) };
        } else if flags & SHM_REMAP != 0 {
            return Err(Errno::EINVAL);
        }
        let read_only = flags & SHM_RDONLY != 0;
        let mut prot = if read_only { Prot::READ } else { Prot::READ | Prot::WRITE };
        prot.set(Prot::EXEC, flags & SHM_EXEC != 0);
        let wanted = if read_only { 4 } else { 6 };
        let (node, size, key) = {
            let mut segments = self.kernel.segments.lock();
            let segment = segments.get(id, self.books())?;
            segment.permits(self.identity(), wanted)?;
            (Arc::clone(&segment.node), segment.size, segment.key)
        };
        let mut path = TextBuffer::default();
        write!(path, "/SYSV{key:08x} (deleted)").map_err(|_| Errno::ENOMEM)?;
        let object = NodeObject::mapping(node, path.finish()?, !read_only)?;
        let mut kept = MapFlags::empty();
        kept.set(MapFlags::NEVER_WRITE, read_only);
        let backing = Backing::SharedFile { object, offset: 0 };
        let request = MapRequest { place, len: size, prot, flags: kept, backing };
        let at = self.space.map(request).map_err(|error| match error {
            VmError::Exists => Errno::EINVAL,
            other => other.into(),
        })?;
        let now = self.seconds();
        if let Ok(segment) = self.kernel.segments.lock().get(id, self.books()) {
            (segment.times[0], segment.last_pid) = (now, self.process.pid);
        }
        Ok(at.as_u64())
    }

    pub(crate) fn sys_shmdt(&mut self, a: [u64; 6]) -> Result<u64> {
        let addr = a[0];
        let first = self.space.next_region(VirtAddr::new(addr)).ok_or(Errno::EINVAL)?;
        let key = key_of(&first).ok_or(Errno::EINVAL)?;
        let start = first.range.start().as_u64();
        let size = {
            let segments = self.kernel.segments.lock();
            segments.of_file(key).ok_or(Errno::EINVAL)?.size
        };
        // The part that began at this address may have been cut off.
        if !addr.is_multiple_of(4096) || start < addr || start - addr != first.offset {
            return Err(Errno::EINVAL);
        }
        let end = addr.saturating_add(size.next_multiple_of(4096));
        let mut at = start;
        while let Some(region) = self.space.next_region(VirtAddr::new(at)) {
            let (from, to) = (region.range.start().as_u64(), region.range.end().as_u64());
            if from >= end {
                break;
            }
            if key_of(&region) == Some(key) && from - addr == region.offset {
                self.space.unmap(region.range.start(), to - from)?;
            }
            at = to;
        }
        let (now, pid) = (self.seconds(), self.process.pid);
        let mut segments = self.kernel.segments.lock();
        if let Some(segment) = segments.list.iter_mut().find(|s| file_key(&s.node) == key) {
            (segment.times[1], segment.last_pid) = (now, pid);
        }
        segments.tidy(self.books());
        Ok(0)
    }

    pub(crate) fn sys_shmctl(&mut self, a: [u64; 6]) -> Result<u64> {
        const RMID: u64 = 0;
        const SET: u64 = 1;
        const STAT: u64 = 2;
        const INFO: u64 = 3;
        const LOCK: u64 = 11;
        const UNLOCK: u64 = 12;
        let (id, command, buffer) = (a[0] as i32, a[1], a[2]);
        let identity = self.identity();
        match command {
            RMID => {
                let mut segments = self.kernel.segments.lock();
                let segment = segments.get(id, self.books())?;
                segment.owned_by(identity.0)?;
                // From now on nobody finds it by its key.
                (segment.removed, segment.key) = (true, IPC_PRIVATE);
                segments.tidy(self.books());
                Ok(0)
            }
            SET => {
                let mut bytes = [0; 24];
                self.read_bytes(buffer, &mut bytes)?;
                let word = |at: usize| {
                    let part = bytes.get(at..at + 4).and_then(|part| part.try_into().ok());
                    u32::from_le_bytes(part.unwrap_or_default())
                };
                let now = self.seconds();
                let mut segments = self.kernel.segments.lock();
                let segment = segments.get(id, self.books())?;
                segment.owned_by(identity.0)?;
                segment.owner = (word(4), word(8));
                segment.mode = word(20) & 0o777;
                segment.times[2] = now;
                Ok(0)
            }
            STAT => {
                let key = file_key(&self.kernel.segments.lock().get(id, self.books())?.node);
                let attached = self.kernel.attached(key);
                let mut segments = self.kernel.segments.lock();
                let segment = segments.get(id, self.books())?;
                segment.permits(identity, 4)?;
                let record = record(segment, attached);
                drop(segments);
                self.write_words(buffer, &record)?;
                Ok(0)
            }
            INFO => {
                // shmmax, shmmin, shmmni, shmseg, shmall; four unused words.
                let limits = [SHMMAX, 1, SEGMENTS as u64, SEGMENTS as u64, SHMMAX, 0, 0, 0, 0];
                self.write_words(buffer, &limits)?;
                Ok(self.kernel.segments.lock().list.len().saturating_sub(1) as u64)
            }
            // All of memory stays in memory.
            LOCK | UNLOCK => {
                let mut segments = self.kernel.segments.lock();
                segments.get(id, self.books())?.owned_by(identity.0).map(|()| 0)
            }
            _ => Err(Errno::EINVAL),
        }
    }
}

impl<M: Machine> Kernel<M> {
    /// Regions of all processes that show the segment with this file.
    fn attached(&self, key: usize) -> u64 {
        let (mut count, mut next) = (0, 0);
        while let Some(process) = self.next_process(next) {
            next = process.pid + 1;
            let Some(space) = process.space() else { continue };
            let mut from = VirtAddr::ZERO;
            while let Some(region) = space.next_region(from) {
                count += u64::from(key_of(&region) == Some(key));
                from = region.range.end();
            }
        }
        count
    }

    /// `/proc/sysvipc/shm`. No lock is held while attachments are counted.
    pub(crate) fn list_segments(&self, out: &mut dyn Write) -> fmt::Result {
        writeln!(
            out,
            "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  \
             cuid  cgid      atime      dtime      ctime                   rss                  \
             swap"
        )?;
        let mut index = 0;
        loop {
            let (row, key) = {
                let mut segments = self.segments.lock();
                segments.tidy(self.machine.commit());
                let Some(segment) = segments.list.get(index) else { return Ok(()) };
                (segment.row(), file_key(&segment.node))
            };
            row.write(out, self.attached(key))?;
            index += 1;
        }
    }
}

/// What a line says of a segment.
struct Row {
    key: i32,
    id: i32,
    mode: u32,
    size: u64,
    pids: [u32; 2],
    ids: [u32; 4],
    times: [i64; 3],
    resident: u64,
}

impl Segment {
    fn mode(&self) -> u32 {
        const DEST: u32 = 0o1000;
        self.mode | if self.removed { DEST } else { 0 }
    }

    fn row(&self) -> Row {
        Row {
            key: self.key,
            id: self.id,
            mode: self.mode(),
            size: self.size,
            pids: [self.creator_pid, self.last_pid],
            ids: [self.owner.0, self.owner.1, self.creator.0, self.creator.1],
            times: self.times,
            resident: self.node.stat().blocks * 512,
        }
    }
}

impl Row {
    fn write(&self, out: &mut dyn Write, attached: u64) -> fmt::Result {
        let Self { key, id, mode, size, pids: [creator, last], ids, times, resident } = self;
        write!(out, "{key:>10} {id:>10}  {mode:>4o} {size:>21} {creator:>5} {last:>5}  ")?;
        write!(out, "{attached:>5}")?;
        ids.iter().try_for_each(|id| write!(out, " {id:>5}"))?;
        times.iter().try_for_each(|time| write!(out, " {time:>10}"))?;
        writeln!(out, " {resident:>21} {:>21}", 0)
    }
}

/// `struct shmid_ds`, in words of eight bytes.
fn record(segment: &Segment, attached: u64) -> [u64; 14] {
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let mode = segment.mode();
    let [attach, detach, change] = segment.times.map(|time| time as u64);
    [
        pair(segment.key as u32, segment.owner.0),
        pair(segment.owner.1, segment.creator.0),
        pair(segment.creator.1, mode),
        0,
        0,
        0,
        segment.size,
        attach,
        detach,
        change,
        pair(segment.creator_pid, segment.last_pid),
        attached,
        0,
        0,
    ]
}
