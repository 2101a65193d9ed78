//! How soon a command's first byte is here, and how many commands a second: beside ssh and a bare spawn.

use std::time::Duration;

use super::{Bench, Setting};
use crate::{
    contest::{Contest, Rounds},
    other::{spawn, ssh::{self, Ssh}},
    report::{Metric, Report},
};

pub const BENCH: Bench = Bench {
    name: "dispatch",
    what: "first byte of a command, and short commands per second",
    against: &[ssh::NAME, "spawn"],
    run,
};

fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let ssh = if setting.against(ssh::NAME) { report.found(Ssh::start(setting.folder())?) } else { None };
    let ms = |took: Duration| took.as_secs_f64() * 1e3;
    let mut mux = ssh.as_ref().map(Ssh::mux).transpose()?;
    let mut contest = Contest::default();
    if let Some(ssh) = &ssh {
        contest.enter("ssh", || spawn::first_byte(&mut ssh.command("/bin/echo x")).map(ms));
    }
    if let Some(mux) = &mut mux {
        contest.enter("mux", || mux.first_byte("/bin/echo x").map(ms));
    }
    contest.enter("spawn", || spawn::first_byte(&mut spawn::command(&["/bin/echo", "x"])).map(ms));
    let rounds = Rounds { warm: 20, counted: setting.pick(300, 100), within: Duration::from_secs(15) };
    let o = contest.hold(rounds)?;
    for (n, s) in &o {
        let m = Metric::of("ms", "", s);
        eprintln!("{n}: {m:?} p10 {} p90 {}", s.percentile(10.0), s.percentile(90.0));
    }
    Ok(())
}
