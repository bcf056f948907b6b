//! Replacing a program.
//!
//! Prepare: the whole new address space is built beside the old one. Commit: the other threads of
//! the process end, the new space takes the old one's place, handlers and close-on-exec files go.
//! A file that cannot be executed, or memory that is short, leaves the caller as it was.
//!
//! Left out: dynamic linkers, set-user-id, `execve` by another than the first thread taking over
//! the first one's number (it keeps its own).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::Ordering;

use pagoda_addr::{Frame, PAGE_SIZE, UserRange, VirtAddr};
use pagoda_kernel_fs::{Follow, Inode, Viewpoint};
use pagoda_linux::Errno;
use pagoda_vm::fallible::{try_arc, try_extend, try_vec};
use pagoda_vm::{
    AddressSpace, Backing, FileIdentity, FileObject, Layout, MapFlags, MapRequest, Place, Prot,
    ReadError, VmError,
};

use super::image::{self, ImageError, Plan};
use super::process::{Executed, Program};
use super::stack::{self, InitialStack, StackContent};
use crate::host::file_key;
use crate::kernel::Kernel;
use crate::machine::{Machine, UserRegs};
use crate::run::Cx;
use crate::sched::slots::{Channel, Patience, Wait};
use crate::signal::frame;
use crate::user::StrList;
use crate::{Result, Space};

/// How many scripts may lead to one another.
const SCRIPT_DEPTH: usize = 5;
/// Bytes of a file that say what it is.
const HEAD: usize = 256;
/// The stack that is there from the start; it grows.
const STACK_START: u64 = 132 << 10;
const RLIMIT_STACK: usize = 3;
/// Flags of a fresh program: interrupts on, and the bit that is always set.
const FRESH_FLAGS: u64 = 0x202;

/// A file as the address space sees it. One for each mapping that a program makes.
pub(crate) struct NodeObject {
    node: Arc<Inode>,
    path: Vec<u8>,
    /// Stores through the mapping are in the file.
    writable: bool,
}

impl NodeObject {
    /// A mapping of `node`, which is called `path`.
    pub(crate) fn mapping(
        node: Arc<Inode>,
        path: Vec<u8>,
        writable: bool,
    ) -> Result<Arc<dyn FileObject>> {
        node.note_mapping(writable, true);
        let object = try_arc(Self { node, path, writable }).map_err(|_| Errno::ENOMEM)?;
        Ok(object)
    }
}

impl Drop for NodeObject {
    fn drop(&mut self) {
        self.node.note_mapping(self.writable, false);
    }
}

impl FileObject for NodeObject {
    fn size(&self) -> u64 {
        self.node.size()
    }
    fn read_page(
        &self,
        index: u64,
        into: &mut [u8; PAGE_SIZE as usize],
    ) -> core::result::Result<(), ReadError> {
        self.node.read_page(index, into).map_err(|error| match error {
            Errno::ENOMEM => ReadError::OutOfMemory,
            _ => ReadError::Bus,
        })
    }
    fn frame(&self, index: u64, ahead: bool) -> core::result::Result<Option<Frame>, ReadError> {
        self.node.page_frame(index, ahead).map_err(|error| match error {
            Errno::ENOMEM => ReadError::OutOfMemory,
            _ => ReadError::Bus,
        })
    }
    fn key(&self) -> usize {
        file_key(&self.node)
    }
    fn identity(&self) -> FileIdentity {
        let stat = self.node.stat();
        FileIdentity { major: stat.dev.major, minor: stat.dev.minor, inode: stat.ino }
    }
    fn write_path(&self, to: &mut dyn fmt::Write) -> fmt::Result {
        for chunk in self.path.utf8_chunks() {
            to.write_str(chunk.valid())?;
            if !chunk.invalid().is_empty() {
                to.write_char('?')?;
            }
        }
        Ok(())
    }
}

/// A program that is ready to take a process's place.
pub(crate) struct Loaded<M: Machine> {
    pub(crate) space: Arc<Space<M>>,
    pub(crate) regs: UserRegs,
    pub(crate) program: Program,
}

/// What is to be executed.
pub(crate) struct Request {
    /// The name that the program is told (`AT_EXECFN`).
    pub(crate) path: Vec<u8>,
    pub(crate) args: StrList,
    pub(crate) env: StrList,
}

