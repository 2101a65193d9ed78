//! What we compare with.

pub mod iroh;
pub mod mux;
pub mod playwright;
pub mod relay;
pub mod rsync;
pub mod spawn;
pub mod ssh;
