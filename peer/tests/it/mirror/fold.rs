//! A node whose file system takes names for one that differ by case or Unicode form, cannot exchange two files, or hangs, beside one whose file system does not.

use super::{fuse::Mounted, *};

/// Set in the copy of a test that has mounts of its own.
const INSIDE: &str = "CORTEX_TEST_OWN_MOUNTS";

/// Runs a test in a copy of this program that has mounts of its own: whatever becomes of it, nothing stays mounted.
fn with_own_mounts<F: Future<Output = ()>>(test: &str, body: impl FnOnce() -> F) {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(body());
    }
    let output = std::process::Command::new("unshare")
        .args(["--mount", "--map-root-user"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("mirror::fold::{test}"), "--nocapture"])
        .env(INSIDE, "")
        .output()
        .expect("unshare is needed: apt-get install util-linux");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{out}\n{err}");
}

/// A node on a file system that folds names. Dropped from the last to the first.
fn folding(hub: &Arc<Hub>, flags: bool) -> (tempfile::TempDir, Mounted, Node) {
    let dir = tempfile::tempdir().unwrap();
    ["work", "backing", "state"].iter().for_each(|name| std::fs::create_dir(dir.path().join(name)).unwrap());
    let mounted = Mounted::new(&dir.path().join("backing"), &dir.path().join("work"), flags);
    let node = Node::at(hub, dir.path().to_owned());
    (dir, mounted, node)
}

/// The paths of which a node says that their names are taken.
fn collisions(state: &HubState, node: &Node) -> Option<Vec<String>> {
    let problems = &state.status.get(&node.id)?.problems;
    Some(problems.iter().filter(|problem| problem.code == "case_collision").map(|problem| problem.path.clone()).collect())
}

async fn collide(hub: &Hub, node: &Node, paths: &[&str]) {
    let top = |path: &String| paths.iter().any(|top| path == top || path.starts_with(&format!("{top}/")));
    let said = |said: Vec<String>| said.iter().all(top) && paths.iter().all(|path| said.iter().any(|at| at == path));
    hub.until("the collision is said", |state| said(collisions(state, node)?).then_some(())).await;
}

fn names(node: &Node) -> Vec<String> {
    node.listing().into_keys().collect()
}

/// Renames by way of another name, as programs do where two names are one.
fn rename_case(node: &Node, from: &str, to: &str) {
    std::fs::rename(node.path(from), node.path("on its way")).unwrap();
    std::fs::rename(node.path("on its way"), node.path(to)).unwrap();
}

const SOON: Duration = Duration::from_secs(10);

async fn soon(what: impl Future) {
    timeout(SOON, what).await.unwrap();
}

#[test]
fn the_file_system_of_these_tests_folds_names() {
    with_own_mounts("the_file_system_of_these_tests_folds_names", async || {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let hub = Hub::new();
        let (_dir, _mounted, b) = folding(&hub, true);
        b.write("Read.txt", "one");
        assert_eq!(b.text("READ.TXT").as_deref(), Some("one"));
        b.write("read.TXT", "two");
        assert_eq!((b.text("Read.txt").as_deref(), names(&b)), (Some("two"), vec!["Read.txt".to_owned()]));
        b.write("caf\u{e9}/f", "x");
        assert_eq!(b.text("CAFE\u{301}/F").as_deref(), Some("x"));
        assert!(std::fs::create_dir(b.path("Caf\u{e9}")).is_err());
        let rename = |from: &str, to: &str, flags| renameat_with(CWD, b.path(from), CWD, b.path(to), flags);
        assert_eq!(rename("Read.txt", "READ.TXT", RenameFlags::NOREPLACE), Err(rustix::io::Errno::EXIST));
        b.write("other", "three");
        assert_eq!(rename("OTHER", "READ.TXT", RenameFlags::EXCHANGE), Ok(()));
        assert_eq!((b.text("Read.txt").as_deref(), b.text("other").as_deref()), (Some("three"), Some("two")));
        std::fs::remove_file(b.path("OTHER")).unwrap();
        rename_case(&b, "Read.txt", "READ.TXT");
        assert_eq!(names(&b), ["READ.TXT", "caf\u{e9}", "caf\u{e9}/f"]);
    });
}

