//! Nodes that leave and come back, sessions beside each other, sessions that end.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use cortex_runtime::{quic, stream::FrameReader};
use cortex_tests::{hub::Hub, peer::Peer, rogue::Talk, wait};
use cortex_wire::{
    id::{HubId, SessionId},
    invite::RelayEndpoint,
    limits,
    mirror::{
        entry::Sid,
        seal::{Keys, Opener, Sealed},
    },
    schema::{StreamOpen, ToWorkspace, stream_open, to_workspace},
};
use quinn::{RecvStream, SendStream};
use reqwest::Method;
use serde_json::Value;

use super::{Pair, access::link_as, tree};
use crate::SOON;

/// What a node remembers of a workspace.
fn state(peer: &Peer, session: &str) -> PathBuf {
    peer.home().join(format!("state/mirror/{session}.redb"))
}

impl Pair {
    async fn detach_two(&self) -> Result<()> {
        self.hub.call::<Value>(Method::DELETE, &self.api(&format!("nodes/{}", self.two.node)), None).await?;
        let state = state(&self.two, &self.session);
        wait::until("the node has forgotten the session", SOON, async || (!state.exists()).then_some(())).await
    }
}

#[tokio::test]
async fn a_node_that_is_detached_keeps_its_files_and_is_united_when_it_comes_back() -> Result<()> {
    let pair = Pair::set().await?;
    let [one, two] = pair.folders();
    for name in ["shared", "gone on one", "gone on two", "quiet"] {
        fs::write(two.join(name), format!("{name} at first"))?;
    }
    let before = pair.same("all files", |tree| tree.len() == 4).await?;
    pair.detach_two().await?;
    assert_eq!(tree(&two)?, before, "the files stay");
    fs::write(two.join("shared"), "written on two")?;
    fs::write(two.join("new on two"), "new on two")?;
    fs::remove_file(two.join("gone on two"))?;
    fs::write(one.join("shared"), "written on one")?;
    fs::write(one.join("new on one"), "new on one")?;
    fs::remove_file(one.join("gone on one"))?;
    wait::until("the hub has it", SOON, async || {
        let files = pair.hub.files(&pair.session).await.ok()?;
        let has = |name| files.iter().any(|file| file.path == name);
        (has("new on one") && !has("gone on one")).then_some(())
    })
    .await?;
    ensure!(!two.join("new on one").exists(), "what came after the detach is not here");
    pair.hub.attach(&pair.session, &pair.two.node).await?;
    let found = pair.same("both in one", |tree| tree.len() == 6).await?;
    for name in ["new on one", "new on two", "gone on one", "gone on two", "quiet"] {
        ensure!(found.contains_key(Path::new(name)), "{name} is missing: {found:?}");
    }
    assert_eq!(found[Path::new("shared")], "file executable=false written on one");
    let kept = pair.kept_copies();
    ensure!(kept.iter().any(|what| what.ends_with("written on two")), "the version that lost is kept: {kept:?}");
    let conflicts = pair.hub.all(&pair.api("workspace/conflicts")).await?;
    ensure!(conflicts.iter().any(|conflict| conflict["path"] == "shared"), "{conflicts:?}");
    assert_eq!(pair.at_hub().await?, found);
    Ok(())
}

#[tokio::test]
async fn a_node_that_comes_back_again_and_again_loses_none_of_its_edits() -> Result<()> {
    let pair = Pair::set().await?;
    let [one, two] = pair.folders();
    for round in 0..3 {
        fs::write(two.join("mine"), format!("round {round}"))?;
        fs::write(two.join(format!("new {round}")), "new")?;
        pair.same("this round's files", |tree| {
            tree.get(Path::new("mine")).is_some_and(|what| what.ends_with(&format!("round {round}"))) && tree.len() == round + 2
        })
        .await?;
        pair.detach_two().await?;
        // Taken away while two is not there: it is two's to bring it back.
        fs::remove_file(one.join("mine"))?;
        wait::until("the hub has let it go", SOON, async || pair.hub.file(&pair.session, "mine").await.err().map(drop)).await?;
        pair.hub.attach(&pair.session, &pair.two.node).await?;
        pair.same("it is back", |tree| tree.contains_key(Path::new("mine"))).await?;
    }
    Ok(())
}

