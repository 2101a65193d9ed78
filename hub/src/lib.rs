//! The hub: the only place that knows users, nodes, sessions and tasks.
//!
//! [`Hub`](hub::Hub) is the shared state; each concept's module adds its operations to it. Every operation is one store transaction that
//! holds the change, its events and its audit row; what was committed is then told to live subscribers and to the mesh.
//!
//! | module | answers for |
//! | --- | --- |
//! | [`store`] | ordered tables with durable transactions; [`store::redb`] is the first adapter |
//! | [`record`] | what is stored |
//! | [`keys`] | the hub's own keys and its root's statements about them |
//! | [`hub`] | the shared state, and what the domain asks of the mesh |
//! | [`change`] | one transaction of the domain: rows, events, audit, and what follows after the commit |
//! | [`failure`] | what every error of the domain says about itself |
//! | [`account`] | users, logins, API tokens, and who acts |
//! | [`invite`], [`node`], [`session`], [`task`] | the concepts of these names |
//! | [`presence`] | which nodes are there, in memory |
//! | [`output`], [`stdin`], [`terminal`] | what tasks print, what is typed into them, and who sits at their terminals |
//! | [`secret`] | values that tasks use and nobody reads again |
//! | [`mirror`] | workspaces: the files of sessions, the same on every attached node |
//! | [`counts`] | how many there are of what |
//! | [`events`] | numbered feeds, and following them live |
//! | [`relay`] | relays that are added and removed while the hub runs |
//! | [`mesh`] | the network side: relays, connections of nodes, delivery of tasks |
//! | [`api`] | the web surface |
//! | [`config`], [`serve`], [`operator`] | the program's settings, its parts put together, and what is done without them |
//! | [`policy`], [`approval`] | what nodes allow, and when a person is asked |
//! | [`audit`] | the hash chain of what was done by whom |

pub mod account;
pub mod api;
pub mod approval;
pub mod audit;
pub mod browser;
pub mod change;
pub mod config;
pub mod counts;
pub mod demo;
pub mod events;
pub mod failure;
pub mod hub;
pub mod invite;
pub mod keys;
pub mod mesh;
pub mod mirror;
pub mod node;
pub mod operator;
pub mod output;
pub mod policy;
pub mod presence;
pub mod record;
pub mod relay;
pub mod secret;
pub mod serve;
pub mod session;
pub mod stdin;
pub mod store;
pub mod task;
pub mod terminal;
#[cfg(test)]
mod testing;
