//! Tests of the allocator as a whole.

mod batches;
mod failures;
mod many;
mod model;
mod owners;
mod rig;
mod single;
mod topology;
