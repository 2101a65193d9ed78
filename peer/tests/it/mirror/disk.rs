//! Disks and files that do not do what they should.

use super::*;

#[tokio::test]
async fn what_cannot_be_synced_is_said() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};
    let hub = Hub::new();
    let a = Node::attached(&hub);
    hub.converge(&[&a]).await;
    std::fs::write(a.path("").join(OsStr::from_bytes(b"bad\xff")), "x").unwrap();
    assert!(std::process::Command::new("mkfifo").arg(a.path("pipe")).status().unwrap().success());
    std::fs::hard_link(a.path("").join(OsStr::from_bytes(b"bad\xff")), a.path("linked")).unwrap();
    let codes = |state: &HubState| {
        state.status.get(&a.id).map(|status| status.problems.iter().map(|problem| problem.code.clone()).collect::<Vec<_>>())
    };
    hub.until("both problems", |state| {
        let mut codes = codes(state)?;
        codes.sort();
        (codes == ["not_utf8", "special_file"]).then_some(())
    })
    .await;
    hub.until("the hard link", |state| state.tree.get(&"linked".parse().unwrap()).map(|_| ())).await;
    assert_eq!(hub.state.lock().unwrap().tree.len(), 1);
    std::fs::remove_file(a.path("").join(OsStr::from_bytes(b"bad\xff"))).unwrap();
    std::fs::remove_file(a.path("pipe")).unwrap();
    hub.until("no problem any more", |state| codes(state).filter(Vec::is_empty)).await;
}

/// Set in the copy of a test that runs inside a small file system of its own.
const INSIDE: &str = "CORTEX_TEST_SMALL_WORKSPACE";

#[test]
fn a_full_or_read_only_disk_is_said_and_tried_again() {
    if let Some(disk) = std::env::var_os(INSIDE) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(on_small_disk(Path::new(&disk)));
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("work")).unwrap();
    let inside = r#"mount -t tmpfs -o size=8m none "$0/work" && exec "$@""#;
    let output = std::process::Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", inside])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "mirror::disk::a_full_or_read_only_disk_is_said_and_tried_again", "--nocapture"])
        .env(INSIDE, dir.path())
        .output()
        .expect("unshare is needed: apt-get install util-linux");
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}

async fn on_small_disk(dir: &Path) {
    let hub = Hub::new();
    let a = Node::attached(&hub);
    let mut b = Node::at(&hub, dir.to_owned());
    b.connect(&hub);
    a.write("small", "old");
    hub.until("the small one", |state| (state.tree.len() == 1).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    let has = |code: &'static str| {
        let id = b.id;
        move |state: &HubState| state.status.get(&id)?.problems.iter().any(|problem| problem.code == code).then_some(())
    };
    std::fs::write(dir.join("work/ballast"), vec![1; 6 << 20]).unwrap();
    a.write("large", noise(9, 5 << 20));
    hub.until("no space", has("no_space")).await;
    a.write("small", "new");
    hub.until("another file goes on", |_| (b.text("small").as_deref() == Some("new")).then_some(())).await;
    assert!(!b.path("large").exists());
    std::fs::remove_file(dir.join("work/ballast")).unwrap();
    hub.converge(&[&a, &b]).await;
    let remount = |how: &str| {
        assert!(
            std::process::Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(dir.join("work")).status().unwrap().success()
        );
    };
    remount("ro");
    a.write("small", "newer");
    hub.until("read only", has("read_only")).await;
    assert_eq!(b.text("small").as_deref(), Some("new"));
    remount("rw");
    hub.converge(&[&a, &b]).await;
    assert_eq!(b.text("small").as_deref(), Some("newer"));
}

#[tokio::test]
async fn a_read_only_file_is_replaced_and_stays_read_only() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    a.write("f", "one");
    hub.until("the file", |state| (state.tree.len() == 1).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    std::fs::set_permissions(b.path("f"), std::fs::Permissions::from_mode(0o444)).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    a.write("f", "two");
    hub.until("the edit", |_| (b.text("f").as_deref() == Some("two")).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    assert_eq!(std::fs::metadata(b.path("f")).unwrap().permissions().mode() & 0o777, 0o444);
}
