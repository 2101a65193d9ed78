//! What people do, from one end to the other.

use super::*;

#[tokio::test]
async fn the_first_administrator_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::open(dir.path(), HubOptions::default()).await.unwrap();
    let token = hub.setup_token().await.unwrap().unwrap();
    let api = Api::new(hub.clone(), ApiOptions::default(), Lifecycle::new());
    let lab = Lab { dir, router: router(api.clone()), hub, mesh: Arc::default(), api, ada: String::new() };
    assert_eq!(lab.send("GET", "/api/setup", &[], None).await.expect(StatusCode::OK)["needed"], true);
    let body = |token: &str| Some(json!({"token": token, "name": "Ada", "password": PASSWORD}));
    assert_eq!(lab.send("POST", "/api/setup", &[], body("wrong")).await.problem(StatusCode::UNAUTHORIZED), "bad_setup_token");
    let reply = lab.send("POST", "/api/setup", &[], body(&token)).await;
    assert_eq!(reply.expect(StatusCode::OK)["role"], "admin");
    assert!(reply.headers.contains_key("set-cookie"));
    assert_eq!(lab.send("POST", "/api/setup", &[], body(&token)).await.problem(StatusCode::CONFLICT), "already_set_up");
    assert_eq!(lab.send("GET", "/api/setup", &[], None).await.expect(StatusCode::OK)["needed"], false);
}

