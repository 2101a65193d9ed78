//! What operators look at: relays and the audit log.

use std::sync::Arc;

use axum::{Json, extract::State};
use cortex_wire::id::RelayId;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api,
    body::{Answer, Query},
    caller::Caller,
    paging::{Page, PageQuery},
    view::AuditView,
};
use crate::record::Scope;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(list_relays)).routes(routes!(list_audit)).routes(routes!(verify_audit))
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
    /// The hub has a link to it.
    online: bool,
    /// Nodes of this hub behind it.
    nodes: u64,
    /// Round trip of the link.
    rtt_us: Option<u64>,
    /// Program and version.
    version: String,
}

/// The relays of this hub, most wanted first.
#[utoipa::path(get, path = "/api/relays", tag = "operation", responses((status = 200, body = Page<RelayView>)))]
async fn list_relays(State(api): State<Arc<Api>>, caller: Caller) -> Answer<Page<RelayView>> {
    caller.actor.must(Scope::Read)?;
    let relays = api.hub.mesh().map(|mesh| mesh.relays()).unwrap_or_default();
    let items = relays
        .into_iter()
        .map(|relay| RelayView {
            id: relay.endpoint.id,
            address: relay.endpoint.address,
            region: relay.endpoint.region,
            embedded: relay.embedded,
            online: relay.online,
            nodes: relay.nodes,
            rtt_us: relay.rtt_us,
            version: relay.version,
        })
        .collect();
    Ok(Json(Page { items, next_cursor: None }))
}

/// The audit log, oldest first. For administrators. A cursor is the `seq` of the row before.
#[utoipa::path(get, path = "/api/audit", tag = "operation", params(PageQuery), responses((status = 200, body = Page<AuditView>)))]
async fn list_audit(State(api): State<Arc<Api>>, caller: Caller, Query(page): Query<PageQuery>) -> Answer<Page<AuditView>> {
    let after = page.cursor()?.unwrap_or(0);
    let rows = api.hub.audit_rows(&caller.actor, after, page.limit() + 1).await?;
    Ok(Json(page.of(rows, |row| row.seq.to_string()).map(AuditView::from)))
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
