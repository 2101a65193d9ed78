//! The connection to the hub: the hub proves itself, the node registers, and then heartbeats, changes and task streams until it ends.
//!
//! It does not know by which relay its packets go. When that changes it sends a heartbeat at once, which tells the hub the new way. A heartbeat that is not answered within a second makes the
//! links look for another way, which also tells the relay a new address after a change of network. Unanswered for two more although the relay answers, the connection is ended and
//! begun anew; when no relay answers either, it is kept, and goes on when there is a way again. So it is for a while when the hub's packets come and only its answer does not: it has much to do.

use std::time::Duration;

use bytes::Bytes;
use cortex_runtime::{
    clock,
    direct::Paired,
    failpoint, quic,
    stream::{FrameReader, FrameWriter, StreamError},
    tls,
};
use cortex_wire::{
    PROTOCOL_VERSION,
    close::CloseCode,
    id::NodeId,
    invite::{self, RelayEndpoint},
    key::{KeyError, PublicKey, find_statement},
    limits,
    pool::Claimant,
    route::Route,
    schema::{
        DirectSearch, Goodbye, HubFrame, HubHello, KeyPurpose, NodeFrame, NodeStanding, PoolClaims, RegistrationRequest, RelayNews,
        StreamOpen, SyncConfiguration, hub_frame, node_frame, stream_open::Open,
    },
    text,
};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    AGENT, KeySequences, Mesh, Registered, closed,
    links::{Home, Pairing, View},
};
use crate::{
    mirror::Mirror,
    state::Way,
    task::{self, Tasks},
};

/// A heartbeat should be answered within this time; then another way is looked for…
const ANSWER: Duration = Duration::from_secs(1);
/// …and after this time more, a hub that does not answer is given up.
const PATIENCE: Duration = Duration::from_secs(2);
/// A hub whose packets come is waited for so long.
const BUSY: Duration = Duration::from_secs(10);
/// A peer that is stopped lets its tasks run on this long, then cancels them.
const DRAIN: Duration = Duration::from_secs(5);
/// Streams beyond the slots: resumptions and refusals of tasks overlap with what runs, and each attached session has one.
const SPARE_STREAMS: u32 = 16 + limits::TICKET_SESSIONS as u32;

/// Why a session ended, and what of it is left.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The program stops.
    Stop,
    /// The connection is gone.
    Hub(String),
    /// Another start of the hub is there.
    Restarted,
}

