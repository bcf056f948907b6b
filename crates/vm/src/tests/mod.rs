//! Tests over the software MMU.

mod cases;
mod fails;
mod host;
mod model;
mod random;
mod sharing;
