//! Terminals, against what a Linux pseudo-terminal answered and against rules.
//!
//! `data/tty-linux.txt` was recorded from Linux 6.18 by random typing, reading and setting; a line
//! is one step with the answer: `set IFLAG OFLAG LFLAG CC` (octal, hexadecimal), `type BYTES ECHO`,
//! `read SIZE FIONREAD READABLE BYTES` (non-blocking), `write BYTES OUTPUT`.

mod common;

use std::sync::Arc;

use common::{Screen, TestHost};
use pagoda_kernel_fs::tty::termios::{cc, iflag, lflag};
use pagoda_kernel_fs::tty::{ProcessIds, Signals, Terminal, Termios};
use pagoda_kernel_fs::{Errno, Host, IoctlMemory, OpenFile, OpenFlags, Ready, Result, Vfs};

struct Desk {
    vfs: Vfs,
    screen: Arc<Screen>,
    terminal: Arc<Terminal>,
}

impl Desk {
    fn new() -> Self {
        let host = Arc::new(TestHost::default());
        let screen = Arc::new(Screen::default());
        let terminal = Terminal::new(host.clone(), screen.clone()).unwrap();
        *host.console.lock().unwrap() = Some(terminal.clone());
        let vfs = Vfs::new(host as Arc<dyn Host>, 1 << 20).unwrap();
        vfs.make_devices().unwrap();
        Self { vfs, screen, terminal }
    }

    fn open(&self, flags: OpenFlags) -> Arc<OpenFile> {
        self.vfs.open(&self.vfs.root_view(), b"/dev/console", flags, 0).unwrap()
    }

    fn type_(&self, bytes: &[u8]) -> Vec<u8> {
        assert_eq!(self.terminal.input(bytes).accepted, bytes.len());
        self.screen.take()
    }

    fn change(&self, change: impl FnOnce(&mut Termios)) {
        let mut settings = self.terminal.settings();
        change(&mut settings);
        self.terminal.set_settings(settings, false);
    }

    fn read(&self, size: usize) -> std::result::Result<String, Errno> {
        let mut bytes = vec![0; size];
        let len = self.terminal.read(&mut bytes, false)?;
        Ok(String::from_utf8_lossy(&bytes[..len]).into_owned())
    }
}

/// The argument of an ioctl, and a process.
struct Arg {
    bytes: Vec<u8>,
    who: ProcessIds,
    sent: Vec<(Signals, i32)>,
}

impl Arg {
    fn new(bytes: &[u8]) -> Self {
        let who = ProcessIds { pid: 7, group: 7, session: 7, controlling: false };
        Self { bytes: bytes.to_vec(), who, sent: Vec::new() }
    }
}

