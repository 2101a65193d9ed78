//! Files of any size in bounded memory, and a disk that is full.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Result, ensure};
use bytes::Bytes;
use cortex_tests::{
    api::problem,
    hub::{Hub, HubOptions},
    wait,
};
use reqwest::Method;
use tempfile::TempDir;

use super::Pair;
use crate::SOON;

const MIB: usize = 1024 * 1024;

/// Bytes that do not repeat and do not compress, different for each number.
fn noise(number: usize) -> Bytes {
    let mut state = number as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..MIB / 8).flat_map(|_| word()).collect()
}

#[tokio::test]
async fn a_large_upload_and_a_range_of_it_need_little_memory() -> Result<()> {
    const SIZE: usize = 300;
    const MOST: u64 = 160 * MIB as u64;
    let hub = Hub::start().await?;
    let session = hub.session(&[]).await?.id;
    let pieces = futures(SIZE);
    hub.put_file(&session, "large", &[], reqwest::Body::wrap_stream(pieces)).await?;
    let first = 123 * MIB - 7;
    let range = format!("bytes={first}-{}", first + 2 * MIB - 1);
    let (headers, part) = hub.file_call(Method::GET, &session, "large", &[("range", &range)], "").await?;
    let expected: Vec<u8> = [noise(122), noise(123), noise(124)].concat()[MIB - 7..3 * MIB - 7].to_vec();
    ensure!(part == expected, "the range's bytes");
    assert_eq!(headers["content-range"], format!("bytes {first}-{}/{}", first + 2 * MIB - 1, SIZE * MIB));
    let past = format!("bytes={}-", SIZE * MIB);
    assert_eq!(problem(hub.file_call(Method::GET, &session, "large", &[("range", &past)], "").await)?.status, 416);
    let peak = hub.process.peak_memory()?;
    ensure!(peak < MOST, "{} MiB", peak / MIB as u64);
    Ok(())
}

fn futures(count: usize) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    futures_util::stream::iter((0..count).map(|number| Ok(noise(number))))
}

/// A small disk.
pub(super) struct Disk {
    at: PathBuf,
    _folder: Option<TempDir>,
}

impl Disk {
    fn new(size: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        mount(&["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "tmpfs"], folder.path())?;
        Ok(Self { at: folder.path().to_owned(), _folder: Some(folder) })
    }

    pub(super) fn over(folder: &Path, size: &str) -> Result<Self> {
        mount(&["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "tmpfs"], folder)?;
        Ok(Self { at: folder.to_owned(), _folder: None })
    }

    fn resize(&self, size: &str) -> Result<()> {
        self.remount(&format!("size={size}"))
    }

    pub(super) fn remount(&self, option: &str) -> Result<()> {
        mount(&["-o", &format!("remount,{option}")], &self.at)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

fn mount(options: &[&str], at: &Path) -> Result<()> {
    let done = Command::new("mount").args(options).arg(at).output()?;
    ensure!(done.status.success(), "mount needs root: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

#[tokio::test]
async fn a_full_disk_at_the_hub_is_said_and_heals_by_itself() -> Result<()> {
    let disk = Disk::new("16m")?;
    let hub = Hub::start_with(HubOptions { mirror_dir: Some(disk.at.clone()), ..HubOptions::default() }).await?;
    let pair = Pair::at(hub).await?;
    let [one, two] = pair.folders();
    let large: Vec<u8> = (0..40).flat_map(noise).collect();
    fs::write(one.join("large"), &large)?;
    let said = async || {
        let sync = pair.hub.sync_of(&pair.session, &pair.one.node).await.ok()??;
        sync.problems.into_iter().find(|problem| problem["code"] == "no_space_at_hub")
    };
    let problem_seen = wait::until("the status says what is wrong", Duration::from_secs(20), said).await?;
    assert_eq!(problem_seen["path"], "large", "{problem_seen}");
    let refused = problem(pair.hub.put_file(&pair.session, "also large", &[], Bytes::from(large.clone())).await)?;
    assert_eq!((refused.status, refused.code.as_str()), (503, "no_space"), "{refused:?}");
    ensure!(!two.join("large").exists(), "nothing of it is visible");
    disk.resize("200m")?;
    wait::until("it arrives", Duration::from_secs(30), async || {
        fs::read(two.join("large")).is_ok_and(|found| found == large).then_some(())
    })
    .await?;
    let quiet = async || pair.hub.sync_of(&pair.session, &pair.one.node).await.ok()??.problems.is_empty().then_some(());
    wait::until("nothing is wrong any more", SOON, quiet).await
}

#[tokio::test]
async fn a_full_disk_at_a_node_is_said_and_heals_by_itself() -> Result<()> {
    let hub = Hub::start().await?;
    let (one, two) = (hub.enrol("one").await?, hub.enrol("two").await?);
    let disk = Disk::over(&two.home().join("work"), "8m")?;
    let session = hub.session(&[&one.node, &two.node]).await?.id;
    let pair = Pair { hub, session, one, two };
    let [one, two] = pair.folders();
    let there = async || (one.join(".cortex").is_dir() && two.join(".cortex").is_dir()).then_some(());
    wait::until("the folders", SOON, there).await?;
    let large: Vec<u8> = (0..20).flat_map(noise).collect();
    fs::write(one.join("large"), &large)?;
    fs::write(one.join("small"), "goes on")?;
    let said = async || {
        let sync = pair.hub.sync_of(&pair.session, &pair.two.node).await.ok()??;
        sync.problems.into_iter().find(|problem| problem["code"] == "no_space")
    };
    let seen = wait::until("the status says what is wrong", Duration::from_secs(20), said).await?;
    ensure!(seen["path"] == "large" && !two.join("large").exists(), "{seen}");
    disk.resize("100m")?;
    let same = async || fs::read(two.join("large")).is_ok_and(|found| found == large).then_some(());
    wait::until("it arrives", Duration::from_secs(60), same).await?;
    ensure!(fs::read(two.join("small"))? == b"goes on");
    Ok(())
}
