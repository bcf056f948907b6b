//! Bytes that nobody may change, written and compared in words.
#![allow(unsafe_code)] // raw bytes

const WORD: usize = size_of::<u64>();

/// Writes `byte` over a range.
///
/// # Safety
/// The range is the caller's.
#[inline]
pub unsafe fn fill(at: *mut u8, bytes: usize, byte: u8) {
    let word = u64::from_ne_bytes([byte; WORD]);
    // SAFETY: all writes lie in the range.
    unsafe {
        if bytes < WORD {
            for index in 0..bytes {
                at.add(index).write(byte);
            }
            return;
        }
        let mut done = 0;
        while done + WORD <= bytes {
            at.add(done).cast::<u64>().write_unaligned(word);
            done += WORD;
        }
        at.add(bytes - WORD).cast::<u64>().write_unaligned(word);
    }
}

/// Where a range first differs from `byte`.
///
/// # Safety
/// The range may be read.
#[inline]
pub unsafe fn first_other(at: *mut u8, bytes: usize, byte: u8) -> Option<usize> {
    let word = u64::from_ne_bytes([byte; WORD]);
    let mut done = 0;
    // SAFETY: all reads lie in the range.
    unsafe {
        while done + WORD <= bytes && at.add(done).cast::<u64>().read_unaligned() == word {
            done += WORD;
        }
        (done..bytes).find(|&index| at.add(index).read() != byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::undocumented_unsafe_blocks)] // ranges inside one array
    fn every_byte_counts_and_no_other() {
        for bytes in 0..70 {
            let mut memory = [1_u8; 80];
            unsafe { fill(memory.as_mut_ptr().add(5), bytes, 7) };
            assert!(memory.iter().enumerate().all(|(index, &byte)| {
                byte == if (5..5 + bytes).contains(&index) { 7 } else { 1 }
            }));
            for index in 0..bytes {
                memory[5 + index] = 8;
                let found = unsafe { first_other(memory.as_mut_ptr().add(5), bytes, 7) };
                assert_eq!(found, Some(index));
                memory[5 + index] = 7;
            }
            assert_eq!(unsafe { first_other(memory.as_mut_ptr().add(5), bytes, 7) }, None);
        }
    }
}