#[test]
fn of_two_names_that_are_one_there_the_second_is_reported_and_comes_when_the_first_is_gone() {
    with_own_mounts("of_two_names_that_are_one_there_the_second_is_reported_and_comes_when_the_first_is_gone", async || {
        let hub = Hub::new();
        let a = Node::attached(&hub);
        let (_dir, _mounted, mut b) = folding(&hub, true);
        b.connect(&hub);
        hub.converge(&[&a, &b]).await;
        a.write("README", "upper");
        a.write("d/Stra\u{df}e", "one");
        soon(hub.converge(&[&a])).await;
        hub.until("both", |state| (state.tree.len() == 3).then_some(())).await;
        soon(hub.converge(&[&a, &b])).await;
        a.write("readme", "lower");
        a.write("d/STRASSE", "two");
        collide(&hub, &b, &["d/STRASSE", "readme"]).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(names(&b), ["README", "d", "d/Stra\u{df}e"]);
        assert_eq!((b.text("README").as_deref(), b.text("d/Stra\u{df}e").as_deref()), (Some("upper"), Some("one")));
        assert_eq!((names(&a).len(), hub.state.lock().unwrap().tree.len()), (5, 5), "nothing is lost elsewhere");
        soon(hub.converge(&[&a])).await;
        assert!(hub.state.lock().unwrap().status[&a.id].problems.is_empty(), "only where it is one name");
        // An edit of what is there goes on both ways.
        a.write("README", "upper, from a");
        hub.until("the edit", |_| (b.text("README").as_deref() == Some("upper, from a")).then_some(())).await;
        b.write("README", "upper, from b");
        hub.until("the edit", |_| (a.text("README").as_deref() == Some("upper, from b")).then_some(())).await;
        assert_eq!(a.text("readme").as_deref(), Some("lower"));
        // One is removed where both are, the other renamed.
        std::fs::remove_file(a.path("README")).unwrap();
        std::fs::rename(a.path("d/STRASSE"), a.path("d/other")).unwrap();
        soon(hub.converge(&[&a, &b])).await;
        assert_eq!((b.text("readme").as_deref(), b.text("d/other").as_deref()), (Some("lower"), Some("two")));
        // The one that has the name is removed where only one can be.
        a.write("README", "upper again");
        collide(&hub, &b, &["README"]).await;
        std::fs::remove_file(b.path("readme")).unwrap();
        soon(hub.converge(&[&a, &b])).await;
        assert_eq!((a.text("README").as_deref(), a.text("readme")), (Some("upper again"), None));
        assert!(a.copies().is_empty() && b.copies().is_empty());
    });
}

#[test]
fn folders_whose_names_are_one_there_are_not_thrown_together() {
    with_own_mounts("folders_whose_names_are_one_there_are_not_thrown_together", async || {
        let hub = Hub::new();
        let a = Node::attached(&hub);
        let (_dir, _mounted, mut b) = folding(&hub, true);
        a.write("Docs/same", "1");
        a.write("Docs/one", "1");
        hub.until("the first", |state| (state.tree.len() == 3).then_some(())).await;
        b.connect(&hub);
        hub.converge(&[&a, &b]).await;
        a.write("docs/same", "2");
        a.write("docs/deep/two", "2");
        collide(&hub, &b, &["docs"]).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(names(&b), ["Docs", "Docs/one", "Docs/same"]);
        assert_eq!((b.text("Docs/same").as_deref(), names(&a).len()), (Some("1"), 7));
        // What is not there is not deleted where it is, also after a restart and a look at everything.
        b.stop(&hub).await;
        b.connect(&hub);
        collide(&hub, &b, &["docs"]).await;
        assert_eq!((names(&a).len(), hub.state.lock().unwrap().tree.len()), (7, 7));
        std::fs::rename(a.path("docs"), a.path("papers")).unwrap();
        soon(hub.converge(&[&a, &b])).await;
        assert_eq!((b.text("papers/deep/two").as_deref(), b.text("Docs/same").as_deref()), (Some("2"), Some("1")));
        a.write("PAPERS/new", "3");
        collide(&hub, &b, &["PAPERS"]).await;
        std::fs::remove_dir_all(b.path("papers")).unwrap();
        soon(hub.converge(&[&a, &b])).await;
        assert_eq!((b.text("PAPERS/new").as_deref(), a.path("papers").exists()), (Some("3"), false));
    });
}

