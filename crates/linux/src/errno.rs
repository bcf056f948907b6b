//! Error numbers.
//!
//! An [`Errno`] is one of Linux's numbers for x86-64, which are those of its generic table. A
//! system call that fails returns the number negated; [`Errno::to_result_register`] makes that word.
//!
//! Besides the numbers that programs see there are those that a kernel uses towards itself to say
//! that an interrupted call is to be started again ([`Errno::ERESTARTSYS`] and its kin); they must be
//! turned into a restart or into `EINTR` before a program sees them.

use core::fmt;

/// A Linux error number. Positive, below 4096.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Errno(u16);

/// Declares the constants and the table of names from one list.
macro_rules! errnos {
    ($($name:ident = $number:literal;)*) => {
        #[allow(missing_docs)] // Linux's own names, described in errno(3)
        impl Errno {
            $(pub const $name: Self = Self($number);)*
        }

        /// Names by number, ascending.
        const NAMES: &[(u16, &str)] = &[$(($number, stringify!($name)),)*];
    };
}

errnos! {
    EPERM = 1;
    ENOENT = 2;
    ESRCH = 3;
    EINTR = 4;
    EIO = 5;
    ENXIO = 6;
    E2BIG = 7;
    ENOEXEC = 8;
    EBADF = 9;
    ECHILD = 10;
    EAGAIN = 11;
    ENOMEM = 12;
    EACCES = 13;
    EFAULT = 14;
    ENOTBLK = 15;
    EBUSY = 16;
    EEXIST = 17;
    EXDEV = 18;
    ENODEV = 19;
    ENOTDIR = 20;
    EISDIR = 21;
    EINVAL = 22;
    ENFILE = 23;
    EMFILE = 24;
    ENOTTY = 25;
    ETXTBSY = 26;
    EFBIG = 27;
    ENOSPC = 28;
    ESPIPE = 29;
    EROFS = 30;
    EMLINK = 31;
    EPIPE = 32;
    EDOM = 33;
    ERANGE = 34;
    EDEADLK = 35;
    ENAMETOOLONG = 36;
    ENOLCK = 37;
    ENOSYS = 38;
    ENOTEMPTY = 39;
    ELOOP = 40;
    ENOMSG = 42;
    EIDRM = 43;
    ECHRNG = 44;
    EL2NSYNC = 45;
    EL3HLT = 46;
    EL3RST = 47;
    ELNRNG = 48;
    EUNATCH = 49;
    ENOCSI = 50;
    EL2HLT = 51;
    EBADE = 52;
    EBADR = 53;
    EXFULL = 54;
    ENOANO = 55;
    EBADRQC = 56;
    EBADSLT = 57;
    EBFONT = 59;
    ENOSTR = 60;
    ENODATA = 61;
    ETIME = 62;
    ENOSR = 63;
    ENONET = 64;
    ENOPKG = 65;
    EREMOTE = 66;
    ENOLINK = 67;
    EADV = 68;
    ESRMNT = 69;
    ECOMM = 70;
    EPROTO = 71;
    EMULTIHOP = 72;
    EDOTDOT = 73;
    EBADMSG = 74;
    EOVERFLOW = 75;
    ENOTUNIQ = 76;
    EBADFD = 77;
    EREMCHG = 78;
    ELIBACC = 79;
    ELIBBAD = 80;
    ELIBSCN = 81;
    ELIBMAX = 82;
    ELIBEXEC = 83;
    EILSEQ = 84;
    ERESTART = 85;
    ESTRPIPE = 86;
    EUSERS = 87;
    ENOTSOCK = 88;
    EDESTADDRREQ = 89;
    EMSGSIZE = 90;
    EPROTOTYPE = 91;
    ENOPROTOOPT = 92;
    EPROTONOSUPPORT = 93;
    ESOCKTNOSUPPORT = 94;
    EOPNOTSUPP = 95;
    EPFNOSUPPORT = 96;
    EAFNOSUPPORT = 97;
    EADDRINUSE = 98;
    EADDRNOTAVAIL = 99;
    ENETDOWN = 100;
    ENETUNREACH = 101;
    ENETRESET = 102;
    ECONNABORTED = 103;
    ECONNRESET = 104;
    ENOBUFS = 105;
    EISCONN = 106;
    ENOTCONN = 107;
    ESHUTDOWN = 108;
    ETOOMANYREFS = 109;
    ETIMEDOUT = 110;
    ECONNREFUSED = 111;
    EHOSTDOWN = 112;
    EHOSTUNREACH = 113;
    EALREADY = 114;
    EINPROGRESS = 115;
    ESTALE = 116;
    EUCLEAN = 117;
    ENOTNAM = 118;
    ENAVAIL = 119;
    EISNAM = 120;
    EREMOTEIO = 121;
    EDQUOT = 122;
    ENOMEDIUM = 123;
    EMEDIUMTYPE = 124;
    ECANCELED = 125;
    ENOKEY = 126;
    EKEYEXPIRED = 127;
    EKEYREVOKED = 128;
    EKEYREJECTED = 129;
    EOWNERDEAD = 130;
    ENOTRECOVERABLE = 131;
    ERFKILL = 132;
    EHWPOISON = 133;
    ERESTARTSYS = 512;
    ERESTARTNOINTR = 513;
    ERESTARTNOHAND = 514;
    ENOIOCTLCMD = 515;
    ERESTART_RESTARTBLOCK = 516;
}

