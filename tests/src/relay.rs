//! A running `cortex-relay`.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::Result;
use tempfile::TempDir;

use crate::{
    net::Place,
    program::{self, Process},
};

/// From start to the line with its address.
const READY: Duration = Duration::from_secs(10);

/// A relay.
#[derive(Debug)]
pub struct Relay {
    /// Its process.
    pub process: Process,
    /// `host:port#key`, as hubs are told of it.
    pub endpoint: String,
    home: TempDir,
    place: Place,
    listen: String,
    hubs: Vec<String>,
    words: Vec<String>,
}

impl Relay {
    /// A relay on loopback for these hubs.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(hubs: &[&str]) -> Result<Self> {
        Self::start_at(Place::Here, Ipv4Addr::LOCALHOST, hubs).await
    }

    /// A relay at a place of the network, at an address there.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_at(place: Place, address: Ipv4Addr, hubs: &[&str]) -> Result<Self> {
        Self::start_with(place, address, hubs, &[]).await
    }

    /// A relay on loopback, with further words on its command line.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_saying(hubs: &[&str], words: &[&str]) -> Result<Self> {
        Self::start_with(Place::Here, Ipv4Addr::LOCALHOST, hubs, words).await
    }

    async fn start_with(place: Place, address: Ipv4Addr, hubs: &[&str], words: &[&str]) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let listen = format!("{address}:{}", program::free_port()?);
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let (hubs, words): (Vec<String>, Vec<String>) = (owned(hubs), owned(words));
        let process = spawn(&place, &home, &listen, &hubs, &words)?;
        let mut relay = Self { process, endpoint: String::new(), home, place, listen, hubs, words };
        relay.endpoint = relay.ready().await?;
        Ok(relay)
    }

    /// What its `/readyz`, `/metrics`, … answers, when it was started with `--http` at this address: the status, and the text.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn ask(http: &str, path: &str) -> Result<(u16, String)> {
        let answer = reqwest::get(format!("http://{http}{path}")).await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        self.endpoint.split('#').next().unwrap_or_default()
    }

    /// Starts it again after its end, with the same key and port.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart(&mut self) -> Result<()> {
        self.process = spawn(&self.place, &self.home, &self.listen, &self.hubs, &self.words)?;
        self.ready().await.map(drop)
    }

    async fn ready(&mut self) -> Result<String> {
        self.process
            .line("its address and key", READY, |line| line.rsplit_once('#').filter(|(_, key)| key.len() == 52).map(|_| line.to_owned()))
            .await
    }
}

fn spawn(place: &Place, home: &TempDir, listen: &str, hubs: &[String], words: &[String]) -> Result<Process> {
    let mut command = program::command("cortex-relay", place, home.path())?;
    command.args(["serve", "--listen", listen, "--region", "test", "--state-dir"]).arg(home.path().join("state"));
    hubs.iter().for_each(|hub| _ = command.args(["--hub", hub]));
    command.args(words);
    Process::start("relay", command, home.path())
}
