//! A session's workspace as a whole: where it stands and how its nodes do, locks, drift, and searches and archives of its files.

use std::{io, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body as HttpBody,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use cortex_wire::{
    id::{NodeId, SessionId},
    limits,
    mirror::entry::Entry,
    schema::Rescan,
};
use futures_util::{StreamExt as _, future::join_all, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api,
    body::{Answer, Body, Path, Query},
    caller::Caller,
    files::{attachment, fence, path, pieces, prefix, refuse, tree},
    problem::Problem,
    sse::Vigil,
};
use crate::{
    failure::Failure as _,
    mirror::{
        MirrorError,
        archive::{Packer, Skipped},
        lock::NewLock,
        nodes::{Drift, NodeSync},
        search::{Found, Wanted},
        workspace::Workspace,
    },
    record::{
        Scope,
        mirror::{Author, LockRecord},
    },
};

/// A node has this long to compare its files, unless the request says otherwise.
const PATIENCE_MS: u64 = 30_000;
const MOST_PATIENCE_MS: u64 = 10 * 60 * 1000;
/// A lock that is not renewed, unless the request says otherwise.
const LEASE_MS: i64 = 60_000;
/// Files that one search answers.
const MOST_FOUND: usize = 1_000;
/// Pieces of an archive on their way to its reader.
const PIECES: usize = 8;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(show_workspace))
        .routes(routes!(lock_workspace))
        .routes(routes!(unlock_workspace))
        .routes(routes!(pause_workspace))
        .routes(routes!(resume_workspace))
        .routes(routes!(push_workspace))
        .routes(routes!(resync_workspace))
        .routes(routes!(workspace_manifest))
        .routes(routes!(show_drift))
        .routes(routes!(answer_node))
        .routes(routes!(search_files))
        .routes(routes!(download_folder, upload_folder))
}

/// A lease on part of a workspace.
#[derive(Debug, Serialize, ToSchema)]
pub struct LockView {
    /// What it covers; "": everything.
    pub prefix: String,
    /// For people.
    pub owner: String,
    /// Whose it is.
    pub owner_id: Author,
    /// Names the lease: for renewing, for giving it back, and for writes under it (`Cortex-Fence`).
    pub fence: u64,
    /// It ends then.
    pub expires_at_ms: i64,
}

impl From<&LockRecord> for LockView {
    fn from(lock: &LockRecord) -> Self {
        Self {
            prefix: lock.prefix.clone(),
            owner: lock.name.clone(),
            owner_id: lock.owner,
            fence: lock.fence,
            expires_at_ms: lock.expires_at_ms,
        }
    }
}

/// A node and its copy of the workspace.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WorkspaceNode)]
struct NodeView {
    /// The node.
    #[schema(value_type = String)]
    node_id: NodeId,
    /// What it is called.
    name: String,
    /// How its copy does; none: it is not connected.
    sync: Option<NodeSync>,
}

/// Where a workspace stands.
#[derive(Debug, Serialize, ToSchema)]
struct WorkspaceView {
    /// The number of the last commit; 0: nothing was ever written.
    revision: u64,
    /// Stands for all files.
    root: String,
    /// Files, folders and symlinks.
    entries: usize,
    /// Bytes of all files.
    bytes: u64,
    /// Nodes' edits wait.
    paused: bool,
    /// Leases that have not ended.
    locks: Vec<LockView>,
    /// Chunks that the hub keeps for all revisions.
    stored_chunks: u64,
    /// Bytes of those, sealed.
    stored_bytes: u64,
    /// The attached nodes.
    nodes: Vec<NodeView>,
}

async fn name_of(api: &Api, node: NodeId) -> Result<String, Problem> {
    Ok(api.hub.find_node(node).await?.map_or_else(|| node.to_string(), |node| node.name))
}

/// Where the workspace stands, its locks, and how its nodes do.
#[utoipa::path(get, path = "/api/sessions/{id}/workspace", tag = "files", params(("id" = String, Path)), responses((status = 200, body = WorkspaceView)))]
async fn show_workspace(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<SessionId>) -> Answer<WorkspaceView> {
    let workspace = api.hub.workspace_seen(&caller.actor, id).await.map_err(refuse)?;
    let mut nodes = Vec::new();
    for node in api.hub.session(&caller.actor, id).await?.nodes {
        nodes.push(NodeView { node_id: node, name: name_of(&api, node).await?, sync: workspace.nodes.sync_of(node) });
    }
    let (head, now_ms) = (workspace.head(), api.hub.now_ms());
    let (stored_chunks, stored_bytes) = api.hub.stored(&workspace).await.map_err(refuse)?;
    Ok(Json(WorkspaceView {
        revision: head.revision(),
        root: head.tree.root().to_string(),
        entries: head.tree.len(),
        bytes: head.tree.bytes(),
        paused: head.record.paused,
        locks: head.record.locks.iter().filter(|lock| lock.expires_at_ms > now_ms).map(LockView::from).collect(),
        stored_chunks,
        stored_bytes,
        nodes,
    }))
}

