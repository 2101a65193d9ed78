//! The only async code that peer, relay and hub share.
//!
//! | module | answers for |
//! | --- | --- |
//! | [`clock`] | time and random bytes from outside |
//! | [`config`] | one YAML file, environment and flags over it, helpful errors |
//! | [`keyfile`] | a private key in a file that only its owner reads |
//! | [`lifecycle`] | start and stop of a program |
//! | [`spool`] | output of a task, in a file of bounded size |
//! | [`stream`] | frames on a byte stream |
//! | [`telemetry`] | logs |

pub mod clock;
pub mod keyfile;
pub mod lifecycle;
pub mod stream;
pub mod telemetry;
