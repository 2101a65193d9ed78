//! What people look after: where they are logged in, what was done to their machines, and what a policy's error points to.

use super::*;

/// The cookie of a fresh login, and the headers that go with it.
async fn login(lab: &Lab, name: &str, agent: &str) -> String {
    format!("cortex={}", lab.hub.login(name, PASSWORD, agent).await.unwrap().secret)
}

async fn as_person(lab: &Lab, cookie: &str, method: &str, path: &str, body: Option<Value>) -> Reply {
    let headers = [("cookie", cookie), ("origin", "http://127.0.0.1:8080"), ("content-type", "application/json")];
    lab.send(method, path, &headers, body).await
}

#[tokio::test]
async fn where_one_is_logged_in_is_listed_and_ended_by_people_only() {
    let lab = Lab::new().await;
    lab.user("eve", Role::Member).await;
    let (here, there, hers) = (login(&lab, "ada", "here").await, login(&lab, "ada", "there").await, login(&lab, "eve", "hers").await);
    let list = as_person(&lab, &here, "GET", "/api/me/logins", None).await.expect(StatusCode::OK);
    let items = list["items"].as_array().unwrap();
    assert_eq!((items[0]["agent"].as_str(), items[0]["current"].as_bool()), (Some("here"), Some(true)));
    assert!(items.iter().all(|item| item["agent"] != "hers"), "{list}");
    let other = items.iter().find(|item| item["agent"] == "there").unwrap()["id"].as_str().unwrap();
    let path = format!("/api/me/logins/{other}");
    assert_eq!(as_person(&lab, &hers, "DELETE", &path, None).await.problem(StatusCode::NOT_FOUND), "not_found");
    let bearer = format!("Bearer {}", lab.ada);
    lab.send("DELETE", &path, &[("authorization", &bearer)], None).await.problem(StatusCode::FORBIDDEN);
    lab.get(&lab.ada, "/api/me/logins").await.problem(StatusCode::FORBIDDEN);
    as_person(&lab, &there, "GET", "/api/me", None).await.expect(StatusCode::OK);
    assert_eq!(as_person(&lab, &here, "DELETE", &path, None).await.status, StatusCode::NO_CONTENT);
    assert_eq!(as_person(&lab, &there, "GET", "/api/me", None).await.status, StatusCode::UNAUTHORIZED);
    as_person(&lab, &here, "GET", "/api/me", None).await.expect(StatusCode::OK);
}

#[tokio::test]
async fn what_was_done_to_a_node_is_told_to_its_owner_newest_first_and_page_by_page() {
    let lab = Lab::new().await;
    let eve = lab.user("eve", Role::Member).await;
    let (node, other) = (lab.node(&eve, 1).await, lab.node(&eve, 2).await);
    for round in 0..5 {
        let change = if round % 2 == 0 { "drain" } else { "undrain" };
        for node in [&node, &other] {
            lab.post(&eve, &format!("/api/nodes/{}/{change}", node.id), json!({})).await.expect(StatusCode::OK);
        }
    }
    let (mut cursor, mut verbs) = (String::new(), Vec::new());
    loop {
        let page = lab.get(&eve, &format!("/api/nodes/{}/audit?limit=2{cursor}", node.id)).await.expect(StatusCode::OK);
        let rows = page["items"].as_array().unwrap();
        assert!(
            rows.len() <= 2
                && rows.iter().all(|row| row["object"] == format!("node:{}", node.id) || row["actor"] == format!("node:{}", node.id))
        );
        verbs.extend(rows.iter().map(|row| row["verb"].as_str().unwrap().to_owned()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(verbs[..5], ["node.drain", "node.undrain", "node.drain", "node.undrain", "node.drain"]);
    // Administrators may read it, too; whom it is shared with may not.
    lab.get(&lab.ada, &format!("/api/nodes/{}/audit", node.id)).await.expect(StatusCode::OK);
    let rob = lab.user("rob", Role::Member).await;
    lab.send("PUT", &format!("/api/nodes/{}/shares/rob", node.id), &[("authorization", &format!("Bearer {eve}"))], Some(json!({})))
        .await
        .expect(StatusCode::OK);
    lab.get(&rob, &format!("/api/nodes/{}/audit", node.id)).await.problem(StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn an_error_of_a_policy_points_to_what_is_wrong() {
    let lab = Lab::new().await;
    let node = lab.node(&lab.ada, 1).await;
    let ada = login(&lab, "ada", "test").await;
    let path = format!("/api/nodes/{}/policy", node.id);
    let good = json!({"prefix": ["git"]});
    for (policy, pointer) in [
        (json!({"mode": "strict", "ask": [good, {"prefix": ["git", "push"], "match": ["git pull"]}]}), "/ask/1"),
        (json!({"mode": "strict", "deny": [{"prefix": []}]}), "/deny/0"),
        (json!({"mode": "strict", "task_slots": 0}), "/task_slots"),
    ] {
        let reply = as_person(&lab, &ada, "PUT", &path, Some(policy)).await;
        assert_eq!(reply.problem(StatusCode::BAD_REQUEST), "invalid");
        let body: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(body["pointer"], pointer, "{body}");
    }
    as_person(&lab, &ada, "PUT", &path, Some(json!({"mode": "strict", "ask": [good]}))).await.expect(StatusCode::OK);
}
