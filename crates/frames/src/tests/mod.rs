//! Tests of the allocator as a whole.

mod model;
mod rig;
mod single;
