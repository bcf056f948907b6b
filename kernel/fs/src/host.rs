//! What this crate asks of the kernel around it, and how the kernel waits for this crate.
//!
//! Nothing here blocks. An operation that would have to wait answers [`Errno::EAGAIN`]; the kernel
//! then looks whether the file was opened non-blocking, and if not, waits on the file's
//! [`Waiters`]: it reads [`generation`](Waiters::generation), tries once more, and sleeps under
//! the queue's [`key`](Waiters::key) until [`Host::wake`] is called with that key (or the
//! generation has moved on: then it tries at once).
//!
//! Lock rule: [`Host::wake`] and every source of generated text are called with no lock of this
//! crate held; the other methods of [`Host`] and [`Sink`](crate::tty::Sink) may be called with one.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use pagoda_vm::{HeapPages, PageStore};

use crate::tty::Terminal;
use crate::{Errno, Inode, Result, Time};

bitflags::bitflags! {
    /// What a file is ready for; the values of Linux's `POLL*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Ready: u16 {
        /// Something can be read, or the end of the file.
        const IN = 0x001;
        /// Urgent data.
        const PRI = 0x002;
        /// Something can be written.
        const OUT = 0x004;
        /// The reading end is gone.
        const ERR = 0x008;
        /// The writing end is gone.
        const HUP = 0x010;
        /// Not an open file.
        const NVAL = 0x020;
        /// `POLLRDNORM`.
        const RDNORM = 0x040;
        /// `POLLWRNORM`.
        const WRNORM = 0x100;
    }
}

impl Ready {
    /// Readable.
    pub const READ: Self = Self::IN.union(Self::RDNORM);
    /// Writable.
    pub const WRITE: Self = Self::OUT.union(Self::WRNORM);
}

/// What the kernel supplies. One value, shared by everything in this crate.
pub trait Host: Send + Sync {
    /// Something happened on the queue `key`: whoever waits for it should try again. Called with
    /// no lock of this crate held; may be called from the middle of any operation.
    fn wake(&self, key: usize);
    /// The time of day, for time stamps.
    fn now(&self) -> Time;
    /// Random bytes for `/dev/random` and `/dev/urandom`.
    fn random(&self, into: &mut [u8]);
    /// Text that a program wrote to `/dev/kmsg`.
    fn kernel_log(&self, _text: &[u8]) {}
    /// Where the pages of files come from. Frames can be mapped into programs; the default are pages
    /// of the heap, which cannot.
    fn pages(&self) -> &dyn PageStore {
        &HeapPages
    }
    /// The pages of `file` from one index up to another have left it: programs that have them mapped
    /// are to let go of them (`own`: and of what they made of them for themselves). Called with no lock
    /// of this crate held.
    fn pages_gone(&self, _file: &Inode, _range: (u64, u64), _own: bool) {}
    /// The terminal behind `/dev/console` and `/dev/ttyS0`.
    fn console(&self) -> Option<Arc<Terminal>> {
        None
    }
    /// The controlling terminal of the calling process, `/dev/tty`.
    fn controlling_terminal(&self) -> Option<Arc<Terminal>> {
        None
    }
}

/// Where threads wait for one thing (a pipe, a terminal) to change.
pub struct Waiters {
    host: Arc<dyn Host>,
    generation: AtomicU64,
}

impl Waiters {
    /// An empty queue.
    pub fn new(host: Arc<dyn Host>) -> Self {
        Self { host, generation: AtomicU64::new(0) }
    }

    /// How often something has happened here.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// The queue's name for [`Host::wake`]: its address. Constant as long as the thing that it
    /// belongs to lives; a later thing may get the same one, which costs a needless retry.
    pub fn key(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    /// Something happened.
    pub fn wake(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.host.wake(self.key());
    }
}

impl core::fmt::Debug for Waiters {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Waiters({:#x}, {})", self.key(), self.generation())
    }
}

/// The memory that the argument of an `ioctl` points to, in the calling process.
pub trait IoctlMemory {
    /// Fills `into` from the argument's address.
    fn read(&mut self, into: &mut [u8]) -> Result<()>;
    /// Stores `bytes` at the argument's address.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;
    /// The calling process, for terminals.
    fn process(&self) -> crate::tty::ProcessIds;
    /// Is there a process group `group` in session `session`?
    fn group_in_session(&self, _group: i32, _session: i32) -> bool {
        true
    }
    /// Sends `signals` to the process group `group`.
    fn signal(&mut self, _signals: crate::tty::Signals, _group: i32) {}
    /// Makes `terminal` the controlling terminal of the caller's session, or (false) gives it up.
    fn set_controlling(&mut self, _terminal: &Arc<Terminal>, _controlling: bool) -> Result<()> {
        Err(Errno::ENOTTY)
    }
}
