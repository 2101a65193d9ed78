//! Event streams: everything once, in order, whatever is cut where.

use cortex_wire::id::SessionId;
use data_encoding::BASE64;
use std::collections::BTreeMap;

use super::*;

/// The bytes of each task's streams, put together from events; fails on a gap or a repetition.
#[derive(Default)]
struct Collected(BTreeMap<(String, String), Vec<u8>>);

impl Collected {
    fn take(&mut self, event: &Event) {
        let text = |key: &str| event.data[key].as_str().unwrap_or_else(|| panic!("{key} in {event:?}")).to_owned();
        let bytes = self.0.entry((text("task"), text("stream"))).or_default();
        assert_eq!(event.data["offset"].as_u64().unwrap(), bytes.len() as u64, "output goes on where it was: {event:?}");
        match event.data.get("base64") {
            Some(_) => bytes.extend(BASE64.decode(text("base64").as_bytes()).unwrap()),
            None => bytes.extend(text("data").bytes()),
        }
    }

    fn of(&self, task: TaskId, stream: &str) -> &[u8] {
        self.0.get(&(task.to_string(), stream.to_owned())).map_or(&[], Vec::as_slice)
    }
}

/// Bytes that are text, cut text, and no text at all.
fn awkward(seed: u8, len: usize) -> Vec<u8> {
    let sample = ["plain\n".as_bytes(), "grüße €uro 😀\n".as_bytes(), &[0xff, 0, seed, 0xe2], "\u{1b}[31m<b>&\r\n".as_bytes()].concat();
    sample.iter().copied().cycle().skip(usize::from(seed)).take(len).collect()
}

