//! How tasks end: by themselves, because somebody asks, because they take too long; and always with everything they started.

use std::{
    fs,
    time::{Duration, Instant},
};

use cortex_wire::schema::{TaskLimits, task_response::Exit};

use crate::hub::{Hub, PATIENCE};

/// Whether a process is there and not a zombie.
fn lives(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.trim_start().starts_with(['Z', 'X']))
}

fn zombies() -> usize {
    let own = std::process::id().to_string();
    let stats = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    stats.filter(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(&format!(" Z {own} ")))).count()
}

#[tokio::test]
async fn cancel_ends_a_tree_that_ignores_signals_and_leaves_its_session() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    let stubborn = r#"
        trap '' INT TERM HUP
        echo main $$
        sh -c 'trap "" INT TERM; echo child $$; while :; do sleep 0.2; done' &
        setsid sh -c 'trap "" INT TERM; echo session $$; while :; do sleep 0.2; done' &
        (setsid sh -c '(trap "" INT TERM; exec sh -c "echo forked \$\$; while :; do sleep 0.2; done") &') &
        env -i setsid sh -c 'trap "" INT TERM; echo clean $$; while :; do sleep 0.2; done' &
        setsid sh -c 'trap "" INT TERM; echo quiet $$; exec >/dev/null 2>&1; cd /; while :; do sleep 0.2; done' &
        while :; do sleep 0.2; done
    "#;
    let mut other = hub.script(&tasks, "echo other $$; sleep 60").await;
    let other_pid = other.line("other ").await;
    let mut talk = hub.script(&tasks, stubborn).await;
    let mut pids = Vec::new();
    for name in ["main", "child", "session", "forked", "clean", "quiet"] {
        pids.push(talk.line(&format!("{name} ")).await);
    }
    assert!(pids.iter().all(|pid| lives(pid)));
    let since = Instant::now();
    talk.cancel("enough").await;
    talk.cancel("more than enough").await;
    let over = talk.finish().await;
    let left: Vec<_> = pids.iter().filter(|pid| lives(pid)).collect();
    assert!(left.is_empty(), "{left:?} of {pids:?}");
    assert_eq!((over.response.state.as_str(), over.response.reason.as_str()), ("cancelled", "enough"));
    assert_eq!(over.response.exit, Some(Exit::Signal(9)));
    let took = since.elapsed();
    assert!(took >= Duration::from_secs(10) && took < Duration::from_secs(20), "{took:?}");
    assert!(lives(&other_pid), "another task is left alone");
    other.cancel("").await;
    other.finish().await;
    assert!(!lives(&other_pid));
}

#[tokio::test]
async fn cancel_is_quick_with_a_program_that_listens() {
    let hub = Hub::new();
    let mut talk = hub.script(&hub.tasks(), "trap 'echo bye; exit 5' INT; echo up; while :; do sleep 0.1; done").await;
    talk.line("up").await;
    let since = Instant::now();
    talk.cancel("enough").await;
    let over = talk.finish().await;
    assert!(over.text().ends_with("bye\n") && since.elapsed() < Duration::from_secs(4), "{:?}", since.elapsed());
    assert_eq!((over.response.state.as_str(), over.response.exit), ("cancelled", Some(Exit::ExitCode(5))));
}

#[tokio::test]
async fn a_program_that_hops_from_process_to_process_is_caught() {
    let hub = Hub::new();
    let mut talk = hub
        .script(
            &hub.tasks(),
            r#"export H='sleep 0.02; setsid sh -c "$H" &'; trap '' INT TERM; echo up; sh -c "$H"; sh -c "$H"; sh -c "$H"; wait; sleep 60"#,
        )
        .await;
    talk.line("up").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    talk.cancel("enough").await;
    assert_eq!(talk.finish().await.response.state, "cancelled");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let hopping = fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        fs::read(entry.path().join("environ")).is_ok_and(|environ| {
            environ.split(|byte| *byte == 0).any(|variable| variable == format!("CORTEX_SESSION={}", hub.session).as_bytes())
        })
    });
    assert_eq!(hopping.count(), 0);
}

