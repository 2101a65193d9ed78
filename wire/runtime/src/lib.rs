//! The only async code that peer, relay and hub share.
//!
//! | module | answers for |
//! | --- | --- |
//! | [`chunk`] | sealed chunks over streams of links |
//! | [`clock`] | time and random bytes from outside |
//! | [`config`] | one YAML file, environment and flags over it, helpful errors |
//! | [`failpoint`] | where tests kill a program |
//! | [`file`] | a file that somebody may change |
//! | [`keyfile`] | a private key in a file that only its owner reads |
//! | [`lifecycle`] | start and stop of a program |
//! | [`metrics`] | figures for Prometheus |
//! | [`spool`] | output of a task, in a file of bounded size |
//! | [`stream`] | frames on a byte stream |
//! | [`telemetry`] | logs |
//! | [`link`] | the client's side of a link to a relay |
//! | [`quic`] | QUIC set-up |
//! | [`direct`] | direct packets through a node's socket |
//! | [`silence`] | whether what is sent is answered |
//! | [`socket`] | the one socket under all of a node's connections |
//! | [`udp`] | UDP over IPv4 and IPv6 as one socket |
//! | [`tunnel`], [`packet`] | packets over TCP where UDP does not get through, and their queues |
//! | [`reach`] | the way to a relay, whatever the network lets through |
//! | [`proxy`] | TCP connections through proxies |
//! | [`tls`] | TLS between raw public keys |

mod addresses;
pub mod chunk;
pub mod clock;
pub mod config;
pub mod direct;
pub mod failpoint;
pub mod file;
#[cfg(target_os = "linux")]
mod kernel;
pub mod keyfile;
pub mod lifecycle;
pub mod link;
pub mod metrics;
pub mod packet;
pub mod proxy;
pub mod quic;
pub mod reach;
pub mod silence;
pub mod socket;
pub mod spool;
pub mod stream;
pub mod telemetry;
pub mod tls;
pub mod tunnel;
pub mod udp;
