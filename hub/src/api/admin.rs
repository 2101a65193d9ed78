//! What operators look at: relays and the audit log.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};
use cortex_wire::{
    id::{NodeId, RelayId},
    invite::RelayEndpoint,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api,
    body::{Answer, Body, PagedQuery, Path, Query},
    caller::Caller,
    paging::{Page, PageQuery},
    problem::Problem,
    view::AuditView,
};
use crate::{failure::Refused, hub::RelayStatus, record::Scope, store::Order};

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list_relays, add_relay))
        .routes(routes!(remove_relay))
        .routes(routes!(list_audit))
        .routes(routes!(audit_of_node))
        .routes(routes!(verify_audit))
}

/// A relay of this hub.
#[derive(Serialize, ToSchema)]
struct RelayView {
    /// Its public key.
    #[schema(value_type = String)]
    id: RelayId,
    /// `host:port`, UDP and TCP.
    address: String,
    /// A label; may be empty.
    region: String,
    /// It lives in the hub's process.
    embedded: bool,
    /// The hub's configuration names it; others can be removed here.
    configured: bool,
    /// The hub has a link to it.
    online: bool,
    /// Nodes of this hub behind it.
    nodes: u64,
    /// Round trip of the link.
    rtt_us: Option<u64>,
    /// It is being stopped; its nodes move to others.
    draining: bool,
    /// Program and version.
    version: String,
    /// Percent of what it can carry: the larger of places taken and processor time. Null while it is not linked.
    load: Option<u32>,
    /// What carries the link: `udp`, `tcp` where UDP does not get through, `memory` for the relay in the hub's process. Null while it is not linked.
    carrier: Option<&'static str>,
}

impl From<RelayStatus> for RelayView {
    fn from(relay: RelayStatus) -> Self {
        Self {
            id: relay.endpoint.id,
            address: relay.endpoint.address,
            region: relay.endpoint.region,
            embedded: relay.embedded,
            configured: relay.configured,
            online: relay.online,
            nodes: relay.nodes,
            rtt_us: relay.rtt_us,
            draining: relay.draining,
            version: relay.version,
            load: relay.load,
            carrier: relay.carrier,
        }
    }
}

/// The relays of this hub, most wanted first.
#[utoipa::path(get, path = "/api/relays", tag = "operation", responses((status = 200, body = Page<RelayView>)))]
async fn list_relays(State(api): State<Arc<Api>>, caller: Caller) -> Answer<Page<RelayView>> {
    caller.actor.must(Scope::Read)?;
    let items = api.hub.relays().into_iter().map(RelayView::from).collect();
    Ok(Json(Page { items, next_cursor: None }))
}

/// A relay to be added.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RelayBody {
    /// `host:port#key`, as `cortex-relay serve` prints it.
    endpoint: String,
    /// A label; may be empty.
    #[serde(default)]
    region: String,
}

/// Adds a relay while everything runs: the hub links to it, and its nodes use it. The relay has to serve this hub (`cortex-relay serve --hub KEY`). For administrators.
#[utoipa::path(post, path = "/api/relays", tag = "operation", request_body = RelayBody, responses((status = 200, body = RelayView)))]
async fn add_relay(State(api): State<Arc<Api>>, caller: Caller, Body(body): Body<RelayBody>) -> Answer<RelayView> {
    caller.actor.must(Scope::Admin)?;
    let endpoint: RelayEndpoint = body.endpoint.parse().map_err(Refused::Invalid)?;
    let added = api.hub.add_relay(&caller.actor, RelayEndpoint { region: body.region, ..endpoint }).await?;
    Ok(Json(added.into()))
}

/// Removes a relay that was added. Its nodes move to others at once, and the hub lets go of it 10 seconds later. For administrators.
#[utoipa::path(delete, path = "/api/relays/{id}", tag = "operation", params(("id" = String, Path)), responses((status = 204)))]
async fn remove_relay(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<RelayId>) -> Result<StatusCode, Problem> {
    api.hub.remove_relay(&caller.actor, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// In which order.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct AuditQuery {
    /// Newest first; oldest first when left out.
    #[param(required = false)]
    newest_first: bool,
}

/// The audit log, oldest first or newest first. For administrators. A cursor is the `seq` of the row before.
#[utoipa::path(get, path = "/api/audit", tag = "operation", params(AuditQuery, PageQuery), responses((status = 200, body = Page<AuditView>)))]
async fn list_audit(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PagedQuery(query, page): PagedQuery<AuditQuery>,
) -> Answer<Page<AuditView>> {
    let order = if query.newest_first { Order::Descending } else { Order::Ascending };
    let rows = api.hub.audit_rows(&caller.actor, page.cursor()?, order, page.limit() + 1).await?;
    Ok(Json(page.of(rows, |row| row.seq.to_string()).map(AuditView::from)))
}

/// What was done to a node and by it, newest first. For its owner and administrators. A page may hold fewer rows than wanted, or none, and still have a next one.
#[utoipa::path(get, path = "/api/nodes/{id}/audit", tag = "nodes", params(("id" = String, Path), PageQuery), responses((status = 200, body = Page<AuditView>)))]
async fn audit_of_node(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<NodeId>,
    Query(page): Query<PageQuery>,
) -> Answer<Page<AuditView>> {
    let (rows, next) = api.hub.audit_of_node(&caller.actor, id, page.cursor()?, page.limit()).await?;
    Ok(Json(Page { items: rows.into_iter().map(AuditView::from).collect(), next_cursor: next.map(|next| next.to_string()) }))
}

/// How a walk along the audit chain went.
#[derive(Serialize, ToSchema)]
struct AuditReport {
    /// Every row holds.
    sound: bool,
    /// Rows that were checked and hold.
    rows: u64,
    /// Signed checkpoints among them.
    checkpoints: u64,
    /// The first row that does not hold.
    first_bad_seq: Option<u64>,
    /// Why it does not.
    reason: Option<String>,
}

/// Walks the whole audit chain and names the first row that does not hold. For administrators.
#[utoipa::path(get, path = "/api/audit/verify", tag = "operation", responses((status = 200, body = AuditReport)))]
async fn verify_audit(State(api): State<Arc<Api>>, caller: Caller) -> Answer<AuditReport> {
    let verdict = api.hub.verify_audit(&caller.actor).await?;
    let (first_bad_seq, reason) = verdict.broken.unzip();
    Ok(Json(AuditReport { sound: first_bad_seq.is_none(), rows: verdict.rows, checkpoints: verdict.checkpoints, first_bad_seq, reason }))
}
