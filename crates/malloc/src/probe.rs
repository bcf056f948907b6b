//! Open addressing with linear probing, over places that somebody else keeps. What is taken out leaves no
//! trace: with marks for what was erased a table in which entries come and go fills up though few are
//! there (Knuth, "The Art of Computer Programming", 6.4, algorithms L and R).
//!
//! A key of zero is an empty place; at least one place is empty; the number of places, `room`, is a power
//! of two.

/// Where a key would like to be.
pub fn home(key: usize, room: usize) -> usize {
    let hash = (key as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // The upper bits, which depend on all of the key.
    (hash >> 32) as usize & (room - 1)
}

/// Where a key is, or else the empty place where it would be.
pub fn find(key: usize, room: usize, key_at: impl Fn(usize) -> usize) -> usize {
    let mut at = home(key, room);
    while ![key, 0].contains(&key_at(at)) {
        at = (at + 1) % room;
    }
    at
}

/// Whoever would not be found behind a hole, were it empty, and must move into it: its own place is the hole
/// then. Nothing: the hole may be emptied.
pub fn filler(hole: usize, room: usize, key_at: impl Fn(usize) -> usize) -> Option<usize> {
    let mut at = hole;
    loop {
        at = (at + 1) % room;
        let key = key_at(at);
        if key == 0 {
            return None;
        }
        if at.wrapping_sub(home(key, room)) % room >= at.wrapping_sub(hole) % room {
            return Some(at);
        }
    }
}
