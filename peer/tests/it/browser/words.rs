//! What actions can be told besides their targets: each word of an order changes what happens.

use std::{
    fs,
    time::{Duration, Instant},
};

use cortex_wire::{id::SessionId, schema::TaskRequest};
use serde_json::{Value, json};

use super::{Bench, reference, shown};

#[tokio::test]
async fn buttons_keys_and_lists_do_what_their_words_say() {
    let bench = Bench::new().await;
    bench.open("words").await;
    let log = async || bench.value("log.splice(0).join(' ')").await;
    bench.act(json!({ "click": { "target": "#pad", "button": "right" } })).await;
    assert_eq!(log().await, "down2 menu");
    bench.act(json!({ "click": { "target": "#pad", "button": "middle" } })).await;
    assert_eq!(log().await, "down1");
    bench.act(json!({ "click": { "target": "#pad", "modifiers": ["Shift", "Alt"] } })).await;
    assert_eq!(log().await, "down0shift,alt");
    assert_eq!(bench.fails(json!({ "click": { "target": "#pad", "modifiers": ["Hyper"] } })).await.0, "bad_key");
    bench.act(json!({ "click": { "target": "#line" } })).await;
    bench.act(json!({ "press": { "key": "Enter" } })).await;
    assert_eq!(log().await, "sent", "without a target the key goes to what has the focus");
    assert_eq!(bench.fails(json!({ "press": { "key": "Nonsense" } })).await.0, "bad_key");
    bench.act(json!({ "check": { "target": "#box", "checked": false } })).await;
    assert_eq!(bench.value("box.checked").await, false);
    bench.act(json!({ "check": { "target": "#box", "checked": false } })).await;
    assert_eq!(bench.value("box.checked").await, false, "it is what was asked for, not the other one");
    bench.act(json!({ "select": { "target": "#many", "values": ["a", "Cherry"] } })).await;
    assert_eq!(bench.value("[...many.selectedOptions].map(o=>o.value).join()").await, "a,c");
    bench.act(json!({ "scroll": { "target": "#pane", "dx": 120 } })).await;
    bench.act(json!({ "wait_for": { "ms": 200 } })).await;
    assert_eq!(bench.value("pane.scrollLeft+' '+scrollX").await, "120 0");
    fs::create_dir_all(bench.hub.workspace()).unwrap();
    for name in ["one.txt", "two.txt"] {
        fs::write(bench.hub.workspace().join(name), name).unwrap();
    }
    bench.act(json!({ "upload": { "target": "#files", "paths": ["one.txt", "two.txt"] } })).await;
    assert_eq!(bench.value("[...files.files].map(f=>f.name).join()").await, "one.txt,two.txt");
    bench.end().await;
}

#[tokio::test]
async fn each_thing_that_can_be_waited_for_is_waited_for() {
    let bench = Bench::new().await;
    let waited = async |wait: Value, path: &str, holds: &str| {
        bench.act(json!({ "navigate": { "url": bench.site.url(path), "until": "commit" } })).await;
        bench.act(json!({ "wait_for": wait })).await;
        assert_eq!(bench.value(holds).await, true, "{wait}");
    };
    waited(json!({ "text": "arrived" }), "later", "!!document.getElementById('new')").await;
    waited(json!({ "gone": "leaving" }), "later", "!document.getElementById('old')").await;
    waited(json!({ "target": "#new" }), "later", "!!document.getElementById('new')").await;
    waited(json!({ "url": "later#moved" }), "later", "location.hash=='#moved'").await;
    waited(json!({ "load": "load" }), "later", "document.readyState=='complete'").await;
    waited(json!({ "load": "dom" }), "later", "document.readyState!='loading'").await;
    // Its requests follow each other for a second.
    waited(json!({ "idle": true }), "chatty", "said==5").await;
    let began = Instant::now();
    bench.act(json!({ "wait_for": { "ms": 300 } })).await;
    assert!(began.elapsed().as_millis() >= 300);
    for wait in [json!({ "text": "never" }), json!({ "gone": "Chatty" }), json!({ "target": "#never" }), json!({ "url": "never" })] {
        let late = bench.ask(json!({ "action": { "wait_for": wait }, "timeout_ms": 400 })).await;
        assert_eq!(late["code"], "timed_out", "{wait}");
    }
    bench.end().await;
}

