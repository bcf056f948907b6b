//! The instruction set of test programs, its assembler and its interpreter.
//!
//! Every instruction has 16 bytes (operation, three registers, a 64-bit word at offset 8), except
//! the system call, which has two, as the kernel expects of it.

use std::collections::HashMap;

use pagoda_kernel_core::machine::{Trap, UserRegs};

use super::{HostMachine, fetch, load, store};

/// Registers, by the number that instructions use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum R {
    Rax,
    Rbx,
    Rcx,
    Rdx,
    Rsi,
    Rdi,
    Rbp,
    Rsp,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}
pub use R::*;

const SYSCALL: u8 = 0x0f;
const MOVI: u8 = 1;
const MOV: u8 = 2;
const ADD: u8 = 3;
const ADDI: u8 = 4;
const LD: u8 = 5;
const ST: u8 = 6;
const LDB: u8 = 7;
const STB: u8 = 8;
const JMP: u8 = 9;
const JZ: u8 = 10;
const JNZ: u8 = 11;
const JS: u8 = 12;
const CALL: u8 = 13;
const RET: u8 = 14;
const PUSH: u8 = 16;
const POP: u8 = 17;
const UD: u8 = 18;
const DIV0: u8 = 19;
const TICK: u8 = 20;
const SUB: u8 = 21;
const FPSET: u8 = 22;
const FPGET: u8 = 23;
const TLSLD: u8 = 24;

fn reg(regs: &mut UserRegs, number: u8) -> &mut u64 {
    match number & 15 {
        0 => &mut regs.rax,
        1 => &mut regs.rbx,
        2 => &mut regs.rcx,
        3 => &mut regs.rdx,
        4 => &mut regs.rsi,
        5 => &mut regs.rdi,
        6 => &mut regs.rbp,
        7 => &mut regs.rsp,
        8 => &mut regs.r8,
        9 => &mut regs.r9,
        10 => &mut regs.r10,
        11 => &mut regs.r11,
        12 => &mut regs.r12,
        13 => &mut regs.r13,
        14 => &mut regs.r14,
        _ => &mut regs.r15,
    }
}

/// Runs until something traps, at most `budget` instructions.
pub fn run(machine: &HostMachine, regs: &mut UserRegs, budget: u64) -> Trap {
    for _ in 0..budget {
        machine.tick();
        match step(machine, regs) {
            Ok(()) => {}
            Err(trap) => return trap,
        }
    }
    Trap::Interrupt
}

fn step(machine: &HostMachine, r: &mut UserRegs) -> Result<(), Trap> {
    let rip = r.rip;
    let operation = fetch(machine, rip)?;
    if operation == SYSCALL {
        r.rip = rip.wrapping_add(2);
        (r.rcx, r.r11) = (r.rip, r.rflags);
        return Err(Trap::Syscall);
    }
    let mut code = [0; 16];
    // What may be executed can mostly be read, and then the rest of a page's instruction at once.
    if rip % 4096 > 4096 - 16 || load(machine, rip, &mut code).is_err() {
        for (at, byte) in code.iter_mut().enumerate() {
            *byte = fetch(machine, rip.wrapping_add(at as u64))?;
        }
    }
    let (a, b) = (code[1], code[2]);
    let word = u64::from_le_bytes(code[8..].try_into().unwrap());
    let next = rip.wrapping_add(16);
    let mut target = next;
    let load_word = |at: u64| {
        let mut bytes = [0; 8];
        load(machine, at, &mut bytes).map(|()| u64::from_le_bytes(bytes))
    };
    match operation {
        MOVI => *reg(r, a) = word,
        MOV => *reg(r, a) = *reg(r, b),
        ADD => *reg(r, a) = reg(r, a).wrapping_add(*reg(r, b)),
        SUB => *reg(r, a) = reg(r, a).wrapping_sub(*reg(r, b)),
        ADDI => *reg(r, a) = reg(r, a).wrapping_add(word),
        LD => *reg(r, a) = load_word(reg(r, b).wrapping_add(word))?,
        TLSLD => *reg(r, a) = load_word(r.fs_base.wrapping_add(word))?,
        ST => store(machine, reg(r, b).wrapping_add(word), &{ *reg(r, a) }.to_le_bytes())?,
        LDB => {
            let mut byte = [0];
            load(machine, reg(r, b).wrapping_add(word), &mut byte)?;
            *reg(r, a) = u64::from(byte[0]);
        }
        STB => store(machine, reg(r, b).wrapping_add(word), &[*reg(r, a) as u8])?,
        JMP => target = word,
        JZ if *reg(r, a) == 0 => target = word,
        JNZ if *reg(r, a) != 0 => target = word,
        JS if (*reg(r, a) as i64) < 0 => target = word,
        JZ | JNZ | JS => {}
        CALL => {
            store(machine, r.rsp.wrapping_sub(8), &next.to_le_bytes())?;
            r.rsp = r.rsp.wrapping_sub(8);
            target = word;
        }
        RET => {
            target = load_word(r.rsp)?;
            r.rsp = r.rsp.wrapping_add(8);
        }
        PUSH => {
            store(machine, r.rsp.wrapping_sub(8), &{ *reg(r, a) }.to_le_bytes())?;
            r.rsp = r.rsp.wrapping_sub(8);
        }
        POP => {
            *reg(r, a) = load_word(r.rsp)?;
            r.rsp = r.rsp.wrapping_add(8);
        }
        DIV0 => return Err(Trap::Exception { vector: 0, code: 0 }),
        TICK => {
            r.rip = next;
            return Err(Trap::Interrupt);
        }
        FPSET => {
            machine.swap_fpu_word(Some(*reg(r, a)));
        }
        FPGET => *reg(r, a) = machine.swap_fpu_word(None),
        _ => return Err(Trap::Exception { vector: 6, code: 0 }),
    }
    r.rip = target;
    Ok(())
}