/// A lease to be had, or renewed.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct LockBody {
    /// A file or folder; "": everything.
    prefix: String,
    /// How long, if it is not renewed: 1 s to 24 h; one minute when left out.
    lease_ms: Option<i64>,
    /// Shown to others; the caller's name when left out.
    owner: String,
    /// Of the lease to renew.
    fence: Option<u64>,
}

/// Takes a lock, or renews it. Others cannot write there through the API, and nodes hold their edits back until it ends.
#[utoipa::path(post, path = "/api/sessions/{id}/workspace/lock", tag = "files", params(("id" = String, Path)), request_body = LockBody, responses((status = 200, body = LockView)))]
async fn lock_workspace(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<SessionId>,
    Body(body): Body<LockBody>,
) -> Answer<LockView> {
    let workspace = api.hub.workspace_used(&caller.actor, id).await.map_err(refuse)?;
    let new = NewLock { prefix: prefix(&body.prefix)?, lease_ms: body.lease_ms.unwrap_or(LEASE_MS), name: body.owner, fence: body.fence };
    let lock = workspace.lock(&api.hub, &caller.actor, new).await.map_err(refuse)?;
    Ok(Json(LockView::from(&lock)))
}

/// Which lock.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct UnlockBody {
    /// As taking it answered.
    fence: u64,
    /// Also somebody else's; needs the scope `manage`.
    #[serde(default)]
    force: bool,
}

