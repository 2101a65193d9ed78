//! Who may join, and who may not: invites of every kind, nodes that were shut out, and what their owners see of it.

use std::{fs::File, time::Duration};

use anyhow::{Context as _, Result};
use cortex_hub::{
    hub::{Hub as Store, HubOptions},
    record::{self, tables::INVITES},
};
use cortex_runtime::clock;
use cortex_tests::{
    api::{Invite, Shell, problem},
    hub::Hub,
    peer::Peer,
    program,
    rogue::{Rogue, refusal},
    wait,
};
use cortex_wire::{
    invite::{self, Terms},
    schema::{self, NodeStanding, link_hello::Credential},
};
use serde_json::json;

use crate::{SOON, Stage};

/// The value of a field in a line of a log.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let value = line.split_once(&format!("{name}="))?.1;
    Some(
        value
            .strip_prefix('"')
            .map_or_else(|| value.split_whitespace().next().unwrap_or_default(), |quoted| quoted.split('"').next().unwrap_or_default()),
    )
}

/// A node that is shut out is cut off within this time.
const AT_ONCE: Duration = Duration::from_secs(3);
/// A peer asks this seldom when it was refused for a reason that only a person can change.
const SLOWLY: u64 = 30;

/// Waits until a peer says that it was refused with this code, and that it will ask again slowly.
async fn refused(peer: &mut Peer, code: &str) -> Result<()> {
    let wait = |line: &str| field(line, "retry_in_s")?.parse::<u64>().ok();
    let told = |line: &str| (line.contains("refused") && field(line, "code") == Some(code) && wait(line) >= Some(SLOWLY)).then_some(());
    peer.process.line(&format!("that it was refused ({code})"), SOON, told).await?;
    assert!(peer.process.is_running(), "it stays, should its owner sort it out");
    Ok(())
}

async fn fingerprint(peer: &Peer) -> Result<String> {
    Ok(peer.status().await?["fingerprint"].as_str().context("a fingerprint")?.to_owned())
}

/// Waits until the owner of an invite sees a try of this peer that was refused with this code.
async fn owner_sees(hub: &Hub, invite: &str, peer: &Peer, code: &str) -> Result<()> {
    let look = async || hub.invite_status(invite).await.ok()?.last_refusal.filter(|refusal| refusal.code == code);
    let seen = wait::until("the owner sees the refusal", SOON, look).await?;
    assert!(!seen.reason.is_empty());
    assert_eq!(seen.fingerprint, Some(fingerprint(peer).await?));
    Ok(())
}

fn opened(invite: &Invite) -> Result<(schema::Invite, Terms)> {
    Ok(invite::read(&invite.text, clock::now_ms())?)
}

#[tokio::test]
async fn a_used_invite_is_refused_to_another_machine_and_its_owner_sees_that() -> Result<()> {
    let hub = Hub::start().await?;
    let invite = hub.invite_for("first").await?;
    let first = Peer::start(&invite.text)?;
    let node = hub.redeemed(&invite.id, SOON).await?;
    let mut second = Peer::start(&invite.text)?;
    refused(&mut second, "invite_used").await?;
    owner_sees(&hub, &invite.id, &second, "invite_used").await?;
    assert_eq!(hub.invite_status(&invite.id).await?.node_id, Some(node));
    assert_eq!(hub.nodes().await?.len(), 1);
    drop(first);
    Ok(())
}

#[tokio::test]
async fn of_two_machines_that_race_for_an_invite_one_wins() -> Result<()> {
    let hub = Hub::start().await?;
    let invite = hub.invite_for("contested").await?;
    let mut peers = [Peer::start(&invite.text)?, Peer::start(&invite.text)?];
    let node = hub.redeemed(&invite.id, SOON).await?;
    hub.node_is(&node, "online", SOON).await?;
    let won = hub.node(&node).await?.fingerprint;
    let mut losers = 0;
    for peer in &mut peers {
        if fingerprint(peer).await? != won {
            losers += 1;
            refused(peer, "invite_used").await?;
        }
    }
    assert_eq!((losers, hub.nodes().await?.len()), (1, 1));
    let used = hub.invite_status(&invite.id).await?;
    assert_eq!((used.state.as_str(), used.refusals > 0), ("used", true));
    Ok(())
}

#[tokio::test]
async fn an_invite_that_was_taken_back_is_refused_and_its_owner_sees_that() -> Result<()> {
    let hub = Hub::start().await?;
    let invite = hub.invite_for("nobody").await?;
    hub.call::<serde_json::Value>(reqwest::Method::DELETE, &format!("/api/nodes/invites/{}", invite.id), None).await?;
    assert_eq!(hub.invite_status(&invite.id).await?.state, "revoked");
    let mut peer = Peer::start(&invite.text)?;
    refused(&mut peer, "invite_revoked").await?;
    owner_sees(&hub, &invite.id, &peer, "invite_revoked").await?;
    assert_eq!(hub.nodes().await?.len(), 0);
    Ok(())
}