#[tokio::test]
async fn two_sessions_on_one_node_stay_apart() -> Result<()> {
    let hub = Hub::start().await?;
    let node = hub.enrol("machine").await?;
    let sessions = [hub.session(&[&node.node]).await?.id, hub.session(&[&node.node]).await?.id];
    for session in &sessions {
        let folder = node.workspace(session);
        wait::until("the workspace's folder", SOON, async || folder.join(".cortex").is_dir().then_some(())).await?;
        fs::write(folder.join("same name"), format!("of {session}"))?;
        fs::write(folder.join(session), "only here")?;
    }
    for session in &sessions {
        let mine = async || {
            let files = hub.files(session).await.ok()?;
            (files.len() == 2).then_some(files)
        };
        let files = wait::until("both files of a session", SOON, mine).await?;
        ensure!(files.iter().any(|file| file.path == *session), "{files:?}");
        assert_eq!(hub.file(session, "same name").await?, format!("of {session}").into_bytes());
    }
    hub.call::<Value>(Method::DELETE, &format!("/api/sessions/{}/files/same%20name", sessions[0]), None).await?;
    let gone = node.workspace(&sessions[0]).join("same name");
    wait::until("it is gone", SOON, async || (!gone.exists()).then_some(())).await?;
    assert_eq!(fs::read_to_string(node.workspace(&sessions[1]).join("same name"))?, format!("of {}", sessions[1]));
    Ok(())
}

/// Folders of sessions that the hub keeps contents in.
fn kept_at(hub: &Hub) -> Vec<PathBuf> {
    let owners = fs::read_dir(hub.data_dir().join("mirrors")).into_iter().flatten().flatten();
    owners.flat_map(|owner| fs::read_dir(owner.path()).into_iter().flatten().flatten()).map(|folder| folder.path()).collect()
}

#[tokio::test]
async fn a_session_that_is_deleted_while_it_uploads_leaves_nothing_at_the_hub_and_all_on_the_nodes() -> Result<()> {
    const FILES: usize = 150;
    let pair = Pair::set().await?;
    let [one, _] = pair.folders();
    let noise: Vec<u8> = (0u32..25_000).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    for number in 0..FILES {
        let content: Vec<u8> = noise.iter().map(|byte| byte ^ number as u8).collect();
        fs::write(one.join(format!("file {number}")), content)?;
    }
    wait::until("some are there", SOON, async || (!kept_at(&pair.hub).is_empty()).then_some(())).await?;
    pair.hub.call::<Value>(Method::DELETE, &format!("/api/sessions/{}", pair.session), None).await?;
    for peer in [&pair.one, &pair.two] {
        wait::until("the nodes have let go", SOON, async || (!state(peer, &pair.session).exists()).then_some(())).await?;
    }
    wait::until("the contents are gone", SOON, async || kept_at(&pair.hub).is_empty().then_some(())).await?;
    assert_eq!(fs::read_dir(&one)?.flatten().filter(|entry| entry.file_name() != ".cortex").count(), FILES);
    // What was on its way comes to nothing, too: chunks that a node still sends make no folder.
    for peer in [&pair.one, &pair.two] {
        pair.hub.node_is(&peer.node, "online", SOON).await?;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure!(kept_at(&pair.hub).is_empty(), "{:?}", kept_at(&pair.hub));
    Ok(())
}

#[tokio::test]
async fn a_node_that_was_away_learns_which_sessions_it_has_left_and_keeps_the_files() -> Result<()> {
    let mut pair = Pair::set().await?;
    let deleted = pair.hub.session(&[&pair.two.node]).await?.id;
    let kept = pair.hub.session(&[&pair.two.node]).await?.id;
    let sessions = [pair.session.clone(), deleted.clone(), kept.clone()];
    for session in &sessions {
        let folder = pair.two.workspace(session);
        wait::until("the workspace's folder", SOON, async || folder.join(".cortex").is_dir().then_some(())).await?;
        fs::write(folder.join("mine"), session)?;
        wait::until("the hub has it", SOON, async || pair.hub.file(session, "mine").await.ok()).await?;
    }
    pair.two.process.kill9().await?;
    pair.hub.call::<Value>(Method::DELETE, &pair.api(&format!("nodes/{}", pair.two.node)), None).await?;
    pair.hub.call::<Value>(Method::DELETE, &format!("/api/sessions/{deleted}"), None).await?;
    for session in &sessions {
        ensure!(state(&pair.two, session).exists(), "nobody has told the node");
    }
    pair.two.restart()?;
    for session in [&pair.session, &deleted] {
        wait::until("the node has forgotten what it has left", SOON, async || (!state(&pair.two, session).exists()).then_some(())).await?;
    }
    for session in &sessions {
        assert_eq!(&fs::read_to_string(pair.two.workspace(session).join("mine"))?, session, "files stay");
    }
    fs::write(pair.two.workspace(&kept).join("later"), "more")?;
    wait::until("the session that it is in goes on", SOON, async || pair.hub.file(&kept, "later").await.ok()).await?;
    ensure!(state(&pair.two, &kept).exists());
    // What it writes where it is in no longer stays with it, and after a new start, too.
    fs::write(pair.two.workspace(&pair.session).join("later"), "more")?;
    pair.two.process.kill9().await?;
    pair.two.restart()?;
    pair.hub.node_is(&pair.two.node, "online", SOON).await?;
    ensure!(pair.hub.file(&pair.session, "later").await.is_err());
    Ok(())
}

/// The stream of a workspace that the hub opens to a node, and the keys that come with it.
async fn keys_of(talk: &Talk, session: &SessionId) -> Result<(Keys, SendStream, FrameReader<RecvStream>)> {
    let (send, recv) = tokio::time::timeout(SOON, talk.connection.accept_bi()).await.context("no stream")??;
    let mut reader = FrameReader::new(recv, limits::WORKSPACE_FRAME_BYTES);
    let opened: StreamOpen = tokio::time::timeout(SOON, reader.expect()).await??;
    let Some(stream_open::Open::Workspace(open)) = opened.open else { anyhow::bail!("another stream: {opened:?}") };
    ensure!(open.session_id == session.as_bytes().as_slice() && !open.keys.is_empty());
    let mut keys = Keys::new(*session);
    for key in &open.keys {
        keys.insert(key.epoch, key.key.as_ref().try_into()?);
    }
    Ok((keys, send, reader))
}

/// Every chunk in a session's packs: `length u32 be ‖ sid ‖ sealed bytes`.
fn chunks(folder: &Path) -> Result<Vec<Sealed>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let pack = if path.extension().is_some_and(|extension| extension == "pack") { fs::read(&path)? } else { Vec::new() };
        let mut rest = pack.as_slice();
        while let Some((head, tail)) = rest.split_at_checked(36) {
            let (length, sid) = head.split_at(4);
            let (bytes, tail) = tail.split_at(u32::from_be_bytes(length.try_into()?) as usize);
            found.push(Sealed::check(Sid(sid.try_into()?), bytes.to_vec().into()).context("a chunk is damaged")?);
            rest = tail;
        }
    }
    Ok(found)
}

