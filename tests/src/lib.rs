//! The harness of the system tests: the real programs as processes, and everything around them.
//!
//! | module | answers for |
//! | --- | --- |
//! | [`program`] | where the programs are, and one run of one of them with its log |
//! | [`hub`], [`relay`], [`peer`] | a running program of each kind |
//! | [`api`], [`events`] | the hub's HTTP API and its event streams, as a client sees them |
//! | [`rogue`] | a node made by hand, which says what a peer would not |
//! | [`decoders`] | everything that reads what strangers send, for the fuzzer |
//! | [`net`] | networks of namespaces with NAT, and faults in them |
//! | [`wait`] | waiting for something to become true, never longer than said |
//!
//! Nothing here sleeps in the hope that something has happened meanwhile: a test waits until it sees what it waits for, and fails with
//! the log of every program when it does not. What a test started ends with it, also when it fails.

pub mod api;
pub mod decoders;
pub mod events;
pub mod hub;
pub mod net;
pub mod peer;
pub mod program;
pub mod relay;
pub mod rogue;
pub mod wait;

pub use anyhow::{Context, Result, bail, ensure};
