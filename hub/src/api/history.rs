//! What a workspace was, and what did not go in: its log, differences, restoring, conflicts.

use std::{io, sync::Arc};

use axum::{
    Json,
    body::Body as HttpBody,
    extract::State,
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse, Response},
};
use cortex_wire::{
    id::{NodeId, SessionId, TaskId, UserId},
    mirror::{entry::Entry, op::Op},
};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api,
    body::{Answer, Body, PagedQuery, Path, Query},
    caller::Caller,
    files::{FileView, Written, attachment, fence, path, prefix, refuse},
    paging::{Page, PageQuery},
    problem::Problem,
    view::Names,
};
use crate::{
    mirror::{MirrorError, conflict::Take, content::Reader},
    record::mirror::{Author, CommitRecord, ConflictRecord},
};

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list_history))
        .routes(routes!(show_revision))
        .routes(routes!(show_difference))
        .routes(routes!(restore_workspace))
        .routes(routes!(list_conflicts))
        .routes(routes!(resolve_conflict))
        .routes(routes!(read_conflict))
}

/// Who did something.
#[derive(Debug, Serialize, ToSchema)]
struct AuthorView {
    /// Somebody at the hub, or
    #[schema(value_type = Option<String>)]
    user_id: Option<UserId>,
    /// a node.
    #[schema(value_type = Option<String>)]
    node_id: Option<NodeId>,
    /// What they are called.
    name: String,
}

impl AuthorView {
    async fn new(api: &Api, author: Option<Author>, names: &mut Names) -> Result<Self, Problem> {
        Ok(match author {
            Some(Author::User(user)) => Self { user_id: Some(user), node_id: None, name: names.of(user).await? },
            Some(Author::Node(node)) => {
                let name = api.hub.find_node(node).await?.map_or_else(|| node.to_string(), |node| node.name);
                Self { user_id: None, node_id: Some(node), name }
            }
            None => Self { user_id: None, node_id: None, name: "hub".into() },
        })
    }
}

/// A commit.
#[derive(Debug, Serialize, ToSchema)]
struct CommitView {
    /// The number, from 1 without gaps.
    revision: u64,
    /// When.
    at_ms: i64,
    /// Stands for all files as they were then.
    root: String,
    /// Who made it.
    author: AuthorView,
    /// The task that wrote it.
    #[schema(value_type = Option<String>)]
    task_id: Option<TaskId>,
    /// In a few words: "edit", "write", "restore 12", …
    what: String,
    /// Entries written.
    puts: u64,
    /// Entries removed; a folder counts as one.
    removes: u64,
    /// Entries moved; a folder counts as one.
    moves: u64,
    /// The first paths it touches.
    paths: Vec<String>,
}

impl CommitView {
    async fn new(api: &Api, commit: CommitRecord, names: &mut Names) -> Result<Self, Problem> {
        let author = AuthorView::new(api, commit.author(), names).await?;
        let (task_id, root) = (commit.task(), data_encoding::HEXLOWER.encode(&commit.root));
        let CommitRecord { revision, at_ms, what, puts, removes, moves, paths, .. } = commit;
        Ok(Self { revision, at_ms, root, author, task_id, what, puts, removes, moves, paths })
    }
}

/// Which commits.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct HistoryQuery {
    /// Only those that touch this path, or something below it.
    #[param(required = false)]
    path: String,
}

/// The commits, newest first. A cursor is a revision.
#[utoipa::path(get, path = "/api/sessions/{id}/workspace/history", tag = "files", params(("id" = String, Path), HistoryQuery, PageQuery), responses((status = 200, body = Page<CommitView>)))]
async fn list_history(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<SessionId>,
    PagedQuery(query, page): PagedQuery<HistoryQuery>,
) -> Answer<Page<CommitView>> {
    let workspace = api.hub.workspace_seen(&caller.actor, id).await.map_err(refuse)?;
    let found = workspace.history(&api.hub, page.cursor()?, prefix(&query.path)?, page.limit()).await.map_err(refuse)?;
    let mut names = Names::new(&api.hub);
    let mut items = Vec::with_capacity(found.commits.len());
    for commit in found.commits {
        items.push(CommitView::new(&api, commit, &mut names).await?);
    }
    Ok(Json(Page { items, next_cursor: found.next.map(|revision| revision.to_string()) }))
}

