//! Random sequences against a model that remembers what each block must contain.

use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::rig::{Rig, check_arenas, check_samples, must_be_empty, rig, sampled_rig};

#[derive(Clone, Debug)]
enum Step {
    Alloc { bytes: usize, align: usize, zeroed: bool },
    Free(usize),
    Realloc(usize, usize),
    Trim(usize),
}

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 0..=256_usize,
        4 => 0..=1100_usize,
        3 => 1000..=10_000_usize,
        2 => 10_000..=140_000_usize,
        1 => 130_000..=600_000_usize,
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (sizes(), 0..=4_u32, any::<bool>())
            .prop_map(|(bytes, shift, zeroed)| Step::Alloc { bytes, align: 1 << shift, zeroed }),
        1 => (sizes(), 5..=18_u32, any::<bool>())
            .prop_map(|(bytes, shift, zeroed)| Step::Alloc { bytes, align: 1 << shift, zeroed }),
        6 => any::<usize>().prop_map(Step::Free),
        3 => (any::<usize>(), sizes()).prop_map(|(which, bytes)| Step::Realloc(which, bytes)),
        1 => (0..100_000_usize).prop_map(Step::Trim),
    ]
}

struct Held {
    at: *mut u8,
    bytes: usize,
    mark: u8,
}

impl Held {
    fn fill(&self) {
        unsafe { self.at.write_bytes(self.mark, self.bytes) };
    }

    fn holds(&self, bytes: usize) -> bool {
        let content = unsafe { std::slice::from_raw_parts(self.at, bytes.min(self.bytes)) };
        content.iter().all(|&byte| byte == self.mark)
    }
}

fn run(rig: &Rig, steps: &[Step], may_fail: bool) {
    let mut held: Vec<Held> = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let mark = number as u8 | 1;
        match *step {
            Step::Alloc { bytes, align, zeroed } => {
                let at = match (align > 16, zeroed) {
                    (false, false) => rig.alloc(bytes),
                    (false, true) => rig.alloc_zeroed(bytes),
                    (true, false) => rig.alloc_aligned(bytes, align),
                    (true, true) => rig.alloc_aligned_zeroed(bytes, align),
                };
                if at.is_null() {
                    assert!(may_fail);
                    continue;
                }
                assert_eq!(at as usize % align.max(16), 0);
                let usable = unsafe { rig.usable(at) };
                assert!(usable >= bytes);
                if zeroed {
                    assert!(Held { at, bytes, mark: 0 }.holds(bytes));
                }
                let block = Held { at, bytes, mark };
                block.fill();
                held.push(block);
            }
            Step::Free(which) if !held.is_empty() => {
                let block = held.swap_remove(which % held.len());
                assert!(block.holds(block.bytes));
                unsafe { rig.free(block.at) };
            }
            Step::Realloc(which, bytes) if !held.is_empty() => {
                let which = which % held.len();
                let block = &mut held[which];
                let at = unsafe { rig.realloc(block.at, bytes) };
                if at.is_null() {
                    assert!(may_fail && block.holds(block.bytes));
                    continue;
                }
                block.at = at;
                assert!(block.holds(bytes));
                *block = Held { at, bytes, mark };
                block.fill();
            }
            Step::Trim(keep) => {
                rig.trim(keep);
            }
            Step::Free(_) | Step::Realloc(..) => {}
        }
        if number % 8 == 0 {
            check_arenas(rig);
            check_samples(rig);
        }
    }
    for block in held {
        assert!(block.holds(block.bytes));
        unsafe { rig.free(block.at) };
    }
    rig.system.budget.store(0, Ordering::Relaxed);
    must_be_empty(rig);
    unsafe { rig.destroy() };
    assert_eq!(rig.system.mapped(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 64 }, ..Default::default() })]

    #[test]
    fn blocks_keep_their_contents_and_come_home(
        steps in prop::collection::vec(steps(), 1..if cfg!(miri) { 40 } else { 400 }),
    ) {
        run(&rig(), &steps, false);
    }

    #[test]
    fn samples_are_blocks_like_others(
        interval in prop_oneof![Just(1), Just(100), Just(3000), Just(100_000)],
        budget in prop_oneof![Just(0), 10..40_usize],
        steps in prop::collection::vec(steps(), 1..if cfg!(miri) { 40 } else { 300 }),
    ) {
        let rig = sampled_rig(interval);
        rig.system.budget.store(budget, Ordering::Relaxed);
        run(&rig, &steps, budget > 0);
    }

    #[test]
    fn a_refused_request_changes_nothing(
        budget in 1..30_usize,
        steps in prop::collection::vec(steps(), 1..if cfg!(miri) { 40 } else { 200 }),
    ) {
        let rig = rig();
        rig.system.budget.store(budget, Ordering::Relaxed);
        run(&rig, &steps, true);
    }
}
