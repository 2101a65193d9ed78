//! Set-up, login, tokens and users.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use cortex_wire::id::UserId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api,
    body::{Answer, Body, Path, Query},
    caller::{Caller, Credential, Visitor, network_of},
    credential,
    paging::{Page, PageQuery},
    problem::Problem,
    view::{TokenView, UserView},
};
use crate::{
    account::{Login, NewToken, NewUser, OpenLogin, UserUpdate},
    record::{Role, Scope},
};

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(setup_state, setup))
        .routes(routes!(login))
        .routes(routes!(logout))
        .routes(routes!(me))
        .routes(routes!(change_password))
        .routes(routes!(list_logins))
        .routes(routes!(end_login))
        .routes(routes!(list_tokens, create_token))
        .routes(routes!(revoke_token))
        .routes(routes!(list_users, create_user))
        .routes(routes!(update_user))
}

/// Whether the hub waits for its first administrator.
#[derive(Serialize, ToSchema)]
struct SetupState {
    /// It does: `POST /api/setup`.
    needed: bool,
}

/// Whether the hub waits for its first administrator.
#[utoipa::path(get, path = "/api/setup", tag = "account", security(()), responses((status = 200, body = SetupState)))]
async fn setup_state(State(api): State<Arc<Api>>) -> Answer<SetupState> {
    Ok(Json(SetupState { needed: !api.hub.is_set_up().await? }))
}

/// The first administrator.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SetupBody {
    /// The one-time token that the hub printed when it started.
    token: String,
    /// A login name.
    name: String,
    /// At least 8 characters; 15 are better.
    #[schema(format = Password)]
    password: String,
}

/// Makes the first administrator, and logs them in.
#[utoipa::path(post, path = "/api/setup", tag = "account", security(()), request_body = SetupBody, responses((status = 200, body = Me)))]
async fn setup(State(api): State<Arc<Api>>, visitor: Visitor, Body(body): Body<SetupBody>) -> Result<Response, Problem> {
    api.limits.login_addresses.take(network_of(visitor.address), api.hub.now_ms())?;
    let login = api.hub.setup(&body.token, &body.name, &body.password, &visitor.agent).await?;
    Ok(logged_in(&login, &visitor))
}

/// Name and password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct LoginBody {
    /// The login name.
    name: String,
    /// The password.
    #[schema(format = Password)]
    password: String,
}

/// Logs in with a password; answers a session cookie.
///
/// The cookie is `__Host-cortex` where browsers reach the hub through https, and `cortex` over plain http.
#[utoipa::path(post, path = "/api/login", tag = "account", security(()), request_body = LoginBody, responses((status = 200, body = Me)))]
async fn login(State(api): State<Arc<Api>>, visitor: Visitor, Body(body): Body<LoginBody>) -> Result<Response, Problem> {
    let (now_ms, network) = (api.hub.now_ms(), network_of(visitor.address));
    let account = (body.name.trim().to_lowercase(), network);
    api.limits.login_addresses.take(network, now_ms)?;
    api.limits.logins.take(account.clone(), now_ms)?;
    let login = api.hub.login(&body.name, &body.password, &visitor.agent).await?;
    api.limits.logins.reset(&account);
    Ok(logged_in(&login, &visitor))
}

fn logged_in(login: &Login, visitor: &Visitor) -> Response {
    let me = Me {
        user_id: login.user.id,
        name: login.user.name.clone(),
        role: login.user.role,
        via: "ui".into(),
        scopes: vec![Scope::Read, Scope::Dispatch, Scope::Manage, Scope::Admin],
    };
    with_cookie(Json(me), credential::set_cookie(&login.secret, visitor.secure))
}

fn with_cookie(response: impl IntoResponse, cookie: Option<HeaderValue>) -> Response {
    let mut response = response.into_response();
    response.headers_mut().extend(cookie.map(|cookie| (header::SET_COOKIE, cookie)));
    response
}

/// Ends the login session. Without one, nothing happens.
#[utoipa::path(post, path = "/api/logout", tag = "account", security(()), responses((status = 204)))]
async fn logout(State(api): State<Arc<Api>>, visitor: Visitor, headers: HeaderMap) -> Result<Response, Problem> {
    if let Some(Credential::Cookie(secret)) = Credential::of(&headers, visitor.secure) {
        api.hub.logout(&secret).await?;
    }
    Ok(with_cookie(StatusCode::NO_CONTENT, credential::clear_cookie(visitor.secure)))
}

/// Who is asking.
#[derive(Serialize, ToSchema)]
struct Me {
    /// The id.
    #[schema(value_type = String)]
    user_id: UserId,
    /// The login name.
    name: String,
    /// What the account may do.
    role: Role,
    /// "ui" with a cookie, "api" with a token.
    via: String,
    /// What this token or login may do, within the role.
    scopes: Vec<Scope>,
}

/// Who is asking.
#[utoipa::path(get, path = "/api/me", tag = "account", responses((status = 200, body = Me)))]
async fn me(Caller { actor, .. }: Caller) -> Answer<Me> {
    Ok(Json(Me { user_id: actor.user, name: actor.name, role: actor.role, via: actor.via, scopes: actor.scopes }))
}

/// A change of one's own password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PasswordBody {
    /// The one that is good now.
    #[schema(format = Password)]
    old: String,
    /// The one that shall be.
    #[schema(format = Password)]
    new: String,
}