/// What a change does.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ChangeKind {
    /// Something comes, or takes another's place.
    Put,
    /// It goes; a folder with everything in it.
    Remove,
    /// It moves; a folder with everything in it.
    Move,
}

/// One change of a commit.
#[derive(Debug, Serialize, ToSchema)]
struct ChangeView {
    /// What it does.
    kind: ChangeKind,
    /// Where; of a move, from where.
    path: String,
    /// Of a move, to where.
    to: Option<String>,
    /// The hash of what was there.
    parent_hash: Option<String>,
    /// What is there afterwards.
    file: Option<FileView>,
}

impl From<&Op> for ChangeView {
    fn from(op: &Op) -> Self {
        let path = op.path().to_string();
        match op {
            Op::Put { path: at, parent, entry } => Self {
                kind: ChangeKind::Put,
                path,
                to: None,
                parent_hash: parent.map(|hash| hash.to_string()),
                file: Some(FileView::new(at, entry, entry.hash())),
            },
            Op::Remove { parent, .. } => {
                Self { kind: ChangeKind::Remove, path, to: None, parent_hash: Some(parent.to_string()), file: None }
            }
            Op::Move { to, parent, .. } => {
                Self { kind: ChangeKind::Move, path, to: Some(to.to_string()), parent_hash: Some(parent.to_string()), file: None }
            }
        }
    }
}

/// A commit with its changes.
#[derive(Debug, Serialize, ToSchema)]
struct RevisionView {
    /// The commit.
    #[serde(flatten)]
    commit: CommitView,
    /// What it changed, in order.
    changes: Vec<ChangeView>,
    /// For more of them; null on the last page.
    next_cursor: Option<String>,
}

/// One commit with its changes. A cursor is the number of a change.
#[utoipa::path(get, path = "/api/sessions/{id}/workspace/history/{revision}", tag = "files", params(("id" = String, Path), ("revision" = u64, Path), PageQuery), responses((status = 200, body = RevisionView)))]
async fn show_revision(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path((id, revision)): Path<(SessionId, u64)>,
    Query(page): Query<PageQuery>,
) -> Answer<RevisionView> {
    let workspace = api.hub.workspace_seen(&caller.actor, id).await.map_err(refuse)?;
    let (commit, ops) = workspace.revision(&api.hub, revision).await.map_err(refuse)?;
    let begin: usize = page.cursor()?.unwrap_or(0);
    let end = begin.saturating_add(page.limit());
    let changes = ops.iter().skip(begin).take(page.limit()).map(ChangeView::from).collect();
    let next_cursor = (end < ops.len()).then(|| end.to_string());
    Ok(Json(RevisionView { commit: CommitView::new(&api, commit, &mut Names::new(&api.hub)).await?, changes, next_cursor }))
}

/// Which revisions.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct DifferenceQuery {
    /// The older revision; 0: the empty workspace.
    from: u64,
    /// The newer one; none: now.
    #[param(required = false)]
    to: Option<u64>,
    /// Only this path and what is below it.
    #[param(required = false)]
    path: String,
}

/// A path that differs between two revisions.
#[derive(Debug, Serialize, ToSchema)]
struct DifferenceView {
    /// Where.
    path: String,
    /// In the older one.
    before: Option<FileView>,
    /// In the newer one.
    after: Option<FileView>,
}

