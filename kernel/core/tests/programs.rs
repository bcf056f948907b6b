//! Programs on the test machine: from start to exit, through everything that is in between.

mod common;

use common::asm::*;
use common::{HostMachine, archive, run, run_with};
use pagoda_kernel_core::{ExitStatus, StartError};

const WRITE: u32 = 1;
const FORK: u32 = 57;
const WAIT4: u32 = 61;

#[test]
fn a_program_writes_and_exits() {
    let program = Asm::new().print("hello", 6).exit(7).data("hello", "hello\n").elf();
    assert_eq!(run(program), (ExitStatus(7), "hello\n".into()));
}

#[test]
fn a_program_that_is_missing_is_an_error() {
    let machine = HostMachine::new(512);
    let status = machine.boot("stdio=raw", archive(&[("etc/x", 0o644, b"")]));
    assert!(matches!(status, Err(StartError::CannotExecute(_))), "{status:?}");
}

#[test]
fn memory_is_zero_and_keeps_what_is_written() {
    let mut asm = Asm::new();
    asm.movi(Rbx, BSS).ld(Rax, Rbx, 0x8000).expect(Rax, 0, 1);
    asm.movi(Rax, 77).st(Rbx, 0x8000, Rax).tick().ld(Rcx, Rbx, 0x8000).expect(Rcx, 77, 2);
    asm.push(Rcx).pop(Rdx).expect(Rdx, 77, 3);
    assert_eq!(run(asm.exit(0).elf()).0, ExitStatus(0));
}

#[test]
fn a_child_sees_its_own_memory_and_is_waited_for() {
    let mut asm = Asm::new();
    asm.movi(Rbx, BSS).movi(Rcx, 5).st(Rbx, 0, Rcx);
    asm.sys(FORK, []).jz(Rax, "child").mov(R12, Rax);
    asm.sys(WAIT4, [(-1).into(), (BSS + 64).into(), 0.into(), 0.into()]);
    asm.sub(R12, Rax).expect(R12, 0, 1);
    asm.movi(Rbx, BSS).ldb(Rcx, Rbx, 65).expect(Rcx, 9, 2);
    asm.ld(Rcx, Rbx, 0).expect(Rcx, 5, 3).exit(0);
    asm.label("child").movi(Rbx, BSS).movi(Rcx, 6).st(Rbx, 0, Rcx).print("c", 1).exit(9);
    assert_eq!(run(asm.data("c", "c").elf()), (ExitStatus(0), "c".into()));
}

#[test]
fn a_null_pointer_ends_a_process_as_on_linux() {
    let mut asm = Asm::new();
    asm.movi(Rbx, 0).ld(Rax, Rbx, 0);
    assert_eq!(run(asm.elf()).0, ExitStatus(139));
    let mut asm = Asm::new();
    asm.div0();
    assert_eq!(run(asm.elf()).0, ExitStatus(136));
    let mut asm = Asm::new();
    asm.ud();
    assert_eq!(run(asm.elf()).0, ExitStatus(132));
}

#[test]
fn bytes_go_through_a_pipe_from_child_to_parent() {
    let mut asm = Asm::new();
    asm.sys(22, [BSS.into()]).movi(Rbx, BSS);
    // r12: read end, r13: write end
    asm.ldb(R12, Rbx, 0).ldb(R13, Rbx, 4);
    asm.sys(FORK, []).jz(Rax, "child");
    // Closes the writer, reads until the end.
    asm.mov(Rdi, R13).movi(Rax, 3).syscall();
    asm.label("more");
    asm.mov(Rdi, R12).movi(Rsi, BSS + 256).movi(Rdx, 3).movi(Rax, 0).syscall();
    asm.jz(Rax, "end").mov(Rdx, Rax).movi(Rdi, 1).movi(Rsi, BSS + 256).movi(Rax, 1).syscall();
    asm.jmp("more").label("end").exit(0);
    asm.label("child");
    asm.mov(Rdi, R13).movi(Rsi, "text").movi(Rdx, 10).movi(Rax, 1).syscall().tick();
    asm.mov(Rdi, R13).movi(Rsi, "text").movi(Rdx, 10).movi(Rax, 1).syscall().exit(0);
    let program = asm.data("text", "0123456789").elf();
    assert_eq!(run(program), (ExitStatus(0), "01234567890123456789".into()));
}

#[test]
fn a_sleep_takes_its_time() {
    let mut asm = Asm::new();
    // clock_gettime(MONOTONIC), nanosleep 2.5 s, clock_gettime
    asm.sys(228, [1.into(), BSS.into()]);
    asm.sys(35, ["span".into(), 0.into()]).expect(Rax, 0, 1);
    asm.sys(228, [1.into(), (BSS + 16).into()]);
    asm.movi(Rbx, BSS).ld(R12, Rbx, 16).ld(R13, Rbx, 0).sub(R12, R13).addi(R12, -2);
    asm.js(R12, "short").exit(0).label("short").exit(2);
    let span: Vec<u8> = [2u64, 500_000_000].iter().flat_map(|w| w.to_le_bytes()).collect();
    assert_eq!(run(asm.data("span", span).elf()).0, ExitStatus(0));
}

