//! Who may ask what: every route, taken from the document, as nobody, as a stranger, and as somebody who may only read.

use super::*;

struct Route {
    method: String,
    path: String,
    public: bool,
    name: String,
}

fn routes() -> Vec<Route> {
    let document = serde_json::to_value(crate::api::document()).unwrap();
    let mut routes = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            routes.push(Route {
                method: method.to_uppercase(),
                path: path.clone(),
                public: operation["security"] == json!([{}]),
                name: operation["operationId"].as_str().unwrap().to_owned(),
            });
        }
    }
    assert!(routes.len() > 40, "the document lists the routes");
    routes
}

/// A body that the handler would take.
fn body_for(name: &str) -> Option<Value> {
    Some(match name {
        "setup" => json!({"token": "x", "name": "x", "password": PASSWORD}),
        "login" => json!({"name": "x", "password": PASSWORD}),
        "change_password" => json!({"old": PASSWORD, "new": PASSWORD}),
        "create_token" => json!({"name": "x", "scopes": ["read"]}),
        "create_user" => json!({"name": "x", "password": PASSWORD, "role": "member"}),
        "set_policy" => json!({"mode": "strict"}),
        "add_member" => json!({"role": "member"}),
        "post_message" => json!({"text": "x"}),
        "dispatch" => json!({"argv": ["true"]}),
        "write_stdin" => json!({"offset": 0, "data": "x"}),
        "put_secret" | "put_session_secret" => json!({"value": "long enough"}),
        "act" => json!({"order": {"action": "back"}}),
        "move_file" => json!({"from": "a", "to": "b"}),
        "unlock_workspace" => json!({"fence": 1}),
        "answer_node" => json!({"question": 1, "yes": true}),
        "restore_workspace" => json!({"revision": 0}),
        "resolve_conflict" => json!({"take": "mine"}),
        "bundle" => json!({"invite": "cxi1_x"}),
        "add_relay" => json!({"endpoint": format!("relay.example:443#{}", SecretKey::from_seed([9; 32]).public())}),
        _ => json!({}),
    })
}

/// Things of ada's, to be asked for by others.
struct Things {
    node: String,
    session: String,
    task: String,
    invite: String,
    token: String,
    user: String,
}

async fn things(lab: &Lab) -> Things {
    let node = lab.node(&lab.ada, 1).await;
    let session = lab.session(&lab.ada, &node).await;
    let task = lab.task(&lab.ada, &session, &node).await;
    let invite = lab.post(&lab.ada, "/api/nodes/invite", json!({})).await.expect(StatusCode::CREATED);
    let me = lab.get(&lab.ada, "/api/me").await.expect(StatusCode::OK);
    let tokens = lab.get(&lab.ada, "/api/tokens").await.expect(StatusCode::OK);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    Things {
        node: node.id.to_string(),
        session,
        task: task.to_string(),
        invite: text(&invite["id"]),
        token: text(&tokens["items"][0]["id"]),
        user: text(&me["user_id"]),
    }
}

impl Things {
    fn fill(&self, path: &str) -> String {
        let id = match path {
            _ if path.starts_with("/api/nodes/invites/") => &self.invite,
            _ if path.starts_with("/api/nodes/") => &self.node,
            _ if path.starts_with("/api/sessions/") => &self.session,
            _ if path.starts_with("/api/tasks/") || path.starts_with("/api/approvals/") => &self.task,
            _ if path.starts_with("/api/tokens/") => &self.token,
            _ if path.starts_with("/api/users/") => &self.user,
            _ => "x",
        };
        path.replace("{id}", id)
            .replace("{node}", &self.node)
            .replace("{user}", "ada")
            .replace("{file}", "x")
            .replace("{name}", "x")
            .replace("{path}", "x")
            .replace("{revision}", "1")
            .replace("{number}", "1")
    }
}

#[tokio::test]
async fn without_credentials_or_with_wrong_ones_nothing_answers() {
    let lab = Lab::new().await;
    let things = things(&lab).await;
    for route in routes().into_iter().filter(|route| !route.public) {
        let path = things.fill(&route.path);
        for headers in [
            &[][..],
            &[("authorization", "Bearer cxt_made_up")],
            &[("authorization", "Basic YWRhOng=")],
            &[("authorization", "Bearer "), ("cookie", "cortex=x")],
            &[("cookie", "cortex=made-up"), ("origin", "http://127.0.0.1:8080")],
            // The strong cookie's name counts only where browsers come through TLS.
            &[("cookie", "__Host-cortex=made-up"), ("origin", "http://127.0.0.1:8080")],
        ] {
            let reply = lab.send(&route.method, &path, headers, body_for(&route.name)).await;
            assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{} with {headers:?}: {:?}", reply.what, reply.body);
            reply.problem(StatusCode::UNAUTHORIZED);
        }
    }
}

