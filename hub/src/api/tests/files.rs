//! A session's files through the API: contents, what a change expects, history, and who may see any of it.

use super::*;

/// A session of ada without nodes.
struct Desk {
    lab: Lab,
    session: String,
}

impl Desk {
    async fn new() -> Self {
        let lab = Lab::new().await;
        let session = lab.post(&lab.ada, "/api/sessions", json!({})).await.expect(StatusCode::CREATED);
        Self { session: session["id"].as_str().unwrap().to_owned(), lab }
    }

    fn url(&self, rest: &str) -> String {
        format!("/api/sessions/{}/{rest}", self.session)
    }

    async fn get(&self, rest: &str) -> Reply {
        self.lab.get(&self.lab.ada, &self.url(rest)).await
    }

    async fn post(&self, rest: &str, body: Value) -> Reply {
        self.lab.post(&self.lab.ada, &self.url(rest), body).await
    }

    async fn with(&self, method: &str, rest: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Reply {
        self.as_who(&self.lab.ada, method, rest, headers, body).await
    }

    async fn as_who(&self, token: &str, method: &str, rest: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Reply {
        let url = self.url(rest);
        let mut request =
            Request::builder().method(method).uri(&url).header("host", HOST).header("authorization", format!("Bearer {token}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.lab.router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
        Reply { what: format!("{method} {url}"), status: parts.status, headers: parts.headers, body }
    }

    /// Writes a file; its hash.
    async fn write(&self, path: &str, bytes: impl Into<Body>) -> String {
        let reply = self.with("PUT", &format!("files/{path}"), &[], bytes).await;
        assert!(reply.status.is_success(), "{}: {:?}", reply.what, reply.body);
        reply.json()["file"]["hash"].as_str().unwrap().to_owned()
    }

    async fn revision(&self) -> u64 {
        self.get("workspace").await.expect(StatusCode::OK)["revision"].as_u64().unwrap()
    }

    async fn paths(&self, query: &str) -> Vec<String> {
        let items = self.get(&format!("files?{query}")).await.expect(StatusCode::OK);
        items["items"].as_array().unwrap().iter().map(|item| item["path"].as_str().unwrap().to_owned()).collect()
    }
}

fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

/// In pieces, as a connection brings them.
fn in_pieces(bytes: &[u8], end: Option<std::io::Error>) -> Body {
    let pieces: Vec<std::io::Result<Bytes>> = bytes.chunks(65_521).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    Body::from_stream(futures_util::stream::iter(pieces.into_iter().chain(end.map(Err))))
}

#[tokio::test]
async fn a_file_comes_back_as_it_was_sent_whole_and_in_ranges() {
    let desk = Desk::new().await;
    let bytes = noise(3_000_000);
    let reply = desk.with("PUT", "files/d/large.bin?executable=true", &[], in_pieces(&bytes, None)).await;
    let written = reply.expect(StatusCode::CREATED);
    assert_eq!(
        (written["revision"].as_u64(), written["file"]["size"].as_u64(), written["file"]["executable"].as_bool()),
        (Some(1), Some(3_000_000), Some(true))
    );
    let tag = format!("\"{}\"", written["file"]["hash"].as_str().unwrap());
    let whole = desk.get("files/d/large.bin").await;
    assert_eq!((whole.status, whole.headers["etag"].to_str().unwrap(), whole.body[..] == bytes), (StatusCode::OK, &*tag, true));
    assert_eq!(whole.headers["content-disposition"], "attachment; filename=\"large.bin\"; filename*=UTF-8''large.bin");
    assert_eq!(whole.headers["x-content-type-options"], "nosniff");
    for (range, wanted) in [
        ("bytes=0-0", 0..1),
        ("bytes=999999-2000000", 999_999..2_000_001),
        ("bytes=-5", 2_999_995..3_000_000),
        ("bytes=2999999-", 2_999_999..3_000_000),
    ] {
        let part = desk.with("GET", "files/d/large.bin", &[("range", range)], Body::empty()).await;
        assert_eq!(part.status, StatusCode::PARTIAL_CONTENT);
        assert_eq!(part.headers["content-range"], format!("bytes {}-{}/3000000", wanted.start, wanted.end - 1));
        assert!(part.body == bytes[wanted], "{range}");
    }
    let outside = desk.with("GET", "files/d/large.bin", &[("range", "bytes=3000000-")], Body::empty()).await;
    assert_eq!(outside.problem(StatusCode::RANGE_NOT_SATISFIABLE), "bad_range");
    assert_eq!(desk.with("GET", "files/d/large.bin", &[("if-none-match", &tag)], Body::empty()).await.status, StatusCode::NOT_MODIFIED);
    let other = [("range", "bytes=0-0"), ("if-range", "\"0\"")];
    assert_eq!(
        desk.with("GET", "files/d/large.bin", &other, Body::empty()).await.status,
        StatusCode::OK,
        "another version's part is of no use"
    );
    assert_eq!(desk.get("files/d").await.problem(StatusCode::CONFLICT), "not_a_file");
    assert_eq!(desk.get("files/nothing").await.problem(StatusCode::NOT_FOUND), "no_file");
}

#[tokio::test]
async fn a_stale_parent_answers_409_with_both_hashes() {
    let desk = Desk::new().await;
    let first = desk.write("f", "one").await;
    let second = desk.write("f", "two").await;
    let stale = format!("\"{first}\"");
    for method in ["PUT", "DELETE"] {
        let reply = desk.with(method, "files/f", &[("if-match", &stale)], "three").await;
        assert_eq!(reply.problem(StatusCode::CONFLICT), "stale_parent");
        assert_eq!((reply.json()["parent_hash"].as_str(), reply.json()["current_hash"].as_str()), (Some(&*first), Some(&*second)));
    }
    let moved = desk.post("workspace/move", json!({"from": "f", "to": "g", "parent": first})).await;
    assert_eq!(moved.problem(StatusCode::CONFLICT), "stale_parent");
    assert_eq!(desk.get("files/f").await.text(), "two");
    let gone = desk.with("PUT", "files/new", &[("if-match", &stale)], "x").await;
    assert_eq!((gone.problem(StatusCode::CONFLICT), gone.json().get("current_hash")), ("stale_parent".into(), None));
    let there = desk.with("PUT", "files/f", &[("if-none-match", "*")], "x").await;
    assert_eq!((there.problem(StatusCode::CONFLICT), there.json()["current_hash"].as_str()), ("already_exists".into(), Some(&*second)));
    assert_eq!(desk.with("PUT", "files/f", &[("if-match", "nonsense")], "x").await.problem(StatusCode::BAD_REQUEST), "malformed_request");
    let fresh = format!("\"{second}\"");
    assert_eq!(desk.with("PUT", "files/f", &[("if-match", &fresh)], "three").await.status, StatusCode::OK);
    assert_eq!(desk.revision().await, 3);
    // What is the same already is no change.
    desk.write("f", "three").await;
    assert_eq!(desk.revision().await, 3);
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let desk = Desk::new().await;
    let broken = in_pieces(&noise(700_000), Some(std::io::Error::other("the cable was cut")));
    assert_eq!(desk.with("PUT", "files/f", &[], broken).await.problem(StatusCode::BAD_REQUEST), "broken_upload");
    let archive = tar_of(&[("a", "1"), ("b", "2")]);
    let broken = in_pieces(&archive[..1200], Some(std::io::Error::other("the cable was cut")));
    assert_eq!(desk.with("PUT", "workspace/archive", &[], broken).await.problem(StatusCode::BAD_REQUEST), "broken_upload");
    let short = in_pieces(&archive[..1100], None);
    assert_eq!(desk.with("PUT", "workspace/archive", &[], short).await.problem(StatusCode::BAD_REQUEST), "broken_upload");
    assert_eq!((desk.revision().await, desk.paths("recursive=true").await), (0, vec![]));
}

#[tokio::test]
async fn odd_names_are_names_and_impossible_ones_are_refused() {
    let desk = Desk::new().await;
    let names = ["a b", "n\nl", "e\u{301}", "\u{e9}", "ÄÖ/ß", "...", "-x", "a\\b", "%41", "?q=1#f", "😀", &"x".repeat(255), ".git/config"];
    let encode = |name: &str| name.bytes().map(|byte| if byte == b'/' { "/".into() } else { format!("%{byte:02X}") }).collect::<String>();
    for name in names {
        desk.write(&encode(name), name.to_owned()).await;
        assert_eq!(desk.get(&format!("files/{}", encode(name))).await.text(), name);
    }
    let listed = desk.paths("recursive=true&limit=1000").await;
    assert!(names.iter().all(|name| listed.contains(&(*name).to_owned())), "{listed:?}");
    for name in ["..", "a/../b", "a/./b", "a//b", "%00", ".cortex/x", &"x".repeat(256), &"d/".repeat(200)] {
        let reply = desk.with("PUT", &format!("files/{name}"), &[], "x").await;
        assert!(reply.status.is_client_error(), "{name}: {}", reply.status);
    }
    assert_eq!(desk.revision().await, names.len() as u64);
}

#[tokio::test]
async fn folders_list_in_pages_that_add_up() {
    let desk = Desk::new().await;
    let archive = tar_of(&[("a/1", ""), ("a/2", "22"), ("a/b/3", "333"), ("c", "4")]);
    desk.with("PUT", "workspace/archive", &[], archive).await.expect(StatusCode::OK);
    assert_eq!(desk.paths("").await, ["a", "c"]);
    assert_eq!(desk.paths("path=a").await, ["a/1", "a/2", "a/b"]);
    assert_eq!(desk.paths("path=a/&recursive=true").await, ["a/1", "a/2", "a/b", "a/b/3"]);
    assert_eq!(desk.get("files?path=c").await.problem(StatusCode::NOT_FOUND), "no_file");
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = desk.get(&format!("files?recursive=true&limit=2{cursor}")).await.expect(StatusCode::OK);
        seen.extend(page["items"].as_array().unwrap().iter().map(|item| item["path"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, ["a", "a/1", "a/2", "a/b", "a/b/3", "c"]);
    let root = desk.get("workspace").await.expect(StatusCode::OK);
    assert_eq!((root["entries"].as_u64(), root["bytes"].as_u64()), (Some(6), Some(6)));
}

fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o755);
        builder.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

#[tokio::test]
async fn a_folder_goes_up_and_comes_down_as_an_archive() {
    let desk = Desk::new().await;
    let long = format!("{}/{}", "deep".repeat(40), "name".repeat(40));
    let large = "0123456789".repeat(30_000);
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    for (path, text, mode) in [("./small", "s", 0o644), (&*long, "l", 0o755), ("large", &*large, 0o600)] {
        header.set_size(text.len() as u64);
        header.set_mode(mode);
        header.set_entry_type(tar::EntryType::Regular);
        builder.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    header.set_size(0);
    header.set_entry_type(tar::EntryType::Directory);
    builder.append_data(&mut header, "empty/", std::io::empty()).unwrap();
    header.set_entry_type(tar::EntryType::Symlink);
    builder.append_link(&mut header, "link", "../else/where").unwrap();
    header.set_entry_type(tar::EntryType::Link);
    builder.append_link(&mut header, "hard", "small").unwrap();
    header.set_entry_type(tar::EntryType::Char);
    builder.append_data(&mut header, "device", std::io::empty()).unwrap();
    let archive = builder.into_inner().unwrap();

    let done = desk.with("PUT", "workspace/archive?path=up", &[], in_pieces(&archive, None)).await.expect(StatusCode::OK);
    assert_eq!((done["revision"].as_u64(), done["entries"].as_u64(), done["skipped"].as_array().unwrap().len()), (Some(1), Some(5), 2));
    assert_eq!(desk.get("files/up/large").await.text(), large);
    let down = desk.get("workspace/archive?path=up").await;
    assert_eq!((down.status, down.headers["content-type"].to_str().unwrap()), (StatusCode::OK, "application/x-tar"));
    let mut found = std::collections::BTreeMap::new();
    for member in tar::Archive::new(&down.body[..]).entries().unwrap() {
        let mut member = member.unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut member, &mut text).unwrap();
        let path = member.path().unwrap().to_str().unwrap().to_owned();
        let link = member.link_name().unwrap().map(|target| target.to_str().unwrap().to_owned());
        found.insert(path, (member.header().mode().unwrap() & 0o111 != 0, link.unwrap_or(text)));
    }
    let folder = long.split('/').next().unwrap();
    let wanted = [
        (format!("{folder}/"), (true, String::new())),
        (long.clone(), (true, "l".into())),
        ("empty/".into(), (true, String::new())),
        ("large".into(), (false, large)),
        ("link".into(), (true, "../else/where".into())),
        ("small".into(), (false, "s".into())),
    ];
    assert_eq!(found, wanted.into());
    // Sent up again it is what is there.
    desk.with("PUT", "workspace/archive?path=up", &[], down.body.clone()).await.expect(StatusCode::OK);
    assert_eq!(desk.revision().await, 1);
}

#[tokio::test]
async fn files_are_found_by_name_and_by_what_they_hold() {
    let desk = Desk::new().await;
    let archive = tar_of(&[
        ("src/a.rs", "fn main() {}\n// Needle\n"),
        ("src/deep/b.rs", "needle"),
        ("notes.txt", "no\nneedles here"),
        ("bin", "needle\0"),
    ]);
    desk.with("PUT", "workspace/archive", &[], archive).await.expect(StatusCode::OK);
    let found = async |query: &str| {
        let reply = desk.get(&format!("workspace/search?{query}")).await.expect(StatusCode::OK);
        reply["items"].as_array().unwrap().iter().map(|item| item["path"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(found("name=*.rs").await, ["src/a.rs", "src/deep/b.rs"]);
    assert_eq!(found("name=src/*.rs").await, ["src/a.rs"]);
    assert_eq!(found("text=needle").await, ["notes.txt", "src/deep/b.rs"]);
    assert_eq!(found("text=needle&ignore_case=true&path=src").await, ["src/a.rs", "src/deep/b.rs"]);
    assert_eq!(found("text=needle&name=*.txt").await, ["notes.txt"]);
    let first = desk.get("workspace/search?name=*.rs&limit=1").await.expect(StatusCode::OK);
    assert_eq!(first["next_cursor"], "src/a.rs");
    assert_eq!(found("name=*.rs&limit=1&cursor=src/a.rs").await, ["src/deep/b.rs"]);
    let line = desk.get("workspace/search?text=Needle").await.expect(StatusCode::OK);
    assert_eq!(line["items"][0]["lines"][0], json!({"number": 2, "text": "// Needle"}));
    assert_eq!(desk.get("workspace/search?name=%5B").await.problem(StatusCode::BAD_REQUEST), "invalid");
}

#[tokio::test]
async fn history_is_listed_compared_read_and_brought_back() {
    let desk = Desk::new().await;
    desk.write("a", "1").await;
    desk.write("d/b", "2").await;
    desk.write("a", "3").await;
    desk.post("workspace/move", json!({"from": "d", "to": "e"})).await.expect(StatusCode::OK);
    desk.with("DELETE", "files/a", &[], Body::empty()).await.expect(StatusCode::OK);
    let revisions = async |query: &str| {
        let page = desk.get(&format!("workspace/history?{query}")).await.expect(StatusCode::OK);
        page["items"].as_array().unwrap().iter().map(|commit| commit["revision"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(revisions("").await, [5, 4, 3, 2, 1]);
    assert_eq!(revisions("limit=2&cursor=4").await, [3, 2]);
    assert_eq!(revisions("path=d/b").await, [4, 2]);
    assert_eq!(revisions("path=a").await, [5, 3, 1]);
    let fourth = desk.get("workspace/history/4").await.expect(StatusCode::OK);
    assert_eq!((&fourth["author"]["name"], &fourth["what"], &fourth["moves"]), (&json!("ada"), &json!("move"), &json!(1)));
    assert_eq!(
        (&fourth["changes"][0]["kind"], &fourth["changes"][0]["path"], &fourth["changes"][0]["to"]),
        (&json!("move"), &json!("d"), &json!("e"))
    );
    assert_eq!(desk.get("workspace/history/6").await.problem(StatusCode::NOT_FOUND), "no_revision");
    let diff = desk.get("workspace/diff?from=1&to=4").await.expect(StatusCode::OK);
    let differ: Vec<_> = diff["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["path"].clone(), one["before"].is_null(), one["after"].is_null()))
        .collect();
    assert_eq!(differ, [(json!("a"), false, false), (json!("e"), true, false), (json!("e/b"), true, false)]);
    assert_eq!(desk.get("files/a?revision=1").await.text(), "1");
    assert_eq!(desk.get("files/a?revision=4").await.text(), "3");
    assert_eq!(desk.paths("recursive=true&revision=3").await, ["a", "d", "d/b"]);
    let back = desk.post("workspace/restore", json!({"revision": 1, "path": "a"})).await.expect(StatusCode::OK);
    assert_eq!(back["revision"], 6);
    assert_eq!((desk.get("files/a").await.text(), desk.paths("recursive=true").await), ("1", vec!["a".into(), "e".into(), "e/b".into()]));
    desk.post("workspace/restore", json!({"revision": 3})).await.expect(StatusCode::OK);
    assert_eq!((desk.get("files/a").await.text(), desk.paths("recursive=true").await), ("3", vec!["a".into(), "d".into(), "d/b".into()]));
    let desk = Desk { session: desk.session.clone(), lab: desk.lab.restarted().await };
    assert_eq!((desk.revision().await, desk.get("files/d/b").await.text()), (7, "2"));
}

#[tokio::test]
async fn a_lock_is_shown_and_its_fence_is_needed_by_nobody_but_checked_when_given() {
    let desk = Desk::new().await;
    let lock =
        desk.post("workspace/lock", json!({"prefix": "d", "lease_ms": 60_000, "owner": "a careful agent"})).await.expect(StatusCode::OK);
    let fence = lock["fence"].to_string();
    let shown = desk.get("workspace").await.expect(StatusCode::OK);
    assert_eq!((&shown["locks"][0]["prefix"], &shown["locks"][0]["owner"]), (&json!("d"), &json!("a careful agent")));
    assert_eq!(desk.with("PUT", "files/d/f", &[("cortex-fence", &fence)], "x").await.status, StatusCode::CREATED);
    assert_eq!(desk.with("PUT", "files/d/f", &[("cortex-fence", "99")], "y").await.problem(StatusCode::CONFLICT), "lock_lost");
    let bob = desk.lab.user("bob", Role::Member).await;
    let member = desk.url("members/bob");
    let bearer = format!("Bearer {}", desk.lab.ada);
    desk.lab.send("PUT", &member, &[("authorization", &bearer)], Some(json!({"role": "member"}))).await.expect(StatusCode::OK);
    assert_eq!(desk.as_who(&bob, "PUT", "files/d/f", &[], "y").await.problem(StatusCode::CONFLICT), "locked");
    assert_eq!(desk.as_who(&bob, "DELETE", "files/d", &[], Body::empty()).await.problem(StatusCode::CONFLICT), "locked");
    assert_eq!(desk.post("workspace/unlock", json!({"fence": lock["fence"]})).await.status, StatusCode::NO_CONTENT);
    assert_eq!(desk.as_who(&bob, "PUT", "files/d/f", &[], "y").await.status, StatusCode::OK);
    assert_eq!(desk.post("workspace/unlock", json!({"fence": lock["fence"]})).await.problem(StatusCode::CONFLICT), "lock_lost");
}

#[tokio::test]
async fn nodes_that_are_away_are_named_as_such() {
    let desk = Desk::new().await;
    let node = desk.lab.node(&desk.lab.ada, 7).await;
    desk.post(&format!("nodes/{}", node.id), json!({})).await.expect(StatusCode::OK);
    for ask in ["workspace/push", "workspace/resync", "workspace/manifest"] {
        let answer = desk.post(ask, json!({})).await.expect(StatusCode::OK);
        assert_eq!((&answer["nodes"][0]["node_id"], &answer["nodes"][0]["code"]), (&json!(node.id), &json!("node_offline")), "{ask}");
    }
    let shown = desk.get("workspace").await.expect(StatusCode::OK);
    assert_eq!((&shown["nodes"][0]["name"], &shown["nodes"][0]["sync"]), (&json!("machine-7"), &Value::Null));
    let drift = desk.get("workspace/drift").await.expect(StatusCode::OK);
    assert_eq!(drift[0]["code"], "node_offline");
    let answer = desk.post(&format!("workspace/nodes/{}/answer", node.id), json!({"question": 1, "yes": true})).await;
    assert_eq!(answer.problem(StatusCode::SERVICE_UNAVAILABLE), "node_offline");
}

#[tokio::test]
async fn a_page_of_ours_uploads_with_its_cookie_and_a_foreign_one_does_not() {
    let desk = Desk::new().await;
    let login = desk.lab.hub.login("ada", PASSWORD, "test").await.unwrap();
    let cookie = format!("cortex={}", login.secret);
    let send = async |origin: &str| {
        let request = Request::builder()
            .method("PUT")
            .uri(desk.url("files/f"))
            .header("host", HOST)
            .header("cookie", &cookie)
            .header("origin", origin);
        let response = desk
            .lab
            .router
            .clone()
            .oneshot(request.header("content-type", "application/octet-stream").body(Body::from("x")).unwrap())
            .await
            .unwrap();
        response.status()
    };
    assert_eq!(send("http://evil.example").await, StatusCode::FORBIDDEN);
    assert_eq!(send(&format!("http://{HOST}")).await, StatusCode::CREATED);
}

#[tokio::test]
async fn symlinks_and_folders_are_data() {
    let desk = Desk::new().await;
    desk.with("PUT", "files/l?kind=symlink", &[], "/etc/passwd").await.expect(StatusCode::CREATED);
    desk.with("PUT", "files/empty?kind=directory", &[], Body::empty()).await.expect(StatusCode::CREATED);
    let link = desk.get("files/l").await;
    assert_eq!((link.text(), link.headers["cortex-kind"].to_str().unwrap()), ("/etc/passwd", "symlink"));
    assert_eq!(desk.with("PUT", "files/l/x", &[], "x").await.problem(StatusCode::CONFLICT), "impossible_change");
    assert_eq!(desk.with("PUT", "files/k?kind=symlink", &[], "").await.problem(StatusCode::BAD_REQUEST), "malformed_request");
    let items = desk.get("files").await.expect(StatusCode::OK);
    assert_eq!((&items["items"][0]["kind"], &items["items"][1]["target"]), (&json!("directory"), &json!("/etc/passwd")));
    // A file that was executable stays so unless it is said.
    desk.with("PUT", "files/run?executable=true", &[], "1").await.expect(StatusCode::CREATED);
    let again = desk.with("PUT", "files/run", &[], "2").await.expect(StatusCode::OK);
    assert_eq!(again["file"]["executable"], true);
}
