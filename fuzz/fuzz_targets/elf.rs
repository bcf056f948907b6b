//! Any bytes as a program: `execve` on the test machine answers with an error, or the process has
//! an address space that is what the file says.
//!
//! A parent forks a child that executes the input; while the child is held back, the parent copies
//! the child's `/proc/PID/maps` out. The regions must be in order, aligned, apart from one another
//! and in the program's half; then every loaded piece is read at its edges, and must hold what a naive reader
//! of the file expects there. Whatever the child does when it is let go, every frame, stack and
//! byte of the host's heap comes back.
//!
//! The input is a file as it is, or (first byte odd) a description of program headers that mostly
//! make sense. Kernel threads are fibers, which the address sanitizer takes for corruption: run it
//! with `cargo +nightly fuzz run -s none elf`.
#![no_main]

mod balance;
#[path = "../../kernel/core/tests/common/mod.rs"]
mod common;

use std::sync::{Arc, Mutex};

use balance::Balance;
use common::asm::*;
use common::{HostMachine, archive};
use libfuzzer_sys::fuzz_target;
use pagoda_kernel_core::ExitStatus;
use pagoda_kernel_core::machine::{Trap, UserRegs};

#[global_allocator]
static BALANCE: Balance = Balance::new();

const PAGE: u64 = 4096;
/// One past the last address that a program may have.
const LIMIT: u64 = 0x7fff_ffff_f000;
/// In `r15` of the parent.
const PARENT: u64 = 0x7061_7265_6e74_5f21;
/// How often the child may trap before it is ended.
const PATIENCE: u32 = 200;

/// `exit_group` with the error that `execve` gave; the parent writes maps and status to its output.
fn parent() -> Vec<u8> {
    let mut asm = Asm::new();
    asm.movi(R15, PARENT).sys(57, []).jz(Rax, "child");
    asm.sys(35, ["moment".into(), 0.into()]);
    asm.sys(2, ["maps".into(), 0.into(), 0.into()]).mov(R12, Rax);
    asm.label("more").mov(Rdi, R12).movi(Rsi, BSS).movi(Rdx, 0x1000).movi(Rax, 0).syscall();
    asm.addi(Rax, -1).js(Rax, "end").addi(Rax, 1);
    asm.mov(Rdx, Rax).movi(Rdi, 1).movi(Rsi, BSS).movi(Rax, 1).syscall().jmp("more");
    asm.label("end").sys(110, []);
    asm.sys(35, ["moment".into(), 0.into()]);
    asm.sys(62, [2.into(), 9.into()]);
    asm.sys(61, [2.into(), BSS.into(), 0.into(), 0.into()]);
    asm.sys(1, [1.into(), BSS.into(), 4.into()]).exit(0);
    asm.label("child").sys(59, ["path".into(), BSS.into(), 0.into()]);
    asm.movi(Rdi, 0).sub(Rdi, Rax).movi(Rax, 231).syscall();
    asm.data("path", "/x\0").data("maps", "/proc/2/maps\0");
    asm.data("moment", [0u64, 10_000_000].map(u64::to_le_bytes).concat()).elf()
}

fn half(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 2).map_or(0, |b| u64::from(b[0]) | u64::from(b[1]) << 8)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap()))
}

/// A loadable program header.
struct Load {
    readable: bool,
    writable: bool,
    offset: u64,
    addr: u64,
    file_len: u64,
    len: u64,
}

/// The loadable program headers of a file that the kernel has accepted.
fn loads(file: &[u8]) -> Vec<Load> {
    let at = word(file, 32) as usize;
    let headers = (0..half(file, 56) as usize).map(|index| at + 56 * index);
    let loads = headers.filter(|&at| word(file, at) as u32 == 1 && word(file, at + 40) != 0);
    let load = |at| {
        let flags = word(file, at) >> 32;
        Load {
            readable: flags & 6 != 0,
            writable: flags & 2 != 0,
            offset: word(file, at + 8),
            addr: word(file, at + 16),
            file_len: word(file, at + 32),
            len: word(file, at + 40),
        }
    };
    loads.map(load).collect()
}

/// The byte that the last of `loads` that has the page puts at `addr` (as the file counts);
/// `None` where it cannot be read.
fn expected(loads: &[Load], file: &[u8], addr: u64) -> Option<u8> {
    let up = |value: u64| value.next_multiple_of(PAGE);
    let load = loads
        .iter()
        .rev()
        .find(|load| (load.addr / PAGE * PAGE..up(load.addr + load.len)).contains(&addr))?;
    if !load.readable {
        return None;
    }
    let file_end = load.addr + load.file_len;
    let of_file = load.file_len != 0 && addr < up(file_end);
    let zeroed = load.writable && addr >= file_end;
    if !of_file || zeroed {
        return Some(0);
    }
    let at = (load.offset).wrapping_add(addr.wrapping_sub(load.addr));
    Some(file.get(at as usize).copied().unwrap_or(0))
}

/// Addresses (as the file counts) at which something could go wrong.
fn edges(loads: &[Load]) -> Vec<u64> {
    let mut edges = Vec::new();
    for load in loads.iter().take(8) {
        let (addr, file_end, end) = (load.addr, load.addr + load.file_len, load.addr + load.len);
        edges.extend([addr, addr / PAGE * PAGE, addr + load.len / 2, end.wrapping_sub(1)]);
        edges.extend([file_end, file_end.wrapping_sub(1), end.next_multiple_of(PAGE) - 1]);
        edges.push(file_end.next_multiple_of(PAGE));
    }
    edges
}

/// What is known about the child.
#[derive(Default)]
struct Child {
    /// The parent has begun, and says who it is in `r15`.
    begun: bool,
    /// It runs the new program.
    executed: bool,
    /// The parent has seen the maps.
    released: bool,
    /// Addresses still to be read, and what must stand there.
    probes: Vec<(u64, u8)>,
    asked: Option<u64>,
    traps: u32,
}

