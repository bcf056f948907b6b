//! What the CPU can do, and switching it on.
//!
//! On where it exists: NX, write protection in the kernel (WP), no execution (SMEP) and no access
//! (SMAP) of user pages by the kernel, no descriptor-table addresses for programs (UMIP), FS and GS
//! base instructions (FSGSBASE), XSAVE. The kernel never reads a user address, so nothing ever
//! opens SMAP.
//!
//! Five-level tables are a matter of the way in ([`levels`](super::levels)).
//!
//! Left out: PCID, PKU, CET, power states.
#![allow(unsafe_code)] // control registers

use core::fmt;
use core::sync::atomic::Ordering;

use raw_cpuid::{CpuId, CpuIdReaderNative};
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags, Efer, EferFlags};

use super::once::Once;
use super::percpu;

/// What was found and switched on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    brand: [u8; 48],
    pub(crate) nx: bool,
    pub(crate) smep: bool,
    pub(crate) smap: bool,
    pub(crate) umip: bool,
    pub(crate) fsgsbase: bool,
    pub(crate) xsave: bool,
    pub(crate) global_pages: bool,
    pub(crate) huge_pages: bool,
    /// Can page tables have five levels?
    pub(crate) la57: bool,
    /// Bits of a physical address.
    pub(crate) phys_bits: u8,
    /// CPUID leaf 1, `edx`: what a program finds in `AT_HWCAP`.
    pub(crate) hwcap: u32,
    /// Does the CPU have a random number instruction?
    pub(crate) rdrand: bool,
}

static FEATURES: Once<Features> = Once::new();

/// What the CPUs can do; none before [`init`].
pub(crate) fn features() -> Option<&'static Features> {
    FEATURES.get()
}

/// Reads CPUID and switches on what there is.
pub(crate) fn init() -> &'static Features {
    let found = find(&CpuId::new());
    enable(&found);
    match FEATURES.set(found) {
        Ok(features) => features,
        // Only a second call gets here; the first one's answer is as good.
        Err(_) => FEATURES.get().unwrap_or_else(|| unreachable!("set by the first call")),
    }
}

/// Switches on what the boot CPU has, on another one.
pub(crate) fn init_other() {
    if let Some(found) = features() {
        enable(found);
    }
}

/// The number of the executing CPU's interrupt controller, as it was at power-on.
pub(crate) fn apic_id() -> u8 {
    (core::arch::x86_64::__cpuid(1).ebx >> 24) as u8
}

fn find(cpuid: &CpuId<CpuIdReaderNative>) -> Features {
    let basic = cpuid.get_feature_info();
    let basic = basic.as_ref();
    let more = cpuid.get_extended_feature_info();
    let more = more.as_ref();
    let extended = cpuid.get_extended_processor_and_feature_identifiers();
    let extended = extended.as_ref();
    let mut brand = [0; 48];
    if let Some(text) = cpuid.get_processor_brand_string() {
        let text = text.as_str().trim().as_bytes();
        let length = text.len().min(brand.len());
        brand[..length].copy_from_slice(&text[..length]);
    }
    Features {
        brand,
        nx: extended.is_some_and(|e| e.has_execute_disable()),
        smep: more.is_some_and(|m| m.has_smep()),
        smap: more.is_some_and(|m| m.has_smap()),
        umip: more.is_some_and(|m| m.has_umip()),
        fsgsbase: more.is_some_and(|m| m.has_fsgsbase()),
        xsave: basic.is_some_and(|b| b.has_xsave()),
        global_pages: basic.is_some_and(|b| b.has_pge()),
        huge_pages: extended.is_some_and(|e| e.has_1gib_pages()),
        la57: more.is_some_and(|m| m.has_la57()),
        phys_bits: cpuid
            .get_processor_capacity_feature_info()
            .map_or(36, |c| c.physical_address_bits()),
        hwcap: core::arch::x86_64::__cpuid(1).edx,
        rdrand: basic.is_some_and(|b| b.has_rdrand()),
    }
}

fn enable(found: &Features) {
    let mut cr4 = Cr4::read() | Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE;
    for (present, flag) in [
        (found.smep, Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION),
        (found.smap, Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION),
        (found.umip, Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION),
        (found.fsgsbase, Cr4Flags::FSGSBASE),
        (found.xsave, Cr4Flags::OSXSAVE),
        (found.global_pages, Cr4Flags::PAGE_GLOBAL),
    ] {
        cr4.set(flag, present);
    }
    let mut cr0 = Cr0::read();
    cr0.insert(Cr0Flags::WRITE_PROTECT | Cr0Flags::NUMERIC_ERROR | Cr0Flags::MONITOR_COPROCESSOR);
    cr0.remove(
        Cr0Flags::EMULATE_COPROCESSOR
            | Cr0Flags::TASK_SWITCHED
            | Cr0Flags::CACHE_DISABLE
            | Cr0Flags::NOT_WRITE_THROUGH
            | Cr0Flags::ALIGNMENT_MASK,
    );
    // SAFETY: each flag is one that CPUID reports. The tables in use map no user page, so SMEP and
    // SMAP forbid nothing that the kernel does; no table has the NX bit set before EFER allows it;
    // paging and protection stay on; alignment checks are of no use to programs here.
    unsafe {
        Cr0::write(cr0);
        Cr4::write(cr4);
        Efer::update(|efer| {
            efer.insert(EferFlags::SYSTEM_CALL_EXTENSIONS);
            efer.set(EferFlags::NO_EXECUTE_ENABLE, found.nx);
        });
    }
    percpu::this().fsgsbase.store(found.fsgsbase, Ordering::Relaxed);
}

impl Features {
    /// The CPU's name for itself.
    pub(crate) fn brand(&self) -> &str {
        let length = self.brand.iter().position(|&byte| byte == 0).unwrap_or(self.brand.len());
        match str::from_utf8(&self.brand[..length]) {
            Ok("") | Err(_) => "a CPU without a name",
            Ok(name) => name,
        }
    }
}

/// The name, then what protects the kernel and what serves programs.
impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {} physical bits; WP", self.brand(), self.phys_bits)?;
        for (present, name) in [
            (self.nx, "NX"),
            (self.smep, "SMEP"),
            (self.smap, "SMAP"),
            (self.umip, "UMIP"),
            (self.global_pages, "global pages"),
            (self.huge_pages, "1 GiB pages"),
            (self.la57, "LA57"),
            (self.fsgsbase, "FSGSBASE"),
            (self.xsave, "XSAVE"),
        ] {
            if present {
                write!(f, ", {name}")?;
            }
        }
        Ok(())
    }
}
