//! Files of a session's workspace: lists, contents of any size, and changes that say what they expect to find.

use std::{io, ops::Range, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body as HttpBody,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use cortex_wire::{
    id::SessionId,
    mirror::{
        entry::{Content, Entry, Hash},
        path::RelPath,
        tree::Tree,
    },
};
use futures_util::{Stream, StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api,
    body::{Answer, Body, Path, Query},
    caller::Caller,
    paging::{Page, PageQuery},
    problem::{Document, Problem},
    sse::Vigil,
};
use crate::mirror::{
    MirrorError,
    content::{Reader, Writer},
    edit::{Edit, Expect},
    workspace::{Head, Workspace},
};

/// An upload that brings nothing for this long has broken off.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(60);
/// A symlink's target.
const TARGET_BYTES: usize = cortex_wire::limits::PATH_BYTES;
/// The fence of a lock that the caller holds.
pub(super) const FENCE: HeaderName = HeaderName::from_static("cortex-fence");
const REVISION: HeaderName = HeaderName::from_static("cortex-revision");

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(list_files)).routes(routes!(read_file, write_file, delete_file)).routes(routes!(move_file))
}

/// Errors of the mirror, with the hashes that a client needs to go on.
pub(super) fn refuse(error: MirrorError) -> Problem {
    match error {
        MirrorError::Stale { parent, current, .. } => {
            Problem::from(error).with_hashes(Some(parent.to_string()), current.map(|hash| hash.to_string()))
        }
        MirrorError::Exists { current, .. } => Problem::from(error).with_hashes(None, Some(current.to_string())),
        error => error.into(),
    }
}

/// A path of a request: "" is the whole workspace.
pub(super) fn prefix(text: &str) -> Result<RelPath, Problem> {
    RelPath::prefix(text.trim_end_matches('/')).map_err(|error| Problem::malformed(format!("`{text}` is no path of a workspace: {error}")))
}

pub(super) fn path(text: &str) -> Result<RelPath, Problem> {
    text.parse().map_err(|error| Problem::malformed(format!("`{text}` is no path of a workspace: {error}")))
}

/// What lies at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// Bytes.
    File,
    /// A folder.
    Directory,
    /// A path as data; nobody follows it.
    Symlink,
}

/// A file, folder or symlink.
#[derive(Debug, Serialize, ToSchema)]
pub struct FileView {
    /// From the workspace's root.
    pub path: String,
    /// The last part of the path.
    pub name: String,
    /// What it is.
    pub kind: FileKind,
    /// Bytes of a file.
    pub size: u64,
    /// Its owner may execute it.
    pub executable: bool,
    /// Stands for it in `If-Match`; of a folder with everything below it.
    pub hash: String,
    /// Of a symlink.
    pub target: Option<String>,
}

impl FileView {
    /// What lies at a path.
    pub fn new(path: &RelPath, entry: &Entry, hash: Hash) -> Self {
        let (kind, executable, target) = match entry {
            Entry::File { executable, .. } => (FileKind::File, *executable, None),
            Entry::Directory => (FileKind::Directory, false, None),
            Entry::Symlink(target) => (FileKind::Symlink, false, Some(target.to_string())),
        };
        Self { path: path.to_string(), name: path.name().to_owned(), kind, size: entry.size(), executable, hash: hash.to_string(), target }
    }
}

/// Which files.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// A folder; none: the workspace's root.
    #[param(required = false)]
    path: String,
    /// Also what is in folders below.
    #[param(required = false)]
    recursive: bool,
    /// As it was at this revision; none: now.
    #[param(required = false)]
    revision: Option<u64>,
    /// Items per page: 1 to 1000, 100 when left out.
    #[param(required = false)]
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    #[param(required = false)]
    cursor: Option<String>,
}

/// The tree that a request is about.
pub(super) async fn tree(api: &Api, workspace: &Workspace, revision: Option<u64>) -> Result<(u64, Tree), Problem> {
    match revision {
        None => {
            let head = workspace.head();
            Ok((head.revision(), head.tree.clone()))
        }
        Some(revision) => Ok((revision, workspace.tree_at(&api.hub, revision).await.map_err(refuse)?)),
    }
}