#[test]
fn a_rename_that_changes_the_case_alone_arrives_in_both_directions() {
    with_own_mounts("a_rename_that_changes_the_case_alone_arrives_in_both_directions", async || {
        let hub = Hub::new();
        let a = Node::attached(&hub);
        let (_dir, _mounted, mut b) = folding(&hub, true);
        b.connect(&hub);
        a.write("Read.txt", "contents");
        a.write("Src/deep/f", "x");
        a.write("Src/g", noise(1, 300_000));
        a.write("Src/.gitignore", "*.log\n");
        hub.until("all", |state| (state.tree.len() == 6).then_some(())).await;
        hub.converge(&[&a, &b]).await;
        b.write("Src/deep/a.log", "only here");
        let bytes = hub.moved_bytes();
        // Where two names are two, and then where they are one.
        std::fs::rename(a.path("Read.txt"), a.path("READ.TXT")).unwrap();
        std::fs::rename(a.path("Src"), a.path("SRC")).unwrap();
        let all = ["READ.TXT", "SRC", "SRC/.gitignore", "SRC/deep", "SRC/deep/a.log", "SRC/deep/f", "SRC/g"];
        hub.until("the names on b", |_| (names(&b) == all).then_some(())).await;
        assert_eq!((b.text("READ.TXT").as_deref(), b.text("SRC/deep/f").as_deref()), (Some("contents"), Some("x")));
        assert_eq!(b.text("SRC/deep/a.log").as_deref(), Some("only here"));
        rename_case(&b, "READ.TXT", "read.TXT");
        rename_case(&b, "SRC/deep", "SRC/Deep");
        let all = ["SRC", "SRC/.gitignore", "SRC/Deep", "SRC/Deep/f", "SRC/g", "read.TXT"];
        hub.until("the names on a", |_| (names(&a) == all).then_some(())).await;
        assert_eq!((a.text("read.TXT").as_deref(), a.text("SRC/Deep/f").as_deref()), (Some("contents"), Some("x")));
        assert_eq!(hub.moved_bytes(), bytes, "what was renamed is not sent");
        assert!(a.copies().is_empty() && b.copies().is_empty());
        // With other contents at the same time: no move any more.
        std::fs::remove_file(a.path("read.TXT")).unwrap();
        a.write("READ.txt", "edited, too");
        hub.until("the edit", |_| (b.text("READ.txt").as_deref() == Some("edited, too")).then_some(())).await;
        hub.until("under its new name", |_| names(&b).contains(&"READ.txt".to_owned()).then_some(())).await;
        let problem = |state: &HubState| state.status.get(&b.id).map(|status| !status.problems.is_empty());
        hub.until("nothing is wrong", |state| (problem(state) == Some(false)).then_some(())).await;
        assert!(a.copies().is_empty() && b.copies().is_empty());
    });
}

#[test]
fn a_file_that_is_written_in_another_spelling_is_that_file() {
    with_own_mounts("a_file_that_is_written_in_another_spelling_is_that_file", async || {
        let hub = Hub::new();
        let a = Node::attached(&hub);
        let (_dir, _mounted, mut b) = folding(&hub, true);
        b.connect(&hub);
        a.write("readme", "one");
        a.write("src/main.rs", "one");
        a.write("gone", "one");
        hub.until("all", |state| (state.tree.len() == 4).then_some(())).await;
        hub.converge(&[&a, &b]).await;
        b.write("README", "two");
        hub.until("the edit", |_| (a.text("readme").as_deref() == Some("two")).then_some(())).await;
        b.write("SRC/Main.RS", "two");
        hub.until("the edit below", |_| (a.text("src/main.rs").as_deref() == Some("two")).then_some(())).await;
        // As editors save.
        b.write("readme.tmp", "three");
        std::fs::rename(b.path("readme.tmp"), b.path("ReadMe")).unwrap();
        hub.until("the saved", |_| (a.text("readme").as_deref() == Some("three")).then_some(())).await;
        std::fs::remove_file(b.path("GONE")).unwrap();
        hub.until("the removal", |_| (!a.path("gone").exists()).then_some(())).await;
        // Removed in one spelling, and made anew in another.
        std::fs::remove_file(b.path("README")).unwrap();
        b.write("README", "four");
        hub.until("the new name", |_| (a.text("README").as_deref() == Some("four")).then_some(())).await;
        soon(hub.converge(&[&a, &b])).await;
        assert_eq!(names(&a), ["README", "src", "src/main.rs"]);
        assert!(a.copies().is_empty() && b.copies().is_empty());
    });
}

