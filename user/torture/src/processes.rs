//! Children: forked while other threads run, with all memory compared on both sides; programs
//! executed; pipes read; ends of every kind.

use core::ptr::null;

use crate::board::{GAVE_UP, WRONG};
use crate::lane::Lane;
use crate::random::{Random, mix};
use crate::regions::fill;
use crate::sys::{self, Errno, PAGE};

/// How a child is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// With this status.
    Status(usize),
    /// By a signal to itself.
    Signal(i32),
}

impl End {
    fn status(self) -> i32 {
        match self {
            Self::Status(status) => (status as i32) << 8,
            Self::Signal(signal) => signal,
        }
    }

    fn now(self) -> ! {
        match self {
            Self::Status(status) => sys::exit(status),
            Self::Signal(signal) => {
                let _ = sys::kill(sys::getpid(), signal);
                // Not blocked, not caught: the signal comes before the call returns.
                sys::exit(WRONG)
            }
        }
    }
}

/// The variable that a program finds in its environment when it was executed by a lane.
const MARK: &core::ffi::CStr = c"TORTURE=yes";

/// What a program that was executed answers for its number.
pub fn echo(number: u64) -> usize {
    (mix(number) % 90) as usize
}

impl Lane {
    /// Waits for a child that should end like this. False where it was killed, and may have been.
    fn reap(&self, child: usize, end: End) -> bool {
        let (pid, status) = match sys::wait(child as isize, 0) {
            Ok(answer) => answer,
            Err(error) if self.board.tolerant() && error == Errno(libc::ENOMEM) => {
                self.refused("wait4", error);
                // It is still there to be waited for.
                return self.reap(child, end);
            }
            Err(error) => self.wrong(format_args!("wait4 for {child}: error {}", error.0)),
        };
        self.must(pid == child, "wait4 answered another child");
        if status == end.status() {
            // For want of memory the kernel kills by the same signal, and earlier.
            return !(self.board.tolerant() && status == libc::SIGKILL);
        }
        let killed =
            matches!(status & 0x7f, libc::SIGKILL | libc::SIGSEGV | libc::SIGABRT | libc::SIGBUS);
        let gave_up = status == (GAVE_UP as i32) << 8;
        if !(self.board.tolerant() && (killed || gave_up)) {
            self.wrong(format_args!("child {child} ended with {status:#x}, should with {end:x?}"));
        }
        false
    }

    fn any_end(&mut self) -> End {
        match self.random.below(8) {
            0 => End::Signal(libc::SIGKILL),
            1 => End::Signal(libc::SIGTERM),
            2 => End::Signal(libc::SIGILL),
            _ => End::Status(self.random.below(90)),
        }
    }

    /// A child with a copy of everything; both change their copies and compare.
    pub fn fork(&mut self) {
        let end = self.any_end();
        let seed = self.random.next();
        let grandchild = self.random.once_in(4);
        let answer = sys::fork();
        let Some(child) = self.got("fork", answer) else { return };
        if child == 0 {
            self.change_all(seed, true);
            self.check_all();
            if grandchild {
                match sys::fork() {
                    Ok(0) => {
                        self.change_all(!seed, false);
                        if self.board.tolerant() {
                            // Its parent may be killed; then the first of them writes what is
                            // shared anew, while this one still looks.
                            self.forget_shared();
                        }
                        self.check_all();
                        End::Status(5).now();
                    }
                    Ok(pid) => _ = self.reap(pid, End::Status(5)),
                    Err(error) => self.refused("fork", error),
                }
                self.check_all();
            }
            end.now();
        }
        // Private pages change here too, at the same time.
        self.change_all(mix(seed), false);
        let whole = self.reap(child, end);
        self.learn_shared(seed, whole);
        self.check_all();
    }

    /// Writes some pages: private ones, and with `shared` the shared ones, which the parent will
    /// know from the seed.
    fn change_all(&mut self, seed: u64, shared: bool) {
        let mut random = Random::new(seed);
        for region in self.regions.all.iter_mut().flatten() {
            for index in 0..region.pages {
                let tag = random.next();
                let chosen = random.once_in(3);
                if chosen && (shared || !region.shared) {
                    fill(region.start + index * PAGE, tag);
                    region.tags[index] = tag;
                }
            }
        }
    }

    /// Looks at shared pages no more.
    fn forget_shared(&mut self) {
        for place in &mut self.regions.all {
            *place = place.filter(|region| !region.shared);
        }
    }

    /// What a child with this seed has written to shared pages. Where it was killed on the way,
    /// nobody knows, and they are written anew.
    fn learn_shared(&mut self, seed: u64, whole: bool) {
        let mut random = Random::new(seed);
        for region in self.regions.all.iter_mut().flatten() {
            for index in 0..region.pages {
                let tag = random.next();
                if random.once_in(3) && region.shared {
                    region.tags[index] = tag;
                    if !whole {
                        fill(region.start + index * PAGE, tag);
                    }
                }
            }
        }
    }

