//! Crimes in which one thread relies on what another has just taken away.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use core::time::Duration;

use crate::Deed;
use crate::watch::Tell::Place;
use crate::watch::map;

/// See the module.
pub const ALL: &[Deed] = &[
    ("read what another thread unmapped", Place, || {
        let at = map(8192, libc::MAP_PRIVATE) as usize;
        // SAFETY: the mapping is this deed's.
        let unmap = move || unsafe { libc::munmap(at as *mut libc::c_void, 8192) };
        race(at, |at| _ = value(at).load(Ordering::SeqCst), unmap);
    }),
    ("write what another thread made read-only", Place, || {
        let at = map(4096, libc::MAP_PRIVATE) as usize;
        let protect = move || {
            // SAFETY: as above.
            let answer = unsafe { libc::mprotect(at as *mut libc::c_void, 4096, libc::PROT_READ) };
            // From here on nobody writes.
            let before = value(at).load(Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(20));
            if value(at).load(Ordering::SeqCst) != before {
                // SAFETY: says that something is wrong.
                unsafe { libc::_exit(1) };
            }
            answer
        };
        race(at, |at| _ = value(at).fetch_add(1, Ordering::SeqCst), protect);
    }),
    ("write what another thread moved away", Place, || {
        let at = map(4096, libc::MAP_PRIVATE) as usize;
        let away = map(4096, libc::MAP_PRIVATE) as usize;
        let how = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: both mappings are this deed's.
        let remap = move || unsafe {
            let from = at as *mut libc::c_void;
            libc::mremap(from, 4096, 4096, how, away as *mut libc::c_void) as i32
        };
        race(at, |at| _ = value(at).fetch_add(1, Ordering::SeqCst), remap);
    }),
    ("execute what another thread made data", Place, || {
        let at = map(4096, libc::MAP_PRIVATE) as usize;
        // SAFETY: writes a `ret` to the deed's own mapping and makes it code.
        unsafe {
            (at as *mut u8).write(0xc3);
            libc::mprotect(at as *mut libc::c_void, 4096, libc::PROT_READ | libc::PROT_EXEC);
        }
        // SAFETY: the mapping is this deed's.
        let take =
            move || unsafe { libc::mprotect(at as *mut libc::c_void, 4096, libc::PROT_READ) };
        // SAFETY: the code returns at once, as long as it is code.
        race(at, |at| unsafe { core::arch::asm!("call {}", in(reg) at, clobber_abi("C")) }, take);
    }),
];

fn value(at: usize) -> &'static AtomicU32 {
    // SAFETY: a word of the deed's own mapping, or a fault, which is what is looked for.
    unsafe { &*(at as *const AtomicU32) }
}

/// This thread uses `at` for ever; another one waits until it does and takes the page away.
fn race(at: usize, each: impl Fn(usize), take: impl FnOnce() -> i32 + Send + 'static) {
    static TURNS: AtomicUsize = AtomicUsize::new(0);
    let other = std::thread::spawn(move || {
        while TURNS.load(Ordering::SeqCst) < 1000 {
            std::thread::yield_now();
        }
        take();
        std::thread::sleep(Duration::from_secs(5));
        // SAFETY: says that nobody stopped the other thread.
        unsafe { libc::_exit(2) };
    });
    loop {
        each(at);
        TURNS.fetch_add(1, Ordering::SeqCst);
        if other.is_finished() {
            return;
        }
    }
}