/// Why a node is not registered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegisterError {
    #[error("cannot dial: {0}")]
    Dial(#[from] quinn::ConnectError),
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("{0}")]
    Connection(#[from] quinn::ConnectionError),
    #[error("the hub broke off the registration: {0}")]
    Stream(#[from] StreamError),
    #[error("whoever answered is not the hub that was pinned: {0}")]
    NotTheHub(#[from] KeyError),
    #[error("the hub's keys are older than those seen before; somebody may replay an old hub")]
    RolledBack,
    #[error("the hub did not answer in time")]
    TimedOut,
    #[error("the way to the hub has changed")]
    Moved,
    #[error("the hub speaks version {0} of the protocol, this peer {PROTOCOL_VERSION}; update the older one")]
    Version(u32),
    #[error("cannot keep what the hub said: {0}")]
    Remember(anyhow::Error),
    #[error("refused ({code}): {reason}")]
    Refused { code: String, reason: String },
}

impl RegisterError {
    /// Whether nobody answered, so that another relay may do better.
    pub(crate) fn is_silence(&self) -> bool {
        matches!(self, Self::TimedOut | Self::Connection(_) | Self::Stream(_))
    }
}

/// A registered connection to the hub.
pub(crate) struct Session {
    connection: Connection,
    reader: FrameReader<RecvStream>,
    writer: FrameWriter<SendStream>,
    /// Which start of the hub this is.
    pub(crate) instance: u64,
    task_key: PublicKey,
    heartbeat: Duration,
    active: bool,
    streams: JoinSet<()>,
    sequence: u64,
    acknowledged: u64,
    /// What was kept of this registration.
    registered: Option<Registered>,
    /// The way that was shown last.
    shown: Option<Way>,
    /// What the pool has offered on this connection.
    claimant: Claimant,
    since: Instant,
}

impl Mesh {
    /// Connects to the hub by the way there is, and registers. When that changes meanwhile, or the hub is another, nothing is waited for any more.
    pub(crate) async fn register(&mut self, home: &Home) -> Result<Session, RegisterError> {
        let patience = Duration::from_millis(limits::BEFORE_AUTHENTICATION_MS);
        let mut view = self.links.view();
        let way = |view: &View| (view.epoch, view.instance, view.home.is_some());
        let before = way(&view.borrow_and_update());
        tokio::select! {
            registered = tokio::time::timeout(patience, self.shake_hands(home)) => registered.unwrap_or(Err(RegisterError::TimedOut)),
            _ = view.wait_for(|view| way(view) != before) => Err(RegisterError::Moved),
        }
    }

    async fn shake_hands(&mut self, home: &Home) -> Result<Session, RegisterError> {
        // Fresh for each connection: the hub counts its tasks from one again, and what was signed for an earlier connection is worth nothing here.
        self.boot_nonce = clock::random();
        let hub = self.options.hub;
        let prefix = quic::Prefix::Route(Route::of(hub.key()));
        // Any key: the hub's root says in its hello which one is right, so transport keys can be renewed.
        let packet_bytes = self.dialler.socket.packet_bytes();
        let config = quic::client_config(&self.options.key, None, prefix, quic::Purpose::Mesh, packet_bytes)?;
        let connection = self.endpoint.connect_with(config, home.virtual_address, "hub.cortex.invalid")?.await?;
        let (send, recv) = connection.accept_bi().await?;
        let mut reader = FrameReader::new(recv, limits::CONTROL_FRAME_BYTES);
        let hello: HubHello = reader.expect().await?;
        if hello.version != PROTOCOL_VERSION {
            return Err(RegisterError::Version(hello.version));
        }
        let (task_key, sequences) = self.check_hub(&connection, &hello)?;
        let mut writer = FrameWriter::new(send);
        let enrolment = match &self.options.invite {
            Some((invite, terms)) => Some(invite::enrol(&self.options.key, invite, terms, &tls::exporter(&connection)?)),
            None => None,
        };
        let request = RegistrationRequest {
            version: PROTOCOL_VERSION,
            agent: AGENT.into(),
            name: self.options.name.clone(),
            boot_nonce: Bytes::copy_from_slice(&self.boot_nonce),
            capabilities: Some(self.options.capabilities.borrow_and_update().clone()),
            enrolment,
            inventory: self.options.tasks.inventory(),
            ceiling: Some(self.options.ceiling.clone()),
            relay_id: home.relay.id.to_string(),
            workspaces: self.options.mirror.held().iter().map(|session| Bytes::copy_from_slice(session.as_bytes())).collect(),
        };
        writer.send(&request).await?;
        let configuration: SyncConfiguration = reader.expect().await?;
        let mut session = Session {
            connection,
            reader,
            writer,
            instance: hello.instance,
            task_key,
            heartbeat: Duration::from_millis(configuration.heartbeat_ms.clamp(1_000, 60_000)),
            active: false,
            streams: JoinSet::new(),
            sequence: 0,
            acknowledged: 0,
            registered: None,
            shown: None,
            claimant: Claimant::default(),
            since: Instant::now(),
        };
        session.configure(self, &configuration, &hello, sequences).await?;
        Ok(session)
    }

    /// Whether the other side is the pinned hub: its root vouches for the key that TLS has proved, by statements that are no older than those seen before.
    fn check_hub(&self, connection: &Connection, hello: &HubHello) -> Result<(PublicKey, KeySequences), RegisterError> {
        let hub = self.options.hub;
        // By the hub's own clock: a machine whose clock is wrong must still be able to come home. Statements of keys carry sequences against replay.
        let now = hello.time_ms;
        let transport = find_statement(&hello.statements, &hub, KeyPurpose::Transport, now)?;
        let task = find_statement(&hello.statements, &hub, KeyPurpose::Task, now)?;
        if tls::peer_key(connection) != Some(transport.key) {
            return Err(KeyError::BadSignature.into());
        }
        let seen = self.options.sequences;
        if transport.sequence < seen.transport || task.sequence < seen.task {
            return Err(RegisterError::RolledBack);
        }
        Ok((task.key, KeySequences { transport: transport.sequence, task: task.sequence }))
    }
}

impl Session {
    /// Takes over what the hub decided: standing, policy, relays, ticket, and what becomes of the tasks in the inventory.
    async fn configure(
        &mut self,
        mesh: &mut Mesh,
        configuration: &SyncConfiguration,
        hello: &HubHello,
        sequences: KeySequences,
    ) -> Result<(), RegisterError> {
        self.check_standing(configuration)?;
        mesh.options.tasks.bind(mesh.options.hub, mesh.boot_nonce, self.task_key);
        mesh.options.tasks.set_hub_time(hello.time_ms);
        let relays: Vec<_> = configuration.relays.iter().filter_map(RelayEndpoint::from_message).take(limits::HUB_RELAYS).collect();
        let registered = Registered {
            hub: mesh.options.hub,
            hub_name: text::clean(&hello.hub_name, limits::NAME_BYTES),
            node: NodeId::from(mesh.options.key.public()),
            name: text::clean(&configuration.name, limits::NAME_BYTES),
            relays: if relays.is_empty() { mesh.options.relays.clone() } else { relays },
            sequences,
            pending: configuration.standing() == NodeStanding::Pending,
        };
        (mesh.options.remember)(&registered).map_err(RegisterError::Remember)?;
        mesh.options.sequences = sequences;
        mesh.options.invite = None;
        mesh.links.enrolled().await;
        let relays = registered.relays.iter().map(RelayEndpoint::to_message).collect();
        mesh.links.news(RelayNews { relays, seen: Vec::new() }).await;
        self.registered = Some(registered);
        let (paired, news) = Paired::node(&mesh.dialler.socket, tls::direct_secret(&self.connection)?);
        mesh.links.paired(Pairing { connection: self.connection.clone(), paired, news }).await;
        self.apply(mesh, configuration).await
    }

    /// Takes over which relays there are, and keeps them for the next start.
    async fn learn(&mut self, mesh: &mut Mesh, news: RelayNews) -> Result<(), RegisterError> {
        let relays: Vec<_> = news.relays.iter().filter_map(RelayEndpoint::from_message).take(limits::HUB_RELAYS).collect();
        if let Some(registered) = self.registered.as_mut().filter(|registered| !relays.is_empty() && registered.relays != relays) {
            tracing::info!(relays = relays.len(), "the hub's relays have changed");
            registered.relays = relays;
            (mesh.options.remember)(registered).map_err(RegisterError::Remember)?;
        }
        mesh.links.news(news).await;
        Ok(())
    }

    fn check_standing(&self, configuration: &SyncConfiguration) -> Result<(), RegisterError> {
        match configuration.standing() {
            NodeStanding::Active | NodeStanding::Pending => Ok(()),
            NodeStanding::Refused | NodeStanding::Unspecified => {
                self.connection.close(VarInt::from_u32(CloseCode::Done.number()), b"");
                Err(RegisterError::Refused {
                    code: text::clean(&configuration.refusal_code, 64),
                    reason: text::clean(&configuration.refusal_reason, limits::TEXT_BYTES),
                })
            }
        }
    }

    async fn apply(&mut self, mesh: &mut Mesh, configuration: &SyncConfiguration) -> Result<(), RegisterError> {
        let active = configuration.standing() == NodeStanding::Active;
        if let Some(policy) = &configuration.policy
            && let Err(error) = mesh.options.tasks.set_policy(policy)
        {
            tracing::error!(%error, "the hub's policy was not taken over");
        }
        if let Some(report) = mesh.options.tasks.policy_report().filter(|_| configuration.policy.is_some()) {
            self.send(node_frame::Frame::Policy(report)).await?;
        }
        if let Some(ticket) = &configuration.ticket {
            mesh.links.ticket(ticket.clone()).await;
        }
        mesh.options.tasks.apply(&configuration.inventory);
        if let Some(left) = &configuration.left {
            mesh.options.mirror.forget(left);
            mesh.options.tasks.leave(left);
        }
        let key = mesh.options.key.public();
        if active && !self.active {
            quic::allow_streams(&self.connection, mesh.options.tasks.slots() + SPARE_STREAMS);
            mesh.options.tasks.connected(true);
            tracing::info!(name = configuration.name, node = %key, "online");
        } else if !active {
            tracing::warn!(
                fingerprint = key.fingerprint(),
                "waiting for approval: compare this fingerprint with the one on the hub's page, and approve it there"
            );
        }
        self.active = active;
        Ok(())
    }

    /// Lives until something ends it.
    pub(crate) async fn live(&mut self, mesh: &mut Mesh) -> Ended {
        let drained = {
            let (lifecycle, tasks) = (mesh.options.lifecycle.clone(), mesh.options.tasks.clone());
            async move {
                lifecycle.draining().await;
                tasks.drain(DRAIN).await;
            }
        };
        tokio::pin!(drained);
        let since = Instant::now();
        let mut beat = tokio::time::interval(self.heartbeat);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut view = mesh.links.view();
        let known = |view: &View| (view.epoch, view.woken, view.doubted, view.standby.map(|(relay, _)| relay));
        let mut way = known(&view.borrow_and_update());
        let mut searched = view.borrow().search.0;
        let mut answer = Answer::Here;
        let mut running = mesh.options.tasks.watch_running();
        let lifecycle = mesh.options.lifecycle.clone();
        let mut leaving = false;
        let outbox = mesh.options.tasks.browsers().map(|browsers| browsers.outbox().clone()).unwrap_or_default();
        let mut browser_news = outbox.news();
        // One batch at a time is under way: the hub's answer brings the next.
        let mut told = None;
        loop {
            let free = mesh.options.tasks.free_slots();
            let (claim_due, has_offers) = (self.claim_due(free), !self.claimant.is_empty());
            tokio::select! {
                Ok(()) = browser_news.changed(), if self.active => {
                    if let Some(events) = outbox.next() {
                        let what = Some((events.browser.clone(), events.first));
                        if what != told {
                            told = what;
                            if let Err(error) = self.send(node_frame::Frame::Browser(events)).await { return Ended::Hub(error.to_string()) }
                        }
                    }
                }
                () = &mut drained => return Ended::Stop,
                stream = self.connection.accept_bi() => match stream {
                    Ok((send, recv)) => self.serve(mesh, send, recv),
                    Err(error) => return Ended::Hub(closed(&error)),
                },
                Some(_) = self.streams.join_next() => {}
                frame = self.reader.next::<HubFrame>() => match frame {
                    Ok(Some(frame)) => match self.hear(mesh, frame).await {
                        Ok(true) => answer = Answer::Here,
                        Ok(false) => {}
                        Err(error) => return Ended::Hub(error.to_string()),
                    },
                    Ok(None) => return Ended::Hub("the hub closed the control stream".into()),
                    Err(error) => return Ended::Hub(self.connection.close_reason().map_or_else(|| error.to_string(), |e| closed(&e))),
                },
                () = until(claim_due) => if let Err(error) = self.claim(free).await { return Ended::Hub(error.to_string()) },
                Ok(()) = running.changed(), if has_offers => {}
                () = lifecycle.draining(), if !leaving => {
                    leaving = true;
                    let frame = node_frame::Frame::Claims(PoolClaims { claims: Vec::new(), closed: true });
                    if let Err(error) = self.send(frame).await { return Ended::Hub(error.to_string()) }
                }
                Ok(()) = view.changed() => {
                    let now = view.borrow_and_update().clone();
                    if now.instance != 0 && now.instance != self.instance { return Ended::Restarted }
                    if std::mem::replace(&mut searched, now.search.0) != now.search.0 {
                        let search = DirectSearch { addresses: now.search.1.clone() };
                        if let Err(error) = self.send(node_frame::Frame::Direct(search)).await { return Ended::Hub(error.to_string()) }
                    }
                    let before = std::mem::replace(&mut way, known(&now));
                    if way == before { continue }
                    // Packets go another way: the hub learns it from this one, and sends by it.
                    if let Err(error) = self.beat(mesh, &now).await { return Ended::Hub(error.to_string()) }
                    if way.0 != before.0 || matches!(answer, Answer::Here) { answer = Answer::expected() }
                }
                Ok(()) = mesh.options.capabilities.changed() => {
                    let capabilities = mesh.options.capabilities.borrow_and_update().clone();
                    if let Err(error) = self.send(node_frame::Frame::Capabilities(capabilities)).await { return Ended::Hub(error.to_string()) }
                }
                _ = beat.tick() => {
                    if since.elapsed() > super::HEALTHY { mesh.healthy() }
                    mesh.links.ping();
                    let now = view.borrow().clone();
                    if let Err(error) = self.beat(mesh, &now).await { return Ended::Hub(error.to_string()) }
                    if matches!(answer, Answer::Here) { answer = Answer::expected() }
                }
                () = until(answer.due()) => match answer {
                    Answer::Here => {}
                    Answer::Expected(_) => {
                        mesh.links.unheard();
                        answer = Answer::overdue(Instant::now(), self.received());
                    }
                    Answer::Overdue { since, .. } if answer.may_be_on_its_way(self.received(), Instant::now()) => {
                        answer = Answer::overdue(since, self.received());
                    }
                    Answer::Overdue { since, .. } => {
                        if view.borrow().answered.is_some_and(|at| Instant::from_std(at) >= since) {
                            self.connection.close(VarInt::from_u32(CloseCode::Silent.number()), b"silent");
                            return Ended::Hub("the hub stopped answering".into());
                        }
                        // Nobody answers. QUIC gives the connection up after 30 s; until then it goes on by the next way there is.
                        mesh.links.unheard();
                        answer = Answer::overdue(since, self.received());
                    }
                }
            }
        }
    }

    /// Packets that have come from the hub.
    fn received(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }

    /// Serves one stream, of a task or of a workspace, beside everything else.
    fn serve(&mut self, mesh: &Mesh, send: SendStream, recv: RecvStream) {
        let (tasks, mirror) = (mesh.options.tasks.clone(), mesh.options.mirror.clone());
        self.streams.spawn(async move {
            if let Err(error) = serve_stream(&tasks, &mirror, send, recv).await {
                tracing::debug!(%error, "a stream of the hub broke");
            }
        });
    }

    /// Whether the frame answered a heartbeat.
    async fn hear(&mut self, mesh: &mut Mesh, frame: HubFrame) -> Result<bool, RegisterError> {
        match frame.frame {
            Some(hub_frame::Frame::HealthAck(sequence)) => {
                self.acknowledged = self.acknowledged.max(sequence);
                Ok(self.acknowledged >= self.sequence)
            }
            Some(hub_frame::Frame::Configuration(configuration)) => {
                self.check_standing(&configuration)?;
                self.apply(mesh, &configuration).await?;
                Ok(false)
            }
            Some(hub_frame::Frame::Ticket(ticket)) => {
                mesh.links.ticket(ticket).await;
                Ok(false)
            }
            Some(hub_frame::Frame::Relays(news)) => {
                self.learn(mesh, news).await?;
                Ok(false)
            }
            Some(hub_frame::Frame::Left(left)) => {
                mesh.options.mirror.forget(&left);
                mesh.options.tasks.leave(&left);
                Ok(false)
            }
            Some(hub_frame::Frame::Browser(stored)) => {
                if let Some(browsers) = mesh.options.tasks.browsers() {
                    browsers.outbox().stored(&stored);
                }
                Ok(false)
            }
            Some(hub_frame::Frame::Direct(offer)) => {
                mesh.links.offered(offer).await;
                Ok(false)
            }
            Some(hub_frame::Frame::Pool(update)) => {
                self.claimant.hear(&update, self.now_ms());
                Ok(false)
            }
            Some(hub_frame::Frame::Drain(_)) | None => Ok(false),
        }
    }

    /// Milliseconds since this connection began.
    fn now_ms(&self) -> i64 {
        i64::try_from(self.since.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    /// When something of the pool is to be claimed, with so many free slots.
    fn claim_due(&self, free: u32) -> Option<Instant> {
        let due_ms = self.claimant.due_ms(free)?;
        Some(self.since + Duration::from_millis(u64::try_from(due_ms).unwrap_or(0)))
    }

    /// Claims what is due.
    async fn claim(&mut self, free: u32) -> Result<(), StreamError> {
        let claims = self.claimant.claims(free, self.now_ms());
        if claims.is_empty() {
            return Ok(());
        }
        failpoint::at("peer.offered");
        self.send(node_frame::Frame::Claims(PoolClaims { claims, closed: false })).await?;
        failpoint::at("peer.claimed");
        Ok(())
    }

    async fn beat(&mut self, mesh: &mut Mesh, view: &View) -> Result<(), StreamError> {
        self.sequence += 1;
        let mut report = (mesh.options.health)();
        report.sequence = self.sequence;
        report.running_tasks = mesh.options.tasks.running();
        report.relay_id = view.home.as_ref().map(|home| home.relay.id.to_string()).unwrap_or_default();
        report.rtt_us = micros(self.connection.rtt());
        (report.standby_id, report.standby_rtt_us) = view.standby.map(|(relay, rtt)| (relay.to_string(), micros(rtt))).unwrap_or_default();
        let by_relay = || view.home.as_ref().map_or("relay", |home| mesh.dialler.path(&home.relay));
        report.path = if view.is_direct { "direct" } else { by_relay() }.into();
        report.path_reason.clone_from(&view.why);
        let relay = view.home.as_ref().map(|home| home.relay.address.clone()).unwrap_or_default();
        self.show(mesh, Way { path: report.path.clone(), relay, why: view.why.clone(), rtt_us: report.rtt_us });
        self.send(node_frame::Frame::Health(report)).await
    }

    /// Shows the way when it is another, or much longer or shorter.
    fn show(&mut self, mesh: &mut Mesh, way: Way) {
        let same = |shown: &Way| {
            let apart = shown.rtt_us.abs_diff(way.rtt_us);
            (&shown.path, &shown.relay, &shown.why) == (&way.path, &way.relay, &way.why) && apart * 4 <= shown.rtt_us
        };
        if !self.shown.as_ref().is_some_and(same) {
            (mesh.options.show)(Some(&way));
            self.shown = Some(way);
        }
    }

    async fn send(&mut self, frame: node_frame::Frame) -> Result<(), StreamError> {
        self.writer.send(&NodeFrame { frame: Some(frame) }).await
    }

    /// Ends the streams of this connection, so that nothing of it can still start when the next inventory is made.
    pub(crate) async fn end(mut self) {
        self.connection.close(VarInt::from_u32(CloseCode::Done.number()), b"");
        self.streams.shutdown().await;
    }

    /// Lets running tasks report, then leaves in good order.
    pub(crate) async fn say_goodbye(mut self) {
        let _ = self.send(node_frame::Frame::Goodbye(Goodbye { reason: "the peer was stopped".into() })).await;
        let _ = self.writer.inner_mut().finish();
        // The hub closes when it has read it.
        let _ = tokio::time::timeout(Duration::from_millis(300), self.connection.closed()).await;
        self.end().await;
    }
}

/// Whether the hub's answer to a heartbeat is there.
#[derive(Debug, Clone, Copy)]
enum Answer {
    Here,
    /// Until then.
    Expected(Instant),
    /// Since then another way is looked for; at `until` it is seen whether the relays answer.
    Overdue {
        since: Instant,
        until: Instant,
        /// Packets that had come by now.
        received: u64,
    },
}

impl Answer {
    fn expected() -> Self {
        Self::Expected(Instant::now() + ANSWER)
    }

    fn overdue(since: Instant, received: u64) -> Self {
        Self::Overdue { since, until: Instant::now() + PATIENCE, received }
    }

    /// The hub's packets come, so its answer may be behind others.
    fn may_be_on_its_way(self, now_received: u64, now: Instant) -> bool {
        matches!(self, Self::Overdue { since, received, .. } if now_received > received && now < since + BUSY)
    }

    fn due(self) -> Option<Instant> {
        match self {
            Self::Here => None,
            Self::Expected(until) | Self::Overdue { until, .. } => Some(until),
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

async fn serve_stream(tasks: &Tasks, mirror: &Mirror, send: SendStream, recv: RecvStream) -> Result<(), StreamError> {
    let mut reader = FrameReader::new(recv, limits::TASK_FRAME_BYTES);
    let writer = FrameWriter::new(send);
    match task::first_frame(&mut reader).await? {
        StreamOpen { open: Some(Open::Workspace(open)), .. } => mirror.serve(open, reader, writer).await,
        open => tasks.serve_opened(open, reader, writer).await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_whose_packets_come_is_waited_for_a_while() {
        let since = Instant::now();
        let answer = Answer::overdue(since, 7);
        assert!(!answer.may_be_on_its_way(7, since + PATIENCE));
        assert!(answer.may_be_on_its_way(8, since + PATIENCE));
        assert!(!answer.may_be_on_its_way(8, since + BUSY));
        assert!(!Answer::Here.may_be_on_its_way(8, since) && !Answer::expected().may_be_on_its_way(8, since));
    }
}
