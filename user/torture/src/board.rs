//! What all processes of a run see: one shared mapping with heartbeats, counts, and the number of
//! things that went wrong.
#![allow(unsafe_code)] // makes a value of a fresh mapping

use core::fmt::{self, Write as _};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};

use crate::sys::{self, Errno};

/// The most worker processes.
pub const WORKERS: usize = 64;
/// The most threads of one worker that are watched.
pub const LANES: usize = 64;
/// Status of a process that has reported something wrong.
pub const WRONG: usize = 99;
/// Status of a process that gives up for want of memory.
pub const GAVE_UP: usize = 98;

/// What a lane does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs)] // their names say it
pub enum Op {
    Idle,
    Map,
    Touch,
    Check,
    Unmap,
    Protect,
    Remap,
    Advise,
    File,
    Fork,
    Exec,
    Spawn,
    Pipe,
    Registers,
    Masks,
    Signal,
    Futex,
    Bell,
    Move,
    Sleep,
    Allocate,
    Thread,
}

impl Op {
    /// All of them.
    pub const ALL: [Self; 22] = [
        Self::Idle,
        Self::Map,
        Self::Touch,
        Self::Check,
        Self::Unmap,
        Self::Protect,
        Self::Remap,
        Self::Advise,
        Self::File,
        Self::Fork,
        Self::Exec,
        Self::Spawn,
        Self::Pipe,
        Self::Registers,
        Self::Masks,
        Self::Signal,
        Self::Futex,
        Self::Bell,
        Self::Move,
        Self::Sleep,
        Self::Allocate,
        Self::Thread,
    ];
}

/// One watched thread.
#[derive(Debug)]
pub struct Pulse {
    /// Goes on with every operation.
    pub beat: AtomicU64,
    /// The operation, by its place in [`Op::ALL`].
    pub op: AtomicU32,
    /// The thread, 0 when there is none.
    pub tid: AtomicI32,
    /// The CPU that it last said it was on.
    pub cpu: AtomicU32,
}

/// See the module.
#[derive(Debug)]
pub struct Board {
    /// Things that were not as they must be.
    pub wrong: AtomicU64,
    /// Calls that the kernel refused for want of memory.
    pub refused: AtomicU64,
    /// May the kernel refuse, and kill?
    pub tolerant: AtomicBool,
    /// The run is over.
    pub stop: AtomicBool,
    /// How often each operation was done.
    pub done: [AtomicU64; Op::ALL.len()],
    /// Pages compared in full.
    pub pages: AtomicU64,
    /// Faults that were caught and found right.
    pub faults: AtomicU64,
    /// The threads of each worker.
    pub lanes: [[Pulse; LANES]; WORKERS],
    /// One thread on each CPU.
    pub cpus: [Pulse; 64],
}

impl Board {
    /// An empty one, shared with all children.
    pub fn new() -> Result<&'static Self, Errno> {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let at = sys::mmap(0, size_of::<Self>(), prot, flags, -1)?;
        // SAFETY: a fresh mapping of that size, page aligned, that is never unmapped; zeroes are a
        // value of every field.
        Ok(unsafe { &*(at as *const Self) })
    }

    /// Counts something that is wrong and says it in one piece.
    pub fn wrong(&self, text: fmt::Arguments<'_>) {
        self.wrong.fetch_add(1, Ordering::SeqCst);
        let mut line = Line { bytes: [0; 512], len: 0 };
        let _ = writeln!(line, "torture: WRONG: {text}");
        let _ = sys::write(2, line.bytes.get(..line.len).unwrap_or_default());
    }

    /// May the kernel refuse?
    pub fn tolerant(&self) -> bool {
        self.tolerant.load(Ordering::Relaxed)
    }
}

/// A line that is formatted without allocating.
struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        let count = text.len().min(room.len());
        room[..count].copy_from_slice(&text.as_bytes()[..count]);
        self.len += count;
        Ok(())
    }
}
