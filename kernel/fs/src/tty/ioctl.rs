//! Terminal requests.

use alloc::sync::Arc;

use super::{Signals, Terminal, Termios, WindowSize};
use crate::{Errno, IoctlMemory, Result};

const TCGETS: u32 = 0x5401;
const TCSETS: u32 = 0x5402;
const TCSETSW: u32 = 0x5403;
const TCSETSF: u32 = 0x5404;
const TCSBRK: u32 = 0x5409;
const TCXONC: u32 = 0x540a;
const TCFLSH: u32 = 0x540b;
const TIOCEXCL: u32 = 0x540c;
const TIOCNXCL: u32 = 0x540d;
const TIOCSCTTY: u32 = 0x540e;
const TIOCGPGRP: u32 = 0x540f;
const TIOCSPGRP: u32 = 0x5410;
const TIOCOUTQ: u32 = 0x5411;
const TIOCSTI: u32 = 0x5412;
const TIOCGWINSZ: u32 = 0x5413;
const TIOCSWINSZ: u32 = 0x5414;
const FIONREAD: u32 = 0x541b;
const TIOCNOTTY: u32 = 0x5422;
const TIOCGETD: u32 = 0x5424;
const TCSBRKP: u32 = 0x5425;
const TIOCGSID: u32 = 0x5429;
const TCGETS2: u32 = 0x802c_542a;
const TCSETS2: u32 = 0x402c_542b;
const TCSETSW2: u32 = 0x402c_542c;
const TCSETSF2: u32 = 0x402c_542d;

impl Terminal {
    /// Does `request` change the terminal, so that a process in the background gets `SIGTTOU`?
    pub fn changes_terminal(request: u32) -> bool {
        matches!(
            request,
            TCSETS
                | TCSETSW
                | TCSETSF
                | TCSETS2
                | TCSETSW2
                | TCSETSF2
                | TCSBRK
                | TCSBRKP
                | TCXONC
                | TCFLSH
                | TIOCSPGRP
        )
    }

    /// Terminal requests. [`Errno::ENOTTY`] for those that it does not know.
    pub fn ioctl(
        self: &Arc<Self>,
        request: u32,
        arg: u64,
        memory: &mut dyn IoctlMemory,
    ) -> Result<i64> {
        if self.state.lock().hung_up {
            return Err(Errno::EIO);
        }
        match request {
            TCGETS => memory.write(&self.settings().to_bytes()[..Termios::LEN])?,
            TCGETS2 => memory.write(&self.settings().to_bytes())?,
            TCSETS | TCSETSW | TCSETSF => {
                self.set_from(Termios::LEN, request == TCSETSF, memory)?;
            }
            TCSETS2 | TCSETSW2 | TCSETSF2 => {
                self.set_from(Termios::LEN2, request == TCSETSF2, memory)?;
            }
            // Output is never behind, breaks cannot be sent, exclusion binds nobody here.
            TCSBRK | TCSBRKP | TIOCEXCL | TIOCNXCL => {}
            TCXONC => self.flow(arg)?,
            TCFLSH => self.flush(arg)?,
            TIOCOUTQ | TIOCGETD => memory.write(&0i32.to_le_bytes())?,
            FIONREAD => {
                let there = self.state.lock().discipline.readable_bytes();
                memory.write(&(there as i32).to_le_bytes())?;
            }
            TIOCSTI => self.type_for(memory)?,
            TIOCGWINSZ => {
                let window = self.state.lock().window;
                memory.write(&window.to_bytes())?;
            }
            TIOCSWINSZ => self.resize(memory)?,
            TIOCGPGRP => {
                self.must_control(memory)?;
                memory.write(&self.foreground().to_le_bytes())?;
            }
            TIOCSPGRP => self.set_foreground(memory)?,
            TIOCGSID => {
                self.must_control(memory)?;
                memory.write(&self.session().to_le_bytes())?;
            }
            TIOCSCTTY => self.become_controlling(arg, memory)?,
            TIOCNOTTY => self.give_up_controlling(memory)?,
            _ => return Err(Errno::ENOTTY),
        }
        Ok(0)
    }

