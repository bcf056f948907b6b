//! Real programs, threads, fork, and mistakes, with the shared object loaded.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks)] // forks, and makes mistakes on purpose

mod common;

use std::ffi::{c_int, c_void};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{crime, function, inside, library, output, preloaded};

unsafe extern "C" {
    fn malloc(bytes: usize) -> *mut c_void;
    fn free(block: *mut c_void);
    fn fork() -> c_int;
    fn waitpid(child: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn _exit(status: c_int) -> !;
}

#[test]
fn the_shared_object_needs_the_c_library_alone() {
    let listed = Command::new("ldd").arg(library()).output().expect("ldd runs");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("libc.so"), "{listed}");
    for heavy in ["libgcc_s", "libm.", "libstdc++", "libpthread"] {
        assert!(!listed.contains(heavy), "{listed}");
    }
}

#[test]
fn the_static_library_links_into_a_c_program() {
    let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let source = directory.join("static.c");
    let program = directory.join("static");
    let text = "#include <stdlib.h>\n#include <malloc.h>\n#include <stdio.h>\n\
        int main(void) { char *p = malloc(40); p[39] = 1; printf(\"%zu\", malloc_usable_size(p));\n\
        free(p); return 0; }\n";
    std::fs::write(&source, text).expect("can write");
    for flags in [&["-static"][..], &[]] {
        let archive = library().with_extension("a");
        let mut compiler = Command::new("gcc");
        compiler.arg("-O0").args(flags).arg("-o").arg(&program).arg(&source).arg(archive);
        let linked = compiler.output().expect("gcc runs");
        assert!(linked.status.success(), "{}", String::from_utf8_lossy(&linked.stderr));
        let run = Command::new(&program).output().expect("runs");
        assert_eq!(String::from_utf8_lossy(&run.stdout), "48");
        assert!(run.status.success());
    }
}

#[test]
fn shells_and_interpreters_run() {
    assert!(output("ls", &["-l", "/"]).contains("etc"));
    assert_eq!(
        output(
            "bash",
            &[
                "-c",
                "for i in 1 2 3; do (echo $i | cat) & done; wait; x=$(seq 9 | sort -r); echo ${#x}"
            ]
        )
        .lines()
        .count(),
        4
    );
    assert_eq!(
        output("perl", &["-e", "%h = map { $_ => \"x$_\" } 1..50000; print scalar keys %h"]),
        "50000"
    );
    let python = "import json, threading, subprocess\n\
        d = {str(i): list(range(i % 50)) for i in range(20000)}\n\
        ts = [threading.Thread(target=lambda: json.loads(json.dumps(d))) for _ in range(4)]\n\
        [t.start() for t in ts]; [t.join() for t in ts]\n\
        print(subprocess.run(['echo', 'child'], capture_output=True).stdout.decode().strip(), len(d))";
    assert_eq!(output("python3", &["-c", python]), "child 20000\n");
}

#[test]
fn compilers_and_git_run() {
    let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let source = directory.join("throws.cpp");
    let program = directory.join("throws");
    // A program in C++ that runs out of memory, and says how it learnt of it.
    let text = "#include <new>\n#include <cstdio>\n#include <vector>\n#include <string>\n\
        static int called = 0;\n\
        static void handler() { if (++called == 3) std::set_new_handler(nullptr); }\n\
        int main() { std::set_new_handler(handler);\n\
        std::vector<std::string> v; for (int i = 0; i < 10000; i++) v.push_back(std::string(i % 99, 'x'));\n\
        volatile size_t huge = ~size_t(0) / 4;\n\
        try { char *p = new char[huge]; std::printf(\"%p\", (void *)p); }\n\
        catch (const std::bad_alloc &) { std::printf(\"caught after %d\", called); } }\n";
    std::fs::write(&source, text).expect("can write");
    let paths = [source.to_str(), program.to_str()].map(|path| path.expect("plain paths"));
    output("g++", &["-O2", "-o", paths[1], paths[0]]);
    assert_eq!(output(paths[1], &[]), "caught after 3");
    assert!(output("git", &["--version"]).contains("git"));
    let there = env!("CARGO_MANIFEST_DIR");
    let _ = preloaded("git").args(["-C", there, "log", "--oneline", "-20"]).output().expect("runs");
}

