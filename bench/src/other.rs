//! What we compare with.

pub mod mux;
pub mod relay;
pub mod spawn;
pub mod ssh;
