//! Tests of the allocator as a whole.

mod batches;
mod failures;
mod many;
mod model;
mod rig;
mod single;
mod topology;
