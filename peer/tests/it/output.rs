//! Output and input: complete, in order, once, with bounded memory, whatever becomes of the stream.

use std::time::{Duration, Instant};

use cortex_peer::task::Bounds;
use cortex_wire::{
    limits,
    schema::{ShellTask, from_task::Frame},
};

use crate::hub::{Hub, Talk, argv, script};

fn numbers(count: u32) -> String {
    (1..=count).map(|n| format!("{n}\n")).collect()
}

#[tokio::test]
async fn both_streams_arrive_whole_and_in_order() {
    let hub = Hub::new();
    let over = hub.script(&hub.tasks(), "seq 1 100000 & seq 1 50000 >&2; wait").await.finish().await;
    assert!(over.stdout == numbers(100_000).into_bytes());
    assert!(over.stderr == numbers(50_000).into_bytes());
}

#[tokio::test]
async fn what_a_program_prints_last_arrives_however_it_ends() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    let last = numbers(3_000);
    for end in ["exit 0", "kill -9 $$", "exec true", "setsid sleep 0.05 & exit 3", "exec kill -TERM $$"] {
        for _ in 0..8 {
            let over = hub.script(&tasks, &format!("seq 1 3000; printf last >&2; {end}")).await.finish().await;
            assert_eq!((over.text().len(), over.stderr.as_slice()), (last.len(), &b"last"[..]), "{end}");
            assert!(over.text() == last && !over.response.truncated, "{end}");
            assert_eq!(over.response.stdout_bytes, last.len() as u64);
        }
    }
}

#[tokio::test]
async fn two_hundred_megabytes_pass_in_bounded_memory() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    hub.script(&tasks, "true").await.finish().await;
    let before = peak_memory_kib();
    let mut talk = hub.start(&tasks, &hub.request(argv(&["head", "-c", "200000000", "/dev/zero"]))).await;
    talk.keep = false;
    let response = talk.result().await;
    assert_eq!((response.stdout_bytes, talk.next_stdout, talk.gaps, response.truncated), (200_000_000, 200_000_000, 0, false));
    let grown = peak_memory_kib() - before;
    assert!(grown < 24 * 1024, "{grown} KiB");
}

fn peak_memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn a_program_waits_for_a_hub_that_is_slow_to_store() {
    let mut hub = Hub::new();
    hub.bounds.window_bytes = 100_000;
    let tasks = hub.tasks();
    let mut talk = hub.script(&tasks, "yes | head -c 3000000; echo end >&2").await;
    talk.until_stdout(100_000).await;
    // Nothing is acknowledged: no more comes, and the program stands still.
    let more = tokio::time::timeout(Duration::from_millis(500), talk.next()).await;
    assert!(more.is_err(), "{:?}", more.unwrap().map(|frame| std::mem::discriminant(&frame)));
    let spool = std::fs::read_dir(hub.path().join("state/tasks")).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).max();
    assert!(spool.unwrap() < 100_000 + 2 * limits::OUTPUT_CHUNK_BYTES as u64, "{spool:?}");
    let mut response = None;
    while response.is_none() {
        talk.acknowledge().await;
        if let Some(Frame::Result(signed)) = talk.next().await {
            response = Some(signed);
        }
    }
    assert_eq!((talk.next_stdout, talk.gaps, talk.stderr.as_slice()), (3_000_000, 0, &b"end\n"[..]));
}

#[tokio::test]
async fn a_program_nobody_reads_runs_on_and_its_head_and_tail_are_kept() {
    let mut hub = Hub::new();
    hub.bounds = Bounds { head_bytes: 50_000, tail_bytes: 60_000, window_bytes: 20_000 };
    let tasks = hub.tasks();
    let request = hub.request(script("seq 1 200000; echo end >&2"));
    let mut talk = hub.start(&tasks, &request).await;
    talk.until_stdout(1).await;
    let kept = talk.stdout.clone();
    hang_up(talk).await;
    wait_until(|| tasks.running() == 0).await;
    let mut again = hub.resume(&tasks, &request.task_id, kept.len() as u64, 0).await;
    let mut response = None;
    while response.is_none() {
        again.acknowledge().await;
        if let Some(Frame::Result(signed)) = again.next().await {
            response =
                Some(hub.node.public().open::<cortex_wire::schema::TaskResponse>(cortex_wire::key::Domain::Result, &signed).unwrap());
        }
    }
    let all = numbers(200_000).into_bytes();
    let response = response.unwrap();
    assert_eq!((response.state.as_str(), response.truncated, response.stdout_bytes), ("succeeded", true, all.len() as u64));
    assert_eq!((again.gaps, again.next_stdout, again.stderr.as_slice()), (1, all.len() as u64, &b"end\n"[..]));
    let seen = [kept, again.stdout].concat();
    let tail = 60_000;
    assert!(all.starts_with(&seen[..seen.len() - tail]) && seen.len() == 50_000 + tail);
    assert!(seen.ends_with(&all[all.len() - tail..]));
}

