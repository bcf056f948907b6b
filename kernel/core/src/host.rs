//! What the files ask of the rest of the kernel, and the serial lines as files.
//!
//! *tty*: the line is a terminal. *raw*: bytes pass as they are; the end of the input comes as a
//! message on the control line, `eof N` with the number of bytes in all.

use alloc::sync::Arc;
use alloc::vec::Vec;

use pagoda_kernel_fs::tty::{Sink, Terminal};
use pagoda_kernel_fs::{CustomFile, Errno, Host, Inode, Ready, Time, Waiters};
use pagoda_sync::SpinMutex;
use pagoda_vm::fallible::try_extend;
use pagoda_vm::{Frames, PageStore};

use crate::machine::{Machine, Port};
use crate::sched::Sched;
use crate::sched::slots::Channel;

/// The most bytes of raw input kept for the program; what comes then stays in the line.
const INPUT_MAX: usize = 64 << 10;

/// What the files ask for.
pub(crate) struct CoreHost<M: Machine> {
    pub(crate) machine: &'static M,
    pub(crate) sched: Arc<Sched<M>>,
    pub(crate) console: SpinMutex<Option<Arc<Terminal>>>,
    /// Files are kept in frames, which programs map.
    pub(crate) pages: Frames<&'static M>,
}

/// What address spaces know a file by.
pub(crate) fn file_key(file: &Inode) -> usize {
    core::ptr::from_ref(file).addr()
}

/// A time in nanoseconds as seconds and the rest.
pub(crate) fn time(ns: u64) -> Time {
    Time { seconds: (ns / 1_000_000_000) as i64, nanoseconds: (ns % 1_000_000_000) as u32 }
}

impl<M: Machine> Host for CoreHost<M> {
    fn wake(&self, key: usize) {
        self.sched.wake(Channel::File(key as u64), usize::MAX);
        self.sched.wake(Channel::AnyFile, usize::MAX);
    }
    fn now(&self) -> Time {
        time(self.machine.realtime_ns())
    }
    fn random(&self, into: &mut [u8]) {
        self.machine.random(into);
    }
    fn kernel_log(&self, text: &[u8]) {
        for chunk in text.utf8_chunks() {
            log::info!("{}", chunk.valid().trim_end());
        }
    }
    fn pages(&self) -> &dyn PageStore {
        &self.pages
    }
    fn pages_gone(&self, file: &Inode, range: (u64, u64), own: bool) {
        let Some(thread) = self.sched.current() else { return };
        let mut next = 0;
        while let Some(process) = thread.kernel.next_process(next) {
            next = process.pid + 1;
            if let Some(space) = process.space() {
                space.forget_object(file_key(file), range, own);
            }
        }
    }
    fn console(&self) -> Option<Arc<Terminal>> {
        self.console.lock().clone()
    }
    fn controlling_terminal(&self) -> Option<Arc<Terminal>> {
        let thread = self.sched.current()?;
        let family = thread.process.family.lock();
        family.terminal.clone()
    }
}

/// Where a terminal's output goes.
pub(crate) struct Line<M: Machine> {
    pub(crate) machine: &'static M,
    pub(crate) port: Port,
}

impl<M: Machine> Sink for Line<M> {
    fn output(&self, bytes: &[u8]) {
        self.machine.serial_write(self.port, bytes);
    }
}

/// A line as a file that is written verbatim.
impl<M: Machine> CustomFile for Line<M> {
    fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        self.machine.serial_write(self.port, bytes);
        Ok(bytes.len())
    }
    fn poll(&self) -> Ready {
        Ready::WRITE
    }
    fn name(&self) -> &'static str {
        match self.port {
            Port::Terminal => "serial:[stdout]",
            Port::Control => "serial:[control]",
            Port::Error => "serial:[stderr]",
        }
    }
}

/// The bytes that have come in on the terminal's line, and where they end.
pub(crate) struct RawInput {
    waiters: Waiters,
    state: SpinMutex<RawState>,
}

