//! Terminals.
//!
//! A [`Terminal`] stands between a line (a serial port: bytes in by [`Terminal::input`], bytes out
//! to a [`Sink`]) and the programs that read, write and set it. The line discipline is in
//! `discipline`, output processing in `output`, settings in [`termios`], requests in `ioctl`.
//!
//! Signals are not sent from here: [`Terminal::input`] returns which ones the typed bytes stand
//! for and for which process group. Whether a process in the background may read, write or change
//! settings is asked by the kernel *before* the call, with [`Terminal::is_background`]: only it
//! knows which signals are ignored.
//!
//! Locks: the terminal's state is a leaf lock; the sink is called while it is held, so that bytes
//! reach the line in order. [`Host::wake`] is called after it was given back.

mod discipline;
mod ioctl;
mod output;
pub mod termios;

use alloc::sync::Arc;

use discipline::Discipline;
use output::Output;
pub use termios::Termios;
use termios::{cc, lflag};

use crate::{Errno, Host, Lock, Ready, Result, Waiters, fallible};

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
    /// This terminal is the controlling one of the process.
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

/// Rows and columns, and the same in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct WindowSize {
    pub rows: u16,
    pub columns: u16,
    pub width: u16,
    pub height: u16,
}

struct State {
    discipline: Discipline,
    window: WindowSize,
    session: i32,
    foreground: i32,
    hung_up: bool,
}

/// A terminal: a line discipline between bytes from a line and reads, writes and the line.
pub struct Terminal {
    state: Lock<State>,
    sink: Arc<dyn Sink>,
    waiters: Waiters,
}

impl Terminal {
    /// A terminal with Linux's initial settings.
    pub fn new(host: Arc<dyn Host>, sink: Arc<dyn Sink>) -> Result<Arc<Self>> {
        let state = State {
            discipline: Discipline::new()?,
            window: WindowSize::default(),
            session: 0,
            foreground: 0,
            hung_up: false,
        };
        fallible::try_arc(Self { state: Lock::new(state), sink, waiters: Waiters::new(host) })
    }

    /// Bytes came in on the line. Echo goes out at once.
    pub fn input(&self, bytes: &[u8]) -> Input {
        let mut state = self.state.lock();
        let mut signals = Signals::empty();
        let mut accepted = 0;
        for &byte in bytes {
            if state.hung_up || !state.discipline.has_room() {
                break;
            }
            signals |= state.discipline.receive(byte, &*self.sink);
            accepted += 1;
        }
        let group = state.foreground;
        drop(state);
        if accepted > 0 {
            self.waiters.wake();
        }
        Input { accepted, signals, group }
    }

    /// The line is closed: reads see the end, writes fail.
    pub fn hang_up(&self) {
        self.state.lock().hung_up = true;
        self.waiters.wake();
    }

    /// Reads a line, or in raw mode what MIN and TIME ask for. `expired`: the time is over, what
    /// is there counts.
    ///
    /// # Errors
    /// [`Errno::EAGAIN`]: it has to wait, at most for
    /// [`read_wait_limit_ms`](Self::read_wait_limit_ms).
    pub fn read(&self, into: &mut [u8], expired: bool) -> Result<usize> {
        self.read_mode(into, expired, false)
    }

