//! A task's output as bytes.

use super::*;

async fn running(lab: &Lab) -> (PlayedNode, TaskId) {
    let node = lab.node(&lab.ada, 1).await;
    let session = lab.session(&lab.ada, &node).await;
    let task = lab.task(&lab.ada, &session, &node).await;
    (node, task)
}

#[tokio::test]
async fn output_is_served_from_any_offset_as_an_attachment() {
    let lab = Lab::new().await;
    let (node, task) = running(&lab).await;
    lab.print(task, Stream::Stdout, 0, b"<script>0123456789").await;
    let path = format!("/api/tasks/{task}/output");
    let reply = lab.get(&lab.ada, &path).await;
    assert_eq!(&reply.body[..], b"<script>0123456789");
    assert_eq!(reply.headers["content-type"], "application/octet-stream");
    assert_eq!(reply.headers["x-content-type-options"], "nosniff");
    assert_eq!(reply.headers["content-disposition"], format!("attachment; filename=\"{task}.stdout\""));
    assert_eq!(
        (&reply.headers["cortex-next-offset"], &reply.headers["cortex-complete"]),
        (&"18".parse().unwrap(), &"false".parse().unwrap())
    );
    lab.finish(task, &node, 0).await;
    let reply = lab.get(&lab.ada, &format!("{path}?offset=8")).await;
    assert_eq!(&reply.body[..], b"0123456789");
    assert_eq!(reply.headers["cortex-complete"], "true");
    assert_eq!(&lab.get(&lab.ada, &format!("{path}?stream=stderr")).await.body[..], b"");
    assert_eq!(&lab.get(&lab.ada, &format!("{path}?offset=18")).await.body[..], b"");
    let beyond = lab.get(&lab.ada, &format!("{path}?offset=19")).await;
    assert_eq!(beyond.problem(StatusCode::RANGE_NOT_SATISFIABLE), "beyond_output");
    assert_eq!(lab.get(&lab.ada, &format!("{path}?stream=stdin")).await.problem(StatusCode::BAD_REQUEST), "malformed_request");
}

#[tokio::test]
async fn followed_output_arrives_as_it_appears_and_ends_with_the_task() {
    let lab = Lab::new().await;
    let (node, task) = running(&lab).await;
    let bearer = format!("Bearer {}", lab.ada);
    let path = format!("/api/tasks/{task}/output?follow=true");
    let response = lab.respond("GET", &path, &[("authorization", &bearer)], None).await;
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body().into_data_stream();
    lab.print(task, Stream::Stdout, 0, b"one").await;
    assert_eq!(&body.next().await.unwrap().unwrap()[..], b"one");
    lab.print(task, Stream::Stdout, 3, b"two").await;
    assert_eq!(&body.next().await.unwrap().unwrap()[..], b"two");
    lab.finish(task, &node, 0).await;
    assert!(body.next().await.is_none());
}

#[tokio::test]
async fn a_gap_is_an_error_and_says_where_output_goes_on() {
    let lab = Lab::new().await;
    let (_, task) = running(&lab).await;
    lab.print(task, Stream::Stdout, 0, b"before").await;
    lab.print(task, Stream::Stdout, 100, b"after").await;
    let path = format!("/api/tasks/{task}/output");
    let bearer = format!("Bearer {}", lab.ada);
    let response = lab.respond("GET", &path, &[("authorization", &bearer)], None).await;
    let mut body = response.into_body().into_data_stream();
    assert_eq!(&body.next().await.unwrap().unwrap()[..], b"before");
    assert!(body.next().await.unwrap().is_err(), "it breaks off rather than go on with other bytes");
    let reply = lab.get(&lab.ada, &format!("{path}?offset=6")).await;
    assert_eq!(reply.problem(StatusCode::RANGE_NOT_SATISFIABLE), "output_truncated");
    assert_eq!(reply.json()["next_offset"], 100);
    assert_eq!(&lab.get(&lab.ada, &format!("{path}?offset=100")).await.body[..], b"after");
    let mut events = lab.events(&lab.ada, &format!("/api/tasks/{task}/stream"), Some("6.0.running")).await;
    let gap = events.next().await.unwrap();
    assert_eq!(gap.name, "output_gap");
    assert_eq!(gap.data, json!({"task": task, "stream": "stdout", "offset": 6, "next_offset": 100}));
    assert_eq!(events.next().await.unwrap().data["data"], "after");
}

#[tokio::test]
async fn much_output_is_whole() {
    let lab = Lab::new().await;
    let (node, task) = running(&lab).await;
    let whole: Vec<u8> = (0..5_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (index, piece) in whole.chunks(128 * 1024).enumerate() {
        lab.print(task, Stream::Stdout, index as u64 * 128 * 1024, piece).await;
    }
    lab.finish(task, &node, 0).await;
    let reply = lab.get(&lab.ada, &format!("/api/tasks/{task}/output?follow=true")).await;
    assert!(reply.body == whole, "{} bytes came", reply.body.len());
}