#[test]
fn threads_come_and_go_and_the_process_forks_meanwhile() {
    if !inside("threads_come_and_go_and_the_process_forks_meanwhile") {
        return;
    }
    static DONE: AtomicBool = AtomicBool::new(false);
    let work = |seed: usize| {
        let mut held: Vec<Vec<u8>> = Vec::new();
        for round in 0..3000 {
            held.push(vec![seed as u8; (round * 37 + seed * 101) % 3000 + 1]);
            if held.len() > 100 {
                let old = held.swap_remove(round % 100);
                assert!(old.iter().all(|&byte| byte == seed as u8));
            }
        }
        held
    };
    let threads: Vec<_> = (0..8)
        .map(|seed| {
            std::thread::spawn(move || {
                while !DONE.load(Ordering::Relaxed) {
                    // What one thread made, another frees.
                    let made = std::thread::spawn(move || work(seed)).join().expect("works");
                    drop(made);
                }
            })
        })
        .collect();
    let mine = work(99);
    for _ in 0..40 {
        unsafe {
            let child = fork();
            assert!(child >= 0);
            if child == 0 {
                let mut blocks = Vec::new();
                for bytes in (0..400).map(|n| n * n) {
                    let block = malloc(bytes);
                    block.cast::<u8>().write_bytes(1, bytes);
                    blocks.push(block);
                }
                blocks.into_iter().for_each(|block| free(block));
                drop(mine);
                _exit(7);
            }
            let mut status = 0;
            assert_eq!(waitpid(child, &mut status, 0), child);
            assert_eq!(status, 7 << 8, "the child ended by signal {}", status & 127);
        }
    }
    DONE.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().expect("works"));
}

#[test]
fn memory_is_back_with_the_system_after_a_burst() {
    if !inside("memory_is_back_with_the_system_after_a_burst") {
        return;
    }
    let resident = || {
        let text = std::fs::read_to_string("/proc/self/statm").expect("there is a /proc");
        text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("a number")
            * 4096
    };
    let before = resident();
    let mut blocks = Vec::with_capacity(200_000);
    let mut held = 0;
    while held < 100 << 20 {
        let bytes = 16 + (blocks.len() * 7919) % 1800;
        let block = unsafe { malloc(bytes) };
        unsafe { block.cast::<u8>().write_bytes(1, bytes) };
        held += bytes;
        blocks.push(block);
    }
    assert!(resident() > before + (95 << 20));
    blocks.into_iter().for_each(|block| unsafe { free(block) });
    let left = resident().saturating_sub(before);
    assert!(left < 10 << 20, "{left} bytes are left");
}

fn must_abort(test: &str, message: &str, commit: impl FnOnce()) {
    let Some(run) = crime(test) else { return commit() };
    let stderr = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.signal(), Some(6), "{stderr}");
    assert!(stderr.contains(message), "{stderr}");
}

#[test]
fn a_double_free_aborts_with_its_name() {
    must_abort("a_double_free_aborts_with_its_name", "pagoda-malloc: double free: 0x", || unsafe {
        let block = std::hint::black_box(malloc(100));
        free(block);
        free(std::hint::black_box(block));
    });
}

#[test]
fn an_interior_free_aborts_with_its_name() {
    must_abort("an_interior_free_aborts_with_its_name", "not the start of a block", || unsafe {
        free(std::hint::black_box(malloc(100)).wrapping_byte_add(16));
    });
}

#[test]
fn a_foreign_free_aborts_with_its_name() {
    must_abort("a_foreign_free_aborts_with_its_name", "malloc never returned", || unsafe {
        let mut local = [0_u64; 32];
        free(local.as_mut_ptr().cast());
        std::hint::black_box(&mut local);
    });
}

#[test]
fn the_loaded_malloc_is_ours() {
    if inside("the_loaded_malloc_is_ours") {
        let _: unsafe extern "C" fn(*mut c_void, usize) = unsafe { function("free_sized") };
    }
}
