//! `cortex-peer doctor`: checks what a peer needs, one thing after the other, and says how to fix what is missing.

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use cortex_runtime::{clock, keyfile, link, link::LinkError};
use cortex_wire::{id::HubId, invite::RelayEndpoint, key::SecretKey};
use serde::Serialize;

use crate::{config::PeerConfig, config::is_root, health, mesh, state};

/// How long a relay may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Less free disk than this and tasks will soon fail.
const DISK_BYTES: u64 = 512 << 20;
/// A clock that is off by more confuses people who read logs; tasks use the hub's.
const SKEW_MS: i64 = 60_000;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works, and could be better; or information.
    Warn,
    /// Has to be fixed.
    Fail,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was checked.
    pub check: String,
    /// How it ended.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it; empty when nothing.
    pub fix: String,
}

/// All checks.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// In the order they were made.
    pub findings: Vec<Finding>,
}

impl Report {
    fn add(&mut self, check: impl Into<String>, verdict: Verdict, found: impl Into<String>, fix: impl Into<String>) {
        self.findings.push(Finding { check: check.into(), verdict, found: found.into(), fix: fix.into() });
    }

    fn ok(&mut self, check: impl Into<String>, found: impl Into<String>) {
        self.add(check, Verdict::Ok, found, "");
    }

    /// Whether something has to be fixed.
    pub fn failed(&self) -> bool {
        self.findings.iter().any(|finding| finding.verdict == Verdict::Fail)
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let width = self.findings.iter().map(|finding| finding.check.chars().count()).max().unwrap_or(0);
        let mut lines: Vec<String> = Vec::new();
        for finding in &self.findings {
            let mark = match finding.verdict {
                Verdict::Ok => "ok  ",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
            };
            lines.push(format!("{mark}  {:width$}  {}", finding.check, finding.found));
            if !finding.fix.is_empty() {
                lines.push(format!("      {:width$}  → {}", "", finding.fix));
            }
        }
        lines.push(if self.failed() {
            "\nSomething has to be fixed before this machine comes online.".into()
        } else {
            "\nNothing stands in the way.".into()
        });
        lines.join("\n")
    }