#[tokio::test]
async fn an_expired_invite_is_refused_by_the_peer_and_by_the_hub() -> Result<()> {
    let mut hub = Hub::start().await?;
    let invite = hub.invite_for("late").await?;
    let (secret, terms) = opened(&invite)?;
    hub.process.terminate(SOON).await?;
    // Fifteen minutes are the least that the API gives: its record is made to be over already.
    let store = Store::open(&hub.data_dir(), HubOptions::default()).await?;
    let (id, an_hour_ago) = (terms.id, clock::now_ms() - 3_600_000);
    let made_old = store.db.write(move |tx| {
        let record = INVITES.get(tx, &id)?.map(|record| record::Invite { expires_at_ms: an_hour_ago, ..record });
        record.map(|record| INVITES.put(tx, &id, &record)).transpose()
    });
    made_old.await?.context("the invite's record")?;
    let over = Terms { expires_at_ms: an_hour_ago, ..terms };
    let over = invite::issue(&over, secret.secret[..].try_into()?, &store.keys.invite, store.keys.invite_statement());
    drop(store);
    // Its housekeeping lets go of the files a moment later.
    let free = |name: &str| File::open(hub.data_dir().join(name)).is_ok_and(|file| file.try_lock().is_ok());
    wait::until("the files are free", SOON, async || (free("lock") && free("hub.redb")).then_some(())).await?;
    hub.restart().await?;

    // To a peer whose clock is wrong it may look good.
    let mut peer = Peer::start(&invite.text)?;
    refused(&mut peer, "invite_expired").await?;
    owner_sees(&hub, &invite.id, &peer, "invite_expired").await?;
    assert_eq!(hub.invite_status(&invite.id).await?.state, "expired");
    // One that can tell does not even ask.
    let mut peer = Peer::start(&over)?;
    assert_eq!(peer.process.ended(SOON).await?.code(), Some(2));
    assert!(peer.process.log().contains("this invite has expired; ask for a new one"), "{}", peer.process.log());
    Ok(())
}

