//! What is held back and asked about, and checks.

use super::*;

#[tokio::test]
async fn a_mass_deletion_is_asked_about_and_taken_back() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    for i in 0..30 {
        a.write(&format!("f{i}"), format!("{i}"));
    }
    hub.until("all at the hub", |state| (state.tree.len() == 30).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    for i in 0..25 {
        std::fs::remove_file(b.path(&format!("f{i}"))).unwrap();
    }
    let question = hub.until("the question", |state| state.status.get(&b.id).map(|status| status.question).filter(|id| *id != 0)).await;
    assert_eq!(a.listing().len(), 30);
    hub.to(&b, to_workspace::Frame::Decision(Decision { question, yes: false }));
    hub.until("no question any more", |state| (state.status.get(&b.id)?.question == 0).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    assert_eq!(b.listing().len(), 30);
}

#[tokio::test]
async fn a_check_finds_and_repairs_what_was_missed() {
    let hub = Hub::new();
    let a = Node::attached(&hub);
    a.write("f", "one");
    hub.until("the file", |state| state.tree.get(&"f".parse().unwrap()).map(|_| ())).await;
    hub.converge(&[&a]).await;
    hub.to(&a, to_workspace::Frame::Rescan(Rescan { request: 7, rehash: true, repair: true, ..Rescan::default() }));
    let report = hub.until("the report", |state| state.drift.first().cloned()).await;
    assert_eq!((report.request, report.repaired), (7, true));
    assert!(report.missing.is_empty() && report.extra.is_empty() && report.changed.is_empty());
}

#[tokio::test]
async fn edits_under_anothers_lock_are_held_and_said_to_be() {
    let hub = Hub::new();
    let a = Node::attached(&hub);
    hub.converge(&[&a]).await;
    let lock = Lock { prefix: "d".parse().unwrap(), owner: "ann".into(), node: None, fence: 1, expires_at_ms: clock::now_ms() + 60_000 };
    hub.state.lock().unwrap().locks = vec![lock.clone()];
    let say = |locks| to_workspace::Frame::State(WorkspaceState { locks, ..WorkspaceState::default() });
    hub.to(&a, say(vec![lock.to_schema()]));
    tokio::time::sleep(Duration::from_millis(100)).await;
    a.write("d/one", "1");
    a.write("d/two", "2");
    a.write("free", "3");
    hub.until("all of it held but one", |state| {
        let status = state.status.get(&a.id)?;
        (status.state == "held" && status.held >= 2 && status.up_files == status.held && status.question == 0).then_some(())
    })
    .await;
    assert!(hub.get("free").is_some() && hub.get("d/one").is_none());
    hub.state.lock().unwrap().locks.clear();
    hub.to(&a, say(Vec::new()));
    hub.converge(&[&a]).await;
    assert!(hub.get("d/two").is_some());
}

#[tokio::test]
async fn a_question_survives_the_death_of_the_program_with_its_number_and_may_be_answered_at_once() {
    let hub = Hub::new();
    let mut a = Node::attached(&hub);
    for number in 0..30 {
        a.write(&format!("d/f{number}"), format!("{number}"));
    }
    hub.until("all of it", |state| (state.tree.len() == 31).then_some(())).await;
    hub.converge(&[&a]).await;
    std::fs::remove_dir_all(a.path("d")).unwrap();
    let asks = |state: &HubState| state.status.get(&a.id).map(|status| status.question).filter(|question| *question != 0);
    let question = hub.until("it asks", asks).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    a.stop(&hub).await;
    a.connect(&hub);
    let asks = |state: &HubState| state.status.get(&a.id).map(|status| status.question).filter(|question| *question != 0);
    assert_eq!(hub.until("it asks again", asks).await, question);
    hub.to(&a, to_workspace::Frame::Decision(Decision { question: question + 1, yes: true }));
    hub.to(&a, to_workspace::Frame::Decision(Decision { question, yes: true }));
    hub.until("all of it is gone", |state| state.tree.is_empty().then_some(())).await;
    let answered = hub.state.lock().unwrap().answered.clone();
    assert_eq!(answered, [Answered { question: question + 1, taken: false }, Answered { question, taken: true }]);
}

#[tokio::test]
async fn a_check_of_one_path_tells_of_nothing_else() {
    let hub = Hub::new();
    let a = Node::attached(&hub);
    a.write("d/f", "one");
    a.write("other", "two");
    hub.until("the files", |state| (state.tree.len() == 3).then_some(())).await;
    hub.converge(&[&a]).await;
    // Edits that are held: the folder differs from the hub's.
    let lock = Lock { prefix: RelPath::root(), owner: "ann".into(), node: None, fence: 1, expires_at_ms: clock::now_ms() + 60_000 };
    hub.to(&a, to_workspace::Frame::State(WorkspaceState { locks: vec![lock.to_schema()], ..WorkspaceState::default() }));
    tokio::time::sleep(Duration::from_millis(100)).await;
    a.write("d/f", "changed");
    a.write("d/new", "extra");
    a.write("other", "changed as well");
    hub.until("three are held", |state| (state.status.get(&a.id)?.held == 3).then_some(())).await;
    let ask = |request, paths: &[&str]| {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        hub.to(&a, to_workspace::Frame::Rescan(Rescan { request, rehash: true, repair: false, paths }));
    };
    ask(1, &["d"]);
    ask(2, &["d/f", "nothing"]);
    ask(3, &[]);
    let reports = hub.until("the reports", |state| (state.drift.len() == 3).then(|| state.drift.clone())).await;
    let lists = |request: u64| {
        let report = reports.iter().find(|report| report.request == request).unwrap();
        (report.changed.clone(), report.extra.clone())
    };
    assert_eq!(lists(1), (vec!["d/f".into()], vec!["d/new".into()]));
    assert_eq!(lists(2), (vec!["d/f".into()], Vec::new()));
    assert_eq!(lists(3), (vec!["d/f".into(), "other".into()], vec!["d/new".into()]));
    // One that is to be set right waits for what it is about, and for nothing else.
    std::fs::write(a.path("other"), "two").unwrap();
    hub.to(&a, to_workspace::Frame::Rescan(Rescan { request: 4, rehash: true, repair: true, paths: vec!["other".into()] }));
    let report = hub.until("the last report", |state| state.drift.iter().find(|report| report.request == 4).cloned()).await;
    assert!(report.repaired, "{report:?}");
}
