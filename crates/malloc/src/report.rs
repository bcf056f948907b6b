//! What a process says of itself at its end; heap profiles and pictures of its memory, as files.

use core::ffi::CStr;
use core::fmt::Write as _;

use crate::hardened::Leaks;
use crate::linux::{self, Line, process};
use crate::options::Options;
use crate::pprof::{Kind, Profile, Sink, Told};
use crate::process::PROCESS;
use crate::sample::Sampled;
use crate::sample::chance::Sum;
use crate::sample::table::{Entry, Table};

/// A file that is written in larger pieces.
struct File {
    descriptor: usize,
    piece: [u8; 2048],
    length: usize,
}

impl File {
    fn flush(&mut self) {
        linux::write(self.descriptor, self.piece.get(..self.length).unwrap_or(&[]));
        self.length = 0;
    }
}

impl Sink for File {
    fn put(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.length == self.piece.len() {
                self.flush();
            }
            if let Some(place) = self.piece.get_mut(self.length) {
                *place = byte;
                self.length += 1;
            }
        }
    }
}

impl core::fmt::Write for File {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.put(text.as_bytes());
        Ok(())
    }
}

/// To be called when the program ends: does what `PAGODA_MALLOC` asked for.
pub fn at_exit() {
    let options = PROCESS.options();
    if options.has(Options::HARDENED) {
        let leaks = PROCESS.check_all();
        if let (true, Some(mut live)) = (options.has(Options::PROFILE), leaks) {
            write_profile_at_exit(&mut live);
        }
        if let (true, Some(mut leaks)) = (options.has(Options::LEAKS), leaks) {
            for leak in leaks.sorted() {
                let mut line = Line::new();
                let _ = write!(
                    line,
                    "pagoda-malloc: never freed: {} bytes in {} blocks, allocated at ",
                    leak.bytes, leak.blocks
                );
                linux::place(leak.pc, &mut line);
                let _ = writeln!(line);
                linux::write(2, line.as_bytes());
            }
        }
    }
    if options.has(Options::SAMPLE) {
        file_at_exit("heap", write_profile);
    }
    if options.has(Options::PICTURE) {
        write_picture_at_exit();
    }
    if options.has(Options::STATS) {
        let mut line = Line::new();
        let _ = writeln!(line, "pagoda-malloc: at exit\n{}", PROCESS.stats());
        linux::write(2, line.as_bytes());
    }
}

/// Writes what is live, by the place that allocated it, for `pprof`: what samples say of it, at any time, if
/// allocations are sampled; every block in hardened mode, whose headers know the place, and while no other
/// thread has a heap. False: neither is so, or the file cannot be written.
pub fn write_profile(path: &CStr) -> bool {
    if let Some(sampled) = PROCESS.sampled() {
        let written = write_sampled(path, &sampled);
        sampled.end(PROCESS.system());
        return written;
    }
    PROCESS.check_all().is_some_and(|mut live| write(path, &mut live))
}

/// Draws where memory lies idle between what is in use. Only while no other thread has a heap. False: not
/// so, or the file cannot be written.
pub fn write_picture(path: &CStr) -> bool {
    let mut drawn = false;
    let written = linux::write_file(path, |descriptor| {
        let mut file = File { descriptor, piece: [0; 2048], length: 0 };
        drawn = PROCESS.draw(&mut file) == Ok(true);
        file.flush();
    });
    written && drawn
}

/// Writes `pagoda-malloc.PID.heap` in the working directory.
pub(crate) fn write_profile_at_exit(live: &mut Leaks) {
    file_at_exit("heap", |path| write(path, live));
}

/// Writes `pagoda-malloc.PID.svg` in the working directory.
pub(crate) fn write_picture_at_exit() {
    file_at_exit("svg", write_picture);
}

