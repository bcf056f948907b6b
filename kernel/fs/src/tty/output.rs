//! Output processing: what becomes of a byte on its way to the line.

use super::Sink;
use super::termios::{Termios, iflag, oflag};

/// Where the cursor stands, as far as the terminal can know.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Columns {
    pub(super) now: u32,
    /// Where the line that is being typed begins.
    pub(super) line_start: u32,
}

/// Bytes on their way to the sink, gathered so that it is called seldom.
pub(super) struct Output<'a> {
    sink: &'a dyn Sink,
    settings: Termios,
    columns: &'a mut Columns,
    gathered: [u8; 128],
    len: usize,
}

impl<'a> Output<'a> {
    pub(super) fn new(sink: &'a dyn Sink, settings: Termios, columns: &'a mut Columns) -> Self {
        Self { sink, settings, columns, gathered: [0; 128], len: 0 }
    }

    /// Through output processing.
    pub(super) fn processed(&mut self, byte: u8) {
        if !self.settings.output(oflag::OPOST) {
            return self.raw(byte);
        }
        match byte {
            b'\n' => {
                if self.settings.output(oflag::ONLRET) {
                    self.columns.now = 0;
                }
                if self.settings.output(oflag::ONLCR) {
                    self.columns.now = 0;
                    self.raw(b'\r');
                }
                self.columns.line_start = self.columns.now;
                self.raw(b'\n');
            }
            b'\r' if self.settings.output(oflag::ONOCR) && self.columns.now == 0 => {}
            b'\r' if self.settings.output(oflag::OCRNL) => {
                if self.settings.output(oflag::ONLRET) {
                    *self.columns = Columns::default();
                }
                self.raw(b'\n');
            }
            b'\r' => {
                *self.columns = Columns::default();
                self.raw(b'\r');
            }
            b'\t' => {
                let spaces = 8 - self.columns.now % 8;
                self.columns.now += spaces;
                if self.settings.oflag & oflag::TABDLY == oflag::XTABS {
                    (0..spaces).for_each(|_| self.raw(b' '));
                } else {
                    self.raw(b'\t');
                }
            }
            b'\x08' => {
                self.columns.now = self.columns.now.saturating_sub(1);
                self.raw(byte);
            }
            _ => {
                let upper = self.settings.output(oflag::OLCUC);
                let byte = if upper { upper_case(byte) } else { byte };
                if !byte.is_ascii_control() && !is_continuation(&self.settings, byte) {
                    self.columns.now = self.columns.now.wrapping_add(1);
                }
                self.raw(byte);
            }
        }
    }

    /// A control character as `^X`.
    pub(super) fn caret(&mut self, byte: u8) {
        self.raw(b'^');
        self.raw(byte ^ 0o100);
        self.columns.now = self.columns.now.wrapping_add(2);
    }

    /// As it is.
    pub(super) fn raw(&mut self, byte: u8) {
        if self.len == self.gathered.len() {
            self.flush();
        }
        self.gathered[self.len] = byte;
        self.len += 1;
    }

    /// A backspace that was counted already.
    pub(super) fn backspaces(&mut self, count: u32) {
        for _ in 0..count {
            self.raw(b'\x08');
            self.columns.now = self.columns.now.saturating_sub(1);
        }
    }

    /// The line that is being typed begins here.
    pub(super) fn begin_line(&mut self) {
        self.columns.line_start = self.columns.now;
    }

    pub(super) fn line_start(&self) -> u32 {
        self.columns.line_start
    }

    fn flush(&mut self) {
        if self.len > 0 {
            self.sink.output(&self.gathered[..self.len]);
            self.len = 0;
        }
    }
}

impl Drop for Output<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}

/// A further byte of a UTF-8 sequence, on a terminal that knows of UTF-8?
pub(super) fn is_continuation(settings: &Termios, byte: u8) -> bool {
    settings.input(iflag::IUTF8) && byte & 0xc0 == 0x80
}

/// The small letter, in Latin-1.
pub(super) fn lower(byte: u8) -> u8 {
    match byte {
        0xd7 => byte,
        0xc0..=0xde => byte + 0x20,
        _ => byte.to_ascii_lowercase(),
    }
}

/// The capital letter, in Latin-1 (with Linux's answers for the two that have none).
fn upper_case(byte: u8) -> u8 {
    match byte {
        0xf7 => byte,
        0xdf..=0xff => byte - 0x20,
        _ => byte.to_ascii_uppercase(),
    }
}
