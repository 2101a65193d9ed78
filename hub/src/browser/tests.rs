use bytes::Bytes;
use serde_json::json;

use super::*;
use crate::testing::{Site, node_id};

/// Events of one start of a browser, numbered from `first` on.
fn told(session: SessionId, browser: &str, first: u64, events: &[Value]) -> BrowserEvents {
    let events = events.iter().map(|event| Bytes::from(event.to_string())).collect();
    BrowserEvents { session_id: session.to_string(), browser: browser.into(), first, events }
}

fn said(text: &str) -> Value {
    json!({ "kind": "console", "text": text })
}

async fn texts(site: &Site, actor: &Actor, session: SessionId) -> Vec<String> {
    let events = site.hub.browser_events(actor, session, 0, 999, BrowserFilter::default()).await.unwrap();
    assert!(events.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    events.iter().map(|event| event.event["text"].as_str().unwrap_or("?").to_owned()).collect()
}

#[tokio::test]
async fn what_comes_twice_is_stored_once_and_outlives_the_hub() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (session, node) = site.workplace(&ann, 1).await;
    let news = site.hub.follow_browser(session);
    let batch = told(session, "a", 1, &[said("one"), said("two")]);
    assert_eq!(site.hub.store_browser_events(node, &batch).await.unwrap().number, 2);
    assert!(news.has_changed().unwrap());
    assert_eq!(site.hub.store_browser_events(node, &batch).await.unwrap().number, 2, "it is acknowledged again");
    site.hub.store_browser_events(node, &told(session, "a", 2, &[said("two"), said("three")])).await.unwrap();
    // A gap is what a node dropped; another start of the browser counts from 1 again.
    site.hub.store_browser_events(node, &told(session, "a", 9, &[said("nine")])).await.unwrap();
    let site = site.restart().await;
    site.hub.store_browser_events(node, &told(session, "a", 9, &[said("nine")])).await.unwrap();
    site.hub.store_browser_events(node, &told(session, "b", 1, &[said("another")])).await.unwrap();
    assert_eq!(texts(&site, &ann, session).await, ["one", "two", "three", "nine", "another"]);
    let one = site.hub.browser_events(&ann, session, 1, 1, BrowserFilter::default()).await.unwrap();
    assert_eq!((one.len(), one[0].seq, one[0].browser.as_str()), (1, 2, "a"));
}

#[tokio::test]
async fn a_node_tells_of_its_own_sessions_and_what_it_may_not_tell_is_dropped() {
    let site = Site::new().await;
    let (ann, bob) = (site.member("ann").await, site.member("bob").await);
    let (session, node) = site.workplace(&ann, 1).await;
    site.hub.store_browser_events(node_id(2), &told(session, "x", 1, &[said("not mine")])).await.unwrap();
    let large = json!({ "kind": "console", "text": "x".repeat(limits::BROWSER_EVENT_BYTES) });
    let mut batch = told(session, "a", 1, &[said("good"), large, json!([1]), said("also good")]);
    batch.events.push(Bytes::from_static(b"{no json"));
    assert_eq!(site.hub.store_browser_events(node, &batch).await.unwrap().number, 5, "dropped is acknowledged, or it would come for ever");
    for hostile in [u64::MAX, u64::MAX - 1] {
        let batch = told(session, "a", hostile, &[said("late"), said("later")]);
        assert_eq!(site.hub.store_browser_events(node, &batch).await.unwrap().number, u64::MAX - 1, "numbers end somewhere");
    }
    let nowhere = BrowserEvents { session_id: "no session".into(), ..told(session, "a", 1, &[said("x")]) };
    assert_eq!(site.hub.store_browser_events(node, &nowhere).await.unwrap().number, 1);
    assert_eq!(texts(&site, &ann, session).await[..2], ["good", "also good"]);
    assert!(site.hub.browser_events(&bob, session, 0, 9, BrowserFilter::default()).await.is_err(), "others see nothing");
}

#[tokio::test]
async fn events_are_bounded_filtered_and_go_with_their_session() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (session, node) = site.workplace(&ann, 1).await;
    let task = TaskId::new(1, [1; 10]);
    let request = |n: u64| json!({ "kind": "request", "url": format!("http://a/{n}"), "method": "GET", "task_id": task.to_string() });
    let all = limits::BROWSER_EVENTS_KEPT + 3 * PAGE;
    for first in (1..=all).step_by(256) {
        let events: Vec<Value> = (first..(first + 256).min(all + 1)).map(|n| if n % 2 == 0 { said("x") } else { request(n) }).collect();
        site.hub.store_browser_events(node, &told(session, "a", first, &events)).await.unwrap();
    }
    let listed = async |filter: BrowserFilter| site.hub.browser_events(&ann, session, 0, usize::MAX, filter).await.unwrap();
    let kept = listed(BrowserFilter::default()).await;
    assert!((limits::BROWSER_EVENTS_KEPT..=limits::BROWSER_EVENTS_KEPT + PAGE).contains(&(kept.len() as u64)), "{}", kept.len());
    assert_eq!(kept.last().unwrap().seq, all, "the newest stay");
    let of_kind = listed(BrowserFilter { kinds: vec!["request".into()], task: None }).await;
    let of_task = listed(BrowserFilter { kinds: Vec::new(), task: Some(task) }).await;
    assert!(of_kind == of_task && of_kind.len().abs_diff(kept.len() / 2) <= 1);
    assert!(listed(BrowserFilter { kinds: vec!["request".into()], task: Some(TaskId::new(2, [2; 10])) }).await.is_empty());
    let har = site.hub.browser_har(&ann, session).await.unwrap();
    assert_eq!(har["log"]["entries"].as_array().unwrap().len(), HAR_ENTRIES.min(of_kind.len()));
    site.hub.delete_session(&ann, session).await.unwrap();
    let left = site.hub.db.read(move |tx| BROWSER_EVENTS.last(tx, &Span::under(session))).await.unwrap();
    assert_eq!(left, None);
}
