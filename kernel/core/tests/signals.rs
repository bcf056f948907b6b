//! Signals, threads, the terminal and `/proc` on the test machine.

mod common;

use common::asm::*;
use common::{HostMachine, archive, run};
use pagoda_kernel_core::ExitStatus;

const SIGACTION: u32 = 13;
const SIGRETURN: u32 = 15;
const SA_SIGINFO_RESTORER: u64 = 4 | 0x0400_0000;
const SA_RESTART: u64 = 0x1000_0000;

/// The structure that `rt_sigaction` wants, with a handler and a restorer to be filled in.
fn install(asm: &mut Asm, signal: u64, handler: &'static str, flags: u64) {
    asm.movi(Rbx, BSS + 0x9000).movi(Rcx, handler).st(Rbx, 0, Rcx);
    asm.movi(Rcx, SA_SIGINFO_RESTORER | flags).st(Rbx, 8, Rcx);
    asm.movi(Rcx, "restorer").st(Rbx, 16, Rcx).movi(Rcx, 0).st(Rbx, 24, Rcx);
    asm.sys(SIGACTION, [signal.into(), (BSS + 0x9000).into(), 0.into(), 8.into()]);
    asm.expect(Rax, 0, 90);
}

fn restorer(asm: &mut Asm) {
    asm.label("restorer").sys(SIGRETURN, []);
}

#[test]
fn a_handler_mends_a_fault_and_the_write_counts() {
    let mut asm = Asm::new();
    install(&mut asm, 11, "handler", 0);
    // A page that is not mapped, at a fixed address; floating-point state and registers to keep.
    asm.movi(R8, 0x1111).movi(R9, 0x2222).movi(R14, 0x3333).fpset(R14);
    asm.movi(Rbx, 0x1000_0000).movi(Rcx, 7).st(Rbx, 0x10, Rcx).ld(Rdx, Rbx, 0x10);
    asm.expect(Rdx, 7, 1).expect(R8, 0x1111, 2).expect(R9, 0x2222, 3);
    asm.fpget(Rcx).expect(Rcx, 0x3333, 4).exit(0);
    asm.label("handler");
    // rdi 11, si_code MAPERR, si_addr, cr2 in the frame; clean floating-point state
    asm.expect(Rdi, 11, 11).mov(R12, Rsi).mov(R13, Rdx);
    asm.ldb(Rcx, R12, 8).expect(Rcx, 1, 12);
    asm.ld(Rcx, R12, 16).expect(Rcx, 0x1000_0010, 13);
    asm.ld(Rcx, R13, 40 + 8 * 22).expect(Rcx, 0x1000_0010, 14);
    asm.fpget(Rcx).expect(Rcx, 0, 15).movi(Rcx, 99).fpset(Rcx);
    asm.movi(R8, 0).movi(R9, 0).movi(R14, 0);
    asm.sys(9, [0x1000_0000.into(), 4096.into(), 3.into(), 0x32.into(), (-1).into(), 0.into()]);
    asm.expect(Rax, 0x1000_0000, 16).ret();
    restorer(&mut asm);
    assert_eq!(run(asm.elf()).0, ExitStatus(0));
}

#[test]
fn a_fault_without_room_for_a_frame_ends_the_process() {
    let mut asm = Asm::new();
    install(&mut asm, 11, "handler", 0);
    asm.movi(Rsp, 0x2000_0000).movi(Rbx, 0).ld(Rcx, Rbx, 0).exit(1);
    asm.label("handler").exit(2);
    restorer(&mut asm);
    assert_eq!(run(asm.elf()).0, ExitStatus(139));
}

/// Reads from an empty pipe while an alarm goes off; the child writes later.
fn interrupted_read(flags: u64) -> ExitStatus {
    let mut asm = Asm::new();
    install(&mut asm, 14, "handler", flags);
    asm.sys(22, [BSS.into()]).movi(Rbx, BSS).ldb(R12, Rbx, 0).ldb(R13, Rbx, 4);
    asm.sys(57, []).jz(Rax, "child");
    asm.sys(37, [1.into()]);
    asm.mov(Rdi, R12).movi(Rsi, BSS + 64).movi(Rdx, 8).movi(Rax, 0).syscall();
    asm.mov(R14, Rax).movi(Rbx, BSS).ld(Rcx, Rbx, 128).expect(Rcx, 1, 50);
    asm.addi(R14, 4).jz(R14, "eintr").addi(R14, -5).jz(R14, "one").exit(51);
    asm.label("eintr").exit(4).label("one").exit(1);
    asm.label("child").sys(35, ["span".into(), 0.into()]);
    asm.mov(Rdi, R13).movi(Rsi, BSS).movi(Rdx, 1).movi(Rax, 1).syscall().exit(0);
    asm.label("handler").movi(Rbx, BSS).ld(Rcx, Rbx, 128).addi(Rcx, 1).st(Rbx, 128, Rcx).ret();
    restorer(&mut asm);
    let span: Vec<u8> = [3u64, 0].iter().flat_map(|w| w.to_le_bytes()).collect();
    run(asm.data("span", span).elf()).0
}