    /// Runs this program anew in a child, with a number to answer.
    pub fn exec(&mut self) {
        let number = self.random.next();
        let text = Text::new(number);
        let (args, env) = text.to_echo();
        let Some(child) = self.got("fork", sys::fork()) else { return };
        if child == 0 {
            let error = sys::exec(c"/proc/self/exe", &args, &env);
            self.give_up("execve", error);
        }
        self.reap(child, End::Status(echo(number)));
    }

    /// The same by the C library's `posix_spawn`: a child that borrows this address space.
    pub fn spawn(&mut self) {
        let number = self.random.next();
        let text = Text::new(number);
        let (args, env) = text.to_echo();
        match spawn(&args, &env) {
            Ok(child) => _ = self.reap(child, End::Status(echo(number))),
            Err(error) => self.refused("posix_spawn", error),
        }
    }

    /// A child writes a stream into a pipe, this thread reads it.
    pub fn pipe(&mut self) {
        let seed = self.random.next();
        let len = 1 + self.random.below(150_000);
        let Some([reader, writer]) = self.got("pipe2", sys::pipe()) else { return };
        let answer = sys::fork();
        if answer == Ok(0) {
            sys::close(reader);
            self.write_stream(writer, seed, len);
            sys::exit(3);
        }
        sys::close(writer);
        if let Some(child) = self.got("fork", answer) {
            let read = self.read_stream(reader, seed, len);
            sys::close(reader);
            let whole = self.reap(child, End::Status(3));
            self.must(!whole || read == len || self.board.tolerant(), "a stream ended early");
        } else {
            sys::close(reader);
        }
    }

    fn write_stream(&mut self, writer: i32, seed: u64, len: usize) {
        let mut chunk = [0u8; 3000];
        let mut done = 0;
        while done < len {
            let count = (1 + self.random.below(chunk.len())).min(len - done);
            for (place, byte) in chunk[..count].iter_mut().enumerate() {
                *byte = stream_byte(seed, done + place);
            }
            let mut sent = 0;
            while sent < count {
                match sys::write(writer, &chunk[sent..count]) {
                    Ok(bytes) => sent += bytes,
                    // The reader was killed.
                    Err(Errno(libc::EPIPE)) => sys::exit(GAVE_UP),
                    Err(error) => self.give_up("write to a pipe", error),
                }
            }
            done += count;
            self.beat();
        }
    }

    fn read_stream(&mut self, reader: i32, seed: u64, len: usize) -> usize {
        let mut chunk = [0u8; 4000];
        let mut done = 0;
        while done < len {
            let wanted = 1 + self.random.below(chunk.len());
            let count = match sys::read(reader, &mut chunk[..wanted]) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) => {
                    self.refused("read from a pipe", error);
                    continue;
                }
            };
            for (place, &seen) in chunk[..count].iter().enumerate() {
                let expected = stream_byte(seed, done + place);
                if seen != expected {
                    let at = done + place;
                    self.wrong(format_args!(
                        "byte {at} of a stream: expected {expected:#x}, seen {seen:#x}"
                    ));
                }
            }
            done += count;
            self.beat();
        }
        done
    }
}

fn stream_byte(seed: u64, at: usize) -> u8 {
    (seed.wrapping_mul(at as u64 | 1) >> 32) as u8 ^ at as u8
}

#[allow(unsafe_code)] // calls the C library
fn spawn(args: &[*const u8], env: &[*const u8]) -> sys::Result<usize> {
    let mut pid = 0;
    // SAFETY: both lists end with null pointers and outlive the call, which returns when the child
    // has a program of its own.
    let error = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            c"/proc/self/exe".as_ptr(),
            null(),
            null(),
            args.as_ptr().cast(),
            env.as_ptr().cast(),
        )
    };
    if error == 0 { Ok(pid as usize) } else { Err(Errno(error)) }
}

/// A number as a C string, without allocating.
struct Text([u8; 20]);

impl Text {
    fn new(number: u64) -> Self {
        let mut bytes = [0; 20];
        for (place, byte) in bytes.iter_mut().take(16).enumerate() {
            *byte = b"0123456789abcdef"[(number >> (60 - 4 * place)) as usize & 15];
        }
        Self(bytes)
    }

    /// The arguments and the environment that make this program answer the number ([`echo`]).
    fn to_echo(&self) -> ([*const u8; 4], [*const u8; 2]) {
        let number = self.0.as_ptr();
        let args = [c"torture".as_ptr().cast(), c"--echo".as_ptr().cast(), number, null()];
        (args, [MARK.as_ptr().cast(), null()])
    }
}
