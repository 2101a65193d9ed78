//! What may start, how it starts, and what it finds.

use std::time::{Duration, Instant};

use bytes::Bytes;
use cortex_runtime::clock;
use cortex_wire::{
    id::{SessionId, TaskId},
    key::{Domain, SecretKey},
    limits,
    schema::{CommandRule, ShellTask, Signed, StreamOpen, TaskRequest, from_task::Frame, stream_open::Open, task_response::Exit},
};

use crate::hub::{Hub, PATIENCE, argv, script};

#[tokio::test]
async fn a_command_prints_and_ends_with_its_exit_code() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    let over = hub.start(&tasks, &hub.request(argv(&["sh", "-c", "echo out; echo err >&2; exit 3"]))).await.finish().await;
    assert_eq!((over.text().as_str(), over.stderr.as_slice()), ("out\n", &b"err\n"[..]));
    assert_eq!((over.response.state.as_str(), over.response.exit), ("failed", Some(Exit::ExitCode(3))));
    assert_eq!((over.response.stdout_bytes, over.response.stderr_bytes, over.response.truncated), (4, 4, false));
    assert_eq!(over.response.sandbox_level, "permissive");
    let usage = over.response.usage.unwrap();
    assert!(usage.peak_memory_bytes > 0 && usage.wall_ms < 30_000);
    assert_eq!(tasks.running(), 0);
    assert!(tasks.inventory().is_empty());
    assert_eq!(std::fs::read_dir(hub.path().join("state/tasks")).unwrap().count(), 0, "output goes with the task");
}

#[tokio::test]
async fn a_command_ended_by_a_signal_says_which() {
    let hub = Hub::new();
    let over = hub.script(&hub.tasks(), "kill -9 $$").await.finish().await;
    assert_eq!((over.response.state.as_str(), over.response.exit), ("failed", Some(Exit::Signal(9))));
}

#[tokio::test]
async fn the_first_byte_is_not_held_back() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    hub.script(&tasks, "true").await.finish().await;
    let since = Instant::now();
    let mut talk = hub.script(&tasks, "printf a; sleep 30").await;
    talk.until_stdout(1).await;
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    talk.cancel("seen").await;
    assert_eq!(talk.finish().await.response.state, "cancelled");
}

#[tokio::test]
async fn a_script_runs_in_its_session_with_a_clean_environment() {
    cortex_peer::process::keep_inherited_descriptors();
    let hub = Hub::new();
    let tasks = hub.tasks();
    let request =
        hub.request(script("pwd; echo $CORTEX_SESSION $CORTEX_TASK; ls -l /proc/self/fd | wc -l; tty; ps -o sid= -p $$; echo $$"));
    let over = hub.start(&tasks, &request).await.finish().await;
    let text = over.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], hub.workspace().canonicalize().unwrap().to_str().unwrap());
    assert_eq!(lines[1], format!("{} {}", hub.session, TaskId::from_slice(&request.task_id).unwrap()));
    // "total 0", the three streams and the folder that ls reads.
    assert_eq!(lines[2], "5", "no descriptor is inherited");
    assert_eq!(lines[3], "not a tty");
    assert_eq!(lines[4].trim(), lines[5], "it leads a session of its own");
}

#[tokio::test]
async fn a_script_takes_the_shell_that_is_named_and_any_length() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    let bash = ShellTask { shell: "bash".into(), ..script("echo ${BASH_VERSION:+bash}") };
    assert_eq!(hub.start(&tasks, &hub.request(bash)).await.finish().await.text(), "bash\n");
    let long = format!("echo begin\n{}\necho end\n", "# a line that says nothing\n".repeat(7_000));
    assert!(long.len() > 128 * 1024 && long.len() < limits::COMMAND_BYTES);
    assert_eq!(hub.script(&tasks, &long).await.finish().await.text(), "begin\nend\n");
    let missing = hub.start(&tasks, &hub.request(ShellTask { shell: "no-such-shell".into(), ..script("true") })).await.rejected().await;
    assert_eq!(missing.code, "cannot_start");
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_refused_and_leaves_nothing() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    let rejected = hub.start(&tasks, &hub.request(argv(&["no-such-program"]))).await.rejected().await;
    assert_eq!(rejected.code, "cannot_start");
    assert!(rejected.message.starts_with("there is no program `no-such-program` on this node; PATH is"), "{}", rejected.message);
    // Found, and refused by the kernel only when it is started.
    let broken = hub.workspace().join("broken");
    std::fs::write(&broken, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let rejected = hub.start(&tasks, &hub.request(argv(&["./broken"]))).await.rejected().await;
    assert!(rejected.message.contains("interpreter"), "{}", rejected.message);
    assert_eq!((tasks.running(), tasks.inventory().len()), (0, 0));
    assert_eq!(std::fs::read_dir(hub.path().join("state/tasks")).unwrap().count(), 0);
    drop(tasks);
    assert!(hub.tasks().inventory().is_empty(), "nor after a restart");
}

