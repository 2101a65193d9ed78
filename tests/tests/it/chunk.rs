//! Contents of workspaces through relays: from node to node, with the hub's own relay and with one elsewhere.

use std::time::Duration;

use anyhow::{Result, ensure};
use cortex_tests::{api::Shell, hub::Hub, wait};

/// A file of 3 MiB that does not compress, and small ones that do; then their hashes.
const WRITE: &str = r#"mkdir -p deep/er; head -c 3145728 /dev/urandom > deep/large; for i in $(seq 1 200); do echo "file $i" > deep/er/$i; done; sha256sum deep/large deep/er/* | sort | sha256sum"#;
const READ: &str = "sha256sum deep/large deep/er/* 2>/dev/null | sort | sha256sum";

async fn what_one_node_writes_the_others_have(hub: &Hub) -> Result<()> {
    let (one, two) = (hub.enrol("one").await?, hub.enrol("two").await?);
    let session = hub.session(&[&one.node, &two.node]).await?.id;
    let on = |node: &str, script: &str| Shell { node: Some(node.into()), ..Shell::script(script) };
    let written = hub.run(&session, &on(&one.node, WRITE)).await?.stdout;
    let arrived = async |node: &str| {
        let read = hub.run(&session, &on(node, READ)).await.ok()?.stdout;
        (read == written).then_some(())
    };
    wait::until("the other node has it", Duration::from_secs(30), async || arrived(&two.node).await).await?;
    // One that comes later gets it too, and one that has left keeps what it had.
    let late = hub.enrol("late").await?;
    hub.attach(&session, &late.node).await?;
    wait::until("a late node has it", Duration::from_secs(30), async || arrived(&late.node).await).await?;
    ensure!(hub.run(&session, &on(&one.node, READ)).await?.stdout == written, "it changed where it came from");
    Ok(())
}

#[tokio::test]
async fn contents_pass_through_the_hubs_own_relay() -> Result<()> {
    what_one_node_writes_the_others_have(&Hub::start().await?).await
}

#[tokio::test]
async fn contents_pass_through_a_relay_in_a_process_of_its_own() -> Result<()> {
    let (hub, _relay) = Hub::start_with_relay().await?;
    what_one_node_writes_the_others_have(&hub).await
}
