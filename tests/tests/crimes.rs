//! Every crime ends as on Linux, and the kernel lives on.

use std::path::PathBuf;

use pagoda_tests::{in_guest, on_linux};

#[test]
#[ignore = "boots a machine"]
fn crimes_end_as_on_linux_and_the_kernel_lives() {
    let mill = std::env::var("PAGODA_MILL").expect("run by `cargo xtask test`");
    let program = PathBuf::from(mill).with_file_name("crimes");
    let program = program.to_str().unwrap();
    let expected = on_linux(&[program], b"");
    let count = expected.out.lines().count();
    assert!(count > 170, "{} lines: {}", count, expected.err);
    for cpus in ["--smp=1", "--smp=4"] {
        let found = in_guest(&[cpus], &[program], b"");
        assert_eq!(found.status, 0, "{}", found.err);
        for (found, expected) in found.out.lines().zip(expected.out.lines()) {
            assert_eq!(found, expected, "(found, on Linux)");
        }
        assert_eq!(found.out.lines().count(), count);
    }
}