#[tokio::test]
async fn a_program_that_closes_its_output_is_waited_for() {
    let hub = Hub::new();
    let since = Instant::now();
    let over = hub.script(&hub.tasks(), "echo x; exec >&- 2>&-; sleep 1; exit 7").await.finish().await;
    assert_eq!((over.text().as_str(), over.response.exit), ("x\n", Some(Exit::ExitCode(7))));
    assert!(since.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn what_holds_the_output_after_the_program_is_ended_and_named() {
    let hub = Hub::new();
    let mut talk =
        hub.script(&hub.tasks(), "setsid sh -c 'echo holder $$; while :; do echo on; sleep 0.2; done' & echo main; exit 0").await;
    let pid = talk.line("holder ").await;
    let since = Instant::now();
    let over = talk.finish().await;
    assert!(over.response.descendants_held_pipe && !lives(&pid));
    assert_eq!((over.response.state.as_str(), over.response.exit), ("succeeded", Some(Exit::ExitCode(0))));
    assert!(over.text().contains("on\non\n"), "it had two seconds");
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
}

#[tokio::test]
async fn what_runs_on_in_silence_is_ended_too() {
    let hub = Hub::new();
    let mut talk =
        hub.script(&hub.tasks(), "setsid sh -c 'echo silent $$; exec >/dev/null 2>&1; while :; do sleep 0.2; done' & sleep 0.3").await;
    let pid = talk.line("silent ").await;
    let over = talk.finish().await;
    assert!(!over.response.descendants_held_pipe && !lives(&pid));
    assert_eq!(over.response.state, "succeeded");
}

#[tokio::test]
async fn what_ends_by_itself_soon_after_is_left_to_do_so() {
    let hub = Hub::new();
    let since = Instant::now();
    let over = hub.script(&hub.tasks(), "(sleep 0.5; echo late) & echo main").await.finish().await;
    assert_eq!((over.text().as_str(), over.response.descendants_held_pipe), ("main\nlate\n", false));
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_task_that_runs_too_long_is_timed_out() {
    let hub = Hub::new();
    let limits = TaskLimits { run_timeout_ms: 500, idle_timeout_ms: 0 };
    let since = Instant::now();
    let over = hub.limited(&hub.tasks(), "while :; do echo x; sleep 0.1; done", limits).await.finish().await;
    assert_eq!((over.response.state.as_str(), over.response.reason.as_str()), ("timed_out", "ran for longer than 500ms"));
    assert!(since.elapsed() >= Duration::from_millis(500) && since.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn the_nodes_own_time_limit_holds_too() {
    let mut hub = Hub::new();
    hub.ceiling.run_timeout_ms = 300;
    let limits = TaskLimits { run_timeout_ms: 60_000, idle_timeout_ms: 0 };
    assert_eq!(hub.limited(&hub.tasks(), "sleep 30", limits).await.finish().await.response.state, "timed_out");
}

#[tokio::test]
async fn a_task_that_prints_nothing_is_timed_out_and_one_that_prints_is_not() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    let limits = TaskLimits { run_timeout_ms: 0, idle_timeout_ms: 1_000 };
    let busy = hub.limited(&tasks, "for i in 1 2 3 4 5 6 7 8; do echo $i >&2; sleep 0.3; done", limits).await;
    let quiet = hub.limited(&tasks, "echo x; sleep 30", limits).await;
    let over = quiet.finish().await;
    assert_eq!((over.response.state.as_str(), over.response.reason.as_str()), ("timed_out", "printed nothing for 1s"));
    assert_eq!(busy.finish().await.response.state, "succeeded");
}

#[tokio::test]
async fn a_task_that_waits_for_the_hub_is_not_idle() {
    let mut hub = Hub::new();
    hub.bounds.window_bytes = 10_000;
    let limits = TaskLimits { run_timeout_ms: 0, idle_timeout_ms: 500 };
    let mut talk = hub.limited(&hub.tasks(), "yes | head -c 200000", limits).await;
    talk.until_stdout(10_000).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    while talk.next_stdout < 200_000 {
        talk.acknowledge().await;
        talk.next().await.unwrap();
    }
    assert_eq!(talk.finish().await.response.state, "succeeded");
}

#[tokio::test]
async fn no_zombie_is_left_of_orphans() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    for _ in 0..5 {
        hub.script(&tasks, "for i in 1 2 3 4 5; do (setsid sh -c 'sleep 0.05 & exit' &) >/dev/null 2>&1; done; sleep 0.3")
            .await
            .finish()
            .await;
    }
    let since = Instant::now();
    while zombies() > 0 {
        assert!(since.elapsed() < PATIENCE, "{} zombies", zombies());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_stopped_process_ends_with_the_others() {
    let hub = Hub::new();
    let since = Instant::now();
    let mut talk = hub.script(&hub.tasks(), "sh -c 'echo stopped $$; kill -STOP $$' & wait").await;
    let pid = talk.line("stopped ").await;
    talk.cancel("enough").await;
    assert_eq!(talk.finish().await.response.state, "cancelled");
    // At TERM at the latest: a shell lets what is in its background ignore INT.
    assert!(!lives(&pid) && since.elapsed() < Duration::from_secs(9), "{:?}", since.elapsed());
}
