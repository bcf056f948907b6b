//! The line discipline: what becomes of a byte that was typed.
//!
//! Bytes that wait to be read stand in a ring between `tail` and `head`. In canonical mode only
//! what lies before `line_head` can be read: complete lines; behind it stands the line that is
//! being typed and may still be edited. A *mark* on a byte says that a line ends with it
//! ([`Mark::Line`]), or that it stands for an end of file and is not itself read ([`Mark::End`]).
//!
//! Invariants: `tail <= line_head <= head <= tail + SIZE`; positions only grow and are taken
//! modulo `SIZE`.
//!
//! The behaviour is that of Linux's `n_tty`, learned from its documentation (`termios(3)`,
//! POSIX chapter 11) and by comparing with a pseudo-terminal.
//!
//! Left out: `ECHOPRT`, `PARMRK`, breaks and parity (there is no line that has any), sending
//! STOP when the buffer fills, holding back echo while output is stopped.

use alloc::vec::Vec;

use super::output::{Columns, Output, is_continuation, lower};
use super::termios::{Termios, cc, iflag, lflag};
use super::{Signals, Sink};
use crate::{Result, fallible};

/// Bytes in the ring.
const SIZE: usize = 4096;

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Mark {
    None,
    Line,
    End,
}

/// See the module.
pub(super) struct Discipline {
    pub(super) settings: Termios,
    ring: Vec<u8>,
    marks: Vec<Mark>,
    tail: usize,
    line_head: usize,
    head: usize,
    pub(super) columns: Columns,
    /// The next byte is taken literally.
    literal: bool,
    /// Output is stopped (`^S`).
    pub(super) stopped: bool,
}

/// How much of a line to erase.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Erase {
    Character,
    Word,
    Line,
}

impl Discipline {
    pub(super) fn new() -> Result<Self> {
        let mut marks = Vec::new();
        marks.try_reserve_exact(SIZE).map_err(|_| crate::Errno::ENOMEM)?;
        marks.resize(SIZE, Mark::None);
        Ok(Self {
            settings: Termios::default(),
            ring: fallible::try_zeroed(SIZE)?,
            marks,
            tail: 0,
            line_head: 0,
            head: 0,
            columns: Columns::default(),
            literal: false,
            stopped: false,
        })
    }

    /// Takes new settings. A change between canonical and raw mode changes what of the waiting
    /// bytes can be read: in raw mode all, in canonical mode they become a line.
    pub(super) fn set(&mut self, settings: Termios) {
        let switched = (self.settings.lflag ^ settings.lflag) & lflag::ICANON != 0;
        self.settings = settings;
        if switched {
            self.marks.fill(Mark::None);
            self.line_head = self.tail;
            if settings.local(lflag::ICANON) && self.head != self.tail {
                // A NUL in that place is what an end of file looks like.
                let last = (self.head - 1) % SIZE;
                self.marks[last] = if self.ring[last] == 0 { Mark::End } else { Mark::Line };
                self.line_head = self.head;
            }
            self.literal = false;
        }
        if !settings.input(iflag::IXON) {
            self.stopped = false;
        }
    }

    /// Forgets what was typed.
    pub(super) fn flush_input(&mut self) {
        self.tail = self.head;
        self.line_head = self.head;
        self.marks.fill(Mark::None);
        self.literal = false;
    }

    /// Is there room for one more byte? In canonical mode there is, as long as no complete line
    /// waits: the line's end must be able to come.
    pub(super) fn has_room(&self) -> bool {
        let full = self.head - self.tail >= SIZE - 1;
        !full || (self.canonical() && self.line_head == self.tail)
    }

    fn canonical(&self) -> bool {
        self.settings.local(lflag::ICANON)
    }

    /// One byte from the line; the signals that it stands for.
    pub(super) fn receive(&mut self, byte: u8, sink: &dyn Sink) -> Signals {
        let settings = self.settings;
        let mut columns = self.columns;
        let mut out = Output::new(sink, settings, &mut columns);
        let signals = self.receive_to(byte, &mut out);
        drop(out);
        self.columns = columns;
        signals
    }

