//! A session's files, as a client of the hub's API sees them.

use std::time::Duration;

use anyhow::Result;
use reqwest::{Method, header::HeaderMap};
use serde::Deserialize;
use serde_json::Value;

use crate::api::{Client, Problem};

/// For one file.
const PATIENCE: Duration = Duration::from_secs(60);

/// A file, folder or symlink.
#[derive(Debug, Clone, Deserialize)]
pub struct File {
    /// From the workspace's root.
    pub path: String,
    /// "file", "directory", "symlink".
    pub kind: String,
    /// Its owner may execute it.
    pub executable: bool,
    /// What `If-Match` takes.
    pub hash: String,
    /// Of a symlink.
    pub target: Option<String>,
}

/// Where a workspace stands.
#[derive(Debug, Clone, Deserialize)]
pub struct Workspace {
    /// The number of the last commit.
    pub revision: u64,
    /// The attached nodes.
    pub nodes: Vec<Follower>,
}

/// An attached node.
#[derive(Debug, Clone, Deserialize)]
pub struct Follower {
    /// The node.
    pub node_id: String,
    /// How its copy does; none: it is not connected.
    pub sync: Option<Sync>,
}

/// How a node's copy does.
#[derive(Debug, Clone, Deserialize)]
pub struct Sync {
    /// "in_sync", …
    pub state: String,
    /// The revision that it holds.
    pub revision: u64,
    /// Changes that are kept back.
    pub held: u64,
    /// Code and path of what a person should see.
    pub problems: Vec<Value>,
    /// What the node wants decided.
    pub question: Option<Value>,
}

#[derive(Deserialize)]
struct Page {
    items: Vec<Value>,
    next_cursor: Option<String>,
}

fn encoded(path: &str) -> String {
    let kept = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
    path.bytes().map(|byte| if kept(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

impl Client {
    /// Everything of a list, over all of its pages.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn all(&self, path: &str) -> Result<Vec<Value>> {
        let mark = if path.contains('?') { '&' } else { '?' };
        let (mut all, mut cursor) = (Vec::new(), String::new());
        loop {
            let page: Page = self.get(&format!("{path}{mark}limit=1000{cursor}")).await?;
            all.extend(page.items);
            match page.next_cursor {
                Some(next) => cursor = format!("&cursor={}", encoded(&next).replace('/', "%2F")),
                None => return Ok(all),
            }
        }
    }

    /// A request about one file; its headers and body.
    ///
    /// # Errors
    /// [`Problem`], or what broke.
    pub async fn file_call(
        &self,
        method: Method,
        session: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Result<(HeaderMap, Vec<u8>)> {
        let (path, query) = path.split_once('?').map_or((path, String::new()), |(path, query)| (path, format!("?{query}")));
        let mut request =
            self.request(method, &format!("/api/sessions/{session}/files/{}{query}", encoded(path))).timeout(PATIENCE).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await?;
        if !response.status().is_success() {
            return Err(response.json::<Problem>().await?.into());
        }
        Ok((response.headers().clone(), response.bytes().await?.into()))
    }

    /// What a file holds. `path` may end with a query.
    ///
    /// # Errors
    /// As [`Self::file_call`].
    pub async fn file(&self, session: &str, path: &str) -> Result<Vec<u8>> {
        Ok(self.file_call(Method::GET, session, path, &[], "").await?.1)
    }

    /// Writes a file; its hash.
    ///
    /// # Errors
    /// As [`Self::file_call`].
    pub async fn put_file(&self, session: &str, path: &str, headers: &[(&str, &str)], body: impl Into<reqwest::Body>) -> Result<String> {
        let (_, answer) = self.file_call(Method::PUT, session, path, headers, body).await?;
        let answer: Value = serde_json::from_slice(&answer)?;
        Ok(answer["file"]["hash"].as_str().unwrap_or_default().to_owned())
    }

    /// All files of a session.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn files(&self, session: &str) -> Result<Vec<File>> {
        let files = self.all(&format!("/api/sessions/{session}/files?recursive=true")).await?;
        files.into_iter().map(|file| Ok(serde_json::from_value(file)?)).collect()
    }

    /// Where a session's workspace stands.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn workspace(&self, session: &str) -> Result<Workspace> {
        self.get(&format!("/api/sessions/{session}/workspace")).await
    }

    /// How a node's copy does; `None`: it is not connected.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn sync_of(&self, session: &str, node: &str) -> Result<Option<Sync>> {
        let nodes = self.workspace(session).await?.nodes;
        Ok(nodes.into_iter().find(|follower| follower.node_id == node).and_then(|follower| follower.sync))
    }
}
