//! Who called malloc, and who called that.

use core::fmt;

/// So many calls are kept, the innermost ones.
const DEPTH: usize = 32;
/// Calls inside the allocator and what walks the stack, at most.
const OURS: usize = 16;

/// The calls that led to an allocation, the innermost first: addresses that they return to.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Calls {
    count: usize,
    frames: [usize; DEPTH],
}

impl Calls {
    /// One call alone; 0: not known.
    pub fn one(pc: usize) -> Self {
        let mut frames = [0; DEPTH];
        frames[0] = pc;
        Self { count: 1, frames }
    }

    /// The call that returns to `pc` and those around it, if `walk` finds it: that writes the calls around itself,
    /// the innermost first, and says how many they are.
    pub fn around(pc: usize, walk: impl FnOnce(&mut [usize]) -> usize) -> Self {
        let mut all = [0; OURS + DEPTH];
        let count = walk(&mut all);
        let all = all.get(..count).unwrap_or(&[]);
        let known = all.iter().position(|&frame| frame == pc).and_then(|first| all.get(first..));
        let mut calls = Self::one(pc);
        if let Some(known) = known {
            for (place, &frame) in calls.frames.iter_mut().zip(known) {
                *place = frame;
            }
            calls.count = known.len().min(DEPTH);
        }
        calls
    }

    /// The calls. At least one.
    pub fn frames(&self) -> &[usize] {
        self.frames.get(..self.count).unwrap_or(&[])
    }

    /// A number for these calls; never zero. Others have another one, unless 64 bits happen to agree.
    pub fn key(&self) -> usize {
        // Multiply and mix, word by word, after FNV-1a (Fowler, Noll, Vo).
        let mix = |hash: usize, &frame: &usize| {
            let hash = (hash ^ frame).wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as usize);
            hash ^ hash >> (usize::BITS / 2)
        };
        self.frames().iter().fold(0xcbf2_9ce4_8422_2325_u64 as usize, mix).max(1)
    }
}

impl fmt::Debug for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.frames().iter().try_for_each(|frame| write!(f, "{frame:#x} "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_begin_where_malloc_returns_to_and_are_cut_on_the_outside() {
        let walk = |length: usize| {
            move |all: &mut [usize]| {
                let count = length.min(all.len());
                all.iter_mut().take(count).enumerate().for_each(|(index, at)| *at = 100 + index);
                count
            }
        };
        assert_eq!(Calls::around(103, walk(7)).frames(), [103, 104, 105, 106]);
        assert_eq!(Calls::around(100, walk(1)).frames(), [100]);
        assert_eq!(Calls::around(7, walk(9)).frames(), [7], "it did not find the caller");
        assert_eq!(Calls::around(7, walk(0)).frames(), [7], "it found nothing");
        let deep: Vec<_> = (102..102 + DEPTH).collect();
        assert_eq!(Calls::around(102, walk(1000)).frames(), deep);
    }

    #[test]
    fn other_calls_have_other_keys() {
        let around = |outer: &[usize]| {
            let all: Vec<_> = [1, 2].iter().chain(outer).copied().collect();
            Calls::around(2, |place: &mut [usize]| {
                place[..all.len()].copy_from_slice(&all);
                all.len()
            })
        };
        let all: [&[usize]; 5] = [&[], &[0], &[3], &[3, 4], &[4, 3]];
        let mut keys: Vec<_> = all.into_iter().map(|outer| around(outer).key()).collect();
        assert_eq!(around(&[3, 4]).key(), keys[3]);
        keys.push(Calls::one(0).key());
        assert!(!keys.contains(&0));
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 6);
    }
}