#[test]
fn detached_and_attached_again_nothing_is_lost() {
    with_own_mounts("detached_and_attached_again_nothing_is_lost", async || {
        let hub = Hub::new();
        let a = Node::attached(&hub);
        let (_dir, _mounted, mut b) = folding(&hub, true);
        b.connect(&hub);
        a.write("README", "upper");
        a.write("d/f", "x");
        hub.until("all", |state| (state.tree.len() == 3).then_some(())).await;
        hub.converge(&[&a, &b]).await;
        a.write("readme", "lower");
        collide(&hub, &b, &["readme"]).await;
        hub.to(&b, to_workspace::Frame::Detach(true));
        hub.until("the stream has ended", |state| (state.ended > 0).then_some(())).await;
        b.disconnect(&hub);
        // Meanwhile the case of one changes there, and both are edited.
        rename_case(&b, "d/f", "d/F");
        a.write("README", "upper, edited");
        a.write("readme", "lower, edited");
        soon(hub.converge(&[&a])).await;
        b.connect(&hub);
        collide(&hub, &b, &["d/f", "readme"]).await;
        hub.until("the edit", |_| (b.text("README").as_deref() == Some("upper, edited")).then_some(())).await;
        assert_eq!(b.copies(), ["upper"], "what was there before is kept");
        soon(hub.converge(&[&a])).await;
        assert_eq!(names(&a), ["README", "d", "d/F", "d/f", "readme"]);
        std::fs::remove_file(a.path("readme")).unwrap();
        std::fs::remove_file(a.path("d/f")).unwrap();
        soon(hub.converge(&[&a, &b])).await;
        assert_eq!((names(&b), a.text("d/F").as_deref()), (vec!["README".into(), "d".into(), "d/F".into()], Some("x")));
    });
}

#[test]
fn a_file_system_that_cannot_exchange_is_refused_and_said_to_be() {
    with_own_mounts("a_file_system_that_cannot_exchange_is_refused_and_said_to_be", async || {
        let hub = Hub::new();
        let a = Node::attached(&hub);
        a.write("f", "x");
        let (_dir, _mounted, mut b) = folding(&hub, false);
        b.connect(&hub);
        let problem = hub.until("it is said", |state| {
            let status = state.status.get(&b.id).filter(|status| status.state == "failed")?;
            Some(status.problems[0].clone())
        });
        let problem = problem.await;
        assert!(problem.message.contains("workspace_dir") && problem.message.contains("exchange"), "{}", problem.message);
        assert!(names(&b).is_empty());
    });
}

#[test]
fn a_disk_that_hangs_does_not_keep_the_program_from_its_end() {
    with_own_mounts("a_disk_that_hangs_does_not_keep_the_program_from_its_end", async || {
        let hub = Hub::new();
        let a = Node::attached(&hub);
        let (_dir, mounted, mut b) = folding(&hub, true);
        b.connect(&hub);
        hub.converge(&[&a, &b]).await;
        mounted.hang();
        a.write("file", "x");
        let waits = async {
            while mounted.hanging() == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        soon(waits).await;
        // Longer than what is under way is waited for.
        soon(b.mirror.close()).await;
        assert_eq!((mounted.hanging(), names(&b).len()), (1, 0), "nothing was put in its place");
        mounted.unhang();
    });
}
