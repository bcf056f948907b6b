//! The tour of all storeys, seen from a program: what a process gets, what it costs in frames, and
//! that everything comes back. Every step states a number that it then checks; the exit status is
//! the number of steps that did not hold.
//!
//! It uses plain Linux system calls and runs on Linux as well. What Linux does not promise (that
//! nobody else takes frames meanwhile) is checked only on our own kernel.

use std::process::ExitCode;

mod kernel;
mod space;

/// The fifth storey, under everything that this program allocates.
#[global_allocator]
static MALLOC: pagoda_malloc::Malloc = pagoda_malloc::Malloc::new();

/// Counts the steps that did not hold.
#[derive(Default)]
pub struct Tour {
    steps: u32,
    wrong: u8,
}

impl Tour {
    /// Says what must hold, and whether it does.
    pub fn step(&mut self, holds: bool, text: &str) {
        self.steps += 1;
        println!("    {} {text}", if holds { "ok " } else { "NO " });
        if !holds {
            self.wrong = self.wrong.saturating_add(1);
        }
    }
}

fn storey(number: u32, title: &str) {
    println!("  storey {number}: {title}");
}

fn main() -> ExitCode {
    let mut tour = Tour::default();
    println!("The tour, from inside a program (process {})", std::process::id());
    storey(2, "frames");
    kernel::frames_follow_the_pages(&mut tour);
    storey(3, "the kernel's heap");
    kernel::kernel_objects_come_and_go(&mut tour);
    storey(4, "a private address space");
    space::reserving_costs_nothing(&mut tour);
    space::fork_copies_on_write(&mut tour);
    space::protection_is_enforced_and_a_fault_can_be_mended(&mut tour);
    space::a_crime_ends_the_process_and_nothing_else(&mut tour);
    storey(5, "malloc");
    space::malloc_gives_forty_bytes(&mut tour);
    space::malloc_gives_back_what_it_does_not_need(&mut tour);
    println!("The tour is over: {} steps, {} did not hold", tour.steps, tour.wrong);
    ExitCode::from(tour.wrong)
}
