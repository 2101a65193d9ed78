//! Tasks of a peer with real processes, against a hub that is played by the test.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[cfg(feature = "browser")]
mod browser;
mod end;
mod full_disk;
mod hub;
mod mirror;
mod output;
mod policy;
mod program;
mod restart;
mod sandbox;
mod start;
