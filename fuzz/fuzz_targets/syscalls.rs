//! System calls that nobody would make, in sequences over processes and threads: the portable
//! kernel on its test machine, programs whose every call comes from the input.
//!
//! A parent makes a pipe and shared memory, forks two victims, gives them a while, kills what is
//! left and waits for it. A victim and everything that it forks or clones calls the kernel in a
//! loop; before the kernel sees a call, number and arguments are replaced by the input's: numbers,
//! pointers to prepared structures, to the edges of pages and of mappings, what earlier calls
//! answered. The first byte says whether allocations fail now and then.
//!
//! Held to: no panic, an end, every frame, every kernel stack and every byte of the host's heap
//! given back.
//!
//! Kernel threads are fibers, which the address sanitizer takes for corruption: run it with
//! `cargo +nightly fuzz run -s none syscalls`.
#![no_main]

mod balance;
#[path = "../../kernel/core/tests/common/mod.rs"]
mod common;

use std::sync::atomic::Ordering;

use balance::Balance;
use common::asm::*;
use common::{HostMachine, archive};
use libfuzzer_sys::fuzz_target;
use pagoda_kernel_core::machine::UserRegs;

#[global_allocator]
static BALANCE: Balance = Balance::new();

/// In `r15` of everybody whose calls are made up.
const MARK: u64 = 0xf00d_f00d;
/// Shared by everybody, so that futexes meet.
const SHARED: u64 = 0x60_0000;
/// Past the last system call number that is tried.
const NUMBERS: u64 = 460;

