//! Files: in-memory file system, cpio reader, pipes, terminal, devices, generated files.
#![no_std]
#![forbid(unsafe_code)]
