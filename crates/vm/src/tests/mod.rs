//! Tests over the software MMU.

mod cases;
mod fails;
mod files;
mod host;
pub(crate) use host::Host;
mod model;
mod random;
mod sharing;