/// The paths on which two revisions differ. A cursor is a path.
#[utoipa::path(get, path = "/api/sessions/{id}/workspace/diff", tag = "files", params(("id" = String, Path), DifferenceQuery, PageQuery), responses((status = 200, body = Page<DifferenceView>)))]
async fn show_difference(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<SessionId>,
    PagedQuery(query, page): PagedQuery<DifferenceQuery>,
) -> Answer<Page<DifferenceView>> {
    let workspace = api.hub.workspace_seen(&caller.actor, id).await.map_err(refuse)?;
    let before = workspace.tree_at(&api.hub, query.from).await.map_err(refuse)?;
    let (_, after) = super::files::tree(&api, &workspace, query.to).await?;
    let (below, behind) = (prefix(&query.path)?, page.cursor.as_deref().map(path).transpose()?);
    let differences = before.diff(&after).into_iter();
    let wanted = differences.filter(|one| one.path.starts_with(&below) && behind.as_ref().is_none_or(|behind| one.path > *behind));
    let items: Vec<_> = wanted.take(page.limit() + 1).collect();
    let page = page.of(items, |one| one.path.to_string());
    Ok(Json(page.map(|one| {
        let view = |entry: &Entry| FileView::new(&one.path, entry, entry.hash());
        DifferenceView { path: one.path.to_string(), before: one.before.as_ref().map(view), after: one.after.as_ref().map(view) }
    })))
}

/// What to bring back.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RestoreBody {
    /// As it was then; 0: the empty workspace.
    revision: u64,
    /// One file or folder; none: everything.
    #[serde(default)]
    path: String,
}

/// Brings the workspace, or one path of it, back to what it was at a revision, as a new commit.
#[utoipa::path(post, path = "/api/sessions/{id}/workspace/restore", tag = "files",
    params(("id" = String, Path), ("Cortex-Fence" = Option<u64>, Header, description = "of the caller's lock")),
    request_body = RestoreBody, responses((status = 200, body = Written)))]
async fn restore_workspace(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<SessionId>,
    headers: HeaderMap,
    Body(body): Body<RestoreBody>,
) -> Answer<Written> {
    let workspace = api.hub.workspace_used(&caller.actor, id).await.map_err(refuse)?;
    let (at, fence) = (prefix(&body.path)?, fence(&headers)?);
    let head = workspace.restore(&api.hub, &caller.actor, fence, body.revision, at.clone()).await.map_err(refuse)?;
    Ok(Json(Written::at(&head, &at)))
}

/// A change that did not go in.
#[derive(Debug, Serialize, ToSchema)]
struct ConflictView {
    /// Names it.
    number: u64,
    /// When.
    at_ms: i64,
    /// At which revision.
    revision: u64,
    /// Where.
    path: String,
    /// Whose change it was.
    author: AuthorView,
    /// What it was made from; none: it thought there was nothing.
    parent_hash: Option<String>,
    /// What the workspace held.
    current_hash: Option<String>,
    /// What was kept.
    kept: Option<FileView>,
    /// How it was resolved; none: it is open.
    resolution: Option<String>,
    /// When it was resolved.
    resolved_at_ms: Option<i64>,
}

impl ConflictView {
    async fn new(api: &Api, conflict: ConflictRecord, names: &mut Names) -> Result<Self, Problem> {
        let author = NodeId::from_slice(&conflict.node).ok().map(Author::Node);
        let hash = |bytes: &[u8]| (!bytes.is_empty()).then(|| data_encoding::HEXLOWER.encode(bytes));
        let kept = conflict.entry().map_err(refuse)?;
        let at = path(&conflict.path)?;
        Ok(Self {
            number: conflict.number,
            at_ms: conflict.at_ms,
            revision: conflict.revision,
            author: AuthorView::new(api, author, names).await?,
            parent_hash: hash(&conflict.parent),
            current_hash: hash(&conflict.current),
            kept: kept.map(|entry| FileView::new(&at, &entry, entry.hash())),
            resolved_at_ms: (!conflict.is_open()).then_some(conflict.resolved_at_ms),
            resolution: (!conflict.is_open()).then_some(conflict.resolution),
            path: conflict.path,
        })
    }
}

/// Which conflicts.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ConflictQuery {
    /// Also those that are resolved.
    #[param(required = false)]
    all: bool,
}