#[tokio::test]
async fn a_machine_is_invited_comes_and_goes() {
    let lab = Lab::new().await;
    let fresh = lab.post(&lab.ada, "/api/nodes/invite", json!({"name": "box", "labels": {"os": "linux"}, "expires_in_s": 900})).await;
    let fresh = fresh.expect(StatusCode::CREATED);
    let text = fresh["invite"].as_str().unwrap();
    assert!(fresh["yaml"].as_str().unwrap().contains(text) && fresh["one_liner"].as_str().unwrap().ends_with(text));
    let path = format!("/api/nodes/invites/{}", fresh["id"].as_str().unwrap());
    let shown = lab.get(&lab.ada, &path).await;
    assert_eq!(shown.expect(StatusCode::OK)["state"], "open");
    assert!(!shown.text().contains("cxi1_"), "the secret is shown once");
    let bearer = format!("Bearer {}", lab.ada);
    assert_eq!(lab.send("DELETE", &path, &[("authorization", &bearer)], None).await.expect(StatusCode::OK)["state"], "revoked");
    let node = lab.node(&lab.ada, 7).await;
    let listed = lab.get(&lab.ada, "/api/nodes").await.expect(StatusCode::OK);
    assert_eq!((&listed["items"][0]["name"], &listed["items"][0]["presence"]["state"]), (&json!("machine-7"), &json!("online")));
    assert_eq!(listed["items"][0]["owner"], "ada");
    let path = format!("/api/nodes/{}", node.id);
    let changed =
        lab.send("PATCH", &path, &[("authorization", &bearer)], Some(json!({"name": "<b>bold</b>"}))).await.expect(StatusCode::OK);
    assert_eq!(changed["name"], "<b>bold</b>", "names are text, whatever they hold");
    lab.hub.node_offline(node.id, 1, "the peer said goodbye").await.unwrap();
    let status = lab.get(&lab.ada, &format!("{path}/status")).await.expect(StatusCode::OK);
    assert_eq!((&status["state"], &status["last_disconnect"]["reason"]), (&json!("offline"), &json!("the peer said goodbye")));
    lab.send("DELETE", &path, &[("authorization", &bearer)], None).await.expect(StatusCode::NO_CONTENT);
    lab.get(&lab.ada, &path).await.problem(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_policy_is_set_and_shown_beside_the_node_s_own() {
    let lab = Lab::new().await;
    let node = lab.node(&lab.ada, 1).await;
    let path = format!("/api/nodes/{}/policy", node.id);
    let login = lab.hub.login("ada", PASSWORD, "test").await.unwrap();
    let cookie = format!("cortex={}", login.secret);
    let person = [("cookie", cookie.as_str()), ("origin", "http://127.0.0.1:8080"), ("content-type", "application/json")];
    let rules = json!({"mode": "permissive", "deny": [{"prefix": ["rm", "-rf"], "reason": "no"}], "task_slots": 3});
    let bearer = format!("Bearer {}", lab.ada);
    let by_token = lab.send("PUT", &path, &[("authorization", &bearer)], Some(rules.clone())).await;
    assert_eq!(by_token.problem(StatusCode::FORBIDDEN), "forbidden", "an agent's token, whatever its scopes");
    let set = lab.send("PUT", &path, &person, Some(rules.clone())).await.expect(StatusCode::OK);
    assert_eq!((&set["policy"]["task_slots"], &set["policy"]["deny"][0]["prefix"][0]), (&json!(3), &json!("rm")));
    let shown = lab.get(&lab.ada, &path).await.expect(StatusCode::OK);
    assert_eq!((&shown["policy"], &shown["version"], &shown["is_in_force"]), (&set["policy"], &json!(2), &json!(false)));
    for (tag, status) in [("\"1\"", StatusCode::CONFLICT), ("nonsense", StatusCode::BAD_REQUEST), ("\"2\"", StatusCode::OK)] {
        let headers: Vec<_> = person.iter().copied().chain([("if-match", tag)]).collect();
        assert_eq!(lab.send("PUT", &path, &headers, Some(rules.clone())).await.status, status, "{tag}");
    }
}

#[tokio::test]
async fn a_command_is_dispatched_once_per_idempotency_key() {
    let lab = Lab::new().await;
    let node = lab.node(&lab.ada, 1).await;
    let session = lab.session(&lab.ada, &node).await;
    let path = format!("/api/sessions/{session}/dispatch");
    let bearer = format!("Bearer {}", lab.ada);
    let headers = [("authorization", bearer.as_str()), ("idempotency-key", "k1")];
    let first = lab.send("POST", &path, &headers, Some(json!({"script": "uname -a"}))).await.expect(StatusCode::CREATED);
    assert_eq!((&first["state"], &first["node_id"]), (&json!("leased"), &json!(node.id)));
    let again = lab.send("POST", &path, &headers, Some(json!({"script": "uname -a"}))).await.expect(StatusCode::OK);
    assert_eq!(again["id"], first["id"]);
    let other = lab.send("POST", &path, &headers, Some(json!({"script": "id"}))).await;
    assert_eq!(other.problem(StatusCode::CONFLICT), "idempotency_conflict");
    assert_eq!(lab.post(&lab.ada, &path, json!({})).await.problem(StatusCode::BAD_REQUEST), "malformed_task");
    let listed = lab.get(&lab.ada, &format!("/api/sessions/{session}/tasks?limit=1")).await.expect(StatusCode::OK);
    assert_eq!((&listed["items"][0]["id"], &listed["next_cursor"]), (&first["id"], &Value::Null));
    let cancelled = lab.post(&lab.ada, &format!("/api/tasks/{}/cancel", first["id"].as_str().unwrap()), json!({})).await;
    assert!(cancelled.expect(StatusCode::OK)["cancel_asked_at_ms"].is_i64());
}

#[tokio::test]
async fn a_dispatch_to_nowhere_says_what_to_do() {
    let lab = Lab::new().await;
    let empty = lab.post(&lab.ada, "/api/sessions", json!({})).await.expect(StatusCode::CREATED)["id"].as_str().unwrap().to_owned();
    let command = || json!({"argv": ["true"]});
    let reply = lab.post(&lab.ada, &format!("/api/sessions/{empty}/dispatch"), command()).await;
    assert_eq!(reply.problem(StatusCode::CONFLICT), "no_node");
    let (one, two) = (lab.node(&lab.ada, 1).await, lab.node(&lab.ada, 2).await);
    let session = lab.session(&lab.ada, &one).await;
    lab.post(&lab.ada, &format!("/api/sessions/{session}/nodes/{}", two.id), json!({})).await.expect(StatusCode::OK);
    let path = format!("/api/sessions/{session}/dispatch");
    let reply = lab.post(&lab.ada, &path, command()).await;
    assert_eq!(reply.problem(StatusCode::CONFLICT), "ambiguous_node");
    assert_eq!(reply.json()["candidates"].as_array().unwrap().len(), 2);
    lab.mesh.online.lock().unwrap().clear();
    let reply = lab.post(&lab.ada, &path, json!({"argv": ["true"], "node": one.id})).await;
    assert_eq!(reply.problem(StatusCode::SERVICE_UNAVAILABLE), "node_offline");
    let waiting = lab.post(&lab.ada, &path, json!({"argv": ["true"], "node": one.id, "queue_timeout_ms": 60000})).await;
    assert_eq!(waiting.expect(StatusCode::CREATED)["state"], "queued");
}

#[tokio::test]
async fn a_conversation_is_shared_and_paged() {
    let lab = Lab::new().await;
    let bob = lab.user("bob", Role::Member).await;
    let session =
        lab.post(&lab.ada, "/api/sessions", json!({"title": "talk"})).await.expect(StatusCode::CREATED)["id"].as_str().unwrap().to_owned();
    let bearer = format!("Bearer {}", lab.ada);
    let path = format!("/api/sessions/{session}/members/bob");
    let shared = lab.send("PUT", &path, &[("authorization", &bearer)], Some(json!({"role": "member"}))).await.expect(StatusCode::OK);
    assert_eq!((&shared["members"][0]["name"], &shared["members"][0]["role"]), (&json!("bob"), &json!("member")));
    for (token, text) in [(&lab.ada, "one"), (&bob, "two"), (&lab.ada, "three")] {
        lab.post(token, &format!("/api/sessions/{session}/messages"), json!({"text": text})).await.expect(StatusCode::CREATED);
    }
    let (mut cursor, mut texts) = (String::new(), Vec::new());
    loop {
        let page = lab.get(&bob, &format!("/api/sessions/{session}/messages?limit=2{cursor}")).await.expect(StatusCode::OK);
        texts.extend(page["items"].as_array().unwrap().iter().map(|event| event["data"]["text"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(texts, ["one", "two", "three"]);
    lab.send("DELETE", &path, &[("authorization", &format!("Bearer {bob}"))], None).await.expect(StatusCode::NO_CONTENT);
    lab.get(&bob, &format!("/api/sessions/{session}")).await.problem(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn standard_input_is_written_by_offset() {
    let lab = Lab::new().await;
    let node = lab.node(&lab.ada, 1).await;
    let session = lab.session(&lab.ada, &node).await;
    let task = lab
        .post(&lab.ada, &format!("/api/sessions/{session}/dispatch"), json!({"argv": ["cat"], "stdin": true}))
        .await
        .expect(StatusCode::CREATED);
    let id: TaskId = task["id"].as_str().unwrap().parse().unwrap();
    lab.hub.started(id, node.id, &started(lab.hub.now_ms())).await.unwrap();
    let path = format!("/api/tasks/{id}/stdin");
    assert_eq!(lab.post(&lab.ada, &path, json!({"offset": 0, "data": "hé"})).await.expect(StatusCode::OK)["next_offset"], 3);
    assert_eq!(
        lab.post(&lab.ada, &path, json!({"offset": 3, "base64": "/wA=", "end": true})).await.expect(StatusCode::OK)["next_offset"],
        5
    );
    assert_eq!(lab.mesh.stdin.lock().unwrap().as_slice(), b"h\xc3\xa9\xff\0");
    assert_eq!(lab.post(&lab.ada, &path, json!({"offset": 9, "data": "x"})).await.problem(StatusCode::CONFLICT), "wrong_offset");
    lab.post(&lab.ada, &path, json!({"offset": 5, "data": "x", "base64": "eA=="})).await.problem(StatusCode::BAD_REQUEST);
    let large = lab.post(&lab.ada, &path, json!({"offset": 5, "data": "x".repeat(600 * 1024)})).await;
    assert_eq!(large.problem(StatusCode::PAYLOAD_TOO_LARGE), "body_too_large");
}

#[tokio::test]
async fn the_audit_log_is_read_and_verified_by_administrators() {
    let lab = Lab::new().await;
    lab.node(&lab.ada, 1).await;
    let page = lab.get(&lab.ada, "/api/audit?limit=2").await.expect(StatusCode::OK);
    assert_eq!((page["items"].as_array().unwrap().len(), &page["items"][0]["seq"]), (2, &json!(1)));
    let next =
        lab.get(&lab.ada, &format!("/api/audit?limit=2&cursor={}", page["next_cursor"].as_str().unwrap())).await.expect(StatusCode::OK);
    assert_eq!(next["items"][0]["seq"], 3);
    let all = lab.get(&lab.ada, "/api/audit").await.expect(StatusCode::OK)["items"].as_array().unwrap().clone();
    let (mut cursor, mut back) = (String::new(), Vec::new());
    loop {
        let page = lab.get(&lab.ada, &format!("/api/audit?newest_first=true&limit=2{cursor}")).await.expect(StatusCode::OK);
        back.extend(page["items"].as_array().unwrap().clone());
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    back.reverse();
    assert_eq!(back, all);
    let report = lab.get(&lab.ada, "/api/audit/verify").await.expect(StatusCode::OK);
    assert_eq!((&report["sound"], &report["first_bad_seq"]), (&json!(true), &Value::Null));
    let relays = lab.get(&lab.ada, "/api/relays").await.expect(StatusCode::OK);
    assert_eq!(relays["items"][0]["online"], true);
}

#[tokio::test]
async fn an_operator_makes_accounts_and_tokens_on_the_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::open(dir.path(), HubOptions::default()).await.unwrap();
    let new = |name: &str, role| NewUser { name: name.into(), password: PASSWORD.into(), role };
    crate::operator::create_user(&hub, new("ada", Role::Admin)).await.unwrap();
    let user = crate::operator::create_user(&hub, new("bob", Role::Member)).await.unwrap();
    let token = NewToken { name: "ci".into(), scopes: ALL_SCOPES.into(), expires_in_ms: None };
    let text = crate::operator::create_token(&hub, &user, token).await.unwrap();
    assert!(!hub.authenticate_token(&text).await.unwrap().may(Scope::Admin));
    crate::operator::reset_password(&hub, &user, "another long password".into()).await.unwrap();
    assert!(hub.login("bob", PASSWORD, "test").await.is_err());
    hub.login("bob", "another long password", "test").await.unwrap();
    assert!(matches!(Hub::open(dir.path(), HubOptions::default()).await, Err(crate::hub::OpenError::InUse { .. })));
}