/// Gives a lock back. What nodes held back is proposed.
#[utoipa::path(post, path = "/api/sessions/{id}/workspace/unlock", tag = "files", params(("id" = String, Path)), request_body = UnlockBody, responses((status = 204)))]
async fn unlock_workspace(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<SessionId>,
    Body(body): Body<UnlockBody>,
) -> Result<StatusCode, Problem> {
    let workspace = api.hub.workspace_used(&caller.actor, id).await.map_err(refuse)?;
    if body.force {
        caller.actor.must(Scope::Manage)?;
    }
    workspace.unlock(&api.hub, &caller.actor, body.fence, body.force).await.map_err(refuse)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Holds back what nodes edit, until it is resumed. Writes through the API go on.
#[utoipa::path(post, path = "/api/sessions/{id}/workspace/pause", tag = "files", params(("id" = String, Path)), responses((status = 204)))]
async fn pause_workspace(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<SessionId>) -> Result<StatusCode, Problem> {
    set_paused(&api, &caller, id, true).await
}

/// Ends a pause. What nodes held back is proposed.
#[utoipa::path(post, path = "/api/sessions/{id}/workspace/resume", tag = "files", params(("id" = String, Path)), responses((status = 204)))]
async fn resume_workspace(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<SessionId>) -> Result<StatusCode, Problem> {
    set_paused(&api, &caller, id, false).await
}

async fn set_paused(api: &Api, caller: &Caller, id: SessionId, paused: bool) -> Result<StatusCode, Problem> {
    let workspace = api.hub.workspace_used(&caller.actor, id).await.map_err(refuse)?;
    workspace.pause(&api.hub, &caller.actor, paused).await.map_err(refuse)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Which nodes and files, and how patient.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct CheckBody {
    /// One node; none: all that are connected.
    #[schema(value_type = Option<String>)]
    node_id: Option<NodeId>,
    /// Only these files and folders, at most 100; none: everything.
    paths: Vec<String>,
    /// How long a node may take; 30 s when left out.
    wait_ms: Option<u64>,
}

/// Which nodes, how thoroughly, and how patient.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct ResyncBody {
    /// One node; none: all that are connected.
    #[schema(value_type = Option<String>)]
    node_id: Option<NodeId>,
    /// Read every file again, whatever its time and size say.
    rehash: bool,
    /// How long a node may take; 30 s when left out.
    wait_ms: Option<u64>,
}

/// A node's comparison of its files with the workspace.
#[derive(Debug, Serialize, ToSchema)]
struct DriftView {
    /// The node.
    #[schema(value_type = String)]
    node_id: NodeId,
    /// What it is called.
    name: String,
    /// When it was compared; none: not since the node is connected.
    at_ms: Option<i64>,
    /// What was different.
    drift: Option<Drift>,
    /// Why there is no comparison: "node_offline", "node_busy".
    code: Option<&'static str>,
}

/// The workspace, and every node's comparison with it.
#[derive(Debug, Serialize, ToSchema)]
struct CheckView {
    /// The workspace's revision.
    revision: u64,
    /// Stands for all files.
    root: String,
    /// Files, folders and symlinks.
    entries: usize,
    /// Bytes of all files.
    bytes: u64,
    /// One for each node.
    nodes: Vec<DriftView>,
}

/// How nodes are asked.
struct Check {
    node: Option<NodeId>,
    how: Rescan,
    wait_ms: Option<u64>,
}

impl Check {
    fn new(body: CheckBody, how: Rescan) -> Result<Self, Problem> {
        if body.paths.len() > limits::RESCAN_PATHS {
            return Err(Problem::malformed(format!("`paths` has at most {} entries; leave it out for everything", limits::RESCAN_PATHS)));
        }
        let paths = body.paths.iter().map(|at| Ok(path(at)?.to_string())).collect::<Result<_, Problem>>()?;
        Ok(Self { node: body.node_id, how: Rescan { paths, ..how }, wait_ms: body.wait_ms })
    }
}

async fn check(api: &Api, caller: &Caller, id: SessionId, workspace: &Workspace, check: Check) -> Answer<CheckView> {
    let attached = api.hub.session(&caller.actor, id).await?.nodes;
    if let Some(node) = check.node
        && !attached.contains(&node)
    {
        return Err(Problem::not_found("node in this session"));
    }
    let asked = attached.into_iter().filter(|node| check.node.is_none_or(|wanted| wanted == *node));
    let patience = Duration::from_millis(check.wait_ms.unwrap_or(PATIENCE_MS).clamp(1, MOST_PATIENCE_MS));
    let how = &check.how;
    let answers = join_all(asked.map(|node| async move {
        let mut answer = workspace.nodes.rescan(node, how.clone(), patience).await;
        if how.repair && answer.is_ok() {
            // What was edited there is in when this is answered.
            answer = match workspace.nodes.barrier(node, patience).await {
                Ok(()) => answer,
                Err(error) => Err(error),
            };
        }
        (node, answer)
    }));
    let mut nodes = Vec::new();
    for (node, answer) in answers.await {
        let name = name_of(api, node).await?;
        let code = answer.as_ref().err().map(MirrorError::code);
        nodes.push(DriftView { node_id: node, name, at_ms: answer.is_ok().then(|| api.hub.now_ms()), drift: answer.ok(), code });
    }
    let head = workspace.head();
    let root = head.tree.root().to_string();
    Ok(Json(CheckView { revision: head.revision(), root, entries: head.tree.len(), bytes: head.tree.bytes(), nodes }))
}

/// Brings everything, or the files and folders that are named, to the nodes again: each reads all of it, fetches what is missing or damaged, and proposes what
/// was edited there. Waits for them.
#[utoipa::path(post, path = "/api/sessions/{id}/workspace/push", tag = "files", params(("id" = String, Path)), request_body = CheckBody, responses((status = 200, body = CheckView)))]
async fn push_workspace(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<SessionId>,
    Body(body): Body<CheckBody>,
) -> Answer<CheckView> {
    let workspace = api.hub.workspace_used(&caller.actor, id).await.map_err(refuse)?;
    let how = Rescan { rehash: true, repair: true, ..Rescan::default() };
    check(&api, &caller, id, &workspace, Check::new(body, how)?).await
}

/// Has nodes look at their files again, and sets right what is different. Edits that were not sent yet are proposed first.
#[utoipa::path(post, path = "/api/sessions/{id}/workspace/resync", tag = "files", params(("id" = String, Path)), request_body = ResyncBody, responses((status = 200, body = CheckView)))]
async fn resync_workspace(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<SessionId>,
    Body(body): Body<ResyncBody>,
) -> Answer<CheckView> {
    let workspace = api.hub.workspace_used(&caller.actor, id).await.map_err(refuse)?;
    let how = Rescan { rehash: body.rehash, repair: true, ..Rescan::default() };
    check(&api, &caller, id, &workspace, Check { node: body.node_id, how, wait_ms: body.wait_ms }).await
}

/// Has nodes compare their files with the workspace, and changes nothing.
#[utoipa::path(post, path = "/api/sessions/{id}/workspace/manifest", tag = "files", params(("id" = String, Path)), request_body = CheckBody, responses((status = 200, body = CheckView)))]
async fn workspace_manifest(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<SessionId>,
    Body(body): Body<CheckBody>,
) -> Answer<CheckView> {
    let workspace = api.hub.workspace_used(&caller.actor, id).await.map_err(refuse)?;
    check(&api, &caller, id, &workspace, Check::new(body, Rescan::default())?).await
}

/// What nodes last said about differences between their files and the workspace. `POST …/workspace/manifest` asks them anew.
#[utoipa::path(get, path = "/api/sessions/{id}/workspace/drift", tag = "files", params(("id" = String, Path)), responses((status = 200, body = Vec<DriftView>)))]
async fn show_drift(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<SessionId>) -> Answer<Vec<DriftView>> {
    let workspace = api.hub.workspace_seen(&caller.actor, id).await.map_err(refuse)?;
    let mut views = Vec::new();
    for node in api.hub.session(&caller.actor, id).await?.nodes {
        let (at_ms, drift) = workspace.nodes.drift_of(node).unzip();
        let code = workspace.nodes.sync_of(node).is_none().then_some(MirrorError::NodeAway.code());
        views.push(DriftView { node_id: node, name: name_of(&api, node).await?, at_ms, drift, code });
    }
    Ok(Json(views))
}

/// The answer to a node's question.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct AnswerBody {
    /// The `id` of the question.
    question: u64,
    /// Do it.
    yes: bool,
}

