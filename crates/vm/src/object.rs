//! What stands behind regions: files and shared memory.
//!
//! A [`FileObject`] is the host's. Where the host keeps it in frames (see
//! [`FilePage`](crate::FilePage)), regions map those: shared ones to read and write them, private
//! ones to read, and to copy when they are written. Else a private region copies at the first touch. A
//! [`SharedObject`] is ours: zeroed memory that several mappings see at once. It exists from the
//! moment that the mapping is made, so that a fork before the first touch shares it too. It holds
//! one reference to each of its frames, and every mapping holds another.
//!
//! From a frame to its places: a file's frame stands at the same index in every region of the file,
//! so its places are found through the regions, when a file shrinks; faults and forks keep no record.
//!
//! Left out: write-back (the frames are the file), truncation of shared objects.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;

use lock_api::Mutex;
use pagoda_addr::Frame;
use pagoda_paging::{PageSize, Released};

use crate::fallible::{NoMemory, try_arc, try_box};
use crate::memory::PAGE;
use crate::{FaultError, VmError, VmPlatform};

/// A page of a file could not be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadError {
    /// The file has no such page, or its medium failed: SIGBUS.
    Bus,
    /// No memory for it.
    OutOfMemory,
}

/// What `/proc/PID/maps` says about a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FileIdentity {
    /// Major number of the device.
    pub major: u32,
    /// Minor number of the device.
    pub minor: u32,
    /// Inode number.
    pub inode: u64,
}

/// A file that may be mapped. Called, and dropped, with the regions of one address space
/// locked: an implementer takes only locks of rank `OBJECT` and above, never touches a program's
/// memory, never waits for a program.
pub trait FileObject: Send + Sync {
    /// Bytes in the file now.
    fn size(&self) -> u64;

    /// Fills `into` with page `index` of the file. Bytes beyond the end of the file need not be
    /// written: the caller clears them.
    fn read_page(&self, index: u64, into: &mut [u8; PAGE]) -> Result<(), ReadError>;

    /// The frame that holds page `index` of the file now, for whoever reads, writes and maps the
    /// file, with one more reference for the caller. `ahead`: nobody touched the page yet; answer
    /// with none where that would make memory of a hole. None always, from a host that does not
    /// keep its files in frames: then pages are copied, and the file cannot be mapped shared.
    fn frame(&self, index: u64, ahead: bool) -> Result<Option<Frame>, ReadError> {
        let _ = (index, ahead);
        Ok(None)
    }

    /// A number that two objects have in common exactly if they are the same file, and that no
    /// [`SharedObject`] has for an address: that of the file's record, say.
    fn key(&self) -> usize {
        core::ptr::from_ref(self).cast::<u8>().addr()
    }

    /// Device and inode.
    fn identity(&self) -> FileIdentity {
        FileIdentity::default()
    }

    /// Writes the path, as `/proc/PID/maps` shows it.
    fn write_path(&self, to: &mut dyn fmt::Write) -> fmt::Result {
        let _ = to;
        Ok(())
    }
}

const BITS: u32 = 6;
const FAN: usize = 1 << BITS;

/// One level of the frames by page index: a radix tree of 64 branches.
type Level = [Slot; FAN];

enum Slot {
    Empty,
    Lower(Box<Level>),
    Page(Frame),
}

fn empty_level() -> Level {
    [const { Slot::Empty }; FAN]
}

/// Zeroed memory that several mappings see at once.
pub struct SharedObject<P: VmPlatform> {
    platform: P,
    pages: u64,
    /// Is its size in the machine's books?
    charged: bool,
    /// Levels below `frames`.
    height: u32,
    frames: Mutex<P::ObjectLock, Level>,
}

impl<P: VmPlatform> SharedObject<P> {
    /// `pages` pages of zeroes, none of which takes memory before it is touched.
    pub fn new(platform: P, pages: u64) -> Result<Arc<Self>, VmError> {
        Self::charged(platform, pages, false)
    }

    /// As [`new`](Self::new); its size was `charged` to the machine's books, and will be released.
    pub(crate) fn charged(platform: P, pages: u64, charged: bool) -> Result<Arc<Self>, VmError> {
        let mut height = 0;
        while height < 8 && pages >> (BITS * (height + 1)) != 0 {
            height += 1;
        }
        // Where the counted pointer is refused, its contents are dropped, and release the charge.
        Ok(try_arc(Self { platform, pages, charged, height, frames: Mutex::new(empty_level()) })?)
    }

    /// Its size in pages.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The frame of page `index`, made if there is none yet (unless `ahead`: then none), with one
    /// more reference for the caller.
    pub(crate) fn frame(&self, index: u64, ahead: bool) -> Result<Option<Frame>, FaultError> {
        if index >= self.pages {
            return Err(FaultError::Bus);
        }
        let mut top = self.frames.lock();
        let slot =
            Self::slot(&mut top, index, self.height).map_err(|NoMemory| FaultError::OutOfMemory)?;
        let frame = match slot {
            Slot::Page(frame) => *frame,
            _ if ahead => return Ok(None),
            _ => {
                let frame = self.platform.alloc_page(true).map_err(|_| FaultError::OutOfMemory)?;
                *slot = Slot::Page(frame);
                frame
            }
        };
        self.platform.share(frame);
        Ok(Some(frame))
    }

    /// The slot of page `index`, with the levels above it made where they are missing.
    fn slot(top: &mut Level, index: u64, height: u32) -> Result<&mut Slot, NoMemory> {
        let digit = |level: u32| (index >> (BITS * level)) as usize % FAN;
        let mut level = height;
        let mut slot = &mut top[digit(level)];
        while level > 0 {
            level -= 1;
            if !matches!(slot, Slot::Lower(_)) {
                *slot = Slot::Lower(try_box(empty_level())?);
            }
            match slot {
                Slot::Lower(lower) => slot = &mut lower[digit(level)],
                _ => return Err(NoMemory),
            }
        }
        Ok(slot)
    }

    fn release_all(platform: &P, level: &Level) {
        for slot in level {
            match slot {
                Slot::Empty => {}
                Slot::Lower(lower) => Self::release_all(platform, lower),
                Slot::Page(frame) => {
                    platform.release(Released::Page { frame: *frame, size: PageSize::K4 });
                }
            }
        }
    }
}

impl<P: VmPlatform> Drop for SharedObject<P> {
    fn drop(&mut self) {
        // Only the object's own references: mappings keep theirs until after their flush.
        Self::release_all(&self.platform, self.frames.get_mut());
        if let Some(books) = self.platform.commit().filter(|_| self.charged) {
            books.release(self.pages);
        }
    }
}