#[tokio::test]
async fn a_task_s_stream_tells_its_states_and_output_and_ends() {
    let lab = Lab::new().await;
    let node = lab.node(&lab.ada, 1).await;
    let session = lab.session(&lab.ada, &node).await;
    let task = lab.task(&lab.ada, &session, &node).await;
    let mut events = lab.events(&lab.ada, &format!("/api/tasks/{task}/stream"), None).await;
    let first = events.next().await.unwrap();
    assert_eq!((first.name.as_str(), &first.data["state"]), ("task", &json!("running")));
    lab.print(task, Stream::Stdout, 0, b"one\n").await;
    let output = events.next().await.unwrap();
    assert_eq!(output.name, "output");
    assert_eq!(output.data, json!({"task": task, "stream": "stdout", "offset": 0, "data": "one\n"}));
    assert_eq!(output.id, "4.0.running");
    lab.print(task, Stream::Stderr, 0, b"\xff").await;
    assert_eq!(events.next().await.unwrap().data, json!({"task": task, "stream": "stderr", "offset": 0, "base64": "/w=="}));
    lab.print(task, Stream::Stdout, 4, "€".as_bytes().split_at(1).0).await;
    events.expect_silence().await;
    lab.print(task, Stream::Stdout, 5, "€".as_bytes().split_at(1).1).await;
    assert_eq!(events.next().await.unwrap().data["data"], "€");
    lab.finish(task, &node, 3).await;
    let last = events.next().await.unwrap();
    assert_eq!((last.name.as_str(), &last.data["state"], &last.data["exit_code"]), ("task", &json!("failed"), &json!(3)));
    assert_eq!(events.next().await, None);
    // Whoever has seen the end is told to stay away.
    let bearer = format!("Bearer {}", lab.ada);
    let again =
        lab.send("GET", &format!("/api/tasks/{task}/stream"), &[("authorization", &bearer), ("last-event-id", &last.id)], None).await;
    assert_eq!(again.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_stream_cut_after_every_event_misses_and_repeats_nothing() {
    let lab = Lab::new().await;
    let node = lab.node(&lab.ada, 1).await;
    let session = lab.session(&lab.ada, &node).await;
    let task = lab.task(&lab.ada, &session, &node).await;
    let (stdout, stderr) = (awkward(1, 700), awkward(2, 300));
    for (index, piece) in stdout.chunks(97).enumerate() {
        lab.print(task, Stream::Stdout, index as u64 * 97, piece).await;
    }
    for (index, piece) in stderr.chunks(61).enumerate() {
        lab.print(task, Stream::Stderr, index as u64 * 61, piece).await;
    }
    lab.finish(task, &node, 0).await;
    let path = format!("/api/tasks/{task}/stream");
    let (mut collected, mut last, mut states) = (Collected::default(), None::<String>, Vec::new());
    loop {
        let event = lab.events(&lab.ada, &path, last.as_deref()).await.next().await.unwrap();
        match event.name.as_str() {
            "output" => collected.take(&event),
            _ => states.push(event.data["state"].clone()),
        }
        last = Some(event.id);
        if !states.is_empty() {
            break;
        }
    }
    assert_eq!(states, ["succeeded"], "the final state is the last thing told");
    assert_eq!(collected.of(task, "stdout"), stdout);
    assert_eq!(collected.of(task, "stderr"), stderr);
}

#[tokio::test]
async fn a_session_s_stream_resumes_exactly_with_several_tasks_and_a_restart_of_the_hub() {
    let mut lab = Lab::new().await;
    let node = lab.node(&lab.ada, 1).await;
    let session = lab.session(&lab.ada, &node).await;
    let path = format!("/api/sessions/{session}/events?output=true");
    let mut tasks = Vec::new();
    let (mut collected, mut seqs, mut last, mut ended) = (Collected::default(), Vec::new(), None::<String>, Vec::new());
    let mut finals = 0;
    for round in 0..12u8 {
        if round < 3 {
            tasks.push(lab.task(&lab.ada, &session, &node).await);
        }
        for (index, task) in tasks.iter().enumerate() {
            let offset = lab.hub.outputs.lengths(*task).await.map(|mark| mark.stdout).unwrap_or(0);
            if !ended.contains(task) {
                lab.print(*task, Stream::Stdout, offset, &awkward(round + index as u8, 41)).await;
            }
        }
        if round == 5 {
            lab.hub.outputs.sync(tasks[0]).await.unwrap();
            lab.hub.outputs.sync(tasks[1]).await.unwrap();
            lab.hub.outputs.sync(tasks[2]).await.unwrap();
            lab = lab.restarted().await;
        }
        if round >= 9 {
            let task = tasks[usize::from(round) - 9];
            lab.finish(task, &node, 0).await;
            ended.push(task);
        }
        // Read a few events, and cut the stream; in the last round, read to the end.
        let mut events = lab.events(&lab.ada, &path, last.as_deref()).await;
        let mut wanted = 2 + usize::from(round) % 3;
        while if round == 11 { finals < 3 } else { wanted > 0 } {
            wanted = wanted.saturating_sub(1);
            let event = if round == 11 {
                events.next().await.unwrap()
            } else {
                let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(300), events.read()).await else { break };
                event
            };
            if event.name == "output" {
                collected.take(&event);
            } else {
                seqs.push(event.data["seq"].as_u64().unwrap());
                let id = event.data["data"]["id"].as_str().unwrap_or_default();
                if event.data["data"]["state"] == "succeeded" {
                    finals += 1;
                    let task: TaskId = id.parse().unwrap();
                    let total = event.data["data"]["stdout_bytes"].as_u64().unwrap();
                    assert_eq!(collected.of(task, "stdout").len() as u64, total, "all output comes before the final state");
                }
            }
            last = Some(event.id);
        }
    }
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "every row once, in order");
    for (index, task) in tasks.iter().enumerate() {
        let rounds = (index as u8)..(9 + index as u8 + 1);
        let expected: Vec<u8> = rounds.flat_map(|round| awkward(round + index as u8, 41)).collect();
        assert_eq!(collected.of(*task, "stdout"), expected, "task {index}");
    }
}

#[tokio::test]
async fn output_that_was_seen_and_then_lost_with_a_crash_is_not_told_again() {
    let lab = Lab::new().await;
    let node = lab.node(&lab.ada, 1).await;
    let session = lab.session(&lab.ada, &node).await;
    let task = lab.task(&lab.ada, &session, &node).await;
    lab.print(task, Stream::Stdout, 0, b"durable ").await;
    // The reader saw up to 12; the hub came back with 8, and the node sends the rest again.
    let mut events = lab.events(&lab.ada, &format!("/api/tasks/{task}/stream"), Some("12.0.running")).await;
    events.expect_silence().await;
    lab.print(task, Stream::Stdout, 8, b"lost and new").await;
    let event = events.next().await.unwrap();
    assert_eq!((&event.data["offset"], &event.data["data"]), (&json!(12), &json!(" and new")));
}