/// The files of a folder, in the order of their paths. A cursor is a path.
#[utoipa::path(get, path = "/api/sessions/{id}/files", tag = "files", params(("id" = String, Path), ListQuery), responses((status = 200, body = Page<FileView>)))]
async fn list_files(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<SessionId>,
    Query(query): Query<ListQuery>,
) -> Answer<Page<FileView>> {
    let workspace = api.hub.workspace_seen(&caller.actor, id).await.map_err(refuse)?;
    let (_, tree) = tree(&api, &workspace, query.revision).await?;
    let folder = prefix(&query.path)?;
    let after = query.cursor.as_deref().map(path).transpose()?;
    let page = PageQuery { limit: query.limit, cursor: None };
    let behind = |at: &RelPath| after.as_ref().is_none_or(|after| at > after);
    let view = |at: RelPath, entry: &Entry| tree.hash(&at).map(|hash| FileView::new(&at, entry, hash));
    let items: Vec<FileView> = if query.recursive {
        let below = tree.below(&folder).filter(|(at, _)| *at != folder && behind(at));
        below.filter_map(|(at, entry)| view(at, entry)).take(page.limit() + 1).collect()
    } else {
        let children = tree.children(&folder).ok_or_else(|| refuse(MirrorError::NoFile(folder.to_string())))?;
        let children = children.filter_map(|(name, entry, hash)| Some((folder.join(name).ok()?, entry, hash)));
        let children = children.filter(|(at, ..)| behind(at));
        children.map(|(at, entry, hash)| FileView::new(&at, entry, hash)).take(page.limit() + 1).collect()
    };
    Ok(Json(page.of(items, |file| file.path.clone())))
}

/// Which version of a file.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ReadQuery {
    /// As it was at this revision; none: now.
    #[param(required = false)]
    revision: Option<u64>,
}

/// What a file holds: all of it, or a `Range`. The `ETag` is what `If-Match` takes.
///
/// A symlink answers its target as text.
#[utoipa::path(get, path = "/api/sessions/{id}/files/{*path}", tag = "files",
    params(("id" = String, Path), ("path" = String, Path), ReadQuery, ("Range" = Option<String>, Header), ("If-None-Match" = Option<String>, Header)),
    responses(
        (status = 200, body = [u8], content_type = "application/octet-stream"),
        (status = 206, body = [u8], content_type = "application/octet-stream"),
        (status = 304, description = "it is what the client has"),
        (status = 409, body = Document, description = "`not_a_file`"),
        (status = 416, body = Document, description = "`bad_range`")))]
async fn read_file(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path((id, at)): Path<(SessionId, String)>,
    Query(query): Query<ReadQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let workspace = api.hub.workspace_seen(&caller.actor, id).await.map_err(refuse)?;
    let at = path(&at)?;
    let (revision, tree) = tree(&api, &workspace, query.revision).await?;
    let missing = || refuse(MirrorError::NoFile(at.to_string()));
    let (entry, hash) = tree.get(&at).cloned().zip(tree.hash(&at)).ok_or_else(missing)?;
    let tag = format!("\"{hash}\"");
    let mut response = if matches_tag(&headers, header::IF_NONE_MATCH, hash) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        match entry {
            Entry::Directory => return Err(refuse(MirrorError::NotAFile { path: at.to_string(), kind: "directory" })),
            Entry::Symlink(target) => {
                ([("cortex-kind", "symlink"), ("content-type", "text/plain; charset=utf-8")], target.to_string()).into_response()
            }
            Entry::File { content, .. } => send(&api, &caller, &workspace, &at, &content, wanted_range(&headers, hash)).await?,
        }
    };
    let fields = response.headers_mut();
    fields.extend(HeaderValue::from_str(&tag).ok().map(|tag| (header::ETAG, tag)));
    fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    fields.insert(REVISION, revision.into());
    Ok(response)
}

/// The `Range` that counts: `If-Range` names the version that the client has a part of.
fn wanted_range(headers: &HeaderMap, hash: Hash) -> Option<&str> {
    let same = headers.get(header::IF_RANGE).is_none_or(|_| matches_tag(headers, header::IF_RANGE, hash));
    headers.get(header::RANGE).filter(|_| same).and_then(|range| range.to_str().ok())
}

fn matches_tag(headers: &HeaderMap, name: HeaderName, hash: Hash) -> bool {
    let tags = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).flat_map(|line| line.split(','));
    tags.map(|tag| tag.trim().trim_start_matches("W/")).any(|tag| tag == "*" || tag == format!("\"{hash}\""))
}

