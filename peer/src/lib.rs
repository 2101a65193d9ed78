//! The program on a user's machine: it connects to a hub through relays and runs the hub's tasks.
//!
//! | module | answers for |
//! | --- | --- |
//! | [`config`] | the settings |
//! | [`state`] | what is kept between two starts |
//! | [`mesh`] | the network side: link, connection to the hub |
//! | [`mirror`] | the workspaces of attached sessions, kept like the hub's |
//! | [`task`] | which tasks may start, which run, which wait to be collected |
//! | [`journal`] | what must be remembered of tasks if the peer dies |
//! | [`shell`] | one shell task: a program, its pipes, its end |
//! | [`process`] | programs that the peer starts, and all that they start |
//! | [`capabilities`] | what the machine is and has |
//! | [`health`] | what the machine does right now |
//! | [`doctor`] | what keeps the machine from its hub |

pub mod capabilities;
pub mod config;
pub mod doctor;
pub mod health;
pub mod journal;
pub mod mesh;
pub mod mirror;
pub mod process;
pub mod shell;
pub mod state;
pub mod task;
