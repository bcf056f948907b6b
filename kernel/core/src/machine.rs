//! What the portable half asks of a machine. One implementer runs on x86-64; another, for tests,
//! runs on the host with scripts in the place of programs.

use core::fmt;

use pagoda_addr::VirtAddr;
use pagoda_paging::{PageTable, Platform};
use pagoda_sync::CpuId;
use pagoda_vm::VmPlatform;

/// The general registers of a program, as a trap left them and as it goes on with them. Names and
/// meaning are those of x86-64; to everybody but the machine half this is plain data.
///
/// In the order in which x86-64 pushes what it pushes, so that a trap can leave its frame right
/// here: the last seven words are the CPU's own, and four of them (`cause`, `code`, `cs`, `ss`) are
/// of no interest to anybody else, not even to comparisons.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(16))]
#[allow(missing_docs)] // the architecture's own names
pub struct UserRegs {
    pub fs_base: u64,
    pub gs_base: u64,
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub cause: u64,
    pub code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl PartialEq for UserRegs {
    fn eq(&self, other: &Self) -> bool {
        let words = |r: &Self| {
            [
                [r.rax, r.rbx, r.rcx, r.rdx, r.rsi],
                [r.rdi, r.rbp, r.rsp, r.r8, r.r9],
                [r.r10, r.r11, r.r12, r.r13, r.r14],
                [r.r15, r.rip, r.rflags, r.fs_base, r.gs_base],
            ]
        };
        words(self) == words(other)
    }
}

impl Eq for UserRegs {}

/// Why a program stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// The `syscall` instruction: number in `rax`, arguments in `rdi rsi rdx r10 r8 r9`.
    Syscall,
    /// A page fault at `addr` (read from CR2 before anything could overwrite it).
    PageFault {
        /// The address that the program touched.
        addr: VirtAddr,
        /// A write (else a read or a fetch).
        write: bool,
        /// An instruction fetch.
        exec: bool,
        /// The page was present: a protection violation.
        present: bool,
    },
    /// Any other exception: its vector and error code.
    Exception {
        /// The vector, 0 to 31.
        vector: u8,
        /// The error code, 0 where the vector has none.
        code: u64,
    },
    /// A device or the timer wants attention; the machine half has served the device.
    Interrupt,
}

/// How a program goes on after a short answer to its trap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Resume {
    /// With the registers as they were, but for `rax` after a system call.
    Program = 0,
    /// Not yet: [`Serve::whole`] is asked.
    Whole = 1,
}

/// What serves a program's traps: a thread. Called on the thread's kernel stack, with interrupts
/// off, and may wait and switch.
///
/// *partial-frame*: most traps need a few registers only, so a machine need not have stored the
/// others. In [`call`](Self::call) these are current: `rax`, the arguments, `rip`, `rsp`, `rflags`;
/// in [`page_fault`](Self::page_fault) `rip`, `rsp`, `rflags`. Only `rax` may be changed, and only in
/// `call`. In [`trap`](Self::trap) and [`whole`](Self::whole) all are current, and may be changed.
pub trait Serve {
    /// The registers; always in the same place.
    fn regs(&mut self) -> &mut UserRegs;

    /// A system call.
    fn call(&mut self) -> Resume;

    /// A page fault; as in [`Trap::PageFault`].
    fn page_fault(&mut self, addr: VirtAddr, write: bool, exec: bool, present: bool) -> Resume;

    /// Any other trap; false: the program does not go on.
    fn trap(&mut self, trap: Trap) -> bool;

    /// Before the program runs for the first time, and after every [`Resume::Whole`]: whatever
    /// needs all registers. False: the program does not go on.
    fn whole(&mut self) -> bool;
}

/// A serial line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Terminal; a program's standard input and output.
    Terminal,
    /// Control channel to whoever started the machine.
    Control,
    /// A program's standard error in raw mode.
    Error,
}

/// No memory for a kernel stack or a register area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

