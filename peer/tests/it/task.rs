//! What a hub sees of tasks.

use std::time::{Duration, Instant};

use cortex_wire::schema::{ShellTask, TaskRequest, from_task::Frame};

use crate::hub::{Hub, argv, script};

#[tokio::test]
async fn a_command_prints_and_ends_with_its_exit_code() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    let over = hub.start(&tasks, &hub.request(argv(&["sh", "-c", "echo out; echo err >&2; exit 3"]))).await.finish().await;
    assert_eq!((over.text().as_str(), over.stderr.as_slice()), ("out\n", &b"err\n"[..]));
    assert_eq!(over.response.state, "failed");
    assert_eq!(over.response.exit, Some(cortex_wire::schema::task_response::Exit::ExitCode(3)));
    assert_eq!((over.response.stdout_bytes, over.response.stderr_bytes, over.response.truncated), (4, 4, false));
    assert_eq!(tasks.running(), 0);
    assert!(tasks.inventory().is_empty());
    assert_eq!(std::fs::read_dir(hub.path().join("state/tasks")).unwrap().count(), 0, "output goes with the task");
}
