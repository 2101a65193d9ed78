//! Nodes that come with files, go, and come back.

use super::*;

#[tokio::test]
async fn a_folder_with_files_is_united_with_what_the_hub_has() {
    let hub = Hub::new();
    let a = Node::attached(&hub);
    a.write("both", "same");
    a.write("differs", "the hub's");
    a.write("theirs", "t");
    hub.until("the hub's", |state| (state.tree.len() == 3).then_some(())).await;
    let mut b = Node::new(&hub);
    b.write("both", "same");
    b.write("differs", "mine");
    b.write("mine", "m");
    b.connect(&hub);
    hub.until("the union", |state| (state.tree.len() == 4).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    assert_eq!(b.text("differs").as_deref(), Some("the hub's"));
    assert_eq!(b.copies(), ["mine"]);
}

#[tokio::test]
async fn a_node_that_was_off_brings_what_was_done_meanwhile_and_nothing_else() {
    let hub = Hub::new();
    let (mut a, b) = (Node::attached(&hub), Node::attached(&hub));
    for i in 0..30 {
        a.write(&format!("d/f{i}"), noise(i, 3_000));
    }
    hub.until("all at the hub", |state| (state.tree.len() == 31).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    let (proposals, bytes) = (hub.proposals(), hub.moved_bytes());
    a.stop(&hub).await;
    a.connect(&hub);
    hub.converge(&[&a, &b]).await;
    assert_eq!((hub.proposals(), hub.moved_bytes()), (proposals, bytes), "nothing had changed");
    a.stop(&hub).await;
    a.write("d/f1", "edited while it was off");
    std::fs::remove_file(a.path("d/f2")).unwrap();
    a.write("d/new", "n");
    b.write("d/f3", "edited there");
    hub.until("the edit of b", |state| (state.proposals > proposals).then_some(())).await;
    a.connect(&hub);
    hub.until("the edits of a", |state| state.tree.get(&"d/new".parse().unwrap()).map(|_| ())).await;
    hub.converge(&[&a, &b]).await;
    assert_eq!(b.text("d/f1").as_deref(), Some("edited while it was off"));
    assert!(!b.path("d/f2").exists());
    assert_eq!(a.text("d/f3").as_deref(), Some("edited there"));
    assert!(a.copies().is_empty() && b.copies().is_empty());
}

#[tokio::test]
async fn a_folder_that_vanishes_is_asked_about_and_deletes_nothing() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    for i in 0..5 {
        a.write(&format!("f{i}"), format!("{i}"));
    }
    hub.until("all at the hub", |state| (state.tree.len() == 5).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    std::fs::remove_dir_all(b.path("")).unwrap();
    let question = hub.until("the question", |state| {
        let status = state.status.get(&b.id)?;
        (status.state == "held" && status.question_text.contains("folder")).then_some(status.question)
    });
    let question = question.await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(hub.state.lock().unwrap().tree.len(), 5);
    assert_eq!(a.listing().len(), 5);
    hub.to(&b, to_workspace::Frame::Decision(Decision { question, yes: true }));
    hub.until("it is back", |state| (state.status.get(&b.id)?.state == "in_sync").then_some(())).await;
    hub.converge(&[&a, &b]).await;
    assert_eq!(b.listing().len(), 5);
}

#[tokio::test]
async fn after_detach_nothing_follows_and_the_files_stay() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    a.write("f", "one");
    hub.until("the file", |state| state.tree.get(&"f".parse().unwrap()).map(|_| ())).await;
    hub.converge(&[&a, &b]).await;
    hub.to(&b, to_workspace::Frame::Detach(true));
    // The stream ends first; this hub would open it again, as for an attached session.
    hub.until("the stream has ended", |state| (state.ended > 0).then_some(())).await;
    let mut b = b;
    b.disconnect(&hub);
    let state = b.dir.join("state/mirror");
    a.write("f", "two");
    hub.converge(&[&a]).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(b.text("f").as_deref(), Some("one"));
    assert_eq!(std::fs::read_dir(state).unwrap().count(), 0, "what was remembered is gone");
}

/// Killed between the exchange in which an edit lost its place and the moment in which it is put aside. That it was seen is no reason to let it go.
#[tokio::test]
async fn an_edit_that_the_hub_never_had_survives_a_death_in_the_middle_of_losing_its_place() {
    let hub = Hub::new();
    let mut a = Node::attached(&hub);
    a.write("agreed", "first");
    hub.until("the file", |state| state.tree.get(&"agreed".parse().unwrap()).map(|_| ())).await;
    hub.converge(&[&a]).await;
    hub.state.lock().unwrap().paused = true;
    hub.to(&a, to_workspace::Frame::State(WorkspaceState { paused: true, ..WorkspaceState::default() }));
    tokio::time::sleep(Duration::from_millis(100)).await;
    a.write("edit", "mine");
    hub.until("it was seen", |state| (state.status.get(&a.id)?.up_files > 0).then_some(())).await;
    a.stop(&hub).await;
    let displaced = |name: &str, by: &str, number: u32| {
        let hash = blake3::hash(by.as_bytes()).to_hex();
        std::fs::rename(a.path(name), a.path(&format!(".cortex/stage/ready-{hash}-{number}"))).unwrap();
        a.write(name, by);
    };
    displaced("edit", "theirs", 900);
    displaced("agreed", "second", 901);
    a.connect(&hub);
    hub.until("it is here again", |state| state.status.get(&a.id).map(|_| ())).await;
    let kept: Vec<String> = std::fs::read_dir(a.path(".cortex/conflicts"))
        .unwrap()
        .map(|copy| std::fs::read_to_string(copy.unwrap().path()).unwrap())
        .collect();
    assert_eq!(kept, ["mine"], "and what was agreed on is at the hub");
}

#[tokio::test]
async fn a_state_that_is_older_than_the_disk_as_after_a_crash_heals_by_itself() {
    let hub = Hub::new();
    let (mut a, b) = (Node::attached(&hub), Node::attached(&hub));
    for i in 0..10 {
        a.write(&format!("f{i}"), format!("first {i}"));
    }
    hub.until("the first", |state| (state.tree.len() == 10).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    a.stop(&hub).await;
    let file = a.dir.join(format!("state/mirror/{}.redb", hub.session));
    let old = std::fs::read(&file).unwrap();
    a.connect(&hub);
    hub.converge(&[&a, &b]).await;
    // Applied at a, made at a, removed at either side: and of all that a's state knows nothing.
    b.write("f1", "second, from b");
    a.write("f2", "second, from a");
    std::fs::remove_file(b.path("f3")).unwrap();
    std::fs::remove_file(a.path("f4")).unwrap();
    b.write("new", "from b");
    hub.until("the second", |state| {
        let has = |path: &str| state.tree.get(&path.parse().unwrap()).is_some();
        (!has("f3") && !has("f4") && has("new")).then_some(())
    })
    .await;
    hub.converge(&[&a, &b]).await;
    let tree = hub.state.lock().unwrap().tree.root();
    a.stop(&hub).await;
    std::fs::write(&file, old).unwrap();
    a.connect(&hub);
    hub.converge(&[&a, &b]).await;
    assert_eq!(hub.state.lock().unwrap().tree.root(), tree, "nothing is taken back");
    assert!(a.copies().is_empty() && b.copies().is_empty());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_workspace_has_a_thread_of_its_own_that_ends_with_it() {
    let owners = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        tasks.filter(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "mirror\n")).count()
    };
    let hub = Hub::new();
    let mut a = Node::attached(&hub);
    hub.converge(&[&a]).await;
    assert_eq!(owners(), 1, "what it makes of many changes holds nobody up");
    a.stop(&hub).await;
    let until = Instant::now() + PATIENCE;
    while owners() > 0 {
        assert!(Instant::now() < until, "it goes on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
