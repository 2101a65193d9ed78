//! `cortex-peer doctor`: what keeps this machine from its hub, and how to put it right.
//!
//! Each check ends in one line. A *fail* keeps the peer from working, a *warn* may do so or limits it, *info* is good to know.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use cortex_runtime::{
    clock,
    reach::{Network, Transport},
};
use cortex_wire::invite::RelayEndpoint;
use serde::Serialize;
use tokio::{net::lookup_host, time::timeout};

use crate::{
    health,
    sandbox::{self, Sandbox},
    state,
};

/// Longer than any answer that would be of use.
const PATIENCE: Duration = Duration::from_secs(5);
/// Tickets live for five minutes: a clock this far off is noticed soon.
const SKEW_MS: i64 = 60_000;
/// Room for journal and output.
const DISK_BYTES: u64 = 256 << 20;

/// What is checked.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Where the hub can be reached.
    pub relays: Vec<RelayEndpoint>,
    /// See [`state`].
    pub state_dir: PathBuf,
    /// Where tasks start.
    pub workspace_dir: PathBuf,
    /// Whether running as root is wanted.
    pub allow_root: bool,
    /// Why the invite in the configuration cannot be used, when there is one.
    pub invite_fault: Option<String>,
    /// How relays are reached.
    pub network: Arc<Network>,
    /// What of it may be used.
    pub transport: Transport,
    /// Whose walls are tried.
    pub sandbox: Sandbox,
}

/// What a relay that was reached said.
#[derive(Debug, Clone)]
pub struct Answer {
    /// How long the handshake took.
    pub took: Duration,
    /// The other side's clock, when it said so.
    pub server_time_ms: Option<i64>,
    /// Why it does not let this node in, when it does not.
    pub refused: Option<String>,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Good to know.
    Info,
    /// May be in the way.
    Warn,
    /// Keeps the peer from working.
    Fail,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// Everything that was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In the order of the checks.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing failed.
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|finding| finding.verdict != Verdict::Fail)
    }

    fn say(&mut self, check: &'static str, verdict: Verdict, found: impl Into<String>, fix: Option<&str>) {
        self.findings.push(Finding { check, verdict, found: found.into(), fix: fix.map(str::to_owned) });
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for Finding { check, verdict, found, fix } in &self.findings {
            let mark = match verdict {
                Verdict::Ok => "ok  ",
                Verdict::Info => "info",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
            };
            writeln!(f, "{mark}  {check:<10} {found}")?;
            if let Some(fix) = fix {
                writeln!(f, "      {:<10} fix: {fix}", "")?;
            }
        }
        Ok(())
    }
}

/// Makes all checks. `probe` shakes hands with a relay over UDP or over TCP.
pub async fn examine(subject: &Subject, probe: impl AsyncFn(&RelayEndpoint, Transport) -> Result<Answer, String>) -> Report {
    let mut report = Report::default();
    check_membership(&mut report, subject);
    // Whoever has not joined is refused, and rightly so.
    let joined = matches!(state::record_in(&subject.state_dir), Ok(Some(_)));
    let mut server_time_ms = None;
    for relay in &subject.relays {
        let proxy = subject.network.proxies().towards(&relay.address).filter(|_| subject.transport != Transport::Udp);
        if check_name(&mut report, relay, proxy.is_some()).await.is_empty() && proxy.is_none() {
            continue;
        }
        server_time_ms = check_ways(&mut report, subject, relay, proxy.as_deref(), joined, &probe).await.or(server_time_ms);
    }
    check_path(&mut report, subject);
    check_clock(&mut report, server_time_ms.map(|theirs| theirs - clock::now_ms()));
    check_disk(&mut report, "state", &subject.state_dir);
    check_disk(&mut report, "workspace", &subject.workspace_dir);
    check_sandbox(&mut report, &subject.sandbox).await;
    check_user(&mut report, rustix::process::geteuid().is_root(), subject.allow_root);
    report
}

/// By which way a running peer's packets go.
fn check_path(report: &mut Report, subject: &Subject) {
    let Some(way) = state::way_in(&subject.state_dir) else { return };
    let verdict = if way.path == "direct" { Verdict::Ok } else { Verdict::Info };
    report.say("path", verdict, format!("{} (the relay is {})", way.why, way.relay), None);
}