/// Answers what a node does not do without a person, such as deleting most of a workspace.
#[utoipa::path(post, path = "/api/sessions/{id}/workspace/nodes/{node}/answer", tag = "files", params(("id" = String, Path), ("node" = String, Path)), request_body = AnswerBody, responses((status = 204)))]
async fn answer_node(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path((id, node)): Path<(SessionId, NodeId)>,
    Body(body): Body<AnswerBody>,
) -> Result<StatusCode, Problem> {
    let workspace = api.hub.workspace_used(&caller.actor, id).await.map_err(refuse)?;
    workspace.answer(&api.hub, &caller.actor, node, body.question, body.yes).await.map_err(refuse)?;
    Ok(StatusCode::NO_CONTENT)
}

/// What to look for.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct SearchQuery {
    /// A pattern for the path, such as `src/**/*.rs`; without a slash for the name alone.
    #[param(required = false)]
    name: Option<String>,
    /// A text inside files.
    #[param(required = false)]
    text: Option<String>,
    /// Upper and lower case are the same.
    #[param(required = false)]
    ignore_case: bool,
    /// A folder to look in.
    #[param(required = false)]
    path: String,
    /// Files to answer: 1 to 1000, 100 when left out.
    #[param(required = false)]
    limit: Option<usize>,
    /// `next_cursor` of the answer before.
    #[param(required = false)]
    cursor: Option<String>,
}

/// Files that were found.
#[derive(Debug, Serialize, ToSchema)]
struct SearchView {
    /// In the order of their paths.
    items: Vec<Found>,
    /// Where to go on, when the search stopped at a bound.
    next_cursor: Option<String>,
    /// Files that were too large to look into.
    skipped: u64,
}

/// Finds files by name and by what they hold, in bounded time: follow `next_cursor` for the rest.
#[utoipa::path(get, path = "/api/sessions/{id}/workspace/search", tag = "files", params(("id" = String, Path), SearchQuery), responses((status = 200, body = SearchView)))]
async fn search_files(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<SessionId>,
    Query(query): Query<SearchQuery>,
) -> Answer<SearchView> {
    let workspace = api.hub.workspace_seen(&caller.actor, id).await.map_err(refuse)?;
    let bound = |text: &Option<String>| text.as_ref().is_none_or(|text| !text.is_empty() && text.len() <= limits::TEXT_BYTES);
    if !bound(&query.name) || !bound(&query.text) {
        return Err(Problem::malformed("`name` and `text` have 1 to 512 bytes"));
    }
    let wanted = Wanted {
        name: query.name,
        text: query.text,
        ignore_case: query.ignore_case,
        below: Some(prefix(&query.path)?),
        after: query.cursor.as_deref().map(path).transpose()?,
        limit: query.limit.unwrap_or(100).clamp(1, MOST_FOUND),
    };
    let results = workspace.search(&api.hub, &wanted).await.map_err(refuse)?;
    Ok(Json(SearchView { items: results.found, next_cursor: results.next.map(|at| at.to_string()), skipped: results.skipped }))
}

