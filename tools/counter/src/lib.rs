//! A QEMU plugin (interface version 1, QEMU 4.2 and later) that counts how often each guest
//! instruction runs between two marks. `cargo xtask bench linux` loads it:
//! `-plugin libpagoda_counter.so,out=FILE`.
//!
//! The marks are functions at fixed addresses that `user/mmbench` calls: entering
//! `MARKS + 16 * case` begins a case, entering `MARKS + END` ends it. For each instruction that ran
//! between them one line is written:
//!
//! ```text
//! CASE PC COUNT KIND        (numbers in decimal, hexadecimal, decimal)
//! ```
//!
//! where KIND is a letter for instructions that cost more than their count says: `l` locked, `i`
//! INVLPG, `c` a write to CR3, `m` WRMSR, `p` port I/O, `-` any other. `.` alone ends a case.
//!
//! Invariants: the plugin only runs with `-icount`, where one thread of QEMU runs all CPUs, so that
//! its one state needs no lock (*one-thread*). A counter is never freed, so that translated code
//! may add to it at any time (*counters-stay*).
#![allow(unsafe_code)] // the interface is C

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::io::{BufWriter, Write};

/// Where the marks are, as `user/mmbench` has them.
const MARKS: u64 = 0x1234_0000;
const END: u64 = 0x800;
const MARK_BYTES: u64 = 16;

/// The version of the interface that this is written for.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)] // QEMU's name
pub static qemu_plugin_version: c_int = 1;

#[repr(C)]
struct Block([u8; 0]);
#[repr(C)]
struct Insn([u8; 0]);

unsafe extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, call: extern "C" fn(u64, *mut Block));
    fn qemu_plugin_tb_n_insns(block: *const Block) -> usize;
    fn qemu_plugin_tb_get_insn(block: *const Block, index: usize) -> *mut Insn;
    fn qemu_plugin_insn_vaddr(insn: *const Insn) -> u64;
    fn qemu_plugin_insn_data(insn: *const Insn) -> *const u8;
    fn qemu_plugin_insn_size(insn: *const Insn) -> usize;
    fn qemu_plugin_register_vcpu_insn_exec_inline(
        insn: *mut Insn,
        operation: c_int,
        counter: *mut c_void,
        add: u64,
    );
    fn qemu_plugin_register_vcpu_insn_exec_cb(
        insn: *mut Insn,
        call: extern "C" fn(c_uint, *mut c_void),
        flags: c_int,
        data: *mut c_void,
    );
}

/// The counter of one instruction.
struct Counter {
    pc: u64,
    count: *mut u64,
    kind: u8,
}

struct State {
    counters: Vec<Counter>,
    by_pc: HashMap<(u64, u8), usize>,
    case: Option<u64>,
    out: BufWriter<File>,
}

static mut STATE: Option<State> = None;

fn state() -> Option<&'static mut State> {
    // SAFETY: *one-thread*, and no caller keeps the reference beyond its callback.
    unsafe { (*(&raw mut STATE)).as_mut() }
}

/// Called once by QEMU.
///
/// # Safety
/// `words` holds `count` C strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    _info: *const c_void,
    count: c_int,
    words: *const *const c_char,
) -> c_int {
    let out = (0..count as usize).find_map(|index| {
        // SAFETY: the caller's promise.
        let word = unsafe { CStr::from_ptr(*words.add(index)) };
        File::create(word.to_str().ok()?.strip_prefix("out=")?).ok()
    });
    let Some(out) = out else { return 1 };
    let out = BufWriter::new(out);
    let fresh = State { counters: Vec::new(), by_pc: HashMap::new(), case: None, out };
    // SAFETY: *one-thread*; no callback is registered yet.
    unsafe {
        *(&raw mut STATE) = Some(fresh);
        qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    }
    0
}