/// Structures that calls like to see, each a label of the program.
const ITEMS: [(&str, &[u8]); 16] = [
    ("path", b"/tmp/x\0"),
    ("proc", b"/proc/self/maps\0"),
    ("dir", b"/tmp\0"),
    ("exe", b"/bin/tour\0"),
    ("null", b"/dev/null\0"),
    ("name", b"y\0"),
    ("script", b"/bin/script\0"),
    // A millisecond, as a timespec; then nothing.
    ("span", b"\0\0\0\0\0\0\0\0\x40\x42\x0f\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
    // Every two milliseconds, from the next one on, as an itimerspec (or slow, as an itimerval).
    ("every", b"\0\0\0\0\0\0\0\0\x80\x84\x1e\0\0\0\0\0\0\0\0\0\0\0\0\0\x40\x42\x0f\0\0\0\0\0"),
    ("mask", b"\xff\xff\xff\xff\xff\xff\xff\xff"),
    // Three pollfds; also iovecs that go nowhere good.
    ("polls", b"\0\0\0\0\x01\0\0\0\x03\0\0\0\x05\0\0\0\x04\0\0\0\x05\0\0\0"),
    // clone_args of a thread that shares everything.
    ("clone", b"\0\x0f\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x51\0\0\0\0\0\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
    // sigevents: a signal to the process, to a thread, none.
    ("event", b"\x07\0\0\0\0\0\0\0\x22\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
    ("thread", b"\x07\0\0\0\0\0\0\0\x0a\0\0\0\x04\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
    ("quiet", b"\x07\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
    ("limits", b"\0\0\x10\0\0\0\0\0\0\0\x20\0\0\0\0\0"),
];

/// The program, and where its structures stand: [`ITEMS`], then [`BUILT`].
fn program() -> (Vec<u8>, Vec<u64>) {
    let mut asm = Asm::new();
    asm.sys(14, [0.into(), "mask".into(), 0.into(), 8.into()]);
    asm.sys(9, [SHARED.into(), 0x4000.into(), 3.into(), 0x31.into(), (-1).into(), 0.into()]);
    asm.sys(22, [BSS.into()]);
    build(&mut asm);
    asm.sys(57, []).jz(Rax, "victim").sys(57, []).jz(Rax, "victim");
    asm.sys(35, ["while".into(), 0.into()]);
    asm.sys(62, [(-1).into(), 9.into()]);
    asm.label("reap").sys(61, [(-1).into(), 0.into(), 0x4000_0000.into(), 0.into()]);
    asm.addi(Rax, 10).jnz(Rax, "reap").exit(0);
    asm.label("victim").sys(112, []).sys(14, [1.into(), "mask".into(), 0.into(), 8.into()]);
    asm.movi(R15, MARK).movi(Rsp, BSS + BSS_LEN - 0x1000);
    asm.label("forever").syscall().tick().jmp("forever");
    // A handler makes one of its own calls and goes back, one way or the other.
    asm.label("handler").movi(R15, MARK).syscall().movi(R15, 0).ret();
    asm.label("restorer").movi(R15, 0).movi(Rax, 15).syscall().ud();
    for (name, bytes) in ITEMS {
        asm.data(name, bytes);
    }
    asm.data("while", [0u64, 20_000_000].map(u64::to_le_bytes).concat());
    let file = asm.elf();
    let mut items: Vec<u64> = ITEMS.iter().map(|(label, _)| asm.address(label)).collect();
    items.extend(BUILT);
    (file, items)
}

/// Structures with addresses in them, which the program builds: two actions, vectors of pieces,
/// arguments of a program, a signal stack.
const BUILT: [u64; 5] = [BSS + 0x800, BSS + 0x820, BSS + 0x840, BSS + 0x880, BSS + 0x8c0];

fn build(asm: &mut Asm) {
    let words: [(u64, Word); 17] = [
        (0x800, "handler".into()),
        (0x808, 0x0400_0004.into()),
        (0x810, "restorer".into()),
        (0x820, "handler".into()),
        (0x828, 0x5c00_0004.into()),
        (0x830, "restorer".into()),
        (0x838, 0xffff.into()),
        (0x840, (BSS + 0x1000).into()),
        (0x848, 8192.into()),
        (0x850, SHARED.into()),
        (0x858, 10.into()),
        (0x880, "exe".into()),
        (0x888, "proc".into()),
        (0x8c0, (SHARED + 0x1000).into()),
        (0x8d0, 0x2000.into()),
        // Descriptors beyond the first pipe: files that are shared by all.
        (0x900, 3.into()),
        (0x908, 4.into()),
    ];
    asm.movi(Rbx, BSS);
    for (at, word) in words {
        asm.movi(Rcx, word).st(Rbx, at, Rcx);
    }
}

/// The input as a stream that ends in zeroes.
struct Input {
    bytes: Vec<u8>,
    at: usize,
    answers: [u64; 16],
    answer: usize,
    items: Vec<u64>,
}

impl Input {
    fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }
    fn word(&mut self, bytes: usize) -> u64 {
        (0..bytes).fold(0, |word, index| {
            let byte = self.bytes.get(self.at).copied().unwrap_or(0);
            self.at += 1;
            word | u64::from(byte) << (8 * index)
        })
    }

    fn argument(&mut self, before: u64) -> u64 {
        let kind = self.word(1);
        let low = kind & 15;
        match kind >> 4 {
            0 => low,
            1 => 16 + low,
            2 => self.word(1),
            3 => self.word(2),
            4 => 1 << (low + 16 * (self.word(1) & 3)),
            5 => (1 << (low + 16 * (self.word(1) & 3))) - 1,
            6 => (low + 1).wrapping_neg(),
            7 => BSS + 4096 * low + 8 * self.word(1),
            8 => (BSS + 4096 * (low + 1)) - self.word(1) % 40,
            9 => [BSS + BSS_LEN, SHARED + 0x4000, BASE][low as usize % 3] - self.word(1),
            10 => {
                let index = low + 16 * (self.word(1) & 1);
                self.items[index as usize % self.items.len()]
            }
            11 => match low {
                0..4 => 0x7fff_ffff_f000 - self.word(2),
                4..8 => 0xffff_8000_0000_0000 + self.word(2),
                8 => 0x8000_0000_0000 - self.word(1),
                9 => u64::MAX - self.word(1),
                _ => SHARED + 4 * self.word(1),
            },
            12 => self.answers[low as usize],
            13 => self.word(4),
            14 => self.word(8),
            _ => before.wrapping_add(low),
        }
    }

    fn call(&mut self, machine: &HostMachine, regs: &mut UserRegs) {
        self.answers[self.answer % 16] = regs.rax;
        self.answer += 1;
        regs.rax = self.word(2);
        if regs.rax >> 12 != 15 {
            regs.rax %= NUMBERS;
        }
        let mut before = 0;
        let mut arguments = [0; 6];
        for argument in &mut arguments {
            *argument = self.argument(before);
            before = *argument;
        }
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = arguments;
        spare_the_parent(machine, regs);
    }
}

/// Whatever would kill or stop the first process is turned at the caller.
fn spare_the_parent(machine: &HostMachine, regs: &mut UserRegs) {
    let deadly = |signal: u64| matches!(signal & 0xff, 9 | 19);
    let aims_at_parent = regs.rdi as u32 == 1;
    match regs.rax {
        62 | 129 | 200 | 297 | 302 if aims_at_parent => regs.rdi = 2,
        234 if aims_at_parent || regs.rsi as u32 == 1 => (regs.rdi, regs.rsi) = (2, 2),
        56 if deadly(regs.rdi) => regs.rdi -= 1,
        435 => {
            let mut signal = [0; 8];
            let at = regs.rdi.wrapping_add(32);
            if common::load(machine, at, &mut signal).is_err() || deadly(u64::from_le_bytes(signal))
            {
                regs.rdi = SHARED;
            }
        }
        _ => {}
    }
}

fn run(data: &[u8]) {
    let (failing, data) = data.split_first().map_or((false, data), |(&f, rest)| (f & 1 == 1, rest));
    HostMachine::scoped(800, |machine| {
        machine.stack_limit.store(24, Ordering::SeqCst);
        let (program, items) = program();
        let bytes = data.to_vec();
        let mut input = Input { bytes, at: 0, answers: [3; 16], answer: 0, items };
        *machine.watch.lock().unwrap() = Some(Box::new(move |regs| {
            if regs.r15 != MARK {
                return;
            }
            if input.is_empty() {
                (regs.rax, regs.rdi) = (231, 0);
                return;
            }
            input.call(machine, regs);
            if failing {
                let when = input.word(1);
                pagoda_vm::fallible::host::fail_after((when & 3 == 1).then_some(when >> 4));
                machine.emu.fail_after((when & 3 == 2).then_some(when >> 4));
            }
        }));
        let files =
            archive(&[("bin/tour", 0o755, &program), ("bin/script", 0o755, b"#!/bin/tour x\n")]);
        let _ = machine.boot("stdio=raw", files);
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
