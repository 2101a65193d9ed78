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
//! | [`log`] | everything that was ever run here, for the machine's owner |
//! | [`evidence`] | a node's signed word about a task, checked without a hub |
//! | [`shell`] | one shell task: a program, its pipes, its end |
//! | [`browser`] | one browser per session: pages, events, downloads |
//! | [`process`] | programs that the peer starts, and all that they start |
//! | [`sandbox`] | STRICT: namespaces, Landlock, a filter of system calls, and their self-test |
//! | [`capabilities`] | what the machine is and has |
//! | [`health`] | what the machine does right now |
//! | [`doctor`] | what keeps the machine from its hub |

#[cfg(feature = "browser")]
pub mod browser;
#[cfg(not(feature = "browser"))]
#[path = "no_browser.rs"]
pub mod browser;
pub mod capabilities;
pub mod cgroup;
pub mod config;
pub mod doctor;
pub mod evidence;
pub mod health;
pub mod journal;
pub mod log;
pub mod mesh;
pub mod mirror;
pub mod process;
pub mod sandbox;
pub mod shell;
pub mod state;
pub mod task;
