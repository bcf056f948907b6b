//! Work to be counted in instructions, one function for each kind, a million times:
//!
//! ```text
//! cargo build --release -p pagoda-heap --example count
//! valgrind --tool=callgrind --toggle-collect='count::sized*' target/release/examples/count sized
//! ```
//! Kinds: `sized` (a `kalloc` and a `kfree_sized` of 64 bytes), `guarded` (the same, with every debug
//! mode on for other sizes), `unsized` (with plain `kfree`), `pin`
//! (two pins and nothing else), `churn` (10,000 live blocks, log-uniform; one is replaced), `uniform`.
#![allow(unsafe_code)] // frees blocks

use std::alloc::Layout;
use std::hint::black_box;
use std::ptr::NonNull;

use pagoda_heap::{Heap, Misuse, MisuseKind, OutOfPages, PageSource, PageTags, Report};
use pagoda_sync::host::ThreadCpus;
use pagoda_sync::{Cpus as _, RawSpin};

#[allow(dead_code)]
#[path = "../src/testing.rs"]
mod testing;

type TestHeap<'a> = Heap<&'a testing::Arena, ThreadCpus, RawSpin>;

const TIMES: usize = 1_000_000;
const SIZE: Layout = Layout::new::<[u64; 8]>();

#[inline(never)]
fn sized(heap: &TestHeap<'_>) {
    for _ in 0..TIMES {
        let block = black_box(heap.kalloc(SIZE).unwrap());
        // SAFETY: live.
        unsafe { heap.kfree_sized(block, SIZE) }.unwrap();
    }
}

#[inline(never)]
fn unsized_(heap: &TestHeap<'_>) {
    for _ in 0..TIMES {
        let block = black_box(heap.kalloc(SIZE).unwrap());
        // SAFETY: live.
        unsafe { heap.kfree(block) }.unwrap();
    }
}

#[inline(never)]
fn pin() {
    for _ in 0..TIMES {
        black_box(ThreadCpus.pin().cpu());
        black_box(ThreadCpus.pin().cpu());
    }
}

/// Which block, and how many bytes.
type Plan = Vec<(u16, u16)>;

fn plan(uniform: bool) -> Plan {
    let mut state = 7_u64;
    let mut below = move |limit: u64| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        ((u128::from(state.wrapping_mul(0x2545_f491_4f6c_dd1d)) * u128::from(limit)) >> 64) as u64
    };
    let size = |below: &mut dyn FnMut(u64) -> u64| match uniform {
        true => 8 + below(8185),
        false => {
            let octave = 3 + below(10);
            (1 << octave) + below(1 << octave)
        }
    };
    (0..TIMES).map(|_| (below(10_000) as u16, size(&mut below) as u16)).collect()
}

fn of(size: u16) -> Layout {
    Layout::from_size_align(usize::from(size), 8).unwrap()
}

fn start<'h>(heap: &TestHeap<'h>, plan: &Plan) -> Vec<(NonNull<u8>, u16)> {
    plan.iter().take(10_000).map(|&(_, size)| (heap.kalloc(of(size)).unwrap(), size)).collect()
}

#[inline(never)]
fn churn(heap: &TestHeap<'_>, live: &mut [(NonNull<u8>, u16)], plan: &Plan) {
    for &(which, size) in plan {
        let slot = &mut live[usize::from(which)];
        // SAFETY: live, and replaced at once.
        unsafe { heap.kfree_sized(slot.0, of(slot.1)) }.unwrap();
        *slot = (heap.kalloc(of(size)).unwrap(), size);
    }
}

fn main() {
    work(&std::env::args().nth(1).unwrap_or_default());
}

/// Does work of this kind.
pub fn work(kind: &str) {
    let arena = testing::Arena::new(16 << 10);
    let heap: TestHeap<'_> = Heap::new(&arena, ThreadCpus);
    match kind {
        "sized" => sized(&heap),
        "guarded" => {
            heap.set_debug("FZPUQ,kmalloc-1*;FZPUQ,kmalloc-8*").unwrap();
            heap.set_sampling(usize::MAX);
            sized(&heap);
        }
        "unsized" => unsized_(&heap),
        "pin" => pin(),
        "churn" | "uniform" => {
            let plan = plan(kind == "uniform");
            let mut live = start(&heap, &plan);
            churn(&heap, &mut live, &plan);
        }
        _ => println!("sized | guarded | unsized | pin | churn | uniform"),
    }
}