#[tokio::test]
async fn what_belongs_to_somebody_else_answers_like_what_does_not_exist() {
    let lab = Lab::new().await;
    let things = things(&lab).await;
    let eve = lab.user("eve", Role::Member).await;
    let bearer = format!("Bearer {eve}");
    let foreign = routes().into_iter().filter(|route| !route.public && route.path.contains("{id}"));
    for route in foreign {
        let path = things.fill(&route.path);
        let reply = lab.send(&route.method, &path, &[("authorization", &bearer)], body_for(&route.name)).await;
        if route.path.starts_with("/api/users/") {
            reply.problem(StatusCode::FORBIDDEN);
            continue;
        }
        assert_eq!(reply.problem(StatusCode::NOT_FOUND), "not_found", "{}", reply.what);
        // Word for word as for an id that nobody has.
        let missing = Things {
            node: NodeId::from(SecretKey::from_seed([99; 32]).public()).to_string(),
            session: uuid::Uuid::from_u128(7).to_string(),
            task: uuid::Uuid::from_u128(7).to_string(),
            invite: uuid::Uuid::from_u128(7).to_string(),
            token: "nothing".into(),
            user: uuid::Uuid::from_u128(7).to_string(),
        };
        let other = lab.send(&route.method, &missing.fill(&route.path), &[("authorization", &bearer)], body_for(&route.name)).await;
        assert_eq!(reply.body, other.body, "{}", reply.what);
    }
    // Nothing of it was touched.
    lab.get(&lab.ada, &things.fill("/api/nodes/{id}")).await.expect(StatusCode::OK);
    let session = lab.get(&lab.ada, &things.fill("/api/sessions/{id}")).await.expect(StatusCode::OK);
    assert_eq!(session["node_ids"], json!([things.node]));
    assert_eq!(lab.get(&lab.ada, &things.fill("/api/tasks/{id}")).await.expect(StatusCode::OK)["state"], "running");
    assert_eq!(lab.get(&eve, "/api/nodes").await.expect(StatusCode::OK)["items"], json!([]));
}

#[tokio::test]
async fn a_viewer_changes_nothing_even_where_things_are_shared() {
    let lab = Lab::new().await;
    let things = things(&lab).await;
    let cookie = format!("cortex={}", lab.user("vic", Role::Viewer).await);
    let share = format!("/api/sessions/{}/members/vic", things.session);
    lab.send("PUT", &share, &[("authorization", &format!("Bearer {}", lab.ada))], Some(json!({"role": "member"})))
        .await
        .expect(StatusCode::OK);
    let headers = [("cookie", cookie.as_str()), ("origin", "http://127.0.0.1:8080"), ("content-type", "application/json")];
    lab.send("GET", &things.fill("/api/sessions/{id}"), &headers, None).await.expect(StatusCode::OK);
    for route in routes().into_iter().filter(|route| !route.public && route.method != "GET") {
        // Its own password, a token that reads no more than it does itself, and its way out of a session.
        if ["change_password", "create_token", "remove_member"].contains(&route.name.as_str()) {
            continue;
        }
        let reply = lab.send(&route.method, &things.fill(&route.path), &headers, body_for(&route.name)).await;
        let refused = [StatusCode::FORBIDDEN, StatusCode::NOT_FOUND].contains(&reply.status);
        assert!(refused, "{} answered {}: {:?}", reply.what, reply.status, reply.body);
    }
    assert_eq!(lab.get(&lab.ada, &things.fill("/api/tasks/{id}")).await.expect(StatusCode::OK)["state"], "running");
}

