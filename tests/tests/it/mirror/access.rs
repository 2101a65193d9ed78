//! Who sees nothing of a session's files, and who only looks.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use cortex_runtime::{
    chunk::{ChunkClient, ChunkError},
    keyfile,
    link::Link,
};
use cortex_tests::{
    api::{Client, problem},
    hub::Hub,
    peer::Peer,
    rogue::Rogue,
};
use cortex_wire::{
    id::{HubId, SessionId},
    invite::RelayEndpoint,
    mirror::{
        entry::Sid,
        seal::{Keys, Sealer},
    },
    schema::link_hello::Credential,
};
use reqwest::Method;
use serde_json::{Value, json};

use super::Pair;

#[tokio::test]
async fn a_viewer_reads_and_a_stranger_finds_nothing() -> Result<()> {
    let pair = Pair::set().await?;
    let [one, _] = pair.folders();
    fs::write(one.join("file"), "1")?;
    pair.same("a file", |tree| tree.len() == 1).await?;
    fs::write(one.join("file"), "22")?;
    pair.same("its next version", |tree| tree.values().all(|what| what.ends_with("22"))).await?;
    let (viewer, stranger) = (pair.hub.member("vera").await?, pair.hub.member("sam").await?);
    pair.hub.call::<Value>(Method::PUT, &pair.api("members/vera"), Some(&json!({ "role": "viewer" }))).await?;
    assert_eq!(viewer.file(&pair.session, "file").await?, b"22");
    let reads = [
        "files",
        "files/file",
        "files/file?revision=1",
        "workspace",
        "workspace/history",
        "workspace/history/1",
        "workspace/diff?from=0",
        "workspace/conflicts",
        "workspace/drift",
        "workspace/search?text=2",
        "workspace/archive",
    ];
    let status = async |client: &Client, method: Method, path: &str, body: Option<&Value>| -> Result<u16> {
        let mut request = client.request(method, &pair.api(path));
        if let Some(body) = body {
            request = request.json(body);
        }
        Ok(request.send().await?.status().as_u16())
    };
    for path in reads {
        assert_eq!(status(&viewer, Method::GET, path, None).await?, 200, "viewer, {path}");
        assert_eq!(status(&stranger, Method::GET, path, None).await?, 404, "stranger, {path}");
    }
    let revision = pair.hub.workspace(&pair.session).await?.revision;
    let changes = [
        (Method::PUT, "files/file", json!("x")),
        (Method::PUT, "files/other", json!("x")),
        (Method::DELETE, "files/file", json!("")),
        (Method::PUT, "workspace/archive", json!("")),
        (Method::POST, "workspace/move", json!({ "from": "file", "to": "elsewhere" })),
        (Method::POST, "workspace/restore", json!({ "revision": 0 })),
        (Method::POST, "workspace/lock", json!({})),
        (Method::POST, "workspace/unlock", json!({ "fence": 1 })),
        (Method::POST, "workspace/pause", json!({})),
        (Method::POST, "workspace/resume", json!({})),
        (Method::POST, "workspace/push", json!({})),
        (Method::POST, "workspace/resync", json!({})),
        (Method::POST, "workspace/conflicts/1", json!({ "take": "mine" })),
    ];
    for (method, path, body) in changes {
        assert_eq!(status(&viewer, method.clone(), path, Some(&body)).await?, 403, "viewer, {method} {path}");
        assert_eq!(status(&stranger, method.clone(), path, Some(&body)).await?, 404, "stranger, {method} {path}");
    }
    assert_eq!(pair.hub.workspace(&pair.session).await?.revision, revision);
    // Somebody else's session is not a way in, and neither is a path.
    let other = stranger.session(&[]).await?.id;
    for path in ["..%2F..%2Fkeys%2Froot.key", "%2Fetc%2Fpasswd", "a%2F..%2F..%2Fb", ".cortex%2Fx", "a%00b", "a%2F%2Fb"] {
        let answer = stranger.request(Method::PUT, &format!("/api/sessions/{other}/files/{path}")).body("x").send().await?;
        assert_eq!(answer.status().as_u16(), 400, "{path}");
    }
    let refused = problem(Client::new(pair.hub.base())?.get::<Value>(&pair.api("files")).await)?;
    assert_eq!(refused.status, 401);
    let node = pair.two.node.clone();
    let refused = problem(stranger.attach(&other, &node).await).context("a node that is not theirs")?;
    assert!([403, 404].contains(&refused.status), "{refused:?}");
    Ok(())
}

/// A link with the key of a node that is not there any more, and with the ticket that the hub gives it.
pub(super) async fn link_as(peer: &mut Peer, relay: &RelayEndpoint, hub: &HubId) -> Result<(Rogue, Link)> {
    peer.process.kill9().await?;
    let rogue = Rogue::with_key(keyfile::load(&peer.home().join("state/node.key"))?)?;
    let link = rogue.link(relay, hub, None).await?;
    let given = rogue.talk(relay, hub).await?.register(None).await?;
    drop(link);
    let ticket = given.ticket.context("the hub gives it a ticket")?;
    let link = rogue.link(relay, hub, Some(Credential::Ticket(ticket))).await?;
    Ok((rogue, link))
}

#[tokio::test]
async fn a_node_of_another_session_gets_no_chunk_and_leaves_none() -> Result<()> {
    let (hub, relay) = Hub::start_with_relay().await?;
    let mut foreign = hub.enrol("foreign").await?;
    hub.session(&[&foreign.node]).await?;
    let (root, at) = (hub.key()?.parse::<HubId>()?, relay.endpoint.parse::<RelayEndpoint>().map_err(anyhow::Error::msg)?);
    let mut pair = Pair::at(hub).await?;
    let session: SessionId = pair.session.parse()?;
    // A chunk under a name that it really has: of what is in it nobody at a relay or hub knows anything.
    let mut keys = Keys::new(session);
    keys.insert(1, &[7; 32]);
    let sealed = Sealer::new(std::sync::Arc::new(keys)).seal(b"secret")?;
    let sid: Sid = sealed.sid();
    let (_own, link) = link_as(&mut pair.two, &at, &root).await?;
    let chunks = ChunkClient::new(link.connection.clone());
    assert_eq!(chunks.store_all(session, vec![sealed.clone()]).await, Ok(1));
    let got = chunks.fetch_all(session, vec![sid]).recv().await.context("an answer")??;
    ensure!(got.chunk.is_some(), "a node of the session gets it");
    let (_foreign, link) = link_as(&mut foreign, &at, &root).await?;
    let chunks = ChunkClient::new(link.connection.clone());
    assert_eq!(chunks.fetch_all(session, vec![sid]).recv().await.context("an answer")?.err(), Some(ChunkError::NotAttached));
    assert_eq!(chunks.missing(session, &[sid]).await, Err(ChunkError::NotAttached));
    assert_eq!(chunks.store_all(session, vec![sealed]).await, Err(ChunkError::NotAttached));
    Ok(())
}
