//! Edits on both sides: what arrives, and what it costs.

use super::*;

#[tokio::test]
async fn what_one_node_does_the_other_has() {
    let hub = Hub::new();
    let a = Node::attached(&hub);
    let b = Node::attached(&hub);
    hub.converge(&[&a, &b]).await;
    a.write("src/main.rs", "fn main() {}");
    a.write("empty", "");
    a.write("a b/new\nline ü", "odd");
    std::fs::create_dir_all(a.path("hollow/deep")).unwrap();
    symlink("src/main.rs", a.path("link")).unwrap();
    a.write("run.sh", "#!/bin/sh");
    std::fs::set_permissions(a.path("run.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    hub.until("all of it at the hub", |state| (state.tree.len() == 9).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    b.write("src/main.rs", "fn main() { println!() }");
    std::fs::rename(b.path("hollow"), b.path("filled")).unwrap();
    b.write("filled/deep/f", "x");
    std::fs::remove_file(b.path("empty")).unwrap();
    std::fs::remove_file(b.path("link")).unwrap();
    hub.until("the second round", |state| {
        (state.tree.len() == 8 && state.tree.get(&"filled/deep/f".parse().unwrap()).is_some()).then_some(())
    })
    .await;
    hub.converge(&[&a, &b]).await;
    assert_eq!(a.text("src/main.rs").unwrap(), "fn main() { println!() }");
    assert!(a.copies().is_empty() && b.copies().is_empty());
}

#[tokio::test]
async fn after_quiet_nothing_is_sent() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    for i in 0..50 {
        a.write(&format!("d{}/f{i}", i % 5), format!("{i}"));
    }
    hub.until("all at the hub", |state| (state.tree.len() == 55).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    let (proposals, bytes) = (hub.proposals(), hub.moved_bytes());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((hub.proposals(), hub.moved_bytes()), (proposals, bytes));
    // Touched, and the same.
    a.write("d0/f0", "0");
    let _ = std::fs::File::open(b.path("d0/f0")).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((hub.proposals(), hub.moved_bytes()), (proposals, bytes));
}

#[tokio::test]
async fn of_two_edits_the_first_keeps_the_path_and_the_other_is_kept_aside() {
    let hub = Hub::new();
    let (mut a, mut b) = (Node::attached(&hub), Node::attached(&hub));
    a.write("f", "base");
    a.write("deleted here", "base");
    hub.until("the base", |state| (state.tree.len() == 2).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    a.disconnect(&hub);
    b.disconnect(&hub);
    a.write("f", "from a");
    std::fs::remove_file(a.path("deleted here")).unwrap();
    b.write("f", "from b");
    b.write("deleted here", "changed there");
    a.connect(&hub);
    hub.converge(&[&a]).await;
    b.connect(&hub);
    hub.converge(&[&a, &b]).await;
    assert_eq!((a.text("f").as_deref(), b.text("f").as_deref()), (Some("from a"), Some("from a")));
    assert_eq!(b.copies(), ["from b"]);
    assert_eq!(a.text("deleted here").as_deref(), Some("changed there"), "modify beats delete");
    assert_eq!(hub.state.lock().unwrap().conflicts, 1);
}

#[tokio::test]
async fn a_large_file_costs_what_changes_in_it_and_a_rename_costs_nothing() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    let mut large = noise(1, 24 << 20);
    a.write("large", &large);
    hub.until("it is there", |state| state.tree.get(&"large".parse().unwrap()).map(|_| ())).await;
    hub.converge(&[&a, &b]).await;
    assert!(matches!(hub.get("large"), Some(Entry::File { content: Content { depth: 1.., .. }, .. })), "its list of chunks is long");
    let (stored, fetched) = (hub.chunks.stored_bytes.load(Ordering::Relaxed), hub.chunks.fetched_bytes.load(Ordering::Relaxed));
    large.insert(0, 7);
    large.splice(12_000_000..12_000_000, *b"in the middle");
    a.write("large", &large);
    let hash = *blake3::hash(&large).as_bytes();
    let edited = move |state: &HubState| {
        matches!(state.tree.get(&"large".parse().unwrap()), Some(Entry::File { content, .. }) if content.hash == hash).then_some(())
    };
    hub.until("the edit", edited).await;
    hub.converge(&[&a, &b]).await;
    let up = hub.chunks.stored_bytes.load(Ordering::Relaxed) - stored;
    let down = hub.chunks.fetched_bytes.load(Ordering::Relaxed) - fetched;
    assert!(up < 1 << 20, "{up} bytes up");
    assert!(down < 1 << 20, "{down} bytes down");
    let bytes = hub.moved_bytes();
    std::fs::rename(a.path("large"), a.path("moved")).unwrap();
    hub.until("the rename", |state| state.tree.get(&"moved".parse().unwrap()).map(|_| ())).await;
    hub.converge(&[&a, &b]).await;
    std::fs::copy(b.path("moved"), b.path("copy")).unwrap();
    hub.until("the copy", |state| state.tree.get(&"copy".parse().unwrap()).map(|_| ())).await;
    hub.converge(&[&a, &b]).await;
    assert!(hub.moved_bytes() - bytes < 64 << 10, "{} bytes for a rename and a copy", hub.moved_bytes() - bytes);
}

#[tokio::test]
async fn the_ways_in_which_editors_save_all_arrive() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    a.write("f", "0");
    hub.until("the file", |state| state.tree.get(&"f".parse().unwrap()).map(|_| ())).await;
    let arrives = async |text: &'static str| {
        let hash = *blake3::hash(text.as_bytes()).as_bytes();
        let there = move |state: &HubState| {
            let f = state.tree.get(&"f".parse().unwrap());
            (state.tree.len() == 1 && matches!(f, Some(Entry::File { content, .. }) if content.hash == hash)).then_some(())
        };
        hub.until(text, there).await;
        hub.converge(&[&a, &b]).await;
    };
    // Truncate and write.
    a.write("f", "truncated");
    arrives("truncated").await;
    // A new file in its place.
    a.write("f.tmp", "renamed");
    std::fs::rename(a.path("f.tmp"), a.path("f")).unwrap();
    arrives("renamed").await;
    // The old one aside, a new one, the old one gone.
    std::fs::rename(a.path("f"), a.path("f~")).unwrap();
    a.write("f", "with a backup");
    std::fs::remove_file(a.path("f~")).unwrap();
    arrives("with a backup").await;
    // Gone for a moment.
    std::fs::remove_file(a.path("f")).unwrap();
    a.write("f", "gone and back");
    arrives("gone and back").await;
    // In place, of the same length, several times within one tick of the clock.
    for text in ["gone and 1234", "gone and 5678", "gone and 9012"] {
        a.write("f", text);
    }
    arrives("gone and 9012").await;
}

