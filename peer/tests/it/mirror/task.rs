//! Tasks and barriers: who waits for what.

use super::*;

#[tokio::test]
async fn a_barrier_is_answered_when_what_was_written_before_it_is_committed() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    hub.converge(&[&a, &b]).await;
    for round in 1..=10u64 {
        let name = format!("d{round}/f");
        a.write(&name, format!("{round}"));
        hub.to(&a, to_workspace::Frame::Barrier(round));
        hub.until("the barrier", |state| state.barriers.contains(&round).then_some(())).await;
        assert!(hub.get(&name).is_some(), "round {round}");
    }
    hub.converge(&[&a, &b]).await;
}

#[tokio::test]
async fn a_tasks_files_are_at_the_hub_when_it_has_ended_and_here_when_the_next_one_begins() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    hub.converge(&[&a, &b]).await;
    for round in 1..=10u64 {
        let (name, task) = (format!("d{round}/f"), task(round));
        a.mirror.before_task(&hub.session, &task, 0).await;
        a.write(&name, format!("{round}"));
        a.mirror.after_task(&hub.session, &task).await;
        assert!(hub.get(&name).is_some(), "round {round}");
        b.mirror.before_task(&hub.session, &task, 0).await;
        // Frames to this node are under way in the same program, and not before us in any queue.
        if b.text(&name).is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
            b.mirror.before_task(&hub.session, &task, 0).await;
        }
        assert_eq!(b.text(&name), Some(format!("{round}")));
        b.mirror.after_task(&hub.session, &task).await;
    }
    let named: std::collections::BTreeSet<Bytes> = hub.state.lock().unwrap().tasks.drain(..).collect();
    assert_eq!(named, (1..=10).map(|round| Bytes::copy_from_slice(task(round).as_bytes())).collect());
    a.write("by hand", "x");
    hub.until("the edit", |state| state.tree.get(&"by hand".parse().unwrap()).map(drop)).await;
    assert_eq!(hub.state.lock().unwrap().tasks, [Bytes::new()], "no task wrote it");
}

#[tokio::test]
async fn a_task_waits_for_the_revision_that_it_was_given_with() {
    let hub = Hub::new();
    let a = Node::attached(&hub);
    hub.converge(&[&a]).await;
    let folder = |name: &str| Op::Put { path: name.parse().unwrap(), parent: None, entry: Entry::Directory };
    let before = |node: &Node, revision| {
        let (mirror, session) = (node.mirror.clone(), hub.session);
        tokio::spawn(async move { (mirror.before_task(&session, &task(2), revision).await, Instant::now()) })
    };
    // The stream of the task was faster than that of the workspace.
    let early = before(&a, 1);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!early.is_finished());
    hub.write(&[folder("late")]);
    assert!(early.await.unwrap().0 && a.path("late").exists());
    // A revision that does not come.
    let begun = Instant::now();
    let (holds, at) = before(&a, 9).await.unwrap();
    assert!(!holds && (2..4).contains(&(at - begun).as_secs()), "{:?}", at - begun);
    // Faster even than the first stream of the workspace.
    let mut b = Node::new(&hub);
    b.mirror.set_chunks(Some(hub.chunks.clone()));
    let early = before(&b, 1);
    tokio::time::sleep(Duration::from_millis(200)).await;
    b.connect(&hub);
    assert!(early.await.unwrap().0 && b.path("late").exists());
}

#[tokio::test]
async fn a_stuck_sync_does_not_hold_a_task_up_for_long() {
    let hub = Hub::new();
    let mut a = Node::attached(&hub);
    hub.converge(&[&a]).await;
    a.mirror.set_chunks(None);
    a.write("f", "x");
    let begun = Instant::now();
    a.mirror.before_task(&hub.session, &task(1), 0).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "what is to go up does not matter to who begins");
    a.mirror.after_task(&hub.session, &task(1)).await;
    assert!((2..10).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    a.mirror.set_chunks(Some(hub.chunks.clone()));
    hub.until("it goes on", |state| (state.tree.len() == 1).then_some(())).await;
    assert_eq!(hub.state.lock().unwrap().tasks, [Bytes::copy_from_slice(task(1).as_bytes())], "and still is that task's");
    a.disconnect(&hub);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    a.write("g", "x");
    a.mirror.after_task(&hub.session, &task(2)).await;
    a.mirror.after_task(&SessionId::new(2, [2; 10]), &task(2)).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "without a hub there is nothing to wait for");
}

#[tokio::test]
async fn who_wrote_nothing_waits_for_next_to_nothing() {
    let hub = Hub::new();
    let a = Node::attached(&hub);
    hub.converge(&[&a]).await;
    let mut waits = Vec::new();
    for round in 0..100u64 {
        let begun = Instant::now();
        a.mirror.before_task(&hub.session, &task(round), 0).await;
        a.mirror.after_task(&hub.session, &task(round)).await;
        waits.push(begun.elapsed());
    }
    waits.sort();
    println!("idle: median {:?}, slowest tenth {:?}", waits[50], waits[90]);
    assert!(waits[50] < Duration::from_millis(10), "the settle time is not waited for: {:?}", waits[50]);
}
