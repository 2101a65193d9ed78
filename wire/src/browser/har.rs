//! Requests as a HAR 1.2 document, as other tools read it.

use serde_json::{Map, Value, json};

/// A document of requests as nodes tell them. What is not there is empty; nothing is trusted to be of the right kind.
pub fn har<'e>(requests: impl Iterator<Item = &'e Value>) -> Value {
    let entries: Vec<Value> = requests.filter(|request| request["kind"] == "request").map(entry).collect();
    json!({ "log": { "version": "1.2", "creator": { "name": "cortex-mesh", "version": env!("CARGO_PKG_VERSION") }, "entries": entries } })
}

fn entry(request: &Value) -> Value {
    let number = |key: &str| request[key].as_u64().unwrap_or(0);
    let text = |key: &str| request[key].as_str().unwrap_or_default();
    let took = number("took_ms");
    json!({
        "startedDateTime": date(request["started_ms"].as_i64().unwrap_or(0)),
        "time": took,
        "request": {
            "method": text("method"), "url": text("url"), "httpVersion": text("protocol"), "cookies": [], "headers": headers(&request["request_headers"]),
            "queryString": query(text("url")), "headersSize": -1, "bodySize": -1,
        },
        "response": {
            "status": number("status"), "statusText": text("status_text"), "httpVersion": text("protocol"), "cookies": [], "headers": headers(&request["response_headers"]),
            "content": { "size": number("bytes"), "mimeType": text("mime") }, "redirectURL": "", "headersSize": -1, "bodySize": number("bytes"), "_error": text("error"),
        },
        "cache": {},
        "timings": { "send": 0, "wait": took, "receive": 0 },
        "serverIPAddress": text("address"),
        "_resourceType": text("type"),
    })
}

fn headers(headers: &Value) -> Vec<Value> {
    let all: Map<String, Value> = headers.as_object().cloned().unwrap_or_default();
    all.into_iter().map(|(name, value)| json!({ "name": name, "value": value })).collect()
}

fn query(url: &str) -> Vec<Value> {
    let query = url.split_once('?').map_or("", |(_, query)| query).split('#').next().unwrap_or_default();
    let pair = |part: &str| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        json!({ "name": name, "value": value })
    };
    query.split('&').filter(|part| !part.is_empty()).map(pair).collect()
}

/// Milliseconds since the epoch as ISO 8601.
fn date(ms: i64) -> String {
    let (days, rest) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    // Days since 0000-03-01, in eras of 400 years.
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (h, m, s, f) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1_000 % 60, rest % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{f:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_become_entries_and_what_is_odd_breaks_nothing() {
        let requests = [
            json!({"kind": "request", "method": "GET", "url": "http://a/?x=1&y", "status": 200, "started_ms": 1_700_000_000_123_i64, "took_ms": 7, "response_headers": {"a": "b"}}),
            json!({"kind": "console"}),
            json!({"kind": "request", "status": "?", "request_headers": [], "started_ms": i64::MIN}),
        ];
        let document = har(requests.iter());
        let entries = document["log"]["entries"].as_array().unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0]["startedDateTime"], "2023-11-14T22:13:20.123Z");
        assert_eq!(entries[0]["request"]["queryString"], json!([{"name": "x", "value": "1"}, {"name": "y", "value": ""}]));
        assert_eq!(entries[0]["response"]["headers"], json!([{"name": "a", "value": "b"}]));
        assert_eq!(date(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(date(951_782_400_000), "2000-02-29T00:00:00.000Z");
    }
}
