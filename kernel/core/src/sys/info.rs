//! What the system says about itself.

use pagoda_linux::Errno;

use crate::Result;
use crate::machine::Machine;
use crate::run::Cx;

/// What `uname` says. The release is that of the Linux whose calls these are.
pub(crate) const RELEASE: &str = "6.1.0-pagoda";
/// Says who it really is.
pub(crate) const VERSION: &str = "#1 Pagoda, a kernel in Rust that speaks Linux 6.1";
const RLIMIT_CPU: usize = 0;
const RLIMIT_STACK: usize = 3;
const INFINITY: u64 = u64::MAX;

/// The limits of the first process.
pub(crate) const FIRST_LIMITS: [(u64, u64); 16] = {
    let mut limits = [(INFINITY, INFINITY); 16];
    limits[RLIMIT_STACK] = (8 << 20, INFINITY);
    limits[4] = (0, INFINITY);
    limits[6] = (crate::kernel::THREADS_MAX, crate::kernel::THREADS_MAX);
    limits[7] = (1024, 1 << 20);
    limits[8] = (8 << 20, 8 << 20);
    limits[11] = (1024, 1024);
    limits[12] = (819_200, 819_200);
    limits[13] = (0, 0);
    limits[14] = (0, 0);
    limits
};

impl<M: Machine> Cx<'_, M> {
    pub(crate) fn sys_uname(&mut self, a: [u64; 6]) -> Result<u64> {
        let mut bytes = [0; 6 * 65];
        let fields = ["Linux", "pagoda", RELEASE, VERSION, "x86_64", "(none)"];
        for (to, text) in bytes.chunks_exact_mut(65).zip(fields) {
            for (to, from) in to.iter_mut().take(64).zip(text.bytes()) {
                *to = from;
            }
        }
        self.write_bytes(a[0], &bytes).map(|()| 0)
    }

    pub(crate) fn sys_sysinfo(&mut self, a: [u64; 6]) -> Result<u64> {
        let machine = self.kernel.machine;
        let memory = machine.memory();
        let loads = self.kernel.load.lock().values.map(|load| load << 5);
        let processes = self.kernel.tables.lock().thread_count() as u64;
        let words = [
            machine.monotonic_ns() / 1_000_000_000,
            loads[0],
            loads[1],
            loads[2],
            memory.total,
            memory.free + memory.cached,
            0,
            0,
            0,
            0,
            processes & 0xffff,
            0,
            0,
            1,
        ];
        self.write_words(a[0], &words).map(|()| 0)
    }

    pub(crate) fn sys_getrandom(&mut self, a: [u64; 6]) -> Result<u64> {
        if a[2] & !7 != 0 || a[2] & 6 == 6 {
            return Err(Errno::EINVAL);
        }
        let len = a[1].min(0x1ff_ffff);
        crate::user::user_range::<M>(&self.space, a[0], len)?;
        let mut done = 0;
        while done < len {
            let mut chunk = [0; 256];
            let part = ((len - done) as usize).min(chunk.len());
            let chunk = chunk.get_mut(..part).unwrap_or_default();
            self.kernel.machine.random(chunk);
            let range = crate::user::user_range::<M>(&self.space, a[0] + done, part as u64)?;
            if let Err(error) = self.space.copy_out(chunk, range) {
                done += error.done as u64;
                let refused = crate::user::fault_error(error.error);
                return if done == 0 { Err(refused) } else { Ok(done) };
            }
            done += part as u64;
        }
        Ok(len)
    }

    pub(crate) fn sys_getrlimit(&mut self, a: [u64; 6]) -> Result<u64> {
        if a[1] == 0 && a[0] < 16 {
            return Err(Errno::EFAULT);
        }
        self.sys_prlimit64([0, a[0], 0, a[1], 0, 0])
    }

    pub(crate) fn sys_setrlimit(&mut self, a: [u64; 6]) -> Result<u64> {
        if a[1] == 0 {
            return Err(Errno::EFAULT);
        }
        self.sys_prlimit64([0, a[0], a[1], 0, 0, 0])
    }

    pub(crate) fn sys_prlimit64(&mut self, a: [u64; 6]) -> Result<u64> {
        let [pid, resource, new_at, old_at, ..] = a;
        let target = self.some_process(pid)?;
        let resource = usize::try_from(resource as u32).map_err(|_| Errno::EINVAL)?;
        let new = if new_at == 0 { None } else { Some(self.read_words::<2>(new_at)?) };
        let root = self.process.ids.lock().uid[1] == 0;
        let old = {
            let mut limits = target.limits.lock();
            let slot = limits.get_mut(resource).ok_or(Errno::EINVAL)?;
            let old = *slot;
            if let Some([soft, hard]) = new {
                if soft > hard || (resource == super::file::NOFILE && hard > 1 << 20) {
                    return Err(if soft > hard { Errno::EINVAL } else { Errno::EPERM });
                }
                if hard > old.1 && !root {
                    return Err(Errno::EPERM);
                }
                *slot = (soft, hard);
            }
            old
        };
        if resource == RLIMIT_CPU {
            target.note_cpu_timers();
        }
        if let (Some(_), Some(space)) = (new, target.space()) {
            target.bind(&space);
        }
        if old_at != 0 {
            self.write_words(old_at, &[old.0, old.1])?;
        }
        Ok(0)
    }

    pub(crate) fn sys_personality(&mut self, a: [u64; 6]) -> Result<u64> {
        const QUERY: u64 = 0xffff_ffff;
        const NO_RANDOMIZE: u64 = 0x4_0000;
        // Addresses are never randomised.
        match a[0] & 0xffff_ffff {
            QUERY | 0 | NO_RANDOMIZE => Ok(0),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The log goes to a line; nothing of it is kept.
    pub(crate) fn sys_syslog(&mut self, a: [u64; 6]) -> Result<u64> {
        match a[0] {
            0..=10 => Ok(0),
            _ => Err(Errno::EINVAL),
        }
    }
}
