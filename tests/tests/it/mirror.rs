//! Workspaces, with the real programs: the same files on the hub and on every attached node, whatever happens.
//!
//! | module | what it shows |
//! | --- | --- |
//! | [`chaos`] | everything is killed again and again under people who write |
//! | [`api`] | changes and history through the API |
//! | [`attach`] | nodes that leave and come back, sessions that end |
//! | [`clock`] | nodes whose clocks are set by days while they work |
//! | [`denied`] | what the peer may not touch |
//! | [`hold`] | locks, and questions before much is deleted |
//! | [`access`] | who sees nothing |
//! | [`ignore`] | what is not synced |
//! | [`large`] | files of any size, and disks that are full |
//! | [`odd`] | names, links, modes, sizes and times that are not what one expects; a folder that vanishes |
//! | [`task`] | commands and the files that they are meant to find |

mod access;
mod api;
mod attach;
mod chaos;
mod clock;
mod denied;
mod hold;
mod ignore;
mod large;
mod odd;
mod task;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use cortex_tests::{hub::Hub, peer::Peer, wait};

use crate::SOON;

/// What lies in a folder: paths, and what they are.
fn tree(folder: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(next) = waiting.pop() {
        for entry in fs::read_dir(&next)? {
            let path = entry?.path();
            let name = path.strip_prefix(folder)?.to_owned();
            let data = fs::symlink_metadata(&path)?;
            if name.starts_with(".cortex") {
                continue;
            }
            let what = if data.is_dir() {
                waiting.push(path);
                "folder".to_owned()
            } else if data.is_symlink() {
                format!("link to {}", fs::read_link(&path)?.display())
            } else {
                let executable = data.permissions().mode() & 0o100 != 0;
                format!("file executable={executable} {}", String::from_utf8_lossy(&fs::read(&path)?))
            };
            found.insert(name, what);
        }
    }
    Ok(found)
}

/// Two machines, and a session in which both are.
struct Pair {
    hub: Hub,
    session: String,
    one: Peer,
    two: Peer,
}

impl Pair {
    async fn set() -> Result<Self> {
        Self::at(Hub::start().await?).await
    }

    async fn at(hub: Hub) -> Result<Self> {
        let (one, two) = (hub.enrol("one").await?, hub.enrol("two").await?);
        let session = hub.session(&[&one.node, &two.node]).await?.id;
        let pair = Self { hub, session, one, two };
        pair.opened().await?;
        Ok(pair)
    }

    async fn opened(&self) -> Result<()> {
        for folder in self.folders() {
            wait::until("the workspace's folder", SOON, || async { folder.join(".cortex").is_dir().then_some(()) }).await?;
        }
        Ok(())
    }

    fn folders(&self) -> [PathBuf; 2] {
        [self.one.workspace(&self.session), self.two.workspace(&self.session)]
    }

    /// What the hub holds, as [`tree`] says it.
    async fn at_hub(&self) -> Result<BTreeMap<PathBuf, String>> {
        let mut found = BTreeMap::new();
        for file in self.hub.files(&self.session).await? {
            let what = match file.kind.as_str() {
                "directory" => "folder".to_owned(),
                "symlink" => format!("link to {}", file.target.unwrap_or_default()),
                _ => {
                    let bytes = self.hub.file(&self.session, &file.path).await?;
                    format!("file executable={} {}", file.executable, String::from_utf8_lossy(&bytes))
                }
            };
            found.insert(file.path.into(), what);
        }
        Ok(found)
    }

    fn api(&self, rest: &str) -> String {
        format!("/api/sessions/{}/{rest}", self.session)
    }

    /// Has every node read all its files again, and waits until whatever it finds is in.
    async fn push(&self) -> Result<serde_json::Value> {
        self.hub.post(&self.api("workspace/push"), serde_json::json!({ "wait_ms": 15_000 })).await
    }

    /// Versions that lost, on the nodes.
    fn kept_copies(&self) -> Vec<String> {
        let folders = self.folders();
        let kept = folders.iter().filter_map(|folder| tree(&folder.join(".cortex/conflicts")).ok());
        kept.flat_map(BTreeMap::into_values).filter(|what| what != "folder").collect()
    }

    /// Waits until both folders hold the same, and that is what `right` says; answers it.
    async fn same(&self, what: &str, right: impl Fn(&BTreeMap<PathBuf, String>) -> bool) -> Result<BTreeMap<PathBuf, String>> {
        let [one, two] = self.folders();
        let found = wait::until(what, SOON, || async {
            // A file may go while we look.
            let (Ok(here), Ok(there)) = (tree(&one), tree(&two)) else { return None };
            (here == there && right(&here)).then_some(here)
        });
        found.await.with_context(|| format!("one: {:?}\ntwo: {:?}", tree(&one), tree(&two)))
    }
}

