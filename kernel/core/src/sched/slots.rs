//! Who runs, who could, who waits and for what: the scheduler's bookkeeping as plain data.
//!
//! Every thread owns one *slot* from before it first runs until it is dead. A slot is on at most
//! one list: the run queue, or the wait list that its *channel* hashes to. The lists are linked
//! through the slots themselves, so that waking, parking and requeueing never allocate; only
//! [`Slots::admit`] does, and it may fail.
//!
//! A thread waits in two steps, which is what makes waking race-free: [`park`](Slots::park) puts
//! the slot on its channel while the thread still runs, the thread then looks at its condition
//! once more, and either [`unpark`](Slots::unpark)s or [`commit`](Slots::commit)s. A wake in
//! between turns the commit into a no-op.
//!
//! Invariant *one-list*: `Ready` slots and only they are on the run queue; `Parking` and `Blocked`
//! slots and only they are on a wait list; `count(Ready) + count(others) = live`.
//!
//! One run queue serves all CPUs; a slot's *affinity* says which of them may take it.
//!
//! Left out: priorities, run queues per CPU, a deadline heap (expiry scans all slots, but only when
//! the earliest deadline has passed).

use alloc::vec::Vec;

const NIL: u32 = u32::MAX;
const BUCKETS: usize = 64;

/// What a thread waits for. Plain names: waking a channel that nobody waits on does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    /// Nothing but time or a signal.
    Time,
    /// Something changed on this queue of a file: data, room, an end.
    File(u64),
    /// Something changed on any file that somebody may wait for.
    AnyFile,
    /// A child of this process changed.
    Child(u32),
    /// This process has let go of the address space that it borrowed from its parent.
    Vfork(u32),
    /// A signal for this thread.
    Signal(u32),
    /// This process is continued.
    Continue(u32),
    /// A thread of this process has ended.
    ThreadEnd(u32),
    /// A word of user memory: address space (or object) and address (or offset).
    Futex(u64, u64),
}

impl Channel {
    fn bucket(self) -> usize {
        let (kind, a, b) = match self {
            Self::Time => (1, 0, 0),
            Self::AnyFile => (2, 0, 0),
            Self::File(key) => (9, key, 0),
            Self::Child(id) => (3, u64::from(id), 0),
            Self::Vfork(id) => (4, u64::from(id), 0),
            Self::Signal(id) => (5, u64::from(id), 0),
            Self::Continue(id) => (6, u64::from(id), 0),
            Self::ThreadEnd(id) => (7, u64::from(id), 0),
            Self::Futex(space, addr) => (8u64, space, addr),
        };
        // Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4).
        let mixed =
            (kind ^ a.rotate_left(17) ^ b.rotate_left(40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 58) as usize % BUCKETS
    }
}

/// Which events besides its channel end a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Patience {
    /// Only the channel and the deadline.
    Never,
    /// Also the end of the process.
    Killable,
    /// Also any signal that is to be delivered.
    Interruptible,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// Somebody woke the channel.
    Woken,
    /// A signal or the end of the process.
    Interrupted,
    /// The deadline passed.
    TimedOut,
}

/// One wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait {
    /// What for.
    pub(crate) channel: Channel,
    /// Which kinds of wake count (a futex bit set); all ones otherwise.
    pub(crate) mask: u32,
    /// Monotonic nanoseconds; `u64::MAX` for ever.
    pub(crate) deadline: u64,
    /// What else ends it.
    pub(crate) patience: Patience,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    New,
    Running,
    Ready,
    Parking,
    Blocked,
}

/// The number of a slot, valid while its thread lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotId(u32);

#[derive(Debug)]
struct Slot<T> {
    payload: Option<T>,
    /// The CPUs that it may run on, a bit each.
    affinity: u64,
    state: State,
    next: u32,
    prev: u32,
    wait: Wait,
    reason: Wake,
}

#[derive(Clone, Copy, Debug)]
struct List {
    head: u32,
    tail: u32,
}

impl List {
    const EMPTY: Self = Self { head: NIL, tail: NIL };
}

/// The bit that stands for a CPU. Those from 63 on share the last one.
pub(crate) fn bit(cpu: usize) -> u64 {
    1 << cpu.min(63)
}

/// No memory for another slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoSlot;

/// The slots and their lists.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: u32,
    run: List,
    waits: [List; BUCKETS],
    earliest: u64,
    live: usize,
    ready: usize,
}