#[test]
fn execve_replaces_a_program_and_passes_its_arguments() {
    let mut asm = Asm::new();
    asm.movi(Rbx, BSS).movi(Rcx, "path").st(Rbx, 0, Rcx).movi(Rcx, "arg").st(Rbx, 8, Rcx);
    asm.sys(59, ["path".into(), BSS.into(), 0.into()]).exit(99);
    let first = asm.data("path", "/bin/second\0").data("arg", "xyz\0").elf();
    let mut asm = Asm::new();
    asm.ld(R12, Rsp, 0).expect(R12, 2, 1).ld(Rsi, Rsp, 16);
    asm.movi(Rdi, 1).movi(Rdx, 3).movi(Rax, 1).syscall().exit(0);
    let second = asm.elf();
    let result = run_with(first, &[("bin/second", 0o755, &second)], 4096);
    assert_eq!(result, (ExitStatus(0), "xyz".into()));
}

#[test]
fn a_script_runs_its_interpreter() {
    let mut asm = Asm::new();
    asm.sys(59, ["path".into(), 0.into(), 0.into()]).exit(99);
    let first = asm.data("path", "/bin/script\0").elf();
    let mut asm = Asm::new();
    // argc 3: interpreter, its argument, the script
    asm.ld(R12, Rsp, 0).expect(R12, 3, 1).ld(Rsi, Rsp, 16);
    asm.movi(Rdi, 1).movi(Rdx, 2).movi(Rax, 1).syscall();
    asm.ld(Rsi, Rsp, 24).movi(Rdi, 1).movi(Rdx, 11).movi(Rax, 1).syscall().exit(0);
    let interpreter = asm.elf();
    let files: &[(&str, u32, &[u8])] =
        &[("bin/sh", 0o755, &interpreter), ("bin/script", 0o755, b"#!/bin/sh -e\n")];
    assert_eq!(run_with(first, files, 4096), (ExitStatus(0), "-e/bin/script".into()));
}

#[test]
fn files_that_are_no_programs_are_refused_and_nothing_is_lost() {
    let dynamic = {
        let mut file = Asm::new().exit(0).elf();
        file[64..68].copy_from_slice(&3u32.to_le_bytes());
        file
    };
    let wild = {
        // A segment in the kernel's half.
        let mut file = Asm::new().exit(0).elf();
        file[64 + 16..64 + 24].copy_from_slice(&0xffff_8000_0000_0000u64.to_le_bytes());
        file
    };
    let mut asm = Asm::new();
    for (path, errno, status) in
        [("junk", 8, 1), ("dynamic", 8, 2), ("wild", 8, 3), ("plain", 13, 4), ("nowhere", 2, 5)]
    {
        asm.sys(59, [path.into(), 0.into(), 0.into()]).expect(Rax, -errno, status);
    }
    for path in ["junk", "dynamic", "wild", "plain", "nowhere"] {
        asm.data(path, format!("/{path}\0"));
    }
    let plain = Asm::new().exit(0).elf();
    let files: &[(&str, u32, &[u8])] = &[
        ("junk", 0o755, b"\x7fELFjunk"),
        ("dynamic", 0o755, &dynamic),
        ("wild", 0o755, &wild),
        ("plain", 0o644, &plain),
    ];
    assert_eq!(run_with(asm.exit(0).elf(), files, 4096).0, ExitStatus(0));
}

#[test]
fn what_the_first_process_leaves_behind_ends_with_it() {
    let mut asm = Asm::new();
    for _ in 0..3 {
        asm.sys(FORK, []);
    }
    // Children wait for ever; the first process ends at once.
    asm.sys(39, []).addi(Rax, -1).jz(Rax, "first");
    asm.label("forever").sys(34, []).jmp("forever");
    asm.label("first").tick().tick().print("x", 1).exit(3);
    assert_eq!(run(asm.data("x", "x").elf()), (ExitStatus(3), "x".into()));
}

#[test]
fn more_memory_than_there_is_ends_the_process_and_not_the_kernel() {
    let mut asm = Asm::new();
    asm.sys(FORK, []).jz(Rax, "child");
    asm.sys(WAIT4, [(-1).into(), BSS.into(), 0.into(), 0.into()]);
    asm.movi(Rbx, BSS).ldb(Rcx, Rbx, 0).expect(Rcx, 9, 2).print("lives", 5).exit(0);
    asm.label("child");
    // mmap 64 MiB that nobody has to promise, and touch all of it, with 2 MiB of frames
    asm.sys(9, [0.into(), 0x400_0000.into(), 3.into(), 0x4022.into(), (-1).into(), 0.into()]);
    asm.mov(Rbx, Rax);
    asm.label("touch").st(Rbx, 0, Rbx).addi(Rbx, 4096).jmp("touch");
    let program = asm.data("lives", "lives").elf();
    assert_eq!(run_with(program, &[], 512), (ExitStatus(0), "lives".into()));
}