#[tokio::test]
async fn a_stream_that_dies_costs_no_byte_and_repeats_none() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    let request = hub.request(script("for i in 1 2 3 4 5 6 7 8 9 10; do seq 1 20000; sleep 0.05; done; echo end >&2"));
    let mut talk = hub.start(&tasks, &request).await;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    for _ in 0..6 {
        talk.until_stdout(talk.next_stdout + 70_000).await;
        stdout.extend_from_slice(&talk.stdout);
        stderr.extend_from_slice(&talk.stderr);
        hang_up(talk).await;
        talk = hub.resume(&tasks, &request.task_id, stdout.len() as u64, stderr.len() as u64).await;
        let Some(Frame::InputAck(ack)) = talk.next().await else { panic!("the input's offset comes first") };
        assert_eq!(ack.offset, 0);
    }
    let over = talk.finish().await;
    stdout.extend_from_slice(&over.stdout);
    stderr.extend_from_slice(&over.stderr);
    assert!(stdout == numbers(20_000).repeat(10).into_bytes());
    assert_eq!((stderr.as_slice(), over.response.truncated), (&b"end\n"[..], false));
}

#[tokio::test]
async fn the_newest_stream_wins() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    let request = hub.request(script("echo up; sleep 0.5; echo done"));
    let mut old = hub.start(&tasks, &request).await;
    old.line("up").await;
    let new = hub.resume(&tasks, &request.task_id, 0, 0).await;
    assert!(old.next().await.is_none(), "the old stream ends");
    old.serving.await.unwrap().unwrap();
    assert_eq!(new.finish().await.text(), "up\ndone\n");
}

#[tokio::test]
async fn a_task_that_is_not_read_holds_up_no_other() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    let mut floods = Vec::new();
    for _ in 0..4 {
        floods.push(hub.script(&tasks, "yes").await);
    }
    for _ in 0..10 {
        let since = Instant::now();
        hub.script(&tasks, "echo x").await.finish().await;
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    }
    for mut flood in floods {
        flood.keep = false;
        flood.cancel("enough").await;
        assert_eq!(flood.finish().await.response.state, "cancelled");
    }
}

#[tokio::test]
async fn input_arrives_by_offset_and_ends_when_it_ends() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    let mut talk = hub.start(&tasks, &hub.request(ShellTask { stdin: true, ..script("cat; echo end") })).await;
    talk.input(0, b"one\n", false).await;
    talk.input(0, b"one\n", false).await;
    talk.until_stdout(4).await;
    talk.input(2, b"e\ntwo\n", false).await;
    talk.input(99, b"lost", true).await;
    talk.until_stdout(8).await;
    talk.input(8, b"three\n", true).await;
    let mut acknowledged = 0;
    while acknowledged < 14 {
        if let Some(Frame::InputAck(ack)) = talk.next().await {
            acknowledged = ack.offset;
        }
    }
    let over = talk.finish().await;
    assert_eq!((over.text().as_str(), over.response.state.as_str()), ("one\ntwo\nthree\nend\n", "succeeded"));
}

#[tokio::test]
async fn input_survives_its_stream() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    let request = hub.request(ShellTask { stdin: true, ..script("cat") });
    let mut talk = hub.start(&tasks, &request).await;
    talk.input(0, b"one\n", false).await;
    talk.until_stdout(4).await;
    hang_up(talk).await;
    let mut again = hub.resume(&tasks, &request.task_id, 4, 0).await;
    let Some(Frame::InputAck(ack)) = again.next().await else { panic!("the input's offset comes first") };
    assert_eq!(ack.offset, 4);
    again.input(4, b"two\n", true).await;
    assert_eq!(again.finish().await.text(), "two\n");
}

#[tokio::test]
async fn a_program_without_input_meets_its_end_and_one_with_input_waits_for_it() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    assert_eq!(hub.start(&tasks, &hub.request(argv(&["cat"]))).await.finish().await.response.state, "succeeded");
    let mut talk = hub.start(&tasks, &hub.request(ShellTask { stdin: true, ..argv(&["cat"]) })).await;
    talk.input(0, b"x", false).await;
    talk.until_stdout(1).await;
    assert!(tokio::time::timeout(Duration::from_millis(300), talk.next()).await.is_err(), "it reads for ever");
    talk.cancel("enough").await;
    assert_eq!(talk.finish().await.response.state, "cancelled");
}

#[tokio::test]
async fn a_program_that_does_not_read_its_input_ends_all_the_same() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    let mut talk = hub.start(&tasks, &hub.request(ShellTask { stdin: true, ..script("echo up; read x; echo got $x") })).await;
    talk.line("up").await;
    talk.input(0, &[&b"first\n"[..], &vec![b'.'; 500_000]].concat(), true).await;
    let over = talk.finish().await;
    assert_eq!((over.text().as_str(), over.response.state.as_str()), ("up\ngot first\n", "succeeded"));
}

/// The stream dies as a lost connection makes it die.
async fn hang_up(talk: Talk) {
    talk.serving.abort();
    let _ = talk.serving.await;
}

async fn wait_until(mut condition: impl FnMut() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < crate::hub::PATIENCE, "it did not happen in time");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
