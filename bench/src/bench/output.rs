//! How fast the output of a command flows.

use super::{Bench, Setting};
use crate::{report::Report};

pub const BENCH: Bench = Bench { name: "output", what: "throughput of a command's output", against: &["relay"], run };

fn run(_setting: &Setting, _report: &mut Report) -> anyhow::Result<()> {
    Ok(())
}