#[tokio::test]
async fn a_forged_invite_gets_nowhere() -> Result<()> {
    let Stage { hub, session: _, peer } = Stage::set().await?;
    let invite = hub.invite_for("genuine").await?;
    let (genuine, terms) = opened(&invite)?;
    let relay = &terms.relays[0];

    // A peer sees it itself.
    let mut altered = invite.text.clone();
    altered.replace_range(100..101, if &altered[100..101] == "A" { "B" } else { "A" });
    for text in [altered.as_str(), &invite.text[..invite.text.len() - 10], "cxi1_", "hello"] {
        let mut command = peer.command()?;
        command.args(["run", "--allow-root", "--invite", text, "--state-dir"]).arg(peer.home().join("other"));
        let ended = program::run(command, SOON).await?;
        assert_eq!(ended.code, Some(2), "{text}: {}", ended.stderr);
        assert!(ended.stderr.contains("invite"), "{}", ended.stderr);
    }

    // The relay sees what a peer would not send.
    let rogue = Rogue::new()?;
    let mut forged = invite::proof(&genuine);
    let body = forged.body.as_mut().context("a body")?;
    body.body = [&body.body[..], &[0x38, 0x01]].concat().into();
    assert_eq!(refusal(rogue.link(relay, &terms.hub, Some(Credential::Invite(forged))).await)?, "invite_forged");
    let nothing = schema::InviteProof::default();
    assert_eq!(refusal(rogue.link(relay, &terms.hub, Some(Credential::Invite(nothing))).await)?, "invite_forged");

    // The hub sees that the secret is another one.
    let link = rogue.link(relay, &terms.hub, Some(Credential::Invite(invite::proof(&genuine)))).await?;
    let mut talk = rogue.talk(relay, &terms.hub).await?;
    let guessed = schema::Invite { secret: vec![7; 32].into(), ..genuine.clone() };
    let guessed_terms = Terms { secret_hash: invite::hash_secret(&[7; 32]), ..terms.clone() };
    let enrolment = invite::enrol(&rogue.key, &guessed, &guessed_terms, &talk.exporter()?);
    let decided = talk.register(Some(enrolment)).await?;
    assert_eq!((decided.standing(), decided.refusal_code.as_str()), (NodeStanding::Refused, "invite_unknown"));

    // The hub sees that the proof was made for another connection.
    let mut talk = rogue.talk(relay, &terms.hub).await?;
    let stolen = invite::enrol(&rogue.key, &genuine, &terms, &[1; 32]);
    let decided = talk.register(Some(stolen)).await?;
    assert_eq!((decided.standing(), decided.refusal_code.as_str()), (NodeStanding::Refused, "bad_enrolment"));
    drop(link);
    assert_eq!(hub.invite_status(&invite.id).await?.state, "open");
    assert_eq!(hub.nodes().await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn an_invite_of_another_hub_is_refused() -> Result<()> {
    let (hub, other) = tokio::try_join!(Hub::start(), Hub::start())?;
    let (own, terms) = opened(&hub.invite_for("here").await?)?;
    let (foreign, _) = opened(&other.invite_for("there").await?)?;
    let rogue = Rogue::new()?;
    let shown = Some(Credential::Invite(invite::proof(&foreign)));
    assert_eq!(refusal(rogue.link(&terms.relays[0], &terms.hub, shown).await)?, "invite_forged");
    // Let in with an invite of this hub, it shows the other one to the hub itself.
    let link = rogue.link(&terms.relays[0], &terms.hub, Some(Credential::Invite(invite::proof(&own)))).await?;
    let mut talk = rogue.talk(&terms.relays[0], &terms.hub).await?;
    let (_, foreign_terms) = opened(&other.invite_for("there").await?)?;
    let here = Terms { hub: terms.hub, ..foreign_terms };
    let decided = talk.register(Some(invite::enrol(&rogue.key, &foreign, &here, &talk.exporter()?))).await?;
    assert_eq!(decided.standing(), NodeStanding::Refused);
    drop(link);
    assert_eq!((hub.nodes().await?.len(), other.nodes().await?.len()), (0, 0));
    Ok(())
}

#[tokio::test]
async fn an_unknown_key_is_refused_by_relay_and_hub() -> Result<()> {
    let hub = Hub::start().await?;
    let (genuine, terms) = opened(&hub.invite_for("genuine").await?)?;
    let rogue = Rogue::new()?;
    assert_eq!(refusal(rogue.link(&terms.relays[0], &terms.hub, None).await)?, "node_unknown");
    // An invite opens the relay, and the hub still wants it redeemed.
    let link = rogue.link(&terms.relays[0], &terms.hub, Some(Credential::Invite(invite::proof(&genuine)))).await?;
    let decided = rogue.talk(&terms.relays[0], &terms.hub).await?.register(None).await?;
    assert_eq!((decided.standing(), decided.refusal_code.as_str()), (NodeStanding::Refused, "node_unknown"));
    drop(link);
    Ok(())
}

#[tokio::test]
async fn a_deleted_node_is_told_that_it_is_unknown_and_asks_again_slowly() -> Result<()> {
    let Stage { hub, session, mut peer } = Stage::set().await?;
    let running = hub.dispatch(&session, &Shell::argv(["sleep", "300"])).await?;
    hub.task_is(&running.id, "running", SOON).await?;
    hub.call::<()>(reqwest::Method::DELETE, &format!("/api/nodes/{}", peer.node), None).await?;
    refused(&mut peer, "node_unknown").await?;
    assert_eq!(hub.ended(&running.id, SOON).await?.state, "lost");
    assert_eq!(problem(hub.node(&peer.node).await)?.status, 404);
    assert_eq!(problem(hub.dispatch(&session, &Shell::argv(["true"])).await)?.code, "no_node");
    Ok(())
}

#[tokio::test]
async fn a_revoked_node_is_cut_within_seconds_and_told_why() -> Result<()> {
    let Stage { hub, session, mut peer } = Stage::set().await?;
    let running = hub.dispatch(&session, &Shell::argv(["sleep", "300"])).await?;
    hub.task_is(&running.id, "running", SOON).await?;
    hub.post::<serde_json::Value>(&format!("/api/nodes/{}/revoke", peer.node), json!({})).await?;
    hub.node_is(&peer.node, "revoked", AT_ONCE).await?;
    assert_eq!(hub.ended(&running.id, AT_ONCE).await?.state, "lost");
    assert_eq!(problem(hub.dispatch(&session, &Shell::argv(["true"]).on(&peer.node)).await)?.code, "node_not_attached");
    assert!(problem(hub.attach(&session, &peer.node).await)?.detail.contains("revoked"));
    // It asks again, hears the same, and its owner sees that it does.
    refused(&mut peer, "node_revoked").await?;
    let seen = async || hub.node(&peer.node).await.ok()?.refusal.filter(|refusal| refusal.code == "node_revoked");
    assert!(wait::until("its owner sees that", SOON, seen).await?.reason.contains("revoked"));
    Ok(())
}

#[tokio::test]
async fn a_node_that_needs_approval_works_when_its_owner_has_compared_fingerprints() -> Result<()> {
    let hub = Hub::start().await?;
    let invite = hub.invite(json!({"name": "careful", "approval": true})).await?;
    let mut peer = Peer::start(&invite.text)?;
    let node = hub.redeemed(&invite.id, SOON).await?;
    let pending = hub.node_is(&node, "pending", SOON).await?;
    let shown = |line: &str| line.contains("waiting for approval").then(|| field(line, "fingerprint").map(str::to_owned)).flatten();
    assert_eq!(peer.process.line("its fingerprint", SOON, shown).await?, pending.fingerprint);
    let session = hub.session(&[&node]).await?.id;
    let refused = problem(hub.dispatch(&session, &Shell::argv(["true"])).await)?;
    assert_eq!((refused.status, refused.code.as_str()), (409, "node_not_active"));
    // It keeps waiting when it is started again.
    peer.process.kill9().await?;
    peer.restart()?;
    peer.process.line("that it waits", SOON, shown).await?;
    hub.post::<serde_json::Value>(&format!("/api/nodes/{node}/approve"), json!({})).await?;
    hub.node_is(&node, "online", SOON).await?;
    assert_eq!(hub.run(&session, &Shell::argv(["echo", "approved"])).await?.stdout, "approved\n");
    Ok(())
}
