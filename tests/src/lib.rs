//! The harness of the system tests: the real programs as processes, and everything around them.
//!
//! | module | answers for |
//! | --- | --- |
//! | [`program`] | where the programs are, and one run of one of them with its log |
//! | [`hub`], [`relay`], [`peer`] | a running program of each kind |
//! | [`api`], [`events`] | the hub's HTTP API and its event streams, as a client sees them |
//! | [`files`] | a session's files, by the same API |
//! | [`rogue`] | a node made by hand, which says what a peer would not |
//! | [`malice`] | a relay of the enemy, which alters, drops, replays and swaps what it carries |
//! | [`decoders`] | everything that reads what strangers send, for the fuzzer |
//! | [`net`] | networks of namespaces with NAT, and faults in them |
//! | [`switch`] | delay, reordering, doubling and loss of datagrams, by a seed |
//! | [`wait`] | waiting for something to become true, never longer than said |
//!
//! ```no_run
//! # async fn story() -> cortex_tests::Result<()> {
//! use cortex_tests::{api::Shell, hub::Hub};
//!
//! let hub = Hub::start().await?; // a process, set up; it is also the client of its administrator
//! let peer = hub.enrol("laptop").await?; // another process, joined by an invite, online
//! let session = hub.session(&[&peer.node]).await?;
//! let ran = hub.run(&session.id, &Shell::argv(["uname", "-a"])).await?;
//! assert_eq!(ran.task.exit_code, Some(0));
//! # Ok(())
//! # }
//! ```
//! `kill9`, `terminate` and `restart` make trouble, [`net::Lab`] makes networks, [`rogue::Rogue`] makes liars.
//!
//! Nothing here sleeps in the hope that something has happened meanwhile: a test waits until it sees what it waits for, and fails with
//! the log of every program when it does not. What a test started ends with it, also when it fails.

pub mod api;
pub mod decoders;
pub mod events;
pub mod files;
pub mod hub;
pub mod malice;
pub mod net;
pub mod peer;
pub mod program;
pub mod relay;
pub mod rogue;
pub mod switch;
pub mod terminal;
pub mod wait;

pub use anyhow::{Context, Result, bail, ensure};