fn check_membership(report: &mut Report, subject: &Subject) {
    const CHECK: &str = "hub";
    match state::record_in(&subject.state_dir) {
        Ok(Some(record)) if record.pending => report.say(
            CHECK,
            Verdict::Warn,
            format!("node {} waits for approval; its fingerprint is {}", record.node, record.node.key().fingerprint()),
            Some("compare the fingerprint with the one on the hub's page and approve the node there"),
        ),
        Ok(Some(record)) => report.say(CHECK, Verdict::Ok, format!("member of `{}` as `{}`", record.hub_name, record.name), None),
        Ok(None) => match &subject.invite_fault {
            Some(fault) => report.say(CHECK, Verdict::Fail, fault.clone(), Some("make a new invite on the hub's page")),
            None if subject.relays.is_empty() => {
                report.say(
                    CHECK,
                    Verdict::Fail,
                    "this machine has joined no hub",
                    Some("make an invite on the hub's page and put it into the configuration, or pass --invite"),
                );
            }
            None => report.say(CHECK, Verdict::Info, "not joined yet; the invite is sound", None),
        },
        Err(error) => report.say(CHECK, Verdict::Fail, error.to_string(), None),
    }
    if let (Some(process), true) = (state::holder_of(&subject.state_dir), report.is_sound()) {
        report.say(CHECK, Verdict::Info, format!("a peer is running with this state (process {process})"), None);
    }
}

async fn check_name(report: &mut Report, relay: &RelayEndpoint, behind_proxy: bool) -> Vec<SocketAddr> {
    const CHECK: &str = "name";
    // A proxy resolves names itself.
    let verdict = if behind_proxy { Verdict::Info } else { Verdict::Fail };
    let found: Vec<SocketAddr> = match timeout(PATIENCE, lookup_host(&relay.address)).await {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(error)) => {
            let fix = "check the spelling and this machine's DNS (try: getent hosts NAME)";
            report.say(CHECK, verdict, format!("{} cannot be resolved: {error}", relay.address), Some(fix).filter(|_| !behind_proxy));
            return Vec::new();
        }
        Err(_) => {
            let fix = Some("check this machine's DNS server").filter(|_| !behind_proxy);
            report.say(CHECK, verdict, format!("{}: no answer from DNS", relay.address), fix);
            return Vec::new();
        }
    };
    let addresses: Vec<String> = found.iter().map(|address| address.ip().to_string()).collect();
    report.say(CHECK, Verdict::Ok, format!("{} is {}", relay.address, addresses.join(", ")), None);
    found
}

/// Which ways lead to a relay; one is enough.
async fn check_ways(
    report: &mut Report,
    subject: &Subject,
    relay: &RelayEndpoint,
    proxy: Option<&str>,
    joined: bool,
    probe: &impl AsyncFn(&RelayEndpoint, Transport) -> Result<Answer, String>,
) -> Option<i64> {
    let ask = async |transport| {
        if subject.transport != Transport::Auto && subject.transport != transport {
            return None;
        }
        // A probe has its own, longer patience.
        Some(timeout(PATIENCE * 3, probe(relay, transport)).await.unwrap_or_else(|_| Err("no answer".into())))
    };
    // One after the other: a node's newest link replaces the one before.
    let (udp, tcp) = (ask(Transport::Udp).await, ask(Transport::Tcp).await);
    let works = |way: &Option<Result<Answer, String>>| way.as_ref().is_some_and(Result::is_ok);
    // Nothing is missing while there is another way.
    let failed = |other: &Option<Result<Answer, String>>| if works(other) { Verdict::Warn } else { Verdict::Fail };
    let port = relay.address.rsplit(':').next().unwrap_or_default();
    let open = format!("ask the network's administrator to let outgoing UDP and TCP through to {} (docs/network.md)", relay.address);
    let fix = match proxy {
        Some(_) => {
            "ask whoever runs the proxy to let CONNECT to that host and port through; check user and password in its address".to_owned()
        }
        None if works(&udp) => format!("not needed now; outgoing TCP to port {port} would help when UDP fails"),
        None => format!("{open}; if others reach it, ask whoever runs the relay; where only a proxy leads out, set `network.proxy`"),
    };
    match &udp {
        Some(Ok(answer)) => say_answer(report, "udp", relay, answer, None),
        Some(Err(error)) => {
            let ask_for = format!("it works without, but slower; {open}");
            report.say("udp", failed(&tcp), format!("{}: {error}", relay.address), Some(if works(&tcp) { &ask_for } else { &open }));
        }
        None => {}
    }
    match &tcp {
        Some(Ok(answer)) => say_answer(report, if proxy.is_some() { "proxy" } else { "tcp" }, relay, answer, proxy),
        Some(Err(error)) => report.say(if proxy.is_some() { "proxy" } else { "tcp" }, failed(&udp), error.clone(), Some(&fix)),
        None => {}
    }
    let answer = [udp, tcp].into_iter().flatten().find_map(Result::ok)?;
    if let (Some(reason), true) = (answer.refused, joined) {
        report.say("admission", Verdict::Warn, format!("{} does not let this node in: {reason}", relay.address), None);
    }
    answer.server_time_ms
}

