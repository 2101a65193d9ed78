//! A disk that is full: nothing starts that cannot be journalled, and what runs goes on.

use std::{path::Path, process::Command};

use crate::hub::{Hub, script};

/// Set in the copy of this test that runs inside a small file system of its own.
const INSIDE: &str = "CORTEX_TEST_SMALL_DISK";

#[test]
fn on_a_full_disk_nothing_starts_and_what_runs_goes_on() {
    if let Some(disk) = std::env::var_os(INSIDE) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(on_small_disk(Path::new(&disk)));
    }
    let dir = tempfile::tempdir().unwrap();
    let inside = r#"mount -t tmpfs -o size=2m none "$0" && exec "$@""#;
    let output = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", inside])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "full_disk::on_a_full_disk_nothing_starts_and_what_runs_goes_on", "--nocapture"])
        .env(INSIDE, dir.path())
        .output()
        .expect("unshare is needed: apt-get install util-linux");
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}

async fn on_small_disk(disk: &Path) {
    // A peer whose journal has no room left in its file yet.
    let other = Hub::with_dir(tempfile::tempdir_in(disk).unwrap());
    drop(other.tasks());
    std::fs::OpenOptions::new().write(true).open(other.path().join("state/journal")).unwrap().set_len(4).unwrap();
    let hub = Hub::with_dir(tempfile::tempdir_in(disk).unwrap());
    let tasks = hub.tasks();
    assert_eq!(hub.script(&tasks, "echo x").await.finish().await.text(), "x\n");
    let mut runs = hub.script(&tasks, "echo up; while [ ! -e go ]; do sleep 0.05; done; seq 1 300000; echo end").await;
    runs.line("up").await;
    fill(disk);
    std::fs::create_dir(hub.workspace().join("go")).unwrap();
    runs.keep = false;
    let response = runs.result().await;
    assert_eq!((response.state.as_str(), response.truncated), ("succeeded", true), "its output could not be kept");
    let tasks = other.tasks();
    let refused = other.start(&tasks, &other.request(script("touch started"))).await.rejected().await;
    assert_eq!(refused.code, "journal_unavailable");
    assert!(refused.message.contains("No space left"), "{}", refused.message);
    assert!(!other.workspace().join("started").exists());
    std::fs::remove_file(disk.join("ballast")).unwrap();
    assert_eq!(other.start(&tasks, &other.request(script("echo y"))).await.finish().await.text(), "y\n");
}

fn fill(disk: &Path) {
    use std::io::Write as _;
    let mut ballast = std::fs::File::create(disk.join("ballast")).unwrap();
    while ballast.write_all(&[1; 4096]).is_ok() {}
}