/// Changes one's own password. All other logins of the account end.
#[utoipa::path(post, path = "/api/me/password", tag = "account", request_body = PasswordBody, responses((status = 204)))]
async fn change_password(
    State(api): State<Arc<Api>>,
    caller: Caller,
    visitor: Visitor,
    Body(body): Body<PasswordBody>,
) -> Result<StatusCode, Problem> {
    let account = (caller.actor.name.clone(), network_of(visitor.address));
    api.limits.logins.take(account.clone(), api.hub.now_ms())?;
    api.hub.change_password(&caller.actor, &body.old, &body.new).await?;
    api.limits.logins.reset(&account);
    Ok(StatusCode::NO_CONTENT)
}

/// A browser in which the account is logged in.
#[derive(Serialize, ToSchema)]
struct LoginView {
    /// Names it here.
    id: String,
    /// When the password was given.
    created_at_ms: i64,
    /// Up to a minute behind.
    last_used_at_ms: i64,
    /// What the browser calls itself.
    agent: String,
    /// It is the one that asks.
    current: bool,
}

impl From<OpenLogin> for LoginView {
    fn from(open: OpenLogin) -> Self {
        let OpenLogin { id, login, current } = open;
        Self { id, created_at_ms: login.created_at_ms, last_used_at_ms: login.last_used_at_ms, agent: login.agent, current }
    }
}

/// The browsers in which one is logged in: this one first, then the one used last. For people: a token is refused.
#[utoipa::path(get, path = "/api/me/logins", tag = "account", params(PageQuery), responses((status = 200, body = Page<LoginView>)))]
async fn list_logins(State(api): State<Arc<Api>>, caller: Caller, Query(page): Query<PageQuery>) -> Answer<Page<LoginView>> {
    let logins = page.cut(api.hub.logins(&caller.actor).await?, |open| open.id.clone())?;
    Ok(Json(logins.map(LoginView::from)))
}

/// Logs out of one of them. For people: a token is refused.
#[utoipa::path(delete, path = "/api/me/logins/{id}", tag = "account", params(("id" = String, Path)), responses((status = 204)))]
async fn end_login(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    api.hub.end_login(&caller.actor, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// One's own API tokens, without their texts.
#[utoipa::path(get, path = "/api/tokens", tag = "account", params(PageQuery), responses((status = 200, body = Page<TokenView>)))]
async fn list_tokens(State(api): State<Arc<Api>>, caller: Caller, Query(page): Query<PageQuery>) -> Answer<Page<TokenView>> {
    let tokens = api.hub.tokens(&caller.actor).await?;
    Ok(Json(page.cut(tokens, |token| token.id.clone())?.map(TokenView::from)))
}

/// An API token to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TokenBody {
    /// A label.
    name: String,
    /// How far it reaches; within what the account may do.
    scopes: Vec<Scope>,
    /// Seconds until it is no good any more; none: until it is revoked.
    expires_in_s: Option<u32>,
}

/// A fresh API token.
#[derive(Serialize, ToSchema)]
struct FreshToken {
    /// The text for the Authorization header. It is shown this once.
    text: String,
    /// What is kept of it.
    token: TokenView,
}

/// Makes an API token. Its text is shown this once.
#[utoipa::path(post, path = "/api/tokens", tag = "account", request_body = TokenBody, responses((status = 201, body = FreshToken)))]
async fn create_token(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Body(body): Body<TokenBody>,
) -> Result<(StatusCode, Json<FreshToken>), Problem> {
    let expires_in_ms = body.expires_in_s.map(|seconds| i64::from(seconds) * 1000);
    let (token, text) = api.hub.create_token(&caller.actor, NewToken { name: body.name, scopes: body.scopes, expires_in_ms }).await?;
    Ok((StatusCode::CREATED, Json(FreshToken { text, token: token.into() })))
}

/// Revokes one of one's own API tokens.
#[utoipa::path(delete, path = "/api/tokens/{id}", tag = "account", params(("id" = String, Path)), responses((status = 204)))]
async fn revoke_token(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    api.hub.revoke_token(&caller.actor, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// All accounts. For administrators.
#[utoipa::path(get, path = "/api/users", tag = "users", params(PageQuery), responses((status = 200, body = Page<UserView>)))]
async fn list_users(State(api): State<Arc<Api>>, caller: Caller, Query(page): Query<PageQuery>) -> Answer<Page<UserView>> {
    let users = api.hub.users(&caller.actor).await?;
    Ok(Json(page.cut(users, |user| user.id.to_string())?.map(UserView::from)))
}

/// An account to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct UserBody {
    /// The login name.
    name: String,
    /// The first password.
    #[schema(format = Password)]
    password: String,
    /// What it may do.
    role: Role,
}

/// Makes an account. For administrators.
#[utoipa::path(post, path = "/api/users", tag = "users", request_body = UserBody, responses((status = 201, body = UserView)))]
async fn create_user(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Body(body): Body<UserBody>,
) -> Result<(StatusCode, Json<UserView>), Problem> {
    let user = api.hub.create_user(&caller.actor, NewUser { name: body.name, password: body.password, role: body.role }).await?;
    Ok((StatusCode::CREATED, Json(user.into())))
}

/// Changes to an account; what is left out stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct UserChanges {
    /// What it may do.
    role: Option<Role>,
    /// Shut out, or let in again.
    disabled: Option<bool>,
    /// A new password.
    #[schema(format = Password)]
    password: Option<String>,
}

/// Changes an account. For administrators.
#[utoipa::path(patch, path = "/api/users/{id}", tag = "users", params(("id" = String, Path)), request_body = UserChanges, responses((status = 200, body = UserView)))]
async fn update_user(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<UserId>,
    Body(body): Body<UserChanges>,
) -> Answer<UserView> {
    let update = UserUpdate { role: body.role, disabled: body.disabled, password: body.password };
    Ok(Json(api.hub.update_user(&caller.actor, id, update).await?.into()))
}
