//! The rules both ends of Cortex Mesh share.
//!
//! Everything here is pure: no I/O, no clock, no randomness, no async. Times come in as milliseconds since the Unix
//! epoch, random bytes come in as arrays. What a peer, a relay and a hub must agree on is written once, here.
//!
//! | module | answers for |
//! | --- | --- |
//! | [`schema`] | the messages (generated from `proto/cortex.proto`) |
//! | [`id`] | newtypes for ids |
//! | [`key`] | Ed25519 keys, signed bytes under a domain, key statements |
//! | [`invite`], [`ticket`] | permissions: to enrol one node, to use one relay |
//! | [`task`] | a task's states and the checks before it may start |
//! | [`browser`] | what may be asked of a node's browser |
//! | [`policy`] | what a node allows |
//! | [`selector`], [`pool`] | which node runs a task: the machines that fit, and the one that gets it |
//! | [`evidence`] | a node's signed word about a task, to be checked by anybody |
//! | [`mirror`] | workspaces: entries, trees, changes, chunks |
//! | [`route`] | connection ids as addresses |
//! | [`direct`] | probes of a direct way between a node and its hub |
//! | [`close`] | why a connection is closed |
//! | [`frame`] | messages on a stream |
//! | [`limits`] | every bound, with its reason |
//! | [`mirror`] | one workspace, the same everywhere: tree, changes, what is accepted, what to do next |
//! | [`secret`] | secrets that tasks name |
//! | [`text`] | strings that strangers supply |

pub mod browser;
pub mod close;
pub mod direct;
pub mod evidence;
pub mod frame;
pub mod id;
pub mod invite;
pub mod key;
pub mod limits;
pub mod mirror;
pub mod policy;
pub mod pool;
pub mod route;
pub mod secret;
pub mod selector;
pub mod task;
pub mod text;
pub mod ticket;

/// The messages, generated from `proto/cortex.proto`.
#[expect(missing_docs, clippy::large_enum_variant, reason = "generated; documented in proto/cortex.proto")]
pub mod schema {
    include!(concat!(env!("OUT_DIR"), "/cortex.v1.rs"));
}

/// The protocol version that this build speaks. Version 1 is the first.
pub const PROTOCOL_VERSION: u32 = 1;

/// ALPN of the end-to-end connection between a node and its hub.
pub const ALPN_MESH: &[u8] = b"cortex-mesh/1";

/// ALPN of a link to a relay.
pub const ALPN_LINK: &[u8] = b"cortex-link/1";