#[tokio::test]
async fn an_answer_tells_as_much_as_it_was_asked_to_and_of_the_tab_that_was_meant() {
    let bench = Bench::new().await;
    bench.open("form").await;
    let ask = async |report: &str| bench.ask(json!({ "action": { "hover": { "target": "h1" } }, "report": report })).await;
    assert!(shown(&ask("full").await).contains("heading \"Form\""));
    assert!(ask("none").await["page"].is_null());
    bench.act(json!({ "open_tab": { "url": bench.site.url("second") } })).await;
    let first = bench.ask(json!({ "action": { "evaluate": { "expression": "document.title" } }, "tab": "t1" })).await;
    assert_eq!((first["value"]["result"].as_str(), first["tab"].as_str()), (Some("form"), Some("t1")), "{first:#}");
    assert_eq!(bench.value("document.title").await, "form", "the tab that was used last is meant from then on");
    let nobody = bench.ask(json!({ "action": "reload", "tab": "t7" })).await;
    assert_eq!(nobody["code"], "no_such_tab");

    let read = bench.act(json!({ "read_text": { "target": "nav" } })).await;
    assert_eq!(read["value"]["text"], "Second");
    bench.open("huge").await;
    let read = bench.act(json!({ "read_text": { "budget": 300 } })).await["value"].clone();
    let next = read["next_offset"].as_u64().unwrap();
    let more = bench.act(json!({ "read_text": { "budget": 300, "offset": next } })).await["value"].clone();
    assert!(read["text"].as_str().unwrap().len() <= 300 && read["text"] != more["text"], "{read} {more}");
    let small = bench.act(json!({ "snapshot": { "budget": 600 } })).await;
    assert!(shown(&small).len() <= 600 && small["value"]["truncated"] == true, "{small:#}");
    let few = bench.act(json!({ "find": { "role": "button", "limit": 3 } })).await["value"].clone();
    assert!(few["count"] == 3 && few["more"].as_u64() > Some(1_000), "{few}");

    let steps = json!([{ "click": { "target": "#none" } }, { "evaluate": { "expression": "6*7" } }]);
    let (code, batch) = bench.fails(json!({ "batch": { "steps": steps, "keep_going": true } })).await;
    assert_eq!((code.as_str(), &batch["value"]["steps"][1]["value"]["result"]), ("not_found", &json!(42)), "{batch:#}");
    bench.end().await;
}

#[tokio::test]
async fn pictures_differ_as_they_should_and_storages_and_places_are_apart() {
    let bench = Bench::new().await;
    bench.open("form").await;
    let picture = async |how: Value| bench.over(&json!({ "action": { "screenshot": how } })).await.1.stderr;
    let plain = picture(json!({})).await;
    assert_ne!(picture(json!({ "annotated": true })).await, plain, "refs are drawn on it");
    assert_eq!(picture(json!({})).await, plain, "and are gone again");
    let size = |png: &[u8]| [16, 20].map(|at| u32::from_be_bytes(png[at..at + 4].try_into().unwrap()));
    bench.act(json!({ "viewport": { "width": 500, "height": 400, "scale": 2.0 } })).await;
    assert_eq!(bench.value("[innerWidth,innerHeight,devicePixelRatio].join()").await, "500,400,2");
    assert_eq!(size(&picture(json!({})).await), [1000, 800]);
    let paper = async |how: Value| bench.over(&json!({ "action": { "pdf": how } })).await.1.stderr;
    assert_ne!(paper(json!({ "landscape": true })).await.len(), 0);

    bench.act(json!({ "storage": { "session": true, "kept": { "set": { "entries": [{ "name": "k", "value": "tab" }] } } } })).await;
    bench.act(json!({ "storage": { "kept": { "set": { "entries": [{ "name": "k", "value": "site" }] } } } })).await;
    assert_eq!(bench.value("sessionStorage.k+' '+localStorage.k").await, "tab site");
    bench.act(json!({ "storage": { "session": true, "kept": "clear" } })).await;
    assert_eq!(bench.value("sessionStorage.k+' '+localStorage.k").await, "undefined site");
    let cookie = json!({ "name": "c", "value": "v", "domain": "127.0.0.1", "path": "/second", "http_only": true });
    bench.act(json!({ "cookies": { "set": { "entries": [cookie] } } })).await;
    let told = bench.act(json!({ "cookies": "get" })).await["value"]["cookies"][0].clone();
    assert!(told["path"] == "/second" && told["httpOnly"] == true && told["value"] == "v", "{told}");
    bench.act(json!({ "emulate": { "location": [52.5, 13.4] } })).await;
    let place = "new Promise((done,no)=>navigator.geolocation.getCurrentPosition(p=>done(p.coords.latitude+' '+p.coords.longitude),no))";
    assert_eq!(bench.value(place).await, "52.5 13.4");

    bench.act(json!({ "evaluate": { "expression": "for(let i=0;i<9;i++)console.log('said '+i)" } })).await;
    let said = bench.act(json!({ "console": { "limit": 2 } })).await["value"]["messages"].clone();
    assert!(said.as_array().unwrap().len() == 2 && said.to_string().contains("said 8"), "{said}");
    bench.act(json!({ "evaluate": { "expression": "fetch('long?90000').then(r=>r.text()).then(t=>t.length)" } })).await;
    let listed = bench.act(json!({ "network": { "list": { "url": "long", "limit": 1 } } })).await;
    let (body, over) = bench.over(&json!({ "action": { "network": { "body": { "id": listed["value"]["requests"][0]["id"] } } } })).await;
    assert_eq!((over.stderr.len(), body["value"]["artifact"]["bytes"].as_u64()), (90_000, Some(90_000)), "{body:#}");
    assert_eq!(bench.fails(json!({ "network": { "body": { "id": "99999" } } })).await.0, "no_such_request");

    // A page that asks before it is left is left.
    bench.open("words").await;
    bench.act(json!({ "click": { "target": "#line" } })).await;
    bench.value("addEventListener('beforeunload',e=>e.preventDefault())&&0").await;
    let left = bench.open("second").await;
    assert_eq!(left["title"], "second", "{left:#}");
    assert_eq!(left["dialogs"][0]["type"], "beforeunload", "{left:#}");
    bench.end().await;
}