/// One range of bytes (RFC 9110); `None`: all of it, also for units and lists of ranges that we do not serve.
fn parse_range(text: &str, size: u64) -> Result<Option<Range<u64>>, Problem> {
    let Some(text) = text.strip_prefix("bytes=").filter(|text| !text.contains(',')) else { return Ok(None) };
    let Some((first, last)) = text.trim().split_once('-') else { return Ok(None) };
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(size),
        (Ok(first), _) if last.is_empty() => first..size,
        (_, Ok(count)) if first.is_empty() => size.saturating_sub(count)..size,
        _ => return Ok(None),
    };
    if range.start < range.end {
        return Ok(Some(range));
    }
    Err(Problem::new(
        StatusCode::RANGE_NOT_SATISFIABLE,
        "bad_range",
        format!("the file has {size} bytes, and the range is outside of them"),
        "ask for a range inside the file, or for all of it",
    ))
}

async fn send(
    api: &Api,
    caller: &Caller,
    workspace: &Workspace,
    at: &RelPath,
    content: &Content,
    range: Option<&str>,
) -> Result<Response, Problem> {
    let part = range.map(|range| parse_range(range, content.size)).transpose()?.flatten();
    let whole = 0..content.size;
    let bytes = part.clone().unwrap_or(whole);
    let vigil = Vigil::new(api, caller)?;
    let reader = Reader::open(&api.hub, workspace, content, bytes.clone()).await.map_err(refuse)?;
    let mut response = HttpBody::from_stream(body(reader, vigil)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_LENGTH, (bytes.end - bytes.start).into());
    headers.extend(attachment(at.name()));
    if part.is_some() {
        let shown = format!("bytes {}-{}/{}", bytes.start, bytes.end - 1, content.size);
        headers.extend(HeaderValue::from_str(&shown).ok().map(|value| (header::CONTENT_RANGE, value)));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// Nothing of a workspace is shown as a page of ours (RFC 6266, RFC 8187).
pub(super) fn attachment(name: &str) -> Option<(HeaderName, HeaderValue)> {
    let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || "._- ".contains(c) { c } else { '_' }).collect();
    let kept = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let encoded: String = name.bytes().map(|byte| if kept(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect();
    let value = HeaderValue::from_str(&format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}")).ok()?;
    Some((header::CONTENT_DISPOSITION, value))
}

/// The body ends with an error, so that nobody takes it for whole, when a chunk is missing or the reader is shut out.
fn body(reader: Reader, vigil: Vigil) -> impl Stream<Item = io::Result<axum::body::Bytes>> {
    stream::try_unfold((reader, vigil), |(mut reader, vigil)| async move {
        if !vigil.may_go_on() {
            return Err(io::Error::other("the reader was shut out, or the hub stops"));
        }
        let bytes = reader.next().await.map_err(io::Error::other)?;
        Ok(bytes.map(|bytes| (bytes, (reader, vigil))))
    })
}

/// What a file is to be.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct WriteQuery {
    /// A file (the default), a folder, or a symlink whose target is the body.
    #[param(required = false, value_type = Option<FileKind>)]
    kind: Option<FileKind>,
    /// Its owner may execute it; none: as before.
    #[param(required = false)]
    executable: Option<bool>,
}

/// A change that is durable.
#[derive(Debug, Serialize, ToSchema)]
pub struct Written {
    /// The workspace's revision with it.
    pub revision: u64,
    /// What lies there now.
    pub file: Option<FileView>,
}

impl Written {
    /// What lies at a path of a head.
    pub(super) fn at(head: &Head, path: &RelPath) -> Self {
        let file = head.tree.get(path).zip(head.tree.hash(path)).map(|(entry, hash)| FileView::new(path, entry, hash));
        Self { revision: head.revision(), file }
    }
}

/// What a request expects to find, by `If-Match` and `If-None-Match`.
fn expectation(headers: &HeaderMap) -> Result<Expect, Problem> {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default().trim());
    match (text(header::IF_MATCH), text(header::IF_NONE_MATCH)) {
        (None, None) => Ok(Expect::Any),
        (Some("*"), None) => Ok(Expect::Something),
        (None, Some("*")) => Ok(Expect::Nothing),
        (Some(tag), None) => {
            let hash = tag.trim_matches('"').parse().map_err(|_| Problem::malformed("`If-Match` takes one ETag of this API, or *"))?;
            Ok(Expect::Hash(hash))
        }
        _ => Err(Problem::malformed("use `If-Match` with an ETag, or `If-None-Match: *`")),
    }
}

/// The fence of the caller's lock.
pub(super) fn fence(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(FENCE) else { return Ok(None) };
    let fence = value.to_str().ok().and_then(|text| text.parse().ok());
    fence.map(Some).ok_or_else(|| Problem::malformed("`Cortex-Fence` is the number that taking the lock answered"))
}

/// Pieces of a request's body. It breaks off when nothing comes for a while.
pub(super) fn pieces(request: Request) -> impl Stream<Item = Result<axum::body::Bytes, String>> + Unpin {
    Box::pin(stream::try_unfold(request.into_body().into_data_stream(), |mut body| async move {
        match tokio::time::timeout(UPLOAD_PATIENCE, body.next()).await {
            Ok(Some(Ok(piece))) => Ok(Some((piece, body))),
            Ok(Some(Err(error))) => Err(error.to_string()),
            Ok(None) => Ok(None),
            Err(_) => Err("nothing came for a minute".to_owned()),
        }
    }))
}

async fn small_body(request: Request, most: usize) -> Result<Vec<u8>, Problem> {
    let (mut all, mut pieces) = (Vec::new(), pieces(request));
    while let Some(piece) = pieces.next().await {
        all.extend_from_slice(&piece.map_err(|error| refuse(MirrorError::BrokenUpload(error)))?);
        if all.len() > most {
            return Err(refuse(MirrorError::TooLarge));
        }
    }
    Ok(all)
}

/// `vigil`: uploads count among the caller's streams, and end when the caller is shut out.
async fn upload(api: &Api, workspace: &Workspace, request: Request, vigil: Vigil) -> Result<Content, MirrorError> {
    let mut pieces = pieces(request);
    let mut writer = Writer::<()>::new(&api.hub, workspace).await?;
    let mut file = writer.file();
    while let Some(piece) = pieces.next().await {
        if !vigil.may_go_on() {
            return Err(MirrorError::BrokenUpload("the hub stops, or the token is no longer valid".into()));
        }
        file.write(&piece.map_err(MirrorError::BrokenUpload)?).await?;
    }
    file.end().await
}

/// Writes a file of any size. `If-Match` with the hash of what is to be replaced, or `If-None-Match: *` for a new one, keeps others' changes
/// safe: a stale hash answers 409 with both hashes. Without either, whatever is there is replaced.
///
/// The body is the file. An upload that breaks off leaves nothing. Folders above it come into being.
#[utoipa::path(put, path = "/api/sessions/{id}/files/{*path}", tag = "files",
    params(("id" = String, Path), ("path" = String, Path), WriteQuery, ("If-Match" = Option<String>, Header), ("If-None-Match" = Option<String>, Header), ("Cortex-Fence" = Option<u64>, Header, description = "of the caller's lock")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = Written), (status = 201, body = Written), (status = 409, body = Document, description = "`stale_parent`, `already_exists`, `locked`")))]