fn read_exact(node: &Inode, offset: u64, into: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < into.len() {
        let rest = into.get_mut(done..).unwrap_or_default();
        match node.read_at(offset.checked_add(done as u64).ok_or(Errno::ENOEXEC)?, rest)? {
            0 => return Err(Errno::ENOEXEC),
            count => done += count,
        }
    }
    Ok(())
}

fn image_errno(error: ImageError) -> Errno {
    match error {
        ImageError::NoMemory => Errno::ENOMEM,
        ImageError::Malformed | ImageError::Dynamic => Errno::ENOEXEC,
    }
}

/// Follows scripts to the program that runs them. Rewrites the arguments on the way.
fn find_image<M: Machine>(
    kernel: &Kernel<M>,
    view: &Viewpoint<'_>,
    node: Arc<Inode>,
    request: &mut Request,
) -> Result<(Arc<Inode>, Plan)> {
    let mut node = node;
    for _ in 0..=SCRIPT_DEPTH {
        if node.kind() != pagoda_kernel_fs::FileType::Regular {
            return Err(Errno::EACCES);
        }
        kernel.vfs.access(&node, 1, view.caller)?;
        let mut head = [0; HEAD];
        let len = node.read_at(0, &mut head)?;
        let head = head.get(..len).unwrap_or_default();
        let Some((interpreter, argument)) = image::script(head) else {
            let plan = plan_of(&node, head)?;
            return Ok((node, plan));
        };
        let mut args = StrList::default();
        args.push(interpreter)?;
        if let Some(argument) = argument {
            args.push(argument)?;
        }
        args.push(&request.path)?;
        for old in request.args.iter().skip(1) {
            args.push(old)?;
        }
        request.args = args;
        request.path = Vec::new();
        try_extend(&mut request.path, interpreter).map_err(|_| Errno::ENOMEM)?;
        node = kernel.vfs.resolve(view, interpreter, Follow::Yes)?;
    }
    Err(Errno::ELOOP)
}

fn plan_of(node: &Inode, head: &[u8]) -> Result<Plan> {
    let (at, count) = image::headers(head).map_err(image_errno)?;
    let mut phdrs = try_vec(0u8, count * image::PHENT).map_err(|_| Errno::ENOMEM)?;
    read_exact(node, at, &mut phdrs)?;
    let head = head.get(..image::HEADER).ok_or(Errno::ENOEXEC)?;
    image::plan(head, &phdrs, node.size()).map_err(|error| {
        if error == ImageError::Dynamic {
            log::warn!("exec: the program wants a dynamic linker; only static programs run here");
        }
        image_errno(error)
    })
}

/// Builds the address space of a new program.
pub(crate) fn load<M: Machine>(
    kernel: &Kernel<M>,
    view: &Viewpoint<'_>,
    node: Arc<Inode>,
    mut request: Request,
    stack_limit: u64,
    ids: [u64; 4],
) -> Result<Loaded<M>> {
    let (node, plan) = find_image(kernel, view, node, &mut request)?;
    let table = kernel.machine.new_page_table().map_err(|_| Errno::ENOMEM)?;
    let layout = Layout::x86_64(stack_limit.min(1 << 40));
    let space: Space<M> = AddressSpace::new(table, layout);
    let mut limits = space.limits();
    limits.stack = stack_limit;
    space.set_limits(limits);
    space.set_policy(kernel.policy);

    let path = kernel.vfs.path_of(view.root, &node).unwrap_or_default();
    let stack = map_stack::<M>(kernel, &space, &plan, &request, ids)?;
    map_segments::<M>(&space, &plan, &node, &path)?;
    let heap = plan.end.checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::ENOEXEC)?;
    space.start_brk(VirtAddr::new(heap));

    let regs =
        UserRegs { rip: plan.entry, rsp: stack.rsp, rflags: FRESH_FLAGS, ..UserRegs::default() };
    let program = Program {
        exe: Some(Executed::new(node)),
        name: short_name(&request.path),
        path,
        args: stack.args,
        env: stack.env,
        stack_start: stack.rsp,
        auxv: stack.auxv,
    };
    Ok(Loaded { space: try_arc(space).map_err(|_| Errno::ENOMEM)?, regs, program })
}

fn vm(error: VmError) -> Errno {
    match error {
        VmError::NoSpace | VmError::Limit | VmError::TooManyRegions | VmError::OutOfMemory => {
            Errno::ENOMEM
        }
        // Addresses that cannot be mapped are the file's fault.
        _ => Errno::ENOEXEC,
    }
}