#[test]
fn a_read_is_interrupted_or_restarted_as_the_handler_asks() {
    assert_eq!(interrupted_read(0), ExitStatus(4));
    assert_eq!(interrupted_read(SA_RESTART), ExitStatus(1));
}

#[test]
fn a_thread_shares_memory_and_tells_when_it_is_gone() {
    let mut asm = Asm::new();
    // clone: VM FS FILES SIGHAND THREAD SYSVSEM SETTLS PARENT_SETTID CHILD_CLEARTID
    asm.movi(Rbx, BSS).movi(Rcx, 0x7777).st(Rbx, 0x2000, Rcx);
    asm.sys(
        56,
        [
            0x3d_0f00.into(),
            (BSS + 0x8000).into(),
            (BSS + 8).into(),
            (BSS + 8).into(),
            (BSS + 0x2000).into(),
        ],
    );
    asm.jz(Rax, "thread").mov(R12, Rax);
    // futex(WAIT) until the word is zero
    asm.label("join").movi(Rbx, BSS).ld(Rdx, Rbx, 8).jz(Rdx, "joined");
    asm.movi(Rdi, BSS + 8).movi(Rsi, 0).movi(R10, 0).movi(Rax, 202).syscall().jmp("join");
    asm.label("joined").ld(Rcx, Rbx, 0).expect(Rcx, 0x7777, 2);
    asm.sys(39, []).sub(Rax, R12).jz(Rax, "same").exit(0).label("same").exit(3);
    asm.label("thread").tlsld(Rcx, 0).movi(Rbx, BSS).st(Rbx, 0, Rcx).tick().tick();
    asm.sys(60, [0.into()]);
    assert_eq!(run(asm.elf()).0, ExitStatus(0));
}

#[test]
fn exit_group_ends_all_threads() {
    let mut asm = Asm::new();
    asm.sys(56, [0x1_0f00.into(), (BSS + 0x8000).into(), 0.into(), 0.into(), 0.into()]);
    asm.jz(Rax, "thread").label("wait").sys(34, []).jmp("wait");
    asm.label("thread").exit(23);
    assert_eq!(run(asm.elf()).0, ExitStatus(23));
}

#[test]
fn execve_by_the_first_thread_ends_the_others() {
    let mut asm = Asm::new();
    asm.ld(Rcx, Rsp, 0).jz(Rcx, "second").addi(Rcx, -2).jz(Rcx, "second");
    asm.sys(56, [0x1_0f00.into(), (BSS + 0x8000).into(), 0.into(), 0.into(), 0.into()]);
    asm.jz(Rax, "thread").tick();
    asm.movi(Rbx, BSS).movi(Rcx, "path").st(Rbx, 0, Rcx).st(Rbx, 8, Rcx);
    asm.sys(59, ["path".into(), BSS.into(), 0.into()]).exit(99);
    asm.label("thread").sys(34, []).jmp("thread");
    asm.label("second").exit(5);
    assert_eq!(run(asm.data("path", "/bin/tour\0").elf()).0, ExitStatus(5));
}

#[test]
fn a_child_that_stops_and_goes_on_is_reported() {
    let mut asm = Asm::new();
    asm.sys(57, []).jz(Rax, "child").mov(R12, Rax);
    asm.mov(Rdi, R12).movi(Rsi, BSS).movi(Rdx, 2).movi(R10, 0).movi(Rax, 61).syscall();
    asm.movi(Rbx, BSS).ld(Rcx, Rbx, 0).expect(Rcx, 0x137f, 1);
    asm.mov(Rdi, R12).movi(Rsi, 18).movi(Rax, 62).syscall();
    asm.mov(Rdi, R12).movi(Rsi, BSS).movi(Rdx, 8).movi(R10, 0).movi(Rax, 61).syscall();
    asm.movi(Rbx, BSS).ld(Rcx, Rbx, 0).expect(Rcx, 0xffff, 2);
    asm.mov(Rdi, R12).movi(Rsi, BSS).movi(Rdx, 0).movi(R10, 0).movi(Rax, 61).syscall();
    asm.movi(Rbx, BSS).ld(Rcx, Rbx, 0).expect(Rcx, 0x0600, 3).exit(0);
    asm.label("child").sys(39, []).mov(Rdi, Rax).movi(Rsi, 19).movi(Rax, 62).syscall();
    asm.sys(35, ["span".into(), 0.into()]).exit(6);
    let span: Vec<u8> = [1u64, 0].iter().flat_map(|w| w.to_le_bytes()).collect();
    assert_eq!(run(asm.data("span", span).elf()).0, ExitStatus(0));
}

