//! System tests: the real programs, talking to each other as they do on people's machines.
//!
//! | module | what it shows |
//! | --- | --- |
//! | [`main_job`] | a machine joins and runs commands in a session |
//! | [`shell`] | what a command is given, and how it ends |
//! | [`browser`] | pages that a session looks at, and what becomes of them |
//! | [`terminal`] | interactive terminals |
//! | [`shell_session`] | what one command leaves to the next |
//! | [`secret`] | values that tasks use and nobody reads |
//! | [`hostile`] | commands that misbehave |
//! | [`presence`] | who is there, as it changes |
//! | [`chunk`] | contents of workspaces through relays |
//! | [`pool`] | tasks that any of several nodes may run |
//! | [`crash`] | programs that are killed while they work |
//! | [`killed`] | hub and peer that die at each step of a task |
//! | [`relay`] | relays in processes of their own |
//! | [`blind`] | a hostile relay, which gets nothing out and nothing in |
//! | [`limits`] | clients that cost a relay much, and nodes that may no longer use it |
//! | [`failover`] | two relays, of which one dies, stops or comes back |
//! | [`nat`] | hub and peer behind routers, and networks that change |
//! | [`direct`] | packets that go past the relays |
//! | [`tunnel`] | networks that let no UDP through, proxies, web servers in front of relays |
//! | [`policy`] | what nodes allow, what people are asked, what is signed and written down |
//! | [`invite`] | who may join, and who may not |
//! | [`false_hub`] | orders that the hub never gave |
//! | [`noise`] | nonsense on every port |
//! | [`decoders`] | the fuzzer's corpus |
//! | [`program`] | command lines, configuration files, exit codes |
//! | [`install`] | from the download page to a node |

mod blind;
mod browser;
mod chunk;
mod crash;
mod decoders;
mod direct;
mod failover;
mod false_hub;
mod hostile;
mod install;
mod invite;
mod killed;
mod limits;
mod main_job;
mod mirror;
mod nat;
mod noise;
mod operator;
mod policy;
mod pool;
mod presence;
mod program;
mod relay;
mod sandbox;
mod secret;
mod shell;
mod shell_session;
mod terminal;
mod tunnel;

use std::time::Duration;

use anyhow::Result;
use cortex_tests::{api::Shell, hub::Hub, peer::Peer};

/// For what should take a moment, on a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(10);

/// A hub with a peer that is online, and a session to which it is attached.
struct Stage {
    hub: Hub,
    peer: Peer,
    session: String,
}

impl Stage {
    async fn set() -> Result<Self> {
        let hub = Hub::start().await?;
        let peer = hub.enrol("machine").await?;
        let session = hub.session(&[&peer.node]).await?.id;
        Ok(Self { hub, peer, session })
    }

    /// A command that runs to its end as it should.
    async fn still_works(&self) -> Result<()> {
        let ran = self.hub.run(&self.session, &Shell::argv(["echo", "still here"])).await?;
        assert_eq!((ran.task.state.as_str(), ran.task.exit_code, ran.stdout.as_str()), ("succeeded", Some(0), "still here\n"));
        Ok(())
    }
}
