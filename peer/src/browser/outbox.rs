//! What happened in browsers, on its way to the hub: kept until the hub has it, bounded, in order.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use cortex_wire::{
    id::SessionId,
    limits,
    schema::{BrowserEvents, BrowserEventsAck},
};
use serde_json::Value;
use tokio::sync::watch;

/// See the module.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: Mutex<VecDeque<Waiting>>,
    news: watch::Sender<()>,
}

#[derive(Debug)]
struct Waiting {
    session: SessionId,
    browser: String,
    number: u64,
    event: Bytes,
}

impl Outbox {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an event behind the others. When too many wait the oldest goes; the hub sees the gap in the numbers.
    pub fn put(&self, session: SessionId, browser: &str, number: u64, event: &Value) {
        let mut event = event.to_string();
        if event.len() > limits::BROWSER_EVENT_BYTES {
            event = serde_json::json!({ "kind": "too_large", "bytes": event.len() }).to_string();
        }
        let mut waiting = self.waiting();
        if waiting.len() >= limits::BROWSER_EVENTS_WAITING {
            waiting.pop_front();
        }
        waiting.push_back(Waiting { session, browser: browser.into(), number, event: event.into() });
        drop(waiting);
        self.news.send_replace(());
    }

    /// Changes when there may be something to send.
    pub fn news(&self) -> watch::Receiver<()> {
        let mut news = self.news.subscribe();
        news.mark_changed();
        news
    }

    /// The oldest events of one browser that wait, as many as fit in a frame.
    pub fn next(&self) -> Option<BrowserEvents> {
        let waiting = self.waiting();
        let first = waiting.front()?;
        let mut bytes = 0;
        let together = waiting.iter().zip(first.number..).take_while(|(event, number)| {
            bytes += event.event.len() + 8;
            event.browser == first.browser && event.number == *number && bytes <= limits::BROWSER_EVENTS_BYTES
        });
        let events = together.map(|(event, _)| event.event.clone()).collect();
        Some(BrowserEvents { session_id: first.session.to_string(), browser: first.browser.clone(), first: first.number, events })
    }

    /// The hub has everything of this browser up to this number.
    pub fn stored(&self, ack: &BrowserEventsAck) {
        self.waiting().retain(|event| event.browser != ack.browser || event.number > ack.number);
        self.news.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_wait_in_order_until_they_are_stored_and_the_oldest_go_first() {
        let outbox = Outbox::default();
        let session = SessionId::new(1, [1; 10]);
        assert_eq!(outbox.next(), None);
        for number in 1..=3 {
            outbox.put(session, "a", number, &json!({ "n": number }));
        }
        outbox.put(session, "b", 1, &json!({}));
        let batch = outbox.next().unwrap();
        assert_eq!((batch.browser.as_str(), batch.first, batch.events.len()), ("a", 1, 3));
        outbox.stored(&BrowserEventsAck { browser: "a".into(), number: 2 });
        assert_eq!(outbox.next().unwrap().first, 3);
        outbox.stored(&BrowserEventsAck { browser: "a".into(), number: 3 });
        assert_eq!(outbox.next().unwrap().browser, "b");
        outbox.stored(&BrowserEventsAck { browser: "b".into(), number: 1 });
        for number in 1..=limits::BROWSER_EVENTS_WAITING as u64 + 5 {
            outbox.put(session, "c", number, &json!({ "text": "x".repeat(300) }));
        }
        let batch = outbox.next().unwrap();
        assert_eq!(batch.first, 6);
        assert!(prost::Message::encoded_len(&batch) < limits::CONTROL_FRAME_BYTES);
        outbox.stored(&BrowserEventsAck { browser: "c".into(), number: u64::MAX });
        outbox.put(session, "d", 1, &json!({ "text": "x".repeat(limits::BROWSER_EVENT_BYTES) }));
        assert!(outbox.next().unwrap().events[0].len() < 100);
    }
}
