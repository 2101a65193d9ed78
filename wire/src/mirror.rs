//! The ghost mirror: one workspace, the same on the hub and on every attached node.
//!
//! The hub orders changes ([`judge`]), a node follows and proposes ([`replica`]); both hold the same [`tree`] and apply the same
//! [`op`]s to it. Nothing here touches a disk or a network: what was seen comes in, what is to be done comes out.
//!
//! | module | answers for |
//! | --- | --- |
//! | [`path`] | names inside a workspace |
//! | [`entry`] | what lies at a path, and the hash that stands for it |
//! | [`tree`] | the persistent tree with a hash per directory, differences |
//! | [`op`] | changes, batches of them as they travel, the shortest changes between two trees |
//! | [`judge`] | what the hub accepts of a proposal |
//! | [`replica`] | what a node does next |
//! | [`ignore`] | what is not part of the workspace |
//! | [`cut`] | where contents, and lists of chunks, are cut |
//! | [`seal`] | chunks that relays may hold without reading them |

pub mod cut;
pub mod entry;
pub mod ignore;
pub mod judge;
pub mod op;
pub mod path;
pub mod replica;
pub mod seal;
pub mod tree;
