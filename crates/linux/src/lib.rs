//! Linux's words for pagoda-vm: flags, error numbers, /proc text
#![no_std]