impl IoctlMemory for Arg {
    fn read(&mut self, into: &mut [u8]) -> Result<()> {
        into.copy_from_slice(self.bytes.get(..into.len()).ok_or(Errno::EFAULT)?);
        Ok(())
    }
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes = bytes.to_vec();
        Ok(())
    }
    fn process(&self) -> ProcessIds {
        self.who
    }
    fn signal(&mut self, signals: Signals, group: i32) {
        self.sent.push((signals, group));
    }
    fn set_controlling(&mut self, _: &Arc<Terminal>, controlling: bool) -> Result<()> {
        self.who.controlling = controlling;
        Ok(())
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.trim_start_matches('-').as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn octal(text: &str) -> u32 {
    u32::from_str_radix(text, 8).unwrap()
}

#[test]
fn a_terminal_answers_as_linux_did() {
    let record = include_str!("data/tty-linux.txt");
    let mut desk = Desk::new();
    let mut file = desk.open(OpenFlags::RDWR | OpenFlags::NONBLOCK);
    for (number, line) in record.lines().enumerate() {
        let words: Vec<&str> = line.split(' ').collect();
        let place = format!("line {}: {line}", number + 1);
        match words[..] {
            ["new"] => {
                desk = Desk::new();
                file = desk.open(OpenFlags::RDWR | OpenFlags::NONBLOCK);
            }
            ["set", input, output, local, control] => desk.change(|settings| {
                settings.iflag = octal(input);
                settings.oflag = octal(output);
                settings.lflag = octal(local);
                settings.cc[..17].copy_from_slice(&bytes(control));
            }),
            ["type", typed, echo] => {
                assert_eq!(
                    desk.type_(&bytes(typed)).escape_ascii().to_string(),
                    bytes(echo).escape_ascii().to_string(),
                    "{place}"
                );
            }
            ["write", written, shown] => {
                let written = bytes(written);
                assert_eq!(file.write(&written), Ok(written.len()), "{place}");
                assert_eq!(desk.screen.take(), bytes(shown), "{place}");
            }
            ["read", size, there, readable, answer] => {
                let mut arg = Arg::new(&[]);
                file.ioctl(0x541b, 0, &mut arg).unwrap();
                let counted = i32::from_le_bytes(arg.bytes.try_into().unwrap());
                assert_eq!(counted.to_string(), there, "{place}");
                let polled = file.poll().contains(Ready::IN);
                assert_eq!(u8::from(polled).to_string(), readable, "{place}");
                let mut read = vec![0; size.parse().unwrap()];
                match file.read(&mut read) {
                    Ok(len) => assert_eq!(
                        read[..len],
                        bytes(answer.trim_start_matches("again")),
                        "{place}"
                    ),
                    Err(Errno::EAGAIN) => assert_eq!(answer, "again", "{place}"),
                    Err(error) => panic!("{place}: {error:?}"),
                }
            }
            _ => panic!("{place}: not understood"),
        }
    }
}

#[test]
fn a_line_can_be_edited_until_it_ends() {
    let desk = Desk::new();
    assert_eq!(desk.read(10), Err(Errno::EAGAIN));
    assert_eq!(
        desk.type_(b"helo\x7flo wrong\x17world"),
        b"helo\x08 \x08lo wrong\x08 \x08\x08 \x08\x08 \x08\x08 \x08\x08 \x08world"
    );
    assert_eq!(desk.read(100), Err(Errno::EAGAIN));
    assert_eq!(desk.type_(b"\r"), b"\r\n");
    assert_eq!(desk.read(4).unwrap(), "hell");
    assert_eq!(desk.read(100).unwrap(), "o world\n");
    assert_eq!(desk.read(100), Err(Errno::EAGAIN));
}

#[test]
fn end_of_file_gives_what_was_typed_and_then_nothing_once() {
    let desk = Desk::new();
    desk.type_(b"abc\x04\x04next\n");
    assert_eq!(desk.read(100).unwrap(), "abc");
    assert_eq!(desk.read(100).unwrap(), "");
    assert_eq!(desk.read(100).unwrap(), "next\n");
}

#[test]
fn signals_go_to_the_group_in_front() {
    let desk = Desk::new();
    desk.terminal.set_session(5, 42);
    let input = desk.terminal.input(b"lost\x03kept\x1a");
    assert_eq!((input.signals, input.group), (Signals::INT | Signals::TSTP, 42));
    assert_eq!(desk.screen.take(), b"lost^Ckept^Z");
    desk.type_(b"after\n");
    assert_eq!(desk.read(100).unwrap(), "after\n");
    desk.change(|settings| settings.lflag &= !lflag::ISIG);
    assert_eq!(desk.terminal.input(b"\x03\n").signals, Signals::empty());
    assert_eq!(desk.read(100).unwrap(), "\x03\n");
}

#[test]
fn raw_mode_waits_for_min_bytes_or_the_time() {
    let desk = Desk::new();
    let set = |min, time| {
        desk.change(|settings| {
            settings.lflag &= !(lflag::ICANON | lflag::ECHO);
            (settings.cc[cc::VMIN], settings.cc[cc::VTIME]) = (min, time);
        });
    };
    set(3, 0);
    desk.type_(b"ab");
    assert_eq!((desk.read(10), desk.terminal.read_wait_limit_ms()), (Err(Errno::EAGAIN), None));
    assert!(!desk.terminal.poll().contains(Ready::IN));
    // Not more is waited for than the buffer can take.
    assert_eq!(desk.read(1).unwrap(), "a");
    desk.type_(b"cd");
    assert_eq!(desk.read(10).unwrap(), "bcd");
    set(3, 5);
    assert_eq!((desk.read(10), desk.terminal.read_wait_limit_ms()), (Err(Errno::EAGAIN), None));
    desk.type_(b"x");
    assert_eq!(desk.terminal.read_wait_limit_ms(), Some(500));
    let mut bytes = [0; 10];
    assert_eq!(desk.terminal.read(&mut bytes, true), Ok(1));
    set(0, 2);
    assert_eq!((desk.read(9), desk.terminal.read_wait_limit_ms()), (Err(Errno::EAGAIN), Some(200)));
    assert_eq!(desk.terminal.read(&mut bytes, true), Ok(0));
    set(0, 0);
    assert_eq!(desk.read(10).unwrap(), "");
    set(5, 0);
    desk.type_(b"yz");
    let file = desk.open(OpenFlags::RDWR | OpenFlags::NONBLOCK);
    assert_eq!(file.read(&mut bytes), Ok(2));
    assert_eq!(file.read(&mut bytes), Err(Errno::EAGAIN));
}

#[test]
fn stop_holds_output_and_start_lets_it_go() {
    let desk = Desk::new();
    let file = desk.open(OpenFlags::RDWR);
    desk.type_(b"\x13");
    assert_eq!(file.write(b"x"), Err(Errno::EAGAIN));
    assert!(!file.poll().contains(Ready::OUT));
    let before = file.waiters().unwrap().generation();
    desk.type_(b"\x11");
    assert!(file.waiters().unwrap().generation() > before);
    assert_eq!(file.write(b"x"), Ok(1));
    desk.type_(b"\x13");
    desk.change(|settings| settings.iflag &= !iflag::IXON);
    assert_eq!(file.write(b"y"), Ok(1));
}

#[test]
fn a_line_longer_than_the_buffer_loses_its_end_but_not_the_newline() {
    let desk = Desk::new();
    assert_eq!(desk.terminal.input(&[b'a'; 9000]).accepted, 9000);
    assert_eq!(desk.terminal.input(b"\nmore").accepted, 1);
    let line = desk.read(9000).unwrap();
    assert_eq!((line.len(), line.ends_with("a\n")), (4096, true));
    assert_eq!(desk.terminal.input(b"more\n").accepted, 5);
    assert_eq!(desk.read(9000).unwrap(), "more\n");
}

#[test]
fn raw_input_that_does_not_fit_stays_with_the_line() {
    let desk = Desk::new();
    desk.change(|settings| settings.lflag = 0);
    let accepted = desk.terminal.input(&[b'a'; 9000]).accepted;
    assert_eq!(accepted, 4095);
    assert_eq!(desk.read(9000).unwrap().len(), 4095);
    assert_eq!(desk.terminal.input(b"b").accepted, 1);
    assert_eq!(desk.read(9000).unwrap(), "b");
}

#[test]
fn a_closed_line_is_the_end_of_the_file() {
    let desk = Desk::new();
    desk.type_(b"last\nhalf");
    desk.terminal.hang_up();
    assert_eq!(desk.read(100).unwrap(), "last\n");
    assert_eq!(desk.read(100).unwrap(), "");
    assert_eq!(desk.terminal.write(b"x"), Err(Errno::EIO));
    assert!(desk.terminal.poll().contains(Ready::HUP | Ready::IN));
}

#[test]
fn settings_travel_through_the_requests() {
    let desk = Desk::new();
    let file = desk.open(OpenFlags::RDWR);
    let mut arg = Arg::new(&[]);
    assert_eq!(file.ioctl(0x5401, 0, &mut arg), Ok(0));
    assert_eq!(arg.bytes.len(), 36);
    arg.bytes[12] &= !2; // ICANON
    assert_eq!(file.ioctl(0x5402, 0, &mut arg), Ok(0));
    assert_eq!(desk.terminal.settings().lflag & lflag::ICANON, 0);
    desk.type_(b"typed");
    assert_eq!(file.ioctl(0x5404, 0, &mut arg), Ok(0));
    assert_eq!(desk.read(10), Err(Errno::EAGAIN));
    assert_eq!(file.ioctl(0x1234, 0, &mut arg), Err(Errno::ENOTTY));
    assert_eq!(file.ioctl(0x5402, 0, &mut Arg::new(&[0; 10])), Err(Errno::EFAULT));
    let mut window = Arg::new(&[24, 0, 80, 0, 0, 0, 0, 0]);
    desk.terminal.set_session(7, 9);
    assert_eq!(file.ioctl(0x5414, 0, &mut window), Ok(0));
    assert_eq!(window.sent, [(Signals::WINCH, 9)]);
    assert_eq!(file.ioctl(0x5414, 0, &mut window), Ok(0));
    assert_eq!(window.sent.len(), 1);
    let mut answer = Arg::new(&[]);
    assert_eq!(file.ioctl(0x5413, 0, &mut answer), Ok(0));
    assert_eq!(answer.bytes, [24, 0, 80, 0, 0, 0, 0, 0]);
}

#[test]
fn a_session_leader_gets_the_terminal_and_moves_jobs_to_the_front() {
    let desk = Desk::new();
    let file = desk.open(OpenFlags::RDWR);
    let mut shell = Arg::new(&[]);
    assert_eq!(file.ioctl(0x540f, 0, &mut shell), Err(Errno::ENOTTY));
    let mut child = Arg::new(&[]);
    child.who.pid = 8;
    assert_eq!(file.ioctl(0x540e, 0, &mut child), Err(Errno::EPERM));
    assert_eq!(file.ioctl(0x540e, 0, &mut shell), Ok(0));
    assert_eq!((desk.terminal.session(), desk.terminal.foreground()), (7, 7));
    shell.bytes = 8i32.to_le_bytes().to_vec();
    assert_eq!(file.ioctl(0x5410, 0, &mut shell), Ok(0));
    assert!(desk.terminal.is_background(&shell.who));
    assert!(!desk.terminal.is_background(&ProcessIds { group: 8, ..shell.who }));
    assert_eq!(file.ioctl(0x540f, 0, &mut shell), Ok(0));
    assert_eq!(shell.bytes, 8i32.to_le_bytes());
    let mut other = Arg::new(&[]);
    other.who = ProcessIds { pid: 20, group: 20, session: 20, controlling: false };
    assert_eq!(file.ioctl(0x540e, 0, &mut other), Err(Errno::EPERM));
    assert_eq!(file.ioctl(0x5422, 0, &mut shell), Ok(0));
    assert_eq!(shell.sent, [(Signals::HUP | Signals::CONT, 8)]);
    assert_eq!(desk.terminal.session(), 0);
    assert!(Terminal::changes_terminal(0x5410) && !Terminal::changes_terminal(0x540f));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        failure_persistence: None, ..Default::default()
    })]

    #[test]
    fn no_bytes_and_no_settings_break_a_terminal(
        steps in proptest::collection::vec(
            (proptest::prelude::any::<[u32; 4]>(), proptest::prelude::any::<[u8; 19]>(),
             proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600), 0usize..700),
            1..20,
        ),
    ) {
        let desk = Desk::new();
        for (flags, control, typed, size) in steps {
            desk.change(|settings| {
                (settings.iflag, settings.oflag, settings.lflag) = (flags[0], flags[1], flags[2]);
                settings.cc = control;
            });
            let input = desk.terminal.input(&typed);
            proptest::prop_assert!(input.accepted <= typed.len());
            let mut bytes = vec![0; size];
            let _ = desk.terminal.read(&mut bytes, flags[3] & 1 == 0);
            let _ = desk.terminal.write(&typed);
            desk.terminal.poll();
        }
    }
}