/// How much memory the machine has and where it is. All in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryTotals {
    /// RAM that the frame allocator was given.
    pub total: u64,
    /// Frames that nobody holds.
    pub free: u64,
    /// Frames that sit in allocator caches: free, but not in the shared pool.
    pub cached: u64,
    /// Free frames that only the kernel itself may take.
    pub reserve: u64,
    /// Held by the kernel heap.
    pub heap: u64,
    /// Held as page tables.
    pub page_tables: u64,
    /// Held as kernel stacks.
    pub stacks: u64,
}

/// What a frame of physical memory is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameUse {
    /// There is no such frame that the kernel gives out.
    None,
    /// Nothing.
    Free,
    /// The kernel heap.
    Heap,
    /// Page tables.
    PageTable,
    /// Programs, or files.
    Program,
    /// The page of zeroes.
    Zero,
    /// Something else of the kernel's.
    Kernel,
}

/// A text about its insides that the machine half writes, a file in `/proc` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// `/proc/buddyinfo`: free blocks by order.
    BuddyInfo,
    /// `/proc/slabinfo`: the kernel heap's caches.
    SlabInfo,
    /// `/proc/zoneinfo`: the zones of each node.
    ZoneInfo,
    /// `/proc/vmallocinfo`: the kernel's own virtual ranges.
    VmallocInfo,
    /// `/proc/iomem`: the boot map, who sits where.
    IoMem,
    /// `/proc/cpuinfo`: empty for a short text about no CPU in particular.
    CpuInfo,
    /// `/proc/pagetypeinfo`: free blocks and 2 MiB blocks by what they are for.
    PageTypeInfo,
    /// `/proc/frames`: where all frames are, and whose. Linux has no such file.
    Frames,
}