/// Called whenever QEMU translates a block of guest code.
extern "C" fn translated(_id: u64, block: *mut Block) {
    let Some(state) = state() else { return };
    // SAFETY: QEMU's own objects, alive during this call; an instruction's bytes are as many as it
    // says.
    unsafe {
        for index in 0..qemu_plugin_tb_n_insns(block) {
            let insn = qemu_plugin_tb_get_insn(block, index);
            let pc = qemu_plugin_insn_vaddr(insn);
            if (MARKS..=MARKS + END).contains(&pc) && pc % MARK_BYTES == 0 {
                let data = (pc - MARKS) as *mut c_void;
                qemu_plugin_register_vcpu_insn_exec_cb(insn, marked, 0, data);
                continue;
            }
            let size = qemu_plugin_insn_size(insn);
            let bytes = std::slice::from_raw_parts(qemu_plugin_insn_data(insn), size);
            let counter = state.counter(pc, kind(bytes));
            qemu_plugin_register_vcpu_insn_exec_inline(insn, 0, counter.cast(), 1);
        }
    }
}

impl State {
    fn counter(&mut self, pc: u64, kind: u8) -> *mut u64 {
        let counters = &mut self.counters;
        let index = *self.by_pc.entry((pc, kind)).or_insert_with(|| {
            // *counters-stay*
            let count = Box::into_raw(Box::new(0));
            counters.push(Counter { pc, count, kind });
            counters.len() - 1
        });
        self.counters[index].count
    }

    fn begin(&mut self, case: u64) {
        for counter in &self.counters {
            // SAFETY: *one-thread*, *counters-stay*.
            unsafe { *counter.count = 0 };
        }
        self.case = Some(case);
    }

    fn end(&mut self) {
        let Some(case) = self.case.take() else { return };
        for counter in &self.counters {
            // SAFETY: as in `begin`.
            let count = unsafe { *counter.count };
            if count != 0 {
                let kind = char::from(counter.kind);
                let _ = writeln!(self.out, "{case} {:x} {count} {kind}", counter.pc);
            }
        }
        let _ = writeln!(self.out, ".");
        let _ = self.out.flush();
    }
}

/// Called when a mark is entered.
extern "C" fn marked(_cpu: c_uint, offset: *mut c_void) {
    let (Some(state), offset) = (state(), offset as u64) else { return };
    if offset == END { state.end() } else { state.begin(offset / MARK_BYTES) }
}

/// What kind of instruction these bytes are.
fn kind(bytes: &[u8]) -> u8 {
    const PREFIXES: [u8; 11] = [0xf0, 0xf2, 0xf3, 0x66, 0x67, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65];
    let mut rest = bytes;
    let mut locked = false;
    while let [first, more @ ..] = rest {
        // The last prefixes are REX.
        if !PREFIXES.contains(first) && first & 0xf0 != 0x40 {
            break;
        }
        locked |= *first == 0xf0;
        rest = more;
    }
    match rest {
        _ if locked => b'l',
        // An exchange with memory locks by itself.
        [0x86 | 0x87, modrm, ..] if modrm >> 6 != 3 => b'l',
        [0x0f, 0x01, modrm, ..] if modrm >> 3 & 7 == 7 && modrm >> 6 != 3 => b'i',
        [0x0f, 0x22, modrm, ..] if modrm >> 3 & 7 == 3 => b'c',
        [0x0f, 0x30, ..] => b'm',
        [0xe4..=0xe7 | 0xec..=0xef | 0x6c..=0x6f, ..] => b'p',
        _ => b'-',
    }
}

#[cfg(test)]
mod tests {
    use super::kind;

    #[test]
    fn dear_instructions_are_known_by_their_bytes() {
        assert_eq!(kind(&[0xf0, 0x48, 0x0f, 0xb1, 0x0f]), b'l'); // lock cmpxchg
        assert_eq!(kind(&[0x48, 0x87, 0x07]), b'l'); // xchg with memory
        assert_eq!(kind(&[0x48, 0x87, 0xc7]), b'-'); // xchg of registers
        assert_eq!(kind(&[0x0f, 0x01, 0x38]), b'i'); // invlpg
        assert_eq!(kind(&[0x0f, 0x01, 0xf8]), b'-'); // swapgs
        assert_eq!(kind(&[0x0f, 0x22, 0xd8]), b'c'); // mov cr3, rax
        assert_eq!(kind(&[0x0f, 0x30]), b'm');
        assert_eq!(kind(&[0xee]), b'p');
    }
}
