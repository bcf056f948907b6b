//! The queues against plain ones.

use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::vec::Vec;

fn wait(channel: Channel, deadline: u64) -> Wait {
    Wait { channel, mask: !0, deadline, patience: Patience::Interruptible }
}

#[test]
fn a_wake_between_park_and_commit_is_not_lost() {
    let mut slots = Slots::new();
    let id = slots.admit((), !0).unwrap();
    slots.make_ready(id);
    assert_eq!(slots.next_ready(0), Some(id));
    slots.park(id, wait(Channel::AnyFile, u64::MAX));
    assert_eq!(slots.wake(Channel::AnyFile, !0, 9), 1);
    assert!(!slots.commit(id));
    assert_eq!(slots.reason(id), Wake::Woken);
    assert_eq!(slots.ready_count(), 0);
}

#[test]
fn requeued_waiters_are_woken_on_their_new_channel_only() {
    let mut slots = Slots::new();
    let (from, to) = (Channel::Futex(1, 2), Channel::Futex(1, 6));
    for _ in 0..3 {
        let id = slots.admit((), !0).unwrap();
        slots.make_ready(id);
        slots.next_ready(0);
        slots.park(id, wait(from, u64::MAX));
        assert!(slots.commit(id));
    }
    assert_eq!(slots.wake(from, !0, 1), 1);
    assert_eq!(slots.requeue(from, to, 5), 2);
    assert_eq!(slots.wake(from, !0, 5), 0);
    assert_eq!(slots.wake(to, !0, 5), 2);
}

#[derive(Clone, Debug)]
enum Step {
    Admit,
    Run,
    Yield,
    Park(u8, u64),
    Wake(u8, usize),
    Interrupt(usize),
    Expire(u64),
    End,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Admit),
        Just(Step::Run),
        Just(Step::Run),
        Just(Step::Yield),
        (0u8..4, 1u64..100).prop_map(|(c, d)| Step::Park(c, d)),
        (0u8..4, 0usize..3).prop_map(|(c, n)| Step::Wake(c, n)),
        (0usize..8).prop_map(Step::Interrupt),
        (0u64..100).prop_map(Step::Expire),
        Just(Step::End),
    ]
}

proptest! {
    /// Against a model of plain queues; the conservation law after each step.
    #[test]
    fn slots_behave_like_plain_queues(steps in proptest::collection::vec(step(), 0..200)) {
        let mut slots = Slots::new();
        let mut run: VecDeque<SlotId> = VecDeque::new();
        let mut blocked: Vec<(SlotId, u8, u64)> = Vec::new();
        let mut current: Option<SlotId> = None;
        for step in steps {
            match step {
                Step::Admit => {
                    let id = slots.admit((), !0).unwrap();
                    slots.make_ready(id);
                    run.push_back(id);
                }
                Step::Run if current.is_none() => {
                    current = slots.next_ready(0);
                    prop_assert_eq!(current, run.pop_front());
                }
                Step::Yield => if let Some(id) = current.take() {
                    slots.make_ready(id);
                    run.push_back(id);
                },
                Step::Park(channel, deadline) => if let Some(id) = current.take() {
                    slots.park(id, wait(Channel::Child(u32::from(channel)), deadline));
                    prop_assert!(slots.commit(id));
                    blocked.push((id, channel, deadline));
                },
                Step::Wake(channel, limit) => {
                    let woken = slots.wake(Channel::Child(u32::from(channel)), !0, limit);
                    let mut expected = 0;
                    while expected < limit {
                        let Some(at) = blocked.iter().position(|b| b.1 == channel) else { break };
                        run.push_back(blocked.remove(at).0);
                        expected += 1;
                    }
                    prop_assert_eq!(woken, expected);
                }
                Step::Interrupt(at) => if at < blocked.len() {
                    let id = blocked.remove(at).0;
                    slots.interrupt(id, false);
                    prop_assert_eq!(slots.reason(id), Wake::Interrupted);
                    run.push_back(id);
                },
                Step::Expire(now) => {
                    let mut due: Vec<_> = blocked.iter().filter(|b| b.2 <= now).copied().collect();
                    due.sort_by_key(|b| b.0.0);
                    blocked.retain(|b| b.2 > now);
                    prop_assert_eq!(slots.expire(now), due.len());
                    run.extend(due.iter().map(|b| b.0));
                }
                Step::End => if let Some(id) = current.take() {
                    prop_assert!(slots.remove(id).is_some());
                },
                Step::Run => {}
            }
            prop_assert_eq!(slots.ready_count(), run.len());
            prop_assert_eq!(
                slots.live(),
                run.len() + blocked.len() + usize::from(current.is_some())
            );
        }
    }
}
