//! Tasks of a peer with real processes, against a hub that is played by the test.

#![cfg(target_os = "linux")]

mod hub;
mod task;
