//! Misuse of a heap without debug modes.

use core::ptr::NonNull;
use std::format;
use std::string::ToString;
use std::vec::Vec;

use super::{Lock, TestCpus, heap, layout};
use crate::testing::{Arena, Ledger};
use crate::{Heap, MisuseKind};

#[test]
fn misuse_is_named_and_changes_nothing() {
    let (arena, ledger) = (Arena::new(256), Ledger::default());
    let heap = heap(&arena, &ledger);
    let small = heap.kalloc(layout(100, 8)).unwrap();
    let other = heap.kalloc(layout(100, 8)).unwrap();
    let run = heap.kalloc(layout(40_000, 8)).unwrap();
    let mut local = 0u64;
    // SAFETY: the one block that is really freed is not used again; the rest is refused.
    unsafe {
        heap.kfree(small).unwrap();
        assert!(heap.kfree(small).is_err());
        assert_eq!(ledger.kind(), MisuseKind::DoubleFree);
        assert!(heap.kfree(other.add(8)).is_err());
        let misuse = ledger.one();
        assert_eq!((misuse.kind, misuse.block), (MisuseKind::Interior, other.as_ptr() as usize));
        assert_eq!(
            misuse.to_string(),
            format!(
                "heap: free of an interior pointer: {:p} is byte 8 of the 112-byte block at {:p} \
                 of kmalloc-112",
                other.add(8),
                other
            )
        );
        assert!(heap.kfree(NonNull::from(&mut local).cast()).is_err());
        assert_eq!(ledger.kind(), MisuseKind::Foreign);
        for offset in [1, 1024, 1025, 5000, 32_767] {
            assert!(heap.kfree(run.add(offset)).is_err());
            let misuse = ledger.one();
            assert_eq!((misuse.kind, misuse.block), (MisuseKind::Interior, run.as_ptr() as usize));
        }
        assert!(heap.kfree_sized(run, layout(30_000, 8)).is_err());
        assert_eq!(ledger.kind(), MisuseKind::WrongLayout);
        // What a magazine lets in is found when it leaves: nothing of another class comes home.
        heap.kfree_sized(heap.kalloc(layout(64, 8)).unwrap(), layout(32, 8)).unwrap();
        heap.drain();
        assert_eq!(ledger.kind(), MisuseKind::WrongLayout);
        // The header of a chunk is nobody's block.
        let base = other.as_ptr() as usize & !0xffff;
        let header = NonNull::new(core::ptr::with_exposed_provenance_mut(base)).unwrap();
        heap.kfree(header).unwrap();
        heap.drain();
        assert_eq!(ledger.kind(), MisuseKind::Interior);
        heap.kfree(run).unwrap();
        assert!(heap.kfree(run).is_err());
        assert_eq!(ledger.kind(), MisuseKind::DoubleFree);
        assert!(heap.krealloc(run, layout(40_000, 8), 41_000).is_err());
        assert_eq!(ledger.kind(), MisuseKind::DoubleFree);
        // Whoever writes over the records is found out.
        header.write_bytes(0x41, 264);
        heap.kfree(other).unwrap();
        heap.drain();
        assert_eq!(ledger.kind(), MisuseKind::Damaged);
    }
    let _ = local;
}

#[test]
#[should_panic(expected = "heap: double free")]
fn without_a_hook_misuse_stops_loudly() {
    let arena = Arena::new(64);
    let heap: Heap<_, _, Lock> = Heap::new(&arena, TestCpus::default());
    let block = heap.kalloc(layout(8, 8)).unwrap();
    // SAFETY: not used again; the second is refused.
    unsafe {
        let _ = heap.kfree(block);
        let _ = heap.kfree(block);
    }
}

#[test]
fn a_write_after_free_into_the_pool_is_found_and_not_obeyed() {
    let (arena, ledger) = (Arena::new(64), Ledger::default());
    let heap = heap(&arena, &ledger);
    let large = layout(3000, 8);
    let blocks: Vec<_> = (0..8).map(|_| heap.kalloc(large).unwrap()).collect();
    for block in blocks.iter().step_by(2) {
        // SAFETY: live.
        unsafe { heap.kfree(*block) }.unwrap();
    }
    heap.drain();
    // SAFETY: there is none: this is the crime. The bytes are the arena's.
    unsafe { blocks[2].write_bytes(0x41, 100) };
    for _ in 0..8 {
        let block = heap.kalloc(large).unwrap();
        assert_ne!(block, blocks[2], "what was written over is never given out again");
    }
    assert_eq!(ledger.kind(), MisuseKind::Damaged);
}