#[tokio::test]
async fn a_node_that_was_detached_cannot_open_what_is_written_afterwards() -> Result<()> {
    let (hub, relay) = Hub::start_with_relay().await?;
    let (root, at) = (hub.key()?.parse::<HubId>()?, relay.endpoint.parse::<RelayEndpoint>().map_err(anyhow::Error::msg)?);
    let mut pair = Pair::at(hub).await?;
    let session: SessionId = pair.session.parse()?;
    let [one, _] = pair.folders();
    fs::write(one.join("first"), "written while two was in it")?;
    pair.same("the first file", |tree| tree.len() == 1).await?;
    // In the place of the second node: it keeps every key that it is ever given.
    let (two, _link) = link_as(&mut pair.two, &at, &root).await?;
    let mut talk = two.talk(&at, &root).await?;
    quic::allow_streams(&talk.connection, 8);
    talk.register(None).await?;
    let (keys, _send, mut reader) = keys_of(&talk, &session).await?;
    pair.hub.call::<Value>(Method::DELETE, &pair.api(&format!("nodes/{}", pair.two.node)), None).await?;
    let farewell = async {
        while let Some(frame) = reader.next::<ToWorkspace>().await? {
            match frame.frame {
                Some(to_workspace::Frame::Detach(true)) => return Ok(()),
                Some(to_workspace::Frame::Key(key)) => anyhow::bail!("the key of epoch {} went to a node that has left", key.epoch),
                _ => {}
            }
        }
        Ok(())
    };
    tokio::time::timeout(SOON, farewell).await.context("no farewell")??;
    fs::write(one.join("second"), "written when two had left")?;
    wait::until("the second file", SOON, async || pair.hub.file(&pair.session, "second").await.ok()).await?;
    // Not even with all that lies at the hub.
    let folder = kept_at(&pair.hub).into_iter().find(|folder| folder.ends_with(&pair.session)).context("the session's folder")?;
    let mut opener = Opener::new(Arc::new(keys));
    let (opened, closed): (Vec<_>, Vec<_>) = chunks(&folder)?.into_iter().map(|chunk| opener.open(chunk)).partition(Result::is_ok);
    let opened: Vec<String> = opened.into_iter().flatten().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect();
    ensure!(opened.iter().any(|text| text.contains("written while two was in it")), "{opened:?}");
    ensure!(!opened.iter().any(|text| text.contains("written when two had left")), "{opened:?}");
    ensure!(!closed.is_empty(), "what was written afterwards is sealed with another key");
    // And it gets no stream when it comes again.
    drop(talk);
    let mut talk = two.talk(&at, &root).await?;
    quic::allow_streams(&talk.connection, 8);
    talk.register(None).await?;
    ensure!(keys_of(&talk, &session).await.is_err(), "a node that has left is given keys");
    Ok(())
}