async fn write_file(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path((id, at)): Path<(SessionId, String)>,
    Query(query): Query<WriteQuery>,
    request: Request,
) -> Result<Response, Problem> {
    let workspace = api.hub.workspace_used(&caller.actor, id).await.map_err(refuse)?;
    let (at, expect, fence) = (path(&at)?, expectation(request.headers())?, fence(request.headers())?);
    let before = workspace.head();
    // Told before gigabytes are sent; told again by the commit if somebody is quicker.
    expect.check(&before.tree, &at).map_err(refuse)?;
    let entry = match query.kind.unwrap_or(FileKind::File) {
        FileKind::Directory => Entry::Directory,
        FileKind::Symlink => {
            let target = String::from_utf8(small_body(request, TARGET_BYTES).await?).ok().filter(|target| is_target(target));
            Entry::Symlink(target.ok_or_else(|| Problem::malformed("a symlink's target is a text of 1 to 4096 bytes without NUL"))?.into())
        }
        FileKind::File => {
            let executable = query.executable.unwrap_or(matches!(before.tree.get(&at), Some(Entry::File { executable: true, .. })));
            Entry::File { content: upload(&api, &workspace, request, Vigil::new(&api, &caller)?).await.map_err(refuse)?, executable }
        }
    };
    let edit = Edit::Put { path: at.clone(), expect, entry };
    let head = workspace.edit(&api.hub, &caller.actor, fence, "write", vec![edit]).await.map_err(refuse)?;
    let status = if before.tree.get(&at).is_some() { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(Written::at(&head, &at))).into_response())
}

