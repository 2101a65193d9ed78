//! The program on a user's machine: it connects to a hub through relays and runs the hub's tasks.
//!
//! | module | answers for |
//! | --- | --- |
//! | [`task`] | which tasks may start, which run, which wait to be collected |
//! | [`journal`] | what must be remembered of tasks if the peer dies |
//! | [`shell`] | one shell task: a program, its pipes, its end |
//! | [`capabilities`] | what the machine is and has |
//! | [`health`] | what the machine does right now |
//! | [`mesh`] | the network side: link, connection to the hub |
//! | [`config`] | settings |
//! | [`doctor`] | what keeps a machine from coming online |
//! | [`state`] | what is kept between starts |
//! | [`process`] | programs that the peer starts, and all that they start |

pub mod capabilities;
pub mod config;
pub mod doctor;
pub mod health;
pub mod journal;
pub mod mesh;
pub mod process;
pub mod shell;
pub mod state;
pub mod task;
