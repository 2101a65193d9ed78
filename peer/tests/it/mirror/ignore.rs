//! What is not synced.

use super::*;

#[tokio::test]
async fn ignored_files_stay_where_they_are() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    a.write(".gitignore", "*.log\nbuild/\n");
    a.write("d/x.log", "log");
    a.write("d/f", "f");
    a.write("build/out", "o");
    a.write(".git/HEAD", "ref");
    hub.until("what counts", |state| (state.tree.len() == 3).then_some(())).await;
    hub.converge_tree(&[&b]).await;
    assert_eq!(b.listing().keys().collect::<Vec<_>>(), [".gitignore", "d", "d/f"]);
    // The folder goes elsewhere, and stays here for what is ignored in it.
    std::fs::remove_dir_all(b.path("d")).unwrap();
    hub.until("the removal", |state| (state.tree.len() == 1).then_some(())).await;
    hub.until("it is made here", |_| (!a.path("d/f").exists()).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(a.text("d/x.log").as_deref(), Some("log"));
    assert_eq!(hub.state.lock().unwrap().tree.len(), 1, "the folder that stays does not come back");
    a.write("d/new", "n");
    hub.until("something new in it", |state| state.tree.get(&"d/new".parse().unwrap()).map(|_| ())).await;
    hub.converge_tree(&[&b]).await;
}

#[tokio::test]
async fn what_becomes_ignored_is_taken_out_everywhere_and_deleted_nowhere() {
    let hub = Hub::new();
    let (a, mut b) = (Node::attached(&hub), Node::attached(&hub));
    for i in 0..40 {
        a.write(&format!("target/deep/{i}"), format!("{i}"));
    }
    a.write("x.log", "log");
    a.write("f", "f");
    hub.until("all of it", |state| (state.tree.len() == 44).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    let before = b.listing();
    a.write(".gitignore", "target/\n*.log\n");
    hub.until("only what counts", |state| (state.tree.len() == 2).then_some(())).await;
    hub.until("the rules are there", |_| b.text(".gitignore").map(drop)).await;
    hub.until("both rest, and nobody is asked", |state| {
        [&a, &b].iter().all(|node| state.status.get(&node.id).is_some_and(|status| status.state == "in_sync")).then_some(())
    })
    .await;
    let mut after = before.clone();
    after.insert(".gitignore".into(), a.listing()[".gitignore"].clone());
    assert_eq!((a.listing(), b.listing()), (after.clone(), after), "they stay on every disk");
    b.write("target/deep/new", "only here");
    b.write("target/deep/7", "seven");
    b.stop(&hub).await;
    b.connect(&hub);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(hub.state.lock().unwrap().tree.len(), 2, "nothing comes back by itself");
    b.write("target/deep/7", "7");
    b.write(".gitignore", "*.log\n");
    hub.until("all but the log", |state| (state.tree.len() == 45).then_some(())).await;
    hub.until("on both", |_| (a.text("target/deep/new").as_deref() == Some("only here")).then_some(())).await;
    assert_eq!(a.listing(), b.listing());
    assert_eq!(hub.state.lock().unwrap().conflicts, 0);
}

#[tokio::test]
async fn a_node_that_was_off_when_rules_came_deletes_nothing_of_what_they_cover() {
    let hub = Hub::new();
    let (a, mut b) = (Node::attached(&hub), Node::attached(&hub));
    a.write("build/out", "o");
    a.write("f", "f");
    hub.until("all of it", |state| (state.tree.len() == 3).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    b.stop(&hub).await;
    a.write("build/.gitignore", "*\n");
    hub.until("the file is out", |state| state.tree.get(&"build/out".parse().unwrap()).is_none().then_some(())).await;
    std::fs::remove_file(a.path("f")).unwrap();
    hub.until("the other, too", |state| state.tree.get(&"f".parse().unwrap()).is_none().then_some(())).await;
    b.connect(&hub);
    hub.until("the removal", |_| (!b.path("f").exists()).then_some(())).await;
    hub.until("the rules", |_| b.text("build/.gitignore").map(drop)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(b.text("build/out").as_deref(), Some("o"));
}

#[tokio::test]
async fn a_new_file_with_the_bytes_of_one_that_became_ignored_takes_no_copy_along() {
    let hub = Hub::new();
    let (a, mut b) = (Node::attached(&hub), Node::attached(&hub));
    a.write("old.log", "bytes");
    a.write("folder/deep/f", "more");
    hub.until("all of it", |state| (state.tree.len() == 4).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    let before = hub.state.lock().unwrap().revision;
    b.disconnect(&hub);
    a.write(".gitignore", "*.log\n/folder\n");
    hub.until("only the rules", |state| (state.tree.len() == 1).then_some(())).await;
    a.write("new", "bytes");
    a.write("other/f", "more");
    hub.until("equal ones elsewhere", |state| (state.tree.len() == 4).then_some(())).await;
    // It hears of all that at once: what went and what came is a move then.
    let moves = hub.folded_since(before).into_iter().filter(|op| op.target().is_some()).count();
    assert_eq!(moves, 2, "or this shows nothing");
    b.connect(&hub);
    hub.until("what is new", |_| (b.text("new").is_some() && b.text("other/f").is_some()).then_some(())).await;
    hub.until("it rests", |state| (state.status.get(&b.id)?.state == "in_sync").then_some(())).await;
    assert_eq!((b.text("old.log").as_deref(), b.text("folder/deep/f").as_deref()), (Some("bytes"), Some("more")));
    assert_eq!((b.text("new").as_deref(), b.text("other/f").as_deref()), (Some("bytes"), Some("more")));
}
