//! Pipes, with and without names.
//!
//! A pipe is a queue of up to 64 KiB between writing and reading ends, which it counts. A write of
//! at most [`PIPE_BUF`] bytes goes in whole or not at all; a longer one as far as it fits. The
//! queue's memory grows with what is in it.
//!
//! Left out: changing the capacity, packets (`O_DIRECT`), splice.

use alloc::collections::VecDeque;
use alloc::sync::Arc;

use crate::{Errno, Host, Lock, Ready, Result, Waiters};

/// The most bytes in a pipe.
pub const PIPE_CAPACITY: usize = 65536;
/// The most bytes that are written whole or not at all.
pub const PIPE_BUF: usize = 4096;

#[derive(Default)]
struct State {
    queue: VecDeque<u8>,
    readers: usize,
    writers: usize,
    /// Ends ever opened: how somebody who waits for the other end knows that it came, even if it
    /// is gone again.
    readers_ever: u64,
    writers_ever: u64,
}

/// See the module.
pub(crate) struct Pipe {
    state: Lock<State>,
    waiters: Waiters,
}

/// Which end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    Read,
    Write,
    /// A named pipe opened for both.
    Both,
}

impl End {
    fn reads(self) -> bool {
        self != Self::Write
    }
    fn writes(self) -> bool {
        self != Self::Read
    }
}

/// An open end. Dropping it closes it.
pub(crate) struct PipeEnd {
    pipe: Arc<Pipe>,
    end: End,
    /// How many other ends there had been when this one was opened.
    others_before: u64,
}

impl Pipe {
    pub(crate) fn new(host: Arc<dyn Host>) -> Self {
        Self { state: Lock::new(State::default()), waiters: Waiters::new(host) }
    }

    /// Opens an end.
    pub(crate) fn open(self: &Arc<Self>, end: End) -> PipeEnd {
        let mut state = self.state.lock();
        let others_before = if end == End::Read { state.writers_ever } else { state.readers_ever };
        if end.reads() {
            state.readers += 1;
            state.readers_ever += 1;
        }
        if end.writes() {
            state.writers += 1;
            state.writers_ever += 1;
        }
        drop(state);
        self.waiters.wake();
        PipeEnd { pipe: self.clone(), end, others_before }
    }

    pub(crate) fn has_readers(&self) -> bool {
        self.state.lock().readers > 0
    }
}

impl PipeEnd {
    pub(crate) fn waiters(&self) -> &Waiters {
        &self.pipe.waiters
    }

    /// Bytes that wait to be read.
    pub(crate) fn len(&self) -> usize {
        self.pipe.state.lock().queue.len()
    }

    /// Has the other end not come yet? (A named pipe's `open` waits for it.)
    pub(crate) fn is_alone(&self) -> bool {
        let state = self.pipe.state.lock();
        match self.end {
            End::Read => state.writers == 0 && state.writers_ever == self.others_before,
            End::Write => state.readers == 0 && state.readers_ever == self.others_before,
            End::Both => false,
        }
    }

    /// Reads what is there. 0: empty, and nobody can write any more.
    pub(crate) fn read(&self, into: &mut [u8]) -> Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let mut state = self.pipe.state.lock();
        if state.queue.is_empty() {
            return if state.writers == 0 { Ok(0) } else { Err(Errno::EAGAIN) };
        }
        let (front, back) = state.queue.as_slices();
        let first = front.len().min(into.len());
        into[..first].copy_from_slice(&front[..first]);
        let second = back.len().min(into.len() - first);
        into[first..first + second].copy_from_slice(&back[..second]);
        state.queue.drain(..first + second);
        drop(state);
        self.pipe.waiters.wake();
        Ok(first + second)
    }

    /// Writes.
    ///
    /// # Errors
    /// [`Errno::EPIPE`]: nobody can read any more (the kernel adds `SIGPIPE`).
    /// [`Errno::EAGAIN`]: it does not fit now. [`Errno::ENOMEM`]: no memory for it and nothing in
    /// the pipe whose reading would help.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let mut state = self.pipe.state.lock();
        if state.readers == 0 {
            return Err(Errno::EPIPE);
        }
        let room = PIPE_CAPACITY - state.queue.len();
        let wanted = bytes.len().min(room);
        let too_full = if bytes.len() <= PIPE_BUF { room < bytes.len() } else { room == 0 };
        if too_full {
            return Err(Errno::EAGAIN);
        }
        // Without memory for all of it, what the queue has room for already; atomic writes not.
        let fits = match state.queue.try_reserve(wanted) {
            Ok(()) => wanted,
            Err(_) if bytes.len() <= PIPE_BUF => 0,
            Err(_) => wanted.min(state.queue.capacity() - state.queue.len()),
        };
        if fits == 0 {
            return Err(if state.queue.is_empty() { Errno::ENOMEM } else { Errno::EAGAIN });
        }
        state.queue.extend(&bytes[..fits]);
        drop(state);
        self.pipe.waiters.wake();
        Ok(fits)
    }

    /// What it is ready for.
    pub(crate) fn poll(&self) -> Ready {
        let state = self.pipe.state.lock();
        let mut ready = Ready::empty();
        if self.end.reads() {
            if !state.queue.is_empty() {
                ready |= Ready::READ;
            }
            if state.writers == 0 && state.writers_ever != self.others_before {
                ready |= Ready::HUP;
            }
        }
        if self.end.writes() {
            if PIPE_CAPACITY - state.queue.len() >= PIPE_BUF {
                ready |= Ready::WRITE;
            }
            if state.readers == 0 {
                ready |= Ready::ERR;
            }
        }
        ready
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        let mut state = self.pipe.state.lock();
        if self.end.reads() {
            state.readers -= 1;
        }
        if self.end.writes() {
            state.writers -= 1;
        }
        if state.readers == 0 && state.writers == 0 {
            state.queue = VecDeque::new();
        }
        drop(state);
        self.pipe.waiters.wake();
    }
}