/// The last component of a path, as `ps` shows it.
fn short_name(path: &[u8]) -> [u8; 16] {
    let last = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let mut name = [0; 16];
    for (to, from) in name.iter_mut().take(15).zip(last) {
        *to = *from;
    }
    name
}

fn map_segments<M: Machine>(
    space: &Space<M>,
    plan: &Plan,
    node: &Arc<Inode>,
    path: &[u8],
) -> Result<()> {
    let mut name = Vec::new();
    try_extend(&mut name, path).map_err(|_| Errno::ENOMEM)?;
    let object = NodeObject::mapping(Arc::clone(node), name, false)?;
    for segment in &plan.segments {
        let start = segment.start.wrapping_add(plan.bias);
        if segment.file_len != 0 {
            space
                .map(MapRequest {
                    place: Place::Fixed(VirtAddr::new(start)),
                    len: segment.file_len,
                    prot: segment.prot,
                    flags: MapFlags::empty(),
                    backing: Backing::File {
                        object: Arc::clone(&object),
                        offset: segment.file_offset,
                    },
                })
                .map_err(vm)?;
            zero_tail::<M>(space, plan, segment)?;
        }
        if segment.anon_len != 0 {
            let at = start.checked_add(segment.file_len).ok_or(Errno::ENOEXEC)?;
            let place = Place::Fixed(VirtAddr::new(at));
            space.map(MapRequest::anonymous(place, segment.anon_len, segment.prot)).map_err(vm)?;
        }
    }
    Ok(())
}

/// What the file holds behind the program's data in the last page is not the program's.
fn zero_tail<M: Machine>(space: &Space<M>, plan: &Plan, segment: &image::Segment) -> Result<()> {
    let from = segment.zero_from.wrapping_add(plan.bias);
    let end = segment.start.wrapping_add(plan.bias).wrapping_add(segment.file_len);
    if from >= end || !segment.prot.contains(Prot::WRITE) {
        return Ok(());
    }
    let range =
        UserRange::new(from, end - from, space.layout().limit).map_err(|_| Errno::ENOEXEC)?;
    space.zero(range).map_err(|error| match crate::user::fault_error(error.error) {
        Errno::ENOMEM => Errno::ENOMEM,
        _ => Errno::ENOEXEC,
    })
}

fn map_stack<M: Machine>(
    kernel: &Kernel<M>,
    space: &Space<M>,
    plan: &Plan,
    request: &Request,
    ids: [u64; 4],
) -> Result<InitialStack> {
    let machine = kernel.machine;
    let mut random = [0; 16];
    machine.random(&mut random);
    let image_len = machine.fpu_bytes(&kernel.clean_fpu.lock()).len();
    let content = StackContent {
        path: &request.path,
        args: &request.args,
        env: &request.env,
        random,
        phdr: plan.phdr,
        phnum: plan.phnum,
        entry: plan.entry,
        ids,
        hwcap: machine.hwcap(),
        signal_frame: (frame::FRAME + frame::fp_len(image_len) + 80) as u64,
    };
    let needed = stack::size(&content) as u64;
    let limit = space.limits().stack;
    if needed > limit / 4 * 3 {
        return Err(Errno::E2BIG);
    }
    let top = space.layout().limit.as_u64();
    let len = (needed + STACK_START).next_multiple_of(PAGE_SIZE).min(limit.max(STACK_START));
    let len = len.next_multiple_of(PAGE_SIZE);
    let mut prot = Prot::READ | Prot::WRITE;
    if plan.exec_stack {
        prot |= Prot::EXEC;
    }
    let mut map = MapRequest::anonymous(
        Place::Fixed(VirtAddr::new(top.checked_sub(len).ok_or(Errno::ENOMEM)?)),
        len,
        prot,
    );
    map.flags = MapFlags::GROWS_DOWN | MapFlags::STACK;
    space.map(map).map_err(vm)?;
    space.set_stack(VirtAddr::new(top - 1));
    let stack = stack::build(&content, top)?;
    crate::user::write_to(space, stack.rsp, &stack.bytes)?;
    Ok(stack)
}

