//! Many references at once.

use std::vec;
use std::vec::Vec;

use pagoda_addr::{Frame, Order};
use proptest::prelude::*;

use super::rig::{Frames, Ground, Turns, frame};
use crate::*;

const START: u64 = 1 << 20;

fn taken(allocator: &Frames<'_>, count: usize) -> Vec<Frame> {
    let request = Request::frame().mobility(Mobility::Movable);
    (0..count).map(|_| allocator.alloc(request).unwrap().into_range().start()).collect()
}

#[test]
fn a_shared_run_is_freed_by_its_last_owner() {
    let mut ground = Ground::new(&[(START, 2048)], true);
    let allocator = ground.allocator(0, 0);
    let count = if cfg!(miri) { 90 } else { 700 };
    let mut pages = taken(&allocator, count);
    pages.sort_unstable();
    assert_eq!(allocator.table().share_many(&pages), Ok(()));
    assert!(pages.iter().all(|&page| allocator.table().refs(page) == Ok(2)));
    assert_eq!(allocator.release_many(&pages), Ok(0));
    assert!(pages.iter().all(|&page| allocator.table().refs(page) == Ok(1)));
    assert_eq!(allocator.release_many(&pages), Ok(count));
    assert_eq!(allocator.stats().used, 0);
    assert_eq!(allocator.release_many(&pages), Err((0, FreeError::DoubleFree(pages[0]))));
    assert_eq!(allocator.release_many(&[]), Ok(0));
    allocator.audit();
}

#[test]
fn a_wrong_frame_in_a_batch_is_named_and_harms_nobody() {
    let mut ground = Ground::new(&[(START, 2048)], true);
    let allocator = ground.allocator(0, 0);
    let mut pages = taken(&allocator, 20);
    pages.sort_unstable();
    let gone = pages[13];
    allocator.release(gone).unwrap();
    assert_eq!(allocator.table().share_many(&pages), Err(TableError::NotAHead(gone)));
    let others = || pages.iter().filter(|&&page| page != gone);
    assert!(others().all(|&page| allocator.table().refs(page) == Ok(1)));
    let foreign = [pages[0], frame(7)];
    assert_eq!(allocator.table().share_many(&foreign), Err(TableError::NotManaged(frame(7))));
    assert_eq!(allocator.release_many(&pages), Err((13, FreeError::DoubleFree(gone))));
    assert_eq!(allocator.stats().used, 6);
    assert_eq!(allocator.release_many(&pages[14..]), Ok(6));
    assert_eq!(allocator.release_many(&foreign[1..]), Err((0, FreeError::NotManaged(frame(7)))));
    allocator.audit();
}

#[test]
fn mapped_frames_and_blocks_in_a_batch_are_what_they_are() {
    let mut ground = Ground::new(&[(START, 2048)], true);
    let allocator = ground.allocator(0, 0);
    let block = allocator.alloc(Request::order(Order::LARGE)).unwrap().into_range();
    let pages = taken(&allocator, 2);
    allocator.table().add_map(pages[1]).unwrap();
    let mixed = [pages[0], block.start(), pages[1]];
    let mapped = FreeError::Mapped { frame: pages[1], maps: 1 };
    assert_eq!(allocator.release_many(&mixed), Err((2, mapped)));
    assert_eq!(allocator.stats().used, 1);
    allocator.table().remove_map(pages[1]).unwrap();
    assert_eq!(allocator.release_many(&pages[1..]), Ok(1));
    // Without a table there are no references: every frame is its caller's.
    let mut ground = Ground::new(&[(START, 2048)], false);
    let allocator = ground.allocator(0, 0);
    let pages = taken(&allocator, 100);
    assert_eq!(allocator.table().share_many(&pages), Err(TableError::NoTable));
    assert_eq!(allocator.release_many(&pages), Ok(100));
    assert_eq!(allocator.stats().used, 0);
}

#[derive(Clone, Debug)]
enum Call {
    Take(usize),
    /// From this place so many, every so many-th.
    Share(usize, usize, usize),
    Release(usize, usize, usize),
    Cpu(usize),
}

fn calls() -> impl Strategy<Value = Call> {
    let slice = || (any::<usize>(), 1usize..200, 1usize..3);
    prop_oneof![
        2 => (1usize..400).prop_map(Call::Take),
        3 => slice().prop_map(|(from, count, step)| Call::Share(from, count, step)),
        4 => slice().prop_map(|(from, count, step)| Call::Release(from, count, step)),
        1 => (0..Turns::LIMIT).prop_map(Call::Cpu),
    ]
}

proptest! {
    #![proptest_config(crate::line::random_cases(100))]
    #[test]
    fn batches_count_as_single_calls_do(
        calls in prop::collection::vec(calls(), 1..if cfg!(miri) { 8 } else { 60 }),
        shuffle: bool,
    ) {
        const COUNT: usize = 6000; // half of it may be in the stock of other CPUs
        let mut ground = Ground::new(&[(START + 100, COUNT as u64)], true);
        let allocator = ground.allocator(0, 0);
        let mut refs = vec![0u32; COUNT];
        let mut pages: Vec<Frame> = Vec::new();
        let place = |page: Frame| (page.number() - START - 100) as usize;
        for call in calls {
            let chosen = |from: usize, count: usize, step: usize| -> Vec<Frame> {
                let from = from % pages.len().max(1);
                pages.iter().skip(from).step_by(step).take(count).copied().collect()
            };
            match call {
                Call::Take(count) => {
                    let count = count.min(COUNT / 2 - pages.len());
                    for page in taken(&allocator, count) {
                        assert_eq!(refs[place(page)], 0);
                        refs[place(page)] = 1;
                        pages.push(page);
                    }
                    pages.sort_unstable_by_key(|page| {
                        let number = page.number();
                        if shuffle { number.wrapping_mul(0x9e37_79b9_7f4a_7c15) } else { number }
                    });
                }
                Call::Share(from, count, step) => {
                    let chosen = chosen(from, count, step);
                    allocator.table().share_many(&chosen).unwrap();
                    chosen.iter().for_each(|&page| refs[place(page)] += 1);
                }
                Call::Release(from, count, step) => {
                    let chosen = chosen(from, count, step);
                    let freed = allocator.release_many(&chosen).unwrap();
                    chosen.iter().for_each(|&page| refs[place(page)] -= 1);
                    let gone = chosen.iter().filter(|&&page| refs[place(page)] == 0).count();
                    assert_eq!(freed, gone);
                    pages.retain(|&page| refs[place(page)] > 0);
                }
                Call::Cpu(cpu) => allocator.cpus().0.set(cpu),
            }
            let stats = allocator.stats();
            assert_eq!(stats.free + stats.cached + stats.used, stats.total);
            assert_eq!(stats.used, pages.len() as u64);
            for &page in &pages {
                assert_eq!(allocator.table().refs(page), Ok(refs[place(page)]));
            }
        }
        allocator.audit();
    }
}
