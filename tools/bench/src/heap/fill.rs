//! How much of an arena can be had as blocks.

use std::alloc::{GlobalAlloc, Layout};

use super::{ARENA_BYTES, Live, Sizes, ours};
use crate::arena::Arena;
use crate::measure::Numbers;
use crate::peers;
use crate::report::{Better, Row};

/// What part of the arena can be had as blocks.
pub fn fills() -> Vec<Row> {
    let gates = [
        ("fill, all 64 B, %", Fill::Small, 98.9),
        ("fill, log-uniform, %", Fill::Mixed, 95.0),
        ("fill, log-uniform, aged, %", Fill::Aged, 92.5),
        ("fill, log-uniform, after another CPU churned, %", Fill::AfterAnother, 93.0),
    ];
    gates
        .into_iter()
        .map(|(case, kind, floor)| {
            let arena = || Arena::new(ARENA_BYTES);
            let ours = fill(&ours(arena()), kind);
            let peers = [
                ("talc", fill(&peers::talc(arena()), kind)),
                ("rlsf", fill(&peers::rlsf(arena()), kind)),
                ("dlmalloc", fill(&peers::dlmalloc(arena()), kind)),
                ("buddy_system_allocator", fill(&peers::buddy(arena()), kind)),
            ];
            let peers: std::collections::BTreeMap<_, _> =
                peers.into_iter().map(|(name, part)| (name.to_owned(), part)).collect();
            let best = peers.values().copied().fold(f64::MIN, f64::max);
            Row {
                case: format!("{case} (ours: at least {floor})"),
                unit: "%",
                better: Better::More,
                ours,
                peers,
                gate: Some((floor / best * 1000.0).round() / 1000.0),
                spread: 0.0,
            }
        })
        .collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fill {
    Small,
    Mixed,
    Aged,
    /// Another CPU has churned, and is idle without having said so: what lies in its magazines stays
    /// there. (A kernel's idle loop would call `drain`.)
    AfterAnother,
}

fn fill<A: GlobalAlloc + Sync>(heap: &A, kind: Fill) -> f64 {
    if kind != Fill::AfterAnother {
        return pour_out(heap, kind);
    }
    let (churned, filled) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut live = Live::new(heap, 5_000, Sizes::LogUniform, 9);
            (0..200_000).for_each(|_| live.turn());
            drop(live);
            churned.wait();
            // The thread lives on, so that nobody else becomes this CPU.
            filled.wait();
        });
        churned.wait();
        let part = pour_out(heap, kind);
        filled.wait();
        part
    })
}

fn pour_out<A: GlobalAlloc>(heap: &A, kind: Fill) -> f64 {
    let mut numbers = Numbers::new(11);
    let mut blocks: Vec<(*mut u8, Layout)> = Vec::new();
    let mut draw = || match kind {
        Fill::Small => Layout::new::<[u64; 8]>(),
        _ => Sizes::LogUniform.layout(&mut numbers),
    };
    let mut pour = |blocks: &mut Vec<(*mut u8, Layout)>| {
        // A first no may be for a large block only: ask on until it is no a few times.
        let mut refusals = 0;
        while refusals < 50 {
            let layout = draw();
            // SAFETY: the layout is not empty.
            let block = unsafe { heap.alloc(layout) };
            if block.is_null() {
                refusals += 1;
            } else {
                blocks.push((block, layout));
            }
        }
    };
    pour(&mut blocks);
    if kind == Fill::Aged {
        let mut which = Numbers::new(5);
        for _ in 0..40 {
            for _ in 0..blocks.len() / 10 {
                let (block, layout) = blocks.swap_remove(which.below(blocks.len() as u64) as usize);
                // SAFETY: freed once, with its layout.
                unsafe { heap.dealloc(block, layout) };
            }
            pour(&mut blocks);
        }
    }
    let bytes: usize = blocks.iter().map(|block| block.1.size()).sum();
    for (block, layout) in blocks {
        // SAFETY: freed once, with its layout.
        unsafe { heap.dealloc(block, layout) };
    }
    100.0 * bytes as f64 / ARENA_BYTES as f64
}