    fn set_from(&self, len: usize, flush: bool, memory: &mut dyn IoctlMemory) -> Result<()> {
        let mut bytes = self.settings().to_bytes();
        memory.read(&mut bytes[..len])?;
        self.set_settings(Termios::from_bytes(&bytes), flush);
        Ok(())
    }

    /// `tcflow`.
    fn flow(&self, action: u64) -> Result<()> {
        match action {
            0 | 1 => self.state.lock().discipline.stopped = action == 0,
            // STOP and START would go to the other end, which is not a computer.
            2 | 3 => {}
            _ => return Err(Errno::EINVAL),
        }
        self.waiters().wake();
        Ok(())
    }

    /// `tcflush`. There is no output that waits.
    fn flush(&self, which: u64) -> Result<()> {
        match which {
            0 | 2 => self.state.lock().discipline.flush_input(),
            1 => {}
            _ => return Err(Errno::EINVAL),
        }
        self.waiters().wake();
        Ok(())
    }

    /// A byte as if it had been typed.
    fn type_for(&self, memory: &mut dyn IoctlMemory) -> Result<()> {
        if !memory.process().controlling {
            return Err(Errno::EPERM);
        }
        let mut byte = [0];
        memory.read(&mut byte)?;
        let input = self.input(&byte);
        if !input.signals.is_empty() && input.group != 0 {
            memory.signal(input.signals, input.group);
        }
        Ok(())
    }

    fn resize(&self, memory: &mut dyn IoctlMemory) -> Result<()> {
        let mut bytes = [0; 8];
        memory.read(&mut bytes)?;
        let window = WindowSize::from_bytes(bytes);
        let mut state = self.state.lock();
        let changed = state.window != window;
        state.window = window;
        let group = state.foreground;
        drop(state);
        if changed && group != 0 {
            memory.signal(Signals::WINCH, group);
        }
        Ok(())
    }

    fn must_control(&self, memory: &mut dyn IoctlMemory) -> Result<()> {
        let who = memory.process();
        if who.controlling && who.session == self.session() { Ok(()) } else { Err(Errno::ENOTTY) }
    }

    fn set_foreground(&self, memory: &mut dyn IoctlMemory) -> Result<()> {
        self.must_control(memory)?;
        let mut group = [0; 4];
        memory.read(&mut group)?;
        let group = i32::from_le_bytes(group);
        if group < 0 {
            return Err(Errno::EINVAL);
        }
        let session = self.session();
        if !memory.group_in_session(group, session) {
            return Err(Errno::EPERM);
        }
        self.state.lock().foreground = group;
        Ok(())
    }

    fn become_controlling(
        self: &Arc<Self>,
        steal: u64,
        memory: &mut dyn IoctlMemory,
    ) -> Result<()> {
        let who = memory.process();
        let leads = who.pid == who.session;
        let session = self.session();
        if leads && session == who.session {
            return Ok(());
        }
        if !leads || who.controlling || (session != 0 && steal != 1) {
            return Err(Errno::EPERM);
        }
        memory.set_controlling(self, true)?;
        self.set_session(who.session, who.group);
        Ok(())
    }

    fn give_up_controlling(self: &Arc<Self>, memory: &mut dyn IoctlMemory) -> Result<()> {
        let who = memory.process();
        if !who.controlling {
            return Err(Errno::ENOTTY);
        }
        memory.set_controlling(self, false)?;
        if who.pid == who.session {
            let group = self.foreground();
            self.set_session(0, 0);
            if group != 0 {
                memory.signal(Signals::HUP | Signals::CONT, group);
            }
        }
        Ok(())
    }
}

impl WindowSize {
    fn to_bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        let fields = [self.rows, self.columns, self.width, self.height];
        for (field, value) in bytes.chunks_exact_mut(2).zip(fields) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: [u8; 8]) -> Self {
        let field = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self { rows: field(0), columns: field(2), width: field(4), height: field(6) }
    }
}
