//! Changes and history through the API.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use cortex_tests::{api::problem, wait};
use reqwest::Method;
use serde_json::{Value, json};

use super::Pair;
use crate::SOON;

#[tokio::test]
async fn a_write_over_something_newer_is_refused_with_both_hashes_and_changes_nothing() -> Result<()> {
    let pair = Pair::set().await?;
    let [one, _] = pair.folders();
    let (hub, session) = (&pair.hub, pair.session.as_str());
    let first = hub.put_file(session, "notes", &[("if-none-match", "*")], "first").await?;
    pair.same("the first version", |tree| tree.len() == 1).await?;
    fs::write(one.join("notes"), "by a node")?;
    let seen = async || {
        // Writing a file empties it first, which may be seen.
        let whole = hub.file(session, "notes").await.is_ok_and(|found| found == b"by a node");
        let file = hub.files(session).await.ok()?.pop()?;
        (whole && file.hash != first).then_some(file.hash)
    };
    let second = wait::until("the node's edit", SOON, seen).await?;
    let before = hub.workspace(session).await?.revision;
    let tag = format!("\"{first}\"");
    let stale = [("if-match", tag.as_str())];
    for (method, headers) in [(Method::PUT, stale), (Method::DELETE, stale), (Method::PUT, [("if-none-match", "*")])] {
        let refused = problem(hub.file_call(method, session, "notes", &headers, "late").await)?;
        assert_eq!((refused.status, refused.current_hash.as_ref()), (409, Some(&second)), "{refused:?}");
        assert_eq!(refused.parent_hash, headers[0].0.eq("if-match").then(|| first.clone()));
    }
    let refused = problem(hub.file_call(Method::PUT, session, "nothing", &stale, "late").await)?;
    assert_eq!((refused.status, refused.current_hash), (409, None));
    assert_eq!(hub.workspace(session).await?.revision, before, "nothing was changed");
    assert_eq!(hub.file(session, "notes").await?, b"by a node");
    let tag = format!("\"{second}\"");
    hub.put_file(session, "notes", &[("if-match", &tag)], "third").await?;
    pair.same("the write that knew", |tree| tree[Path::new("notes")].ends_with("third")).await?;
    Ok(())
}

#[tokio::test]
async fn history_brings_a_deleted_folder_back_on_all_nodes() -> Result<()> {
    let pair = Pair::set().await?;
    let [one, two] = pair.folders();
    fs::create_dir_all(one.join("docs/deep/er"))?;
    for name in ["docs/a", "docs/deep/b", "docs/deep/er/c", "beside"] {
        fs::write(one.join(name), format!("this is {name}"))?;
    }
    let whole = pair.same("the folder", |tree| tree.len() == 7).await?;
    let revision = pair.hub.workspace(&pair.session).await?.revision;
    fs::remove_dir_all(two.join("docs"))?;
    pair.same("it is gone", |tree| tree.len() == 1).await?;
    fs::write(two.join("beside"), "newer")?;
    pair.same("a newer file", |tree| tree[Path::new("beside")].ends_with("newer")).await?;
    let history = pair.hub.all(&pair.api("workspace/history?path=docs")).await?;
    let last = history.first().context("the deletion is in history")?;
    assert_eq!((last["removes"].as_u64(), last["author"]["name"].as_str()), (Some(1), Some("two")), "{last}");
    let then = pair.hub.file(&pair.session, &format!("docs/deep/b?revision={revision}")).await?;
    assert_eq!(then, b"this is docs/deep/b");
    let diff = pair.hub.all(&pair.api(&format!("workspace/diff?from={revision}&path=docs"))).await?;
    assert_eq!(diff.len(), 6, "{diff:?}");
    pair.hub.post::<Value>(&pair.api("workspace/restore"), json!({ "revision": revision, "path": "docs" })).await?;
    let found = pair.same("it is back", |tree| tree.len() == 7).await?;
    assert!(found[Path::new("beside")].ends_with("newer"), "only the folder is restored");
    assert_eq!(pair.at_hub().await?, found);
    pair.hub.post::<Value>(&pair.api("workspace/restore"), json!({ "revision": revision })).await?;
    pair.same("everything as it was", |tree| *tree == whole).await?;
    // An edit after a restore is one like any other.
    fs::write(one.join("docs/a"), "after all")?;
    pair.same("an edit of what came back", |tree| tree[Path::new("docs/a")].ends_with("after all")).await?;
    Ok(())
}
