//! Which links there are, for people: a file beside the peer's state that `cortex-peer status` reads.
//!
//! It is written when a link comes or goes, or is much nearer or farther than before. What a crashed peer left is not shown: nobody holds the state then.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};

/// A round trip that differs by less is not worth a write.
const LITTLE_US: u64 = 2_000;

/// The links of a running peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// By which packets go to the hub.
    pub home: Option<ShownLink>,
    /// Which takes over when home dies.
    pub standby: Option<ShownLink>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownLink {
    /// The relay's `host:port`.
    pub relay: String,
    /// Its label; may be empty.
    pub region: String,
    /// What carries it: `udp` or `tcp`.
    pub carrier: String,
    /// To the hub and back through it; none: not measured yet.
    pub rtt_us: Option<u64>,
}

impl ShownLink {
    fn differs(&self, other: &Self) -> bool {
        let (now, then) = (self.rtt_us.unwrap_or_default(), other.rtt_us.unwrap_or_default());
        (&self.relay, &self.region, &self.carrier, self.rtt_us.is_some())
            != (&other.relay, &other.region, &other.carrier, other.rtt_us.is_some())
            || now.abs_diff(then) > LITTLE_US.max(then / 4)
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let region = if self.region.is_empty() { String::new() } else { format!(" ({})", self.region) };
        let rtt = self.rtt_us.map_or("not measured yet".to_owned(), |us| format!("{}.{} ms", us / 1000, us % 1000 / 100));
        format!("{}{region}  {}  {rtt}", self.relay, self.carrier)
    }
}

impl Shown {
    /// Whether it is worth showing instead of `before`.
    pub(crate) fn differs(&self, before: &Self) -> bool {
        let pairs = [(&self.home, &before.home), (&self.standby, &before.standby)];
        pairs.into_iter().any(|(now, then)| match (now, then) {
            (Some(now), Some(then)) => now.differs(then),
            (now, then) => now.is_some() != then.is_some(),
        })
    }

    /// Writes it into the state folder. It is of no use after a crash, so it may be lost.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let (file, staged) = (folder.join(FILE), folder.join(FILE).with_extension("tmp"));
        fs::write(&staged, serde_json::to_vec(self)?)?;
        fs::rename(staged, file)
    }

    /// What the running peer of this state folder wrote.
    pub fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.join(FILE)).ok()?).ok()
    }
}

const FILE: &str = "links.json";

#[cfg(test)]
mod tests {
    use super::*;

    fn link(rtt_us: u64) -> ShownLink {
        ShownLink { relay: "a:443".into(), region: "fra".into(), carrier: "udp".into(), rtt_us: Some(rtt_us) }
    }

    #[test]
    fn what_people_would_not_notice_is_not_written() {
        let shown = |home: Option<ShownLink>| Shown { home, standby: None };
        assert!(!shown(Some(link(20_000))).differs(&shown(Some(link(22_000)))));
        assert!(shown(Some(link(20_000))).differs(&shown(Some(link(40_000)))));
        assert!(shown(Some(ShownLink { carrier: "tcp".into(), ..link(20_000) })).differs(&shown(Some(link(20_000)))));
        assert!(shown(None).differs(&shown(Some(link(20_000)))));
        assert!(!Shown::default().differs(&Shown::default()));
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Shown::read(folder.path()), None);
        let shown = Shown { home: Some(link(1_234)), standby: None };
        shown.write(folder.path()).unwrap();
        assert_eq!(Shown::read(folder.path()), Some(shown));
        assert_eq!(link(1_234).line(), "a:443 (fra)  udp  1.2 ms");
    }
}
