//! Terminals.
use alloc::sync::Arc;

use crate::{Errno, Host, IoctlMemory, Ready, Result, Waiters};

/// Where a terminal's output goes.
pub trait Sink: Send + Sync {
    /// Writes all bytes. Called with the terminal's lock held: it must not come back to it.
    fn output(&self, bytes: &[u8]);
}

/// Who asks something of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ProcessIds {
    pub pid: i32,
    pub group: i32,
    pub session: i32,
    /// The session's controlling terminal is this one.
    pub controlling: bool,
}

bitflags::bitflags! {
    /// Signals that a terminal wants sent.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Signals: u8 {
        /// `SIGINT`.
        const INT = 1;
        /// `SIGQUIT`.
        const QUIT = 2;
        /// `SIGTSTP`.
        const TSTP = 4;
        /// `SIGWINCH`.
        const WINCH = 8;
        /// `SIGTTOU`.
        const TTOU = 16;
        /// `SIGHUP`.
        const HUP = 32;
        /// `SIGCONT`.
        const CONT = 64;
    }
}

/// What became of input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input {
    /// How many bytes were taken; the others did not fit and may be offered again later.
    pub accepted: usize,
    /// Signals for the foreground process group.
    pub signals: Signals,
    /// That group, 0 if there is none.
    pub group: i32,
}

/// A terminal: a line discipline between bytes from a line and reads, writes and the line.
pub struct Terminal {
    waiters: Waiters,
}

#[allow(unused_variables)]
impl Terminal {
    /// A terminal with Linux's initial settings.
    pub fn new(host: Arc<dyn Host>, sink: Arc<dyn Sink>) -> Result<Arc<Self>> {
        Err(Errno::ENOSYS)
    }
    /// Bytes came in on the line.
    pub fn input(&self, bytes: &[u8]) -> Input {
        Input { accepted: 0, signals: Signals::empty(), group: 0 }
    }
    /// The line is closed: reads see the end, writes fail.
    pub fn hang_up(&self) {}
    /// Reads a line, or in raw mode what MIN and TIME ask for. `expired`: do not wait any more.
    pub(crate) fn read_mode(
        &self,
        into: &mut [u8],
        expired: bool,
        nonblocking: bool,
    ) -> Result<usize> {
        Err(Errno::ENOSYS)
    }
    /// See [`OpenFile::read_wait_limit_ms`](crate::OpenFile::read_wait_limit_ms).
    pub fn read_wait_limit_ms(&self) -> Option<u64> {
        None
    }
    /// Reads.
    pub fn read(&self, into: &mut [u8], expired: bool) -> Result<usize> {
        Err(Errno::ENOSYS)
    }
    /// Writes through output processing.
    pub fn write(&self, bytes: &[u8]) -> Result<usize> {
        Err(Errno::ENOSYS)
    }
    /// Is `who` in the background of this terminal? Then a read means `SIGTTIN` (or EIO), and a
    /// write does `SIGTTOU` if [`stops_background_output`](Self::stops_background_output).
    pub fn is_background(&self, who: &ProcessIds) -> bool {
        false
    }
    /// `TOSTOP`.
    pub fn stops_background_output(&self) -> bool {
        false
    }
    /// The foreground process group, 0 if none.
    pub fn foreground(&self) -> i32 {
        0
    }
    /// The session whose controlling terminal this is, 0 if none.
    pub fn session(&self) -> i32 {
        0
    }
    /// Makes it the controlling terminal of `session` (0: of none), with `group` in front.
    pub fn set_session(&self, session: i32, group: i32) {}
    /// Terminal requests.
    pub fn ioctl(&self, request: u32, arg: u64, memory: &mut dyn IoctlMemory) -> Result<i64> {
        Err(Errno::ENOTTY)
    }
    /// What it is ready for.
    pub fn poll(&self) -> Ready {
        Ready::empty()
    }
    /// Where to wait.
    pub fn waiters(&self) -> &Waiters {
        &self.waiters
    }
}
