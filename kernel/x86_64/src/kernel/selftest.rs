//! Mistakes made on purpose, and what must hold on the border to programs.
//!
//! `selftest=NAME` on the command line makes one mistake, which must end the machine with a report
//! that names it:
//!
//! | name | mistake | the report must say |
//! |---|---|---|
//! | `panic` | a panic | the message, and a backtrace |
//! | `stack` | endless recursion on a thread's stack | kernel stack overflow, thread |
//! | `bootstack` | endless recursion on the boot stack | kernel stack overflow, boot |
//! | `doublefree` | a frame freed twice | DoubleFree, the frame |
//! | `kfree` | a block freed twice | double free, the block |
//! | `overrun` | a write behind a block between guard pages | write behind a block, the block |
//! | `afterfree` | a write to such a block after its free | write after free |
//! | `text` | a store to kernel text | write, not allowed, kernel text |
//! | `alias` | a store to kernel text through the direct map | write, not allowed |
//! | `execute` | a jump to kernel data | execution, not allowed |
//! | `null` | a read through a null pointer | read, nothing is mapped |
//! | `pinned` | a switch while pinned | switched while pinned |
//! | `rank` | a lock of a lower rank | lock of rank |
//! | `hang` | an endless loop with interrupts off | nothing; an NMI says where |
//! | `leak` | a frame never freed | frames were not returned (at the end) |
//!
//! `selftest=cost` prints what the border and the allocators cost, and goes on.
//! `selftest=heap` prints how many instructions a `kalloc` and its `kfree` take, and goes on.
//! `selftest=storm` crosses the border for four seconds, for NMIs from outside to hit it; goes on.
//! `selftest=where` asks all CPUs where they are, by an NMI; goes on.
//! `selftest=huge` takes blocks of 1 GiB, marks them and gives them back ([`huge`]); goes on.
//! `selftest` alone runs what must work ([`border`]) and goes on.
#![allow(unsafe_code)] // makes mistakes

mod border;
mod counted;
mod huge;

use core::alloc::Layout;
use core::hint::black_box;

use pagoda_frames::Request;
use pagoda_sync::{Cpus, rank};

use super::context::Context;
use super::host::{DirectMap, KERNEL, Lock, heap, kind};
use super::percpu::KernelCpus;
use super::stacks::Stack;
use super::{lapic, layout};

/// Does what `selftest` or `selftest=` on the command line asks for.
pub(crate) fn run(command_line: &[u8]) {
    for word in command_line.split(u8::is_ascii_whitespace) {
        if word == b"selftest" {
            border::run();
        } else if let Some(name) = word.strip_prefix(b"selftest=") {
            log::info!("selftest: {}, on purpose", str::from_utf8(name).unwrap_or("?"));
            mistake(name);
        }
    }
}

fn mistake(name: &[u8]) {
    match name {
        b"panic" => panic!("on purpose"),
        b"stack" => overflow_thread_stack(),
        b"bootstack" => {
            black_box(recurse(0));
        }
        b"doublefree" => double_free_frame(),
        b"kfree" => double_free_block(),
        b"overrun" => overrun_block(false),
        b"afterfree" => overrun_block(true),
        b"text" => store(layout::text().start().as_u64()),
        b"alias" => store(layout::direct(layout::sealed_image()).start().as_u64()),
        b"execute" => execute_data(),
        b"null" => {
            // SAFETY: it is not: nothing is mapped there, which is what is tested.
            black_box(unsafe { black_box(16 as *const u64).read_volatile() });
        }
        b"hang" => loop {
            core::hint::spin_loop();
        },
        b"storm" => border::storm(),
        b"cost" => border::cost(),
        b"where" => lapic::nmi_to_self(),
        b"huge" => huge::run(),
        b"heap" => counted::run(),
        b"pinned" => switch_while_pinned(),
        b"rank" => locks_in_the_wrong_order(),
        b"leak" => {
            if let Some(Ok(lost)) =
                KERNEL.frames.get().map(|f| f.alloc(Request::frame().kind(kind::TEST)))
            {
                let _ = lost.into_range();
            }
        }
        _ => log::warn!("there is no selftest of that name"),
    }
}

#[inline(never)]
#[allow(unconditional_recursion)]
fn recurse(depth: u64) -> u64 {
    let room = black_box([depth; 32]);
    recurse(depth + 1) + room[depth as usize % 32]
}

extern "C" fn recurse_forever(_: usize) -> ! {
    black_box(recurse(0));
    unreachable!("the stack has an end");
}

fn overflow_thread_stack() {
    let Ok(stack) = Stack::new() else { return };
    let thread = Context::new(&stack, recurse_forever, 0);
    let mut here = Context::unused();
    // SAFETY: the thread is fresh, its stack lives, and it never comes back.
    unsafe { Context::switch(&raw mut here, &raw const thread) };
}

fn double_free_frame() {
    let Some(frames) = KERNEL.frames.get() else { return };
    let Ok(owned) = frames.alloc(Request::frame().kind(kind::TEST)) else { return };
    let range = owned.into_range();
    KERNEL.give_back(range);
    KERNEL.give_back(range);
}

fn double_free_block() {
    let Ok(block) = heap().kalloc(Layout::new::<[u64; 5]>()) else { return };
    for _ in 0..2 {
        // SAFETY: the first time it is; the second time the heap must notice.
        let _ = unsafe { heap().kfree(block) };
    }
}

/// Writes behind, or into after it is freed, a block that stands between guard pages.
fn overrun_block(after_free: bool) {
    heap().set_sampling(1);
    // Until the magazine is empty and a sample is served.
    for _ in 0..100 {
        let Ok(block) = heap().kalloc(Layout::new::<[u64; 5]>()) else { return };
        let address = block.as_ptr() as u64;
        if !layout::kva().contains(pagoda_addr::VirtAddr::new(address)) {
            continue;
        }
        if after_free {
            // SAFETY: it is not used any more; what is written below is the mistake.
            let _ = unsafe { heap().kfree(block) };
            heap().drain();
            store(address);
        }
        store((address | 0xfff) + 1);
    }
}

fn store(addr: u64) {
    // SAFETY: it is not: the place is read-only, which is what is tested.
    unsafe { black_box(addr as *mut u64).write_volatile(0) };
}

fn execute_data() {
    static RETURN: [u8; 16] = [0xc3; 16];
    let place = pagoda_addr::PhysMap::ptr(
        &DirectMap,
        layout::image_phys(pagoda_addr::VirtAddr::new(RETURN.as_ptr() as u64)),
    );
    // SAFETY: it is not: the direct map is not executable, which is what is tested.
    let function: extern "C" fn() = unsafe { core::mem::transmute(place) };
    black_box(function)();
}

fn switch_while_pinned() {
    let _pin = KernelCpus.pin();
    let mut here = Context::unused();
    // SAFETY: stopped by the assertion before anything is switched.
    unsafe { Context::switch(&raw mut here, &raw const here) };
}

fn locks_in_the_wrong_order() {
    static INNER: lock_api::Mutex<Lock<{ rank::FRAMES }>, ()> = lock_api::Mutex::new(());
    static OUTER: lock_api::Mutex<Lock<{ rank::HEAP }>, ()> = lock_api::Mutex::new(());
    let _inner = INNER.lock();
    let _outer = OUTER.lock();
}
