//! What may be done with a page, and what was done.

bitflags::bitflags! {
    /// Rights, properties and history of a leaf.
    ///
    /// A leaf without any of `READ`, `WRITE` and `EXEC` keeps its frame and refuses every access
    /// ("parked"). A format grants at least what is asked for and as little more as its hardware
    /// allows ([`Format::grants`](crate::Format::grants)): x86-64 cannot write or execute without
    /// reading.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct PageFlags: u32 {
        /// May be read.
        const READ = 1 << 0;
        /// May be written.
        const WRITE = 1 << 1;
        /// May be executed.
        const EXEC = 1 << 7;
        /// May be used by programs; without it, by the kernel alone.
        const USER = 1 << 2;
        /// Stands in every address space: survives the switch to another one.
        const GLOBAL = 1 << 8;
        /// Was used since the bit was last cleared. Set by hardware.
        const ACCESSED = 1 << 5;
        /// Was written since the bit was last cleared. Set by hardware.
        const DIRTY = 1 << 6;
        /// Device memory: no caching, no merging, no reordering.
        const UNCACHED = 1 << 4;
        /// Frame buffers: writes are merged, nothing is cached.
        const WRITE_COMBINE = 1 << 3;
        /// Free for the caller; kept by every operation that does not set it.
        const SOFT1 = 1 << 9;
        /// Free for the caller; kept by every operation that does not set it.
        const SOFT2 = 1 << 10;
    }
}

impl PageFlags {
    /// `READ | WRITE`.
    pub const READ_WRITE: Self = Self::READ.union(Self::WRITE);
    /// `READ | EXEC`.
    pub const READ_EXEC: Self = Self::READ.union(Self::EXEC);
    /// `READ | WRITE | EXEC`: everything that an access can ask for.
    pub const ACCESS: Self = Self::READ_WRITE.union(Self::EXEC);
    /// What [`Cursor::protect`](crate::Cursor::protect) keeps: history and the caller's bits.
    pub const KEPT: Self = Self::ACCESSED.union(Self::DIRTY).union(Self::SOFT1).union(Self::SOFT2);
}