#[tokio::test]
async fn what_is_written_on_one_node_is_on_the_other() -> Result<()> {
    let pair = Pair::set().await?;
    let [one, two] = pair.folders();
    fs::create_dir_all(one.join("src/deep"))?;
    fs::create_dir(one.join("empty folder"))?;
    fs::write(one.join("src/main.rs"), "fn main() {}\n")?;
    fs::write(one.join("src/deep/\u{fc}mlaut\nnew line"), "odd\n")?;
    fs::write(one.join("empty"), "")?;
    fs::write(one.join("run.sh"), "#!/bin/sh\n")?;
    fs::set_permissions(one.join("run.sh"), fs::Permissions::from_mode(0o755))?;
    symlink("src/main.rs", one.join("link"))?;
    let found = pair.same("all of it", |tree| tree.len() == 8).await?;
    assert_eq!(found[Path::new("link")], "link to src/main.rs");
    assert!(found[Path::new("run.sh")].starts_with("file executable=true"));
    fs::write(two.join("src/main.rs"), "fn main() { todo!() }\n")?;
    pair.same("the way back", |tree| tree[Path::new("src/main.rs")].contains("todo")).await?;
    fs::rename(two.join("src"), two.join("source"))?;
    fs::remove_file(two.join("run.sh"))?;
    fs::remove_dir(two.join("empty folder"))?;
    pair.same("a rename and deletions", |tree| tree.len() == 6 && tree.contains_key(Path::new("source/deep"))).await?;
    Ok(())
}

#[tokio::test]
async fn a_command_finds_the_files_of_another_machine_and_its_own_go_there() -> Result<()> {
    let pair = Pair::set().await?;
    let [one, _] = pair.folders();
    fs::write(one.join("numbers"), "3\n1\n2\n")?;
    pair.same("the numbers", |tree| tree.len() == 1).await?;
    let shell = cortex_tests::api::Shell::script("sort numbers > sorted").on(&pair.two.node);
    let ran = pair.hub.run(&pair.session, &shell).await?;
    assert_eq!(ran.task.exit_code, Some(0), "{ran:?}");
    let found = pair.same("what the command wrote", |tree| tree.len() == 2).await?;
    assert!(found[Path::new("sorted")].ends_with("1\n2\n3\n"));
    Ok(())
}

#[tokio::test]
async fn files_that_are_there_already_are_united_and_neither_version_is_lost() -> Result<()> {
    let hub = Hub::start().await?;
    let (one, two) = (hub.enrol("one").await?, hub.enrol("two").await?);
    let session = hub.session(&[]).await?.id;
    for (peer, name) in [(&one, "one"), (&two, "two")] {
        let folder = peer.workspace(&session);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("only on {name}")), name)?;
        fs::write(folder.join("on both"), format!("written on {name}"))?;
        hub.attach(&session, &peer.node).await?;
        wait::until("the first edits", SOON, || async { folder.join(".cortex").is_dir().then_some(()) }).await?;
    }
    let pair = Pair { hub, session, one, two };
    let found = pair.same("both trees in one", |tree| tree.len() == 3).await?;
    let kept = found[Path::new("on both")].clone();
    let copies: Vec<String> = pair.kept_copies().into_iter().filter(|what| what.contains("written on")).collect();
    ensure!(copies.len() == 1 && copies[0] != kept, "the version that lost is kept on its node: {copies:?}, beside {kept}");
    Ok(())
}

#[tokio::test]
async fn edits_while_the_peer_or_the_hub_is_down_arrive_when_it_is_back() -> Result<()> {
    let mut pair = Pair::set().await?;
    let [one, two] = pair.folders();
    fs::write(one.join("first"), "1")?;
    pair.same("the first file", |tree| tree.len() == 1).await?;
    pair.two.process.kill9().await?;
    fs::write(one.join("while two was dead"), "2")?;
    fs::write(two.join("behind its back"), "3")?;
    pair.two.restart()?;
    pair.same("both", |tree| tree.len() == 3).await?;
    pair.hub.process.kill9().await?;
    fs::write(one.join("while the hub was dead"), "4")?;
    fs::remove_file(two.join("first"))?;
    pair.hub.restart().await?;
    let found = pair.same("what was done meanwhile", |tree| tree.len() == 3 && !tree.contains_key(Path::new("first"))).await?;
    assert!(found.contains_key(Path::new("while the hub was dead")));
    Ok(())
}

#[tokio::test]
async fn a_large_file_and_one_byte_in_front_of_it() -> Result<()> {
    let pair = Pair::set().await?;
    let [one, two] = pair.folders();
    let mut content: Vec<u8> = (0u32..6_000_000).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(one.join("large"), &content)?;
    let arrived = |content: Vec<u8>| {
        let path = two.join("large");
        async move {
            wait::until("the large file", Duration::from_secs(60), || async {
                fs::read(&path).is_ok_and(|found| found == content).then_some(())
            })
            .await
        }
    };
    arrived(content.clone()).await?;
    content.insert(0, b'x');
    fs::write(one.join("large.new"), &content)?;
    fs::rename(one.join("large.new"), one.join("large"))?;
    arrived(content).await
}
