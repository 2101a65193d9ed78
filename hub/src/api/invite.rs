//! Invites: made with everything that a person needs to bring a machine in, listed, taken back.

use std::{collections::BTreeMap, sync::Arc};

use axum::{Json, extract::State, http::StatusCode};
use cortex_wire::id::{InviteId, SessionId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api,
    body::{Answer, Body, Path, Query},
    caller::{Caller, Visitor},
    dist::{self, Program},
    paging::{Page, PageQuery},
    problem::Problem,
    view::InviteView,
};
use crate::invite::NewInvite;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(create_invite)).routes(routes!(list_invites)).routes(routes!(show_invite, revoke_invite))
}

/// An invite to be made. Everything may be left out.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct InviteBody {
    /// What the node will be called; empty: what it calls itself.
    name: String,
    /// The node's labels.
    labels: BTreeMap<String, String>,
    /// The session to attach the node to.
    #[schema(value_type = Option<String>)]
    session_id: Option<SessionId>,
    /// Seconds until it is no good any more: 15 minutes to 7 days, an hour when left out.
    expires_in_s: Option<u32>,
    /// The owner has to confirm the node's fingerprint before it may work.
    approval: bool,
    /// The node is removed when it disconnects.
    ephemeral: bool,
}

/// A fresh invite, with all that leads from it to a node.
#[derive(Serialize, ToSchema)]
pub struct FreshInvite {
    /// The id.
    #[schema(value_type = String)]
    id: InviteId,
    /// The invite. It works once, and is shown this once.
    invite: String,
    /// Not good after this.
    expires_at_ms: i64,
    /// The owner has to confirm the node's fingerprint before it may work.
    approval: bool,
    /// Installs and starts the peer, when pasted into a shell on the machine.
    one_liner: String,
    /// The same for PowerShell on Windows.
    one_liner_windows: String,
    /// The peer's configuration, for those who install it themselves: `peer.yaml`.
    yaml: String,
    /// Where the programs are, and which of them this hub has.
    programs: Vec<Program>,
    /// `POST` the invite there for an archive of program and configuration.
    #[schema(value_type = String)]
    bundle_path: &'static str,
}

/// Makes an invite: a one-time permission to bring in one machine.
#[utoipa::path(post, path = "/api/nodes/invite", tag = "nodes", request_body = InviteBody, responses((status = 201, body = FreshInvite)))]
async fn create_invite(
    State(api): State<Arc<Api>>,
    caller: Caller,
    visitor: Visitor,
    Body(body): Body<InviteBody>,
) -> Result<(StatusCode, Json<FreshInvite>), Problem> {
    let new = NewInvite {
        name: body.name,
        labels: body.labels,
        session: body.session_id,
        expires_in_ms: body.expires_in_s.map(|seconds| i64::from(seconds) * 1000),
        approval: body.approval,
        ephemeral: body.ephemeral,
    };
    let issued = api.hub.create_invite(&caller.actor, new).await?;
    let base = api.site.base_url(&visitor.host);
    let fresh = FreshInvite {
        id: issued.invite.id,
        expires_at_ms: issued.invite.expires_at_ms,
        approval: issued.invite.approval,
        one_liner: format!("curl -fsSL {base}/install.sh | sh -s -- --invite {}", issued.text),
        one_liner_windows: format!("& ([scriptblock]::Create((irm '{base}/install.ps1'))) -Invite '{}'", issued.text),
        yaml: dist::peer_yaml(&issued.invite.name, &issued.text),
        programs: api.programs().await?,
        bundle_path: "/api/nodes/bundle",
        invite: issued.text,
    };
    Ok((StatusCode::CREATED, Json(fresh)))
}

/// One's own invites, newest first, without their texts.
#[utoipa::path(get, path = "/api/nodes/invites", tag = "nodes", params(PageQuery), responses((status = 200, body = Page<InviteView>)))]
async fn list_invites(State(api): State<Arc<Api>>, caller: Caller, Query(page): Query<PageQuery>) -> Answer<Page<InviteView>> {
    let now_ms = api.hub.now_ms();
    let invites = api.hub.invites(&caller.actor).await?;
    Ok(Json(page.cut(invites, |invite| invite.id.to_string())?.map(|invite| InviteView::new(invite, now_ms))))
}

/// One of one's own invites.
#[utoipa::path(get, path = "/api/nodes/invites/{id}", tag = "nodes", params(("id" = String, Path)), responses((status = 200, body = InviteView)))]
async fn show_invite(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<InviteId>) -> Answer<InviteView> {
    Ok(Json(InviteView::new(api.hub.invite(&caller.actor, id).await?, api.hub.now_ms())))
}

/// Takes an invite back.
#[utoipa::path(delete, path = "/api/nodes/invites/{id}", tag = "nodes", params(("id" = String, Path)), responses((status = 200, body = InviteView)))]
async fn revoke_invite(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<InviteId>) -> Answer<InviteView> {
    Ok(Json(InviteView::new(api.hub.revoke_invite(&caller.actor, id).await?, api.hub.now_ms())))
}