impl<M: Machine> Cx<'_, M> {
    /// `execve` of a file that was found. On success the registers are the new program's.
    pub(crate) fn exec(&mut self, node: Arc<Inode>, request: Request) -> Result<()> {
        let loaded = {
            let places = self.process.places().ok_or(Errno::ESRCH)?;
            let ids = self.process.ids.lock().try_clone()?;
            let view = crate::sys::viewpoint(&places, &places.cwd, &ids);
            let id_words = [ids.uid[0], ids.uid[1], ids.gid[0], ids.gid[1]].map(u64::from);
            let stack_limit = self.process.limit(RLIMIT_STACK);
            load(self.kernel, &view, node, request, stack_limit, id_words)?
        };
        self.become_sole_thread()?;
        self.commit(loaded);
        Ok(())
    }

    /// Ends the other threads of the process and waits until they have.
    fn become_sole_thread(&self) -> Result<()> {
        {
            let family = self.process.family.lock();
            let sole = &self.process.sole;
            if family.threads.len() == 1 {
                sole.store(self.thread.tid, Ordering::SeqCst);
                return Ok(());
            }
            let first =
                sole.compare_exchange(0, self.thread.tid, Ordering::SeqCst, Ordering::SeqCst);
            if first.is_err() {
                // Another thread is at it; this one is about to end.
                return Err(Errno::ERESTARTNOINTR);
            }
            for other in family.threads.iter().filter(|other| other.tid != self.thread.tid) {
                other.notify(true);
            }
        }
        let wait = Wait {
            channel: Channel::ThreadEnd(self.process.pid),
            mask: !0,
            deadline: u64::MAX,
            patience: Patience::Killable,
        };
        let alone = || (self.process.family.lock().threads.len() == 1).then_some(());
        self.kernel.sched.wait_until(self.thread, wait, alone).map_err(|_| Errno::EINTR)
    }

    /// The point of no return; nothing here fails.
    fn commit(&mut self, loaded: Loaded<M>) {
        let process = self.process;
        process.bind(&loaded.space);
        self.kernel.sched.load_space(Some(Arc::clone(&loaded.space)));
        let old = process.replace_space(Some(Arc::clone(&loaded.space)));
        self.space = loaded.space;
        drop(old);
        if process.borrows.swap(false, Ordering::SeqCst) {
            self.kernel.sched.wake(Channel::Vfork(process.pid), usize::MAX);
        }
        *process.program.lock() = loaded.program;
        process.has_execed.store(true, Ordering::SeqCst);
        process.timers.lock().delete_made();
        process.note_cpu_timers();
        process.signals.lock().reset_handlers();
        {
            let mut own = self.thread.signals.lock();
            own.alt = frame::AltStack::NONE;
            own.restart = None;
            own.saved_mask = None;
        }
        self.thread.clear_child_tid.store(0, Ordering::Relaxed);
        self.thread.robust_list.store(0, Ordering::Relaxed);
        self.unshare_files();
        if let Some(files) = process.files() {
            loop {
                let next = files.0.lock().take_next_cloexec(0);
                if next.is_none() {
                    break;
                }
            }
        }
        self.kernel.machine.load_fpu(&self.kernel.clean_fpu.lock());
        self.regs = loaded.regs;
        self.call = None;
        process.sole.store(0, Ordering::SeqCst);
    }

    /// A table of files that another process shares stays that process's. Without memory for a copy
    /// the shared one is kept.
    fn unshare_files(&self) {
        let Some(files) = self.process.files() else { return };
        // One count here, one in the process.
        if Arc::strong_count(&files) <= 2 {
            return;
        }
        let copy = files.0.lock().try_clone();
        if let Ok(copy) = copy
            && let Ok(copy) = try_arc(super::Files(pagoda_sync::SpinMutex::new(copy)))
        {
            *self.process.files.lock() = Some(copy);
        }
    }
}

/// The address space, registers and description of the first program.
pub(crate) fn first_space<M: Machine>(kernel: &Kernel<M>, request: Request) -> Result<Loaded<M>> {
    let ids = super::Ids::default();
    let root = Arc::clone(kernel.vfs.root());
    let places = super::Places { root: Arc::clone(&root), cwd: root, umask: 0o22 };
    let view = crate::sys::viewpoint(&places, &places.cwd, &ids);
    let node = kernel.vfs.resolve(&view, &request.path, Follow::Yes)?;
    load(kernel, &view, node, request, 8 << 20, [0; 4])
}
