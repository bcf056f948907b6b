//! What a program finds on its stack when it starts (the System V ABI for x86-64, 3.4.1).
//!
//! ```text
//!   top   8 zero bytes
//!         path of the executable
//!         environment strings, argument strings
//!         "x86_64", 16 random bytes
//!         auxiliary vector: pairs, ending with AT_NULL
//!         environment pointers, null
//!         argument pointers, null
//!   rsp   argument count                          16-byte aligned
//! ```

use alloc::vec::Vec;

use pagoda_linux::Errno;
use pagoda_vm::fallible::try_extend;

use crate::Result;
use crate::user::StrList;

const AT_NULL: u64 = 0;
const AT_PHDR: u64 = 3;
const AT_PHENT: u64 = 4;
const AT_PHNUM: u64 = 5;
const AT_PAGESZ: u64 = 6;
const AT_BASE: u64 = 7;
const AT_FLAGS: u64 = 8;
const AT_ENTRY: u64 = 9;
const AT_UID: u64 = 11;
const AT_EUID: u64 = 12;
const AT_GID: u64 = 13;
const AT_EGID: u64 = 14;
const AT_PLATFORM: u64 = 15;
const AT_HWCAP: u64 = 16;
const AT_CLKTCK: u64 = 17;
const AT_SECURE: u64 = 23;
const AT_RANDOM: u64 = 25;
const AT_HWCAP2: u64 = 26;
const AT_EXECFN: u64 = 31;
const AT_MINSIGSTKSZ: u64 = 51;

/// What the stack is made of.
pub(crate) struct StackContent<'a> {
    pub(crate) path: &'a [u8],
    pub(crate) args: &'a StrList,
    pub(crate) env: &'a StrList,
    pub(crate) random: [u8; 16],
    pub(crate) phdr: u64,
    pub(crate) phnum: u64,
    pub(crate) entry: u64,
    /// uid, euid, gid, egid
    pub(crate) ids: [u64; 4],
    pub(crate) hwcap: [u64; 2],
    pub(crate) signal_frame: u64,
}

/// The finished stack: the bytes that stand below `top`.
pub(crate) struct InitialStack {
    pub(crate) bytes: Vec<u8>,
    pub(crate) rsp: u64,
    /// Addresses of the strings: start, end.
    pub(crate) args: (u64, u64),
    pub(crate) env: (u64, u64),
    pub(crate) auxv: Vec<u8>,
}

/// Bytes that the stack will take, at most.
pub(crate) fn size(content: &StackContent<'_>) -> usize {
    let strings = content.path.len() + content.args.bytes.len() + content.env.bytes.len();
    strings + 8 * (content.args.count + content.env.count) + 1024
}

/// Lays the stack out below `top`, which is 16-byte aligned.
pub(crate) fn build(content: &StackContent<'_>, top: u64) -> Result<InitialStack> {
    // From the top downwards: where each part begins.
    let mut at = top.checked_sub(8).ok_or(Errno::ENOMEM)?;
    let mut below = |len: usize| -> Result<u64> {
        at = at.checked_sub(len as u64).ok_or(Errno::ENOMEM)?;
        Ok(at)
    };
    let path = below(content.path.len() + 1)?;
    let env = below(content.env.bytes.len())?;
    let args = below(content.args.bytes.len())?;
    let platform = below(7)?;
    let random = below(16)? & !15;
    let auxv = auxv(content, path, platform, random)?;
    let words = 1 + content.args.count + 1 + content.env.count + 1;
    let rsp = random.checked_sub((8 * words + auxv.len()) as u64).ok_or(Errno::ENOMEM)? & !15;

    let mut bytes = Vec::new();
    bytes.try_reserve_exact((top - rsp) as usize).map_err(|_| Errno::ENOMEM)?;
    let mut put = |at: u64, part: &[u8]| -> Result<()> {
        bytes.resize((at - rsp) as usize, 0);
        try_extend(&mut bytes, part).map_err(|_| Errno::ENOMEM)
    };
    let mut next = rsp;
    let mut word = |value: u64| -> Result<()> {
        put(next, &value.to_le_bytes())?;
        next += 8;
        Ok(())
    };
    word(content.args.count as u64)?;
    for (list, start) in [(content.args, args), (content.env, env)] {
        let mut pointer = start;
        for string in list.iter() {
            word(pointer)?;
            pointer += string.len() as u64 + 1;
        }
        word(0)?;
    }
    let auxv_at = next;
    put(auxv_at, &auxv)?;
    put(random, &content.random)?;
    put(platform, b"x86_64\0")?;
    put(args, &content.args.bytes)?;
    put(env, &content.env.bytes)?;
    put(path, content.path)?;
    put(top, &[])?;
    Ok(InitialStack {
        bytes,
        rsp,
        args: (args, args + content.args.bytes.len() as u64),
        env: (env, env + content.env.bytes.len() as u64),
        auxv,
    })
}