#[derive(Default)]
struct RawState {
    bytes: Vec<u8>,
    received: u64,
    end: Option<u64>,
    message: Vec<u8>,
}

impl RawState {
    fn at_end(&self) -> bool {
        self.end.is_some_and(|end| self.received >= end)
    }
}

impl RawInput {
    pub(crate) fn new(host: Arc<dyn Host>) -> Self {
        Self { waiters: Waiters::new(host), state: SpinMutex::new(RawState::default()) }
    }

    /// Takes in what has arrived on both lines.
    pub(crate) fn take_in<M: Machine>(&self, machine: &M) {
        let mut chunk = [0; 256];
        let mut news = false;
        let mut state = self.state.lock();
        while state.bytes.len() < INPUT_MAX && state.bytes.try_reserve(chunk.len()).is_ok() {
            let count = machine.serial_read(Port::Terminal, &mut chunk);
            if count == 0 {
                break;
            }
            state.received += count as u64;
            state.bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
            news = true;
        }
        loop {
            let count = machine.serial_read(Port::Control, &mut chunk);
            if count == 0 {
                break;
            }
            let _ = try_extend(&mut state.message, chunk.get(..count).unwrap_or_default());
            while let Some(end) = state.message.iter().position(|&byte| byte == b'\n') {
                let total = state.message.get(..end).and_then(parse_end);
                state.message.drain(..=end);
                news |= total.is_some();
                state.end = state.end.or(total);
            }
            if state.message.len() > 4096 {
                state.message.clear();
            }
        }
        drop(state);
        if news {
            self.waiters.wake();
        }
    }
}

/// `eof N`
fn parse_end(line: &[u8]) -> Option<u64> {
    core::str::from_utf8(line.strip_prefix(b"eof ")?).ok()?.trim().parse().ok()
}

impl CustomFile for RawInput {
    fn read(&self, into: &mut [u8]) -> Result<usize, Errno> {
        let mut state = self.state.lock();
        let count = into.len().min(state.bytes.len());
        if count == 0 && !into.is_empty() && !state.at_end() {
            return Err(Errno::EAGAIN);
        }
        for (to, from) in into.iter_mut().zip(state.bytes.drain(..count)) {
            *to = from;
        }
        Ok(count)
    }
    fn poll(&self) -> Ready {
        let state = self.state.lock();
        if !state.bytes.is_empty() {
            Ready::READ
        } else if state.at_end() {
            Ready::READ | Ready::HUP
        } else {
            Ready::empty()
        }
    }
    fn waiters(&self) -> Option<&Waiters> {
        Some(&self.waiters)
    }
    fn name(&self) -> &'static str {
        "serial:[stdin]"
    }
}

/// Feeds the terminal; keeps what it does not take yet.
#[derive(Default)]
pub(crate) struct TerminalFeed {
    pending: Vec<u8>,
}

impl TerminalFeed {
    /// Offers the terminal what has arrived. Returns the signals that this means, and for whom.
    pub(crate) fn take_in<M: Machine>(
        &mut self,
        machine: &M,
        terminal: &Terminal,
        mut signal: impl FnMut(pagoda_kernel_fs::tty::Signals, i32),
    ) {
        let mut chunk = [0; 128];
        while self.pending.len() < 4096 && self.pending.try_reserve(chunk.len()).is_ok() {
            let count = machine.serial_read(Port::Terminal, &mut chunk);
            if count == 0 {
                break;
            }
            self.pending.extend_from_slice(chunk.get(..count).unwrap_or_default());
        }
        while !self.pending.is_empty() {
            let taken = terminal.input(&self.pending);
            let accepted = taken.accepted.min(self.pending.len());
            self.pending.drain(..accepted);
            signal(taken.signals, taken.group);
            if accepted == 0 {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_input_is_a_number_of_bytes() {
        assert_eq!(parse_end(b"eof 17"), Some(17));
        assert_eq!(parse_end(b"eof -1"), None);
        assert_eq!(parse_end(b"foe 17"), None);
    }
}
