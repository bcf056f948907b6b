//! System calls with arguments that nobody would pass: the kernel answers, and nothing is lost.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::asm::*;
use common::{HostMachine, archive};
use pagoda_kernel_core::machine::UserRegs;
use proptest::prelude::*;

/// In `r15` of a process whose calls are made up.
const MARK: u64 = 0xf00d_f00d;

/// A parent that starts a victim, lets it live for a while, ends everything else and waits.
fn program() -> Vec<u8> {
    let mut asm = Asm::new();
    // The parent blocks what descendants may send it: a child's end says it with any signal.
    asm.sys(14, [0.into(), "all".into(), 0.into(), 8.into()]);
    asm.movi(R14, 6);
    asm.label("again").sys(57, []).jz(Rax, "victim");
    asm.sys(35, ["span".into(), 0.into()]);
    asm.sys(62, [(-1).into(), 9.into()]);
    asm.label("reap").sys(61, [(-1).into(), 0.into(), 0.into(), 0.into()]);
    asm.addi(Rax, 10).jnz(Rax, "more").addi(R14, -1).jnz(R14, "again").exit(0);
    asm.label("more").jmp("reap");
    asm.label("victim").sys(14, [1.into(), "all".into(), 0.into(), 8.into()]).movi(R15, MARK);
    asm.label("forever").syscall().tick().jmp("forever");
    let span: Vec<u8> = [0u64, 300_000_000].iter().flat_map(|w| w.to_le_bytes()).collect();
    asm.data("all", [0xff; 8])
        .data("span", span)
        .data("path", "/tmp/x\0")
        .data("proc", "/proc/self/status\0")
        .elf()
}

/// xorshift64* (Vigna, 2016).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn argument(&mut self) -> u64 {
        match self.below(16) {
            0..=2 => self.below(8),
            3 => self.below(1 << 14),
            4 => 1 << self.below(64),
            5 => (1u64 << self.below(64)).wrapping_sub(1),
            6 => (-(self.below(200) as i64)) as u64,
            7..=9 => BSS + 8 * self.below(BSS_LEN / 8),
            10 => BSS + 4096 * self.below(256) - self.below(32),
            11 => BSS + BSS_LEN - self.below(64),
            12 => 0x7fff_ffff_f000 - self.below(9000),
            13 => 0xffff_8000_0000_0000 + self.below(1 << 40),
            14 => BASE + 0x1000 + self.below(0x400),
            _ => self.next(),
        }
    }

    fn call(&mut self, regs: &mut UserRegs) {
        loop {
            regs.rax = match self.below(10) {
                0 => self.next(),
                1 => 400 + self.below(80),
                _ => self.below(336),
            };
            // Signals are sent elsewhere: they would reach the parent.
            if !matches!(regs.rax, 60 | 62 | 129 | 200 | 231 | 234 | 297) {
                break;
            }
        }
        for register in
            [&mut regs.rdi, &mut regs.rsi, &mut regs.rdx, &mut regs.r10, &mut regs.r8, &mut regs.r9]
        {
            *register = self.argument();
        }
        // Limits of the parent are none of the victim's business, nor is its group.
        if matches!(regs.rax, 302 | 109) {
            regs.rdi = 0;
        }
    }
}

fn storm(seed: u64, calls: u64, failing: bool) {
    let machine = HostMachine::new(3000);
    machine.stack_limit.store(40, Ordering::SeqCst);
    let mut random = Random(seed | 1);
    let made = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&made);
    *machine.watch.lock().unwrap() = Some(Box::new(move |regs| {
        if regs.r15 != MARK {
            return;
        }
        random.call(regs);
        if count.fetch_add(1, Ordering::SeqCst) >= calls {
            (regs.rax, regs.rdi) = (231, 0);
        } else if failing && random.below(3) == 0 {
            pagoda_vm::fallible::host::fail_after(Some(random.below(12)));
            machine.emu.fail_after(Some(random.below(20)));
        } else {
            pagoda_vm::fallible::host::fail_after(None);
            machine.emu.fail_after(None);
        }
    }));
    let status = machine.boot("stdio=raw", archive(&[("bin/tour", 0o755, &program())]));
    assert!(made.load(Ordering::SeqCst) > 0);
    if !failing {
        assert_eq!(status.unwrap().0, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn calls_with_random_arguments_harm_nobody(seed: u64) {
        storm(seed, 3000, false);
    }

    #[test]
    fn nor_do_they_when_allocations_fail(seed: u64) {
        storm(seed, 1500, true);
    }
}

/// Every call with every argument pointing where nothing is.
#[test]
fn bad_pointers_are_errors_for_every_call() {
    for bad in [1, BSS + BSS_LEN - 1, 0x7fff_ffff_effc, 0xffff_8000_0000_0000, u64::MAX - 3] {
        let machine = HostMachine::new(3000);
        let number = Arc::new(AtomicU64::new(0));
        *machine.watch.lock().unwrap() = Some(Box::new(move |regs| {
            if regs.r15 != MARK {
                return;
            }
            regs.rax = number.fetch_add(1, Ordering::SeqCst);
            while matches!(regs.rax, 60 | 62 | 129 | 200 | 231 | 234 | 297 | 34 | 15) {
                regs.rax = number.fetch_add(1, Ordering::SeqCst);
            }
            if regs.rax > 450 {
                (regs.rax, regs.rdi) = (231, 0);
                return;
            }
            (regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9) =
                (bad, bad, bad, bad, bad, bad);
        }));
        let status = machine.boot("stdio=raw", archive(&[("bin/tour", 0o755, &program())]));
        assert_eq!(status.unwrap().0, 0);
    }
}