fn say_answer(report: &mut Report, check: &'static str, relay: &RelayEndpoint, answer: &Answer, proxy: Option<&str>) {
    let through = proxy.map_or_else(String::new, |proxy| format!(" through {proxy}"));
    report.say(check, Verdict::Ok, format!("{} answered{through} in {} ms", relay.address, answer.took.as_millis()), None);
}

fn check_clock(report: &mut Report, skew_ms: Option<i64>) {
    const CHECK: &str = "clock";
    match skew_ms {
        Some(skew) if skew.abs() > SKEW_MS => {
            let direction = if skew > 0 { "behind" } else { "ahead of" };
            report.say(
                CHECK,
                Verdict::Warn,
                format!("this machine's clock is {} s {direction} the relay's", skew.abs() / 1000),
                Some("set the clock, best by NTP (timedatectl set-ntp true)"),
            );
        }
        Some(skew) => report.say(CHECK, Verdict::Ok, format!("within {} ms of the relay's", skew.abs().max(1)), None),
        // The year this was written: nothing before it can be right.
        None if clock::now_ms() < 1_767_225_600_000 => {
            report.say(
                CHECK,
                Verdict::Warn,
                "this machine's clock is years behind",
                Some("set the clock, best by NTP (timedatectl set-ntp true)"),
            );
        }
        None => report.say(CHECK, Verdict::Info, "nobody answered with a time to compare with", None),
    }
}

fn check_disk(report: &mut Report, check: &'static str, folder: &Path) {
    let existing = folder.ancestors().find(|path| path.exists()).unwrap_or(folder);
    if let Err(error) = try_to_write(existing) {
        let fix = format!("make it writable for this user, or choose another folder (--{check}-dir)");
        report.say(check, Verdict::Fail, format!("cannot write to {}: {error}", existing.display()), Some(&fix));
        return;
    }
    let free = health::disk(existing).map_or(u64::MAX, |(free, _)| free);
    let found = format!("{} can be written, {} MiB free", folder.display(), free >> 20);
    if free < DISK_BYTES {
        report.say(check, Verdict::Warn, found, Some("make room: without it no task starts, because none could be journalled"));
    } else {
        report.say(check, Verdict::Ok, found, None);
    }
}

fn try_to_write(folder: &Path) -> std::io::Result<()> {
    let path = folder.join(format!(".cortex-doctor-{}", std::process::id()));
    std::fs::write(&path, b"x").and_then(|()| std::fs::remove_file(&path))
}

async fn check_sandbox(report: &mut Report, sandbox: &Sandbox) {
    let sandbox = sandbox.level().await;
    let verdict = if sandbox.level == sandbox::STRICT { Verdict::Ok } else { Verdict::Warn };
    let missing = if sandbox.missing.is_empty() { String::new() } else { format!("; {}", sandbox.missing.join("; ")) };
    report.say("sandbox", verdict, format!("{}{missing}", sandbox.level), None);
}

