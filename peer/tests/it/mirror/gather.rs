//! A first look sends what it reads before the engine asks. What may come between must not matter.

use super::*;

const FILES: usize = 400;

/// A node whose folder is full of small files before anybody has heard of it.
fn full(hub: &Arc<Hub>) -> Node {
    let node = Node::new(hub);
    for number in 0..FILES {
        node.write(&format!("d{}/f{number}", number % 7), noise(number as u64, 3_000));
    }
    node
}

async fn arrived(hub: &Arc<Hub>, a: &Node) {
    let b = Node::attached(hub);
    hub.converge(&[a, &b]).await;
    assert_eq!(hub.state.lock().unwrap().tree.len(), FILES + 7);
}

#[tokio::test]
async fn what_was_sent_in_a_pause_and_swept_meanwhile_is_sent_again() {
    let hub = Hub::new();
    hub.state.lock().unwrap().paused = true;
    let mut a = full(&hub);
    a.connect(&hub);
    hub.until("it has looked", |state| (state.status.get(&a.id)?.state == "paused").then_some(())).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(hub.proposals(), 0);
    // The hub spares what nobody names for a while, and the pause is longer.
    hub.chunks.swept.store(true, Ordering::Relaxed);
    hub.chunks.held.lock().unwrap().clear();
    hub.state.lock().unwrap().paused = false;
    hub.to(&a, to_workspace::Frame::State(WorkspaceState::default()));
    arrived(&hub, &a).await;
}

#[tokio::test]
async fn a_link_that_is_lost_in_the_middle_costs_nothing_but_time() {
    let hub = Hub::new();
    let mut a = full(&hub);
    hub.chunks.break_after.store(3, Ordering::Relaxed);
    a.connect(&hub);
    hub.until("some of it was sent", |_| (hub.chunks.break_after.load(Ordering::Relaxed) == 0).then_some(())).await;
    a.mirror.set_chunks(None);
    a.disconnect(&hub);
    tokio::time::sleep(Duration::from_millis(300)).await;
    a.connect(&hub);
    arrived(&hub, &a).await;
}

#[tokio::test]
async fn a_file_that_changes_between_the_look_and_the_proposal_arrives_as_it_is_now() {
    let hub = Hub::new();
    let mut a = full(&hub);
    a.connect(&hub);
    for round in 0..30u64 {
        for number in (0..FILES).step_by(40) {
            a.write(&format!("d{}/f{number}", number % 7), noise(1_000 + round, 3_000));
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    arrived(&hub, &a).await;
    assert_eq!(hub.state.lock().unwrap().conflicts, 0);
}
