//! Processes and threads.
//!
//! A *process* ([`Process`]) is what threads share: address space, open files, signal actions,
//! identity. A *thread* ([`Thread`]) is what runs. Every process has at least one thread from the
//! moment it is in the tables until it is a *zombie*, which has none and waits to be waited for.
//! The *tables* ([`Tables`]) find both by number.
//!
//! # Invariants
//!
//! *in-tables*: a thread is in the tables and in its process's list from before it first runs until
//! it has ended; a process from before its first thread runs until its parent (or nobody) has taken
//! its status.
//!
//! *prepare-commit*: a new process or thread is built in full, with its place in the tables and in
//! the queues reserved, before anybody can see it; afterwards nothing can fail.
//!
//! # Lock order
//!
//! [`Kernel::tables`](crate::kernel::Kernel), then [`Process::family`], then the small locks of a
//! process (signals, ids, places ...), then a thread's signals, then the queues. An address space's
//! locks are taken with none of these held but those of its own crate.

pub(crate) mod exec;
mod exhaustion;
mod exit;
pub(crate) mod fork;
pub(crate) mod image;
mod process;
mod stack;
mod status;
mod tables;
mod thread;
mod timers;
pub(crate) mod wait;

pub(crate) use exec::{Request, first_space};
pub(crate) use exit::FIRST;
pub(crate) use fork::CloneArgs;
pub(crate) use process::{Executed, Files, Ids, Parts, Places, Process, Usage};
pub(crate) use status::WaitStatus;
pub(crate) use tables::Tables;
pub(crate) use thread::Thread;
pub(crate) use timers::{Alarm, Notify, TimerClock, Timers};
pub(crate) use wait::WaitFor;