impl<T> Slots<T> {
    pub(crate) const fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: NIL,
            run: List::EMPTY,
            waits: [List::EMPTY; BUCKETS],
            earliest: u64::MAX,
            live: 0,
            ready: 0,
        }
    }

    /// Slots in use.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// Slots on the run queue.
    pub(crate) fn ready_count(&self) -> usize {
        self.ready
    }

    /// A slot for `payload`, not yet runnable, on the CPUs of `affinity`.
    pub(crate) fn admit(&mut self, payload: T, affinity: u64) -> Result<SlotId, NoSlot> {
        let slot = Slot {
            payload: Some(payload),
            affinity,
            state: State::New,
            next: NIL,
            prev: NIL,
            wait: Wait {
                channel: Channel::Time,
                mask: !0,
                deadline: u64::MAX,
                patience: Patience::Never,
            },
            reason: Wake::Woken,
        };
        let index = if self.free == NIL {
            self.slots.try_reserve(1).map_err(|_| NoSlot)?;
            self.slots.push(slot);
            (self.slots.len() - 1) as u32
        } else {
            let index = self.free;
            let old = &mut self.slots[index as usize];
            self.free = old.next;
            *old = slot;
            index
        };
        self.live += 1;
        Ok(SlotId(index))
    }

    /// Takes a slot out of use: its thread is dead or never ran.
    pub(crate) fn remove(&mut self, id: SlotId) -> Option<T> {
        self.unlink(id);
        let free = self.free;
        let slot = &mut self.slots[id.0 as usize];
        debug_assert!(slot.state != State::Free);
        slot.state = State::Free;
        slot.next = free;
        self.free = id.0;
        self.live -= 1;
        slot.payload.take()
    }

    /// What the slot holds.
    pub(crate) fn payload(&self, id: SlotId) -> Option<&T> {
        self.slots.get(id.0 as usize).and_then(|slot| slot.payload.as_ref())
    }

    /// A new slot may run from now on; a running one goes to the end of the queue.
    pub(crate) fn make_ready(&mut self, id: SlotId) {
        debug_assert!(matches!(self.slots[id.0 as usize].state, State::New | State::Running));
        self.slots[id.0 as usize].state = State::Ready;
        self.ready += 1;
        Self::push(&mut self.slots, &mut self.run, id.0);
    }

    /// The CPUs that a slot may run on, a bit each.
    pub(crate) fn affinity(&self, id: SlotId) -> u64 {
        self.slots.get(id.0 as usize).map_or(0, |slot| slot.affinity)
    }

    /// From its next turn on, the slot runs on these CPUs only.
    pub(crate) fn set_affinity(&mut self, id: SlotId, affinity: u64) {
        if let Some(slot) = self.slots.get_mut(id.0 as usize) {
            slot.affinity = affinity;
        }
    }

    /// The first slot on the run queue that may run on `cpu`.
    pub(crate) fn first_ready(&self, cpu: usize) -> Option<SlotId> {
        let mut at = self.run.head;
        while at != NIL {
            let slot = &self.slots[at as usize];
            if slot.affinity & bit(cpu) != 0 {
                return Some(SlotId(at));
            }
            at = slot.next;
        }
        None
    }

    /// Takes the next slot for `cpu` from the run queue: it runs now.
    pub(crate) fn next_ready(&mut self, cpu: usize) -> Option<SlotId> {
        let id = self.first_ready(cpu)?;
        self.unlink(id);
        self.slots[id.0 as usize].state = State::Running;
        Some(id)
    }

    /// First step of a wait of the running slot `id`.
    pub(crate) fn park(&mut self, id: SlotId, wait: Wait) {
        let slot = &mut self.slots[id.0 as usize];
        debug_assert!(slot.state == State::Running);
        slot.state = State::Parking;
        slot.wait = wait;
        self.earliest = self.earliest.min(wait.deadline);
        let list = &mut self.waits[wait.channel.bucket()];
        Self::push(&mut self.slots, list, id.0);
    }

    /// The thread does not wait after all. Says whether it was woken meanwhile.
    pub(crate) fn unpark(&mut self, id: SlotId) -> Option<Wake> {
        match self.slots[id.0 as usize].state {
            State::Parking => {
                self.unlink(id);
                self.slots[id.0 as usize].state = State::Running;
                None
            }
            _ => Some(self.slots[id.0 as usize].reason),
        }
    }

    /// Second step: the thread is about to leave the CPU. False when it was woken meanwhile.
    pub(crate) fn commit(&mut self, id: SlotId) -> bool {
        let slot = &mut self.slots[id.0 as usize];
        if slot.state != State::Parking {
            return false;
        }
        slot.state = State::Blocked;
        true
    }

    /// Why the last wait ended.
    pub(crate) fn reason(&self, id: SlotId) -> Wake {
        self.slots[id.0 as usize].reason
    }

    /// Wakes up to `limit` slots, longest waiting first, that wait on `channel` with a common bit
    /// in `mask`. Returns how many.
    pub(crate) fn wake(&mut self, channel: Channel, mask: u32, limit: usize) -> usize {
        let mut at = self.waits[channel.bucket()].head;
        let mut woken = 0;
        while at != NIL && woken < limit {
            let slot = &self.slots[at as usize];
            let next = slot.next;
            if slot.wait.channel == channel && slot.wait.mask & mask != 0 {
                self.end_wait(SlotId(at), Wake::Woken);
                woken += 1;
            }
            at = next;
        }
        woken
    }

    /// Lets up to `limit` slots that wait on `from` wait on `to` instead. Returns how many.
    pub(crate) fn requeue(&mut self, from: Channel, to: Channel, limit: usize) -> usize {
        let mut at = self.waits[from.bucket()].head;
        let mut moved = 0;
        while at != NIL && moved < limit && from != to {
            let next = self.slots[at as usize].next;
            if self.slots[at as usize].wait.channel == from {
                self.unlink(SlotId(at));
                self.slots[at as usize].wait.channel = to;
                let list = &mut self.waits[to.bucket()];
                Self::push(&mut self.slots, list, at);
                moved += 1;
            }
            at = next;
        }
        moved
    }

    /// Ends the wait of one slot, if it waits with at least this patience.
    pub(crate) fn interrupt(&mut self, id: SlotId, fatal: bool) {
        let Some(slot) = self.slots.get(id.0 as usize) else { return };
        let needed = if fatal { Patience::Killable } else { Patience::Interruptible };
        if matches!(slot.state, State::Parking | State::Blocked) && slot.wait.patience >= needed {
            self.end_wait(id, Wake::Interrupted);
        }
    }

    /// Ends every wait whose deadline is not after `now`. Returns how many.
    pub(crate) fn expire(&mut self, now: u64) -> usize {
        if now < self.earliest {
            return 0;
        }
        let mut earliest = u64::MAX;
        let mut ended = 0;
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            if !matches!(slot.state, State::Parking | State::Blocked) {
                continue;
            }
            if slot.wait.deadline <= now {
                self.end_wait(SlotId(index as u32), Wake::TimedOut);
                ended += 1;
            } else {
                earliest = earliest.min(slot.wait.deadline);
            }
        }
        self.earliest = earliest;
        ended
    }

    /// No wait ends by its deadline before this time.
    pub(crate) fn earliest(&self) -> u64 {
        self.earliest
    }

    /// Is the slot's thread waiting (as `ps` would say: asleep)?
    pub(crate) fn is_waiting(&self, id: SlotId) -> bool {
        self.slots
            .get(id.0 as usize)
            .is_some_and(|slot| matches!(slot.state, State::Parking | State::Blocked))
    }

    fn end_wait(&mut self, id: SlotId, reason: Wake) {
        self.unlink(id);
        let slot = &mut self.slots[id.0 as usize];
        slot.reason = reason;
        if slot.state == State::Parking {
            slot.state = State::Running;
        } else {
            slot.state = State::Running;
            self.make_ready(id);
        }
    }

    fn push(slots: &mut [Slot<T>], list: &mut List, index: u32) {
        slots[index as usize].prev = list.tail;
        slots[index as usize].next = NIL;
        if list.tail == NIL {
            list.head = index;
        } else {
            slots[list.tail as usize].next = index;
        }
        list.tail = index;
    }

    fn unlink(&mut self, id: SlotId) {
        let slot = &self.slots[id.0 as usize];
        let (state, next, prev, channel) = (slot.state, slot.next, slot.prev, slot.wait.channel);
        let list = match state {
            State::Ready => {
                self.ready -= 1;
                &mut self.run
            }
            State::Parking | State::Blocked => &mut self.waits[channel.bucket()],
            State::Free | State::New | State::Running => return,
        };
        if prev == NIL {
            list.head = next;
        } else {
            self.slots[prev as usize].next = next;
        }
        if next == NIL {
            list.tail = prev;
        } else {
            self.slots[next as usize].prev = prev;
        }
        let slot = &mut self.slots[id.0 as usize];
        slot.next = NIL;
        slot.prev = NIL;
    }
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;
