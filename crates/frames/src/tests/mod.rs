//! Tests of the allocator as a whole.

mod many;
mod model;
mod rig;
mod single;