#[tokio::test]
async fn two_sessions_share_nothing_and_an_order_that_was_altered_does_nothing() {
    let bench = Bench::new().await;
    bench.open("form").await;
    bench.value("document.cookie='who=first';localStorage.who='first'").await;
    let other = SessionId::new(2, [7; 10]);
    let in_other = async |order: Value| {
        let request = TaskRequest { session_id: other.to_string(), ..bench.request(&order) };
        let over = bench.hub.start(&bench.tasks, &request).await.finish().await;
        serde_json::from_slice::<Value>(&over.stdout).unwrap()
    };
    let opened = in_other(json!({ "action": { "navigate": { "url": bench.site.url("form") } } })).await;
    assert_eq!(opened["tab"], "t1", "{opened:#}");
    let theirs = in_other(json!({ "action": { "evaluate": { "expression": "document.cookie+localStorage.length" } } })).await;
    assert_eq!(theirs["value"]["result"], "0", "{theirs:#}");
    let reffed = in_other(json!({ "action": { "click": { "target": reference(&opened, "button \"Send\"") } } })).await;
    assert_eq!(reffed["ok"], true, "{reffed:#}");
    assert_eq!(bench.value("document.cookie+' '+localStorage.who").await, "who=first first");
    assert_eq!(fs::read_dir(bench.hub.path().join("state/browsers")).unwrap().count(), 2);

    let mut signed = bench.hub.sign(&bench.request(&json!({ "action": { "evaluate": { "expression": "document.title='aaaa'" } } })));
    let altered = String::from_utf8_lossy(&signed.body).contains("aaaa");
    let body: Vec<u8> = signed.body.to_vec();
    let at = body.windows(4).position(|part| part == b"aaaa").unwrap();
    signed.body = [&body[..at], b"bbbb", &body[at + 4..]].concat().into();
    assert!(altered);
    let open = cortex_wire::schema::stream_open::Open::Start(signed);
    assert_eq!(bench.hub.open(&bench.tasks, open).await.rejected().await.code, "bad_signature");
    assert_eq!(bench.value("document.title").await, "form");
    bench.end().await;
}

#[tokio::test]
async fn every_kind_of_action_is_cancelled_at_once_also_while_the_page_hangs() {
    let bench = Bench::new().await;
    let hang = "setTimeout(()=>{while(true){}},50);1";
    let orders = [
        json!({ "snapshot": {} }),
        json!({ "click": { "target": "h1" } }),
        json!({ "fill": { "target": "textarea", "value": "x" } }),
        json!({ "screenshot": {} }),
        json!({ "wait_for": { "text": "never" } }),
        json!({ "batch": { "steps": [{ "wait_for": { "ms": 20_000 } }, { "evaluate": { "expression": "document.title='gone on'" } }] } }),
    ];
    for order in orders {
        bench.open("form").await;
        // The page's own script hangs, whatever is asked of it.
        bench.ask(json!({ "action": { "evaluate": { "expression": hang } }, "report": "none" })).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut talk = bench.begin(&json!({ "action": order })).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let asked = Instant::now();
        talk.cancel("enough").await;
        let over = talk.finish().await;
        assert_eq!(over.response.state, "cancelled", "{order} {over:?}");
        assert!(asked.elapsed() < Duration::from_secs(3), "{order} took {:?}", asked.elapsed());
    }
    assert_eq!(bench.value("1+1").await, 2);
    assert_eq!(bench.value("document.title").await, "form", "what was cancelled did not go on");
    bench.end().await;
}