    fn receive_to(&mut self, byte: u8, out: &mut Output) -> Signals {
        let settings = self.settings;
        let mut byte = if settings.input(iflag::ISTRIP) { byte & 0x7f } else { byte };
        if settings.input(iflag::IUCLC) && settings.local(lflag::IEXTEN) {
            byte = lower(byte);
        }
        if core::mem::take(&mut self.literal) {
            self.echo_typed(byte, out);
            self.put(byte, Mark::None);
            return Signals::empty();
        }
        if settings.input(iflag::IXON) && self.flow_control(byte) {
            return Signals::empty();
        }
        if settings.local(lflag::ISIG) {
            let signal = signal_of(&settings, byte);
            if !signal.is_empty() {
                self.interrupt(byte, out);
                return signal;
            }
        }
        if settings.input(iflag::IXON) && settings.input(iflag::IXANY) {
            self.stopped = false;
        }
        let returned = byte == b'\r';
        match byte {
            b'\r' if settings.input(iflag::IGNCR) => return Signals::empty(),
            b'\r' if settings.input(iflag::ICRNL) => byte = b'\n',
            b'\n' if settings.input(iflag::INLCR) => byte = b'\r',
            _ => {}
        }
        if !self.canonical() || !self.edit(byte, out) {
            // A return that became a newline is shown as one even in raw mode; a newline as `^J`.
            if returned && byte == b'\n' && settings.local(lflag::ECHO) {
                out.processed(b'\n');
            } else {
                self.echo_typed(byte, out);
            }
            self.put(byte, Mark::None);
        }
        Signals::empty()
    }

    /// START and STOP.
    fn flow_control(&mut self, byte: u8) -> bool {
        if self.settings.is(byte, cc::VSTART) {
            self.stopped = false;
        } else if self.settings.is(byte, cc::VSTOP) {
            self.stopped = true;
        } else {
            return false;
        }
        true
    }

    /// What a signal does to the terminal itself.
    fn interrupt(&mut self, byte: u8, out: &mut Output) {
        if !self.settings.local(lflag::NOFLSH) {
            self.flush_input();
        }
        if self.settings.input(iflag::IXON) {
            self.stopped = false;
        }
        if self.settings.local(lflag::ECHO) {
            self.echo(byte, out);
        }
    }

    /// Canonical mode: the bytes that edit or end a line. False: an ordinary byte.
    fn edit(&mut self, byte: u8, out: &mut Output) -> bool {
        let settings = self.settings;
        let extended = settings.local(lflag::IEXTEN);
        let echoes = settings.local(lflag::ECHO);
        if settings.is(byte, cc::VERASE) {
            self.erase(Erase::Character, out);
        } else if settings.is(byte, cc::VKILL) {
            self.erase(Erase::Line, out);
        } else if extended && settings.is(byte, cc::VWERASE) {
            self.erase(Erase::Word, out);
        } else if extended && settings.is(byte, cc::VLNEXT) {
            self.literal = true;
            if echoes && settings.local(lflag::ECHOCTL) {
                out.processed(b'^');
                out.processed(b'\x08');
            }
        } else if extended && echoes && settings.is(byte, cc::VREPRINT) {
            self.echo(byte, out);
            out.processed(b'\n');
            for at in self.line_head..self.head {
                self.echo(self.ring[at % SIZE], out);
            }
        } else if byte == b'\n' {
            if echoes || settings.local(lflag::ECHONL) {
                out.processed(b'\n');
            }
            self.end_line(byte, Mark::Line);
        } else if settings.is(byte, cc::VEOF) {
            self.end_line(0, Mark::End);
        } else if settings.is(byte, cc::VEOL) || (extended && settings.is(byte, cc::VEOL2)) {
            self.echo_typed(byte, out);
            self.end_line(byte, Mark::Line);
        } else {
            return false;
        }
        true
    }

    fn end_line(&mut self, byte: u8, mark: Mark) {
        self.put(byte, mark);
        self.line_head = self.head;
    }

    /// Puts a byte into the ring. When all but one byte of it is taken (by one unfinished line),
    /// only a line's end still gets in.
    fn put(&mut self, byte: u8, mark: Mark) {
        let waiting = self.head - self.tail;
        if waiting >= SIZE || (waiting == SIZE - 1 && mark == Mark::None) {
            return;
        }
        self.ring[self.head % SIZE] = byte;
        self.marks[self.head % SIZE] = mark;
        self.head += 1;
    }

    /// Echoes a byte of the line, if echo is on.
    fn echo_typed(&self, byte: u8, out: &mut Output) {
        if self.settings.local(lflag::ECHO) {
            if self.head == self.line_head {
                out.begin_line();
            }
            self.echo(byte, out);
        }
    }

    /// Shows a byte, control characters as `^X`.
    fn echo(&self, byte: u8, out: &mut Output) {
        if self.settings.local(lflag::ECHOCTL) && byte.is_ascii_control() && byte != b'\t' {
            out.caret(byte);
        } else {
            out.processed(byte);
        }
    }