#[tokio::test]
async fn many_files_at_once_are_all_found_although_the_events_run_over() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    hub.converge(&[&a, &b]).await;
    for i in 0..8_000 {
        a.write(&format!("d{}/e{}/f{i}", i % 40, i % 7), format!("{i}"));
    }
    hub.until("all at the hub", |state| (state.tree.len() == 8_000 + 40 + 280).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    std::fs::rename(a.path("d1"), a.path("renamed")).unwrap();
    hub.until("the rename", |state| state.tree.get(&"renamed".parse().unwrap()).map(|_| ())).await;
    hub.converge(&[&a, &b]).await;
}

#[tokio::test]
async fn a_long_file_goes_up_when_it_is_closed_and_not_piece_by_piece() {
    use std::io::Write as _;
    let hub = Hub::new();
    let a = Node::attached(&hub);
    hub.converge(&[&a]).await;
    let mut file = std::fs::File::create(a.path("long")).unwrap();
    for piece in 0..5 {
        file.write_all(&noise(piece, 2 << 20)).unwrap();
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert_eq!(hub.get("long").map_or(0, |entry| entry.size()), 0, "half of it is nothing to anybody");
    drop(file);
    hub.until("all of it", |state| (state.tree.get(&"long".parse().unwrap())?.size() == 10 << 20).then_some(())).await;
    assert!(hub.proposals() <= 2, "{} proposals", hub.proposals());
}

#[tokio::test]
async fn who_waits_for_what_a_task_wrote_has_it_although_the_file_is_open() {
    use std::io::Write as _;
    let hub = Hub::new();
    let a = Node::attached(&hub);
    hub.converge(&[&a]).await;
    let mut file = std::fs::File::create(a.path("long")).unwrap();
    let size = |state: &HubState| state.tree.get(&"long".parse().unwrap()).map_or(0, Entry::size);
    for piece in 1..=3 {
        file.write_all(&noise(piece, 2 << 20)).unwrap();
        if piece == 2 {
            // It is known to be open by now.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        a.mirror.after_task(&hub.session, &task(piece)).await;
        assert_eq!(size(&hub.state.lock().unwrap()), piece * (2 << 20));
    }
    file.write_all(b"the end").unwrap();
    let begun = std::time::Instant::now();
    hub.until("what nobody goes on with", |state| (size(state) == 3 * (2 << 20) + 7).then_some(())).await;
    assert!(begun.elapsed() > Duration::from_secs(1), "it was waited for");
    hub.converge(&[&a]).await;
}

#[tokio::test]
async fn a_file_that_never_rests_holds_nobody_up() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    hub.converge(&[&a, &b]).await;
    // Large enough that reading it takes longer than the next write.
    std::fs::File::create(a.path("log")).unwrap().set_len(256 << 20).unwrap();
    let path = a.path("log");
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let writer = std::thread::spawn(move || {
        use std::io::Write as _;
        let mut log = std::fs::OpenOptions::new().append(true).open(path).unwrap();
        while !stopped.load(Ordering::Relaxed) {
            log.write_all(b"one more line\n").unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    a.write("calm", "c");
    hub.until("the calm one", |state| state.tree.get(&"calm".parse().unwrap()).map(|_| ())).await;
    hub.until("it is called hot", |state| {
        let hot = state.status.get(&a.id)?.problems.iter().any(|problem| (problem.path.as_str(), problem.code.as_str()) == ("log", "hot"));
        hot.then_some(())
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    hub.until("it has come to rest", |state| state.tree.get(&"log".parse().unwrap()).map(|_| ())).await;
    hub.converge(&[&a, &b]).await;
    use std::os::unix::fs::MetadataExt as _;
    assert!(std::fs::metadata(b.path("log")).unwrap().blocks() * 512 < 32 << 20, "holes stay holes");
}

#[tokio::test]
async fn a_rename_by_the_api_of_many_files_is_one_rename_here() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    for i in 0..200 {
        a.write(&format!("d/e/f{i}"), format!("{i}"));
    }
    hub.until("all at the hub", |state| (state.tree.len() == 202).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    use std::os::unix::fs::MetadataExt as _;
    let inode = std::fs::metadata(b.path("d/e/f7")).unwrap().ino();
    let bytes = hub.moved_bytes();
    let path = |text: &str| text.parse::<RelPath>().unwrap();
    let parent = hub.state.lock().unwrap().tree.hash(&path("d"));
    hub.write(&[Op::Move { from: path("d"), to: path("moved"), parent: parent.unwrap() }]);
    hub.converge(&[&a, &b]).await;
    assert_eq!(std::fs::metadata(b.path("moved/e/f7")).unwrap().ino(), inode);
    assert_eq!(hub.moved_bytes(), bytes);
}

#[tokio::test]
async fn a_large_file_goes_its_way_beside_the_others() {
    let hub = Hub::new();
    let (a, mut b) = (Node::attached(&hub), Node::attached(&hub));
    hub.converge(&[&a, &b]).await;
    let file = std::fs::File::create(a.path("large")).unwrap();
    file.set_len((65 << 20) + 7).unwrap();
    a.write("small", "s");
    a.mirror.after_task(&hub.session, &task(1)).await;
    hub.until("both", |state| (state.tree.len() == 2).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    b.stop(&hub).await;
    std::fs::File::options().write(true).open(b.path("large")).unwrap().set_len(66 << 20).unwrap();
    b.connect(&hub);
    hub.until("the edit", |_| std::fs::metadata(a.path("large")).is_ok_and(|data| data.len() == 66 << 20).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    std::fs::remove_file(b.path("large")).unwrap();
    hub.until("its end", |_| (!a.path("large").exists()).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    assert_eq!(hub.state.lock().unwrap().conflicts, 0);
}

#[tokio::test]
async fn an_edit_that_a_look_tells_of_while_its_folder_is_about_to_be_moved_is_not_forgotten() {
    const FILES: usize = 24;
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    (0..FILES).for_each(|file| a.write(&format!("m0/f{file}"), noise(file as u64, 200_000)));
    hub.until("all of it", |state| (state.tree.len() == FILES + 1).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    for round in 0..40u64 {
        let (from, to) = (format!("m{round}"), format!("m{}", round + 1));
        // A look at all this takes a while: the move comes before it, while it goes on, or after it.
        (0..FILES).for_each(|file| a.write(&format!("{from}/f{file}"), noise(1_000 * (round + 1) + file as u64, 200_000)));
        tokio::time::sleep(Duration::from_millis(10 + 3 * (round % 20))).await;
        let parent = hub.state.lock().unwrap().tree.hash(&from.parse().unwrap());
        if let Some(parent) = parent {
            hub.write(&[Op::Move { from: from.parse().unwrap(), to: to.parse().unwrap(), parent }]);
        }
        hub.converge(&[&a, &b]).await;
        let names: Vec<String> = hub.state.lock().unwrap().tree.iter().map(|(path, _)| path.to_string()).collect();
        assert!(names.contains(&to), "{names:?}");
    }
}
