//! "Download your node": the install script, the programs with their checksums, and bundles.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use tokio_util::io::ReaderStream;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api,
    body::{Answer, Body as JsonBody, Path},
    caller::{Caller, Visitor},
    dist::{self, Program, file_name, own_platform},
    problem::Problem,
};
use crate::record::Scope;

const INSTALL_SH: &str = include_str!("../../assets/install.sh");
const INSTALL_PS1: &str = include_str!("../../assets/install.ps1");

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(install_script))
        .routes(routes!(install_script_windows))
        .routes(routes!(checksums))
        .routes(routes!(program))
        .routes(routes!(list_programs))
        .routes(routes!(bundle))
}

impl Api {
    /// The programs that this hub hands out. Sums up those that are new, away from the threads that serve.
    ///
    /// # Errors
    /// [`Problem`].
    pub async fn programs(&self) -> Result<Vec<Program>, Problem> {
        let dist = self.dist.clone();
        blocking(move || dist.programs()).await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> Result<T, Problem> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| Problem::internal(&error)),
        Err(error) => Err(Problem::internal(&error)),
    }
}

/// The script that makes a machine a node: `curl -fsSL …/install.sh | sh -s -- --invite cxi1_…`.
#[utoipa::path(get, path = "/install.sh", tag = "download", security(()), responses((status = 200, body = String, content_type = "text/x-shellscript")))]
async fn install_script(State(api): State<Arc<Api>>, visitor: Visitor) -> Response {
    // The address holds nothing but what host names are made of (`Site` sees to that), so it can stand between quotes.
    let script = INSTALL_SH.replace("@HUB@", &api.site.base_url(&visitor.host));
    ([(header::CONTENT_TYPE, "text/x-shellscript; charset=utf-8"), (header::CACHE_CONTROL, "no-cache")], script).into_response()
}

/// The same for Windows, in PowerShell: `& ([scriptblock]::Create((irm '…/install.ps1'))) -Invite 'cxi1_…'`.
#[utoipa::path(get, path = "/install.ps1", tag = "download", security(()), responses((status = 200, body = String, content_type = "text/plain")))]
async fn install_script_windows(State(api): State<Arc<Api>>, visitor: Visitor) -> Response {
    let script = INSTALL_PS1.replace("@HUB@", &api.site.base_url(&visitor.host));
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::CACHE_CONTROL, "no-cache")], script).into_response()
}

/// SHA-256 of every program, as `sha256sum -c` reads it.
#[utoipa::path(get, path = "/dist/SHA256SUMS", tag = "download", security(()), responses((status = 200, body = String, content_type = "text/plain")))]
async fn checksums(State(api): State<Arc<Api>>) -> Result<Response, Problem> {
    let dist = api.dist.clone();
    let sums = blocking(move || dist.checksums()).await?;
    Ok(([(header::CACHE_CONTROL, "no-cache")], sums).into_response())
}

/// One program.
#[utoipa::path(get, path = "/dist/{file}", tag = "download", security(()), params(("file" = String, Path, example = "cortex-peer-linux-x86_64")), responses((status = 200, body = [u8], content_type = "application/octet-stream")))]
async fn program(State(api): State<Arc<Api>>, Path(name): Path<String>) -> Result<Response, Problem> {
    let path = api.dist.find(&name).ok_or_else(|| Problem::not_found("program"))?;
    let file = tokio::fs::File::open(path).await.map_err(|error| Problem::internal(&error))?;
    let len = file.metadata().await.map_err(|error| Problem::internal(&error))?.len();
    let mut response = Body::from_stream(ReaderStream::with_capacity(file, 256 * 1024)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, len.into());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.extend(attachment(&name));
    Ok(response)
}

fn attachment(name: &str) -> Option<(header::HeaderName, HeaderValue)> {
    let value = HeaderValue::from_str(&format!("attachment; filename=\"{name}\"")).ok()?;
    Some((header::CONTENT_DISPOSITION, value))
}

/// Every platform, and whether this hub has a program for it.
#[utoipa::path(get, path = "/api/dist", tag = "download", security(()), responses((status = 200, body = Vec<Program>)))]
async fn list_programs(State(api): State<Arc<Api>>) -> Answer<Vec<Program>> {
    Ok(axum::Json(api.programs().await?))
}

/// What to bundle.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct BundleBody {
    /// The text of an invite.
    invite: String,
    /// What the node should be called; none: as the invite says.
    #[serde(default)]
    name: String,
    /// For which platform; none: the one the hub runs on.
    platform: Option<String>,
}

/// The program, its checksum, its configuration with the invite, and a read-me: a zip for Windows, else a tar.gz.
///
/// A POST, because the invite is a secret, and secrets do not stand in addresses.
#[utoipa::path(post, path = "/api/nodes/bundle", tag = "download", request_body = BundleBody, responses((status = 200, body = [u8], content_type = "application/gzip")))]
async fn bundle(State(api): State<Arc<Api>>, caller: Caller, JsonBody(body): JsonBody<BundleBody>) -> Result<Response, Problem> {
    caller.actor.must(Scope::Manage)?;
    cortex_wire::invite::read(&body.invite, api.hub.now_ms()).map_err(|error| Problem::malformed(error.to_string()))?;
    let platform = body.platform.unwrap_or_else(own_platform);
    let path = api.dist.find(&file_name(&platform)).ok_or_else(|| Problem::not_found("program for this platform"))?;
    let name = cortex_wire::text::clean(&body.name, cortex_wire::limits::NAME_BYTES);
    let yaml = dist::peer_yaml(&name, body.invite.trim());
    let archive = blocking(move || dist::bundle(&path, &yaml)).await?;
    let mut response = archive.into_response();
    let headers = response.headers_mut();
    let file = dist::bundle_name(&platform);
    let kind = if file.ends_with(".zip") { "application/zip" } else { "application/gzip" };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.extend(attachment(&file));
    Ok(response)
}
