//! Interactive terminals: real shells, looked at through WebSockets that come and go.

use std::time::Duration;

use anyhow::{Context as _, Result};
use cortex_tests::{
    api::{Client, problem},
    hub::Hub,
    peer::PeerOptions,
    terminal::Terminal,
    wait,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{SOON, Stage};

const SH: &str = "shell=/bin/sh&cols=100&rows=30";

#[tokio::test]
async fn a_shell_in_a_terminal_is_what_it_is_on_the_machine_itself() -> Result<()> {
    let Stage { hub, session, peer } = Stage::set().await?;
    let mut terminal = Terminal::open(&hub.person(), &session, SH).await?;
    // The prompt: of root, or of somebody else.
    terminal.until(if rustix::process::geteuid().is_root() { "# " } else { "$ " }).await?;
    terminal.ask("echo sum-$((40 + 2))", "sum-42").await?;
    terminal.ask("stty size", "30 100\r\n").await?;
    terminal.resize(120, 40).await?;
    terminal.ask("stty size", "40 120\r\n").await?;
    terminal.ask("test -t 0 && test -t 1 && test -t 2 && echo all-$((1 + 2))", "all-3").await?;
    terminal.ask("echo $TERM; pwd", "xterm-256color\r\n").await?;
    terminal.until(&peer.workspace(&session).display().to_string()).await?;

    // What is running is interrupted, and the shell lives on.
    terminal.ask("echo going-$((1 + 1)); sleep 300", "going-2").await?;
    terminal.type_in("\u{3}").await?;
    terminal.ask("echo alive-$((3 + 4))", "alive-7").await?;
    terminal.ask("cat -v", "cat -v").await?;
    terminal.ask("\u{16}\u{1b}[A", "^[[A\r\n").await?;
    terminal.type_in("\u{4}").await?;
    terminal.ask("echo after-$((4 + 4))", "after-8").await?;
    terminal.type_in("exit 7\n").await?;
    let exit = terminal.heard("exit").await?;
    assert_eq!((&exit["state"], &exit["exit_code"]), (&json!("failed"), &json!(7)));
    assert_eq!(exit["offset"].as_u64(), Some(terminal.offset));
    assert_eq!(terminal.heard("closed").await?["code"], 1000);
    // It is kept as the output of any task.
    let ran = hub.finish(&terminal.task, SOON).await?;
    assert_eq!(ran.stdout, terminal.text());
    assert_eq!(peer.task_processes(), []);
    Ok(())
}

#[tokio::test]
async fn a_connection_that_is_cut_loses_no_byte_and_doubles_none() -> Result<()> {
    let Stage { hub, session, peer: _peer } = Stage::set().await?;
    let mut terminal = Terminal::open(&hub.person(), &session, SH).await?;
    terminal.type_in("i=0; while [ $i -lt 20000 ]; do echo line-$i; i=$((i + 1)); done; echo done-$((1 + 1))\n").await?;
    terminal.until("line-100\r\n").await?;
    let (task, mut shown) = (terminal.task.clone(), Vec::new());
    for stop in ["line-5000\r\n", "line-12000\r\n", "done-2\r\n"] {
        terminal.until(stop).await?;
        shown.extend_from_slice(&terminal.shown);
        let offset = terminal.offset;
        assert_eq!(shown.len() as u64, offset);
        drop(terminal);
        terminal = Terminal::open(&hub.person(), &session, &format!("task={task}&offset={offset}")).await?;
        assert_eq!((terminal.task.as_str(), terminal.offset), (task.as_str(), offset));
    }
    terminal.type_in("exit\n").await?;
    terminal.heard("exit").await?;
    shown.extend_from_slice(&terminal.shown);
    assert_eq!(shown, hub.output(&task, "stdout").await?);
    // After the end there is still what was shown: all of it, and the last of it.
    let mut again = Terminal::open(&hub.person(), &session, &format!("task={task}&offset=0")).await?;
    again.heard("exit").await?;
    assert_eq!(again.shown, shown);
    let mut last = Terminal::open(&hub.person(), &session, &format!("task={task}")).await?;
    last.heard("exit").await?;
    assert!(shown.ends_with(&last.shown) && last.text().contains("done-2"));
    Ok(())
}

/// A page goes on at what is printed now on another connection, and keeps to this.
#[tokio::test]
async fn what_was_typed_before_a_connection_was_left_comes_before_what_is_typed_after_its_close() -> Result<()> {
    let Stage { hub, session, peer } = Stage::set().await?;
    let mut before = Terminal::open(&hub.person(), &session, SH).await?;
    let typed = peer.workspace(&session).join("typed");
    // The hub has much to say meanwhile.
    before.ask("stty -echo; yes 'more than anybody reads' & echo ready-$((1 + 1))", "ready-2").await?;
    before.type_in("cat > typed\n").await?;
    wait::until("that it reads", SOON, || async { typed.exists().then_some(()) }).await?;
    let mut expected = String::new();
    for round in 0..30 {
        let mut next = Terminal::open(&hub.person(), &session, &format!("task={}", before.task)).await?;
        before.type_in(&format!("old {round}\n")).await?;
        before.leave().await?;
        next.type_in(&format!("new {round}\n")).await?;
        expected += &format!("old {round}\nnew {round}\n");
        before = next;
    }
    before.type_in("\u{4}").await?;
    let found = || async { std::fs::read_to_string(&typed).ok().filter(|found| found.len() >= expected.len()) };
    assert_eq!(wait::until("all that was typed", SOON, found).await?, expected);
    Ok(())
}

#[tokio::test]
async fn several_look_at_one_terminal_and_only_those_type_who_may() -> Result<()> {
    let Stage { hub, session, peer: _peer } = Stage::set().await?;
    let mut first = Terminal::open(&hub.person(), &session, SH).await?;
    let task = first.task.clone();
    let back = format!("task={task}&offset=0");
    let mut second = Terminal::open(&hub.person(), &session, &back).await?;
    first.ask("echo one-$((1 + 1))", "one-2").await?;
    second.until("one-2").await?;
    assert!(second.opened["written"].as_u64() >= second.opened["offset"].as_u64());
    second.resize(90, 25).await?;
    second.ask("stty size", "25 90\r\n").await?;
    for seat in [&mut first, &mut second] {
        let told = seat.heard("size").await?;
        assert_eq!((&told["columns"], &told["rows"]), (&json!(90), &json!(25)), "everybody hears of the new size");
    }
    let third = Terminal::open(&hub, &session, &back).await?;
    assert_eq!((&third.opened["columns"], &third.opened["rows"]), (&json!(90), &json!(25)), "the size that it has now");
    assert!(third.opened["written"].as_u64() > Some(0));
    first.resize(100, 30).await?;
    assert_eq!(second.heard("size").await?["columns"], 100);
    drop(third);
    second.ask("echo two-$((2 + 2))", "two-4").await?;
    first.until("two-4").await?;

    let (stranger, guest) = (hub.member("mallory").await?, hub.member("bob").await?);
    for query in [back.as_str(), SH] {
        let refused = problem(Terminal::open(&stranger, &session, query).await)?;
        assert_eq!((refused.status, refused.code.as_str()), (404, "not_found"), "{query}");
    }
    assert_eq!(problem(Terminal::open(&Client::new(hub.base())?, &session, &back).await)?.status, 401);
    let viewer = json!({"role": "viewer"});
    hub.call::<Value>(Method::PUT, &format!("/api/sessions/{session}/members/bob"), Some(&viewer)).await?;
    let mut looks = Terminal::open(&guest, &session, &back).await?;
    assert_eq!(looks.opened["may_type"], false);
    looks.until("two-4").await?;
    looks.type_in("echo hacked-$((6 + 6))\n").await?;
    assert_eq!(looks.heard("error").await?["code"], "read_only");
    looks.resize(10, 10).await?;
    assert_eq!(looks.heard("error").await?["code"], "read_only");
    assert_eq!(problem(Terminal::open(&guest, &session, SH).await)?.status, 403);
    first.ask("stty size", "30 100\r\n").await?;
    looks.until("30 100\r\n").await?;
    assert!(!first.text().contains("hacked"));
    first.type_in("exit\n").await?;
    for terminal in [&mut first, &mut second, &mut looks] {
        assert_eq!(terminal.heard("exit").await?["exit_code"], 0);
    }
    Ok(())
}

#[tokio::test]
async fn what_is_not_a_terminal_is_refused_and_says_why() -> Result<()> {
    let Stage { hub, session, peer } = Stage::set().await?;
    let plain = problem(hub.get::<Value>(&format!("/api/sessions/{session}/terminal?{SH}")).await)?;
    assert_eq!((plain.status, plain.code.as_str()), (426, "websocket_expected"));
    for query in ["cols=0&rows=10", "cols=80", "cols=2000&rows=10", "colls=80"] {
        assert_eq!(problem(Terminal::open(&hub.person(), &session, query).await)?.status, 400, "{query}");
    }
    let task: Value = hub.post(&format!("/api/sessions/{session}/dispatch"), json!({"argv": ["sleep", "60"]})).await?;
    let query = format!("task={}", task["id"].as_str().context("its id")?);
    assert_eq!(problem(Terminal::open(&hub.person(), &session, &query).await)?.code, "no_terminal");
    let other = hub.session(&[&peer.node]).await?.id;
    let mut terminal = Terminal::open(&hub.person(), &session, SH).await?;
    assert_eq!(problem(Terminal::open(&hub.person(), &other, &format!("task={}", terminal.task)).await)?.status, 404);

    // With a cookie the page has to be the hub's own.
    let login = json!({"name": "ada", "password": "correct horse battery"});
    let response = hub.request(Method::POST, "/api/login").json(&login).send().await?;
    let cookie = response.headers().get("set-cookie").context("a cookie")?.to_str()?;
    let cookie = cookie.split(';').next().context("its value")?.to_owned();
    let with = |origin: Option<&str>| {
        let origin = origin.map(|origin| ("origin", origin.to_owned()));
        [("cookie", cookie.clone())].into_iter().chain(origin)
    };
    for origin in [None, Some("http://evil.example")] {
        assert_eq!(problem(Terminal::open_with(&hub, &session, SH, with(origin)).await)?.code, "cross_site", "{origin:?}");
    }
    Terminal::open_with(&hub, &session, SH, with(Some(hub.base()))).await?.ask("echo own-$((5 + 5))", "own-10").await?;

    // Nonsense in frames is answered, and too much of it ends the connection and nothing else.
    for nonsense in [json!({"type": "resize", "columns": 0, "rows": 1}), json!("what"), json!({"type": "other"})] {
        terminal.tell(nonsense).await?;
        assert_eq!(terminal.heard("error").await?["code"], "malformed_request");
    }
    let task = terminal.task.clone();
    let _ = terminal.type_in(&"x".repeat(100_000)).await;
    assert_eq!(terminal.heard("closed").await.ok().map(|closed| closed["code"].clone()).unwrap_or(json!(1009)), 1009);
    Terminal::open(&hub.person(), &session, &format!("task={task}")).await?.ask("echo still-$((5 + 6))", "still-11").await
}

#[tokio::test]
async fn the_end_of_the_shell_ends_the_terminal_whoever_still_holds_it() -> Result<()> {
    let Stage { hub, session, peer } = Stage::set().await?;
    let mut terminal = Terminal::open(&hub.person(), &session, SH).await?;
    terminal.type_in("(trap '' HUP; while :; do sleep 0.2; done) & setsid sh -c 'trap \"\" HUP; sleep 300; true' & sleep 300 &\n").await?;
    wait::until("they run", SOON, async || (peer.task_processes().len() >= 5).then_some(())).await?;
    terminal.type_in("exit 0\n").await?;
    let exit = terminal.heard("exit").await?;
    assert_eq!((&exit["state"], &exit["exit_code"]), (&json!("succeeded"), &json!(0)));
    assert_eq!(peer.task_processes(), []);
    Ok(())
}

#[tokio::test]
async fn a_terminal_that_is_cancelled_is_hung_up_first() -> Result<()> {
    let Stage { hub, session, peer } = Stage::set().await?;
    let script = "trap 'echo hung-up; exit 3' HUP; echo ready; while :; do sleep 0.1; done";
    let size = json!({"columns": 80, "rows": 24});
    let body = json!({"script": script, "shell": "/bin/sh", "terminal": size});
    let task: Value = hub.post(&format!("/api/sessions/{session}/dispatch"), body).await?;
    let query = format!("task={}&offset=0", task["id"].as_str().context("its id")?);
    let mut terminal = Terminal::open(&hub.person(), &session, &query).await?;
    terminal.until("ready").await?;
    hub.cancel(&terminal.task).await?;
    let exit = terminal.heard("exit").await?;
    assert_eq!((&exit["state"], &exit["exit_code"]), (&json!("cancelled"), &json!(3)));
    assert!(terminal.text().contains("hung-up"));

    // A shell at its prompt goes at once, with what it runs.
    let mut shell = Terminal::open(&hub.person(), &session, SH).await?;
    shell.ask("echo going-$((1 + 1)); sleep 300", "going-2").await?;
    hub.cancel(&shell.task).await?;
    assert_eq!(shell.heard("exit").await?["state"], "cancelled");
    assert_eq!(peer.task_processes(), []);
    Ok(())
}

#[tokio::test]
async fn a_terminal_outlives_the_hub_and_goes_on_where_it_was() -> Result<()> {
    let Stage { mut hub, session, peer } = Stage::set().await?;
    let mut terminal = Terminal::open(&hub.person(), &session, SH).await?;
    terminal.ask("x=41; echo set-$((1 + 1))", "set-2").await?;
    terminal.type_in("for i in $(seq 1 40); do echo tick-$i; sleep 0.05; done; echo over-$((2 + 2))\n").await?;
    terminal.until("tick-5\r\n").await?;
    let (task, offset, mut shown) = (terminal.task.clone(), terminal.offset, terminal.shown.clone());
    hub.process.kill9().await?;
    hub.restart().await?;
    hub.node_is(&peer.node, "online", SOON).await?;
    let mut terminal = Terminal::open(&hub.person(), &session, &format!("task={task}&offset={offset}&cols=90&rows=20")).await?;
    terminal.until("over-4").await?;
    terminal.ask("stty size; echo $((x + 1))", "20 90\r\n42\r\n").await?;
    terminal.type_in("exit\n").await?;
    terminal.heard("exit").await?;
    shown.extend_from_slice(&terminal.shown);
    assert_eq!(shown, hub.output(&task, "stdout").await?);
    Ok(())
}

#[tokio::test]
async fn who_takes_nothing_for_twenty_seconds_is_closed_and_holds_nobody_up() -> Result<()> {
    const BYTES: usize = 16_000_000;
    let Stage { hub, session, peer: _peer } = Stage::set().await?;
    let mut slow = Terminal::open(&hub.person(), &session, SH).await?;
    let task = slow.task.clone();
    // More than the system keeps for somebody who does not read.
    slow.type_in(&format!("stty -opost; head -c {BYTES} /dev/zero | tr '\\0' x; echo done-$((1 + 1)); exit\n")).await?;
    let mut quick = Terminal::open(&hub.person(), &session, &format!("task={task}&offset=0")).await?;
    // Nobody waits for the slow one, which takes nothing all the while.
    quick.heard("exit").await?;
    assert!(quick.shown.ends_with(b"done-2\n") && quick.shown.len() > BYTES, "{}", quick.shown.len());
    tokio::time::sleep(Duration::from_secs(22)).await;
    assert_eq!(slow.heard("closed").await?["code"], 4408);
    assert!(slow.shown.len() < BYTES, "it was closed before the end: {}", slow.shown.len());
    // It comes back where it was, and misses nothing.
    let mut again = Terminal::open(&hub.person(), &session, &format!("task={task}&offset={}", slow.offset)).await?;
    again.heard("exit").await?;
    assert!([slow.shown, again.shown].concat() == quick.shown, "a gap, or something twice");
    Ok(())
}

#[tokio::test]
async fn what_is_typed_while_the_relay_is_away_arrives_once_and_in_order() -> Result<()> {
    let (hub, mut relay) = Hub::start_with_relay().await?;
    let peer = hub.enrol("machine").await?;
    let session = hub.session(&[&peer.node]).await?.id;
    let mut terminal = Terminal::open(&hub.person(), &session, SH).await?;
    terminal.type_in("stty -echo; cat > typed; echo saved-$((1 + 1))\n").await?;
    wait::until("cat runs", SOON, async || peer.workspace(&session).join("typed").exists().then_some(())).await?;
    let mut expected = String::new();
    for number in 0..300 {
        let line = format!("typed line {number}\n");
        expected.push_str(&line);
        terminal.type_in(&line).await?;
        if number == 100 {
            relay.process.kill9().await?;
        }
        if number == 200 {
            relay.restart().await?;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let read = async || std::fs::read_to_string(peer.workspace(&session).join("typed")).ok().filter(|text| text.len() >= expected.len());
    let typed = wait::until("all of it is typed", Duration::from_secs(60), read).await?;
    assert_eq!(typed, expected);
    terminal.type_in("\u{4}").await?;
    terminal.until("saved-2").await
}

#[tokio::test]
async fn a_terminal_that_a_program_asks_for_waits_for_a_person() -> Result<()> {
    let Stage { hub, session, peer } = Stage::set().await?;
    let mut terminal = Terminal::open(&hub, &session, SH).await?;
    assert_eq!(terminal.opened["state"], "awaiting_approval");
    terminal.type_in("touch typed\n").await?;
    let asked: Value = hub.get("/api/approvals").await?;
    let question = asked["items"][0]["question"].as_str().context("a question")?;
    assert!(question.contains("`/bin/sh` runs whatever is typed into it"), "{question}");
    assert!(!peer.workspace(&session).join("typed").exists());
    let refused = problem(hub.post::<Value>(&format!("/api/approvals/{}/approve", terminal.task), json!({})).await)?;
    assert_eq!(refused.code, "forbidden", "it does not answer itself");
    hub.person().post::<Value>(&format!("/api/approvals/{}/approve", terminal.task), json!({})).await?;
    // What was typed meanwhile is typed now.
    terminal.ask("ls; echo made-$((1 + 1))", "made-2").await?;
    assert!(terminal.text().contains("typed\r\n"), "{}", terminal.text());
    terminal.type_in("exit\n").await?;
    terminal.heard("exit").await?;

    // With its input instead of a terminal it is the same; no answer is a no, and a person is not asked.
    let fed = json!({"argv": ["sh"], "stdin": true, "approval_timeout_ms": 300});
    let fed: Value = hub.post(&format!("/api/sessions/{session}/dispatch"), fed).await?;
    assert_eq!(fed["state"], "awaiting_approval");
    assert_eq!(hub.ended(fed["id"].as_str().context("its id")?, SOON).await?.code.as_deref(), Some("approval_timeout"));
    let mut own = Terminal::open(&hub.person(), &session, SH).await?;
    assert_ne!(own.opened["state"], "awaiting_approval");
    own.ask("echo own-$((5 + 5))", "own-10").await
}

#[tokio::test]
async fn a_terminal_passes_the_same_policy_as_any_task() -> Result<()> {
    let hub = Hub::start().await?;
    let settings = "policy:\n  allow: ['echo']\n".to_owned();
    let peer = hub.enrol_with(PeerOptions { name: "careful".into(), settings, ..PeerOptions::default() }).await?;
    let session = hub.session(&[&peer.node]).await?.id;
    let mut terminal = Terminal::open(&hub.person(), &session, SH).await?;
    let exit = terminal.heard("exit").await?;
    assert_eq!((&exit["state"], &exit["code"]), (&json!("rejected"), &json!("policy_not_allowed")));
    Ok(())
}

#[tokio::test]
async fn a_session_has_sixteen_terminals_and_an_idle_one_ends() -> Result<()> {
    let Stage { hub, session, peer: _peer } = Stage::set().await?;
    let path = format!("/api/sessions/{session}/dispatch");
    let size = json!({"columns": 80, "rows": 24});
    let open = async || hub.post::<Value>(&path, json!({"terminal": size, "argv": ["cat"]})).await;
    let mut tasks = Vec::new();
    for _ in 0..16 {
        tasks.push(open().await?["id"].as_str().context("its id")?.to_owned());
    }
    assert_eq!(problem(open().await)?.code, "too_many_terminals");
    assert_eq!(problem(Terminal::open(&hub.person(), &session, SH).await)?.code, "too_many_terminals");
    hub.cancel(&tasks[0]).await?;
    hub.ended(&tasks[0], SOON).await?;
    let mut terminal = Terminal::open(&hub.person(), &session, &format!("{SH}&idle_timeout_ms=2000")).await?;
    assert_eq!(terminal.heard("exit").await?["state"], "timed_out");
    Ok(())
}
