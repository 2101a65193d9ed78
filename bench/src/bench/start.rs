//! How soon a hub serves and a peer is online.

use std::time::Duration;

use super::{Bench, Setting};
use crate::{
    contest::{Contest, Rounds},
    report::{Metric, Report, Target},
    stack::{Hub, Peer, free_port},
};

pub const BENCH: Bench = Bench { name: "start", what: "from the start of a program to its service", against: &[], journalled: false, run };

fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let rounds = setting.pick(20, 7);
    let ms = |took: Duration| took.as_secs_f64() * 1e3;
    let folder = setting.folder();
    let existing = folder.join("existing");
    std::fs::create_dir(&existing)?;
    drop(start_hub(&existing)?);
    let mut fresh = 0;
    let mut contest = Contest::default();
    contest.enter("fresh", || {
        fresh += 1;
        let folder = folder.join(format!("fresh-{fresh}"));
        std::fs::create_dir(&folder)?;
        start_hub(&folder).map(|hub| ms(hub.ready_after))
    });
    contest.enter("existing", || start_hub(&existing).map(|hub| ms(hub.ready_after)));
    let found = contest.hold(Rounds { warm: 1, counted: rounds, within: Duration::from_secs(60) })?;
    let what = "From the start of `cortex-hub serve` with a fresh data directory to the first 200 of /readyz, which has written to the store and has a relay. Without any configuration but free ports.";
    report.add("hub_ms", Metric::of("ms", what, &found["fresh"]).wanted(Target::at_most(2000.0)));
    let what = "The same with a data directory that was used before.";
    report.add("hub_existing_ms", Metric::of("ms", what, &found["existing"]).wanted(Target::at_most(2000.0)));

    let hub = start_hub(&existing)?;
    let peer = folder.join("peer");
    drop(Peer::join(&hub, &peer)?);
    let mut contest = Contest::default();
    contest.enter("peer", || Peer::start(&hub, &peer).map(|peer| ms(peer.online_after)));
    let found = contest.hold(Rounds { warm: 1, counted: rounds, within: Duration::from_secs(60) })?;
    let what = "From the start of `cortex-peer run` on a machine that has joined before to the event on the hub's stream that says the node is online, through the relay inside the hub.";
    report.add("peer_online_ms", Metric::of("ms", what, &found["peer"]).wanted(Target::at_most(500.0)));
    Ok(())
}

fn start_hub(folder: &std::path::Path) -> anyhow::Result<Hub> {
    let relay = format!("127.0.0.1:{}", free_port()?);
    Hub::start(folder, &folder.join("hub"), &["--relay-listen", &relay])
}
