//! All registers hold their values across switches, interrupts, system calls and signals: general
//! ones, vectors, the old floating-point stack, control words, and the red zone under the stack.
#![allow(unsafe_code)] // assembly

use core::arch::global_asm;

use crate::faults;
use crate::lane::Lane;
use crate::sys;

/// In and out, 8-byte words.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct State {
    vectors: [u64; 32],
    general: [u64; 8],
    stack: [f64; 8],
    zone: [u64; 2],
    control: [u32; 2],
}

global_asm!(
    // rdi: what to load, rsi: where to store, rdx: rounds, rcx: a system call without arguments
    // to make in each round, or -1.
    ".global torture_registers",
    "torture_registers:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "sub rsp, 24",
    "stmxcsr [rsp]",
    "fnstcw [rsp + 4]",
    "mov [rsp + 8], rcx",
    "fninit",
    "ldmxcsr [rdi + 400]",
    "fldcw [rdi + 404]",
    ".set n, 0",
    ".rept 8",
    "fld qword ptr [rdi + 320 + 8 * n]",
    ".set n, n + 1",
    ".endr",
    "movups xmm0, [rdi]",
    "movups xmm1, [rdi + 16]",
    "movups xmm2, [rdi + 32]",
    "movups xmm3, [rdi + 48]",
    "movups xmm4, [rdi + 64]",
    "movups xmm5, [rdi + 80]",
    "movups xmm6, [rdi + 96]",
    "movups xmm7, [rdi + 112]",
    "movups xmm8, [rdi + 128]",
    "movups xmm9, [rdi + 144]",
    "movups xmm10, [rdi + 160]",
    "movups xmm11, [rdi + 176]",
    "movups xmm12, [rdi + 192]",
    "movups xmm13, [rdi + 208]",
    "movups xmm14, [rdi + 224]",
    "movups xmm15, [rdi + 240]",
    "mov rax, [rdi + 384]",
    "mov [rsp - 8], rax",
    "mov rax, [rdi + 392]",
    "mov [rsp - 128], rax",
    "mov rbx, [rdi + 256]",
    "mov rbp, [rdi + 264]",
    "mov r8, [rdi + 272]",
    "mov r9, [rdi + 280]",
    "mov r12, [rdi + 288]",
    "mov r13, [rdi + 296]",
    "mov r14, [rdi + 304]",
    "mov r15, [rdi + 312]",
    "cmp qword ptr [rsp + 8], -1",
    "je 3f",
    "2:",
    "mov rax, [rsp + 8]",
    "syscall",
    "dec rdx",
    "jnz 2b",
    "jmp 5f",
    // Without calls: the two registers that a call would change must stay too.
    "3:",
    "mov rcx, r8",
    "mov r11, r9",
    "4:",
    "pause",
    "cmp rcx, r8",
    "jne 6f",
    "cmp r11, r9",
    "jne 6f",
    "dec rdx",
    "jnz 4b",
    "jmp 5f",
    "6:",
    "xor r8, r8",
    "5:",
    "mov [rsi + 256], rbx",
    "mov [rsi + 264], rbp",
    "mov [rsi + 272], r8",
    "mov [rsi + 280], r9",
    "mov [rsi + 288], r12",
    "mov [rsi + 296], r13",
    "mov [rsi + 304], r14",
    "mov [rsi + 312], r15",
    "mov rax, [rsp - 8]",
    "mov [rsi + 384], rax",
    "mov rax, [rsp - 128]",
    "mov [rsi + 392], rax",
    "movups [rsi], xmm0",
    "movups [rsi + 16], xmm1",
    "movups [rsi + 32], xmm2",
    "movups [rsi + 48], xmm3",
    "movups [rsi + 64], xmm4",
    "movups [rsi + 80], xmm5",
    "movups [rsi + 96], xmm6",
    "movups [rsi + 112], xmm7",
    "movups [rsi + 128], xmm8",
    "movups [rsi + 144], xmm9",
    "movups [rsi + 160], xmm10",
    "movups [rsi + 176], xmm11",
    "movups [rsi + 192], xmm12",
    "movups [rsi + 208], xmm13",
    "movups [rsi + 224], xmm14",
    "movups [rsi + 240], xmm15",
    "stmxcsr [rsi + 400]",
    "mov dword ptr [rsi + 404], 0",
    "fnstcw [rsi + 404]",
    ".set n, 7",
    ".rept 8",
    "fstp qword ptr [rsi + 320 + 8 * n]",
    ".set n, n - 1",
    ".endr",
    "fninit",
    "ldmxcsr [rsp]",
    "fldcw [rsp + 4]",
    "add rsp, 24",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

unsafe extern "C" {
    fn torture_registers(load: *const State, store: *mut State, rounds: usize, call: i64);
}

impl Lane {
    /// Loads all registers, lets things happen, and compares.
    pub fn registers(&mut self) {
        let mut load = State {
            vectors: [0; 32],
            general: [0; 8],
            stack: [0.0; 8],
            zone: [self.random.next(), self.random.next()],
            // All exceptions masked; rounding in one of four ways.
            control: [0x1f80 | (self.random.below(4) as u32) << 13, 0x37f],
        };
        load.control[1] |= (self.random.below(4) as u32) << 10;
        load.vectors.fill_with(|| self.random.next());
        load.general.fill_with(|| self.random.next());
        load.stack.fill_with(|| (self.random.next() >> 12) as f64);
        let mut store = State { vectors: [0; 32], general: [0; 8], ..load };
        store.stack = [0.0; 8];
        let (rounds, call) = match self.random.below(4) {
            0 => (1 + self.random.below(20), libc::SYS_sched_yield),
            1 => (1 + self.random.below(50), libc::SYS_getppid),
            _ => (1 + self.random.below(100_000), -1),
        };
        // SAFETY: both stand in memory for the time of the call, which keeps to the C convention.
        unsafe { torture_registers(&raw const load, &raw mut store, rounds, call) };
        let same = |what: &str, expected: &[u64], seen: &[u64]| {
            for (place, (expected, seen)) in expected.iter().zip(seen).enumerate() {
                if expected != seen {
                    self.wrong(format_args!(
                        "{what}, word {place}: expected {expected:#x}, seen {seen:#x} (call {call}, \
                         {rounds} rounds)"
                    ));
                }
            }
        };
        same("vector registers", &load.vectors, &store.vectors);
        same("general registers", &load.general, &store.general);
        same("the red zone", &load.zone, &store.zone);
        same(
            "the floating-point stack",
            &load.stack.map(f64::to_bits),
            &store.stack.map(f64::to_bits),
        );
        same("control words", &load.control.map(u64::from), &store.control.map(u64::from));
    }

    /// Blocked signals wait, are listed as waiting, and come in order and number when let in.
    pub fn masks(&mut self) {
        const SIGNAL: u64 = 1 << (faults::QUEUE_SIGNAL - 1);
        let Some(_) = self.got("rt_sigprocmask", sys::mask(libc::SIG_BLOCK, SIGNAL)) else {
            return;
        };
        faults::take_queued();
        let values: [u64; 4] = core::array::from_fn(|_| self.random.next() >> 1);
        let count = 1 + self.random.below(4);
        let mut sent = [0; 4];
        let mut all = true;
        for &value in values.iter().take(count) {
            match sys::queue_to_self(faults::QUEUE_SIGNAL, value) {
                Ok(()) => {
                    sent.rotate_right(1);
                    sent[0] = value;
                }
                Err(error) => {
                    self.refused("rt_tgsigqueueinfo", error);
                    all = false;
                }
            }
        }
        if self.random.once_in(2) {
            sys::yield_now();
        }
        self.must(faults::take_queued() == [0; 4], "a blocked signal was delivered");
        // A sibling's fork may just have made this stack copy on write, so that the answer needs
        // memory.
        if let Some(set) = self.got("rt_sigpending", sys::pending()) {
            self.must(set & SIGNAL != 0 || !all, "a blocked signal is not pending");
        }
        if let Err(error) = sys::mask(libc::SIG_UNBLOCK, SIGNAL) {
            self.give_up("rt_sigprocmask", error);
        }
        let came = faults::take_queued();
        if came != sent {
            self.wrong(format_args!("queued signals: sent {sent:x?}, came {came:x?}"));
        }
    }
}