#[tokio::test]
async fn a_folder_that_leads_out_of_the_workspace_is_refused() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    hub.script(&tasks, "ln -s / out; mkdir in").await.finish().await;
    let out = hub.start(&tasks, &hub.request(ShellTask { cwd: "out/etc".into(), ..script("pwd") })).await.rejected().await;
    assert_eq!(out.code, "cannot_start");
    assert!(out.message.contains("leads out"), "{}", out.message);
    let up = hub.start(&tasks, &hub.request(ShellTask { cwd: "in/../..".into(), ..script("pwd") })).await.rejected().await;
    assert_eq!(up.code, "malformed");
    let inside = hub.start(&tasks, &hub.request(ShellTask { cwd: "in".into(), ..script("pwd -P") })).await.finish().await;
    assert!(inside.text().ends_with("/in\n"));
}

#[tokio::test]
async fn each_bad_request_has_its_own_refusal_and_starts_nothing() {
    let mut hub = Hub::new();
    hub.policy.deny.push(CommandRule { prefix: vec!["touch".into()], reason: String::new() });
    let tasks = hub.tasks();
    let touch = || hub.request(argv(&["sh", "-c", ": > started"]));
    let bend = |change: fn(&mut TaskRequest)| {
        let mut request = touch();
        change(&mut request);
        request
    };
    let cases: [(&str, TaskRequest); 8] = [
        ("wrong_node", bend(|r| r.node_key = SecretKey::from_seed([9; 32]).public().to_bytes())),
        ("wrong_node", bend(|r| r.hub_root = SecretKey::from_seed([9; 32]).public().to_bytes())),
        ("wrong_boot", bend(|r| r.boot_nonce = Bytes::from_static(&[0; 32]))),
        ("late", bend(|r| r.start_deadline_ms = 1)),
        ("malformed", bend(|r| r.task_id = Bytes::from_static(b"short"))),
        ("malformed", bend(|r| r.kind = None)),
        ("stale_policy", bend(|r| r.policy_hash = Bytes::from_static(&[0; 32]))),
        ("policy_denied", hub.request(argv(&["/usr/bin/touch", "started"]))),
    ];
    for (code, request) in cases {
        assert_eq!(hub.start(&tasks, &request).await.rejected().await.code, code);
    }
    let mut tampered = hub.sign(&touch());
    tampered.body = [&tampered.body[..], b"\x78\x01"].concat().into();
    assert_eq!(hub.open(&tasks, Open::Start(tampered)).await.rejected().await.code, "bad_signature");
    let foreign = SecretKey::from_seed([9; 32]).seal(Domain::Task, &touch());
    assert_eq!(hub.open(&tasks, Open::Start(foreign)).await.rejected().await.code, "bad_signature");
    assert!(!hub.workspace().join("started").exists());
    assert!(tasks.inventory().is_empty());
}

#[tokio::test]
async fn a_task_never_starts_twice() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    let request = hub.request(script("echo x >>started; sleep 0.3"));
    let first = hub.start(&tasks, &request).await;
    let replayed = hub.start(&tasks, &request).await.rejected().await;
    assert_eq!(replayed.code, "replayed");
    // Signed again by a hub that lost count: another sequence, the same task.
    let again = TaskRequest { sequence: hub.request(script("")).sequence, ..request.clone() };
    assert_eq!(hub.start(&tasks, &again).await.rejected().await.code, "replayed");
    first.finish().await;
    let later = TaskRequest { sequence: hub.request(script("")).sequence, ..request.clone() };
    assert_eq!(hub.start(&tasks, &later).await.rejected().await.code, "replayed");
    assert_eq!(std::fs::read_to_string(hub.workspace().join("started")).unwrap(), "x\n");
    // A retry is another grant, and says so.
    let retry = TaskRequest { sequence: hub.request(script("")).sequence, fence: 2, attempt: 1, ..request };
    assert_eq!(hub.start(&tasks, &retry).await.finish().await.response.fence, 2);
}

#[tokio::test]
async fn a_machine_whose_clock_is_a_day_off_goes_by_the_hub_s() {
    const DAY_MS: i64 = 24 * 60 * 60 * 1000;
    for offset in [-DAY_MS, DAY_MS] {
        let hub = Hub::new();
        let tasks = hub.tasks();
        tasks.set_hub_time(clock::now_ms() + offset);
        let at = |ms: i64| {
            let now_ms = clock::now_ms() + offset + ms;
            TaskRequest { issued_at_ms: now_ms, start_deadline_ms: now_ms + 30_000, ..hub.request(script("true")) }
        };
        let over = hub.start(&tasks, &at(0)).await.finish().await;
        assert_eq!(over.response.state, "succeeded", "{offset}");
        let told = over.response.started_at_ms - clock::now_ms() - offset;
        assert!(told.abs() < 20_000, "times are the hub's: {told}");
        assert_eq!(hub.start(&tasks, &at(-60_000)).await.rejected().await.code, "late", "its time was over");
        // By the clock of the machine itself it would be in time.
        let own = TaskRequest { issued_at_ms: clock::now_ms(), start_deadline_ms: clock::now_ms() + 30_000, ..hub.request(script("true")) };
        let own = hub.start(&tasks, &own).await;
        match offset {
            DAY_MS => assert_eq!(own.rejected().await.code, "late"),
            _ => drop(own),
        }
    }
}