#[test]
fn the_superuser_says_how_much_memory_is_promised() {
    const MMAP: u32 = 9;
    const PWRITE: u32 = 18;
    let everything = |asm: &mut Asm| {
        asm.sys(
            MMAP,
            [0.into(), 0x100_0000.into(), 3.into(), 0x4022.into(), (-1).into(), 0.into()],
        );
    };
    let mode = |asm: &mut Asm, digit: &'static str, result: i32, status: u64| {
        asm.sys(PWRITE, [3.into(), digit.into(), 1.into(), 0.into()]).expect(Rax, result, status);
    };
    let mut asm = Asm::new();
    asm.sys(2, ["path".into(), 2.into(), 0.into()]).expect(Rax, 3, 1);
    // 16 MiB, which is all there is, and not even reserved: half of it may be promised.
    mode(&mut asm, "2", 1, 2);
    everything(&mut asm);
    asm.expect(Rax, -12, 3);
    mode(&mut asm, "3", -22, 4);
    mode(&mut asm, "0", 1, 5);
    everything(&mut asm);
    asm.js(Rax, "refused");
    mode(&mut asm, "1", 1, 6);
    asm.sys(MMAP, [0.into(), (1_u64 << 44).into(), 3.into(), 0x22.into(), (-1).into(), 0.into()]);
    asm.js(Rax, "refused").exit(0).label("refused").exit(7);
    for digit in ["0", "1", "2", "3"] {
        asm.data(digit, digit);
    }
    asm.data("path", "/proc/sys/vm/overcommit_memory\0");
    assert_eq!(run(asm.elf()).0, ExitStatus(0));
}

#[test]
fn what_was_freed_lazily_goes_before_a_process_does() {
    const SHARED: u64 = 0x10_0000_0000;
    const MINE: u64 = 0x20_0000_0000;
    let touch = |asm: &mut Asm, pages: u64, label: &'static str| {
        let arguments = [MINE.into(), (pages * 4096).into(), 3.into(), 0x32.into()];
        let [addr, len, prot, flags] = arguments;
        asm.sys(9, [addr, len, prot, flags, (-1).into(), 0.into()]);
        asm.movi(Rbx, MINE).movi(Rcx, pages).label(label).st(Rbx, 0, Rcx);
        asm.addi(Rbx, 4096).addi(Rcx, -1).jnz(Rcx, label);
    };
    let mut asm = Asm::new();
    asm.sys(9, [SHARED.into(), 4096.into(), 3.into(), 0x31.into(), (-1).into(), 0.into()]);
    asm.sys(FORK, []).jz(Rax, "child");
    asm.label("wait").movi(Rbx, SHARED).tick().ld(Rcx, Rbx, 0).jz(Rcx, "wait");
    touch(&mut asm, 300, "parent touches");
    asm.movi(Rbx, SHARED).movi(Rcx, 2).st(Rbx, 0, Rcx);
    asm.sys(WAIT4, [(-1).into(), BSS.into(), 0.into(), 0.into()]);
    asm.movi(Rbx, BSS).ldb(Rcx, Rbx, 0).expect(Rcx, 0, 2).ldb(Rcx, Rbx, 1).expect(Rcx, 9, 3);
    asm.exit(0);
    asm.label("child");
    touch(&mut asm, 250, "child touches");
    asm.sys(28, [MINE.into(), (250 * 4096).into(), 8.into()]).expect(Rax, 0, 4);
    asm.movi(Rbx, SHARED).movi(Rcx, 1).st(Rbx, 0, Rcx);
    asm.label("again").tick().ld(Rcx, Rbx, 0).addi(Rcx, -2).jnz(Rcx, "again").exit(9);
    assert_eq!(run_with(asm.elf(), &[], 512).0, ExitStatus(0));
}

#[test]
fn missing_calls_say_so() {
    let mut asm = Asm::new();
    asm.sys(400, []).expect(Rax, -38, 1).sys(u32::MAX, []).expect(Rax, -38, 2);
    asm.movi(Rax, u64::MAX).syscall().expect(Rax, -38, 3);
    assert_eq!(run(asm.exit(0).elf()).0, ExitStatus(0));
}

#[test]
fn standard_input_ends_where_the_control_line_says() {
    let mut asm = Asm::new();
    asm.label("more").sys(0, [0.into(), BSS.into(), 100.into()]).jz(Rax, "end");
    asm.mov(Rdx, Rax).movi(Rdi, 1).movi(Rsi, BSS).movi(Rax, 1).syscall().jmp("more");
    asm.label("end").exit(0);
    let program = asm.elf();
    let machine = HostMachine::new(1024);
    {
        let mut lines = machine.lines.lock().unwrap();
        lines.terminal_in.extend(b"some input");
        lines.control_in.extend(b"eof 10\n");
    }
    let status = machine.boot("stdio=raw", archive(&[("bin/tour", 0o755, &program)]));
    assert_eq!(status, Ok(ExitStatus(0)));
    assert_eq!(machine.output(), "some input");
    let _ = WRITE;
}
