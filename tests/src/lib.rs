//! What no single crate owns.