/// Where programs are loaded.
pub const BASE: u64 = 0x40_0000;
/// Zeroed memory behind the program.
pub const BSS: u64 = 0x50_0000;
pub const BSS_LEN: u64 = 0x10_0000;
const HEADERS: usize = 0x1000;

/// A word in an instruction: a number or the address of a label.
pub enum Word {
    Value(u64),
    Label(&'static str),
}
impl From<u64> for Word {
    fn from(value: u64) -> Self {
        Self::Value(value)
    }
}
impl From<i32> for Word {
    fn from(value: i32) -> Self {
        Self::Value(value as i64 as u64)
    }
}
impl From<&'static str> for Word {
    fn from(label: &'static str) -> Self {
        Self::Label(label)
    }
}

/// Assembles one program.
#[derive(Default)]
pub struct Asm {
    bytes: Vec<u8>,
    labels: HashMap<&'static str, u64>,
    fixups: Vec<(usize, &'static str)>,
    strings: Vec<(&'static str, Vec<u8>)>,
}

impl Asm {
    pub fn new() -> Self {
        Self::default()
    }

    fn op(&mut self, operation: u8, a: u8, b: u8, word: Word) -> &mut Self {
        let mut code = [0; 16];
        (code[0], code[1], code[2]) = (operation, a, b);
        match word {
            Word::Value(value) => code[8..].copy_from_slice(&value.to_le_bytes()),
            Word::Label(label) => self.fixups.push((self.bytes.len() + 8, label)),
        }
        self.bytes.extend(code);
        self
    }

    pub fn label(&mut self, name: &'static str) -> &mut Self {
        let at = BASE + (HEADERS + self.bytes.len()) as u64;
        assert!(self.labels.insert(name, at).is_none(), "label {name} twice");
        self
    }
    /// Bytes with a label, behind the code.
    pub fn data(&mut self, name: &'static str, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.strings.push((name, bytes.as_ref().to_vec()));
        self
    }
    pub fn movi(&mut self, a: R, word: impl Into<Word>) -> &mut Self {
        self.op(MOVI, a as u8, 0, word.into())
    }
    pub fn mov(&mut self, a: R, b: R) -> &mut Self {
        self.op(MOV, a as u8, b as u8, 0.into())
    }
    pub fn add(&mut self, a: R, b: R) -> &mut Self {
        self.op(ADD, a as u8, b as u8, 0.into())
    }
    pub fn sub(&mut self, a: R, b: R) -> &mut Self {
        self.op(SUB, a as u8, b as u8, 0.into())
    }
    pub fn addi(&mut self, a: R, word: impl Into<Word>) -> &mut Self {
        self.op(ADDI, a as u8, 0, word.into())
    }
    pub fn ld(&mut self, a: R, b: R, word: impl Into<Word>) -> &mut Self {
        self.op(LD, a as u8, b as u8, word.into())
    }
    pub fn st(&mut self, b: R, word: impl Into<Word>, a: R) -> &mut Self {
        self.op(ST, a as u8, b as u8, word.into())
    }
    pub fn ldb(&mut self, a: R, b: R, word: impl Into<Word>) -> &mut Self {
        self.op(LDB, a as u8, b as u8, word.into())
    }
    pub fn stb(&mut self, b: R, word: impl Into<Word>, a: R) -> &mut Self {
        self.op(STB, a as u8, b as u8, word.into())
    }
    pub fn tlsld(&mut self, a: R, word: impl Into<Word>) -> &mut Self {
        self.op(TLSLD, a as u8, 0, word.into())
    }
    pub fn jmp(&mut self, label: &'static str) -> &mut Self {
        self.op(JMP, 0, 0, label.into())
    }
    pub fn jz(&mut self, a: R, label: &'static str) -> &mut Self {
        self.op(JZ, a as u8, 0, label.into())
    }
    pub fn jnz(&mut self, a: R, label: &'static str) -> &mut Self {
        self.op(JNZ, a as u8, 0, label.into())
    }
    pub fn js(&mut self, a: R, label: &'static str) -> &mut Self {
        self.op(JS, a as u8, 0, label.into())
    }
    pub fn call(&mut self, label: &'static str) -> &mut Self {
        self.op(CALL, 0, 0, label.into())
    }
    pub fn ret(&mut self) -> &mut Self {
        self.op(RET, 0, 0, 0.into())
    }
    pub fn push(&mut self, a: R) -> &mut Self {
        self.op(PUSH, a as u8, 0, 0.into())
    }
    pub fn pop(&mut self, a: R) -> &mut Self {
        self.op(POP, a as u8, 0, 0.into())
    }
    pub fn ud(&mut self) -> &mut Self {
        self.op(UD, 0, 0, 0.into())
    }
    pub fn div0(&mut self) -> &mut Self {
        self.op(DIV0, 0, 0, 0.into())
    }
    pub fn tick(&mut self) -> &mut Self {
        self.op(TICK, 0, 0, 0.into())
    }
    pub fn fpset(&mut self, a: R) -> &mut Self {
        self.op(FPSET, a as u8, 0, 0.into())
    }
    pub fn fpget(&mut self, a: R) -> &mut Self {
        self.op(FPGET, a as u8, 0, 0.into())
    }
    /// The bare instruction, numbers and arguments in place.
    pub fn syscall(&mut self) -> &mut Self {
        self.bytes.extend([SYSCALL, 5]);
        self
    }
    /// Call `number` with arguments; clobbers the argument registers.
    pub fn sys<const N: usize>(&mut self, number: u32, arguments: [Word; N]) -> &mut Self {
        for (register, word) in [Rdi, Rsi, Rdx, R10, R8, R9].into_iter().zip(arguments) {
            self.movi(register, word);
        }
        self.movi(Rax, u64::from(number)).syscall()
    }
    /// Ends the program with `status` unless `a` equals `word`. Clobbers `r15`.
    pub fn expect(&mut self, a: R, word: impl Into<Word>, status: u64) -> &mut Self {
        self.movi(R15, word).sub(R15, a);
        let skip = 16 + 16 + 16 + 2;
        let here = BASE + (HEADERS + self.bytes.len()) as u64;
        self.op(JZ, R15 as u8, 0, (here + 16 + skip).into());
        self.movi(Rdi, status).movi(Rax, 231u64).addi(Rax, 0).syscall()
    }
    /// `exit_group(status)`
    pub fn exit(&mut self, status: u64) -> &mut Self {
        self.sys(231, [status.into()])
    }
    /// Writes the string at `label` to standard output.
    pub fn print(&mut self, label: &'static str, len: u64) -> &mut Self {
        self.sys(1, [1.into(), label.into(), len.into()])
    }

    /// Where a label stands; that of data is known when [`elf`](Self::elf) was called.
    pub fn address(&self, label: &str) -> u64 {
        *self.labels.get(label).unwrap_or_else(|| panic!("no label {label}"))
    }

    /// The program as an ELF file.
    pub fn elf(&mut self) -> Vec<u8> {
        let mut body = std::mem::take(&mut self.bytes);
        for (name, bytes) in std::mem::take(&mut self.strings) {
            body.resize(body.len().next_multiple_of(8), 0);
            let at = BASE + (HEADERS + body.len()) as u64;
            assert!(self.labels.insert(name, at).is_none(), "label {name} twice");
            body.extend(bytes);
        }
        for (at, label) in &self.fixups {
            let value = self.labels.get(label).unwrap_or_else(|| panic!("no label {label}"));
            body[*at..*at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let len = (HEADERS + body.len()) as u64;
        assert!(BASE + len < BSS);
        let mut file = elf_header(BASE + HEADERS as u64, 2);
        program_header(&mut file, 7, 0, BASE, len, len);
        program_header(&mut file, 6, 0, BSS, 0, BSS_LEN);
        file.resize(HEADERS, 0);
        file.extend(body);
        file
    }
}

fn elf_header(entry: u64, segments: u16) -> Vec<u8> {
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    file.extend(2u16.to_le_bytes());
    file.extend(62u16.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    for word in [entry, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64, 56, segments, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file
}

fn program_header(file: &mut Vec<u8>, flags: u32, offset: u64, addr: u64, len: u64, mem: u64) {
    file.extend(1u32.to_le_bytes());
    file.extend(flags.to_le_bytes());
    for word in [offset, addr, addr, len, mem, 4096] {
        file.extend(word.to_le_bytes());
    }
}
