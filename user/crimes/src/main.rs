//! What no program may do, done: each crime in a process of its own, and a line that says how that
//! ended. The lines are the same on Linux and on the reference kernel, and the kernel lives on.
//!
//! `crimes [NAME...]`: all, or those whose names begin like that.
//!
//! Every deed ([`deeds`], [`frames`], [`races`]) is done twice: once to see which signal ends the
//! process, once with a handler that is told the circumstances. Then calls are made with pointers
//! to where nothing is, with every boundary of a page inside what they point at ([`pointers`]), and
//! calls that must be refused ([`refusals`]).
#![allow(unsafe_code)] // that is what this is about

use std::process::ExitCode;

mod deeds;
mod frames;
mod pointers;
mod races;
mod refusals;
mod watch;

use watch::Tell;

/// A deed: its name, what is told of its circumstances, and what is done.
pub type Deed = (&'static str, Tell, fn());

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted =
        |name: &str| wanted.is_empty() || wanted.iter().any(|w| name.starts_with(w.as_str()));
    let mut count = 0;
    for (name, tell, deed) in deeds::ALL.iter().chain(frames::ALL).chain(races::ALL) {
        if is_wanted(name) {
            println!("{name}: {}", watch::run(*tell, *deed));
            count += 1;
        }
    }
    if is_wanted("pointers") {
        count += pointers::run();
    }
    if is_wanted("refusals") {
        count += refusals::run();
    }
    println!("{count} crimes");
    ExitCode::SUCCESS
}