    /// ERASE, WERASE and KILL.
    fn erase(&mut self, what: Erase, out: &mut Output) {
        let settings = self.settings;
        let echoes = settings.local(lflag::ECHO);
        if self.head == self.line_head {
            return;
        }
        if what == Erase::Line {
            if !echoes {
                self.head = self.line_head;
                return;
            }
            if ![lflag::ECHOK, lflag::ECHOKE, lflag::ECHOE].iter().all(|&f| settings.local(f)) {
                self.head = self.line_head;
                self.echo(settings.cc[cc::VKILL], out);
                if settings.local(lflag::ECHOK) {
                    out.processed(b'\n');
                }
                return;
            }
        }
        let mut in_word = false;
        while self.head != self.line_head {
            let mut start = self.head - 1;
            while start != self.line_head && is_continuation(&settings, self.ring[start % SIZE]) {
                start -= 1;
            }
            let byte = self.ring[start % SIZE];
            // Half a character at the beginning of the line is not erased.
            if is_continuation(&settings, byte) {
                break;
            }
            if what == Erase::Word {
                if byte.is_ascii_alphanumeric() || byte == b'_' || is_latin_letter(byte) {
                    in_word = true;
                } else if in_word {
                    break;
                }
            }
            self.head = start;
            if echoes {
                self.show_erased(byte, what, out);
            }
            if what == Erase::Character {
                break;
            }
        }
    }

    /// Takes an erased character off the screen.
    fn show_erased(&self, byte: u8, what: Erase, out: &mut Output) {
        let settings = self.settings;
        if what == Erase::Character && !settings.local(lflag::ECHOE) {
            self.echo(settings.cc[cc::VERASE], out);
        } else if byte == b'\t' {
            out.backspaces(self.tab_width(out.line_start()));
        } else {
            let shown_as_two = byte.is_ascii_control() && settings.local(lflag::ECHOCTL);
            let shown = !byte.is_ascii_control() || settings.local(lflag::ECHOCTL);
            for _ in 0..u32::from(shown) + u32::from(shown_as_two) {
                out.processed(b'\x08');
                out.processed(b' ');
                out.processed(b'\x08');
            }
        }
    }

    /// How many columns the tab at `head` took, from what stands before it.
    fn tab_width(&self, line_start: u32) -> u32 {
        let mut columns = 0;
        let mut after_tab = false;
        for at in (self.line_head..self.head).rev() {
            let byte = self.ring[at % SIZE];
            if byte == b'\t' {
                after_tab = true;
                break;
            }
            if byte.is_ascii_control() {
                columns += if self.settings.local(lflag::ECHOCTL) { 2 } else { 0 };
            } else if !is_continuation(&self.settings, byte) {
                columns += 1;
            }
        }
        let column = if after_tab { columns } else { columns + line_start };
        8 - column % 8
    }

    /// Bytes that a read would get at once, for `FIONREAD`.
    pub(super) fn readable_bytes(&self) -> usize {
        if !self.canonical() {
            return self.head - self.tail;
        }
        let lines = self.tail..self.line_head;
        lines.filter(|at| self.marks[at % SIZE] != Mark::End).count()
    }

    /// Bytes between the reader and the writer, whatever they are.
    pub(super) fn waiting(&self) -> usize {
        self.head - self.tail
    }

    /// A whole line (or an end of file) is there?
    pub(super) fn has_line(&self) -> bool {
        self.tail != self.line_head
    }

    /// Canonical mode: reads from the first line. Needs [`has_line`](Self::has_line).
    pub(super) fn read_line(&mut self, into: &mut [u8]) -> usize {
        let mut len = 0;
        while self.tail != self.line_head {
            let at = self.tail % SIZE;
            let mark = self.marks[at];
            // An end of file right behind a full buffer is taken along; a byte is not.
            if mark != Mark::End && len == into.len() {
                break;
            }
            self.tail += 1;
            self.marks[at] = Mark::None;
            if mark == Mark::End {
                break;
            }
            into[len] = self.ring[at];
            len += 1;
            if mark == Mark::Line {
                break;
            }
        }
        len
    }

    /// Raw mode: reads what is there.
    pub(super) fn read_raw(&mut self, into: &mut [u8]) -> usize {
        let len = into.len().min(self.head - self.tail);
        for byte in &mut into[..len] {
            *byte = self.ring[self.tail % SIZE];
            self.tail += 1;
        }
        self.line_head = self.line_head.max(self.tail);
        len
    }
}

/// The signal that `byte` stands for.
fn signal_of(settings: &Termios, byte: u8) -> Signals {
    let signals =
        [(cc::VINTR, Signals::INT), (cc::VQUIT, Signals::QUIT), (cc::VSUSP, Signals::TSTP)];
    let found = signals.iter().find(|(place, _)| settings.is(byte, *place));
    found.map_or(Signals::empty(), |(_, signal)| *signal)
}

/// Letters of the upper half of Latin-1, which count as letters for WERASE.
fn is_latin_letter(byte: u8) -> bool {
    byte >= 0xc0 && byte != 0xd7 && byte != 0xf7
}