fn check_user(report: &mut Report, root: bool, allow_root: bool) {
    const CHECK: &str = "user";
    match (root, allow_root) {
        (false, _) => report.say(CHECK, Verdict::Ok, "not root", None),
        (true, true) => report.say(CHECK, Verdict::Warn, "root: tasks can do anything to this machine", Some("run it as an ordinary user")),
        (true, false) => {
            report.say(
                CHECK,
                Verdict::Fail,
                "root, and the peer refuses to run as root",
                Some("run it as an ordinary user, or pass --allow-root"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cortex_runtime::reach::NetworkConfig;
    use cortex_wire::key::SecretKey;

    fn relay(address: &str) -> RelayEndpoint {
        RelayEndpoint { address: address.into(), id: SecretKey::from_seed([1; 32]).public().into(), region: String::new() }
    }

    fn subject(dir: &Path, relays: Vec<RelayEndpoint>) -> Subject {
        Subject {
            relays,
            state_dir: dir.join("state"),
            workspace_dir: dir.join("work"),
            allow_root: true,
            invite_fault: None,
            network: Arc::default(),
            transport: Transport::Auto,
            sandbox: Sandbox::new("/nonexistent/helper".into(), Vec::new()),
        }
    }

    fn verdict(report: &Report, check: &str) -> Verdict {
        report.findings.iter().find(|finding| finding.check == check).unwrap_or_else(|| panic!("{check} in {report}")).verdict
    }

    async fn unreachable(_: &RelayEndpoint, _: Transport) -> Result<Answer, String> {
        panic!("nobody to ask")
    }

    #[tokio::test]
    async fn a_machine_in_order_has_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        let probe = async |_: &RelayEndpoint, _: Transport| {
            Ok(Answer { took: Duration::from_millis(3), server_time_ms: Some(clock::now_ms() + 5), refused: None })
        };
        let report = examine(&subject(dir.path(), vec![relay("127.0.0.1:1")]), probe).await;
        assert!(report.is_sound(), "{report}");
        for check in ["name", "udp", "tcp", "clock", "state", "workspace"] {
            assert_eq!(verdict(&report, check), Verdict::Ok, "{report}");
        }
    }

    #[tokio::test]
    async fn one_way_to_a_relay_is_enough_and_the_other_is_still_named() {
        let dir = tempfile::tempdir().unwrap();
        for (works, fails) in [(Transport::Udp, "tcp"), (Transport::Tcp, "udp")] {
            let probe = async |_: &RelayEndpoint, transport: Transport| {
                let answer = Answer { took: Duration::from_millis(3), server_time_ms: None, refused: None };
                if transport == works { Ok(answer) } else { Err("no answer".to_owned()) }
            };
            let report = examine(&subject(dir.path(), vec![relay("127.0.0.1:1")]), probe).await;
            assert!(report.is_sound() && verdict(&report, fails) == Verdict::Warn, "{report}");
        }
        let config = NetworkConfig { proxy: Some("http://u:secret@proxy.example:3128".into()), ..NetworkConfig::default() };
        let network = Network::new(&config).unwrap();
        let probe = async |_: &RelayEndpoint, _: Transport| Err("no answer".to_owned());
        let report =
            examine(&Subject { network, transport: Transport::Tcp, ..subject(dir.path(), vec![relay("relay.invalid:1")]) }, probe).await;
        assert_eq!((verdict(&report, "name"), verdict(&report, "proxy")), (Verdict::Info, Verdict::Fail), "{report}");
        assert!(!report.to_string().contains("secret") && report.findings.iter().all(|finding| finding.check != "udp"), "{report}");
    }

    #[tokio::test]
    async fn what_fails_says_how_to_fix_it() {
        let dir = tempfile::tempdir().unwrap();
        let probe = async |_: &RelayEndpoint, _: Transport| Err("no answer".to_owned());
        let report = examine(&subject(dir.path(), vec![relay("127.0.0.1:1")]), probe).await;
        assert!(!report.is_sound());
        let udp = report.findings.iter().find(|finding| finding.check == "udp").unwrap();
        assert!(udp.verdict == Verdict::Fail && udp.fix.as_ref().is_some_and(|fix| fix.contains("administrator")));
        assert!(report.to_string().contains("FAIL  udp"));
        let report = examine(&subject(dir.path(), vec![]), unreachable).await;
        assert_eq!(verdict(&report, "hub"), Verdict::Fail);
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let report = examine(&Subject { state_dir: file.join("state"), ..subject(dir.path(), vec![]) }, unreachable).await;
        assert_eq!(verdict(&report, "state"), Verdict::Fail);
    }

    #[test]
    fn a_wrong_clock_is_named() {
        let mut report = Report::default();
        check_clock(&mut report, Some(3_600_000));
        assert!(report.findings[0].found.contains("3600 s behind"), "{report}");
        check_clock(&mut report, Some(-120_000));
        assert!(report.findings[1].found.contains("ahead of"));
        assert!(report.is_sound());
    }

    #[test]
    fn root_is_refused_unless_it_is_wanted() {
        let mut report = Report::default();
        check_user(&mut report, true, false);
        assert_eq!(verdict(&report, "user"), Verdict::Fail);
        check_user(&mut report, false, false);
        assert_eq!(report.findings[1].verdict, Verdict::Ok);
    }
}
