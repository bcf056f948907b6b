//! Blocks that others free while their owner sleeps.

use std::sync::mpsc;
use std::thread;

use super::rig::{Rig, Sent, check_and_free, must_be_empty, rig};

/// Small blocks of so many bytes in all.
fn batch(rig: &Rig, bytes: usize, mark: u8) -> Vec<Sent> {
    let (mut made, mut all) = (0, Vec::new());
    while made < bytes {
        let bytes = 1 + all.len() * 37 % 1000;
        let at = rig.alloc(bytes);
        assert!(!at.is_null());
        unsafe { at.write_bytes(mark, bytes) };
        all.push(Sent(at, bytes, mark));
        made += bytes;
    }
    all
}

const BYTES: usize = if cfg!(miri) { 1 << 18 } else { 6 << 20 };

#[test]
fn what_others_free_goes_back_while_its_owner_sleeps() {
    let rig = rig();
    let (to_main, from_owner) = mpsc::channel();
    let (to_owner, from_main) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let rig = &rig;
        scope.spawn(move || {
            to_main.send(batch(rig, BYTES, 7)).unwrap();
            from_main.recv().unwrap();
            // It awakes with whatever is left on its stack, and heads that others emptied.
            let again = batch(rig, BYTES / 2, 9);
            again.into_iter().for_each(|sent| check_and_free(rig, sent));
            rig.thread_ends();
        });
        let mut all = from_owner.recv().unwrap();
        let before = rig.stats();
        // In an order that fills no slab before the other.
        all.sort_by_key(|sent| (sent.0 as usize).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        all.into_iter().for_each(|sent| check_and_free(rig, sent));
        let after = rig.stats();
        // Left: a head for each class, a slab for each parcel, what is not worth a sweep.
        assert!(after.slab_bytes() <= (32 + 16 + 32) * crate::UNIT_BYTES, "{after}");
        assert!(cfg!(miri) || after.footprint() < before.footprint() / 2, "{before}{after}");
        to_owner.send(()).unwrap();
    });
    rig.thread_ends();
    must_be_empty(&rig);
}

#[test]
fn owners_that_sleep_and_wake_meet_those_who_sweep_for_them() {
    let rig = rig();
    thread::scope(|scope| {
        let rig = &rig;
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..2).map(|_| mpsc::sync_channel::<Vec<Sent>>(1)).unzip();
        for mark in 0..2_u8 {
            let senders = senders.clone();
            scope.spawn(move || {
                for round in 0..if cfg!(miri) { 2 } else { 25 } {
                    let mut halves = batch(rig, BYTES / 6, mark + round);
                    let other = halves.split_off(halves.len() / 2);
                    for (sender, half) in senders.iter().zip([halves, other]) {
                        sender.send(half).unwrap();
                    }
                }
                rig.thread_ends();
            });
        }
        drop(senders);
        for receiver in receivers {
            scope.spawn(move || {
                receiver.iter().flatten().for_each(|sent| check_and_free(rig, sent));
                rig.thread_ends();
            });
        }
    });
    must_be_empty(&rig);
}