/// Changes that did not go in, because somebody else was first: newest first. A cursor is a number.
#[utoipa::path(get, path = "/api/sessions/{id}/workspace/conflicts", tag = "files", params(("id" = String, Path), ConflictQuery, PageQuery), responses((status = 200, body = Page<ConflictView>)))]
async fn list_conflicts(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<SessionId>,
    PagedQuery(query, page): PagedQuery<ConflictQuery>,
) -> Answer<Page<ConflictView>> {
    let workspace = api.hub.workspace_seen(&caller.actor, id).await.map_err(refuse)?;
    let conflicts = workspace.conflicts(&api.hub, page.cursor()?, !query.all, page.limit() + 1).await.map_err(refuse)?;
    let page = page.of(conflicts, |conflict| conflict.number.to_string());
    let mut names = Names::new(&api.hub);
    let mut items = Vec::with_capacity(page.items.len());
    for conflict in page.items {
        items.push(ConflictView::new(&api, conflict, &mut names).await?);
    }
    Ok(Json(Page { items, next_cursor: page.next_cursor }))
}

/// How to resolve it.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ResolveBody {
    /// "mine": what the workspace holds stays; "theirs": what was kept takes its place; "both": what was kept comes beside it.
    take: Take,
}

/// Where things are now.
#[derive(Debug, Serialize, ToSchema)]
struct Resolved {
    /// The workspace's revision.
    revision: u64,
    /// Where what was kept is now; none: nowhere but in history.
    path: Option<String>,
}

/// Resolves a conflict.
#[utoipa::path(post, path = "/api/sessions/{id}/workspace/conflicts/{number}", tag = "files",
    params(("id" = String, Path), ("number" = u64, Path), ("Cortex-Fence" = Option<u64>, Header, description = "of the caller's lock")),
    request_body = ResolveBody, responses((status = 200, body = Resolved)))]
async fn resolve_conflict(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path((id, number)): Path<(SessionId, u64)>,
    headers: HeaderMap,
    Body(body): Body<ResolveBody>,
) -> Answer<Resolved> {
    let workspace = api.hub.workspace_used(&caller.actor, id).await.map_err(refuse)?;
    let (head, at) = workspace.resolve(&api.hub, &caller.actor, fence(&headers)?, number, body.take).await.map_err(refuse)?;
    Ok(Json(Resolved { revision: head.revision(), path: at.map(|at| at.to_string()) }))
}

/// What a conflict keeps.
#[utoipa::path(get, path = "/api/sessions/{id}/workspace/conflicts/{number}/content", tag = "files", params(("id" = String, Path), ("number" = u64, Path)), responses((status = 200, body = [u8], content_type = "application/octet-stream")))]
async fn read_conflict(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path((id, number)): Path<(SessionId, u64)>,
) -> Result<Response, Problem> {
    let workspace = api.hub.workspace_seen(&caller.actor, id).await.map_err(refuse)?;
    let mut found = workspace.conflicts(&api.hub, number.checked_add(1), false, 1).await.map_err(refuse)?;
    let missing = || refuse(MirrorError::NoConflict(number));
    let conflict = found.pop().filter(|conflict| conflict.number == number).ok_or_else(missing)?;
    let Some(Entry::File { content, .. }) = conflict.entry().map_err(refuse)? else {
        return Err(refuse(MirrorError::NotAFile { path: conflict.path, kind: "folder or symlink" }));
    };
    let reader = Reader::open(&api.hub, &workspace, &content, 0..content.size).await.map_err(refuse)?;
    let bytes = stream::try_unfold(reader, |mut reader| async move {
        let bytes = reader.next().await.map_err(io::Error::other)?;
        Ok::<_, io::Error>(bytes.map(|bytes| (bytes, reader)))
    });
    let mut response = HttpBody::from_stream(bytes).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, content.size.into());
    headers.extend(attachment(conflict.path.rsplit('/').next().unwrap_or_default()));
    Ok(response)
}