/// The machine under the portable half. Shared by all CPUs; methods act on the executing CPU.
pub trait Machine:
    Platform<Lock: Send + Sync>
    + VmPlatform<RegionLock: Send + Sync, ObjectLock: Send + Sync>
    + Sync
    + Sized
    + 'static
{
    /// The page-table format of its address spaces.
    type Format: pagoda_paging::Format + Send + Sync + 'static;
    /// A kernel stack with guard pages, given back when dropped.
    type Stack: Send;
    /// The saved registers of a thread that does not run.
    type Context: Send;
    /// A program's floating-point and vector registers: an XSAVE image.
    type Fpu: Send;

    /// An empty page table for a program: nothing in its lower half, the kernel in its upper one.
    fn new_page_table(&'static self)
    -> Result<PageTable<Self::Format, &'static Self>, OutOfMemory>;

    /// A fresh kernel stack.
    fn new_stack(&'static self) -> Result<Self::Stack, OutOfMemory>;

    /// A context that, when first switched to, calls `entry(argument)` on `stack`.
    fn new_context(
        &'static self,
        stack: &Self::Stack,
        entry: extern "C" fn(usize) -> !,
        argument: usize,
    ) -> Self::Context;

    /// An unused context, to save the CPU's boot thread (later: idle thread) into.
    fn idle_context(&self) -> Self::Context;

    /// Saves the running context in `from` and goes on in `to`; returns when somebody switches
    /// back.
    ///
    /// # Safety
    /// Both pointers stay valid until `from` is switched to again; `to` was saved by a switch away
    /// or made by [`new_context`](Self::new_context), its stack lives, and it runs nowhere else.
    #[allow(unsafe_code)]
    unsafe fn switch(&self, from: *mut Self::Context, to: *const Self::Context);

    /// Runs the program whose registers `server` has, in the active address space, and lets
    /// `server` serve its traps where they arrive, until that says that the program does not go on.
    /// Interrupts are on in user mode only. Registers that would harm the kernel (a non-canonical
    /// `rip`, privileged flags) are refused as the trap that they would cause.
    fn run_user<S: Serve>(&self, server: &mut S);

    /// Came the interrupt that is being served while the kernel worked for the program, and could
    /// only be taken when that went on? For whoever shares out time by samples.
    fn interrupted_kernel(&self, regs: &UserRegs) -> bool {
        let _ = regs;
        false
    }

    /// Makes `root` the active page table of this CPU (0 for the kernel's own).
    fn activate(&self, root: Option<pagoda_addr::Frame>);

    /// Clean floating-point state, as a fresh program sees it.
    fn new_fpu(&self) -> Result<Self::Fpu, OutOfMemory>;
    /// Stores the CPU's floating-point registers.
    fn save_fpu(&self, into: &mut Self::Fpu);
    /// Loads the CPU's floating-point registers.
    fn load_fpu(&self, from: &Self::Fpu);
    /// The image as bytes for a signal frame, in the XSAVE layout that Linux uses.
    fn fpu_bytes<'f>(&self, fpu: &'f Self::Fpu) -> &'f [u8];
    /// Takes an image from a signal frame; false (and no change) when it is not acceptable.
    fn set_fpu_bytes(&self, fpu: &mut Self::Fpu, bytes: &[u8]) -> bool;

    /// Waits, with interrupts on, until an interrupt was served.
    fn wait_for_interrupt(&self);

    /// Nanoseconds since boot, never backwards.
    fn monotonic_ns(&self) -> u64;
    /// Nanoseconds since 1970.
    fn realtime_ns(&self) -> u64;

    /// Writes all bytes to a line, waiting as long as the line is busy.
    fn serial_write(&self, port: Port, bytes: &[u8]);
    /// Takes what has arrived, without waiting; returns the number of bytes.
    fn serial_read(&self, port: Port, into: &mut [u8]) -> usize;

    /// Bytes for `getrandom` and `AT_RANDOM`.
    fn random(&self, into: &mut [u8]);

    /// The executing CPU.
    fn cpu(&self) -> CpuId {
        CpuId::BOOT
    }

    /// CPUs that run threads; constant once [`start`](fn@crate::start) is called. Their numbers are
    /// those below.
    fn cpu_count(&self) -> usize {
        1
    }

    /// Makes another CPU trap out of its program, or leave
    /// [`wait_for_interrupt`](Self::wait_for_interrupt), soon.
    fn kick(&self, cpu: CpuId) {
        let _ = cpu;
    }

    /// Says whether what is allocated on this CPU from now on may be made to fail: it serves a
    /// program, and not the first process, whose end is the end of everything. For machines that
    /// make allocations fail on purpose.
    fn may_fail(&self, yes: bool) {
        let _ = yes;
    }

    /// Lets the `nth` allocation on this CPU from now on fail that [may](Self::may_fail), once; 0:
    /// none. Returns what was left of the last such order.
    fn fail_nth(&self, nth: u64) -> u64 {
        let _ = nth;
        0
    }

    /// Lets every other CPU call `work(argument)`, once.
    fn run_others(&self, work: extern "C" fn(usize), argument: usize) {
        let _ = (work, argument);
    }

    /// Waits until every other CPU has come back from that call.
    fn join_others(&self) {}

    /// The memory totals behind `/proc/meminfo` and `sysinfo`.
    fn memory(&self) -> MemoryTotals {
        MemoryTotals::default()
    }

    /// One past the highest frame that [`frame_use`](Self::frame_use) may know something about.
    fn frame_end(&self) -> u64 {
        0
    }

    /// What the frame with this number is used for, and how many references there are to it.
    fn frame_use(&self, number: u64) -> (FrameUse, u32) {
        let _ = number;
        (FrameUse::None, 0)
    }

    /// Writes one of its reports; nothing where it has nothing to say.
    fn report(&self, what: Report, out: &mut dyn fmt::Write) -> fmt::Result {
        let _ = (what, out);
        Ok(())
    }

    /// `AT_HWCAP` (CPUID leaf 1, `edx`) and `AT_HWCAP2` of the auxiliary vector.
    fn hwcap(&self) -> [u64; 2] {
        [0, 0]
    }

    /// The feature bits (XCR0) of the XSAVE image that [`fpu_bytes`](Self::fpu_bytes) returns; the
    /// signal frame names them. 0 where the image is the 512 bytes of FXSAVE.
    fn fpu_features(&self) -> u64 {
        0
    }

    /// A hint: nothing needs the CPU before `deadline` (nanoseconds on the monotonic clock), but
    /// then something does. `None`: nothing is waited for. A machine whose timer ticks anyway may
    /// ignore it.
    fn wake_at(&self, deadline: Option<u64>) {
        let _ = deadline;
    }
}