#[tokio::test]
async fn a_live_stream_begins_now() {
    let lab = Lab::new().await;
    let node = lab.node(&lab.ada, 1).await;
    let session = lab.session(&lab.ada, &node).await;
    let task = lab.task(&lab.ada, &session, &node).await;
    lab.print(task, Stream::Stdout, 0, b"old").await;
    let mut events = lab.events(&lab.ada, &format!("/api/sessions/{session}/events?output=true&live=true"), None).await;
    events.expect_silence().await;
    lab.print(task, Stream::Stdout, 3, b"new").await;
    assert_eq!(events.next().await.unwrap().data["data"], "new");
}

#[tokio::test]
async fn a_chatty_task_does_not_hold_the_others_up() {
    let lab = Lab::new().await;
    let node = lab.node(&lab.ada, 1).await;
    let session = lab.session(&lab.ada, &node).await;
    let chatty = lab.task(&lab.ada, &session, &node).await;
    let quiet = lab.task(&lab.ada, &session, &node).await;
    lab.print(chatty, Stream::Stdout, 0, &vec![b'x'; 3_000_000]).await;
    lab.print(quiet, Stream::Stdout, 0, b"here").await;
    let mut events = lab.events(&lab.ada, &format!("/api/sessions/{session}/events?output=true"), None).await;
    let mut chatty_events = 0;
    loop {
        let event = events.next().await.unwrap();
        if event.data["task"] == quiet.to_string() {
            break;
        }
        chatty_events += usize::from(event.name == "output");
    }
    assert!(chatty_events <= 2, "{chatty_events} events of the other task came first");
}

#[tokio::test]
async fn the_hub_s_feed_tells_only_those_it_concerns() {
    let lab = Lab::new().await;
    let eve = lab.user("eve", Role::Member).await;
    let mut hers = lab.events(&lab.ada, "/api/events", None).await;
    let mut eves = lab.events(&eve, "/api/events", None).await;
    let node = lab.node(&lab.ada, 1).await;
    loop {
        let event = hers.next().await.unwrap();
        if event.name == "node" && event.data.to_string().contains(&node.id.to_string()) {
            break;
        }
    }
    eves.expect_silence().await;
}

#[tokio::test]
async fn a_stream_ends_when_its_reader_is_put_out_of_the_session() {
    let lab = Lab::new().await;
    let bob = lab.user("bob", Role::Member).await;
    let node = lab.node(&lab.ada, 1).await;
    let session = lab.session(&lab.ada, &node).await;
    let member = format!("/api/sessions/{session}/members/bob");
    let bearer = format!("Bearer {}", lab.ada);
    lab.send("PUT", &member, &[("authorization", &bearer)], Some(json!({"role": "viewer"}))).await.expect(StatusCode::OK);
    let mut events = lab.events(&bob, &format!("/api/sessions/{session}/events?live=true"), None).await;
    lab.send("DELETE", &member, &[("authorization", &bearer)], None).await.expect(StatusCode::NO_CONTENT);
    lab.post(&lab.ada, &format!("/api/sessions/{session}/messages"), json!({"text": "among ourselves"})).await.expect(StatusCode::CREATED);
    while let Some(event) = events.next().await {
        assert!(!event.data.to_string().contains("among ourselves"));
    }
    lab.get(&bob, &format!("/api/sessions/{session}/events")).await.problem(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn streams_end_when_the_hub_drains() {
    let lab = Lab::new().await;
    let mut events = lab.events(&lab.ada, "/api/events", None).await;
    lab.api.lifecycle.drain();
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn a_made_up_position_is_refused() {
    let lab = Lab::new().await;
    let session = lab.post(&lab.ada, "/api/sessions", json!({})).await.expect(StatusCode::CREATED)["id"].as_str().unwrap().to_owned();
    let _: SessionId = session.parse().unwrap();
    for path in ["/api/events".to_owned(), format!("/api/sessions/{session}/events")] {
        let reply = lab.get(&lab.ada, &format!("{path}?last_event_id=nonsense")).await;
        assert_eq!(reply.problem(StatusCode::BAD_REQUEST), "malformed_request");
    }
}
