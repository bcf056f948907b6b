//! The archive reader over arbitrary bytes: entries that lie inside the archive, or an error that
//! can be printed; and an end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pagoda_kernel_fs::cpio::Cpio;

fuzz_target!(|data: &[u8]| {
    // An entry takes a header at least, so there cannot be more than this.
    let limit = data.len() / 100 + 2;
    for (count, entry) in Cpio::new(data).enumerate() {
        assert!(count <= limit, "the reader ends");
        match entry {
            Ok(entry) => assert!(entry.data.len() <= data.len()),
            Err(error) => {
                let _ = error.to_string();
                break;
            }
        }
    }
});
