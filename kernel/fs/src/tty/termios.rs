//! A terminal's settings, with Linux's numbers.

/// Input flags.
#[allow(missing_docs)] // POSIX's names, described in termios(3)
pub mod iflag {
    pub const ISTRIP: u32 = 0o40;
    pub const INLCR: u32 = 0o100;
    pub const IGNCR: u32 = 0o200;
    pub const ICRNL: u32 = 0o400;
    pub const IUCLC: u32 = 0o1000;
    pub const IXON: u32 = 0o2000;
    pub const IXANY: u32 = 0o4000;
    pub const IUTF8: u32 = 0o40000;
}

/// Output flags.
#[allow(missing_docs)]
pub mod oflag {
    pub const OPOST: u32 = 0o1;
    pub const OLCUC: u32 = 0o2;
    pub const ONLCR: u32 = 0o4;
    pub const OCRNL: u32 = 0o10;
    pub const ONOCR: u32 = 0o20;
    pub const ONLRET: u32 = 0o40;
    pub const TABDLY: u32 = 0o14000;
    /// Tabs become spaces.
    pub const XTABS: u32 = 0o14000;
}

/// Local flags.
#[allow(missing_docs)]
pub mod lflag {
    pub const ISIG: u32 = 0o1;
    pub const ICANON: u32 = 0o2;
    pub const ECHO: u32 = 0o10;
    pub const ECHOE: u32 = 0o20;
    pub const ECHOK: u32 = 0o40;
    pub const ECHONL: u32 = 0o100;
    pub const NOFLSH: u32 = 0o200;
    pub const TOSTOP: u32 = 0o400;
    pub const ECHOCTL: u32 = 0o1000;
    pub const ECHOKE: u32 = 0o4000;
    pub const IEXTEN: u32 = 0o100000;
}

/// Places in the array of control characters.
#[allow(missing_docs)]
pub mod cc {
    pub const VINTR: usize = 0;
    pub const VQUIT: usize = 1;
    pub const VERASE: usize = 2;
    pub const VKILL: usize = 3;
    pub const VEOF: usize = 4;
    pub const VTIME: usize = 5;
    pub const VMIN: usize = 6;
    pub const VSTART: usize = 8;
    pub const VSTOP: usize = 9;
    pub const VSUSP: usize = 10;
    pub const VEOL: usize = 11;
    pub const VREPRINT: usize = 12;
    pub const VWERASE: usize = 14;
    pub const VLNEXT: usize = 15;
    pub const VEOL2: usize = 16;
}

/// A terminal's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Termios {
    pub iflag: u32,
    pub oflag: u32,
    pub cflag: u32,
    pub lflag: u32,
    pub line: u8,
    pub cc: [u8; 19],
    /// Bits per second; without effect.
    pub ispeed: u32,
    pub ospeed: u32,
}

impl Default for Termios {
    /// What a new terminal has on Linux.
    fn default() -> Self {
        const B38400: u32 = 0o17;
        const CS8: u32 = 0o60;
        const CREAD: u32 = 0o200;
        const HUPCL: u32 = 0o2000;
        use lflag::{ECHO, ECHOCTL, ECHOE, ECHOK, ECHOKE, ICANON, IEXTEN, ISIG};
        let mut cc = [0; 19];
        cc[..17].copy_from_slice(&[
            3, 0x1c, 0x7f, 0x15, 4, 0, 1, 0, 0x11, 0x13, 0x1a, 0, 0x12, 0xf, 0x17, 0x16, 0,
        ]);
        Self {
            iflag: iflag::ICRNL | iflag::IXON,
            oflag: oflag::OPOST | oflag::ONLCR,
            cflag: B38400 | CS8 | CREAD | HUPCL,
            lflag: ISIG | ICANON | ECHO | ECHOE | ECHOK | ECHOCTL | ECHOKE | IEXTEN,
            line: 0,
            cc,
            ispeed: 38400,
            ospeed: 38400,
        }
    }
}

impl Termios {
    /// Bytes of the structure of `TCGETS`.
    pub const LEN: usize = 36;
    /// Bytes of the structure of `TCGETS2`.
    pub const LEN2: usize = 44;

    /// The structure of `TCGETS2`, of which that of `TCGETS` is the beginning.
    pub fn to_bytes(&self) -> [u8; Self::LEN2] {
        let mut bytes = [0; Self::LEN2];
        let words = [self.iflag, self.oflag, self.cflag, self.lflag];
        for (field, word) in bytes.chunks_exact_mut(4).zip(words) {
            field.copy_from_slice(&word.to_le_bytes());
        }
        bytes[16] = self.line;
        bytes[17..36].copy_from_slice(&self.cc);
        bytes[36..40].copy_from_slice(&self.ispeed.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.ospeed.to_le_bytes());
        bytes
    }

    /// The reverse of [`to_bytes`](Self::to_bytes).
    pub fn from_bytes(bytes: &[u8; Self::LEN2]) -> Self {
        let word = |at: usize| {
            let [a, b, c, d] = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
            u32::from_le_bytes([a, b, c, d])
        };
        let mut cc = [0; 19];
        cc.copy_from_slice(&bytes[17..36]);
        Self {
            iflag: word(0),
            oflag: word(4),
            cflag: word(8),
            lflag: word(12),
            line: bytes[16],
            cc,
            ispeed: word(36),
            ospeed: word(40),
        }
    }

    pub(crate) fn input(&self, flag: u32) -> bool {
        self.iflag & flag != 0
    }

    pub(crate) fn output(&self, flag: u32) -> bool {
        self.oflag & flag != 0
    }

    pub(crate) fn local(&self, flag: u32) -> bool {
        self.lflag & flag != 0
    }

    /// Is `byte` the control character at `place`? NUL switches a control character off.
    pub(crate) fn is(&self, byte: u8, place: usize) -> bool {
        byte != 0 && self.cc[place] == byte
    }
}
