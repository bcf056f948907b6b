//! What the kernel's command line says about the heap, before its first use.
//!
//! | word | as on Linux? | what it does |
//! |---|---|---|
//! | `slab_debug=FZPUQ,name` | yes (`Q` is ours) | debug modes of all caches, or of those named |
//! | `slab_sample=N` | no | every N-th refill of a magazine is served between guard pages |
//! | `slab_harden` | no | free lists encoded, fresh slabs in an order that nobody can guess |

use log::{info, warn};

use super::host::heap;
use super::random;

/// Does what the words say.
pub(crate) fn obey(command_line: &'static [u8]) {
    for word in command_line.split(u8::is_ascii_whitespace) {
        let value = |name| word.strip_prefix(name).and_then(|value| str::from_utf8(value).ok());
        if word == b"slab_harden" {
            let mut secret = [0; 8];
            random::fill(&mut secret);
            heap().harden(u64::from_le_bytes(secret));
            info!("    heap: free lists are encoded and shuffled");
        }
        if let Some(option) = value(&b"slab_debug="[..]) {
            match heap().set_debug(option) {
                Ok(()) => info!("    heap: debug modes {option}"),
                Err(error) => warn!("    heap: slab_debug={option}: {error}"),
            }
        }
        if let Some(every) = value(&b"slab_sample="[..]).and_then(|number| number.parse().ok()) {
            heap().set_sampling(every);
            info!("    heap: every {every}. refill between guard pages");
        }
    }
}