/// Which folder.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ArchiveQuery {
    /// A folder; none: the whole workspace.
    #[param(required = false)]
    path: String,
    /// As it was at this revision; none: now. For downloads.
    #[param(required = false)]
    revision: Option<u64>,
}

/// A folder with everything in it, as a tar stream.
#[utoipa::path(get, path = "/api/sessions/{id}/workspace/archive", tag = "files", params(("id" = String, Path), ArchiveQuery), responses((status = 200, body = [u8], content_type = "application/x-tar")))]
async fn download_folder(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<SessionId>,
    Query(query): Query<ArchiveQuery>,
) -> Result<Response, Problem> {
    let workspace = api.hub.workspace_seen(&caller.actor, id).await.map_err(refuse)?;
    let at = prefix(&query.path)?;
    let (_, tree) = tree(&api, &workspace, query.revision).await?;
    if !at.is_root() && tree.get(&at).is_none_or(|entry| !matches!(entry, Entry::Directory)) {
        return Err(refuse(MirrorError::NoFile(at.to_string())));
    }
    let vigil = Vigil::new(&api, &caller)?;
    let packer = Packer::new(&api.hub, &workspace, &tree, &at);
    let bytes = stream::try_unfold((packer, vigil), |(mut packer, vigil)| async move {
        if !vigil.may_go_on() {
            return Err(io::Error::other("the reader was shut out, or the hub stops"));
        }
        let bytes = packer.next().await.map_err(io::Error::other)?;
        Ok(bytes.map(|bytes| (bytes, (packer, vigil))))
    });
    let name = if at.is_root() { "workspace.tar".to_owned() } else { format!("{}.tar", at.name()) };
    let mut response = HttpBody::from_stream(bytes).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    response.headers_mut().extend(attachment(&name));
    Ok(response)
}

/// What became of an archive.
#[derive(Debug, Serialize, ToSchema)]
struct UnpackedView {
    /// The workspace's revision with it.
    revision: u64,
    /// Files, folders and symlinks of the archive that are in the workspace now.
    entries: usize,
    /// Bytes of its files.
    bytes: u64,
    /// Members that were left out; the first of them.
    skipped: Vec<Skipped>,
    /// And how many more.
    more_skipped: usize,
}

/// Puts what a tar stream holds into a folder, as one commit, or nothing of it. What is there already is replaced; what is not in the archive stays.
#[utoipa::path(put, path = "/api/sessions/{id}/workspace/archive", tag = "files",
    params(("id" = String, Path), ArchiveQuery, ("Cortex-Fence" = Option<u64>, Header, description = "of the caller's lock")),
    request_body(content = Vec<u8>, content_type = "application/x-tar"), responses((status = 200, body = UnpackedView)))]
async fn upload_folder(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<SessionId>,
    Query(query): Query<ArchiveQuery>,
    headers: HeaderMap,
    request: Request,
) -> Answer<UnpackedView> {
    let workspace = api.hub.workspace_used(&caller.actor, id).await.map_err(refuse)?;
    let (at, fence) = (prefix(&query.path)?, fence(&headers)?);
    let vigil = Vigil::new(&api, &caller)?;
    let (sender, receiver) = mpsc::channel(PIECES);
    let mut body = pieces(request);
    let pump = tokio::spawn(async move {
        while let Some(piece) = body.next().await {
            let piece = if vigil.may_go_on() { piece } else { Err("the hub stops, or the token is no longer valid".into()) };
            let broken = piece.is_err();
            if sender.send(piece.map_err(io::Error::other)).await.is_err() || broken {
                break;
            }
        }
    });
    let outcome = workspace.unpack(&api.hub, &caller.actor, fence, at, receiver).await;
    pump.abort();
    let (head, done) = outcome.map_err(refuse)?;
    Ok(Json(UnpackedView {
        revision: head.revision(),
        entries: done.entries,
        bytes: done.bytes,
        skipped: done.skipped,
        more_skipped: done.more_skipped,
    }))
}