impl Child {
    /// The child in the place of its program: held back, then made to read, then let go.
    fn play(&mut self, machine: &HostMachine, regs: &mut UserRegs, file: &[u8]) -> Option<Trap> {
        if !self.begun || regs.r15 == PARENT {
            self.begun = true;
            return None;
        }
        if !self.executed {
            self.executed = true;
            // A script's interpreter is another file.
            let loads = if file.starts_with(b"#!") { Vec::new() } else { loads(file) };
            let bias = regs.rip.wrapping_sub(word(file, 24));
            for at in edges(&loads) {
                if let Some(byte) = expected(&loads, file, at) {
                    self.probes.push((at.wrapping_add(bias), byte));
                }
            }
        }
        while let Some(&(addr, byte)) = self.probes.last() {
            let mut found = [0];
            match common::load(machine, addr, &mut found) {
                Ok(()) => assert_eq!(found[0], byte, "at {addr:#x}"),
                Err(trap) => {
                    assert_ne!(self.asked, Some(addr), "the fault at {addr:#x} did not help");
                    self.asked = Some(addr);
                    return Some(trap);
                }
            }
            self.probes.pop();
        }
        self.traps += 1;
        if !self.released {
            return Some(Trap::Interrupt);
        }
        if self.traps > PATIENCE {
            return Some(Trap::Exception { vector: 6, code: 0 });
        }
        None
    }
}

/// Regions in order, aligned, apart, in the program's half; a stack among them.
fn check_maps(text: &str) {
    let mut last = 0;
    for line in text.lines() {
        let range = line.split(' ').next().unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let [from, to] = [from, to].map(|hex| u64::from_str_radix(hex, 16).unwrap());
        assert!(from % PAGE == 0 && to % PAGE == 0, "{text}");
        assert!(last <= from && from < to && to <= LIMIT, "{text}");
        last = to;
    }
}

/// Program headers that mostly make sense, from a description.
fn described(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.iter().copied();
    let mut next = || u64::from(bytes.next().unwrap_or(0));
    let count = 1 + next() % 6;
    let kind = 2 + next() % 2;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    file.extend((kind as u16).to_le_bytes());
    file.extend(62u16.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    let base = if kind == 2 { 0x40_0000 } else { 0 };
    let mut place = |base: u64| match next() {
        choice @ 0..200 => base + 0x800 * (choice % 40),
        200..210 => LIMIT - PAGE * (next() % 64),
        210..220 => 1 << (next() % 64),
        220..230 => 0x5555_5555_4000 + PAGE * next(),
        _ => (0..8).fold(0, |word, _| word << 8 | next()),
    };
    for value in [place(base), 64, 0] {
        file.extend(value.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for value in [64, 56, count as u16, 64, 0, 0] {
        file.extend(value.to_le_bytes());
    }
    for _ in 0..count {
        let (offset, addr) = (place(0), place(base));
        let offset = offset & !0xfff | addr & 0xfff;
        let (file_len, more) = (place(0), place(0));
        let kind =
            [1, 1, 1, 1, 0x6474_e551, 4, 3, 6][(file_len ^ addr ^ more) as usize / 0x800 % 8];
        let align = 1u64 << (more % 24);
        file.extend((kind as u32).to_le_bytes());
        file.extend(((addr / 0x800 + offset / 0x1000) as u32 & 7).to_le_bytes());
        for value in [offset, addr, addr, file_len, file_len.wrapping_add(more), align] {
            file.extend(value.to_le_bytes());
        }
    }
    // Something in every page that can be told from its neighbours.
    while file.len() < 0x1_5432 {
        let at = file.len();
        file.push((at ^ at >> 8) as u8);
    }
    file
}

fn run(data: &[u8]) {
    let file = match data.split_first() {
        Some((first, rest)) if first % 2 == 1 => described(rest),
        Some((_, rest)) => rest.to_vec(),
        None => Vec::new(),
    };
    HostMachine::scoped(500, |machine| {
        let child = Arc::new(Mutex::new(Child::default()));
        let played = (Arc::clone(&child), file.clone());
        *machine.gate.lock().unwrap() = Some(Box::new(move |machine, regs| {
            played.0.lock().unwrap().play(machine, regs, &played.1)
        }));
        let watched = Arc::clone(&child);
        *machine.watch.lock().unwrap() = Some(Box::new(move |regs| {
            if regs.r15 != PARENT {
                (regs.rax, regs.rdi) = (231, 0);
            } else if regs.rax == 110 {
                watched.lock().unwrap().released = true;
            }
        }));
        let files = archive(&[("bin/tour", 0o755, &parent()), ("x", 0o755, &file)]);
        assert_eq!(machine.boot("stdio=raw", files), Ok(ExitStatus(0)));
        let output = machine.lines.lock().unwrap().terminal_out.clone();
        let (maps, status) = output.split_at(output.len() - 4);
        let child = child.lock().unwrap();
        if child.executed {
            assert!(child.probes.is_empty(), "a loaded piece could not be read");
            check_maps(std::str::from_utf8(maps).unwrap());
        } else {
            let errors = [2, 7, 8, 12, 13, 20, 36, 40];
            assert!(status[0] == 0 && errors.contains(&status[1]), "status {status:?}");
        }
        *machine.gate.lock().unwrap() = None;
        *machine.watch.lock().unwrap() = None;
    });
}

fuzz_target!(
    init: {
        run(b"");
    },
    |data: &[u8]| {
        let before = BALANCE.bytes();
        run(data);
        assert_eq!(BALANCE.bytes(), before, "bytes of the heap were lost");
    }
);
