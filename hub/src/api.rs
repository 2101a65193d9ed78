//! The hub's web surface: REST and event streams under `/api`, and the pages for people.
//!
//! Handlers read a request, call one operation of the domain, and show its outcome; rights, rules and transactions are the domain's. Every
//! request passes [`guard`] first.
//!
//! | module | answers for |
//! | --- | --- |
//! | [`problem`] | errors as problem documents, the one map from the domain's errors to HTTP |
//! | [`guard`], [`site`], [`credential`], [`caller`] | who may ask: Host, Origin, cookie, token |
//! | [`listener`] | connections: how many, how slow, and how they end |
//! | [`rate`] | how often, and how many at once |
//! | [`body`], [`paging`], [`view`] | reading requests, lists in pages, what records look like from outside |
//! | [`account`], [`invite`], [`node`], [`session`], [`task`], [`admin`], [`health`] | the routes of these concepts |
//! | [`overview`], [`output`] | tasks of all sessions; a task's output as bytes |
//! | [`policy`], [`approval`] | what nodes allow; what people are asked, and say |
//! | [`terminal`] | a task's terminal as a WebSocket |
//! | [`secret`] | what tasks use and nobody reads |
//! | [`browser`] | a session's browser: actions, events, pictures |
//! | [`files`], [`workspace`], [`history`] | a session's files: contents, the workspace as a whole, what it was |
//! | [`sse`], [`tail`], [`position`], [`stream`] | event streams, exact over reconnects |
//! | [`download`], [`dist`], [`pages`] | bringing a machine in; the web page |
//! | [`metrics`] | counts for operators |
//! | [`openapi`] | the API's own description |

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use axum::{Router, extract::DefaultBodyLimit, http::header, middleware, response::IntoResponse, routing::get};
use cortex_runtime::lifecycle::Lifecycle;
use cortex_wire::id::UserId;
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::{Config as DocsConfig, SwaggerUi};

use crate::hub::Hub;

pub mod account;
pub mod admin;
pub mod approval;
pub mod body;
pub mod browser;
pub mod caller;
pub mod credential;
pub mod dist;
pub mod download;
pub mod files;
pub mod guard;
pub mod health;
pub mod history;
mod introduction;
pub mod invite;
pub mod linger;
pub mod listener;
pub mod metrics;
pub mod node;
pub mod openapi;
pub mod output;
pub mod overview;
pub mod pages;
pub mod paging;
pub mod policy;
pub mod position;
pub mod problem;
pub mod rate;
pub mod secret;
pub mod session;
pub mod site;
pub mod sse;
pub mod stream;
pub mod tail;
pub mod task;
pub mod terminal;
pub mod view;
pub mod workspace;

#[cfg(test)]
mod tests;

use dist::Dist;
use metrics::Metrics;
use rate::{Concurrent, Limit};
use site::{PublicUrl, Site};

/// Largest body of a request: a script of 256 KiB as JSON may be six times as long, standard input goes in pieces of this size.
const BODY_BYTES: usize = 2 * 1024 * 1024;

/// How the web surface behaves.
#[derive(Debug, Clone)]
pub struct ApiOptions {
    /// The address that people type.
    pub public_url: Option<PublicUrl>,
    /// Further names that requests may be for.
    pub allowed_hosts: Vec<String>,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpAddr>,
    /// Programs for platforms other than this one.
    pub dist_folder: Option<PathBuf>,
    /// `/metrics` without a token.
    pub open_metrics: bool,
    /// Dispatches of one token or account.
    pub dispatches_per_second: u32,
    /// Open streams of one account.
    pub streams_per_user: usize,
    /// Failed logins of one account from one network in 15 minutes.
    pub logins_per_account: u32,
    /// Logins from one network in a minute.
    pub logins_per_network: u32,
}

impl Default for ApiOptions {
    fn default() -> Self {
        Self {
            public_url: None,
            allowed_hosts: Vec::new(),
            trusted_proxies: Vec::new(),
            dist_folder: None,
            open_metrics: false,
            dispatches_per_second: 2000,
            streams_per_user: 256,
            logins_per_account: 5,
            logins_per_network: 20,
        }
    }
}

/// What handlers share.
#[derive(Debug)]
pub struct Api {
    /// The domain.
    pub hub: Arc<Hub>,
    /// The hub's names.
    pub site: Site,
    /// Programs to hand out.
    pub dist: Dist,
    /// How it behaves.
    pub options: ApiOptions,
    /// How often.
    pub limits: Limits,
    /// Streams of each account.
    pub streams: Concurrent<UserId>,
    /// What is counted.
    pub metrics: Metrics,
    /// What the last probe found.
    pub readiness: health::LastLook,
    /// Start and stop.
    pub lifecycle: Lifecycle,
}

/// Rate limits.
#[derive(Debug)]
pub struct Limits {
    /// Failed logins, by account and network.
    pub logins: Limit<(String, IpAddr)>,
    /// Logins, by network.
    pub login_addresses: Limit<IpAddr>,
    /// Dispatches, by token or account.
    pub dispatches: Limit<String>,
}

impl Api {
    /// Over this hub.
    pub fn new(hub: Arc<Hub>, options: ApiOptions, lifecycle: Lifecycle) -> Arc<Self> {
        let own_program = std::env::current_exe().ok();
        Arc::new(Self {
            hub,
            site: Site::new(options.public_url.clone(), options.allowed_hosts.iter().cloned()),
            dist: Dist::new(own_program.as_deref(), options.dist_folder.clone()),
            limits: Limits {
                logins: Limit::new(options.logins_per_account, 15 * 60 * 1000),
                login_addresses: Limit::new(options.logins_per_network, 60 * 1000),
                dispatches: Limit::new(options.dispatches_per_second, 1000),
            },
            streams: Concurrent::new(options.streams_per_user),
            metrics: Metrics::default(),
            readiness: health::LastLook::default(),
            options,
            lifecycle,
        })
    }
}

fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::with_openapi(openapi::frame())
        .merge(account::routes())
        .merge(invite::routes())
        .merge(node::routes())
        .merge(policy::routes())
        .merge(approval::routes())
        .merge(session::routes())
        .merge(task::routes())
        .merge(overview::routes())
        .merge(terminal::routes())
        .merge(secret::routes())
        .merge(output::routes())
        .merge(browser::routes())
        .merge(files::routes())
        .merge(workspace::routes())
        .merge(history::routes())
        .merge(stream::routes())
        .merge(admin::routes())
        .merge(health::routes())
        .merge(introduction::routes())
        .merge(download::routes())
}

/// The description of all routes.
pub fn document() -> utoipa::openapi::OpenApi {
    openapi::finish(routes().into_openapi())
}

/// Everything that the hub answers over HTTP.
pub fn router(api: Arc<Api>) -> Router {
    let (routes, document) = routes().split_for_parts();
    let text = openapi::to_text(&openapi::finish(document)).unwrap_or_default();
    let json = move || {
        let text = text.clone();
        async move { ([(header::CONTENT_TYPE, "application/json")], text).into_response() }
    };
    let docs = SwaggerUi::new("/api/docs").config(DocsConfig::from("/api/openapi.json").try_it_out_enabled(false));
    routes
        .route("/api/openapi.json", get(json))
        .merge(docs)
        .merge(pages::routes())
        .fallback(pages::nothing_here)
        .method_not_allowed_fallback(pages::wrong_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .layer(middleware::from_fn_with_state(api.clone(), guard::guard))
        .layer(middleware::from_fn(linger::linger))
        .layer(middleware::from_fn_with_state(api.clone(), metrics::count))
        .with_state(api)
}
