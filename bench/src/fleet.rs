//! Many nodes in this process: each with its key, its socket, its link and its connection to the hub, speaking the peer's own protocol code. Only
//! the reading of the machine's health is left out, and of most fleets the tasks.

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
    sandbox::Sandbox,
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
    /// Lets one node join with each invite. They run no tasks.
    pub fn join(folder: &Path, invites: Vec<String>) -> Self {
        Self::start(folder, invites, None)
    }

    /// The same with nodes that run so many tasks at a time.
    pub fn working(folder: &Path, invites: Vec<String>, slots: u32) -> Self {
        Self::start(folder, invites, Some(slots))
    }

    fn start(folder: &Path, invites: Vec<String>, slots: Option<u32>) -> Self {
        let (lifecycle, registered) = (Lifecycle::new(), Arc::new(AtomicUsize::new(0)));
        let known = Arc::new(Mutex::new(vec![0; invites.len()]));
        let (folder, life, count, lists) = (folder.to_owned(), lifecycle.clone(), registered.clone(), known.clone());
        let thread = std::thread::spawn(move || {
            // Each stands for a machine with its own processor: one thread for thousands of them would be what is measured.
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(live(&folder, invites, slots, life, count, lists))
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
    slots: Option<u32>,
    lifecycle: Lifecycle,
    registered: Arc<AtomicUsize>,
    lists: Arc<Mutex<Vec<usize>>>,
) -> anyhow::Result<()> {
    let task_slots = slots.unwrap_or(1);
    let ceiling = SandboxPolicy { task_slots, ..SandboxPolicy::default() };
    let open = |folder: &Path, node: SecretKey| {
        Tasks::open(TasksOptions {
            state_dir: folder.to_owned(),
            workspace_dir: folder.join("work"),
            node,
            ceiling: ceiling.clone(),
            shell: "/bin/sh".into(),
            environment: Vec::new(),
            bounds: Bounds::default(),
            browser: None,
            sandbox: Sandbox::of_this_program(Vec::new()),
            policy_sequence: 0,
        })
    };
    // Nodes that run nothing share what they would run it with.
    let shared = open(&folder.join("fleet"), SecretKey::from_seed(clock::random()))?;
    let capabilities =
        watch::Sender::new(Capabilities { os: "linux".into(), hostname: "simulated".into(), task_slots, ..Capabilities::default() });
    let joining = Arc::new(Semaphore::new(JOINING));
    let mut nodes = JoinSet::new();
    for (number, text) in invites.iter().enumerate() {
        let mut permit = Some(joining.clone().acquire_owned().await?);
        let (invite, terms) = invite::read(text, clock::now_ms())?;
        let (count, lists) = (registered.clone(), lists.clone());
        let key = SecretKey::from_seed(clock::random());
        let place = folder.join(format!("fleet/{number}"));
        let tasks = if slots.is_some() { open(&place, key.clone())? } else { shared.clone() };
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
            tasks,
            remember: Box::new(move |known| {
                lists.lock().unwrap_or_else(PoisonError::into_inner)[number] = known.relays.len();
                if permit.take().is_some() {
                    count.fetch_add(1, Relaxed);
                }
                Ok(())
            }),
            show: Box::new(|_| {}),
            network: Arc::default(),
            max_retries: None,
            lifecycle: lifecycle.clone(),
        };
        nodes.spawn(mesh::run(options));
    }
    while let Some(ended) = nodes.join_next().await {
        ended.context("a node panicked")??;
    }
    Ok(())
}