    /// [`read`](Self::read); a nonblocking one takes fewer bytes than MIN, but not none.
    pub(crate) fn read_mode(
        &self,
        into: &mut [u8],
        expired: bool,
        nonblocking: bool,
    ) -> Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let mut state = self.state.lock();
        let hung_up = state.hung_up;
        let discipline = &mut state.discipline;
        let read = if discipline.settings.local(lflag::ICANON) {
            match discipline.has_line() {
                true => discipline.read_line(into),
                false if hung_up => 0,
                false => return Err(Errno::EAGAIN),
            }
        } else {
            let (min, time) = (discipline.settings.cc[cc::VMIN], discipline.settings.cc[cc::VTIME]);
            let there = discipline.waiting();
            let enough = there >= into.len().min(usize::from(min).max(1));
            let polls = min == 0 && time == 0;
            let some = nonblocking && there > 0;
            if !(enough || polls || expired || some || hung_up) {
                return Err(Errno::EAGAIN);
            }
            discipline.read_raw(into)
        };
        drop(state);
        // Whoever feeds the line may have more than fitted.
        self.waiters.wake();
        Ok(read)
    }

    /// How long a read that was refused may wait for the next byte, in milliseconds. `None`: for
    /// ever. With MIN above 0 the time runs between bytes: it starts anew with each.
    pub fn read_wait_limit_ms(&self) -> Option<u64> {
        let state = self.state.lock();
        let settings = &state.discipline.settings;
        let (min, time) = (settings.cc[cc::VMIN], settings.cc[cc::VTIME]);
        let runs = min == 0 || state.discipline.waiting() > 0;
        let raw = !settings.local(lflag::ICANON);
        (raw && time > 0 && runs).then(|| u64::from(time) * 100)
    }

    /// Writes through output processing.
    ///
    /// # Errors
    /// [`Errno::EAGAIN`]: output is stopped. [`Errno::EIO`]: the line is closed.
    pub fn write(&self, bytes: &[u8]) -> Result<usize> {
        let mut state = self.state.lock();
        if state.hung_up {
            return Err(Errno::EIO);
        }
        if state.discipline.stopped {
            return Err(Errno::EAGAIN);
        }
        let settings = state.discipline.settings;
        let mut out = Output::new(&*self.sink, settings, &mut state.discipline.columns);
        bytes.iter().for_each(|&byte| out.processed(byte));
        drop(out);
        Ok(bytes.len())
    }

    /// Is `who` in the background of this terminal? Then a read means `SIGTTIN` (or
    /// [`Errno::EIO`]); a write does `SIGTTOU` if
    /// [`stops_background_output`](Self::stops_background_output), and so does an ioctl if
    /// [`changes_terminal`](Self::changes_terminal).
    pub fn is_background(&self, who: &ProcessIds) -> bool {
        let state = self.state.lock();
        who.controlling
            && state.session == who.session
            && state.foreground != 0
            && state.foreground != who.group
    }

    /// `TOSTOP`.
    pub fn stops_background_output(&self) -> bool {
        self.state.lock().discipline.settings.local(lflag::TOSTOP)
    }

    /// The foreground process group, 0 if none.
    pub fn foreground(&self) -> i32 {
        self.state.lock().foreground
    }

    /// The session whose controlling terminal this is, 0 if none.
    pub fn session(&self) -> i32 {
        self.state.lock().session
    }

    /// Makes it the controlling terminal of `session` (0: of none), with `group` in front.
    pub fn set_session(&self, session: i32, group: i32) {
        let mut state = self.state.lock();
        (state.session, state.foreground) = (session, group);
    }

    /// The settings.
    pub fn settings(&self) -> Termios {
        self.state.lock().discipline.settings
    }

    /// Changes the settings; `flush` forgets what was typed first.
    pub fn set_settings(&self, settings: Termios, flush: bool) {
        let mut state = self.state.lock();
        if flush {
            state.discipline.flush_input();
        }
        state.discipline.set(settings);
        drop(state);
        self.waiters.wake();
    }

    /// Tells it its size, without a signal.
    pub fn set_window(&self, window: WindowSize) {
        self.state.lock().window = window;
    }

    /// What it is ready for.
    pub fn poll(&self) -> Ready {
        let state = self.state.lock();
        let discipline = &state.discipline;
        let settings = &discipline.settings;
        let readable = if settings.local(lflag::ICANON) {
            discipline.has_line()
        } else {
            let (min, time) = (settings.cc[cc::VMIN], settings.cc[cc::VTIME]);
            let wanted = if time == 0 { usize::from(min).max(1) } else { 1 };
            discipline.waiting() >= wanted
        };
        let mut ready = Ready::empty();
        if readable || state.hung_up {
            ready |= Ready::READ;
        }
        if state.hung_up {
            ready |= Ready::HUP | Ready::ERR;
        } else if !discipline.stopped {
            ready |= Ready::WRITE;
        }
        ready
    }

    /// Where to wait.
    pub fn waiters(&self) -> &Waiters {
        &self.waiters
    }
}
