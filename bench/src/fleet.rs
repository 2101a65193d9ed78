//! Many nodes in this process: each with its key, its socket, its link and its connection to the hub, speaking the peer's own protocol code. Only tasks
//! and the reading of the machine's health are left out.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use cortex_peer::{
    mesh::{self, KeySequences, MeshOptions},
    mirror::Mirror,
    task::{Bounds, Tasks, TasksOptions},
};
use cortex_runtime::{clock, lifecycle::Lifecycle};
use cortex_wire::{
    id::NodeId,
    invite,
    key::SecretKey,
    schema::{Capabilities, HealthReport, SandboxPolicy},
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
};

use crate::interrupt;

/// Nodes that join at the same time.
const JOINING: usize = 32;

/// Nodes that stay connected as long as this value lives.
#[derive(Debug)]
pub struct Fleet {
    lifecycle: Lifecycle,
    registered: Arc<AtomicUsize>,
    /// How many relays each node knows.
    known: Arc<Mutex<Vec<usize>>>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Fleet {
    /// Lets one node join with each invite.
    pub fn join(folder: &Path, invites: Vec<String>) -> Self {
        let (lifecycle, registered) = (Lifecycle::new(), Arc::new(AtomicUsize::new(0)));
        let known = Arc::new(Mutex::new(vec![0; invites.len()]));
        let (folder, life, count, lists) = (folder.to_owned(), lifecycle.clone(), registered.clone(), known.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(live(&folder, invites, life, count, lists))
        });
        Self { lifecycle, registered, known, thread: Some(thread) }
    }

    /// How many of them have heard last that there are this many relays.
    pub fn knowing(&self, relays: usize) -> usize {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|known| **known == relays).count()
    }

    /// Waits until this many nodes have registered.
    pub fn wait_for(&mut self, nodes: usize, patience: Duration) -> anyhow::Result<()> {
        let since = Instant::now();
        while self.registered.load(Relaxed) < nodes {
            interrupt::check()?;
            let registered = self.registered.load(Relaxed);
            ensure!(since.elapsed() < patience, "{registered} of {nodes} nodes joined within {patience:?}");
            if let Some(thread) = self.thread.take_if(|thread| thread.is_finished()) {
                thread.join().unwrap_or_else(|_| anyhow::bail!("the nodes panicked"))?;
                anyhow::bail!("the nodes ended after {registered} had joined");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.lifecycle.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn live(
    folder: &Path,
    invites: Vec<String>,
    lifecycle: Lifecycle,
    registered: Arc<AtomicUsize>,
    lists: Arc<Mutex<Vec<usize>>>,
) -> anyhow::Result<()> {
    let ceiling = SandboxPolicy { task_slots: 1, ..SandboxPolicy::default() };
    let tasks = Tasks::open(TasksOptions {
        state_dir: folder.join("fleet"),
        workspace_dir: folder.join("fleet/work"),
        node: SecretKey::from_seed(clock::random()),
        ceiling: ceiling.clone(),
        shell: "/bin/sh".into(),
        environment: Vec::new(),
        bounds: Bounds::default(),
        policy_sequence: 0,
    })?;
    let capabilities =
        watch::Sender::new(Capabilities { os: "linux".into(), hostname: "simulated".into(), task_slots: 1, ..Capabilities::default() });
    let joining = Arc::new(Semaphore::new(JOINING));
    let mut nodes = JoinSet::new();
    for (number, text) in invites.iter().enumerate() {
        let mut permit = Some(joining.clone().acquire_owned().await?);
        let (invite, terms) = invite::read(text, clock::now_ms())?;
        let (count, lists) = (registered.clone(), lists.clone());
        let key = SecretKey::from_seed(clock::random());
        let place = folder.join(format!("fleet/{number}"));
        let options = MeshOptions {
            mirror: Mirror::new(place.join("work"), &place, NodeId::from(key.public())),
            key,
            hub: terms.hub,
            relays: terms.relays.clone(),
            fixed_relays: false,
            show_links: Arc::new(|_| {}),
            invite: Some((invite, terms)),
            name: format!("simulated-{number}"),
            sequences: KeySequences::default(),
            ceiling: ceiling.clone(),
            capabilities: capabilities.subscribe(),
            health: Box::new(HealthReport::default),
            tasks: tasks.clone(),
            remember: Box::new(move |known| {
                lists.lock().unwrap_or_else(PoisonError::into_inner)[number] = known.relays.len();
                if permit.take().is_some() {
                    count.fetch_add(1, Relaxed);
                }
                Ok(())
            }),
            show: Box::new(|_| {}),
            network: Arc::default(),
            max_retries: Some(5),
            lifecycle: lifecycle.clone(),
        };
        nodes.spawn(mesh::run(options));
    }
    while let Some(ended) = nodes.join_next().await {
        ended.context("a node panicked")??;
    }
    Ok(())
}
