//! Statistics and tuning, in glibc's words.

use core::ffi::{CStr, c_int, c_void};
use core::fmt::{self, Write};

use pagoda_malloc_core::{Stats, linux, process};

use crate::weak::{EINVAL, fputs};

/// `struct mallinfo2`: bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Mallinfo2 {
    arena: usize,
    ordblks: usize,
    smblks: usize,
    hblks: usize,
    hblkhd: usize,
    usmblks: usize,
    fsmblks: usize,
    uordblks: usize,
    fordblks: usize,
    keepcost: usize,
}

/// `struct mallinfo`: the same, too narrow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Mallinfo {
    fields: [c_int; 10],
}

fn info(stats: &Stats) -> Mallinfo2 {
    let small = stats.slab_bytes();
    let idle = stats.pool.dirty as usize * pagoda_malloc_core::UNIT_BYTES;
    Mallinfo2 {
        arena: small + idle + stats.medium.live + stats.medium.dirty,
        ordblks: stats.pool.dirty as usize,
        hblks: stats.large_count,
        hblkhd: stats.large_bytes,
        uordblks: small + stats.medium.live,
        fordblks: idle + stats.medium.dirty,
        keepcost: idle,
        ..Mallinfo2::default()
    }
}

/// `struct mallinfo2 mallinfo2(void)`. Blocks of a slab count as used as long as the slab is.
#[unsafe(no_mangle)]
pub extern "C" fn mallinfo2() -> Mallinfo2 {
    info(&process::stats())
}

/// `struct mallinfo mallinfo(void)`: what does not fit is cut to the largest number.
#[unsafe(no_mangle)]
pub extern "C" fn mallinfo() -> Mallinfo {
    let wide = mallinfo2();
    let narrow = |bytes: usize| c_int::try_from(bytes).unwrap_or(c_int::MAX);
    Mallinfo {
        fields: [
            narrow(wide.arena),
            narrow(wide.ordblks),
            narrow(wide.smblks),
            narrow(wide.hblks),
            narrow(wide.hblkhd),
            narrow(wide.usmblks),
            narrow(wide.fsmblks),
            narrow(wide.uordblks),
            narrow(wide.fordblks),
            narrow(wide.keepcost),
        ],
    }
}

/// `int malloc_trim(size_t pad)`: 1 when memory went back to the system.
#[unsafe(no_mangle)]
pub extern "C" fn malloc_trim(pad: usize) -> c_int {
    c_int::from(process::trim(pad) > 0)
}

/// `int mallopt(int parameter, int value)`: hints are accepted (1) and change nothing; what would have
/// to change something that can be seen (`M_CHECK_ACTION`, `M_PERTURB`) and what is unknown gives 0.
#[unsafe(no_mangle)]
pub extern "C" fn mallopt(parameter: c_int, _value: c_int) -> c_int {
    const MXFAST: c_int = 1;
    const TRIM_THRESHOLD: c_int = -1;
    const MMAP_MAX: c_int = -4;
    const ARENA_TEST: c_int = -7;
    const ARENA_MAX: c_int = -8;
    c_int::from(matches!(parameter, MXFAST | MMAP_MAX..=TRIM_THRESHOLD | ARENA_TEST | ARENA_MAX))
}

/// Text on the stack, ended by a zero; what does not fit is cut.
struct Text {
    bytes: [u8; 1024],
    length: usize,
}

impl Text {
    fn new() -> Self {
        Self { bytes: [0; 1024], length: 0 }
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&[])
    }

    fn as_c(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or(c"")
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.length + 1 < self.bytes.len() {
                if let Some(place) = self.bytes.get_mut(self.length) {
                    *place = byte;
                    self.length += 1;
                }
            }
        }
        Ok(())
    }
}

/// `int malloc_info(int options, FILE *stream)`: an XML document; options other than 0 give `EINVAL`.
///
/// # Safety
/// The stream is open for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_info(options: c_int, stream: *mut c_void) -> c_int {
    let Some(fputs) = fputs() else { return EINVAL };
    if options != 0 {
        return EINVAL;
    }
    let stats = process::stats();
    let mut text = Text::new();
    let _ = write!(
        text,
        "<malloc version=\"pagoda-1\">\n<small slabs=\"{}\" bytes=\"{}\" idle=\"{}\"/>\n\
         <medium live=\"{}\" free=\"{}\"/>\n<large count=\"{}\" bytes=\"{}\"/>\n\
         <heaps count=\"{}\"/>\n<helper bytes=\"{}\"/>\n</malloc>\n",
        stats.slabs.iter().sum::<u32>(),
        stats.slab_bytes(),
        stats.pool.dirty as usize * pagoda_malloc_core::UNIT_BYTES,
        stats.medium.live,
        stats.medium.dirty,
        stats.large_count,
        stats.large_bytes,
        stats.heaps,
        stats.helper.unwrap_or(0),
    );
    // SAFETY: the text ends with a zero; the stream is as the caller promised.
    unsafe { fputs(text.as_c().as_ptr(), stream) };
    0
}

/// `void malloc_stats(void)`: to standard error.
#[unsafe(no_mangle)]
pub extern "C" fn malloc_stats() {
    let stats = process::stats();
    let mut text = Text::new();
    let _ = write!(text, "{stats}");
    linux::write(2, text.as_bytes());
}

/// `int pagoda_malloc_profile(const char *path)`: writes what is live, by the place that allocated it, for
/// `pprof`: estimates if allocations are sampled, else each block. 1: written; 0: neither sampled nor in hardened
/// mode, or in hardened mode with other threads that have heaps, or the file cannot be written.
///
/// # Safety
/// The path ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pagoda_malloc_profile(path: *const core::ffi::c_char) -> c_int {
    // SAFETY: as the caller promised.
    c_int::from(process::write_profile(unsafe { CStr::from_ptr(path) }))
}

/// `int pagoda_malloc_picture(const char *path)`: draws as SVG where memory lies idle between what is in
/// use. 1: written; 0: other threads have heaps, or the file cannot be written.
///
/// # Safety
/// The path ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pagoda_malloc_picture(path: *const core::ffi::c_char) -> c_int {
    // SAFETY: as the caller promised.
    c_int::from(process::write_picture(unsafe { CStr::from_ptr(path) }))
}
