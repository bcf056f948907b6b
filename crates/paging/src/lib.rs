//! Page tables as one radix tree generic over the entry format: cursor, flush batch, shootdown
#![no_std]

/// The encoding of page-table entries (placeholder, to be defined with the tree).
pub trait Format {}