impl Errno {
    /// Another name for [`EAGAIN`](Self::EAGAIN).
    pub const EWOULDBLOCK: Self = Self::EAGAIN;
    /// Another name for [`EDEADLK`](Self::EDEADLK).
    pub const EDEADLOCK: Self = Self::EDEADLK;
    /// Another name for [`EOPNOTSUPP`](Self::EOPNOTSUPP).
    pub const ENOTSUP: Self = Self::EOPNOTSUPP;

    /// The error with this number, if Linux has one.
    pub fn new(number: u16) -> Option<Self> {
        NAMES.binary_search_by_key(&number, |&(n, _)| n).ok().map(|_| Self(number))
    }

    /// The number, positive.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// The name, such as `"ENOMEM"`.
    pub fn name(self) -> &'static str {
        match NAMES.binary_search_by_key(&self.0, |&(n, _)| n) {
            Ok(index) => NAMES.get(index).map_or("E?", |&(_, name)| name),
            Err(_) => "E?",
        }
    }

    /// The word that a failing system call leaves in the result register: the number negated.
    pub const fn to_result_register(self) -> u64 {
        -(self.0 as i64) as u64
    }

    /// Reads a result register: the value, or the error if the word lies in -4095..=-1.
    pub fn from_result_register(word: u64) -> Result<u64, Self> {
        let signed = word as i64;
        if (-4095..0).contains(&signed) { Err(Self((-signed) as u16)) } else { Ok(word) }
    }

    /// Is this one of the numbers that no program may see?
    pub const fn is_internal(self) -> bool {
        self.0 >= 512
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}

impl core::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn names_and_numbers_are_those_of_linux() {
        assert_eq!(Errno::EPERM.number(), 1);
        assert_eq!(Errno::ENOSYS.number(), 38);
        assert_eq!(Errno::EHWPOISON.number(), 133);
        assert_eq!(Errno::EWOULDBLOCK.to_string(), "EAGAIN");
        assert_eq!(Errno::new(41), None);
        assert!(NAMES.is_sorted_by(|a, b| a.0 < b.0));
        assert!(NAMES.iter().all(|&(number, name)| Errno::new(number).unwrap().name() == name));
    }

    #[test]
    fn result_registers_go_both_ways() {
        assert_eq!(Errno::ENOMEM.to_result_register() as i64, -12);
        assert_eq!(Errno::from_result_register(-12i64 as u64), Err(Errno::ENOMEM));
        assert_eq!(Errno::from_result_register(0x7fff_0000), Ok(0x7fff_0000));
        assert_eq!(Errno::from_result_register(-4096i64 as u64), Ok(-4096i64 as u64));
    }
}
