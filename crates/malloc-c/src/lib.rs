//! The C face of pagoda-malloc: libpagoda_malloc.so and .a
#![no_std]