    /// For programs.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

/// Makes all checks. `home`: the hub and its relays, or why they are not known.
pub async fn examine(config: &PeerConfig, home: anyhow::Result<(HubId, Vec<RelayEndpoint>)>) -> Report {
    let mut report = Report::default();
    check_place(&mut report, "state directory", &config.state_dir());
    check_place(&mut report, "workspace directory", &config.workspace_dir());
    check_user(&mut report, config);
    report.add(
        "sandbox",
        Verdict::Warn,
        "PERMISSIVE: tasks run as the user of the peer",
        "STRICT is not built yet; give the peer a user of its own",
    );
    match home {
        Ok((hub, relays)) => {
            let relays = if config.relays.is_empty() { relays } else { config.relays.clone() };
            if relays.is_empty() {
                report.add("relays", Verdict::Fail, "none is known", "join again with a new invite, or set `relays` in peer.yaml");
            }
            for relay in &relays {
                check_relay(&mut report, config, &hub, relay).await;
            }
        }
        Err(error) => report.add("hub", Verdict::Fail, format!("{error:#}"), "get an invite on the hub's page, and give it with --invite"),
    }
    report
}

fn check_place(report: &mut Report, check: &str, dir: &Path) {
    let shown = dir.display();
    let probe = dir.join(".doctor");
    let written = keyfile::make_private_dir(dir).and_then(|()| {
        let _ = std::fs::remove_file(&probe);
        keyfile::write_private(&probe, b"cortex")
    });
    let _ = std::fs::remove_file(&probe);
    match (written, health::disk(dir)) {
        (Err(error), _) => {
            report.add(check, Verdict::Fail, format!("{shown}: {error}"), "choose another one, or give this user the right to write there")
        }
        (Ok(()), Some((free, _))) if free < DISK_BYTES => {
            report.add(
                check,
                Verdict::Warn,
                format!("{shown}: only {} MiB are free", free >> 20),
                "make room, or choose a place on another disk",
            );
        }
        (Ok(()), disk) => {
            let free = disk.map_or(String::new(), |(free, _)| format!(", {} GiB free", free >> 30));
            report.ok(check, format!("{shown} can be written{free}"));
        }
    }
}

fn check_user(report: &mut Report, config: &PeerConfig) {
    match (is_root(), config.allow_root) {
        (false, _) => report.ok("user", "not root"),
        (true, true) => report.add("user", Verdict::Warn, "root, as allowed; so is every task", "make a user for the peer"),
        (true, false) => {
            report.add(
                "user",
                Verdict::Warn,
                "root: `run` will refuse to start",
                "make a user for the peer (useradd --create-home cortex), or start with --allow-root",
            );
        }
    }
}

async fn check_relay(report: &mut Report, config: &PeerConfig, hub: &HubId, relay: &RelayEndpoint) {
    let name = |what: &str| format!("{what} {}", relay.address);
    let address = match link::resolve(relay).await {
        Ok(address) => address,
        Err(error) => {
            return report.add(name("name"), Verdict::Fail, error.to_string(), "check the name, and this machine's DNS (/etc/resolv.conf)");
        }
    };
    report.ok(name("name"), format!("resolves to {}", address.ip()));
    let key = probe_key(config);
    let since = Instant::now();
    let probed = tokio::time::timeout(PATIENCE, mesh::probe(relay, hub, &key)).await.unwrap_or(Err(LinkError::TimedOut));
    let took = since.elapsed();
    match probed {
        Ok(answer) => {
            report.ok(name("udp"), format!("the relay answered and proved its key in {} ms", took.as_millis()));
            check_clock(report, answer.server_time_ms);
            check_answer(report, relay, &answer);
        }
        Err(error @ (LinkError::Connect { .. } | LinkError::TimedOut)) => report.add(
            name("udp"),
            Verdict::Fail,
            error.to_string(),
            format!("allow UDP to {address} in this network's firewall; if others reach the relay, its address or key may have changed: get a new invite"),
        ),
        Err(error) => report.add(name("udp"), Verdict::Fail, error.to_string(), "try again; if it stays, tell the relay's operator"),
    }
    check_tcp(report, &name("tcp"), address).await;
}

/// The node's own key when there is one, because what the relay says to it is what `run` will hear; but not while a peer runs, whose link it would take over.
fn probe_key(config: &PeerConfig) -> SecretKey {
    let idle = state::State::open(&config.state_dir());
    let own = idle.ok().and_then(|_idle| keyfile::load(&state::key_path(&config.state_dir())).ok());
    own.unwrap_or_else(|| SecretKey::from_seed(clock::random()))
}

fn check_answer(report: &mut Report, relay: &RelayEndpoint, answer: &mesh::Probed) {
    match &answer.refused {
        None => report.ok(format!("admission {}", relay.address), "this node is admitted"),
        Some(refused) if refused.code == "node_unknown" => {
            report.ok(format!("admission {}", relay.address), "the hub answers; this machine has not joined it yet");
        }
        Some(refused) => {
            report.add(
                format!("admission {}", relay.address),
                Verdict::Fail,
                format!("{} ({})", refused.reason, refused.code),
                "the reason says what to do",
            );
        }
    }
}

fn check_clock(report: &mut Report, server_time_ms: i64) {
    if server_time_ms == 0 {
        return;
    }
    let skew = clock::now_ms() - server_time_ms;
    if skew.abs() > SKEW_MS {
        report.add(
            "clock",
            Verdict::Warn,
            format!("{} s away from the relay's", skew / 1000),
            "switch on time synchronisation: timedatectl set-ntp true",
        );
    } else {
        report.ok("clock", "agrees with the relay's");
    }
}

/// Information only: the fallback over TCP is not built yet.
async fn check_tcp(report: &mut Report, check: &str, address: SocketAddr) {
    let connected = tokio::time::timeout(Duration::from_secs(2), tokio::net::TcpStream::connect(address)).await;
    match connected {
        Ok(Ok(_)) => report.ok(check, "reachable"),
        _ => report.add(
            check,
            Verdict::Warn,
            "not reachable",
            "nothing to do: this version needs UDP only, and has no fallback over TCP yet",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_missing_comes_with_its_fix() {
        let dir = tempfile::tempdir().unwrap();
        let config = PeerConfig { state_dir: Some(dir.path().join("state")), ..PeerConfig::default() };
        let relay_key = cortex_wire::key::SecretKey::from_seed([1; 32]).public();
        let nobody = RelayEndpoint { address: "name.invalid:443".into(), id: relay_key.into(), region: String::new() };
        let report = examine(&config, Ok((relay_key.into(), vec![nobody]))).await;
        assert!(report.failed());
        let name = report.findings.iter().find(|finding| finding.check.starts_with("name")).unwrap();
        assert_eq!(name.verdict, Verdict::Fail);
        assert!(!name.fix.is_empty());
        assert!(report.to_text().contains("FAIL"));
        assert!(report.to_json().contains("\"fail\""));
        let state = report.findings.iter().find(|finding| finding.check == "state directory").unwrap();
        assert_eq!(state.verdict, Verdict::Ok);
    }

    #[tokio::test]
    async fn a_machine_without_a_hub_is_told_where_to_get_an_invite() {
        let dir = tempfile::tempdir().unwrap();
        let config = PeerConfig { state_dir: Some(dir.path().to_owned()), ..PeerConfig::default() };
        let report = examine(&config, Err(anyhow::anyhow!("no hub"))).await;
        assert!(report.failed() && report.to_text().contains("--invite"));
    }
}