fn file_at_exit(kind: &str, write: impl FnOnce(&CStr) -> bool) {
    let mut name = Line::new();
    let _ = write!(name, "pagoda-malloc.{}.{kind}\0", process());
    let path = CStr::from_bytes_until_nul(name.as_bytes()).unwrap_or_default();
    if !write(path) {
        let mut line = Line::new();
        let _ = writeln!(line, "pagoda-malloc: the {kind} file cannot be written");
        linux::write(2, line.as_bytes());
    }
}

fn write(path: &CStr, live: &mut Leaks) -> bool {
    linux::write_file(path, |descriptor| {
        let mut file = File { descriptor, piece: [0; 2048], length: 0 };
        let mut profile = Profile::begin(&mut file, Kind::Live, 1);
        mappings(|start, end, offset, path| profile.mapping(start, end, offset, path));
        for leak in live.sorted() {
            let numbers = [leak.blocks as u64, leak.bytes as u64];
            profile.place(&[leak.pc], &numbers, &mut ());
        }
        file.flush();
    })
}

fn write_sampled(path: &CStr, sampled: &Sampled) -> bool {
    linux::write_file(path, |descriptor| {
        let mut file = File { descriptor, piece: [0; 2048], length: 0 };
        let interval = PROCESS.options().interval() as u64;
        let mut profile = Profile::begin(&mut file, Kind::AllAndLive, interval);
        if sampled.lost != Sum::NOTHING {
            let mut line = Line::new();
            let (blocks, bytes) = (sampled.lost.blocks(), sampled.lost.bytes());
            let _ = write!(
                line,
                "no room for samples that stand for {blocks} blocks, {bytes} bytes: they are missing here"
            );
            profile.comment(line.as_bytes());
        }
        mappings(|start, end, offset, path| profile.mapping(start, end, offset, path));
        let mut told = Remembered(Table::new());
        for place in sampled.places() {
            let [all, live] = [place.all, place.live];
            let numbers = [all.blocks(), all.bytes(), live.blocks(), live.bytes()];
            profile.place(place.calls.frames(), &numbers, &mut told);
        }
        told.0.clear(PROCESS.system());
        file.flush();
    })
}

/// Calls that a profile has told, by where they return to.
struct Remembered(Table<Call, CALLS>);

/// So many are remembered; more are told each time.
const CALLS: usize = 1 << 20;

#[derive(Clone, Copy)]
#[repr(C)]
struct Call {
    /// Plus one, because 0 may stand for a call that is not known.
    pc: usize,
    number: u64,
}

// SAFETY: two numbers.
#[allow(unsafe_code)]
unsafe impl Entry for Call {
    fn key(&self) -> usize {
        self.pc
    }
}

impl Told for Remembered {
    fn number(&mut self, pc: usize, next: u64) -> u64 {
        let pc = pc.wrapping_add(1).max(1);
        if let Some(call) = self.0.get_mut(pc) {
            return call.number;
        }
        // Where there is no room, it is told again.
        self.0.insert(PROCESS.system(), Call { pc, number: next });
        next
    }
}

/// Tells of each mapping of a file with code.
fn mappings(mut each: impl FnMut(usize, usize, usize, &[u8])) {
    let mut line = Line::new();
    linux::read_file(c"/proc/self/maps", |piece| {
        for &byte in piece {
            if byte != b'\n' {
                // What does not fit is cut.
                let _ = line.write_str(core::str::from_utf8(&[byte]).unwrap_or("?"));
                continue;
            }
            // start-end rights offset device inode path
            let text = core::str::from_utf8(line.as_bytes()).unwrap_or("");
            let mut words = text.split_ascii_whitespace();
            let range = words.next().and_then(|range| range.split_once('-'));
            let (rights, offset) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            let number = |digits| usize::from_str_radix(digits, 16).unwrap_or(0);
            if let (Some((start, end)), Some(path)) = (range, words.nth(2)) {
                if rights.contains('x') && path.starts_with('/') {
                    each(number(start), number(end), number(offset), path.as_bytes());
                }
            }
            line = Line::new();
        }
        true
    });
}