fn is_target(target: &str) -> bool {
    !target.is_empty() && target.len() <= TARGET_BYTES && !target.contains('\0')
}

/// Removes a file, or a folder with everything in it. `If-Match` as for writing.
#[utoipa::path(delete, path = "/api/sessions/{id}/files/{*path}", tag = "files",
    params(("id" = String, Path), ("path" = String, Path), ("If-Match" = Option<String>, Header), ("Cortex-Fence" = Option<u64>, Header, description = "of the caller's lock")),
    responses((status = 200, body = Written), (status = 409, body = Document, description = "`stale_parent`, `locked`")))]
async fn delete_file(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path((id, at)): Path<(SessionId, String)>,
    headers: HeaderMap,
) -> Answer<Written> {
    let workspace = api.hub.workspace_used(&caller.actor, id).await.map_err(refuse)?;
    let (at, expect, fence) = (path(&at)?, expectation(&headers)?, fence(&headers)?);
    let edit = Edit::Remove { path: at.clone(), expect };
    let head = workspace.edit(&api.hub, &caller.actor, fence, "delete", vec![edit]).await.map_err(refuse)?;
    Ok(Json(Written::at(&head, &at)))
}

/// A move.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct MoveBody {
    /// A file or folder.
    from: String,
    /// Where nothing is.
    to: String,
    /// The hash of what is at `from`; none: whatever is there.
    #[schema(value_type = Option<String>)]
    parent: Option<String>,
}

/// Moves a file, or a folder with everything in it. Nodes rename it; nothing is sent again.
#[utoipa::path(post, path = "/api/sessions/{id}/workspace/move", tag = "files",
    params(("id" = String, Path), ("Cortex-Fence" = Option<u64>, Header, description = "of the caller's lock")),
    request_body = MoveBody, responses((status = 200, body = Written), (status = 409, body = Document, description = "`stale_parent`, `already_exists`, `locked`")))]
async fn move_file(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<SessionId>,
    headers: HeaderMap,
    Body(body): Body<MoveBody>,
) -> Answer<Written> {
    let workspace = api.hub.workspace_used(&caller.actor, id).await.map_err(refuse)?;
    let (from, to, fence) = (path(&body.from)?, path(&body.to)?, fence(&headers)?);
    let hash = |text: &str| text.parse().map_err(|_| Problem::malformed("`parent` is the hash of what is at `from`"));
    let expect = body.parent.as_deref().map(hash).transpose()?.map_or(Expect::Any, Expect::Hash);
    let edit = Edit::Move { from, to: to.clone(), expect };
    let head = workspace.edit(&api.hub, &caller.actor, fence, "move", vec![edit]).await.map_err(refuse)?;
    Ok(Json(Written::at(&head, &to)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_to_the_file_and_one_outside_is_refused() {
        let range = |text| parse_range(text, 10).map_err(|problem| problem.code());
        assert_eq!(range("bytes=0-3"), Ok(Some(0..4)));
        assert_eq!(range("bytes=4-"), Ok(Some(4..10)));
        assert_eq!(range("bytes=-3"), Ok(Some(7..10)));
        assert_eq!(range("bytes=-99"), Ok(Some(0..10)));
        assert_eq!(range("bytes=8-99"), Ok(Some(8..10)));
        assert_eq!(range("bytes=10-"), Err("bad_range"));
        assert_eq!(range("bytes=-0"), Err("bad_range"));
        for all in ["bytes=3-1", "bytes=0-1,4-5", "lines=1-2", "bytes=x"] {
            assert_eq!(range(all), Ok(None), "{all}");
        }
    }

    #[test]
    fn an_odd_name_is_an_attachment_all_the_same() {
        let (_, value) = attachment("a \"b\"\n€.txt").unwrap();
        assert_eq!(value, "attachment; filename=\"a _b___.txt\"; filename*=UTF-8''a%20%22b%22%0A%E2%82%AC.txt");
    }
}