#[tokio::test]
async fn slots_are_counted_and_given_back() {
    let mut hub = Hub::new();
    hub.policy.task_slots = 2;
    let tasks = hub.tasks();
    let mut a = hub.script(&tasks, "echo a; read x").await;
    let mut b = hub.script(&tasks, "echo b; sleep 30").await;
    b.line("b").await;
    a.line("a").await;
    let a = a.finish().await;
    assert_eq!(a.response.state, "failed", "stdin is /dev/null: read meets its end");
    let c = hub.script(&tasks, "echo c; sleep 30").await;
    let busy = hub.script(&tasks, "true").await.rejected().await;
    assert_eq!((busy.code.as_str(), tasks.running()), ("node_busy", 2));
    for mut talk in [b, c] {
        talk.cancel("enough").await;
        talk.finish().await;
    }
    assert_eq!(hub.script(&tasks, "true").await.finish().await.response.state, "succeeded");
}

#[tokio::test]
async fn a_policy_that_is_forged_or_older_stays_out() {
    let mut hub = Hub::new();
    let tasks = hub.tasks();
    hub.policy.sequence = 7;
    assert_eq!(tasks.set_policy(&hub.signed_policy()), Ok(7));
    hub.policy.sequence = 6;
    assert!(tasks.set_policy(&hub.signed_policy()).unwrap_err().to_string().contains("older"));
    let forged = SecretKey::from_seed([9; 32]).seal(Domain::Policy, &hub.policy);
    assert!(tasks.set_policy(&forged).unwrap_err().to_string().contains("not the hub's"));
    assert_eq!(tasks.policy_sequence(), 7);
}

#[tokio::test]
async fn a_stream_of_nonsense_ends_and_harms_nobody() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    let unknown = hub.resume(&tasks, &Bytes::from_static(&[7; 16]), 0, 0).await.rejected().await;
    assert_eq!(unknown.code, "unknown_task");
    for bytes in [&b"\xff\xff\xff\xff"[..], b"\x00\x00\x00\x04abcd", b"\x00\x00", b""] {
        let served = tokio::time::timeout(PATIENCE, tasks.serve(bytes, tokio::io::sink())).await.unwrap();
        assert!(served.is_err());
    }
    let empty = cortex_wire::frame::encode(&StreamOpen::default());
    assert!(tasks.serve(&empty[..], tokio::io::sink()).await.is_ok());
    let unsigned = StreamOpen { open: Some(Open::Start(Signed::default())), ..StreamOpen::default() };
    assert!(tasks.serve(&cortex_wire::frame::encode(&unsigned)[..], tokio::io::sink()).await.is_ok());
    assert_eq!(hub.script(&tasks, "true").await.finish().await.response.state, "succeeded");
}

#[tokio::test]
async fn a_peer_that_drains_takes_nothing_new_and_ends_what_does_not_end() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    let mut short = hub.script(&tasks, "echo up; sleep 0.3; echo done").await;
    let mut long = hub.script(&tasks, "echo up; sleep 30").await;
    short.line("up").await;
    long.line("up").await;
    let draining = tokio::spawn({
        let tasks = tasks.clone();
        async move { tasks.drain(Duration::from_secs(1)).await }
    });
    tokio::task::yield_now().await;
    let refused = TaskRequest { session_id: SessionId::new(9, [9; 10]).to_string(), ..hub.request(script("true")) };
    assert_eq!(hub.start(&tasks, &refused).await.rejected().await.code, "draining");
    assert_eq!(short.finish().await.text(), "up\ndone\n");
    let long = long.finish().await;
    assert_eq!((long.response.state.as_str(), long.response.reason.as_str()), ("cancelled", "the peer was stopped"));
    tokio::time::timeout(PATIENCE, draining).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_hub_that_is_gone_before_the_start_is_on_record_stops_it() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    let request = hub.sign(&hub.request(script("touch started")));
    let open = cortex_wire::frame::encode(&StreamOpen { open: Some(Open::Start(request)), ..StreamOpen::default() });
    // Polled once, as far as the first wait, and dropped.
    let _ = poll_once(tasks.serve(&open[..], tokio::io::sink())).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!hub.workspace().join("started").exists());
    assert!(tasks.inventory().is_empty());
}

/// Polls a future once and drops it.
async fn poll_once<F: Future>(future: F) -> bool {
    let mut future = Box::pin(future);
    std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_ready())).await
}

#[tokio::test]
async fn started_is_the_first_thing_that_is_said() {
    let hub = Hub::new();
    let mut talk = hub.script(&hub.tasks(), "echo x").await;
    let Some(Frame::Started(started)) = talk.next().await else { panic!("something else came first") };
    assert_eq!(started.sandbox_level, "permissive");
    assert!(started.at_ms > 1_700_000_000_000);
    talk.finish().await;
}
