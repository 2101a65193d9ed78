//! What a new start of the peer makes of what the last one left.

use std::{fs, time::Duration};

use cortex_peer::task::Tasks;
use cortex_wire::{
    id::TaskId,
    schema::{InventoryAnswer, InventoryVerdict, TaskRequest, from_task::Frame},
};

use crate::hub::{Hub, script};

/// A peer that can die: its runtime and everything on it are dropped, as its processes see it.
struct Life {
    runtime: tokio::runtime::Runtime,
    tasks: Tasks,
}

impl Life {
    fn begin(hub: &Hub) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let tasks = runtime.block_on(async { hub.tasks() });
        Self { runtime, tasks }
    }

    fn die(self) {
        // What was written is in the file before the next life reads it.
        std::thread::sleep(Duration::from_millis(300));
        drop(self.tasks);
        self.runtime.shutdown_background();
    }
}

#[test]
fn a_task_that_ran_when_the_peer_died_is_lost_and_what_is_left_of_it_is_ended() {
    let hub = Hub::new();
    let life = Life::begin(&hub);
    let request = hub.request(script("setsid sh -c 'echo up $$; exec env -i sleep 60' & sleep 60"));
    let pid = life.runtime.block_on(async {
        let mut talk = hub.start(&life.tasks, &request).await;
        let pid = talk.line("up ").await;
        // Until it is the sleep, which closes nothing and hears nothing.
        while !fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().starts_with("sleep") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        pid
    });
    life.die();
    let second = Life::begin(&hub);
    second.runtime.block_on(async {
        let inventory = second.tasks.inventory();
        assert_eq!((inventory.len(), inventory[0].lost, &inventory[0].task_id), (1, true, &request.task_id));
        assert_eq!(second.tasks.running(), 0);
        let over = hub.resume(&second.tasks, &request.task_id, 0, 0).await.finish().await;
        assert_eq!((over.response.state.as_str(), over.response.exit, over.response.fence), ("lost", None, 1));
        assert!(over.text().starts_with("up "), "what it had printed is still there");
        assert!(second.tasks.inventory().is_empty());
    });
    let gone = || fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "));
    for _ in 0..100 {
        if gone() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(gone(), "process {pid} is still there");
    second.die();
    let third = Life::begin(&hub);
    assert!(third.tasks.inventory().is_empty());
    third.die();
}

#[test]
fn a_result_waits_for_the_hub_through_restarts() {
    let hub = Hub::new();
    let mut life = Life::begin(&hub);
    let request = hub.request(script("seq 1 1000; echo err >&2; exit 4"));
    life.runtime.block_on(async {
        let mut talk = hub.start(&life.tasks, &request).await;
        talk.result().await;
    });
    for _ in 0..2 {
        life.die();
        life = Life::begin(&hub);
        let inventory = life.tasks.inventory();
        assert_eq!((inventory.len(), inventory[0].finished, inventory[0].lost, inventory[0].fence), (1, true, false, 1));
    }
    life.runtime.block_on(async {
        let over = hub.resume(&life.tasks, &request.task_id, 4, 0).await.finish().await;
        let all: String = (1..=1000).map(|n| format!("{n}\n")).collect();
        assert_eq!((over.text().as_str(), over.stderr.as_slice()), (&all[4..], &b"err\n"[..]));
        assert_eq!((over.response.state.as_str(), over.response.truncated), ("failed", false));
        let again = TaskRequest { sequence: hub.request(script("")).sequence, ..request.clone() };
        assert_eq!(hub.start(&life.tasks, &again).await.rejected().await.code, "replayed");
    });
    assert_eq!(fs::read_dir(hub.path().join("state/tasks")).unwrap().count(), 0);
    life.die();
    let last = Life::begin(&hub);
    assert!(last.tasks.inventory().is_empty());
    last.die();
}

#[tokio::test]
async fn the_hub_decides_over_the_inventory() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    let mut requests = Vec::new();
    for _ in 0..3 {
        let request = hub.request(script("echo up; sleep 60"));
        let mut talk = hub.start(&tasks, &request).await;
        talk.line("up").await;
        talk.serving.abort();
        requests.push(request);
    }
    tasks.connected(false);
    assert_eq!(tasks.inventory().len(), 3);
    let verdicts = [InventoryVerdict::Continue, InventoryVerdict::Cancel, InventoryVerdict::Forget];
    let answers: Vec<_> = requests
        .iter()
        .zip(verdicts)
        .map(|(request, verdict)| InventoryAnswer { task_id: request.task_id.clone(), verdict: verdict.into() })
        .collect();
    tasks.apply(&answers);
    tasks.connected(true);
    let cancelled = hub.resume(&tasks, &requests[1].task_id, 3, 0).await.finish().await;
    assert_eq!((cancelled.response.state.as_str(), cancelled.text().as_str()), ("cancelled", ""));
    let mut running = tasks.watch_running();
    running.wait_for(|count| *count == 1).await.unwrap();
    assert_eq!(tasks.inventory().len(), 1);
    let forgotten = TaskId::from_slice(&requests[2].task_id).unwrap();
    assert_eq!(hub.resume(&tasks, &requests[2].task_id, 0, 0).await.rejected().await.code, "unknown_task");
    let out = hub.path().join(format!("state/tasks/{forgotten}.out"));
    while out.exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut left = hub.resume(&tasks, &requests[0].task_id, 0, 0).await;
    left.line("up").await;
    left.cancel("enough").await;
    while !matches!(left.next().await, Some(Frame::Result(_))) {}
}
