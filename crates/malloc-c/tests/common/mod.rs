//! Builds the shared object and runs programs with it.

use std::ffi::{OsStr, c_char, c_void};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

const LOADED: &str = "PAGODA_MALLOC_LOADED";

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// Path of the shared object, built if need be.
pub fn library() -> &'static PathBuf {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("library");
        let built = Command::new(env!("CARGO"))
            .args(["build", "--release", "--quiet", "-p", "pagoda-malloc-c", "--target-dir"])
            .arg(&target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env_remove("LD_PRELOAD")
            .status()
            .expect("cargo runs");
        assert!(built.success());
        target.join("release/libpagoda_malloc.so")
    })
}

/// A program with the shared object loaded.
pub fn preloaded(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("LD_PRELOAD", library()).env(LOADED, "1");
    command
}

/// The C program of these tests, `tests/NAME.c`: one for each file of tests.
#[allow(dead_code)]
pub fn program(name: &str) -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| compiled(name, name, &[]))
}

/// `tests/NAME.c`, compiled under another name, and linked with more.
#[allow(dead_code)]
pub fn compiled(name: &str, to: &str, more: &[&str]) -> PathBuf {
    let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(to);
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/{name}.c"));
    let mut compiler = Command::new("gcc");
    compiler.args(["-O1", "-pthread", "-o"]).arg(&program).arg(source).args(more);
    assert!(compiler.status().expect("gcc runs").success());
    program
}

/// Runs a program with the shared object and gives what it wrote.
#[allow(dead_code)]
pub fn output(program: &str, args: &[&str]) -> String {
    let Output { status, stdout, stderr } =
        preloaded(program).args(args).output().expect("the program is there");
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{program}: {status}: {stderr}");
    String::from_utf8_lossy(&stdout).into_owned()
}

/// Runs this very test again with the shared object; true in that second run.
#[allow(dead_code)]
pub fn inside(test: &str) -> bool {
    if std::env::var_os(LOADED).is_some() {
        return true;
    }
    let run = again(test);
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{test}: {}\n{out}{err}", run.status);
    assert!(out.contains("1 passed"), "{test} was not found\n{out}");
    false
}

/// Runs this very test again with the shared object; nothing in that second run, else what it did.
#[allow(dead_code)]
pub fn crime(test: &str) -> Option<Output> {
    std::env::var_os(LOADED).is_none().then(|| again(test))
}

fn again(test: &str) -> Output {
    let me = std::env::current_exe().expect("a test knows its own path");
    preloaded(me).args([test, "--exact", "--test-threads=1"]).output().expect("runs again")
}

/// A function of the shared object (or of whatever library has it).
///
/// # Safety
/// The function has that type.
#[allow(dead_code)]
pub unsafe fn function<T: Copy>(name: &str) -> T {
    assert_eq!(size_of::<T>(), size_of::<*mut c_void>());
    let name = std::ffi::CString::new(name).expect("names have no zero");
    // SAFETY: asks the dynamic linker; the result has the size of a function pointer.
    unsafe {
        let address = dlsym(std::ptr::null_mut(), name.as_ptr());
        assert!(!address.is_null(), "{name:?} is missing");
        std::mem::transmute_copy(&address)
    }
}