fn auxv(content: &StackContent<'_>, path: u64, platform: u64, random: u64) -> Result<Vec<u8>> {
    let [uid, euid, gid, egid] = content.ids;
    let entries = [
        (AT_HWCAP, content.hwcap[0]),
        (AT_PAGESZ, 4096),
        (AT_CLKTCK, 100),
        (AT_PHDR, content.phdr),
        (AT_PHENT, super::image::PHENT as u64),
        (AT_PHNUM, content.phnum),
        (AT_BASE, 0),
        (AT_FLAGS, 0),
        (AT_ENTRY, content.entry),
        (AT_UID, uid),
        (AT_EUID, euid),
        (AT_GID, gid),
        (AT_EGID, egid),
        (AT_SECURE, 0),
        (AT_RANDOM, random),
        (AT_HWCAP2, content.hwcap[1]),
        (AT_EXECFN, path),
        (AT_PLATFORM, platform),
        (AT_MINSIGSTKSZ, content.signal_frame),
        (AT_NULL, 0),
    ];
    let mut bytes = Vec::new();
    for (kind, value) in entries {
        try_extend(&mut bytes, &kind.to_le_bytes()).map_err(|_| Errno::ENOMEM)?;
        try_extend(&mut bytes, &value.to_le_bytes()).map_err(|_| Errno::ENOMEM)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn word(stack: &InitialStack, at: u64) -> u64 {
        let at = (at - stack.rsp) as usize;
        u64::from_le_bytes(stack.bytes[at..at + 8].try_into().unwrap())
    }

    fn string(stack: &InitialStack, at: u64) -> Vec<u8> {
        let at = (at - stack.rsp) as usize;
        stack.bytes[at..].iter().copied().take_while(|&b| b != 0).collect()
    }

    #[test]
    fn a_program_finds_its_arguments() {
        let top = 0x7fff_ffff_f000;
        for arguments in 0..9usize {
            let args: Vec<u8> = (0..arguments).flat_map(|n| [b'a' + n as u8, 0]).collect();
            let args = StrList { bytes: args, count: arguments };
            let env = StrList::parse(b"A=1\0BB=22\0").unwrap();
            let content = StackContent {
                path: b"/bin/x",
                args: &args,
                env: &env,
                random: [7; 16],
                phdr: 1,
                phnum: 2,
                entry: 3,
                ids: [0; 4],
                hwcap: [0; 2],
                signal_frame: 1000,
            };
            let stack = build(&content, top).unwrap();
            assert_eq!(stack.rsp % 16, 0);
            assert_eq!(stack.rsp + stack.bytes.len() as u64, top);
            assert!(stack.bytes.len() <= size(&content));
            assert_eq!(word(&stack, stack.rsp), arguments as u64);
            for index in 0..arguments {
                let pointer = word(&stack, stack.rsp + 8 + 8 * index as u64);
                assert_eq!(string(&stack, pointer), [b'a' + index as u8]);
            }
            let mut at = stack.rsp + 8 + 8 * arguments as u64;
            assert_eq!(word(&stack, at), 0);
            assert_eq!(string(&stack, word(&stack, at + 16)), b"BB=22");
            at += 8 * 4;
            while word(&stack, at) != AT_EXECFN {
                at += 16;
            }
            assert_eq!(string(&stack, word(&stack, at + 8)), b"/bin/x");
        }
    }
}