#[test]
fn the_terminal_interrupts_the_program_in_front() {
    let mut asm = Asm::new();
    asm.print("ready", 6);
    asm.label("more").sys(0, [0.into(), BSS.into(), 64.into()]).mov(Rdx, Rax);
    asm.movi(Rdi, 1).movi(Rsi, BSS).movi(Rax, 1).syscall().jmp("more");
    let program = asm.data("ready", "ready\n").elf();
    let machine = HostMachine::new(1024);
    machine.lines.lock().unwrap().terminal_in.extend(b"abx\x7fc\r\x03");
    let status = machine.boot("stdio=tty", archive(&[("bin/tour", 0o755, &program)]));
    assert_eq!(status, Ok(ExitStatus(130)));
    let output = machine.output();
    // Echoed, erased and interrupted by the line discipline; the line itself was flushed.
    assert_eq!(output, "ready\r\nabx\u{8} \u{8}c\r\n^C");
}

#[test]
fn proc_tells_about_the_process() {
    let mut asm = Asm::new();
    for path in ["maps", "stat", "status", "meminfo", "stats", "buddy", "limits"] {
        asm.sys(2, [path.into(), 0.into()]).js(Rax, "bad").mov(R12, Rax);
        asm.mov(Rdi, R12).movi(Rsi, BSS).movi(Rdx, 8192).movi(Rax, 0).syscall();
        asm.mov(Rdx, Rax).movi(Rdi, 1).movi(Rsi, BSS).movi(Rax, 1).syscall();
    }
    asm.exit(0).label("bad").exit(1);
    asm.data("maps", "/proc/self/maps\0").data("stat", "/proc/1/stat\0");
    asm.data("status", "/proc/self/task/1/status\0").data("meminfo", "/proc/meminfo\0");
    asm.data("stats", "/proc/stat\0").data("buddy", "/proc/buddyinfo\0");
    let (status, text) = run(asm.data("limits", "/proc/self/limits\0").elf());
    assert_eq!(status, ExitStatus(0));
    for part in [
        "[stack]",
        "/bin/tour",
        "1 (tour) R 0 1 1",
        "Threads:\t1",
        "MemTotal:",
        "cpu ",
        "Node 0",
        "Max open files",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
}

/// A program that does a bit of everything, as the subject of failing allocations.
fn busy() -> Vec<u8> {
    let mut asm = Asm::new();
    asm.sys(22, [BSS.into()]).sys(57, []).jz(Rax, "child");
    asm.sys(9, [0.into(), 0x10_0000.into(), 3.into(), 0x22.into(), (-1).into(), 0.into()]);
    asm.sys(2, ["file".into(), 0o102.into(), 0o644.into()]).mov(R12, Rax);
    asm.mov(Rdi, R12).movi(Rsi, BSS).movi(Rdx, 5000).movi(Rax, 1).syscall();
    asm.sys(61, [(-1).into(), 0.into(), 0.into(), 0.into()]).exit(0);
    asm.label("child").sys(59, ["second".into(), 0.into(), 0.into()]).exit(1);
    asm.data("file", "/tmp/file\0").data("second", "/bin/second\0").elf()
}

#[test]
fn whichever_frame_is_refused_nothing_is_lost() {
    let second = Asm::new().exit(0).elf();
    let program = busy();
    let mut done = false;
    for refused in 0..400 {
        let machine = HostMachine::new(1024);
        machine.emu.fail_after(Some(refused));
        let files: &[(&str, u32, &[u8])] =
            &[("bin/tour", 0o755, &program), ("bin/second", 0o755, &second)];
        let status = machine.boot("stdio=raw", archive(files));
        if machine.emu.arena().failure_pending() {
            assert_eq!(status, Ok(ExitStatus(0)));
            done = true;
            break;
        }
    }
    assert!(done, "the program never ran without a refusal");
}

#[test]
fn whichever_record_is_refused_nothing_is_lost() {
    let second = Asm::new().exit(0).elf();
    let program = busy();
    for refused in 0..600 {
        let machine = HostMachine::new(1024);
        let files: &[(&str, u32, &[u8])] =
            &[("bin/tour", 0o755, &program), ("bin/second", 0o755, &second)];
        pagoda_vm::fallible::host::fail_after(Some(refused));
        let _ = machine.boot("stdio=raw", archive(files));
    }
}