#[tokio::test]
async fn a_token_reaches_as_far_as_its_scopes() {
    let lab = Lab::new().await;
    let things = things(&lab).await;
    let reply = lab.post(&lab.ada, "/api/tokens", json!({"name": "reader", "scopes": ["read"], "expires_in_s": 60})).await;
    let reader = reply.expect(StatusCode::CREATED)["text"].as_str().unwrap().to_owned();
    lab.get(&reader, &things.fill("/api/sessions/{id}")).await.expect(StatusCode::OK);
    let dispatch = things.fill("/api/sessions/{id}/dispatch");
    assert_eq!(lab.post(&reader, &dispatch, json!({"argv": ["true"]})).await.problem(StatusCode::FORBIDDEN), "forbidden");
    assert_eq!(
        lab.post(&reader, "/api/tokens", json!({"name": "more", "scopes": ["admin"]})).await.problem(StatusCode::FORBIDDEN),
        "forbidden"
    );
    lab.get(&reader, "/api/audit").await.problem(StatusCode::FORBIDDEN);
    lab.get(&reader, "/metrics").await.problem(StatusCode::FORBIDDEN);
    let id =
        lab.get(&lab.ada, "/api/tokens").await.json()["items"].as_array().unwrap().iter().find(|t| t["name"] == "reader").unwrap()["id"]
            .clone();
    let path = format!("/api/tokens/{}", id.as_str().unwrap());
    lab.send("DELETE", &path, &[("authorization", &format!("Bearer {}", lab.ada))], None).await.expect(StatusCode::NO_CONTENT);
    lab.get(&reader, "/api/me").await.problem(StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_login_gives_a_cookie_that_works_until_the_logout() {
    let lab = Lab::new().await;
    let login = json!({"name": "ada", "password": PASSWORD});
    let reply = lab.send("POST", "/api/login", &[], Some(login)).await;
    assert_eq!(reply.expect(StatusCode::OK)["name"], "ada");
    let set = reply.headers["set-cookie"].to_str().unwrap().to_owned();
    assert!(set.starts_with("cortex=") && set.contains("HttpOnly") && set.contains("SameSite=Lax") && set.contains("Path=/"), "{set}");
    let cookie = set.split(';').next().unwrap();
    let own = [("cookie", cookie), ("origin", "http://127.0.0.1:8080")];
    assert_eq!(lab.send("GET", "/api/me", &own, None).await.expect(StatusCode::OK)["via"], "ui");
    assert_eq!(
        lab.send("POST", "/api/sessions", &[("cookie", cookie)], Some(json!({}))).await.problem(StatusCode::FORBIDDEN),
        "cross_site"
    );
    lab.send("POST", "/api/sessions", &own, Some(json!({}))).await.expect(StatusCode::CREATED);
    let reply = lab.send("POST", "/api/logout", &own, Some(json!({}))).await;
    reply.expect(StatusCode::NO_CONTENT);
    assert!(reply.headers["set-cookie"].to_str().unwrap().contains("Max-Age=0"));
    lab.send("GET", "/api/me", &own, None).await.problem(StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn behind_tls_the_cookie_is_bound_to_its_host() {
    let lab = Lab::with(ApiOptions { public_url: Some("https://hub.example.org".parse().unwrap()), ..ApiOptions::default() }).await;
    let host = ("host", "hub.example.org");
    let login = json!({"name": "ada", "password": PASSWORD});
    let reply = lab.send("POST", "/api/login", &[host, ("origin", "https://hub.example.org")], Some(login)).await;
    reply.expect(StatusCode::OK);
    let set = reply.headers["set-cookie"].to_str().unwrap().to_owned();
    assert!(set.starts_with("__Host-cortex=") && set.contains("; Secure;"), "{set}");
    assert!(reply.headers.contains_key("strict-transport-security"));
    let secret = set.split(['=', ';']).nth(1).unwrap();
    lab.send("GET", "/api/me", &[host, ("cookie", &format!("__Host-cortex={secret}"))], None).await.expect(StatusCode::OK);
    lab.send("GET", "/api/me", &[host, ("cookie", &format!("cortex={secret}"))], None).await.problem(StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn guessing_passwords_is_slowed_down_per_account_and_network() {
    let lab = Lab::with(ApiOptions { logins_per_account: 3, ..ApiOptions::default() }).await;
    let wrong = || json!({"name": "ada", "password": "wrong password"});
    for _ in 0..3 {
        assert_eq!(lab.send("POST", "/api/login", &[], Some(wrong())).await.problem(StatusCode::UNAUTHORIZED), "bad_login");
    }
    let reply = lab.send("POST", "/api/login", &[], Some(json!({"name": "ADA ", "password": PASSWORD}))).await;
    assert_eq!(reply.problem(StatusCode::TOO_MANY_REQUESTS), "too_many_requests");
    assert!(reply.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 0);
}

#[tokio::test]
async fn a_foreign_host_is_misdirected_and_probes_are_not() {
    let lab = Lab::new().await;
    for path in ["/", "/download", "/api/me", "/api/openapi.json", "/install.sh"] {
        assert_eq!(lab.send("GET", path, &[("host", "evil.example")], None).await.problem(StatusCode::MISDIRECTED_REQUEST), "unknown_host");
    }
    assert_eq!(lab.send("GET", "/healthz", &[("host", "10.1.2.3")], None).await.text(), "ok\n");
    lab.send("GET", "/readyz", &[("host", "10.1.2.3")], None).await.expect(StatusCode::OK);
}

#[tokio::test]
async fn every_answer_tells_browsers_to_be_careful() {
    let lab = Lab::new().await;
    for path in ["/", "/api/me", "/nowhere", "/assets/app.js", "/api/docs/"] {
        let headers = lab.send("GET", path, &[], None).await.headers;
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(headers["referrer-policy"], "no-referrer", "{path}");
        let csp = headers["content-security-policy"].to_str().unwrap();
        assert!(
            csp.contains("default-src 'none'") && csp.contains("script-src 'self';") && csp.contains("frame-ancestors 'none'"),
            "{path}: {csp}"
        );
        assert_eq!(csp.contains("unsafe-inline"), path == "/api/docs/", "{path}: {csp}");
        assert!(!headers.contains_key("access-control-allow-origin"), "{path}");
    }
    assert_eq!(lab.send("GET", "/api/me", &[], None).await.headers["cache-control"], "no-store");
}

#[tokio::test]
async fn streams_of_one_account_are_counted() {
    let lab = Lab::with(ApiOptions { streams_per_user: 2, ..ApiOptions::default() }).await;
    let first = lab.events(&lab.ada, "/api/events", None).await;
    let _second = lab.events(&lab.ada, "/api/events", None).await;
    lab.get(&lab.ada, "/api/events").await.problem(StatusCode::TOO_MANY_REQUESTS);
    drop(first);
    lab.events(&lab.ada, "/api/events", None).await;
}
